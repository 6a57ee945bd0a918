"""Measure what each stage of a run does by itself: decoding, the network, the disk."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from vggfeat.core.records import DecodedBatch
from vggfeat.errors import InputError, SpaceError
from vggfeat.images.batch_plan import plan_batches
from vggfeat.images.dataset import EncodedImages, ImageDataset
from vggfeat.images.decode import pixel_type
from vggfeat.images.decoding import decode_early
from vggfeat.images.loader import load_batches
from vggfeat.storage.temporary_folder import temporary_folder

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from numpy.typing import NDArray

    from vggfeat.core.preprocessing import Preprocess
    from vggfeat.core.settings import Settings
    from vggfeat.images.image_list import ImageList
    from vggfeat.network.extractor import Pending, TensorExtractor

SAMPLE = 4096
"""Images that are decoded, each once before the first comes again."""

_SYNTHETIC = 8
_MOST_ROWS = 1 << 18
_TRIES = 64  # images, none of which can be decoded, before decoding is given up
_BLOCK_BYTES = 1 << 24
_MOST_WRITTEN = 1 << 30  # bytes


@dataclass(frozen=True, slots=True)
class Loading:
    """How fast processes decode.

    Attributes:
        images: that were decoded, of different files.
        bytes_each: mean size of a file.
        rate: images a second.
        main_thread: seconds an image of the main thread, which takes pixels over from processes.
    """

    images: int
    bytes_each: int
    rate: float
    main_thread: float


@dataclass(frozen=True, slots=True)
class Computing:
    """How fast the network computes; `main_thread` are seconds an image that launching takes."""

    rate: float
    main_thread: float


@contextlib.contextmanager
def synthetic_images() -> Iterator[str]:
    """Make a folder of JPEGs about as large and as slow to decode as ImageNet's, 500 x 375."""
    with temporary_folder("vggfeat-bench-") as folder:
        for seed in range(_SYNTHETIC):
            _photograph(seed).save(os.path.join(folder, f"{seed}.jpg"), quality=90)
        yield folder


