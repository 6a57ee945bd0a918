"""Read the header of a JPEG file, and take from the file what a decoder on a device needs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

import numpy as np
from PIL import Image

from vggfeat.core.records import EncodedImage
from vggfeat.images.pillow import UPRIGHT, isolated_pillow, orientation
from vggfeat.images.resize import WINDOW_ABOVE, with_shorter_side

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vggfeat.core.preprocessing import Preprocess

DEVICE_PIXELS: Final = 2**25
"""Most pixels of an image that is decoded on a device: 100 MB there, and 400 while resized."""

_START: Final = b"\xff\xd8"
_BASELINE, _SCAN, _COMMENT = 0xC0, 0xDA, 0xFE
_JFIF, _EXIF, _ADOBE = 0xE0, 0xE1, 0xEE
_FRAMES: Final = range(0xC0, 0xD0)
_NO_FRAMES: Final = (0xC4, 0xC8, 0xCC)  # tables and an extension, numbered among the frames
_APPLICATION: Final = range(0xE0, 0xF0)
_ALONE: Final = (0x01, *range(0xD0, 0xD8))  # markers without a length
_TABLES: Final = (0xC4, 0xDB, 0xDD)  # Huffman codes, quantization, restart interval
_BITS = 8
_LONGEST_SCAN = 1 << 26  # bytes that are looked through for the end of an image

# Behind 0xff in a scan, 0 stands for 0xff itself, and 0xd0 to 0xd7 restart the decoder.
_BEHIND_SCAN: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_END: Final = b"\xff\xd9"

_SAME = 0x11  # one sample a pixel, across and down
_LUMA_SAMPLING: Final = (_SAME, 0x21, 0x12, 0x22)  # 4:4:4, 4:2:2, 4:4:0, 4:2:0
_YCBCR: Final = 1  # Adobe's number of the colour transform
_TRANSFORM_AT = 11


@dataclass(frozen=True, slots=True)
class JpegFrame:
    """The header of a JPEG's frame: ITU-T T.81, B.2.2.

    Attributes:
        planes: identifier and sampling factors, `0x22` for 2 across and 2 down, of each component.
    """

    process: int
    bits: int
    height: int
    width: int
    components: int
    planes: tuple[tuple[int, int], ...]


def jpeg_frame(stream: BinaryIO) -> JpegFrame | None:
    """Return the first frame's header; None if this is no JPEG or has none."""
    for marker, content in _segments(stream):
        if marker in _FRAMES and marker not in _NO_FRAMES:
            return _frame(marker, content)
    return None


def encoded_jpeg(stream: BinaryIO, preprocess: Preprocess, max_pixels: int) -> EncodedImage | None:
    """Return a JPEG as a decoder on a device gets it, by the file's own bytes alone.

    These are baseline JPEGs of 8 bits, grey or YCbCr, with usual subsampling, of one scan that is
    whole. Left out are metadata: the orientation in them is for the caller to apply, since some
    decoders apply it and others do not.

    Returns:
        None of anything else: no JPEG, progressive, CMYK, RGB, arithmetic coding, truncated, too
        large.
    """
    kept, seen = bytearray(_START), _Seen()
    for marker, content in _segments(stream):
        if not seen.note(marker, content):
            return None
        if (marker not in _APPLICATION and marker != _COMMENT) or seen.is_colour(marker, content):
            kept += bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content
    if seen.frame is None or not seen.scanned or not seen.fits(preprocess, max_pixels):
        return None
    scan = stream.read(_LONGEST_SCAN)
    end = _BEHIND_SCAN.search(scan)
    if end is None or end[0] != _END:
        return None
    turn = _turn(stream, max_pixels) if seen.exif and preprocess.exif == "apply" else UPRIGHT
    if turn is None:
        return None
    data = np.frombuffer(bytes(kept) + scan[: end.end()], np.uint8)
    return EncodedImage(data, seen.frame.height, seen.frame.width, turn)


