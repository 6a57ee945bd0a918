"""How pixels lie in a file that Pillow has opened.

Pillow keeps this in `ImageFile.tile`, whose arguments are private to its decoders. Nothing else
of ours looks at them. Where another version of Pillow has other ones, images are read as Pillow
reads them by itself, and those that need more fail one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vggfeat.errors import DecodeError

if TYPE_CHECKING:
    from PIL import Image, ImageFile


def raw_mode(image: Image.Image) -> str:
    """Return Pillow's name of the layout of pixels in the file; "" where it does not say."""
    arguments = _first_tile(image)[3:4]
    raw = arguments[0] if arguments else ""
    if isinstance(raw, tuple):  # the layout, a stride and a direction
        raw = raw[0] if raw else ""
    return raw if isinstance(raw, str) else ""


def is_uncompressed(image: Image.Image) -> bool:
    """Return whether the pixels of an opened image lie in the file as they are."""
    return _first_tile(image)[:1] == ("raw",)


def set_raw_mode(image: ImageFile.ImageFile, raw: str) -> None:
    """Have an opened image decoded as if its pixels lay in the file in another layout."""
    if not raw_mode(image):
        raise DecodeError("16-bit channels, which this version of Pillow does not give")
    image.tile = [
        tile._replace(args=(raw, *tile[3][1:]) if isinstance(tile[3], tuple) else raw)
        for tile in image.tile
    ]


def _first_tile(image: Image.Image) -> tuple[Any, ...]:
    """Return name of the decoder, box, offset and arguments of the first tile; () without one."""
    tile: Any = getattr(image, "tile", None)
    return tuple(tile[0]) if tile else ()
