"""Metadata of the files that `adapt` writes: their use, what was asked for; no I/O, no torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vggfeat.finetuning.augmentation import parse_jitter
from vggfeat.finetuning.settings import NUMBERS
from vggfeat.network.weight_metadata import CARRIED, LAYER, MODEL, PREPROCESS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggfeat.core.settings import Settings
    from vggfeat.finetuning.settings import AdaptSettings

IDENTITY, REPORT, STATE = "vggfeat.adapt", "vggfeat.report", "vggfeat.state"
"""Keys: what was asked for, the report, how far training is."""


def preprocessing_metadata(network: Settings) -> dict[str, str]:
    """What a weight file says of its use: see `carried`."""
    preprocess = network.preprocess()
    values = {name: getattr(network, name) for name in CARRIED}
    values |= {"size": preprocess.size, "resize": preprocess.resize}
    values["transform"] = network.transform_name
    said = {name: value for name, value in values.items() if value not in (None, "")}
    ends = network.specs[0].layer.name
    return {MODEL: network.model, LAYER: ends, PREPROCESS: json.dumps(said)}


def identity_of(settings: AdaptSettings, weights_sha256: str, images: str) -> dict[str, Any]:
    """What two runs must agree in for one to resume the other.

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
        "jitter": ",".join(parse_jitter(settings.jitter)),
        "images": images,
        **{f"preprocess.{k}": v for k, v in settings.network.preprocess().recorded().items()},
    }


def request_differences(had: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
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