def _photograph(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed)
    canvas = np.full((375, 500, 3), 127.0)
    for cells, strength in ((4, 45.0), (16, 30.0), (64, 20.0), (160, 14.0), (500, 7.0)):
        rough = np.clip(127 + strength * noise.standard_normal((cells, cells, 3)), 0, 255)
        layer = Image.fromarray(rough.astype(np.uint8)).resize((500, 375))
        canvas += np.asarray(layer, dtype=float) - 127
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def loading_rate(
    images: ImageList,
    settings: Settings,
    seconds: float,
    *,
    workers: int,
    device: torch.device,
    batch_size: int,
) -> Loading:
    """Measure decoding as a run does it, in `workers` processes that work at the same time.

    Starting them is left out. With `decode="gpu"` the device decodes what they read.

    Raises:
        InputError: none of the images can be decoded.
    """
    sample = _sample(images)
    positions = np.tile(sample, -(-_MOST_ROWS // len(sample)))[:_MOST_ROWS]
    count = failed = 0
    busy = 0.0
    with contextlib.closing(
        _loader(images, settings, positions, workers=workers, device=device, batch_size=batch_size)
    ) as loader:
        first = len(next(loader).rows)  # the processes have started
        started = time.perf_counter()
        while not count or time.perf_counter() - started < seconds:
            before = time.thread_time()
            batch = next(loader, None)
            if batch is None:
                break
            # While the device decodes, this thread waits for it, and CUDA waits by computing.
            on_device = settings.decode == "gpu"
            busy += batch.collated if on_device else time.thread_time() - before
            count, failed = count + len(batch.rows), failed + len(batch.failures)
            if not count and failed >= min(_TRIES, len(sample)):
                raise InputError(
                    "none of the images sampled can be decoded; name others (the last: "
                    f"{batch.failures[-1].reason})"
                )
            del batch  # its memory is where another is decoded
        passed = time.perf_counter() - started
    read = sample[: first + count]
    return Loading(len(read), round(images.sizes[read].mean()), count / passed, busy / count)


def _sample(images: ImageList) -> NDArray[np.int64]:
    """Return rows spread over all images; of an archive that is read forward only, the first."""
    ranks = images.reading_ranks()
    return images.spread(SAMPLE) if ranks is None else np.argsort(ranks)[:SAMPLE]


def _loader(
    images: ImageList,
    settings: Settings,
    positions: NDArray[np.int64],
    *,
    workers: int,
    device: torch.device,
    batch_size: int,
) -> Generator[DecodedBatch, None, None]:
    """Start decoding as `pipeline.py` does."""
    plan = plan_batches(np.arange(len(positions)), batch_size)
    pin = device.type == "cuda"
    if settings.decode != "gpu":
        dataset = ImageDataset(images, settings, positions)
        decoded = decode_early(
            dataset, plan, settings, workers=workers, devices=[device.type], goes_on=lambda: True
        )
        return load_batches(dataset, plan, settings, workers=workers, pin=pin, decoded=decoded)
    from vggfeat.images.device_jpeg import DeviceJpegs

    encoded = EncodedImages(images, settings, positions)
    loader = load_batches(encoded, plan, settings, workers=workers, pin=pin)
    try:
        decoder = DeviceJpegs(encoded, settings, [device], workers=workers, goes_on=lambda: True)
        return decoder.batches(loader, lambda: device)
    except BaseException:
        loader.close()
        raise


def network_rate(
    extractor: TensorExtractor, batch_size: int, seconds: float, *, warm_up: bool
) -> Computing:
    """Measure the network from pixels in memory to features in memory, launched as a run does.

    Args:
        extractor: on its device.
        batch_size: images of a batch.
        seconds: a pass begins only if it will be over within them, but for the first.
        warm_up: compute a batch before: libraries choose their algorithms for a new shape.
    """
    overlap = int(extractor.device.type == "cuda")
    batch = _pixels(batch_size, extractor.preprocess, pin=overlap > 0)
    if warm_up:
        extractor.launch(batch).collect()
    under_way: deque[Pending] = deque()
    passes, launching = 0, 0.0
    started = time.perf_counter()
    while not passes or (time.perf_counter() - started) * (passes + 1) / passes < seconds:
        before = time.thread_time()
        under_way.append(extractor.launch(batch))
        launching += time.thread_time() - before
        passes += 1
        if len(under_way) > overlap:
            under_way.popleft().collect()
    while under_way:
        under_way.popleft().collect()
    images = passes * batch_size
    # A CPU computes while it launches.
    main_thread = launching / images if overlap else 0.0
    return Computing(images / (time.perf_counter() - started), main_thread)


def _pixels(count: int, preprocess: Preprocess, *, pin: bool) -> DecodedBatch:
    shape = (count, preprocess.size, preprocess.size, preprocess.channels)
    pixels = np.random.default_rng(0).integers(
        0, preprocess.white, shape, pixel_type(preprocess), endpoint=True
    )
    images = torch.from_numpy(pixels)
    rows = np.arange(count)
    digests = np.zeros((count, 32), dtype=np.uint8)
    return DecodedBatch(images.pin_memory() if pin else images, rows, rows, digests, (), 0.0)


def disk_rate(folder: str, seconds: float) -> float:
    """Measure the bytes a second that reach the disk of `folder`, synced.

    Raises:
        SpaceError: the folder cannot be written to.
    """
    block = np.random.default_rng(0).bytes(_BLOCK_BYTES)  # nothing compresses it
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            written = 0
            started = time.perf_counter()
            while not written or (
                written < _MOST_WRITTEN and time.perf_counter() - started < seconds
            ):
                written += os.pwrite(file.fileno(), block, written)
                os.fdatasync(file.fileno())
            return written / (time.perf_counter() - started)
    except OSError as error:
        raise SpaceError(
            error.errno, f"{folder!r} cannot be written to: {error.strerror}"
        ) from error
