"""Read and change how Pillow decodes the pixels of an opened file.

Pillow keeps this in `ImageFile.tile`, whose arguments are private to its decoders, so only this
module reads them. If another version of Pillow has other arguments, images are read as Pillow reads
them by default, and those that need more fail one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vggfeat.errors import DecodeError

if TYPE_CHECKING:
    from PIL import Image


def raw_mode(image: Image.Image) -> str:
    """Return Pillow's name for the layout of pixels in the file; "" if unknown."""
    arguments = _first_tile(image)[3:4]
    raw = arguments[0] if arguments else ""
    if isinstance(raw, tuple):  # the layout, a stride and a direction
        raw = raw[0] if raw else ""
    return raw if isinstance(raw, str) else ""


def is_uncompressed(image: Image.Image) -> bool:
    """Return whether the file stores its pixels without compression."""
    return _first_tile(image)[:1] == ("raw",)


def set_raw_mode(image: Image.Image, raw: str) -> None:
    """Decode an opened image as if its file stored pixels in the layout `raw`."""
    if not raw_mode(image):
        raise DecodeError("16-bit channels, which this version of Pillow does not give")
    opened: Any = image  # only files that Pillow has opened have tiles
    opened.tile = [
        tile._replace(args=(raw, *tile[3][1:]) if isinstance(tile[3], tuple) else raw)
        for tile in opened.tile
    ]


def _first_tile(image: Image.Image) -> tuple[Any, ...]:
    """Return the first tile: decoder's name, box, offset and arguments; () without one."""
    tile: Any = getattr(image, "tile", None)
    return tuple(tile[0]) if tile else ()