@dataclass(slots=True)
class _Seen:
    """What the segments of a header said so far."""

    frame: JpegFrame | None = None
    jfif: bool = False
    adobe: int | None = None
    exif: bool = False
    scanned: bool = False

    def note(self, marker: int, content: bytes) -> bool:
        """Take note of a segment; return False if a device does not know the like of it."""
        if marker == _BASELINE and self.frame is None:
            self.frame = _frame(marker, content)
            return self.frame is not None
        if marker == _SCAN:
            self.scanned = self.frame is not None and content[:1] == bytes([self.frame.components])
            return self.scanned
        self.jfif = self.jfif or (self.is_colour(marker, content) and marker == _JFIF)
        self.exif = self.exif or marker == _EXIF
        if marker == _ADOBE and self.is_colour(marker, content):
            self.adobe = content[_TRANSFORM_AT]
        return marker in (*_TABLES, _COMMENT) or marker in _APPLICATION

    @staticmethod
    def is_colour(marker: int, content: bytes) -> bool:
        """Return whether a segment says which colours the components are."""
        if marker == _JFIF:
            return content.startswith(b"JFIF\0")
        return marker == _ADOBE and content.startswith(b"Adobe") and len(content) > _TRANSFORM_AT

    def fits(self, preprocess: Preprocess, max_pixels: int) -> bool:
        """Return whether a device knows these colours, and has room for the image."""
        frame = self.frame
        if frame is None or frame.bits != _BITS:
            return False
        samplings = [sampling for _, sampling in frame.planes]
        if frame.components == 1:
            known = samplings == [_SAME]
        else:
            named = tuple(identifier for identifier, _ in frame.planes) == (1, 2, 3)
            known = (
                samplings[1:] == [_SAME, _SAME]
                and samplings[0] in _LUMA_SAMPLING
                and (self.jfif or named if self.adobe is None else self.adobe == _YCBCR)
            )
        return known and has_room(frame, preprocess, min(max_pixels, DEVICE_PIXELS))


def has_room(frame: JpegFrame, preprocess: Preprocess, max_pixels: int) -> bool:
    """Return whether an image has pixels, and not too many, as it is and once it is resized."""
    shorter = preprocess.resize or preprocess.size
    width, height = with_shorter_side((frame.width or 1, frame.height or 1), shorter)
    return (
        0 < frame.width * frame.height <= max_pixels
        and width * height <= WINDOW_ABOVE  # beyond, only what is kept is resized
    )


def _segments(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of each segment up to that before the first scan, or to damage.

    Then the stream is at the first byte of the scan.
    """
    stream.seek(0)
    if stream.read(2) != _START:
        return
    while (marker := _next_marker(stream)) is not None:
        if marker in _ALONE:
            continue
        length = int.from_bytes(stream.read(2), "big")
        content = stream.read(max(0, length - 2))
        if length < 2 or len(content) < length - 2:  # noqa: PLR2004 its own two bytes
            return
        yield marker, content
        if marker == _SCAN:
            return


def _next_marker(stream: BinaryIO) -> int | None:
    """Return the code of the next marker, behind any fill bytes; None if there is none here."""
    if stream.read(1) != b"\xff":
        return None
    code = stream.read(1)
    while code == b"\xff":
        code = stream.read(1)
    return code[0] if code else None


def _frame(marker: int, content: bytes) -> JpegFrame | None:
    head, planes = content[:6], content[6:]
    if len(head) < 6 or len(planes) < 3 * head[5]:  # noqa: PLR2004 bytes
        return None
    height, width = int.from_bytes(head[1:3], "big"), int.from_bytes(head[3:5], "big")
    pairs = tuple((planes[at], planes[at + 1]) for at in range(0, 3 * head[5], 3))
    return JpegFrame(marker, head[0], height, width, head[5], pairs)


def _turn(stream: BinaryIO, max_pixels: int) -> int | None:
    """Return the EXIF orientation as Pillow reads it; None if Pillow does not open the file."""
    stream.seek(0)
    try:
        with isolated_pillow(max_pixels):
            return orientation(Image.open(stream, formats=("JPEG",)))
    except Exception:  # noqa: BLE001 plugins raise nearly anything; decoding by Pillow says what
        return None
