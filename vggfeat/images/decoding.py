"""Start the processes that decode a run's images. Loads without torch: they may begin before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vggfeat.core.cgroups import memory_available
from vggfeat.core.resources import usable_cores
from vggfeat.images.decode import pixel_type
from vggfeat.images.pillow_state import own_plugins
from vggfeat.images.worker_pool import decode_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from numpy.typing import NDArray

    from vggfeat.core.preprocessing import Preprocess
    from vggfeat.core.settings import Settings
    from vggfeat.images.image_reader import ImageReader
    from vggfeat.images.worker_pool import DecodedImages

CPU_WORKERS = 2
"""Decoding is a few percent of a CPU run; more workers would take cores from the network."""

AHEAD_OF_EACH = 256
"""Images that each worker may decode while the network is loaded: what it does in half a second."""

AHEAD_BYTES = 1 << 30
"""Most bytes of shared memory for these; never more than a sixteenth of what is available."""

_AHEAD_SHARE = 16


def choose_workers(settings: Settings, device_types: Collection[str]) -> int:
    """Return the number of decoding processes: as set, or by the cores this process may use."""
    if settings.workers != "auto":
        return settings.workers
    cores = usable_cores()
    return min(cores, CPU_WORKERS) if "cpu" in device_types else cores


def images_ahead(preprocess: Preprocess, workers: int, device_types: Collection[str]) -> int:
    """Return how many images may be decoded while the network is loaded.

    On a CPU none but those under way: decoding would take the cores from what loads it.
    """
    if "cpu" in device_types:
        return 0
    available = memory_available()
    room = AHEAD_BYTES if available is None else min(AHEAD_BYTES, available // _AHEAD_SHARE)
    size = preprocess.size**2 * preprocess.channels * np.dtype(pixel_type(preprocess)).itemsize
    return min(workers * AHEAD_OF_EACH, room // size)


def pixel_shape(preprocess: Preprocess) -> tuple[int, int, int] | None:
    """Return (H, W, C) of every decoded image; None if shapes differ."""
    if preprocess.crop == "none":
        return None
    return preprocess.size, preprocess.size, preprocess.channels


def decode_early(
    reader: ImageReader,
    plan: NDArray[np.int64],
    settings: Settings,
    *,
    workers: int,
    devices: Sequence[str],
    goes_on: Callable[[], bool],
) -> Iterator[DecodedImages]:
    """Start decoding the batches of a plan, for a loader that is made later: see `load_batches`.

    Args:
        reader: of the images; its index is the cache row.
        plan: int64 (batches, B), rows or `EMPTY`.
        settings: how images are preprocessed and how long decoding one may take.
        workers: processes; 0 decodes in this one, and then nothing early.
        devices: the type of each device of the run. On CUDA more is decoded ahead, and the pixels
            of a batch stay valid while one more for each device is requested: it is in flight.
        goes_on: called while waiting for a batch; if it returns False, no more batches come.
    """
    preprocess = settings.preprocess()
    own_plugins()  # cached before the fork, and not computed by every process
    return decode_batches(
        plan,
        pixel_shape(preprocess),
        reader.decode,
        workers=workers,
        timeout=settings.decode_timeout,
        goes_on=goes_on,
        dtype=pixel_type(preprocess),
        ahead=images_ahead(preprocess, workers, devices),
        kept=sum(device == "cuda" for device in devices),
    )
