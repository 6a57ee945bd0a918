"""Take settings from a weight file: the variant, and the preprocessing it was trained with.

`adapt` records them in the metadata of its safetensors files. Any other file gives the number of
channels if its first layer does not take three, and Caffe's and Keras's give their transform.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from vggfeat.core.preprocessing import NORMALISATIONS
from vggfeat.core.vgg_layers import COLOURS, VARIANTS
from vggfeat.errors import WeightsError
from vggfeat.network.caffe import FirstFilters, filters_of, is_other_scale
from vggfeat.network.checkpoint_reader import open_checkpoint
from vggfeat.network.dialects.johnson import JOHNSON
from vggfeat.network.first_layer import file_channels
from vggfeat.network.weights_in_memory import open_state
from vggfeat.storage.digests import file_digests
from vggfeat.storage.foreign_files import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggfeat.core.held_weights import HeldWeights
    from vggfeat.core.settings import Settings
    from vggfeat.network.checkpoint_reader import WeightFile
    from vggfeat.storage.checked_file import FileDigest

CARRIED = (
    "transform", "size", "resize", "crop", "exif", "icc", "channels", "depth", "window", "clip",
    "clahe", "mean", "std",
)  # fmt: skip
"""Settings that a weight file may record besides its model."""

MODEL, LAYER, PREPROCESS = "vggfeat.model", "vggfeat.layer", "vggfeat.preprocess"
"""Keys of the metadata."""

log = logging.getLogger("vggfeat")

# The settings that this process took from weight files, by real path.
_TAKEN: dict[str, dict[str, Any]] = {}


def settings_carried(weights: str, digest: FileDigest | None = None) -> dict[str, Any]:
    """Return the settings, by name, that a weight file records.

    A file that is missing, cannot be read or has another digest records none; loading it gives the
    reason. `weights` is as in `Settings`.
    """
    return _carried(weights, digest)[0]


def _carried(weights: str, digest: FileDigest | None) -> tuple[dict[str, Any], FirstFilters]:
    """Return the settings that a file records, and what its first layer says of its input."""
    if not os.path.isfile(weights):
        return {}, FirstFilters()
    try:
        with open_checkpoint(weights, digest) as file:
            filters = _filters(weights, file, digest)
            transform = file.reading.transform or filters.transform
            shapes, metadata = file.shapes, file.contents.metadata
    except WeightsError:
        return {}, FirstFilters()
    values: dict[str, Any] = {"transform": transform} if transform else {}
    values |= _from_metadata(weights, metadata) if MODEL in metadata else {}
    channels = file_channels(shapes)
    if channels not in (None, COLOURS):
        values["channels"] = channels
    return values, filters


def _filters(weights: str, file: WeightFile, digest: FileDigest | None) -> FirstFilters:
    """Return what the first layer says of its input; the digest is computed where it is needed."""
    if digest is None and file.reading.dialect == JOHNSON.name:
        digest = file_digests(weights)
    return filters_of(file, digest.sha256 if digest is not None else "")


def _from_metadata(path: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        values = parse_json(metadata.get(PREPROCESS, "{}"))
        unknown = sorted(set(values) - set(CARRIED))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"weights {path!r}: metadata {PREPROCESS} is not JSON") from error
    model = metadata[MODEL]
    if unknown or model not in VARIANTS:
        what = f"settings {', '.join(unknown)}" if unknown else f"a model {model!r}"
        raise WeightsError(
            f"weights {path!r} were trained with {what}, which this version does not know; a newer "
            "vggfeat wrote them"
        )
    return {"model": model, **values}


def with_carried(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given settings, by name, completed by those that the weights record."""
    if given.get("transform") == "auto":
        given = {name: value for name, value in given.items() if name != "transform"}
    weights = given.get("weights")
    carried = settings_carried(weights) if isinstance(weights, str) else {}
    if isinstance(weights, str):
        _TAKEN[os.path.realpath(weights)] = carried
    taken = {name: value for name, value in carried.items() if name not in given}
    if given.get("crop", "center") != "center":
        taken.pop("resize", None)
    # The default resize follows from the given size; the file's belongs to the file's size.
    if "size" in given:
        taken.pop("resize", None)
    other = [name for name in carried if name in given and given[name] != carried[name]]
    if taken:
        log.info("weights %s were trained with %s; used here too", weights, _words(taken))
    if other:
        log.info("weights %s were trained with %s: other values are given",
                 weights, _words({name: carried[name] for name in other}))  # fmt: skip
    return {**taken, **given}


def check_carried(path: str, settings: Settings, digest: FileDigest | None = None) -> str:
    """Refuse settings from a weight file replaced since, or without the transform it needs.

    Return a warning of pixels that are not what the weights were trained with, after logging it;
    empty for none.
    """
    carried, found = _carried(
        path, digest
    )  # of a file that cannot be read, loading gives the reason
    before = _TAKEN.get(os.path.realpath(path), {})
    stale = {
        name: value
        for name, value in before.items()
        if carried.get(name) != value == getattr(settings, name)
    }
    if stale:
        raise WeightsError(
            f"weights {path!r} were replaced after the settings were made: {_words(stale)} is from "
            "the previous file; make the settings again, or run again"
        )
    return _told(path, carried.get("transform", "auto"), found, settings)


def check_held(held: HeldWeights, settings: Settings) -> str:
    """As `check_carried`, for weights in memory."""
    state = open_state(held, check=False)
    found = filters_of(state)
    return _told(held, state.reading.transform or found.transform or "auto", found, settings)


def _told(path: str, wanted: str, found: FirstFilters, settings: Settings) -> str:
    warning = _other_transform(path, wanted, settings) or _other_scale(
        path, wanted, found, settings
    )
    if warning:
        log.warning("%s", warning)
    return warning


def _other_scale(path: str, wanted: str, found: FirstFilters, settings: Settings) -> str:
    """Return a warning of pixels divided by another deviation than the weights go with."""
    known = found.deviation
    if wanted in NORMALISATIONS:
        known = sum(NORMALISATIONS[wanted].std) / COLOURS
    std = settings.preprocess().std
    given = sum(std) / len(std)
    if not is_other_scale(given, known):
        return ""
    remedy = f"give --transform {wanted}" if wanted != "auto" else "leave --transform out"
    if settings.mean or settings.std:
        remedy = "leave --mean and --std out"
    return (
        f"weights {os.path.basename(path)} go with pixels of 0 to 1 divided by about {known:.2g}, "
        f"and they are divided by {given:.2g}: features are not those that the network was trained "
        f"to give; {remedy}"
    )


def _other_transform(path: str, wanted: str, settings: Settings) -> str:
    """Return a warning of another transform than the wanted one; raise if none was chosen."""
    if wanted in ("auto", settings.transform_name) or settings.mean or settings.std:
        return ""
    if settings.transform != "auto":
        return f"weights {path} go with --transform {wanted}, and {settings.transform} is given"
    raise WeightsError(
        f"weights {str(path)!r} go with the mean and deviation of transform {wanted}, and those of "
        f"{settings.transform_name} would be taken: give --transform {wanted}; in Python "
        f"Settings.for_weights, or transform={wanted!r}"
    )


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
