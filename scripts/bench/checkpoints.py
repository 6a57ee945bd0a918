"""What checkpoints cost a run whose rows come at a given rate: `checkpoints.py [OLD ...]`.

Wide rows of conv1_1:map, float16, go through the background writer of this code, or of that in each
folder OLD, a checkout of an earlier commit; in turns, in processes of their own, for checkpoints
never, every 5 s and every 0.5 s. Shown is how long the loop stood still in `put`, and how long all
took until the file was synced. Files are asserted equal.

--rate is of MB/s that a device would compute; below what the disk writes, or the disk is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from caches import new_cache

from vggfeat.cache.background_writer import Sink
from vggfeat.cache.writer import CacheWriter
from vggfeat.core.records import FeatureBatch

SHAPES = {"conv1_1:map": (64, 112, 112)}  # 1.6 MB a row
BATCH = 8
INTERVALS = {"never": 1e9, "every 5 s": 5.0, "every 0.5 s": 0.5}
HERE = Path(__file__).resolve().parents[2]


def main() -> None:
    """Time each way in turns, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", nargs="*")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--rate", type=float, default=150.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=".")
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.seconds:
        run(given.folder, given.rows, given.rate, given.seconds)
        return
    ways = [(code, name) for name in INTERVALS for code in (*given.old, str(HERE))]
    found: dict[tuple[str, str], list[dict[str, float]]] = {way: [] for way in ways}
    digests = set()
    for _ in range(given.rounds):
        for code, name in ways:
            with tempfile.TemporaryDirectory(dir=given.folder) as folder:
                words = [f"--seconds={INTERVALS[name]}", f"--folder={folder}"]
                words += [f"--rows={given.rows}", f"--rate={given.rate}"]
                line = subprocess.run(
                    [sys.executable, __file__, *words], check=True, capture_output=True, text=True,
                    env={**os.environ, "PYTHONPATH": code},
                ).stdout  # fmt: skip
                found[code, name].append(json.loads(line))
                digests.add(found[code, name][-1].pop("digest"))
    assert len(digests) == 1, "files differ"
    print("| checkpoint | code | stood still, s | longest put, s | all, s |\n|---|---|---|---|---|")
    for (code, name), times in found.items():
        cells = (statistics.median(one[key] for one in times) for key in ("put", "most", "all"))
        which = "this" if code == str(HERE) else code
        print(f"| {name} | {which} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")


def run(folder: str, rows: int, rate: float, seconds: float) -> None:
    """Put batches at a rate; print the seconds that took, and a digest of the rows as JSON."""
    path = os.path.join(folder, "f.h5")
    block = np.random.default_rng(0).standard_normal((BATCH, *SHAPES["conv1_1:map"]))
    values = {"conv1_1:map": block.astype(np.float16)}
    digests = np.zeros((BATCH, 32), dtype=np.uint8)
    pause = values["conv1_1:map"].nbytes / (rate * 1e6)
    header = new_cache(path, rows, SHAPES)
    waits = []
    started = time.perf_counter()
    with Sink(CacheWriter(path, header), seconds) as sink:
        for start in range(0, rows, BATCH):
            time.sleep(pause)
            begun = time.perf_counter()
            sink.put(FeatureBatch(np.arange(start, start + BATCH), digests, values, (), 0))
            waits.append(time.perf_counter() - begun)
    took = time.perf_counter() - started
    run_of = header.feature("conv1_1:map")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(run_of.offset)
        for _ in range(rows):
            digest.update(file.read(run_of.row_bytes))
    spent = {"put": sum(waits), "most": max(waits), "all": took, "digest": digest.hexdigest()}
    print(json.dumps(spent))


if __name__ == "__main__":
    main()
