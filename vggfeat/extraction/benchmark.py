"""Measure how fast this machine runs the requested settings, and what limits it.

`rates.py` measures each stage; here the time is divided among them, and the wall is named.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from vggfeat.core import activity
from vggfeat.core.isolation import isolated
from vggfeat.core.resources import usable_cores
from vggfeat.core.sequences import as_tuple
from vggfeat.errors import UsageError
from vggfeat.extraction.metadata import check_decoding, without_auto_decoding
from vggfeat.extraction.rates import disk_rate, loading_rate, network_rate, synthetic_images
from vggfeat.images.decoding import choose_workers
from vggfeat.images.sources import discover
from vggfeat.network import onednn
from vggfeat.network.device import (
    choose_batch_size,
    choose_device,
    cpu_has_vnni,
    is_out_of_memory,
)
from vggfeat.network.extractor import TensorExtractor
from vggfeat.network.fused_epilogue import WORTHWHILE
from vggfeat.network.weights import find_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    from vggfeat.core.settings import Settings
    from vggfeat.network.weights import Weights

SECONDS = 25.0
"""That a benchmark takes by default; with what loading torch and ending take, half a minute."""

_LONGEST = 3600.0
# Shares of what is left when each begins; the network has all the rest.
_ONE_PROCESS, _ALL_WORKERS, _DISK = 0.05, 0.1, 0.07
_FEW = 4  # images of the smallest batch to decode
_BATCHES_TO_DECODE = 8
# In the order of how much they tell. On a CPU the first says how long the others will take.
_CPU_BATCHES = (1, 16, 4, 32)
_CUDA_BATCHES = (256, 128, 512, 64, 32)
_MANY = 1 << 20  # images
_SECONDS_TO_BUILD = 2.0  # a second network
_WORTH_IT = 1.03  # a larger batch must bring as much to be recommended


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the network runs, the cores this process may use, and the processes to decode in."""

    device: str
    cores: int
    workers: int

    @property
    def on_cpu(self) -> bool:
        """Whether decoding takes cores from the network."""
        return self.device == "cpu"


@dataclass(frozen=True, slots=True)
class Decoding:
    """How fast images are decoded: see `Bench`."""

    sample: int
    sample_bytes: int
    decoder: str
    decode: float
    decode_together: float
    workers: int
    main_thread: float


@dataclass(frozen=True, slots=True)
class Disk:
    """How fast rows reach the disk: see `Bench`."""

    row_bytes: int
    write: float


@dataclass(frozen=True, slots=True)
class Forward:
    """Images a second through the network, from pixels in memory to features in memory.

    `main_thread` are seconds an image that launching takes on CUDA; a CPU computes meanwhile.
    """

    precision: str
    batch_size: int
    images_per_second: float
    main_thread: float = 0.0


