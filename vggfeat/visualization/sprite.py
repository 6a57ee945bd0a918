"""One picture with a square thumbnail of each of many images, row by row."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from vggfeat.visualization.thumbnails import picture_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vggfeat.core.preprocessing import Preprocess

_LARGEST, _SMALLEST = 160, 32  # pixels of a tile's side
_MOST_PIXELS = 1 << 25  # of the whole, which a browser holds decoded: 4 bytes each
_QUALITY = 78
_BACK = (128, 128, 128)


@dataclass(frozen=True, slots=True)
class Sprite:
    """Thumbnails of n images in one JPEG.

    Attributes:
        jpeg: the file.
        side: pixels of a tile.
        across: tiles in a row; the first image is at the top left.
        down: rows of tiles.
        missing: why an image has no tile, by its position.
    """

    jpeg: bytes
    side: int
    across: int
    down: int
    missing: dict[int, str]


def tile_side(images: int) -> int:
    """Return the side of the tiles of so many images, in pixels."""
    return max(_SMALLEST, min(_LARGEST, math.isqrt(_MOST_PIXELS // max(images, 1))))


def make_sprite(
    paths: Sequence[str | None],
    preprocess: Preprocess,
    on_progress: Callable[[int, int], None] | None = None,
) -> Sprite:
    """Load image files, cut each to its central square, and put them side by side.

    Args:
        paths: files of the images; None where there is none.
        preprocess: whose window, clip and clahe say what becomes black and white.
        on_progress: called after each image with the number seen and the number of all.
    """
    side, across = tile_side(len(paths)), max(1, math.isqrt(max(len(paths), 1) - 1) + 1)
    down = max(1, -(-len(paths) // across))
    sheet = Image.new("RGB", (across * side, down * side), _BACK)
    missing: dict[int, str] = {}
    for at, path in enumerate(paths):
        # Twice as large: of an image of 2 to 1 the square is still as large as a tile.
        with picture_of(path, 2 * side, preprocess) as picture:
            if isinstance(picture, str):
                missing[at] = picture
            else:
                tile = ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)
                sheet.paste(tile, (at % across * side, at // across * side))
        if on_progress is not None:
            on_progress(at + 1, len(paths))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=_QUALITY, optimize=True)
    return Sprite(file.getvalue(), side, across, down, missing)
