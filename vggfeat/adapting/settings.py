"""What an adaptation is asked to do, and what it came to; no I/O, no torch."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vggfeat.adapting.augmentation import check_jitter
from vggfeat.adapting.state import epochs_from, score_from
from vggfeat.adapting.trainable import Trainable, parse_trainable
from vggfeat.carried import CARRIED, LAYER, MODEL, PREPROCESS
from vggfeat.config import load_config, make_settings
from vggfeat.errors import UsageError
from vggfeat.layers import VARIANTS, layer_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggfeat.adapting.state import Epoch, Score
    from vggfeat.config import Settings
    from vggfeat.specs import LayerSpec

IDENTITY, REPORT, COURSE = "vggfeat.adapt", "vggfeat.report", "vggfeat.course"
"""Keys of the metadata: what was asked for, what it came to, where it stands."""

PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class AdaptSettings:
    """What an adaptation is asked to do; checked on construction.

    Attributes:
        network: the network and its images: one layer that is a vector, on which the head stands;
            model, weights, channels, preprocessing, device, workers, limits.
        trainable: what learns, names separated by commas: see `parse_trainable`.
        epochs: passes over the images at most.
        lr: largest learning rate, as a share of each tensor's own size.
        weight_decay: of AdamW.
        batch_size: images a step.
        val_share: of each class that is held out to judge by.
        patience: epochs without a gain after which learning ends; 0 for none.
        jitter: what is changed of images by chance, see `jitter`; empty for nothing.
        seed: of the split, the order and the changes.
    """

    network: Settings
    trainable: str = "first"
    epochs: int = 10
    lr: float = 5e-3
    weight_decay: float = 0.01
    batch_size: int = 16
    val_share: float = 0.2
    patience: int = 5
    jitter: str = ""
    seed: int = 0
    parts: Trainable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        wrong = [*_wrong_numbers(self), *_wrong_network(self.network)]
        try:
            check_jitter(self.jitter)
        except UsageError as error:
            wrong.append(str(error))
        try:
            deepest = self.network.specs[0].layer
            parts = parse_trainable(self.trainable, self.network.model, deepest)
            object.__setattr__(self, "parts", parts)
        except UsageError as error:
            wrong.append(str(error))
        if wrong:
            raise UsageError("; ".join(wrong))

    @property
    def spec(self) -> LayerSpec:
        """On whose features the head stands."""
        return self.network.specs[0]


NUMBERS: Mapping[str, tuple[float, float]] = {
    "epochs": (1, 100_000),
    "lr": (0, 10),
    "weight_decay": (0, 1),
    "batch_size": (1, 65_536),
    "val_share": (0, 0.9),
    "patience": (0, 100_000),
    "seed": (0, 2**31),
}
_ABOVE_THE_LEAST = ("lr", "val_share")
_FRACTIONS = ("lr", "weight_decay", "val_share")


def _wrong_numbers(settings: AdaptSettings) -> list[str]:
    wrong = []
    for name, (least, most) in NUMBERS.items():
        value = getattr(settings, name)
        fraction = name in _FRACTIONS
        number = type(value) is int or (fraction and type(value) is float)
        inside = number and least <= value <= most
        if not inside or (value == least and name in _ABOVE_THE_LEAST):
            begin = "above" if name in _ABOVE_THE_LEAST else "from"
            kind = "number" if fraction else "whole number"
            wrong.append(f"{name} is {value!r}; expected a {kind} {begin} {least:g} to {most:g}")
    return wrong


def _wrong_network(network: Settings) -> list[str]:
    wrong = []
    if len(network.specs) != 1:
        wrong.append(f"layers {network.layers!r}: the head stands on one layer; name one")
    pools = [str(spec) for spec in network.specs if spec.pool and spec.pool.name == "map"]
    if pools or network.specs[0].layer.kind == "prob":
        wrong.append(
            f"layer {network.specs[0]} is no vector that a head could stand on; take a pool such "
            "as avg, or a layer in front of prob"
        )
    if network.precision not in PRECISIONS:
        wrong.append(
            f"precision {network.precision} cannot be learnt in; expected {', '.join(PRECISIONS)}"
        )
    for name, usual in (("fuse", ""), ("augment", ""), ("decode", "exact")):
        if getattr(network, name) != usual:
            wrong.append(f"{name} {getattr(network, name)} is for extract; leave it out")
    if network.crop == "none":
        wrong.append("crop none leaves images of unequal shapes; take center, pad or squash")
    if network.device == "all" or "," in network.device:
        wrong.append(f"device {network.device} names several; one learns")
    return wrong


def default_layer(model: str) -> str:
    """The deepest convolution, averaged over positions.

    Raises:
        UsageError: no such model.
    """
    if model not in VARIANTS:
        layer_table(model)  # which says so
    return [layer.name for layer in layer_table(model) if layer.kind == "conv"][-1]


def network_settings(config: str | None, flags: Mapping[str, Any]) -> Settings:
    """See `make_settings`; without a layer the head stands on `default_layer`."""
    values = load_config(config) if config is not None else {}
    if flags.get("layers") or values.get("layers"):
        return make_settings(config, flags)
    settings = make_settings(config, {**flags, "layers": "pool5"})  # every model has it
    return dataclasses.replace(settings, layers=default_layer(settings.model))


DEFAULTS: Mapping[str, Any] = {
    item.name: item.default for item in dataclasses.fields(AdaptSettings) if item.init
}
"""Of an adaptation by name."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """What an adaptation came to.

    Attributes:
        out: the weight file.
        model: VGG variant.
        weights: name of the weights it began with.
        warning: what a user of them must know, empty if nothing.
        layer: on which the head stands, and where the network ends.
        channels: of the images.
        trained: the parts of the network that learnt.
        classes: their names, sorted.
        train_images: that were learnt from.
        held_out: images of each class that judged.
        failed: images that could not be decoded, and take no part.
        chance: accuracy of naming the most frequent class always.
        before: of a linear probe of the untouched network, on the images held out; None before it
            is known.
        after: of the network and the head that are written; None as long as none are.
        epochs: what each came to.
        best: the epoch whose network is written, 0 for none.
        precision: in which was learnt.
        stopped: why it ended before it was done: a signal's name, `time limit`, or empty.
    """

    out: str
    model: str
    weights: str
    warning: str
    layer: str
    channels: int
    trained: tuple[str, ...]
    classes: tuple[str, ...]
    train_images: int
    held_out: tuple[int, ...]
    failed: int
    chance: float
    before: Score | None
    after: Score | None
    epochs: tuple[Epoch, ...]
    best: int
    precision: str
    stopped: str = ""

    def report(self) -> str:
        """As text for the metadata of the file; `adapted_from` reads it."""
        fields = dataclasses.asdict(self)
        del fields["out"]  # a file may be moved
        return json.dumps(fields)


def adapted_from(out: str, text: str) -> Adapted:
    """What `Adapted.report` wrote.

    Raises:
        ValueError, TypeError, KeyError: it is something else.
    """
    fields: dict[str, Any] = json.loads(text)
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    known |= {
        "out": out,
        "before": score_from(fields["before"]),
        "after": score_from(fields["after"]),
        "epochs": epochs_from(fields["epochs"]),
    }
    return Adapted(**known)


def carried_metadata(network: Settings) -> dict[str, str]:
    """What a weight file says of its use: see `carried`."""
    preprocess = network.preprocess()
    values = {name: getattr(network, name) for name in CARRIED}
    values |= {"size": preprocess.size, "resize": preprocess.resize}
    values["transform"] = network.transform_name
    said = {name: value for name, value in values.items() if value not in (None, "")}
    ends = network.specs[0].layer.name
    return {MODEL: network.model, LAYER: ends, PREPROCESS: json.dumps(said)}


def identity_of(settings: AdaptSettings, weights_sha256: str, images: str) -> dict[str, Any]:
    """What two runs must agree in for one to go on where the other ended.

    Args:
        settings: as asked for.
        weights_sha256: digest of the weights it begins with.
        images: digest of the images and their classes.
    """
    numbers = {name: getattr(settings, name) for name in NUMBERS}
    return {
        "model": settings.network.model,
        "weights": weights_sha256,
        "layer": str(settings.spec),
        "first_layer": settings.network.first_layer,
        "trainable": ",".join(settings.parts.names),
        **numbers,
        "jitter": ",".join(check_jitter(settings.jitter)),
        "images": images,
        **{f"preprocess.{k}": v for k, v in settings.network.preprocess().recorded().items()},
    }


def differences(had: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What is asked for otherwise than a file has it, a line each."""
    asked = json.loads(json.dumps(asked))  # lists for tuples, as the file has them
    return [
        f"{name}: file {_short(had.get(name))}, asked {_short(asked.get(name))}"
        for name in dict.fromkeys((*had, *asked))
        if had.get(name) != asked.get(name)
    ]


def _short(value: Any) -> Any:
    digest = isinstance(value, str) and len(value) == 64  # noqa: PLR2004 digits of SHA-256
    return value[:8] if digest else value
