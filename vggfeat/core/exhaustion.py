"""A machine that has run out of memory, processes, threads or open files is no defect of ours."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vggfeat.errors import DeviceError, ResourceError, VggfeatError

if TYPE_CHECKING:
    from collections.abc import Mapping

MEMORY = (
    "memory: free some, raise the limit (ulimit -v, the container's), or take a smaller "
    "--batch-size and fewer --workers"
)
_FILES = "open files: raise the limit (ulimit -n), or take fewer --workers"
PROCESSES = (
    "processes or threads: raise the limit (ulimit -u, the container's pids), or take fewer "
    "--workers; OMP_NUM_THREADS=1 needs fewest threads"
)

_BY_NUMBER: Mapping[int, str] = {
    errno.ENOMEM: MEMORY,
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
}
# What libraries say, in lower case, of errors that have no number.
_BY_TEXT: Mapping[str, str] = {
    "can't allocate memory": MEMORY,
    "cannot allocate memory": MEMORY,
    "not enough memory": MEMORY,
    "failed to map segment": MEMORY,
    "unable to mmap": MEMORY,
    "can't start new thread": PROCESSES,
    "too many open files": _FILES,
}

_DEVICE_SIGNS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def exhaustion_of(error: BaseException) -> ResourceError | None:
    """Return the error that says what the machine has run out of and what to do; None if nothing.

    An `ImportError` counts too: a library found no memory for its code.
    """
    if isinstance(error, VggfeatError):
        return None
    lacking = None
    if isinstance(error, MemoryError):
        lacking = MEMORY
    elif isinstance(error, OSError) and error.errno is not None:
        lacking = _BY_NUMBER.get(error.errno)
    elif isinstance(error, RuntimeError | ImportError | OSError):
        text = str(error).lower()
        lacking = next((_BY_TEXT[sign] for sign in _BY_TEXT if sign in text), None)
    return None if lacking is None else told(lacking, error)


def device_exhaustion_of(error: BaseException) -> DeviceError | None:
    """Return the error that says that a GPU has too little memory; None if that is not it.

    For the command line alone: the library computes again in smaller passes where it can.
    """
    text = str(error)
    if not isinstance(error, RuntimeError) or isinstance(error, VggfeatError):
        return None
    if not any(sign in text for sign in _DEVICE_SIGNS):
        return None
    return DeviceError(
        "the GPU has too little memory: free some (nvidia-smi shows who uses it), or name another "
        f"--device. Rows up to the last checkpoint are kept; it said: {text.splitlines()[0][:160]}"
    )


def told(lacking: str, error: BaseException) -> ResourceError:
    """Return the error that says what is lacking, and with what `error` that showed."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ResourceError(
        f"the machine has no more {lacking}. Rows up to the last checkpoint are kept; it said: "
        f"{first[:160]}"
    )
