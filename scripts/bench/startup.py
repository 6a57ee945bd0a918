"""CPU and wall seconds of commands as whole processes: `startup.py [IMAGES]`.

Without a folder of images only the commands that read none are timed.
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

REPEATS = 7


def main() -> None:
    """Times each command a few times, one after the other in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="?")
    images = parser.parse_args().images
    with tempfile.TemporaryDirectory() as folder:
        commands = {"--help": ["--help"], "layers": ["layers"]}
        if images:
            cache = os.path.join(folder, "feats.h5")
            first = os.path.join(folder, "list")
            names = sorted(str(path) for path in Path(images).rglob("*") if path.is_file())
            Path(first).write_text(names[0] + "\n")
            words = ["--layers", "conv5_3", "--weights", "random:0", "--quiet"]
            run(["extract", f"@{first}", "--out", cache, *words])
            again = ["extract", f"@{first}", "--out", cache, *words]
            one = ["extract", f"@{first}", "--out", cache, *words, "--fresh"]
            commands |= {
                "inspect": ["inspect", cache],
                "extract, nothing to do": again,
                "extract, one image": one,
            }
        report(commands)


def report(commands: dict[str, list[str]]) -> None:
    """Medians of all commands, timed in turns."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(REPEATS):
        for name, words in commands.items():
            found[name].append(run(words))
    print("| command | CPU s | wall s |\n|---|---|---|")
    for name, pairs in found.items():
        cpu, wall = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(f"| {name} | {cpu:.2f} | {wall:.2f} |")


def run(words: list[str]) -> tuple[float, float]:
    """CPU seconds with all children, and wall seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "vggfeat", *words], check=True, capture_output=True)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


if __name__ == "__main__":
    main()
