"""Size and speed of an explorer page: `explore.py FOLDER [COUNT ...]`.

Makes for each COUNT (5000 and 20000 without) a cache of five layers with as many images, further
names of the photographs in FOLDER, with features made up, writes its page, and opens that in
headless Chromium. Prints the size of the file, the seconds it took to write, and, as the browser
measures them, the milliseconds to the first paint, until the page can be used, and of a click on an
image, the median of ten: until all columns are computed, and until they and the map are drawn by
the CPU.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from caches import new_cache

import vggfeat

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from browser import Browser

if TYPE_CHECKING:
    from vggfeat.cache.format import Header

WIDTHS = {"conv1_2": 64, "conv3_3": 256, "conv4_3": 512, "conv5_3": 512, "fc7": 4096}
LATENT = 512
DONE = 1

CLICK = """(async () => {
  const times = [[], []];
  const buttons = document.querySelectorAll('#grid button');
  for (let number = 1; number <= 10; number++) {
    const before = performance.now();
    buttons[number].click();
    times[0].push(performance.now() - before);
    await new Promise(resolve => requestAnimationFrame(() => setTimeout(resolve)));
    times[1].push(performance.now() - before);
  }
  return times;
})()"""
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
READY = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"


def main() -> None:
    """Measures pages of each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("counts", type=int, nargs="*", default=(5000, 20000))
    given = parser.parse_args()
    photographs = sorted(path for path in given.folder.iterdir() if path.is_file())
    heads = ("images", "MB", "seconds to write", "ten nearest kept", "first paint, ms",
             "usable, ms", "click, ms", "click and drawing, ms")  # fmt: skip
    print(f"| {' | '.join(heads)} |")
    print("|---|---|---|---|---|---|---|---|")
    for count in given.counts:
        with tempfile.TemporaryDirectory() as folder:
            measure(count, photographs, Path(folder))


def measure(count: int, photographs: list[Path], folder: Path) -> None:
    """Prints the line of one page."""
    images = folder / "images"
    images.mkdir()
    for row in range(count):
        os.symlink(photographs[row % len(photographs)], images / f"{row:09}.jpg")
    cache = make_cache(folder / "feats.h5", count)
    page = folder / "explore.html"
    started = time.perf_counter()
    report = vggfeat.explore(cache, page, most=count, root=images)
    seconds = time.perf_counter() - started
    kept = min(layer.kept for layer in report.layers)
    browser = Browser(folder / "profile")
    try:
        browser.open(page.as_uri())
        browser.wait(f"({PAINT}) !== undefined")
        paint, ready = browser.value(PAINT), browser.value(READY)
        clicks = browser.send(
            "Runtime.evaluate", expression=CLICK, returnByValue=True, awaitPromise=True
        )["result"]["value"]
    finally:
        browser.close()
    computed, drawn = map(statistics.median, clicks)
    times = f"{paint:.0f} | {ready:.0f} | {computed:.0f} | {drawn:.0f}"
    print(f"| {count} | {report.bytes / 1e6:.1f} | {seconds:.0f} | {kept:.1%} | {times} |")


def make_cache(path: Path, count: int) -> Path:
    """A cache of features whose variance falls with 1 / i, behind a ReLU, as a network's does."""
    noise = np.random.default_rng(0)
    shapes = {name: (width,) for name, width in WIDTHS.items()}
    latent = noise.standard_normal((count, LATENT)).astype("f4") / np.sqrt(np.arange(1, LATENT + 1))

    def fill(handle: int, header: Header) -> None:
        for name, width in WIDTHS.items():
            axes = noise.standard_normal((LATENT, width)).astype("f4")
            rows = np.maximum(latent @ axes, 0)
            os.pwrite(handle, rows.astype("<f2").tobytes(), header.runs[f"features/{name}"].offset)
        os.pwrite(handle, bytes([DONE]) * count, header.runs["images/state"].offset)

    new_cache(str(path), count, shapes, fill)
    return path


if __name__ == "__main__":
    main()
