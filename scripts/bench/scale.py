"""Memory as the number of images grows, and what a run costs that finds nothing to do.

scale.py [COUNT...]    by default 1000 and 100000

Small images and one shallow layer, so that it is over in minutes and what is left is what every
image costs beside the network. Peaks are of the largest process and, sampled, of all together.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

DISTINCT = 500
OPTIONS = [
    "--layers", "conv1_1", "--model", "vgg11", "--weights", "random:0", "--size", "32",
    "--precision", "float32", "--device", "cpu", "--workers", "2", "--batch-size", "16", "--json",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run took: seconds, CPU seconds, megabytes, and the summary it printed."""

    wall: float
    cpu: float
    largest: float
    together: float
    summary: dict[str, object]


def main() -> None:
    """Measures each number of images in turn and prints the rows of two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("counts", type=int, nargs="*", default=[1_000, 100_000])
    counts = parser.parse_args().counts
    print("| run | images | wall s | CPU s | largest process MB | all processes MB |")
    print("|---|---|---|---|---|---|")
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), count)


def measure(folder: Path, count: int) -> None:
    """A first run, the same again, and an update that finds nothing new."""
    images, out = folder / "images", folder / "feats.h5"
    make_images(images, count)
    command = [sys.executable, "-m", "vggfeat", "extract", str(images), "--out", str(out), *OPTIONS]
    for name, more, new in (
        ("first", [], count),
        ("again", [], 0),
        ("--update", ["--update"], 0),
    ):
        found = run([*command, *more])
        if (found.summary["done"], found.summary["new_done"]) != (count, new):
            raise SystemExit(f"{name}: {found.summary}")
        print(
            f"| {name} | {count} | {found.wall:.2f} | {found.cpu:.2f} "
            f"| {found.largest:.0f} | {found.together:.0f} |",
            flush=True,
        )


def make_images(folder: Path, count: int) -> None:
    """`count` names of a few hundred small images, a thousand a folder."""
    noise = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number // 1000:05}" / f"{number:08}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < DISTINCT:
            pixels = noise.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        else:
            first = number % DISTINCT
            os.link(folder / f"{first // 1000:05}" / f"{first:08}.jpg", path)


def run(command: list[str]) -> Measured:
    """Runs a command to its end; an exit status other than 0 ends the measurement."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        peak = [0.0]
        ended = threading.Event()
        watcher = threading.Thread(target=watch, args=(process.pid, peak, ended))
        watcher.start()
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - started
        ended.set()
        watcher.join()
    if process.returncode:
        raise SystemExit(f"{command}: exit status {process.returncode}")
    return Measured(
        wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3, peak[0], json.loads(text)
    )


def watch(pid: int, peak: list[float], ended: threading.Event) -> None:
    """Samples the proportional memory of a process and its children, in megabytes."""
    while not ended.wait(0.1):
        try:
            listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
            processes = [pid, *map(int, listed.split())]
            peak[0] = max(peak[0], sum(map(proportional, processes)))
        except OSError:
            continue


def proportional(pid: int) -> float:
    """Pss of one process: pages shared by several count in parts."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3


if __name__ == "__main__":
    main()
