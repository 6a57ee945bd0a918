"""Times the bare network on random data in memory: no files, no decoding, no writing.

forward.py [--device auto] [--size 224] [--repeats 5] [--precisions LIST] [--batch-size N]
           [--batch-sizes LIST] [--layers LIST] [--profile-rows 25]

First each of several layers in each precision; then, in float16, ways to do what follows a
convolution, for each batch size, after a check that all give the same bytes; each kernel's own
time; and the longest kernels of a pass. To try every line of it on a CPU:
`forward.py --device cpu --size 32 --batch-size 2 --batch-sizes 2 --repeats 1 --layers conv2_2`.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from common import pick_device
from torch.nn import functional

from vggfeat import Extractor
from vggfeat.core.resources import keep_freed_memory
from vggfeat.core.settings import Settings
from vggfeat.network import vgg
from vggfeat.network.calibration import calibrate
from vggfeat.network.fused_epilogue import WORTHWHILE, Epilogue, eager_epilogue, same_bits
from vggfeat.network.vgg import finite_rows, needed_layers

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

LAYERS = "conv2_2;conv3_4;fc7;conv5_3,fc7"
MATMUL = 8192
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Case:
    """One network in one precision, and the seconds a pass of it took in each repeat."""

    def __init__(
        self, layers: str, precision: str, device: torch.device, batch: int, side: int
    ) -> None:
        asked = Settings(
            layers=layers,
            weights="random:0",
            precision=precision,  # type: ignore[arg-type] # argparse gives text
            device=str(device),
            size=side,
        )
        if precision == "int8":
            x = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
            self.extractor = Extractor(asked, activations=calibrate(asked, x))
        else:
            x = torch.randn(batch, 3, side, side, device=device, dtype=DTYPES[precision])
            self.extractor = Extractor(asked)
        self.extractor.expect(WORTHWHILE)  # as in a long run
        self.images = x.contiguous(memory_format=torch.channels_last)  # (N, 3, side, side)
        self.seconds: list[float] = []
        settings = self.extractor.settings
        used = needed_layers(settings.specs, settings.model)
        self.multiply_adds = batch * sum(layer.multiply_adds(side, side) for layer in used)

    def run(self) -> None:
        """One pass; nothing in it converts or moves the images, which are as the network's."""
        self.extractor(self.images)

    def row(self, matmul_rate: float) -> str:
        """The case as a row of the table."""
        if self.extractor.redone:
            raise RuntimeError(f"{self.extractor.settings.layers}: float16 overflowed")
        seconds = statistics.median(self.seconds)
        rate = 2 * self.multiply_adds / seconds
        spread = f"{len(self.images) / max(self.seconds):.1f} to "
        spread += f"{len(self.images) / min(self.seconds):.1f}"
        share = f"{rate / matmul_rate:.0%}" if matmul_rate else ""
        settings = self.extractor.settings
        return (
            f"| {settings.layers} | {settings.precision} | {len(self.images) / seconds:.1f} "
            f"| {spread} | {rate / 1e12:.2f} | {share} |"
        )


def main() -> None:
    """Builds all networks, times them in turns, prints the tables."""
    given = read_arguments()
    keep_freed_memory()  # as the command does
    device = pick_device(given.device)
    cuda = device.type == "cuda"
    batch = given.batch_size or (256 if cuda else 16)
    chosen = given.precisions or ("float32,float16,bfloat16" if cuda else "float32")
    networks = given.layers.split(";")
    cases = [
        Case(layers, precision, device, batch, given.size)
        for precision in chosen.split(",")
        for layers in networks
    ]
    multiply = matmul(device) if cuda else None
    matmul_seconds = []
    for repeat in range(given.repeats + 1):
        for case in cases:
            seconds = timed(case.run, device, passes=5 if cuda else 1)
            case.seconds += [seconds] if repeat else []  # the first one warms up
        if multiply and repeat:
            matmul_seconds.append(timed(multiply, device, passes=20))
    rate = 2 * MATMUL**3 / statistics.median(matmul_seconds) if matmul_seconds else 0.0
    print_table(cases, rate, batch, given.repeats)
    cases.clear()
    sizes = given.batch_sizes or ("128,256,512" if cuda else "")
    if sizes:
        batches = [int(size) for size in sizes.split(",")]
        case = Case(networks[-1], "float16", device, min(256, batches[-1]), given.size)
        print_profile(case, given.profile_rows)
        compare_ways(case, batches, given.repeats)
        print_kernels(device, min(256, batches[-1]), given.size, given.repeats)


