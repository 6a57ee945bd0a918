"""Measure the mean and deviation of the network's input, and percentiles of the values in files.

Percentiles need little memory: integers of 16 bits are counted exactly, others are sampled.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vggfeat.core import activity
from vggfeat.core.isolation import isolated
from vggfeat.core.records import FailedImage, Progress
from vggfeat.core.resources import usable_cores
from vggfeat.core.text import counted
from vggfeat.errors import InputError
from vggfeat.images.batch_plan import plan_batches
from vggfeat.images.decode import as_decode_errors, decode, finish, load_decoder
from vggfeat.images.pillow_state import own_plugins
from vggfeat.images.raw_values import read_raster
from vggfeat.images.sources import discover, log_skipped
from vggfeat.images.worker_pool import decode_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from vggfeat.core.preprocessing import Preprocess
    from vggfeat.core.settings import Settings
    from vggfeat.images.image_list import ImageList

PERCENTILES: Final = (0.1, 0.5, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.5, 99.9)
"""Of the files' values."""

FAILURES_KEPT: Final = 100

_SLOTS = 64  # images that are given out together
_WINDOWED = (0.5, 99.5)  # percentiles that a window is proposed from
_LOWEST: Final = -(1 << 15)
_HIGHEST: Final = (1 << 16) - 1

_SAMPLE = 4096  # values kept of an image whose values are no integers of 16 bits
_MOST_KEPT = 1 << 20  # of all images


@dataclass(frozen=True, slots=True)
class Channel:
    """Pixels of one channel of the network's input, in [0, 1].

    Attributes:
        mean: of all pixels of all images.
        std: likewise, of the population.
        minimum, maximum: likewise.
    """

    mean: float
    std: float
    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True)
class FileValues:
    """Values in the files, in their own units, of as many channels as the network takes.

    Attributes:
        minimum, maximum: of finite values.
        percentiles: of all values of all files together, by percentage.
        exact: the percentiles are of every value; else of a sample from each image, taken where
            values are not whole numbers of 16 bits.
        kinds: number of files by format and type of pixels, such as `PNG I;16`.
        bits: number of files by bits of a channel.
    """

    minimum: float
    maximum: float
    percentiles: Mapping[str, float]
    exact: bool
    kinds: Mapping[str, int]
    bits: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PixelStats:
    """The result of `vggfeat.stats`.

    Attributes:
        images: number of images measured.
        failed: number of images that could not be decoded.
        failures: the first hundred of those.
        pixels: of a channel, of all images.
        channels: one for each.
        values: in the files.
        settings: how the images were read, by the names of settings, with the `mean` and `std` that
            were measured; `extract` takes them as a configuration.
    """

    images: int
    failed: int
    failures: tuple[FailedImage, ...]
    pixels: int
    channels: tuple[Channel, ...]
    values: FileValues
    settings: Mapping[str, int | str | tuple[float, ...]]

    @property
    def window(self) -> tuple[float, float]:
        """Level and width from the 0.5th to the 99.5th percentile of the files' values."""
        low, high = (self.values.percentiles[f"{at:g}"] for at in _WINDOWED)
        return (low + high) / 2, high - low


