"""What the main thread does for an image: `main_thread.py [OLD ...]`.

Batches of 256 images whose decoding costs nothing come from two workers, and only the processor
time of the thread that collects them is counted; waiting is free. By this code, or by that in each
folder OLD, a checkout of an earlier commit; in turns, in processes of their own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.core.settings import Settings
from vggfeat.images.loader import load_batches
from vggfeat.images.worker_pool import decode_batches

if TYPE_CHECKING:
    from numpy.typing import NDArray

HERE = str(Path(__file__).resolve().parents[2])
SHAPE = (224, 224, 3)
PLAN = np.arange(30 * 256).reshape(30, 256)
DIGEST = bytes(32)


class Constant:
    """Images that are there already."""

    pixels = np.full(SHAPE, 7, dtype=np.uint8)

    def __len__(self) -> int:
        return PLAN.size

    def decode(self, _index: int) -> tuple[bytes, NDArray[np.uint8]]:
        """The same pixels each time."""
        return DIGEST, self.pixels


def main() -> None:
    """Time each code in turns, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        print(microseconds())
        return
    found: dict[str, list[float]] = {code: [] for code in (*given.old, HERE)}
    for _ in range(given.rounds):
        for code, times in found.items():
            line = subprocess.run(
                [sys.executable, __file__, "--run"], check=True, capture_output=True, text=True,
                env={**os.environ, "PYTHONPATH": code},
            ).stdout  # fmt: skip
            times.append(float(line))
    print("| code | main thread, µs an image | least |\n|---|---|---|")
    for code, times in found.items():
        which = "this" if code == HERE else code
        print(f"| {which} | {statistics.median(times):.1f} | {min(times):.1f} |")


def microseconds() -> float:
    """Processor time of this thread for an image, the first batches left out."""
    settings, images = Settings(layers="fc7"), Constant()
    more: dict[str, Any] = {}
    if "decoded" in load_batches.__annotations__:
        more["decoded"] = decode_batches(
            PLAN, SHAPE, images.decode, workers=2, timeout=60, goes_on=lambda: True
        )
    started, count = 0.0, 0
    for number, batch in enumerate(
        load_batches(images, PLAN, settings, workers=2, pin=False, **more)
    ):
        assert int(batch.images[17, 3, 5, 1]) == Constant.pixels[3, 5, 1]
        if number == 5:
            started, count = time.thread_time(), 0
        count += len(batch.rows)
    return 1e6 * (time.thread_time() - started) / (count - 256)


if __name__ == "__main__":
    main()
