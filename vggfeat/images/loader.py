"""Decode images in worker processes, and yield batches as tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch

from vggfeat.core.records import DecodedBatch, Failure
from vggfeat.core.resources import usable_cores
from vggfeat.errors import DecodeError
from vggfeat.images.decode import decode, pixel_type, read_digest
from vggfeat.images.pillow_state import own_plugins
from vggfeat.images.worker_pool import decode_batches

if TYPE_CHECKING:
    from collections.abc import Collection, Generator

    from numpy.typing import NDArray

    from vggfeat.core.settings import Settings
    from vggfeat.images.worker_pool import DecodedImage

OpenImage = Callable[[int], AbstractContextManager[BinaryIO]]

CPU_WORKERS = 2
"""Decoding is a few percent of a CPU run; more workers would take cores from the network."""


def load_batches(
    open_image: OpenImage,
    plan: NDArray[np.int64],
    settings: Settings,
    *,
    workers: int,
    pin: bool,
    goes_on: Callable[[], bool] = lambda: True,
) -> Generator[DecodedBatch, None, None]:
    """Start the decoding processes, and yield batches in the order of the plan.

    The processes are forked at the call and not at the first batch, so that they decode while the
    caller loads the network.

    Args:
        open_image: opens the image of a cache row as a stream; raises DecodeError.
        plan: int64 (batches, B), rows or `EMPTY`.
        settings: how images are preprocessed, how large they may be and how long one may take.
        workers: processes; 0 decodes in this one.
        pin: whether batches come in page-locked memory, for copies that overlap.
        goes_on: called while waiting for a batch; if it returns False, no more batches come.
    """
    preprocess, max_pixels = settings.preprocess(), settings.max_pixels

    def decode_row(row: int) -> tuple[bytes, NDArray[Any]]:
        digest = b""
        try:
            with open_image(row) as file:
                digest, stream = read_digest(file)
                return digest, decode(stream, preprocess, max_pixels)
        except DecodeError as error:
            error.digest = digest
            raise

    own_plugins()  # cached before the fork, and not computed by every process
    usual = (preprocess.size, preprocess.size, preprocess.channels)
    dtype = pixel_type(preprocess)
    decoded = decode_batches(
        plan,
        None if preprocess.crop == "none" else usual,
        decode_row,
        workers=workers,
        timeout=settings.decode_timeout,
        goes_on=goes_on,
        dtype=dtype,
    )
    empty = _Empty((plan.shape[1], *usual), getattr(torch, dtype.__name__), pin)
    return (_as_batch(images, seconds, empty) for images, seconds in decoded)


@dataclass(frozen=True, slots=True)
class _Empty:
    """A batch before there is anything in it: its usual shape (B, H, W, C), and its memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pin: bool


def _as_batch(images: list[DecodedImage], seconds: float, empty: _Empty) -> DecodedBatch:
    """Copy decoded images into a tensor of its own; slots without an image are zero."""
    good = [image for image in images if image.pixels is not None]
    slots, *usual = empty.shape
    sides = good[0].pixels.shape if good else usual
    batch = torch.empty((slots, *sides), dtype=empty.dtype, pin_memory=empty.pin)
    pixels = batch.numpy()
    if len(good) < slots:
        pixels[:] = 0
    for image in good:
        pixels[image.slot] = image.pixels
    digests = b"".join(image.digest for image in good)
    return DecodedBatch(
        images=batch,
        rows=np.array([image.row for image in good], dtype=np.int64),
        slots=np.array([image.slot for image in good], dtype=np.int64),
        digests=np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32),
        failures=tuple(
            Failure(image.row, image.reason, image.digest)
            for image in images
            if image.pixels is None
        ),
        seconds=seconds,
    )


def choose_workers(settings: Settings, device_types: Collection[str]) -> int:
    """Return the number of decoding processes: as set, or by the cores this process may use."""
    if settings.workers != "auto":
        return settings.workers
    cores = usable_cores()
    return min(cores, CPU_WORKERS) if "cpu" in device_types else cores
