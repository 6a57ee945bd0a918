"""Start or resume training, or find it finished: its files, their metadata and their checks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggfeat.errors import CacheError, CacheMismatchError, UsageError, VggfeatError
from vggfeat.extraction.fresh_mark import note_finished
from vggfeat.finetuning.augmentation import parse_jitter
from vggfeat.finetuning.held_out_test import warnings_of
from vggfeat.finetuning.report import (
    FinetuneReport,
    TrainingState,
    report_from_json,
    state_from_json,
)
from vggfeat.finetuning.settings import TRAINING
from vggfeat.network.weight_metadata import CARRIED, LAYER, MODEL, PREPROCESS
from vggfeat.storage.atomic import TEMPORARY_SUFFIX, remove_leftover
from vggfeat.storage.foreign_files import open_foreign
from vggfeat.storage.hdf5_metadata.reader import has_signature
from vggfeat.storage.locks import remove_left_lock
from vggfeat.storage.safetensors import read_safetensors_header

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vggfeat.core.settings import Settings
    from vggfeat.finetuning.settings import AdaptSettings


log = logging.getLogger("vggfeat")


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """Paths of the files of a training that writes the weight file `out`."""

    out: str

    @property
    def checkpoint(self) -> str:
        """The checkpoint; exists only while training is unfinished."""
        return f"{self.out}.progress"

    @property
    def untouched_features(self) -> str:
        """The cache of the untouched network's features; likewise."""
        return f"{self.out}.before.h5"

    def remove_temporary(self) -> None:
        """Remove what only an unfinished run needs, but no other file of such a name."""
        for path, is_ours in (
            (self.checkpoint, _may_be_safetensors),
            (self.untouched_features, _may_be_hdf5),
        ):
            if os.path.isfile(path) and not os.path.islink(path) and is_ours(path):
                os.unlink(path)
            with contextlib.suppress(UsageError):  # a link or a folder of that name
                remove_leftover(f"{path}{TEMPORARY_SUFFIX}")
        remove_left_lock(self.untouched_features)
        note_finished(self.out)


def _may_be_safetensors(path: str) -> bool:
    """Return whether a file may be a checkpoint, possibly damaged."""
    with open_foreign(path) as file:
        head = file.read(9)
    return not head or head[5:] == b"\0\0\0{"  # lengths of headers have 5 bytes at most


def _may_be_hdf5(path: str) -> bool:
    return not os.path.getsize(path) or has_signature(path)


@dataclass(frozen=True, slots=True)
class Request:
    """The training that is requested.

    Attributes:
        identity: of `identity_of`, without the precision.
        precision: `auto`, which accepts that of an existing file, `float32` or `bfloat16`.
    """

    identity: Mapping[str, Any]
    precision: str

    def check(self, path: str, existing: Mapping[str, Any]) -> None:
        """Refuse a file that was begun with other settings or images; list all differences."""
        precision = existing.get("precision") if self.precision == "auto" else self.precision
        requested = {**self.identity, "precision": precision}
        wanted = json.loads(json.dumps(requested))  # lists for tuples, as the file has them
        unlike = [
            f"{name}: file {_short(existing.get(name))}, requested {_short(wanted.get(name))}"
            for name in dict.fromkeys((*existing, *wanted))
            if existing.get(name) != wanted.get(name)
        ]
        if unlike:
            raise CacheMismatchError(
                f"{path!r} was begun with other settings or images: {'; '.join(unlike)}. Repeat "
                "those, choose another --out, or --fresh to begin again"
            )


@dataclass(frozen=True, slots=True)
class Job:
    """Training to do: new, or from the state of a checkpoint.

    `identity` is that of `identity_of`, with the precision.
    """

    identity: Mapping[str, Any]
    state: TrainingState
    resumed: bool

    @property
    def precision(self) -> str:
        """The precision that training computes in."""
        return str(self.identity["precision"])

    def metadata(self, state: TrainingState) -> dict[str, str]:
        """Return the metadata of a checkpoint at a state."""
        return {IDENTITY: json.dumps(self.identity), STATE: state.to_json()}


