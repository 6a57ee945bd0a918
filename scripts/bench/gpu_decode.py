"""Images a second by way of decoding and number of processes: `gpu_decode.py IMAGES`.

Pillow and torchvision in worker processes, as a run loads images; nvJPEG behind worker processes,
and alone on images that are in memory, with and without the resize. Pixels of the device are held
against Pillow's before anything is timed. With `--device cpu` it shows that the script works.
"""

from __future__ import annotations

import argparse
import functools
import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from vggfeat.core.resources import usable_cores
from vggfeat.core.settings import Settings
from vggfeat.images.dataset import EncodedImages, ImageDataset
from vggfeat.images.device_jpeg import DeviceJpegs, decode_jpegs, jpeg_library
from vggfeat.images.loader import load_batches
from vggfeat.images.sources import discover

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from numpy.typing import NDArray

    from vggfeat.core.preprocessing import DecodeName
    from vggfeat.core.records import DecodedBatch
    from vggfeat.images.image_list import ImageList

ALONE = "decoding alone"
WAYS: tuple[DecodeName, ...] = ("pillow", "torchvision", "gpu")
MOST_DIFFERENCE = 4
"""Mean difference of nvJPEG's pixels from Pillow's, in levels, beyond which they are wrong."""


def main() -> None:
    """Check the pixels, then print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--batch-size", type=int, default=256)
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    images = discover([given.folder])
    library = jpeg_library(device).name
    difference = check(images, device)
    print(f"{library} on {device}; mean difference from Pillow {difference:.2f} levels\n")
    print("| decoder | processes | images/s |\n|---|---|---|")
    cores = usable_cores()
    for workers in sorted({1, *range(4, cores + 1, 4), cores}):
        for way in WAYS:
            once = functools.partial(run, images, way, workers, device, batch_size=given.batch_size)
            show(way, str(workers), rate(given.seconds, once))
    for size in sorted({min(64, given.batch_size), given.batch_size}):
        again = Again(images, size, device)
        for what, act in ((ALONE, again.decode), ("with the resize", again.decode_and_resize)):
            repeat = functools.partial(again.repeat, act)
            show(f"{library}, {what}, batches of {size}", "none", rate(given.seconds, repeat))


def show(way: str, processes: str, images_per_second: float) -> None:
    """Print one row."""
    print(f"| {way} | {processes} | {images_per_second:.0f} |", flush=True)


def rate(seconds: float, once: Callable[[float], int]) -> float:
    """Return images a second, after a short run for what is made at the first use."""
    once(seconds / 4)
    started = time.perf_counter()
    return once(seconds) / (time.perf_counter() - started)


def loaded(
    images: ImageList, way: DecodeName, workers: int, device: torch.device, rows: NDArray[np.int64]
) -> Generator[DecodedBatch, None, None]:
    """Yield the batches of rows as a run does."""
    settings = Settings(layers="fc7", decode=way, workers=workers)
    kind = EncodedImages if way == "gpu" else ImageDataset
    dataset = kind(images, settings)
    pin = device.type == "cuda"
    loader = load_batches(dataset, rows, settings, workers=workers, pin=pin)
    if not isinstance(dataset, EncodedImages):
        return loader
    decoder = DeviceJpegs(dataset, settings, [device], workers=workers, goes_on=lambda: True)
    return decoder.batches(loader, lambda: device)


def run(
    images: ImageList,
    way: DecodeName,
    workers: int,
    device: torch.device,
    seconds: float,
    *,
    batch_size: int,
) -> int:
    """Load for so long; return the number of images that are on the device by then."""
    count, until = 0, time.perf_counter() + seconds
    rows = np.arange(batch_size * 4000).reshape(-1, batch_size) % len(images)
    loader = loaded(images, way, workers, device, rows)
    for batch in loader:
        batch.images.to(device, non_blocking=True)
        count += len(batch.rows)
        if time.perf_counter() > until:
            break
    loader.close()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return count


class Again:
    """Decodes one batch, whose files are in memory, again and again."""

    def __init__(self, images: ImageList, size: int, device: torch.device) -> None:
        settings = Settings(layers="fc7", decode="gpu")
        dataset = EncodedImages(images, settings)
        rows = np.arange(size)[np.newaxis] % len(images)
        [self._batch] = load_batches(dataset, rows, settings, workers=0, pin=False)
        self._sources = [torch.from_numpy(one.data) for one in self._batch.encoded.values()]
        self._device = device
        self._decoder = DeviceJpegs(dataset, settings, [device], workers=0, goes_on=lambda: True)

    def decode(self) -> None:
        """Decode alone."""
        decode_jpegs(self._sources, self._device)

    def decode_and_resize(self) -> None:
        """Make the batch that the network gets."""
        self._decoder.decoded(self._batch, self._device)

    def repeat(self, once: Callable[[], None], seconds: float) -> int:
        """Return the number of images done in so many seconds."""
        count, until = 0, time.perf_counter() + seconds
        while time.perf_counter() < until:
            once()
            count += len(self._sources)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return count


def check(images: ImageList, device: torch.device) -> float:
    """Return the mean difference of the device's pixels from Pillow's."""
    rows = np.arange(min(64, len(images)))[np.newaxis]
    [ours] = loaded(images, "gpu", 0, device, rows)
    [pillows] = loaded(images, "pillow", 0, device, rows)
    assert np.array_equal(ours.digests, pillows.digests)
    difference = ours.images.cpu().to(torch.int16) - pillows.images
    mean = float(difference.abs().float().mean())
    assert mean < MOST_DIFFERENCE, f"nvJPEG's pixels differ from Pillow's by {mean:.1f} levels"
    return mean


if __name__ == "__main__":
    main()
