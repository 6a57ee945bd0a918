"""Measure how fast this machine runs the requested settings, and what limits it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from vggfeat.core.isolation import isolated
from vggfeat.core.records import DecodedBatch
from vggfeat.core.resources import usable_cores
from vggfeat.core.sequences import as_tuple
from vggfeat.errors import DecodeError, InputError, SpaceError
from vggfeat.extraction.metadata import without_auto_decoding
from vggfeat.images.decode import decode, pixel_type
from vggfeat.images.loader import choose_workers
from vggfeat.images.sources import discover
from vggfeat.network.extractor import TensorExtractor
from vggfeat.network.weights import find_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vggfeat.core.preprocessing import Preprocess
    from vggfeat.core.settings import Precision, Settings

_SAMPLE = 64  # images that are decoded
_CPU_BATCHES = (1, 4, 16, 32)
_GPU_BATCHES = (32, 64, 128, 256, 512)
_BLOCK_BYTES = 1 << 24
_MOST_WRITTEN = 1 << 30  # bytes
_WORTH_IT = 1.03  # a larger batch must bring as much to be recommended


@dataclass(frozen=True, slots=True)
class Forward:
    """Images a second through the network, from pixels in memory to features in memory."""

    precision: str
    batch_size: int
    images_per_second: float


@dataclass(frozen=True, slots=True)
class Bench:
    """Measured rates, and the settings to use.

    Attributes:
        device: where the network ran.
        cores: that this process may use.
        sample: images that were decoded; 0 if synthetic ones stood in for them.
        sample_bytes: their mean size.
        decode: images a second that one core decodes.
        forward: of each precision in the usual batch, then of each batch size in the fastest.
        row_bytes: of features an image.
        write: images a second that the disk takes, synced.
        workers: decoding processes to use.
        precision: to use.
        batch_size: to use.
        limit: `decoding`, `network` or `disk`.
        images_per_second: that a long run can be expected to reach.
    """

    device: str
    cores: int
    sample: int
    sample_bytes: int
    decode: float
    forward: tuple[Forward, ...]
    row_bytes: int
    write: float
    workers: int
    precision: str
    batch_size: int
    limit: str
    images_per_second: float


@isolated()
def bench(
    settings: Settings,
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    *,
    folder: str | os.PathLike[str] = ".",
    seconds: float = 2.0,
) -> Bench:
    """Measure decoding, the network and the disk one after the other, each for a few seconds.

    Args:
        settings: layers, model, weights, device, preprocessing; precision and batch size are
            tried out.
        sources: images to decode, a sample of them; none for synthetic photographs.
        folder: where features would be written.
        seconds: for each measurement, roughly.

    Raises:
        InputError: none of the sources' images can be decoded.
        WeightsError, DeviceError: as for `Extractor`.
        SpaceError: the folder cannot be written to.
    """
    files = _sample(sources) if sources else [_synthetic(seed) for seed in range(8)]
    settings = without_auto_decoding(settings)
    decode_rate = _decode_rate(files, settings, seconds)
    networks = _networks(settings)
    tried = [_forward(network, _batch_sizes(network)[-2], seconds) for network in networks]
    best = max(tried, key=lambda one: one.images_per_second)
    extractor = networks[tried.index(best)]
    sizes = [
        _forward(extractor, size, seconds)
        for size in _batch_sizes(extractor)
        if size != best.batch_size
    ]
    chosen = _smallest_good([best, *sizes])
    size = settings.preprocess().size
    itemsize = np.dtype(settings.dtype).itemsize
    row_bytes = sum(
        int(np.prod(shape)) * itemsize for shape in extractor.output_shapes(size, size).values()
    )
    workers = choose_workers(settings, {extractor.device.type})
    write_rate = _write_rate(os.fspath(folder), seconds) / row_bytes
    limit, rate = _limit(
        decode_rate, workers, chosen.images_per_second, write_rate, extractor.device.type
    )
    return Bench(
        device=str(extractor.device),
        cores=usable_cores(),
        sample=len(files) if sources else 0,
        sample_bytes=sum(map(len, files)) // len(files),
        decode=decode_rate,
        forward=(*tried, *sizes),
        row_bytes=row_bytes,
        write=write_rate,
        workers=workers,
        precision=chosen.precision,
        batch_size=chosen.batch_size,
        limit=limit,
        images_per_second=rate,
    )


def _limit(
    decode_rate: float, workers: int, forward: float, write: float, device_type: str
) -> tuple[str, float]:
    """Return what is slowest and the joint rate; on a CPU decoding takes cores from the network."""
    cores = usable_cores()
    decoding = decode_rate * max(1, min(workers, cores))
    rates = {"decoding": decoding, "network": forward, "disk": write}
    limit = min(rates, key=rates.__getitem__)
    if device_type != "cpu":
        return limit, rates[limit]
    shared = 1 / (1 / forward + 1 / (decode_rate * cores))
    return ("disk", write) if write < shared else (limit, shared)


def _sample(sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[bytes]:
    """Read files of images spread evenly over all that the sources name."""
    images = discover(as_tuple(sources))
    files = []
    for position in images.spread(_SAMPLE).tolist():
        # A run would mark as failed what cannot be read.
        with contextlib.suppress(DecodeError), images.open(position) as stream:
            files.append(stream.read())
    return files


def _synthetic(seed: int) -> bytes:
    """Make a JPEG about as large and as slow to decode as an ImageNet photograph, 500 x 375."""
    noise = np.random.default_rng(seed)
    canvas = np.full((375, 500, 3), 127.0)
    for cells, strength in ((4, 45.0), (16, 30.0), (64, 20.0), (160, 14.0), (500, 7.0)):
        rough = np.clip(127 + strength * noise.standard_normal((cells, cells, 3)), 0, 255)
        layer = Image.fromarray(rough.astype(np.uint8)).resize((500, 375))
        canvas += np.asarray(layer, dtype=float) - 127
    stream = io.BytesIO()
    Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _decode_rate(files: Sequence[bytes], settings: Settings, seconds: float) -> float:
    preprocess = settings.preprocess()
    good = []
    for file in files:
        with contextlib.suppress(DecodeError):
            decode(io.BytesIO(file), preprocess, settings.max_pixels)
            good.append(file)
    if not good:
        raise InputError("none of the images sampled can be decoded; name others")

    def work() -> int:
        for file in good:
            decode(io.BytesIO(file), preprocess, settings.max_pixels)
        return len(good)

    return _rate(work, seconds)


def _networks(settings: Settings) -> list[TensorExtractor]:
    """Return one in each precision worth trying, or in the requested one; the likeliest first."""
    weights = find_weights(settings.weights, settings.model)
    if settings.dtype == "int8":  # its scales come from real features, and cost no more time
        settings = dataclasses.replace(settings, dtype="float16")
    first = TensorExtractor(settings, weights)
    others: tuple[Precision, ...] = ()
    if settings.precision == "auto" and first.device.type == "cuda":
        others = ("bfloat16", "float32")
    elif settings.precision == "auto" and first.precision == "bfloat16":
        others = ("float32",)
    more = [dataclasses.replace(settings, precision=name) for name in others]
    return [first, *(TensorExtractor(one, weights) for one in more)]


def _batch_sizes(extractor: TensorExtractor) -> tuple[int, ...]:
    """Return the sizes to try; the last but one is the usual."""
    return _GPU_BATCHES if extractor.device.type == "cuda" else _CPU_BATCHES


def _smallest_good(tried: Sequence[Forward]) -> Forward:
    """Return the smallest batch size that no larger one beats by more than a little."""
    fastest = max(one.images_per_second for one in tried)
    good = [one for one in tried if one.images_per_second * _WORTH_IT >= fastest]
    return min(good, key=lambda one: one.batch_size)


def _forward(extractor: TensorExtractor, batch_size: int, seconds: float) -> Forward:
    pin = extractor.device.type == "cuda"
    batch = _batch(batch_size, extractor.preprocess, pin=pin)
    extractor.launch(batch).collect()  # warms up

    def work() -> int:
        pending = [extractor.launch(batch) for _ in range(2)]  # two under way, as in a run
        for one in pending:
            one.collect()
        return 2 * batch_size

    return Forward(extractor.precision, batch_size, _rate(work, seconds))


def _batch(count: int, preprocess: Preprocess, *, pin: bool) -> DecodedBatch:
    shape = (count, preprocess.size, preprocess.size, preprocess.channels)
    pixels = np.random.default_rng(0).integers(
        0, preprocess.white, shape, pixel_type(preprocess), endpoint=True
    )
    images = torch.from_numpy(pixels)
    rows = np.arange(count)
    digests = np.zeros((count, 32), dtype=np.uint8)
    return DecodedBatch(images.pin_memory() if pin else images, rows, rows, digests, (), 0.0)


def _write_rate(folder: str, seconds: float) -> float:
    """Measure the bytes a second that reach the disk of `folder`."""
    block = np.random.default_rng(0).bytes(_BLOCK_BYTES)  # nothing compresses it
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            written = 0
            started = time.perf_counter()
            while written < _MOST_WRITTEN and time.perf_counter() - started < seconds:
                written += os.pwrite(file.fileno(), block, written)
                os.fdatasync(file.fileno())
            return written / (time.perf_counter() - started)
    except OSError as error:
        raise SpaceError(
            error.errno, f"{folder!r} cannot be written to: {error.strerror}"
        ) from error


def _rate(work: Callable[[], int], seconds: float) -> float:
    """Return how many a second `work` does in its fastest run; slower ones wait for other load."""
    best, spent = 0.0, 0.0
    while spent < seconds:
        started = time.perf_counter()
        count = work()
        passed = time.perf_counter() - started
        best, spent = max(best, count / passed), spent + passed
    return best
