"""Settings of fine-tuning and their checks; which layers their names stand for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vggfeat.config import load_config, make_settings
from vggfeat.core.choices import did_you_mean
from vggfeat.core.option import LEARNING, options_of, problems_of, setting
from vggfeat.core.vgg_layers import ADAPTER, ADAPTER_BIAS, VARIANTS, Layer, layer_table
from vggfeat.errors import UsageError
from vggfeat.finetuning.augmentation import AUGMENTATIONS, parse_jitter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vggfeat.core.layer_spec import LayerSpec
    from vggfeat.core.settings import Settings

_ADAPTER, _ALL, _FIRST = "adapter", "all", "first"
_BLOCKS = 5
_MOST_HELD_OUT = 0.9  # of each class
TRAINING_PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Trainable:
    """Layers to train; all others are frozen.

    Attributes:
        adapter: whether an adapter in front of the network is trained.
        layers: that are trained, in the order of the network.
    """

    adapter: bool
    layers: tuple[Layer, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names as a user may write them, in the order of the network."""
        return (*([_ADAPTER] if self.adapter else []), *(layer.name for layer in self.layers))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the trained parameters: weights and biases, also of batch normalisation.

        Its running statistics are not updated: small batches of other images would spoil them.
        """
        parts = [f"{layer.container}.{layer.index}" for layer in self.layers]
        parts += [
            f"{layer.container}.{layer.norm_index}"
            for layer in self.layers
            if layer.norm_index is not None
        ]
        adapter = (ADAPTER, ADAPTER_BIAS) if self.adapter else ()
        return (*adapter, *(f"{part}.{kind}" for part in parts for kind in ("weight", "bias")))


def parse_trainable(text: str, model: str, deepest: Layer) -> Trainable:
    """Return the layers of names separated by commas.

    A name is `adapter`, `first` (conv1_1), a layer, a block such as `conv3`, or `all` (layers). No
    layer behind `deepest`, which the head stands on, can be trained.
    """
    table = layer_table(model)
    within = table[: table.index(deepest) + 1]
    known = _names(table)
    words = [word.strip() for word in text.split(",") if word.strip()]
    wrong = [word for word in words if word not in known and word != _ADAPTER]
    if wrong or not words:
        raise UsageError(
            f"unknown trainable {', '.join(map(repr, wrong or [text]))} in {model}; expected "
            "adapter, first, a layer with weights such as conv3_2, a block such as conv3, or all"
            f"{did_you_mean(wrong, [_ADAPTER, *known])}"
        )
    deep = [w for w in words if w != _ALL and not set(known.get(w, within)) & set(within)]
    if deep:
        raise UsageError(
            f"trainable {', '.join(deep)} lies behind {deepest.name}, on which the head stands and "
            "where the network ends; name a deeper one by --layers, or leave it out"
        )
    chosen = {layer for word in words for layer in known.get(word, ())}
    return Trainable(_ADAPTER in words, tuple(layer for layer in within if layer in chosen))


def _names(table: Sequence[Layer]) -> Mapping[str, tuple[Layer, ...]]:
    """Return the layers with weights that each name stands for."""
    trainable = tuple(layer for layer in table if layer.kind in ("conv", "fc"))
    names: dict[str, tuple[Layer, ...]] = {layer.name: (layer,) for layer in trainable}
    for block in range(1, _BLOCKS + 1):
        names[f"conv{block}"] = tuple(
            layer for layer in trainable if layer.level == block and layer.kind == "conv"
        )
    return {**names, _FIRST: trainable[:1], _ALL: trainable}


@dataclass(frozen=True, slots=True)
class AdaptSettings:
    """Settings of fine-tuning, checked on construction.

    Attributes:
        network: the network and its images: one layer that is a vector, which the head stands on;
            model, weights, channels, preprocessing, device, workers, limits.
        trainable: layers to train, names separated by commas: see `parse_trainable`.
        epochs: at most.
        lr: peak learning rate, relative to the size of each tensor.
        weight_decay: of AdamW.
        batch_size: images in a step.
        val_share: share of each class held out for validation, which chooses probe and epoch.
        test_share: share of each class held out for the test, which chooses nothing; 0 for none.
        patience: epochs without improvement after which training stops; 0 for no limit.
        jitter: random augmentations, see `augment`; empty for none.
        seed: of the split, the order of images and the augmentation.
    """

    network: Settings
    trainable: str = setting(
        "first",
        "What is trained: adapter (a convolution of 1 x 1 from the channels to 3 in front of "
        "the network), first (conv1_1), layers such as conv3_2, blocks such as conv1, or all.",
        "NAME,...",
    )
    epochs: int = setting(
        10, "Passes over the training images at most.", "N", kind=int, within=(1, 100_000)
    )
    lr: float = setting(
        5e-3,
        "Largest learning rate, as a share of each tensor's own size; it falls along half a "
        "cosine.",
        "RATE",
        kind=float,
        within=(0, 10),
        above=True,
        group=LEARNING,
    )
    weight_decay: float = setting(
        0.01,
        "Weight decay of AdamW; biases have none.",
        "D",
        kind=float,
        within=(0, 1),
        group=LEARNING,
    )
    batch_size: int = setting(
        16, "Batch size of training.", "N", kind=int, within=(1, 65_536), group=LEARNING
    )
    val_share: float = setting(
        0.2,
        "Share of each class that is held out to choose the probe and the epoch.",
        "SHARE",
        kind=float,
        within=(0, 0.9),
        above=True,
        group=LEARNING,
    )
    test_share: float = setting(
        0.2,
        "Share of each class that is held out to measure accuracy, and chooses nothing. With 0, "
        "accuracy is measured on the images that chose probe and epoch, and is too high.",
        "SHARE",
        kind=float,
        within=(0, 0.9),
        group=LEARNING,
    )
    patience: int = setting(
        5,
        "Stop early after this many epochs without a gain; 0 for never.",
        "N",
        kind=int,
        within=(0, 100_000),
        group=LEARNING,
    )
    jitter: str = setting(
        "",
        f"Random augmentation of training images, any of {', '.join(AUGMENTATIONS)}.",
        "NAME,...",
        unset="none",
        group=LEARNING,
    )
    seed: int = setting(
        0,
        "Seed of the split, the order of images and the augmentation.",
        "N",
        kind=int,
        within=(0, 2**31),
        group=LEARNING,
    )
    parts: Trainable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        wrong = [*problems_of(self), *_wrong_network(self.network)]
        if not wrong and self.val_share + self.test_share > _MOST_HELD_OUT:
            both = f"val-share {self.val_share:g} and test-share {self.test_share:g}"
            wrong.append(f"{both} leave too little to train on; expected {_MOST_HELD_OUT} at most")
        try:
            parse_jitter(self.jitter)
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
        """The layer that the head stands on."""
        return self.network.specs[0]


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
    if network.precision not in TRAINING_PRECISIONS:
        wrong.append(
            f"precision {network.precision} cannot be trained in; expected "
            f"{', '.join(TRAINING_PRECISIONS)}"
        )
    usual = {"fuse": ("",), "augment": ("",), "decode": ("auto", "exact", "pillow")}
    for name, values in usual.items():
        if getattr(network, name) not in values:
            wrong.append(f"{name} {getattr(network, name)} is for extract; leave it out")
    if network.crop == "none":
        wrong.append("crop none leaves images of unequal shapes; take center, pad or squash")
    if network.device == "all" or "," in network.device:
        wrong.append(f"device {network.device} names several; one is used for training")
    return wrong


def default_layer(model: str) -> str:
    """Return the deepest convolution, whose features are averaged over positions."""
    if model not in VARIANTS:
        layer_table(model)  # raises the error
    return [layer.name for layer in layer_table(model) if layer.kind == "conv"][-1]


def network_settings(config: str | None, flags: Mapping[str, Any]) -> Settings:
    """Make settings as `make_settings` does, with `default_layer` if no layer is given."""
    values = load_config(config) if config is not None else {}
    if flags.get("layers") or values.get("layers"):
        return make_settings(config, flags)
    settings = make_settings(config, {**flags, "layers": "pool5"})  # every model has it
    return dataclasses.replace(settings, layers=default_layer(settings.model))


TRAINING = options_of(AdaptSettings)
"""The settings of training by name; the network has its own."""
