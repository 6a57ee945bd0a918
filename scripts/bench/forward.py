"""Times the bare network on random data in memory: no files, no decoding, no writing.

forward.py [--precisions float32] [--batch-size N] [--repeats 5] [--device auto]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING

import torch
from common import pick_device

from vggfeat import Extractor
from vggfeat.core.resources import keep_freed_memory
from vggfeat.core.settings import Settings
from vggfeat.network.calibration import calibrate
from vggfeat.network.vgg import needed_layers

if TYPE_CHECKING:
    from collections.abc import Callable

LAYERS = ("conv2_2", "conv3_4", "fc7", "conv5_3,fc7")
SIDE = 224
MATMUL = 8192
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Case:
    """One network in one precision, and the seconds a pass of it took in each repeat."""

    def __init__(self, layers: str, precision: str, device: torch.device, batch: int) -> None:
        asked = Settings(layers=layers, weights="random:0", precision=precision, device=str(device))  # type: ignore[arg-type] # argparse gives text
        if precision == "int8":
            x = torch.randint(0, 256, (batch, 3, SIDE, SIDE), dtype=torch.uint8)
            self.extractor = Extractor(asked, activations=calibrate(asked, x))
        else:
            x = torch.randn(batch, 3, SIDE, SIDE, device=device, dtype=DTYPES[precision])
            self.extractor = Extractor(asked)
        self.images = x.contiguous(memory_format=torch.channels_last)  # (N, 3, 224, 224)
        self.seconds: list[float] = []
        settings = self.extractor.settings
        used = needed_layers(settings.specs, settings.model)
        self.multiply_adds = batch * sum(layer.multiply_adds(SIDE, SIDE) for layer in used)

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
    """Builds all networks, times them in turns, prints the table."""
    given = read_arguments()
    keep_freed_memory()  # as the command does
    device = pick_device(given.device)
    cuda = device.type == "cuda"
    batch = given.batch_size or (256 if cuda else 16)
    chosen = given.precisions or ("float32,float16,bfloat16" if cuda else "float32")
    cases = [Case(l, p, device, batch) for p in chosen.split(",") for l in LAYERS]  # noqa: E741
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


def read_arguments() -> argparse.Namespace:
    """Precisions, batch size, repeats, device; empty or 0 is the device's own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precisions", default="")
    parser.add_argument("--batch-size", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
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


if __name__ == "__main__":
    main()
