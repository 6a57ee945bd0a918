"""What a weight file says of its use: the variant, and the preprocessing it was trained with.

`adapt` writes it into the metadata of its safetensors files. Of any other file with a first layer
for other than three channels, their number is known.
"""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Any

from vggfeat.errors import WeightsError
from vggfeat.firstlayer import COLOURS, file_channels
from vggfeat.layers import VARIANTS
from vggfeat.tensorheader import read_header

if TYPE_CHECKING:
    from collections.abc import Mapping

CARRIED = (
    "transform", "size", "resize", "crop", "exif", "channels", "depth", "window", "clip", "clahe",
    "mean", "std",
)  # fmt: skip
"""Settings that a weight file may bring along besides its model."""

MODEL, LAYER, PREPROCESS = "vggfeat.model", "vggfeat.layer", "vggfeat.preprocess"
"""Keys of the metadata."""

log = logging.getLogger("vggfeat")


def settings_carried(weights: str) -> dict[str, Any]:
    """Settings by name that a weight file was trained with; none where it does not say.

    A file that is not there or cannot be read says nothing; whoever loads it will say why.

    Args:
        weights: as of `Settings`; only a file has any.

    Raises:
        WeightsError: it says something that is not understood.
    """
    if not os.path.isfile(weights):
        return {}
    try:
        shapes, metadata = _look(weights)
    except (OSError, ValueError, TypeError, WeightsError):
        return {}
    values = _from_metadata(weights, metadata) if MODEL in metadata else {}
    channels = file_channels(shapes)
    if channels not in (None, COLOURS):
        values["channels"] = channels
    return values


def last_layer(path: str) -> str:
    """Name of the layer that a weight file ends with on purpose; empty if it does not say.

    Raises:
        WeightsError: it cannot be read.
    """
    if not path.endswith(".safetensors"):
        return ""
    try:
        return read_header(path).metadata.get(LAYER, "")
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"weights {path!r} are no safetensors file: {error}") from error


def _look(path: str) -> tuple[dict[str, tuple[int, ...]], Mapping[str, str]]:
    """Shapes of the tensors, and metadata; torch is loaded for its own formats only."""
    if path.endswith(".safetensors"):
        header = read_header(path)
        return {name: tuple(one["shape"]) for name, one in header.entries.items()}, header.metadata
    from vggfeat.checkpoints import read_checkpoint

    return {name: tuple(tensor.shape) for name, tensor in read_checkpoint(path).items()}, {}


def _from_metadata(path: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        values = json.loads(metadata.get(PREPROCESS, "{}"))
        unknown = sorted(set(values) - set(CARRIED))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"weights {path!r}: what they were trained with is no JSON") from error
    model = metadata[MODEL]
    if unknown or model not in VARIANTS:
        what = f"settings {', '.join(unknown)}" if unknown else f"a model {model!r}"
        raise WeightsError(
            f"weights {path!r} were trained with {what}, which this version does not know; a newer "
            "vggfeat wrote them"
        )
    return {"model": model, **values}


def with_carried(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as given, and for those not given what the weights carry.

    Args:
        given: settings by name.
    """
    weights = given.get("weights")
    carried = settings_carried(weights) if isinstance(weights, str) else {}
    taken = {name: value for name, value in carried.items() if name not in given}
    if given.get("crop", "center") != "center":
        taken.pop("resize", None)
    # A size of one's own goes with its own resize, in proportion, and not with the file's.
    if "size" in given:
        taken.pop("resize", None)
    other = [name for name in carried if name in given and given[name] != carried[name]]
    if taken:
        log.info("weights %s were trained with %s: taken over", weights, _words(taken))
    if other:
        log.info("weights %s were trained with %s: other values are given",
                 weights, _words({name: carried[name] for name in other}))  # fmt: skip
    return {**taken, **given}


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