def finished_report(out: str, request: Request, *, fresh: bool) -> FinetuneReport | None:
    """Return the report of an earlier run if it has finished the same training.

    A file that is not ours is refused, also with `fresh`; one of other settings only without.
    """
    if not os.path.lexists(out):
        return None
    with as_cache_error(out, "exists and was not written by adapt; choose another --out"):
        metadata = read_safetensors_header(out).metadata
        found = report_from_json(out, metadata[REPORT])
        existing = json.loads(metadata[IDENTITY])
    if fresh:
        return None
    requested = request.identity[_TEST_SHARE]
    if _TEST_SHARE not in existing and requested == TRAINING[_TEST_SHARE].default:
        existing[_TEST_SHARE] = requested  # finished by a version that knew no test part
    request.check(out, existing)
    return dataclasses.replace(found, warnings=warnings_of(found))


def start_or_resume(path: str, request: Request, precision: str) -> Job:
    """Return the job of the checkpoint at `path`, or a new one of this precision."""
    if not os.path.lexists(path):
        return Job({**request.identity, "precision": precision}, TrainingState(), resumed=False)
    if os.path.islink(path) or not os.path.isfile(path) or not _may_be_safetensors(path):
        raise UsageError(
            f"{path!r} has the name of the checkpoint of training, and is not one; it is not "
            "touched: move it away, or choose another --out"
        )
    with as_cache_error(path):
        metadata = read_safetensors_header(path).metadata
        existing, state = json.loads(metadata[IDENTITY]), state_from_json(metadata[STATE])
    if _TEST_SHARE not in existing:  # begun by a version without a test part, which is a share of 0
        existing[_TEST_SHARE] = 0.0
    request.check(path, existing)
    log.info("resuming in epoch %d, batch %d", len(state.epochs) + 1, state.batches + 1)
    return Job(existing, state, resumed=True)


@contextlib.contextmanager
def as_cache_error(path: str, what: str = "is damaged; --fresh begins again") -> Iterator[None]:
    """Turn errors from reading a damaged or foreign file into a CacheError."""
    try:
        yield
    except VggfeatError:
        raise
    except (OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
        raise CacheError(f"{path!r} {what}") from error


_TEST_SHARE = "test_share"
IDENTITY, REPORT, STATE = "vggfeat.adapt", "vggfeat.report", "vggfeat.state"
"""Keys of the metadata: what was requested, the report, the state of training."""


def preprocessing_metadata(network: Settings) -> dict[str, str]:
    """Return what a weight file records for its use: see `weight_metadata`."""
    preprocess = network.preprocess()
    values = {name: getattr(network, name) for name in CARRIED}
    values |= {"size": preprocess.size, "resize": preprocess.resize}
    values["transform"] = network.transform_name
    said = {name: value for name, value in values.items() if value not in (None, "")}
    ends = network.specs[0].layer.name
    return {MODEL: network.model, LAYER: ends, PREPROCESS: json.dumps(said)}


def identity_of(
    settings: AdaptSettings, weights_sha256: str, images: str, groups: str | None
) -> dict[str, Any]:
    """Return everything that two runs must agree in for one to resume the other.

    `images` is a digest of the images and their classes, `groups` one of their groups.
    """
    numbers = {name: getattr(settings, name) for name, option in TRAINING.items() if option.within}
    return {
        "model": settings.network.model,
        "weights": weights_sha256,
        "layer": str(settings.spec),
        "first_layer": settings.network.first_layer,
        "trainable": ",".join(settings.parts.names),
        **numbers,
        "jitter": ",".join(parse_jitter(settings.jitter)),
        "images": images,
        **({} if groups is None else {"groups": groups}),
        **{f"preprocess.{k}": v for k, v in settings.network.preprocess().recorded().items()},
    }


def _short(value: Any) -> Any:
    digest = isinstance(value, str) and len(value) == 64  # noqa: PLR2004 digits of SHA-256
    return value[:8] if digest else value
