"""Render the picture of README.md: `front_page.py [--weights FILE --model vgg16]`.

It makes the demo's photographs, a cache and an explorer page of them, and a picture of the page in
a headless Chromium. The page names random weights by itself.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from photographs import write_photographs
from PIL import Image

import vggfeat

OUT = Path(__file__).parent.parent / "docs" / "explorer.webp"
LAYERS = "last(1),last(3),last(5)"
SHOWN = "i=animals/chelsea.jpg"
WIDTH, HEIGHT, SCALE = 1180, 850, 1.5  # of the window in CSS pixels; pixels of the picture to one


def render(page: Path, picture: Path) -> None:
    """Write a PNG of what a window shows of a page."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        raise SystemExit(f"front_page.py: none of {', '.join(names)} is installed")
    subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--window-size={WIDTH},{HEIGHT}", f"--force-device-scale-factor={SCALE}",
            "--virtual-time-budget=5000", f"--screenshot={picture}", f"{page.as_uri()}#{SHOWN}",
        ],
        check=True, capture_output=True,
    )  # fmt: skip


def main() -> None:
    """Do all of it in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="imagenet", help="as of `vggfeat extract`")
    parser.add_argument("--model", default="vgg19")
    parser.add_argument("--cache", type=Path, help="keep the cache here, and begin with it")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photographs(folder)
        cache = chosen.cache or folder / "demo.h5"
        settings = vggfeat.Settings.for_weights(chosen.weights, layers=LAYERS, model=chosen.model)
        vggfeat.extract(folder / "images", cache, settings, progress=True)
        vggfeat.explore(cache, folder / "explore.html")
        render(folder / "explore.html", folder / "picture.png")
        Image.open(folder / "picture.png").convert("RGB").save(chosen.out, quality=80, method=6)
    print(f"{chosen.out}: {chosen.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
