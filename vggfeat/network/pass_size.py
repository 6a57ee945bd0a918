"""How many images a pass over the network takes, so that the device's memory suffices for it.

A row's bits depend on the kernels that compute it, and these on the shape of its pass. So a cache
records the size of its passes, and every run on it computes in these or ends. cuDNN hides a lack of
memory: where there is no room for a kernel's workspace it takes another kernel, and keeps to that
for the shape until the process ends. The allocator counts what it refuses, so that is seen here.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import torch

from vggfeat.core.text import counted
from vggfeat.errors import DeviceError
from vggfeat.network.device import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

log = logging.getLogger("vggfeat")

T = TypeVar("T")

RETRY_SECONDS = (0.5, 2.0, 5.0)
"""Waits before a pass that found too little memory is tried again: others may hold it briefly."""

_spoilt: set[tuple[torch.device, int, int, int]] = set()
"""Devices and images, height and width of passes that may have other kernels in this process."""


@dataclass(frozen=True, slots=True)
class PassLimit:
    """The largest pass that the rows of a cache are computed in, as the cache records it.

    Attributes:
        images: of a pass, at most.
        pixels: of all images of a pass, at most, where shapes differ; None for no such limit.
    """

    images: int
    pixels: int | None = None

    def for_shape(self, height: int, width: int) -> int:
        """Return how many images of that shape a pass takes, at least one."""
        if self.pixels is None:
            return self.images
        return max(1, min(self.images, self.pixels // (height * width)))

    def record(self) -> dict[str, int]:
        """Return what a cache's `config` has of it."""
        pixels = {} if self.pixels is None else {"pass_pixels": self.pixels}
        return {"pass_images": self.images, **pixels}

    @classmethod
    def recorded_in(cls, config: Mapping[str, Any]) -> PassLimit | None:
        """Return the limit that a cache's `config` records; None for a cache made without one."""
        images = config.get("pass_images")
        return None if images is None else cls(images, config.get("pass_pixels"))


class Passes:
    """Compute batches in passes that fit the memory of a device.

    Without a limit a pass is the whole batch, and half of it each time that memory runs out; the
    smaller size stays. With a limit, no lack of memory changes a pass.

    Attributes:
        limit: the largest pass; None to find it by trying.
    """

    def __init__(self, device: torch.device) -> None:
        self.limit: PassLimit | None = None
        self._device = device
        self._halved: int | None = None

    def run(self, shape: torch.Size, compute: Callable[[int], T]) -> T:
        """Return what `compute`, called with the images of a pass, makes of a batch.

        Args:
            shape: of the batch, (N, C, H, W).
            compute: computes all of the batch each time that it is called.

        Raises:
            DeviceError: there is no memory for one image, or for the passes of the limit.
        """
        count, _, height, width = shape
        if self.limit is not None:
            size = min(count, self.limit.for_shape(height, width))
            return self._insist((size, height, width), compute)
        while True:
            size = min(count, self._halved or count)
            tried = self._attempt((size, height, width), compute)
            if tried.done:
                return cast("T", tried.rows)
            self._halved = self._half_of((size, height, width), tried.reason)
            log.warning(
                "out of memory with %s a pass; continuing with half", counted(size, "image")
            )

    def settle(self, shape: torch.Size, compute: Callable[[int], object]) -> int:
        """Return the largest pass, of all images or half and half again, that memory suffices for.

        Kernels are those of a device with enough memory, in that process and any later one.

        Raises:
            DeviceError: there is no memory for one image.
        """
        size, _, height, width = shape
        while True:
            tried = self._attempt((size, height, width), compute)
            if not tried.reason:
                return size
            size = self._half_of((size, height, width), tried.reason)

    def _half_of(self, shape: tuple[int, int, int], reason: str) -> int:
        size, height, width = shape
        if size == 1:
            raise DeviceError(
                f"{self._device} has no memory for one image of {height} x {width}: {reason}"
            )
        torch.cuda.empty_cache()
        return (size + 1) // 2

    def _insist(self, shape: tuple[int, int, int], compute: Callable[[int], T]) -> T:
        for seconds in (*RETRY_SECONDS, None):
            tried = self._attempt(shape, compute)
            if not tried.reason:
                return cast("T", tried.rows)
            if seconds is None or (self._device, *shape) in _spoilt:
                break
            torch.cuda.empty_cache()
            time.sleep(seconds)
        size, height, width = shape
        raise DeviceError(
            f"{self._device} has too little memory for a pass of {counted(size, 'image')} of "
            f"{height} x {width}, in which the rows of this cache are computed: {tried.reason}; "
            "finished rows are kept. Free memory on the device or name another --device, and run "
            "again to resume; or begin again with --fresh and a smaller --batch-size"
        )

    def _attempt(self, shape: tuple[int, int, int], compute: Callable[[int], T]) -> _Attempt[T]:
        before, told, done, rows = refused_allocations(self._device), 0, False, None
        reason = "cuDNN found no room for its usual kernels"
        try:
            rows = compute(shape[0])
            done = True
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            told, reason = isinstance(error, torch.OutOfMemoryError), str(error).splitlines()[0]
        # Out here no traceback holds the tensors of the failed pass any more.
        if refused_allocations(self._device) - before > told:
            _spoilt.add((self._device, *shape))
        lacking = not done or (self._device, *shape) in _spoilt
        return _Attempt(done, rows, reason if lacking else "")


@dataclass(frozen=True, slots=True)
class _Attempt(Generic[T]):
    """What became of passes.

    Attributes:
        done: whether they were computed.
        rows: what was computed.
        reason: the lack of memory that ended them or changed their kernels; empty without one.
    """

    done: bool
    rows: T | None
    reason: str


def refused_allocations(device: torch.device) -> int:
    """Count the allocations that a CUDA device had no memory for, those that cuDNN hid included."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.memory_stats_as_nested_dict(device).get("num_ooms", 0))
