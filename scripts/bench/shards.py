"""What a cache costs beside its features as rows grow: planning, opening, resuming, verifying.

shards.py [COUNT...] [--folder DIR]    by default 10000 100000 1000000

One file, 64 shards and 1000. The images are names on a list and the features holes of sparse
files, so that ten million rows take half a gigabyte; what is measured is all that a row costs
besides. Each command is a process of its own: median of the seconds, and peak memory. This process
stays small, since a child's peak is never told below what its parent holds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

from vggfeat.cache.disk import write_all
from vggfeat.cache.reader import FeatureCache

OPTIONS = [
    "--layers", "conv1_1", "--model", "vgg11", "--weights", "random:0", "--size", "32",
    "--precision", "float32", "--device", "cpu", "--batch-size", "16", "--quiet",
]  # fmt: skip
OPEN = """
import sys, time
import vggfeat
opener = vggfeat.open  # which imports what it needs
started = time.perf_counter()
cache = opener(sys.argv[1])
cache["conv1_1"][len(cache) // 2]
print(time.perf_counter() - started)
"""
BLOCK = 1 << 20


def main() -> None:
    """Measures each number of rows in turn and prints the rows of a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("counts", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", help="where there is room")
    parser.add_argument("--repeat", type=int, default=3)
    asked = parser.parse_args()
    print("| rows | cache | plan s | MB | open ms | nothing left s | MB | verify s | MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for count in asked.counts:
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            measure(Path(folder), count, asked.repeat)


def measure(folder: Path, count: int, repeat: int) -> None:
    """All commands on shards, then on one file of the same rows."""
    root = folder / "images"
    root.mkdir()
    names = folder / "list.txt"
    with names.open("w") as file:
        for number in range(count):
            file.write(f"{root}/{number // 1000:06}/{number:09}.jpg\n")
    one = folder / "one.h5"
    sources = [f"@{names}", "--root", str(root)]
    for shards in (64, 1000):
        out = folder / f"feats{shards}"
        words = ["extract", *sources, "--out", f"{out}/", *OPTIONS]
        plan = run([*words, "--shards", str(shards), "--plan-only"])
        files = sorted(out.glob("*.h5"))
        for path in files:
            settle(path)
        cells = [f"{plan[0]:.1f} | {plan[1]:.0f}", *readers(words, f"{out}/", repeat)]
        print(f"| {count} | {shards} shards | {' | '.join(cells)} |", flush=True)
        if shards == 64:
            run(["merge", f"{out}/", "--out", str(one)])
        shutil.rmtree(out)
    words = ["extract", *sources, "--out", str(one), *OPTIONS]
    cells = ["- | -", *readers(words, str(one), repeat)]
    print(f"| {count} | one file | {' | '.join(cells)} |", flush=True)


def settle(path: Path) -> None:
    """Every row done, with the checksum of its zeros."""
    header = FeatureCache(path).header
    nothing = bytes(sum(header.feature(spec).row_bytes for spec in header.shapes) + 32 + 160)
    right = zlib.crc32(nothing + b"\1")  # zeros, a digest, no reason, done
    handle = os.open(path, os.O_RDWR)
    for name, value in (("state", 1), ("checksum", right)):
        column = header.runs[f"images/{name}"]
        for start in range(0, header.rows, BLOCK):
            block = np.full(min(BLOCK, header.rows - start), value, dtype=column.dtype)
            write_all(handle, block, column.offset + start * column.row_bytes)
    os.close(handle)


def readers(words: list[str], cache: str, repeat: int) -> list[str]:
    """Cells of a line: opening, extracting again with nothing left, and verifying."""
    command = [sys.executable, "-c", OPEN, cache]
    opened = statistics.median(
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(repeat)
    )
    cells = [f"{opened * 1e3:.1f}"]
    for line in (words, ["verify", cache]):
        found = [run(line) for _ in range(repeat)]
        wall = statistics.median(wall for wall, _ in found)
        cells.append(f"{wall:.1f} | {max(peak for _, peak in found):.0f}")
    return cells


def run(words: list[str]) -> tuple[float, float]:
    """Runs a command to its end: seconds, and peak megabytes."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "vggfeat", *words],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{words}: exit status {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / 1e3


if __name__ == "__main__":
    main()
