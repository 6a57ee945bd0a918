"""What the attributes of a cache may say: whoever lies in them computes a fingerprint that fits."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final, get_args

from vggfeat.core.preprocessing import (
    CORRUPTIONS,
    CROPS,
    DEPTHS,
    EXIFS,
    ICCS,
    MOST_CHANNELS,
    Decode,
    Preprocess,
)
from vggfeat.core.settings import PRECISIONS
from vggfeat.core.vgg_layers import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vggfeat.cache.format import Provenance
    from vggfeat.cache.identity import Identity

_SHA256 = re.compile("[0-9a-f]{64}")
_MOST_PIXELS: Final = 1 << 16
_MOST_BATCH: Final = 1 << 31
_MOST: Final = 1 << 62
_PAIR: Final = 2


def untrue_attributes(identity: Identity, provenance: Provenance) -> Iterator[str]:
    """Yield what the attributes of a cache say that no run can have recorded."""
    yield from _untrue_words(identity)
    yield from (
        f"preprocess.{name} is {value!r:.40}"
        for name, value in _preprocess_values(identity.preprocess)
    )
    if not all(_is_number(value) for _, value in identity.activations):
        yield "activations are not all numbers"
    for step in identity.steps:
        if not _is_step(step.record):
            yield f"a step of derived is {dict(step.record)!r:.80}, expected step and layers"
    if not 0 < provenance.config["batch_size"] < _MOST_BATCH:
        yield f"config has batch_size {provenance.config['batch_size']!r:.40}"
    for name, most in (("pass_images", provenance.config["batch_size"]), ("pass_pixels", _MOST)):
        value = provenance.config.get(name, 1)
        if type(value) is not int or not 0 < value <= most:
            yield f"config has {name} {value!r:.40}"
    if not all(isinstance(one, dict) and _texts(one) for one in provenance.sources):
        yield "sources are not all objects of texts"
    if not _texts(provenance.versions):
        yield "versions are not all texts"


def _untrue_words(identity: Identity) -> Iterator[str]:
    choices = {"model": VARIANTS, "precision": PRECISIONS, "first_layer": ("", "kaiming")}
    for name, known in choices.items():
        value = getattr(identity, name)
        if value not in known:
            yield f"{name} is {value!r:.40}, expected one of {', '.join(filter(None, known))}"
    if not _SHA256.fullmatch(identity.weights_sha256):
        yield f"weights_sha256 is {identity.weights_sha256!r:.40}, expected 64 hexadecimal digits"


def _preprocess_values(preprocess: Preprocess) -> Iterator[tuple[str, object]]:
    """Yield name and value of each field that no image can be preprocessed by."""
    one, channels = preprocess, preprocess.channels
    fits = {
        "size": _is_whole(one.size, 1, _MOST_PIXELS),
        "resize": one.resize is None or _is_whole(one.resize, 1, _MOST_PIXELS),
        "crop": one.crop in CROPS,
        "exif": one.exif in EXIFS,
        "mean": _are_levels(one.mean, channels),
        "std": _are_levels(one.std, channels) and all(value > 0 for value in one.std),
        "interpolation": one.interpolation == "bilinear",
        "background": one.background == "white",
        "decode": one.decode in get_args(Decode),
        "augment": _are_known(one.augment),
        "channels": _is_whole(channels, 1, MOST_CHANNELS),
        "depth": one.depth in DEPTHS,
        "window": _is_pair(one.window),
        "clip": _is_pair(one.clip),
        "clahe": _is_pair(one.clahe),
        "icc": one.icc in ICCS,
    }
    yield from ((name, getattr(one, name)) for name, true in fits.items() if not true)


def _is_whole(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type] # a number


def _are_levels(values: object, channels: object) -> bool:
    return isinstance(values, tuple) and len(values) == channels and all(map(_is_number, values))


def _are_known(corruptions: object) -> bool:
    return isinstance(corruptions, tuple) and all(one in CORRUPTIONS for one in corruptions)


def _is_pair(value: object) -> bool:
    pair = isinstance(value, tuple) and len(value) == _PAIR and all(map(_is_number, value))
    return value is None or pair


def _texts(values: Mapping[str, Any]) -> bool:
    return all(isinstance(value, str) for value in values.values())


def _is_step(record: Mapping[str, Any]) -> bool:
    layers = record.get("layers")
    return (
        isinstance(record.get("step"), str)
        and isinstance(layers, list)
        and all(isinstance(layer, str) for layer in layers)
        and all(isinstance(record.get(name, ""), str) for name in ("source", "model_sha256"))
    )
