"""Page-lock memory that workers decode into, so that CUDA copies from it while all else goes on."""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PORTABLE = 1  # cudaHostRegisterPortable, from driver_types.h: for all devices


class PageLocks:
    """Memory that was page-locked, each piece once: that takes longer than copying it.

    A piece stays locked for as long as its memory is mapped, so until no batch in flight has it.
    """

    def __init__(self) -> None:
        self._known: dict[int, bool] = {}

    def lock(self, memory: NDArray[Any]) -> bool:
        """Page-lock a view of an array; return whether it is, which a sandbox may not allow."""
        address = memory.ctypes.data
        if address not in self._known:
            self._known[address] = _register(memory, address)
        return self._known[address]


def _register(memory: NDArray[Any], address: int) -> bool:
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call] # torch has no types here
    if int(cudart.cudaHostRegister(address, memory.nbytes, _PORTABLE)):
        # CUDA keeps the error for whoever asks next, which every launch of a kernel does.
        with contextlib.suppress(RuntimeError):
            torch.ones(1, device="cuda")
        return False
    weakref.finalize(memory.base, cudart.cudaHostUnregister, address).atexit = False
    return True
