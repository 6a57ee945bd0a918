"""What other tools call VGG's layers, and what those layers are called here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vggfeat.core.vgg_layers import Layer

_KERAS: Mapping[str, str] = {"fc1": "fc6", "fc2": "fc7", "predictions": "prob"}
_TIMM: Mapping[str, str] = {
    "pre_logits.fc1": "fc6.pre",
    "pre_logits.act1": "fc6",
    "pre_logits.drop": "fc6",
    "pre_logits.fc2": "fc7.pre",
    "pre_logits.act2": "fc7",
    "pre_logits": "fc7",
    "head.fc": "fc8",
    "head": "fc8",
}
# Dropout passes everything on once training is over.
_DROPOUT: Mapping[str, str] = {"classifier.2": "fc6", "classifier.5": "fc7"}
_INDEXED = re.compile(r"(\w+)\[(\d+)\]")
_KERAS_BLOCK = re.compile(r"block(\d)_(conv(\d)|pool)")


def explain_name(name: str, table: Sequence[Layer]) -> str:
    """Return a sentence that says what another tool's layer is called here; empty for any other.

    Args:
        name: such as torchvision's (and thingsvision's) `features.32`, also `features[32]` or the
            number alone, and Keras's `block5_conv3`; in lower case.
        table: all layers of the variant.
    """
    names = {layer.name for layer in table}
    tool, ours = _translated(name, table)
    if not ours or ours.removesuffix(".pre") not in names:
        return ""
    return f"{tool} {name} is {ours}"


def _translated(name: str, table: Sequence[Layer]) -> tuple[str, str]:
    """Whose name it is, and ours; both empty if it is nobody's."""
    name = _INDEXED.sub(r"\1.\2", f"features.{name}" if name.isdecimal() else name)
    block = _KERAS_BLOCK.fullmatch(name)
    if block:
        return "Keras's", f"conv{block[1]}_{block[3]}" if block[3] else f"pool{block[1]}"
    for tool, names in (("Keras's", _KERAS), ("timm's", _TIMM), ("torchvision's", _DROPOUT)):
        if name in names:
            return tool, names[name]
    modules: dict[str, tuple[str, str]] = {}
    for layer in table:
        if layer.kind == "prob":
            continue
        if layer.norm_index is not None:
            tool = "behind its batch normalisation torchvision's"
            modules[f"{layer.container}.{layer.index}"] = (tool, f"{layer.name}.pre")
        modules[layer.node(pre=True)] = ("torchvision's", f"{layer.name}.pre")
        modules[layer.node()] = ("torchvision's", layer.name)
    return modules.get(name, ("", ""))