def read_arguments() -> argparse.Namespace:
    """Precisions, batch sizes, repeats, device; empty or 0 is the device's own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", type=int, default=224, help="side of the images")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precisions", default="", help="of the first table, comma separated")
    parser.add_argument("--batch-size", type=int, default=0, help="of the first table")
    parser.add_argument(
        "--batch-sizes", default="", help="of the other tables; empty leaves them out on a CPU"
    )
    parser.add_argument(
        "--layers", default=LAYERS, help="networks, separated by `;`; the last one in all tables"
    )
    parser.add_argument("--profile-rows", type=int, default=25)
    return parser.parse_args()


def matmul(device: torch.device) -> Callable[[], object]:
    """A product of two square bfloat16 matrices: about the most the device can do."""
    a = torch.randn(MATMUL, MATMUL, device=device, dtype=torch.bfloat16)
    b = torch.randn(MATMUL, MATMUL, device=device, dtype=torch.bfloat16)
    out = a @ b
    return lambda: torch.mm(a, b, out=out)


def timed(work: Callable[[], object], device: torch.device, *, passes: int) -> float:
    """Seconds a pass, by the device's own clock on CUDA."""
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(passes):
            work()
        return (time.perf_counter() - started) / passes
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call] # torch has no types here
    torch.cuda.synchronize(device)
    first.record()
    for _ in range(passes):
        work()
    last.record()
    torch.cuda.synchronize(device)
    return float(first.elapsed_time(last)) / 1000 / passes


def print_table(cases: list[Case], rate: float, batch: int, repeats: int) -> None:
    """Medians, spreads, arithmetic rates."""
    print(f"batches of {batch}, median of {repeats} repeats in turns, torch {torch.__version__}")
    if rate:
        name = torch.cuda.get_device_name()
        print(f"{name}: bfloat16 matmul of {MATMUL} runs at {rate / 1e12:.0f} TFLOP/s")
    print("\n| layers | precision | images/s | from, to | TFLOP/s | share of matmul |")
    print("|---|---|---|---|---|---|")
    for case in cases:
        print(case.row(rate))


class Nothing:
    """Neither bias nor ReLU nor check: what no kernel behind the convolutions can be faster than.

    Only the pooling is left, since later layers would have to do more without it.
    """

    def __call__(self, x: Tensor, _bias: Tensor, _finite: Tensor | None, *, pool: bool) -> Tensor:
        """Pool, or return the map."""
        return functional.max_pool2d(x, 2) if pool else x


def both_ends(x: Tensor, *, rectified: bool = False) -> Tensor:
    """The check for overflow by the largest and the least, wherever it is."""
    del rectified
    return finite_rows(x)


def every_value(x: Tensor, *, rectified: bool = False) -> Tensor:
    """The check for overflow by a map of its own."""
    del rectified
    return torch.isfinite(x).flatten(1).all(1)


def unchecked(x: Tensor, *, rectified: bool = False) -> Tensor:
    """No check for overflow."""
    del rectified
    return torch.ones(len(x), dtype=torch.bool, device=x.device)


def compare_ways(case: Case, batches: list[int], repeats: int) -> None:
    """Times a network in float16 with ways to do what follows a convolution."""
    device = case.images.device
    epilogue = Epilogue(device, torch.float16)
    ways: dict[str, tuple[Any, Any]] = {
        "operators, `isfinite` of all": (None, every_value),
        "operators, largest and least": (None, both_ends),
        "operators": (None, finite_rows),
        "one kernel": (epilogue, finite_rows),
        "neither bias, ReLU nor check": (Nothing(), unchecked),
    }
    layers = case.extractor.settings.layers
    print(f"\n### What follows a convolution, {layers} in float16\n")
    if epilogue.problem:
        print(f"one kernel: not used, {epilogue.problem}\n")
        del ways["one kernel"]
    else:
        print(f"one kernel: loaded, compiled and tried in {epilogue.seconds:.2f} s\n")
    print("| way | " + " | ".join(f"images/s in batches of {size}" for size in batches) + " |")
    print("|---|" + "---|" * len(batches))
    columns = [one_column(case, size, repeats, ways) for size in batches]
    for way in ways:
        print(f"| {way} | " + " | ".join(f"{column[way]:.1f}" for column in columns) + " |")


