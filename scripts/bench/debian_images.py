"""Images of Debian packages as a gallery and as labelled sets, for layers.py and labelled.py.

debian_images.py PACKAGES OUT

PACKAGES is a folder into which these packages are unpacked (`apt-get download`, `dpkg-deb -x`):
tuxpaint-stamps-default, mate-backgrounds, ukui-wallpapers, lomiri-wallpapers-16.04,
lomiri-wallpapers-20.04, plasma-workspace-wallpapers, opencv-doc, openarena-081-textures (with
pak4-textures.pk3 unzipped beside it) and stellarium-data. Writes below OUT:

stamps/      pictures of objects on white, most of them photographs; their categories in stamps.csv
wallpapers/  four quarters of each landscape wallpaper
opencv/      sample pictures
textures/    a folder for each texture with its four quarters
skycultures/ a folder for each artist's or culture's drawings of constellations
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 320
"""Pixels of the shorter side at most, so that decoding is quick."""

TEXTURES = 50
DRAWINGS = (8, 30)  # at least and at most, of a culture
NO_PHOTOGRAPHS = (
    "cartoon", "symbols", "clothes", "easter", "hedgehog", "pizza", "santa", "people/body",
    "fireworks", "naturalforces", "new", "tree1", "hanukkah", "christmas_tree", "roadsigns",
    "restroom",
)  # fmt: skip
COPIES = ("chinese_contemporary", "chinese", "japanese_moon_stations")  # of another, or writing
WHITE, BLACK = (255, 255, 255, 255), (0, 0, 0, 255)

Image.MAX_IMAGE_PIXELS = None


def main() -> None:
    """Writes all folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    for make in (stamps, wallpapers, opencv, textures, skycultures):
        print(make.__name__, make(given.packages, given.out / make.__name__))


def stamps(packages: Path, out: Path) -> int:
    """Pictures of Tux Paint but for drawings, each in the middle of a white square."""
    root = packages / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    labels = []
    for path in sorted(root.rglob("*.png")):
        name = str(path.relative_to(root).with_suffix(""))
        if path.stat().st_size < 15_000 or any(word in f"{name}.png" for word in NO_PHOTOGRAPHS):
            continue
        stamp = Image.open(path).convert("RGBA")
        side = max(stamp.size)
        square = Image.new("RGBA", (side, side), WHITE)
        square.alpha_composite(stamp, ((side - stamp.width) // 2, (side - stamp.height) // 2))
        file = f"{name.replace('/', '__')}.jpg"
        if save(square, out / file):
            labels.append(f"{file},{'/'.join(name.split('/')[:-1][:2])}\n")
    out.with_suffix(".csv").write_text("path,label\n" + "".join(labels))
    return len(labels)


def wallpapers(packages: Path, out: Path) -> int:
    """Quarters of wallpapers that are wider than high, one of each name."""
    names = ("mate-backgrounds", "ukui-wallpapers", "lomiri-wallpapers-16.04",
             "lomiri-wallpapers-20.04", "plasma-workspace-wallpapers")  # fmt: skip
    done: set[str] = set()
    count = 0
    for path in (one for name in names for one in sorted((packages / name).rglob("*"))):
        parts = path.parts
        if path.suffix.lower() not in (".jpg", ".png") or path.is_symlink():
            continue
        name = path.stem.split("_")[0]
        if "wallpapers" in parts:  # wallpapers/NAME/contents/images/3840x2160.png
            name = parts[parts.index("wallpapers") + 1]
        if "screenshot" in path.name or "images_dark" in parts or name in done:
            continue
        if path.stat().st_size <= 70_000 or "Ubuntu-Mate" in name or "Stripes" in name:
            continue
        with Image.open(path) as image:
            if image.width < 1.2 * image.height:
                continue
            done.add(name)
            count += save_quarters(image.convert("RGB"), f"{out}/{name}_")
    return count


def opencv(packages: Path, out: Path) -> int:
    """Sample pictures of OpenCV but for chessboards."""
    folder = packages / "opencv-doc/usr/share/doc/opencv-doc/examples/data"
    paths = [path for path in sorted(folder.iterdir()) if path.suffix in (".jpg", ".png")]
    return sum(
        save(Image.open(path), out / f"{path.stem}.jpg")
        for path in paths
        if path.stat().st_size > 20_000 and not path.name.startswith(("left", "right", "chess"))
    )


def textures(packages: Path, out: Path) -> int:
    """Quarters of some textures of 256 pixels or more, a folder a texture."""
    root = packages / "openarena-081-textures/t/textures"
    paths = [
        path
        for path in sorted(root.rglob("*.jpg"))
        if not {"sfx", "skies"} & set(path.parts) and min(Image.open(path).size) >= 256
    ]
    random.Random(0).shuffle(paths)
    chosen = [path for path in paths if not is_blank(Image.open(path))][:TEXTURES]
    return sum(
        save_quarters(Image.open(path), f"{out}/{path.parent.name}__{path.stem}/", ".png")
        for path in chosen
    )


def skycultures(packages: Path, out: Path) -> int:
    """Drawings of Stellarium on black, a folder a culture, whose drawings have one style."""
    count = 0
    for folder in sorted((packages / "stellarium-data/usr/share/stellarium/skycultures").iterdir()):
        paths = sorted(folder.glob("*.png"))
        drawings = [path for path in paths if min(Image.open(path).size) >= 100]
        drawings = [path for path in drawings if not is_blank(on(Image.open(path), BLACK))]
        random.Random(1).shuffle(drawings)
        if folder.name in COPIES or len(drawings) < DRAWINGS[0]:
            continue
        count += sum(
            save(on(Image.open(path), BLACK), out / folder.name / f"{path.stem}.jpg")
            for path in drawings[: DRAWINGS[1]]
        )
    return count


def on(image: Image.Image, colour: tuple[int, int, int, int]) -> Image.Image:
    """The image over a plain colour."""
    below = Image.new("RGBA", image.size, colour)
    below.alpha_composite(image.convert("RGBA"))
    return below.convert("RGB")


def is_blank(image: Image.Image) -> bool:
    """Whether next to nothing is seen."""
    return float(np.asarray(image.convert("L").resize((32, 32))).std()) < 6


def save_quarters(image: Image.Image, begin: str, ending: str = ".jpg") -> int:
    """Writes the four quarters of an image that are not blank; returns how many."""
    width, height = image.size
    across, down = width // 2, height // 2
    boxes = [(0, 0, across, down), (across, 0, width, down), (0, down, across, height),
             (across, down, width, height)]  # fmt: skip
    return sum(save(image.crop(box), Path(f"{begin}{i}{ending}")) for i, box in enumerate(boxes))


def save(image: Image.Image, out: Path) -> int:
    """Writes an image of which something is seen, its shorter side at most `SIDE`: 1, or 0."""
    if image.mode == "I;16" or is_blank(image):
        return 0
    shown = on(image, WHITE)
    shrunk = SIDE / min(shown.size)
    if shrunk < 1:
        size = (round(shown.width * shrunk), round(shown.height * shrunk))
        shown = shown.resize(size, Image.Resampling.LANCZOS)
    out.parent.mkdir(parents=True, exist_ok=True)
    shown.save(out, quality=95)
    return 1


if __name__ == "__main__":
    main()
