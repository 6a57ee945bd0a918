"""Everything that can go wrong, as one family of exceptions.

Each error is also the builtin a Python programmer would expect, and carries the exit code with
which the command line ends on it. A message is one line: what, what was expected, what was found,
what to do.
"""

from __future__ import annotations

from typing import Any, ClassVar

EXIT_CODES = (
    ("0", "done"),
    ("2", "wrong usage"),
    ("3", "input or weights missing"),
    ("4", "too many images failed"),
    ("5", "the cache is not ours, damaged, or made with other settings"),
    (
        "6",
        (
            "no space, memory, processes or open files left, the device or Ray failed, or standard "
            "output cannot be written"
        ),
    ),
    ("75", "another run holds the output"),
    ("129, 130 and 143", "interrupted, run again to resume"),
    ("1", "a defect of vggfeat"),
)
"""What the exit codes of the command line stand for."""


class VggfeatError(Exception):
    """Root of all errors that `vggfeat` raises on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(VggfeatError, ValueError):
    """A setting, flag or configuration file that makes no sense."""

    exit_code = 2


class InputError(VggfeatError, FileNotFoundError):
    """Nothing to do the work on: a source is missing or holds no image."""

    exit_code = 3


class WeightsError(VggfeatError, RuntimeError):
    """The network's weights are not found and cannot be downloaded, or do not fit the network."""

    exit_code = 3


class TooManyFailuresError(VggfeatError, RuntimeError):
    """More images failed than the run was allowed; all others are done.

    Attributes:
        summary: the run's `records.Summary`.
    """

    exit_code = 4

    def __init__(self, message: str, summary: Any) -> None:
        super().__init__(message)
        self.summary = summary


class DecodeError(VggfeatError, ValueError):
    """A file that gives no image; in a run it becomes a failed row with this reason.

    Attributes:
        digest: SHA-256 of the file's bytes, empty where they were not read.
    """

    exit_code = 3
    digest: bytes = b""


class CacheError(VggfeatError, ValueError):
    """A file that is not a cache of ours, or is damaged."""

    exit_code = 5


class CacheMismatchError(CacheError):
    """A cache made with other settings or of other images than those requested."""


class MissingFileError(CacheError, InputError):
    """A cache, or a model made from one, that does not exist."""

    exit_code = 3


class UnknownLayerError(CacheError, UsageError):
    """A layer that a cache does not have."""

    exit_code = 2


class SpaceError(VggfeatError, OSError):
    """The disk has no room, or refuses to keep what was written."""

    exit_code = 6

    def __str__(self) -> str:  # without the number that OSError puts in front
        return self.strerror or super().__str__()


class DeviceError(VggfeatError, RuntimeError):
    """The requested device does not exist, or failed."""

    exit_code = 6


class ResourceError(VggfeatError, RuntimeError):
    """The machine, or the limits of this process, has no memory, process, thread or file left."""

    exit_code = 6


class LockedError(VggfeatError, BlockingIOError):
    """Another run holds the output; later it may not."""

    exit_code = 75


class ShardsHeldError(LockedError):
    """Other runs hold shards that are left; all others of the run are done.

    Attributes:
        summary: the run's `records.Summary`.
    """

    def __init__(self, message: str, summary: Any) -> None:
        super().__init__(message)
        self.summary = summary


class InterruptedRunError(VggfeatError):
    """A signal ended the run; everything up to the last checkpoint is kept.

    Attributes:
        signum: the signal.
        summary: the run's `records.Summary`; None if it came before the output was in place.
    """

    def __init__(self, message: str, signum: int, summary: Any) -> None:
        super().__init__(message)
        self.signum = signum
        self.summary = summary

    @property
    def exit_status(self) -> int:
        """The shell's convention for a process ended by a signal: 128 + its number."""
        return 128 + self.signum
