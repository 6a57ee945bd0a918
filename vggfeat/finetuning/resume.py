"""What there is to do for an output: start, resume, nothing more, or refuse it; and its files."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggfeat.errors import CacheError, CacheMismatchError, UsageError, VggfeatError
from vggfeat.finetuning.metadata import IDENTITY, REPORT, STATE, request_differences
from vggfeat.finetuning.progress import TrainingState, state_from_json
from vggfeat.finetuning.report import FinetuneReport, report_from_json
from vggfeat.storage.atomic import TEMPORARY_SUFFIX, remove_leftover
from vggfeat.storage.locks import remove_left_lock
from vggfeat.storage.safetensors import read_safetensors_header

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

log = logging.getLogger("vggfeat")


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """The files of an adaptation.

    Attributes:
        out: the weights it makes.
    """

    out: str

    @property
    def checkpoint(self) -> str:
        """The state of training; there only as long as it is under way."""
        return f"{self.out}.progress"

    @property
    def untouched_features(self) -> str:
        """The cache of features of the untouched network, likewise."""
        return f"{self.out}.before.h5"

    def remove_temporary(self) -> None:
        """Remove what only a run under way needs; what a user keeps under such a name stays."""
        for path, begins in (
            (self.checkpoint, _begins_as_safetensors),
            (self.untouched_features, _begins_as_hdf5),
        ):
            if os.path.isfile(path) and not os.path.islink(path) and begins(path):
                os.unlink(path)
            with contextlib.suppress(UsageError):  # a link or a folder of that name
                remove_leftover(f"{path}{TEMPORARY_SUFFIX}")
        remove_left_lock(self.untouched_features)


def _begins_as_safetensors(path: str) -> bool:
    """Return whether a file may be a checkpoint, a damaged one included."""
    with open(path, "rb") as file:
        head = file.read(9)
    return not head or head[5:] == b"\0\0\0{"  # lengths of headers have 5 bytes at most


def _begins_as_hdf5(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(8) in (b"", b"\x89HDF\r\n\x1a\n")


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for.

    Attributes:
        identity: see `identity_of`; without the precision.
        precision: `auto`, which is what was begun with, or one of its own.
    """

    identity: Mapping[str, Any]
    precision: str

    def check(self, path: str, had: Mapping[str, Any]) -> None:
        """Refuses what was begun with other settings or images.

        Raises:
            CacheMismatchError: names all that differs.
        """
        precision = had.get("precision") if self.precision == "auto" else self.precision
        unlike = request_differences(had, {**self.identity, "precision": precision})
        if unlike:
            raise CacheMismatchError(
                f"{path!r} was begun otherwise: {'; '.join(unlike)}. Ask for the same, choose "
                "another --out, or --fresh to begin again"
            )


@dataclass(frozen=True, slots=True)
class Job:
    """Training to do.

    Attributes:
        identity: what is to be done: see `identity_of`; with the precision.
        state: how far it is.
        resumed: whether an earlier run has left a checkpoint.
    """

    identity: Mapping[str, Any]
    state: TrainingState
    resumed: bool

    @property
    def precision(self) -> str:
        """In which is trained."""
        return str(self.identity["precision"])

    def metadata(self, state: TrainingState) -> dict[str, str]:
        """Of a checkpoint at this state."""
        return {IDENTITY: json.dumps(self.identity), STATE: state.to_json()}


def finished_report(out: str, request: Request, *, fresh: bool) -> FinetuneReport | None:
    """The report of an earlier run, if its weights are there and are those asked for.

    Raises:
        CacheError: what is there is not ours to replace.
        CacheMismatchError: it is, and was made otherwise; not with `fresh`.
    """
    if not os.path.lexists(out):
        return None
    with as_cache_error(out, "is there and no weight file of adapt; choose another --out"):
        metadata = read_safetensors_header(out).metadata
        found = report_from_json(out, metadata[REPORT])
        had = json.loads(metadata[IDENTITY])
    if fresh:
        return None
    request.check(out, had)
    return found


def start_or_resume(path: str, request: Request, precision: str) -> Job:
    """The job as an earlier run has left it, or a new one.

    Args:
        path: of the checkpoint.
        request: what this run is to do.
        precision: of a new job.

    Raises:
        UsageError: what has its name is something else, and is not touched.
        CacheError: the file is damaged.
        CacheMismatchError: it was begun otherwise.
    """
    if not os.path.lexists(path):
        return Job({**request.identity, "precision": precision}, TrainingState(), resumed=False)
    if os.path.islink(path) or not os.path.isfile(path) or not _begins_as_safetensors(path):
        raise UsageError(
            f"{path!r} has the name of the checkpoint of training, and is none; it is not touched: "
            "move it away, or choose another --out"
        )
    with as_cache_error(path):
        metadata = read_safetensors_header(path).metadata
        had, state = json.loads(metadata[IDENTITY]), state_from_json(metadata[STATE])
    request.check(path, had)
    log.info("going on in epoch %d, batch %d", len(state.epochs) + 1, state.batches + 1)
    return Job(had, state, resumed=True)


@contextlib.contextmanager
def as_cache_error(path: str, what: str = "is damaged; --fresh begins again") -> Iterator[None]:
    """Turns what reading another file, or half of one, comes to into a CacheError.

    Raises:
        CacheError: says `what` of the file.
    """
    try:
        yield
    except VggfeatError:
        raise
    except (OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
        raise CacheError(f"{path!r} {what}") from error