def one_column(
    case: Case, batch: int, repeats: int, ways: dict[str, tuple[Any, Any]]
) -> dict[str, float]:
    """Images a second of each way, all in turns, in batches of one size."""
    device = case.images.device
    case.images = torch.randn((batch, *case.images.shape[1:]), device=device, dtype=torch.float16)
    case.images = case.images.contiguous(memory_format=torch.channels_last)
    network: Any = case.extractor._network  # noqa: SLF001 the variants are inside
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    expected: dict[str, Tensor] = {}
    for repeat in range(repeats + 1):
        for way, (epilogue, check) in ways.items():
            network.epilogue = epilogue
            with mock.patch.object(vgg, "finite_rows", check):
                if not repeat and not isinstance(epilogue, Nothing):
                    found = case.extractor(case.images)
                    expected = expected or found
                    for layer, values in found.items():
                        if not torch.equal(values, expected[layer]):
                            raise RuntimeError(f"{way}: {layer} has other bytes")
                case.run()  # after another one, the first is slower
                took = timed(case.run, device, passes=5 if device.type == "cuda" else 1)
                seconds[way] += [took] if repeat else []
    if case.extractor.redone:
        raise RuntimeError("float16 overflowed")
    return {way: batch / statistics.median(took) for way, took in seconds.items()}


def print_kernels(device: torch.device, batch: int, side: int, repeats: int) -> None:
    """Times what follows each convolution alone, by operators and by the kernel."""
    epilogue = Epilogue(device, torch.float16)
    print(f"\n### What follows one convolution, float16, batches of {batch}\n")
    print("| map | pool | operators, ms | one kernel, ms | GB/s |")
    print("|---|---|---|---|---|")
    for block, channels in enumerate((64, 128, 256, 512, 512)):
        for pool in (False, True):
            edge = side >> block
            x = torch.randn(batch, channels, edge, edge, device=device, dtype=torch.float16)
            x = x.contiguous(memory_format=torch.channels_last)
            bias = torch.randn(channels, device=device, dtype=torch.float16)
            print(kernel_row(epilogue, x, bias, repeats, pool=pool))


def kernel_row(epilogue: Epilogue, x: Tensor, bias: Tensor, repeats: int, *, pool: bool) -> str:
    """One row: bytes equal first, then the median time of either."""
    finite = torch.ones(len(x), dtype=torch.bool, device=x.device) if pool else None
    expected = eager_epilogue(x.clone(), bias, finite, pool=pool)
    if not same_bits(epilogue(x.clone(), bias, finite, pool=pool), expected):
        raise RuntimeError(f"the kernel gives other bits for {tuple(x.shape)}")
    took = [
        statistics.median(
            timed(lambda way=way: way(x, bias, finite, pool=pool), x.device, passes=10)  # type: ignore[misc] # mypy finds no type for its default
            for _ in range(repeats + 1)
        )
        for way in (eager_epilogue, epilogue)
    ]
    moved = 2 * (x.numel() + expected.numel())
    ours = f"{1e3 * took[1]:.3f} | {moved / took[1] / 1e9:.0f}" if not epilogue.problem else " | "
    shape = "x".join(map(str, x.shape[1:]))
    return f"| {shape} | {'yes' if pool else 'no'} | {1e3 * took[0]:.3f} | {ours} |"


def print_profile(case: Case, rows: int) -> None:
    """The kernels, or on a CPU the operators, that take longest in a pass."""
    device, batch = case.images.device, len(case.images)
    for _ in range(3):
        case.run()
    activities = [torch.profiler.ProfilerActivity.CPU]
    cuda = device.type == "cuda"
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.synchronize(device)
    passes = 3 if cuda else 1
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(passes):
            case.run()
        if cuda:
            torch.cuda.synchronize(device)
    spent = "self_device_time_total" if cuda else "self_cpu_time_total"
    found: list[Any] = [one for one in profile.key_averages() if getattr(one, spent) > 0]
    if cuda:  # an operator counts its kernels' time again
        kernels = [one for one in found if "cuda" in str(one.device_type).lower()]
        found = kernels or found
    found.sort(key=lambda one: -float(getattr(one, spent)))
    total = sum(float(getattr(one, spent)) for one in found)
    print(f"\n### The longest {rows} of a pass, batches of {batch}\n")
    print("| kernel | calls a pass | ms a pass | share |")
    print("|---|---|---|---|")
    for one in found[:rows]:
        took = float(getattr(one, spent))
        name = str(one.key).replace("|", "/")[:110]
        milliseconds = f"{took / passes / 1e3:.3f}"
        print(f"| `{name}` | {one.count / passes:g} | {milliseconds} | {took / total:.1%} |")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