Measured: TypeAlias = Machine | Decoding | Disk | Forward
"""What is measured, in the order in which it is told."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Measured rates, what limits a run, and the settings to use.

    Attributes:
        device: where the network ran.
        cores: that this process may use.
        sample: images that were decoded; 0 if synthetic ones stood in for them.
        sample_bytes: their mean size.
        decode: images a second that one process decodes.
        decode_together: images a second that `workers` processes decode at the same time.
        decoder: how, as `--decode` names it.
        forward: of each batch size that there was time and memory for; last, if there was time, in
            another precision.
        row_bytes: of features an image.
        write: images a second that the disk takes, synced.
        workers: decoding processes to use.
        precision: to use.
        batch_size: to use; the usual one if there was no time to try it.
        limit: `decoding`, `network`, `disk` or `main thread`, whichever is the slowest.
        images_per_second: that a long run can be expected to reach.
        walls: images a second of each of them by itself. The main thread takes pixels over from
            the processes and launches batches.
        advice: what to do about the limit.
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
    decode_together: float = 0.0
    decoder: str = "exact"
    walls: Mapping[str, float] = field(default_factory=dict)
    advice: str = ""

    @property
    def next_limit(self) -> str:
        """The slowest but one."""
        return sorted(self.walls, key=self.walls.__getitem__)[1]


@isolated()
def bench(
    settings: Settings,
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    *,
    folder: str | os.PathLike[str] = ".",
    seconds: float = SECONDS,
    on_figure: Callable[[Measured], None] | None = None,
) -> Bench:
    """Measure decoding, the disk and the network one after the other.

    Args:
        settings: layers, model, weights, device, preprocessing; precision and batch size are
            tried out.
        sources: images to decode, a sample of them; none for synthetic photographs.
        folder: where features would be written.
        seconds: in all. What there is no time for is left out: larger batches, another precision.
            Each figure needs one pass at least, so a slow machine may take longer.
        on_figure: called with each figure as soon as it is measured.

    Raises:
        InputError: none of the sources' images can be decoded.
        UsageError: settings or seconds that make no sense.
        WeightsError, DeviceError: as for `Extractor`.
        SpaceError: the folder cannot be written to.
    """
    if not 0 <= seconds <= _LONGEST:
        raise UsageError(f"seconds is {seconds:g}; expected 0 to {_LONGEST:g}")
    clock = _Clock(time.monotonic() + seconds)
    tell = on_figure or (lambda _figure: None)
    settings = without_auto_decoding(settings)
    check_decoding(settings)
    device = choose_device(settings.device)
    machine = Machine(str(device), usable_cores(), choose_workers(settings, {device.type}))
    tell(machine)
    activity.begins("measuring decoding")
    decoding = _decoding(sources, settings, device, machine.workers, clock)
    tell(decoding)
    networks = _Networks(settings, find_weights(settings.weights, settings.model))
    row_bytes = networks.row_bytes()
    activity.begins("measuring the disk")
    disk = Disk(row_bytes, disk_rate(os.fspath(folder), clock.share(_DISK)) / row_bytes)
    tell(disk)
    forward = []
    for figure in networks.forward(clock):
        tell(figure)
        forward.append(figure)
    return _conclude(settings, machine, decoding, disk, forward, usual=networks.usual)


@dataclass(frozen=True, slots=True)
class _Clock:
    """Divides the time until a deadline."""

    deadline: float

    @property
    def left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    def share(self, part: float) -> float:
        return part * self.left


def _decoding(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    settings: Settings,
    device: torch.device,
    workers: int,
    clock: _Clock,
) -> Decoding:
    """Measure one process, and then all that a run would start, beside each other."""
    with contextlib.ExitStack() as stack:
        named = as_tuple(sources) if sources else (stack.enter_context(synthetic_images()),)
        measure = partial(loading_rate, discover(named), settings, device=device)
        one = measure(clock.share(_ONE_PROCESS), workers=1, batch_size=_FEW)
        together = one
        if workers != 1:
            seconds = clock.share(_ALL_WORKERS)
            most = one.rate * max(1, workers) * seconds / _BATCHES_TO_DECODE
            size = max(_FEW, min(int(most), _CUDA_BATCHES[0]))
            together = measure(seconds, workers=workers, batch_size=size)
    return Decoding(
        sample=max(one.images, together.images) if sources else 0,
        sample_bytes=one.bytes_each,
        decoder=settings.decode,
        decode=one.rate,
        decode_together=together.rate,
        workers=workers,
        main_thread=together.main_thread,
    )


class _Networks:
    """The network in the precision of a run, and in float32 to compare it with."""

    def __init__(self, settings: Settings, weights: Weights) -> None:
        if settings.dtype == "int8":  # its scales come from real features, and cost no more time
            settings = dataclasses.replace(settings, dtype="float16")
        self._settings, self._weights = settings, weights
        self._extractor = TensorExtractor(settings, weights)
        alone = dataclasses.replace(settings, batch_size="auto")
        self.usual = choose_batch_size(alone, _MANY)
        """Batch size of a run of many images."""

    def row_bytes(self) -> int:
        """Return the bytes of an image's features."""
        size = self._settings.preprocess().size
        itemsize = np.dtype(self._settings.dtype).itemsize
        shapes = self._extractor.output_shapes(size, size).values()
        return sum(math.prod(shape) * itemsize for shape in shapes)

    def _sizes(self) -> list[int]:
        """Return batch sizes to try: up to twice the usual one."""
        sizes = _CUDA_BATCHES if self._extractor.device.type == "cuda" else _CPU_BATCHES
        return [size for size in sizes if size <= 2 * self.usual] or [self.usual]

    def forward(self, clock: _Clock) -> Iterator[Forward]:
        """Measure batch sizes while there is time, and then the best of them in float32."""
        tried: list[Forward] = []
        sizes = self._sizes()
        for at, wanted in enumerate(sizes):
            pass_seconds = wanted / max((one.images_per_second for one in tried), default=math.inf)
            if pass_seconds > clock.left:
                continue
            size = _fitting(self._extractor, wanted)
            if size in [one.batch_size for one in tried] or size in sizes[at + 1 :]:
                continue  # the device lacks memory for more
            seconds = clock.share(1 / (len(sizes) - at))
            activity.begins(f"measuring the network in batches of {size}")
            tried.append(_measured(self._extractor, size, seconds, pass_seconds))
            yield tried[-1]
        best = smallest_good(tried)
        seconds = clock.left - _SECONDS_TO_BUILD
        pass_seconds = 2 * best.batch_size / best.images_per_second
        auto = self._settings.precision == "auto" and best.precision != "float32"
        if auto and seconds > 2 * pass_seconds:
            found = self._in_float32(best.batch_size, seconds, pass_seconds)
            yield from [] if found is None else [found]

    def _in_float32(self, size: int, seconds: float, pass_seconds: float) -> Forward | None:
        """Measure a batch size in float32; return None if the device lacks memory for it."""
        settings = dataclasses.replace(self._settings, precision="float32")
        try:
            extractor = TensorExtractor(settings, self._weights)
            if _fitting(extractor, size) < size:
                return None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        return _measured(extractor, size, seconds, pass_seconds)


