"""Writes the photographs of the demo, which scikit-image ships: `photographs.py FOLDER`.

FOLDER/images has each photograph, a crop of it, and itself mirrored and recoloured, in a folder for
each kind; FOLDER/more has each in grey. FOLDER/attributes.csv describes the kinds, and one of which
there are no images. The commands of
README.md and of docs/ run in FOLDER.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vggfeat.core.preprocessing import Corruption

KINDS = {
    "animals": ("chelsea", "horse"),
    "documents": ("page", "text"),
    "medicine": ("immunohistochemistry", "retina"),
    "objects": ("clock", "coffee", "coins"),
    "people": ("astronaut", "camera"),
    "space": ("hubble_deep_field", "moon", "rocket"),
    "textures": ("brick", "grass", "gravel"),
}
VERSIONS: dict[str, tuple[Corruption, ...]] = {
    "images/{}/{}.jpg": (),
    "images/{}/{}-crop.jpg": ("crop",),
    "images/{}/{}-recoloured.jpg": ("mirror", "recolour"),
    "more/{}/{}-grey.jpg": ("grey",),
}
ATTRIBUTES = """\
kind,alive,printed,made,regular,distant
animals,1,0,0,0,0
documents,0,1,1,1,0
medicine,1,0,0,1,0
objects,0,1,1,0,0
people,1,0,1,0,0
space,0,0,0,0,1
textures,0,0,0,1,0
buildings,0,0,1,1,1
"""
MOST_PIXELS = 640  # of a side


def layout() -> list[tuple[str, str, tuple[Corruption, ...]]]:
    """Return path, photograph and corruptions of every image."""
    return [
        (pattern.format(kind, name), name, corruptions)
        for kind, names in KINDS.items()
        for name in names
        for pattern, corruptions in VERSIONS.items()
    ]


def write_photographs(folder: Path) -> int:
    """Write the images and the table, and return how many images there are."""
    import skimage.data
    from PIL import Image

    from vggfeat.images.corruptions import corrupt

    for path, name, corruptions in layout():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        image = corrupt(Image.fromarray(getattr(skimage.data, name)()).convert("RGB"), corruptions)
        image.thumbnail((MOST_PIXELS, MOST_PIXELS))
        image.save(place, quality=90)
    (folder / "attributes.csv").write_text(ATTRIBUTES)
    return len(layout())


if __name__ == "__main__":
    print(f"{write_photographs(Path(sys.argv[1]))} images in {sys.argv[1]}")
