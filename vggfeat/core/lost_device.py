"""A device whose context is dead: this process can use it no more, and must end without it.

CUDA reports a failed assertion, an illegal access or an uncorrectable memory error at some later
call, and from then on every call fails. Freeing page-locked memory is such a call, in a destructor:
a process that tidies up as usual is aborted before it has said anything. So what may hold such
memory is kept, and the command line leaves by `os._exit` once all else is done.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from vggfeat.errors import DeviceError, VggfeatError

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")

# What torch and CUDA's libraries say, in lower case.
_SIGNS = (
    "cuda error:",
    "hip error:",
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "uncorrectable ecc",
    "cudnn_status_execution_failed",
    "cudnn_status_internal_error",
    "cublas_status_execution_failed",
    "cublas_status_internal_error",
)
_NO_MEMORY = ("out of memory", "alloc_failed")  # which passes

_numbers = itertools.count()
_pinned: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_kept: list[object] = []


def keep_if_lost(tensor: T) -> T:
    """Return a tensor in page-locked memory, which is not freed once the device is lost."""
    _pinned[next(_numbers)] = tensor
    return tensor


def is_lost() -> bool:
    """Return whether `lost_device` has seen this process lose a device."""
    return bool(_kept)


def lost_device(error: BaseException) -> DeviceError | None:
    """Return the error to raise if `error` says that the device's context is dead; else None.

    From then on all page-locked memory that this process holds is kept, with the error, whose
    traceback holds what its functions held.
    """
    for cause in _causes(error):
        text = str(cause).lower()
        if (
            isinstance(cause, RuntimeError)
            and any(sign in text for sign in _SIGNS)
            and not any(sign in text for sign in _NO_MEMORY)
        ):
            break
    else:
        return None
    found = error
    if not isinstance(error, VggfeatError):
        first = str(cause).splitlines()[0]
        found = DeviceError(
            f"the device failed, and this process can use it no more: {first}; what was saved is "
            "kept, run the same command again"
        )
    _kept.extend((found, error, *_pinned.values()))
    return found if isinstance(found, DeviceError) else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, or while that was handled."""
    seen: list[BaseException] = []
    while error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__ or error