def _fitting(extractor: TensorExtractor, size: int) -> int:
    """Return a batch size, or half of it and half again until it fits a CUDA device.

    Trying it also starts cuDNN, and has it choose its kernels, which is not to be measured.
    """
    if extractor.device.type != "cuda":
        return size
    side = extractor.preprocess.size
    return extractor.largest_pass(size, side, side)


def _measured(
    extractor: TensorExtractor, size: int, seconds: float, pass_seconds: float
) -> Forward:
    """Measure a batch size, after a first pass if there is time for it."""
    extractor.expect(WORTHWHILE)  # as in a run of many images
    warm_up = 2 * pass_seconds <= seconds
    found = network_rate(extractor, size, seconds - warm_up * pass_seconds, warm_up=warm_up)
    return Forward(extractor.precision, size, found.rate, found.main_thread)


def _conclude(
    settings: Settings,
    machine: Machine,
    decoding: Decoding,
    disk: Disk,
    forward: Sequence[Forward],
    *,
    usual: int,
) -> Bench:
    """Name the wall, and what to do about it."""
    chosen = smallest_good(forward)
    had_time = any(one.batch_size >= usual for one in forward)
    walls = {
        "decoding": decoding.decode_together,
        "network": chosen.images_per_second,
        "disk": disk.write,
        "main thread": 1 / max(decoding.main_thread + chosen.main_thread, 1e-9),
    }
    limit, rate = find_limit(walls, machine)
    return Bench(
        device=machine.device,
        cores=machine.cores,
        sample=decoding.sample,
        sample_bytes=decoding.sample_bytes,
        decode=decoding.decode,
        decode_together=decoding.decode_together,
        decoder=decoding.decoder,
        forward=tuple(forward),
        row_bytes=disk.row_bytes,
        write=disk.write,
        workers=machine.workers,
        precision=chosen.precision,
        batch_size=chosen.batch_size if had_time else usual,
        limit=limit,
        images_per_second=rate,
        walls=walls,
        advice=advise(limit, settings, machine),
    )


def smallest_good(tried: Sequence[Forward]) -> Forward:
    """Return the smallest batch size that no larger one beats by more than a little."""
    fastest = max(one.images_per_second for one in tried)
    good = [one for one in tried if one.images_per_second * _WORTH_IT >= fastest]
    return min(good, key=lambda one: one.batch_size)


def find_limit(walls: Mapping[str, float], machine: Machine) -> tuple[str, float]:
    """Return what is slowest, and the rate of a run, in which stages work beside each other.

    On a CPU the network and decoding share the cores.
    """
    limit = min(walls, key=walls.__getitem__)
    if not machine.on_cpu:
        return limit, walls[limit]
    processes = min(max(1, machine.workers), machine.cores)
    on_all_cores = walls["decoding"] * machine.cores / processes
    shared = 1 / (1 / walls["network"] + 1 / on_all_cores)
    return limit, min(shared, walls[limit])


def advise(limit: str, settings: Settings, machine: Machine) -> str:
    """Say what to do about a limit."""
    if limit == "disk":
        return "name a folder on a faster disk; or vectors in place of maps, --dtype int8"
    if limit == "main thread":
        return "start a process for each part of the images (--out DIR/ --shard I/N)"
    if limit == "decoding":
        return _faster_decoding(settings, machine)
    others = "layers nearer to the input, or several machines (--out DIR/ --shard I/N)"
    if not machine.on_cpu:
        return f"further GPUs (--device all); {others}"
    int8 = settings.precision == "auto" and cpu_has_vnni() and onednn.has_convolution()
    return f"a GPU; {'--precision int8, which is less exact; ' if int8 else ''}{others}"


def _faster_decoding(settings: Settings, machine: Machine) -> str:
    others = "smaller images, or several machines (--out DIR/ --shard I/N)"
    if not machine.on_cpu and settings.decode != "gpu":
        return f"--decode gpu decodes on the device; more cores; {others}"
    if settings.decode == "exact":
        return f"--decode torchvision, whose pixels differ slightly; more cores; {others}"
    return f"more cores; {others}"