@isolated()
def stats(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    settings: Settings,
    *,
    sample: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> PixelStats:
    """Measure images exactly as a run with these settings would read them.

    Pixels are integers, so their sums and sums of squares are kept as such: nothing is rounded,
    however many there are, and the order of the images changes nothing.

    Args:
        sources: folders, files, archives, `@list.txt`, or `-`; see `sources.discover`.
        settings: size, crop, channels, depth, window, clip, clahe and all others by which images
            are read; workers. Their mean and std affect only the padding of `crop="pad"`.
        sample: most images to measure, evenly spaced over all; None for all.
        on_progress: called now and then.

    Raises:
        InputError: a source is missing, there is no image, or none can be decoded.
    """
    listed = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    found = discover(listed)
    log_skipped(found)
    rows = found.spread(len(found) if sample is None else sample)
    ranks = found.reading_ranks()
    plan = plan_batches(rows, min(_SLOTS, len(rows)), None if ranks is None else ranks[rows])
    workers = usable_cores() if settings.workers == "auto" else settings.workers
    preprocess = settings.preprocess()
    sums = _Sums(preprocess.channels)
    load_decoder(preprocess)
    own_plugins()  # cached before the fork, and not computed by every process
    # The processes of `SupervisedLoader` without torch, whose import takes longer than many images.
    activity.expects(len(rows))
    measured = decode_batches(
        plan,
        None,
        functools.partial(_measure, found, preprocess, settings.max_pixels),
        workers=min(workers, len(rows)),
        timeout=settings.decode_timeout,
        goes_on=lambda: True,
    )
    for images in measured:
        for image in images:
            sums.add(image.pixels, FailedImage(found[image.row].name, image.reason))
        if on_progress is not None:
            on_progress(Progress(sums.images, sums.failed, len(rows)))
    if not sums.images:
        first = sums.failures[0]
        raise InputError(
            f"none of {counted(sums.failed, 'image')} can be read; the first is {first.path!r}: "
            f"{first.reason}"
        )
    return sums.result(settings)


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """One image; `kind` and `bits` as in `intensity.Raster`."""

    pixels: int  # of a channel
    sums: NDArray[np.uint64]  # (C,), of the pixels
    squares: NDArray[np.uint64]  # (C,), of the pixels' squares
    lowest: NDArray[np.unsignedinteger]  # (C,)
    highest: NDArray[np.unsignedinteger]  # (C,)
    values: ValueCounts
    kind: str
    bits: int


def _measure(
    images: ImageList, preprocess: Preprocess, max_pixels: int, row: int
) -> tuple[bytes, _Measured]:
    """Measure the image of `row`; no digest is taken."""
    with images.open(row) as stream, as_decode_errors(stream, max_pixels):
        raster = read_raster(stream, preprocess, max_pixels)
        pixels = (
            decode(stream, preprocess, max_pixels)
            if preprocess.on_tensors
            else finish(raster, preprocess, max_pixels)
        )
    channels = pixels.reshape(-1, pixels.shape[2])  # (H * W, C)
    exact = channels.astype(np.uint64)
    return b"", _Measured(
        pixels=len(channels),
        sums=exact.sum(axis=0),
        squares=(exact * exact).sum(axis=0),
        lowest=channels.min(axis=0),
        highest=channels.max(axis=0),
        values=count_values(raster.own),
        kind=raster.kind,
        bits=raster.bits,
    )


class _Sums:
    """Sums over all images."""

    def __init__(self, channels: int) -> None:
        self.images = self.failed = self.pixels = 0
        self.failures: list[FailedImage] = []
        # Of any size: Python's own integers.
        self._sums, self._squares = [0] * channels, [0] * channels
        self._lowest, self._highest = [math.inf] * channels, [-math.inf] * channels
        self._values = ValueHistogram()
        self._kinds: Counter[str] = Counter()
        self._bits: Counter[str] = Counter()

    def add(self, found: _Measured | None, otherwise: FailedImage) -> None:
        if found is None:
            self.failed += 1
            if self.failed <= FAILURES_KEPT:
                self.failures.append(otherwise)
            return
        self.images += 1
        self.pixels += found.pixels
        for channel in range(len(self._sums)):
            self._sums[channel] += int(found.sums[channel])
            self._squares[channel] += int(found.squares[channel])
            self._lowest[channel] = min(self._lowest[channel], int(found.lowest[channel]))
            self._highest[channel] = max(self._highest[channel], int(found.highest[channel]))
        self._values.add(found.values)
        self._kinds[found.kind] += 1
        self._bits[str(found.bits)] += 1

    def result(self, settings: Settings) -> PixelStats:
        preprocess = settings.preprocess()
        channels = tuple(self._channel(at, preprocess.white) for at in range(len(self._sums)))
        found = self._values.percentiles(PERCENTILES)
        return PixelStats(
            images=self.images,
            failed=self.failed,
            failures=tuple(self.failures),
            pixels=self.pixels,
            channels=channels,
            values=FileValues(
                minimum=float(self._values.lowest),
                maximum=float(self._values.highest),
                percentiles={
                    f"{at:g}": value for at, value in zip(PERCENTILES, found, strict=True)
                },
                exact=self._values.exact,
                kinds=dict(self._kinds.most_common()),
                bits=dict(self._bits.most_common()),
            ),
            settings=_settings(settings, preprocess, channels),
        )

    def _channel(self, at: int, white: int) -> Channel:
        # n * squares - sum^2 is a whole number: nothing cancels.
        spread = self.pixels * self._squares[at] - self._sums[at] ** 2
        return Channel(
            mean=self._sums[at] / (self.pixels * white),
            std=math.sqrt(spread / self.pixels**2) / white,
            minimum=self._lowest[at] / white,
            maximum=self._highest[at] / white,
        )


def _settings(
    settings: Settings, preprocess: Preprocess, channels: Sequence[Channel]
) -> dict[str, int | str | tuple[float, ...]]:
    found: dict[str, int | str | tuple[float, ...]] = {
        "channels": preprocess.channels,
        "depth": preprocess.depth,
        "size": preprocess.size,
        "crop": preprocess.crop,
        "exif": preprocess.exif,
        "decode": preprocess.decode,
    }
    if preprocess.resize is not None:
        found["resize"] = preprocess.resize
    if preprocess.icc != "ignore":
        found["icc"] = preprocess.icc
    for name in ("window", "clip", "clahe", "augment"):
        if text := getattr(settings, name):
            found[name] = text
    # To six significant digits, for both are small in 16-bit images that use few levels.
    found["mean"] = tuple(float(f"{channel.mean:.6g}") for channel in channels)
    found["std"] = tuple(float(f"{channel.std:.6g}") for channel in channels)
    return found


def as_config(found: PixelStats) -> str:
    """Return the settings as a TOML file that `--config` takes."""
    lines = [f"# Measured by vggfeat stats on {counted(found.images, 'image')}."]
    for name, value in found.settings.items():
        shown = json.dumps(list(value) if isinstance(value, tuple) else value)
        lines.append(f"{name} = {shown}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True, eq=False)
class ValueCounts:
    """Values of one image, or a sample of them.

    Attributes:
        values: float64 (k,).
        counts: float64 (k,), how often each occurs, or how many values each stands for.
        exact: these are all values, and whole numbers from `_LOWEST` to `_HIGHEST`.
        lowest, highest: of all finite values; NaN without any.
    """

    values: NDArray[np.float64]
    counts: NDArray[np.float64]
    exact: bool
    lowest: float
    highest: float


def count_values(values: NDArray[Any]) -> ValueCounts:
    """Count the finite values of an image, or an evenly spaced sample of values not whole."""
    flat = values.reshape(-1)
    if flat.dtype.kind == "f":
        flat = flat[np.isfinite(flat)]
    if not flat.size:
        nothing = np.empty(0)
        return ValueCounts(nothing, nothing, exact=True, lowest=np.nan, highest=np.nan)
    lowest, highest = float(flat.min()), float(flat.max())
    fits = lowest >= _LOWEST and highest <= _HIGHEST
    if fits and (flat.dtype.kind != "f" or bool((np.floor(flat) == flat).all())):
        counts = np.bincount(flat.astype(np.int64) - int(lowest))
        places = np.flatnonzero(counts)
        found = places.astype(np.float64) + np.float64(lowest)
        return ValueCounts(found, counts[places].astype(np.float64), True, lowest, highest)
    some = np.linspace(0, flat.size - 1, min(_SAMPLE, flat.size)).astype(np.int64)
    share = np.full(len(some), flat.size / len(some))
    return ValueCounts(flat[some].astype(np.float64), share, False, lowest, highest)


class ValueHistogram:
    """The values of many images together."""

    def __init__(self) -> None:
        self.exact = True
        self.lowest, self.highest = np.inf, -np.inf
        self._whole = np.zeros(_HIGHEST - _LOWEST + 1)
        self._others: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        self._kept = 0

    def add(self, found: ValueCounts) -> None:
        """Add the values of an image."""
        self.exact = self.exact and found.exact
        if not len(found.values):
            return
        self.lowest = min(self.lowest, found.lowest)
        self.highest = max(self.highest, found.highest)
        if found.exact:
            self._whole[found.values.astype(np.int64) - _LOWEST] += found.counts
            return
        self._others.append((found.values, found.counts))
        self._kept += len(found.values)
        while self._kept > _MOST_KEPT:  # every other one, for twice as many
            self._others = [(values[::2], 2 * counts[::2]) for values, counts in self._others]
            self._kept = sum(len(values) for values, _ in self._others)

    def percentiles(self, wanted: Sequence[float]) -> list[float]:
        """Return linearly interpolated percentiles, as `numpy.percentile`; NaN without values."""
        places = np.flatnonzero(self._whole)
        values = np.concatenate([places + float(_LOWEST), *(one for one, _ in self._others)])
        counts = np.concatenate([self._whole[places], *(one for _, one in self._others)])
        if not len(values):
            return [float("nan")] * len(wanted)
        order = np.argsort(values, kind="stable")
        values, upto = values[order], counts[order].cumsum()
        at = np.asarray(wanted, np.float64) / 100 * (upto[-1] - 1)
        below, above = (
            values[np.searchsorted(upto, edge, side="right").clip(max=len(values) - 1)]
            for edge in (np.floor(at), np.ceil(at))
        )
        return [float(value) for value in below + (above - below) * (at - np.floor(at))]
