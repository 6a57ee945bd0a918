"""Image formats that Pillow reads only with a package of an extra: HEIC and JPEG XL."""

from __future__ import annotations

import sys
from typing import Any, BinaryIO, Final

from PIL import Image

from vggfeat.core.optional import install_command
from vggfeat.errors import DecodeError

_HEIC_BRANDS: Final = frozenset(b"heic heix heim heis hevc hevx hevm hevs mif1 msf1".split())
_AVIF_BRANDS: Final = frozenset((b"avif", b"avis"))
_JXL_CODESTREAM: Final = b"\xff\x0a"
_JXL_CONTAINER: Final = b"\x00\x00\x00\x0cJXL \r\n\x87\n"
_LONGEST_SIZE_HEADER: Final = 10  # bytes, the mark included
_SIDE_BITS: Final = (9, 13, 18, 30)
_ASPECTS: Final = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))

PLUGINS: Final = ("pillow_heif.as_plugin", "pillow_jxl.JpegXLImagePlugin")
"""Modules that register with Pillow what Pillow lacks."""


def thread_settings() -> list[tuple[Any, str, Any]]:
    """Return (place, name, value) by which these libraries decode in one thread each.

    Images are decoded in processes already, one a core. `PLUGINS` must have been imported.
    """
    # Not imported here: looking for a module that is not installed takes 0.3 ms, of every image.
    options = (("pillow_heif.options", 1), ("pillow_jxl.JpegXLImagePlugin", 0))
    return [
        (sys.modules[name], "DECODE_THREADS", value)
        for name, value in options
        if name in sys.modules
    ]


def lacking(stream: BinaryIO) -> str:
    """Say what is needed to read a stream that Pillow did not recognize; "" if nothing is."""
    stream.seek(0)
    head = stream.read(12)
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    if brand in _AVIF_BRANDS and "AVIF" not in Image.SAVE:
        return "AVIF, which needs Pillow 11.3 or newer"
    if brand in _HEIC_BRANDS and "HEIF" not in Image.OPEN:
        return f"HEIC, which needs pillow-heif: {install_command('heif')}"
    if is_jpeg_xl(head) and "JXL" not in Image.OPEN:
        return f"JPEG XL, which needs pillow-jxl-plugin: {install_command('jxl')}"
    return ""


def is_jpeg_xl(head: bytes) -> bool:
    """Return whether the first 12 bytes of a file are those of JPEG XL."""
    return head.startswith((_JXL_CODESTREAM, _JXL_CONTAINER))


def check_jpeg_xl_size(stream: BinaryIO, max_pixels: int | None) -> None:
    """Refuse a JPEG XL image of too many pixels.

    Its plugin decodes while it opens, before Pillow's own check.

    Raises:
        DecodeError: no size is found.
        DecompressionBombError: more than `max_pixels`.
    """
    stream.seek(0)
    if not is_jpeg_xl(stream.read(12)):
        return
    width, height = _jpeg_xl_size(stream)
    if max_pixels is not None and width * height > max_pixels:
        raise Image.DecompressionBombError(f"{width * height} pixels")


def _jpeg_xl_size(stream: BinaryIO) -> tuple[int, int]:
    """Return width and height by the header of the codestream (ISO/IEC 18181-1, SizeHeader)."""
    head = _codestream(stream)
    if not head.startswith(_JXL_CODESTREAM):
        raise DecodeError("truncated: JPEG XL without a codestream")
    bits = _Bits(head[len(_JXL_CODESTREAM) :])
    small = bits.take(1)

    def side() -> int:
        return (bits.take(5) + 1) * 8 if small else bits.take(_SIDE_BITS[bits.take(2)]) + 1

    height = side()
    aspect = bits.take(3)
    if aspect == 0:
        return side(), height
    across, down = _ASPECTS[aspect - 1]
    return height * across // down, height


def _codestream(stream: BinaryIO) -> bytes:
    """Return the first bytes of the codestream, which stands alone or in boxes (18181-2)."""
    stream.seek(0)
    head = stream.read(len(_JXL_CONTAINER))
    if head.startswith(_JXL_CODESTREAM):
        stream.seek(0)
        return stream.read(_LONGEST_SIZE_HEADER)
    place = len(head)
    while True:
        stream.seek(place)
        box = stream.read(16)
        length, kind, start = int.from_bytes(box[:4], "big"), box[4:8], 8
        if length == 1:
            length, start = int.from_bytes(box[8:16], "big"), 16
        if kind in (b"jxlc", b"jxlp"):
            stream.seek(place + start + 4 * (kind == b"jxlp"))  # a part begins with its number
            return stream.read(_LONGEST_SIZE_HEADER)
        if length < start:  # 0, the rest of the file, or damage
            return b""
        place += length


class _Bits:
    """Bits of a header, the least significant of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._left, self._count = int.from_bytes(data, "little"), len(data) * 8

    def take(self, count: int) -> int:
        """Return the next bits as a number."""
        if count > self._count:
            raise DecodeError("truncated: JPEG XL without a size")
        value = self._left & ((1 << count) - 1)
        self._left >>= count
        self._count -= count
        return value
