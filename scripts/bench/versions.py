"""CPU and wall seconds of one version of vggfeat against another: `versions.py OLD NEW IMAGES`.

OLD and NEW are folders of this repository at two commits, as `git worktree` makes them; both run
with this Python and its packages. Features of both are asserted equal before anything is timed.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

WORDS = ("--layers", "conv5_3", "--weights", "random:0", "--device", "cpu", "--quiet")


def main() -> None:
    """Time each command with both versions, in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("old", "new", "images"):
        parser.add_argument(name)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        sources = sorted(str(path) for path in Path(given.images).rglob("*") if path.is_file())
        Path(place, "one").write_text(os.path.abspath(sources[0]) + "\n")
        trees = {name: os.path.abspath(getattr(given, name)) for name in ("old", "new")}
        images = os.path.abspath(given.images)
        compare(place, trees, images)
        report(place, trees, images, given.repeats)


def compare(place: str, trees: dict[str, str], images: str) -> None:
    """Assert that both versions store the same features of all images."""
    found = {}
    for name, tree in trees.items():
        run(tree, place, ["extract", images, "--out", f"{name}.h5", *WORDS])
        run(tree, place, ["extract", "@one", "--out", f"{name}-one.h5", *WORDS])
        with h5py.File(os.path.join(place, f"{name}.h5")) as file:
            found[name] = file["images/path"][()], file["features/conv5_3"][()]
    for old, new in zip(found["old"], found["new"], strict=True):
        assert np.array_equal(old, new), "the versions disagree: nothing is timed"


def report(place: str, trees: dict[str, str], images: str, repeats: int) -> None:
    """Print medians of all commands."""
    timed: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(repeats):
        for name, tree in trees.items():
            again = ["extract", "@one", "--out", f"{name}-one.h5", *WORDS]
            commands = {
                "--help": ["--help"],
                "inspect": ["inspect", f"{name}.h5"],
                "extract, nothing to do": again,
                "extract, one image": [*again, "--fresh"],
                "extract, all images": [
                    "extract",
                    images,
                    "--out",
                    f"{name}.h5",
                    *WORDS,
                    "--fresh",
                ],
            }
            for command, words in commands.items():
                timed.setdefault((command, name), []).append(run(tree, place, words))
    print(
        "| command | old, CPU s | new, CPU s | old, wall s | new, wall s |\n|---|---|---|---|---|"
    )
    for command in dict.fromkeys(command for command, _ in timed):
        sides = [
            [statistics.median(pair[which] for pair in timed[command, name]) for name in trees]
            for which in (0, 1)
        ]
        print(f"| {command} | {' | '.join(f'{value:.2f}' for side in sides for value in side)} |")


def run(tree: str, place: str, words: list[str]) -> tuple[float, float]:
    """CPU seconds with all children, and wall seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "vggfeat", *words],
        check=True, capture_output=True, cwd=place, env={**os.environ, "PYTHONPATH": tree},
    )  # fmt: skip
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


if __name__ == "__main__":
    main()
