"""Loading by several ways, in turns: `loading.py OLD PHOTOS TINY`.

OLD is a folder of this repository at an earlier commit, as `git worktree` makes it; PHOTOS and TINY
are folders of images. Each way runs in a process of its own, which loads all images whenever it is
told to. Pixels and digests of all ways are asserted equal before anything is timed. CPU seconds are
those of the process and all its workers.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import math
import mmap
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from vggfeat.core.settings import Settings
from vggfeat.images.loader import load_batches
from vggfeat.images.sources import discover

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from vggfeat.images.image_list import ImageList

    Batch = tuple[torch.Tensor, bytes]
    """(B, H, W, C) uint8 and the digests of its images."""

WAYS = {
    "before": "the pool of the earlier commit",
    "now": "SupervisedLoader",
    "torch": "torch's DataLoader, tensors in /dev/shm",
    "anonymous": "torch's DataLoader, pixels in anonymous memory",
}
SIDE = 224
SLEEP = 0.02
"""Seconds that stand for a device computing a batch."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is loaded: a name, a folder, sizes, and the seconds slept after each batch."""

    name: str
    folder: str
    images: int
    batch: int
    workers: int
    side: int
    sleep: float


def main() -> None:
    """Compare the ways, or be one of them."""
    if len(sys.argv) > 1 and sys.argv[1] == "--way":
        be(sys.argv[2], Load(**json.loads(sys.argv[3])))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("old", "photos", "tiny"):
        parser.add_argument(name)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    photos, tiny = os.path.abspath(given.photos), os.path.abspath(given.tiny)
    print(
        "| load | way | wall, of before | CPU, of before | CPU ms an image |\n|---|---|---|---|---|"
    )
    for load in (
        Load("photographs, 2 workers", photos, 120, 12, 2, SIDE, 0.0),
        Load(f"the same, {SLEEP * 1000:g} ms of sleep a batch", photos, 120, 12, 2, SIDE, SLEEP),
        Load(f"960 photographs, {SLEEP * 1000:g} ms of sleep", photos, 960, 12, 2, SIDE, SLEEP),
        Load("tiny images, 16 workers", tiny, 4096, 256, 16, 32, 0.0),
    ):
        compare(load, os.path.abspath(given.old), given.rounds)


def compare(load: Load, old: str, rounds: int) -> None:
    """Print the rows of one load."""
    here = str(Path(__file__).parents[2])
    ways = {
        way: subprocess.Popen(
            [sys.executable, __file__, "--way", way, json.dumps(dataclasses.asdict(load))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": old if way == "before" else here},
        )
        for way in WAYS
    }  # fmt: skip
    first = {way: turn(process) for way, process in ways.items()}
    assert len({one["sum"] for one in first.values()}) == 1, "the ways disagree: nothing is timed"
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in sorted(ways, reverse=bool(number % 2)):
            found[way].append(turn(ways[way]))
    for process in ways.values():
        process.communicate()
    for way, title in WAYS.items():
        wall, cpu = (
            statistics.median(
                one[unit] / base[unit]
                for one, base in zip(found[way], found["before"], strict=True)
            )
            for unit in ("wall", "cpu")
        )
        each = statistics.median(one["cpu"] for one in found[way]) / load.images * 1000
        print(f"| {load.name} | {title} | {wall:.3f} | {cpu:.3f} | {each:.2f} |", flush=True)


def turn(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Have a way load everything once."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    return answer


def be(way: str, load: Load) -> None:
    """Load everything for each line of standard input; print a line of JSON each time."""
    torch.set_num_threads(1)
    images = discover([load.folder])
    rows = np.arange(load.images, dtype=np.int64) % len(images)
    plan = rows.reshape(-1, load.batch)
    settings = Settings(
        layers="fc7", size=load.side, resize=256 if load.side == SIDE else load.side
    )
    for number, _ in enumerate(sys.stdin):
        check = hashlib.sha256()
        before, started = cpu_seconds(), time.perf_counter()
        for pixels, digests in ways_of(way)(images, plan, settings, load.workers):
            time.sleep(load.sleep)
            if not number:
                check.update(pixels.numpy().tobytes() + digests)
        wall = time.perf_counter() - started
        answer = {"wall": wall, "cpu": cpu_seconds() - before, "sum": check.hexdigest()}
        print(json.dumps(answer), flush=True)


def ways_of(name: str) -> Any:
    """Return the function of a way."""
    return {"before": before, "now": now, "torch": by_torch, "anonymous": anonymous}[name]


def cpu_seconds() -> float:
    """User and system seconds of this process and of its children that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def before(
    images: ImageList, plan: NDArray[np.int64], settings: Settings, workers: int
) -> Iterator[Batch]:
    """Load by the pool of before `SupervisedLoader`, whose loader took a function."""
    opener: Any = images.open
    for batch in load_batches(opener, plan, settings, workers=workers, pin=False):
        yield batch.images, batch.digests.tobytes()


def now(
    images: ImageList, plan: NDArray[np.int64], settings: Settings, workers: int
) -> Iterator[Batch]:
    """Load as `extract` does."""
    from vggfeat.images.dataset import ImageDataset

    dataset = ImageDataset(images, settings)
    for batch in load_batches(dataset, plan, settings, workers=workers, pin=False):
        yield batch.images, batch.digests.tobytes()


class Bare(Dataset[Any]):
    """Items without supervision, isolation or failures: the least that torch's workers must do."""

    def __init__(
        self, images: ImageList, settings: Settings, ring: NDArray[np.uint8] | None = None
    ) -> None:
        from vggfeat.images.dataset import ImageDataset

        self._decode, self._ring = ImageDataset(images, settings).decode, ring

    def __getitem__(self, index: Any) -> Any:
        if self._ring is None:
            return self._decode(index)
        buffer, slot, row = index
        digest, self._ring[buffer, slot] = self._decode(row)
        return buffer, digest


def stack(items: Sequence[tuple[bytes, NDArray[np.uint8]]]) -> Batch:
    """Make a batch as torch does, in a worker in shared memory."""
    pixels: torch.Tensor = default_collate([pixels for _, pixels in items])
    return pixels, b"".join(digest for digest, _ in items)


def by_torch(
    images: ImageList, plan: NDArray[np.int64], settings: Settings, workers: int
) -> Iterator[Batch]:
    """Load by torch's own workers and collate."""
    yield from DataLoader(
        Bare(images, settings), batch_sampler=plan.tolist(), num_workers=workers, collate_fn=stack
    )


def anonymous(
    images: ImageList, plan: NDArray[np.int64], settings: Settings, workers: int
) -> Iterator[Batch]:
    """Load by torch's own workers, which write pixels to memory that the parent mapped."""
    buffers = 2 * workers + 1  # torch's prefetch_factor, and the batch that is read
    shape = (buffers, plan.shape[1], *(settings.preprocess().size,) * 2, 3)
    ring = np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)
    indices = [
        [(number % buffers, slot, row) for slot, row in enumerate(batch)]
        for number, batch in enumerate(plan.tolist())
    ]
    copied = functools.partial(torch.tensor, dtype=torch.uint8)
    for items in DataLoader(
        Bare(images, settings, ring), batch_sampler=indices, num_workers=workers, collate_fn=list
    ):
        yield copied(ring[items[0][0]]), b"".join(digest for _, digest in items)


if __name__ == "__main__":
    main()
