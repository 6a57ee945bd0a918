"""What an adaptation has to do with its output: begin, go on, be done, or refuse it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggfeat.adapting.settings import COURSE, IDENTITY, REPORT, Adapted, adapted_from, differences
from vggfeat.adapting.state import Course, course_from
from vggfeat.errors import CacheError, CacheMismatchError, VggfeatError
from vggfeat.tensorheader import read_header

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

log = logging.getLogger("vggfeat")


@dataclass(frozen=True, slots=True)
class Places:
    """The files of an adaptation.

    Attributes:
        out: the weights it makes.
    """

    out: str

    @property
    def progress(self) -> str:
        """Where learning stands; there only as long as it is under way."""
        return f"{self.out}.progress"

    @property
    def before(self) -> str:
        """The cache of what the untouched network says, likewise."""
        return f"{self.out}.before.h5"

    def tidy(self) -> None:
        """Removes what only a run under way needs. The lock of the output stays, as all do."""
        parts = (self.progress, self.before)
        for path in (*parts, *(f"{part}.tmp" for part in parts), f"{self.before}.lock"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for.

    Attributes:
        identity: see `identity_of`; without the precision.
        precision: `auto`, which is what was begun with, or one of its own.
    """

    identity: Mapping[str, Any]
    precision: str

    def check(self, path: str, had: Mapping[str, Any]) -> None:
        """Refuses what was begun otherwise.

        Raises:
            CacheMismatchError: names all that differs.
        """
        precision = had.get("precision") if self.precision == "auto" else self.precision
        unlike = differences(had, {**self.identity, "precision": precision})
        if unlike:
            raise CacheMismatchError(
                f"{path!r} was begun otherwise: {'; '.join(unlike)}. Ask for the same, choose "
                "another --out, or --fresh to begin again"
            )


@dataclass(frozen=True, slots=True)
class Begun:
    """Where learning stands.

    Attributes:
        identity: what is to be done.
        course: how far it is.
        there: whether an earlier run has left off here.
    """

    identity: Mapping[str, Any]
    course: Course
    there: bool

    @property
    def precision(self) -> str:
        """In which is learnt."""
        return str(self.identity["precision"])

    def metadata(self, course: Course) -> dict[str, str]:
        """Of the file that says where learning stands now."""
        return {IDENTITY: json.dumps(self.identity), COURSE: course.to_json()}


def finished(out: str, asked: Asked, *, fresh: bool) -> Adapted | None:
    """What an earlier run has come to, if its weights are there and are those asked for.

    Raises:
        CacheError: what is there is not ours to replace.
        CacheMismatchError: it is, and was made otherwise; not with `fresh`.
    """
    if not os.path.lexists(out):
        return None
    with damage(out, "is there and no weight file of adapt; choose another --out"):
        metadata = read_header(out).metadata
        found = adapted_from(out, metadata[REPORT])
        had = json.loads(metadata[IDENTITY])
    if fresh:
        return None
    asked.check(out, had)
    return found


def begin(path: str, asked: Asked, precision: str) -> Begun:
    """Where an earlier run has left off, or the beginning.

    Args:
        path: where it says how far it is.
        asked: what this run is to do.
        precision: of a new beginning.

    Raises:
        CacheError: the file is damaged.
        CacheMismatchError: it was begun otherwise.
    """
    if not os.path.exists(path):
        return Begun({**asked.identity, "precision": precision}, Course(), there=False)
    with damage(path):
        metadata = read_header(path).metadata
        had, course = json.loads(metadata[IDENTITY]), course_from(metadata[COURSE])
    asked.check(path, had)
    log.info("going on in epoch %d, batch %d", len(course.history) + 1, course.batches + 1)
    return Begun(had, course, there=True)


@contextlib.contextmanager
def damage(path: str, what: str = "is damaged; --fresh begins again") -> Iterator[None]:
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
