"""From the bytes of an image file to the pixels the network sees: uint8 RGB, (H, W, 3).

Geometry is done by Pillow on the Pillow image, so it equals torchvision's own transform byte for
byte. Whatever is wrong with a file's content ends in a `DecodeError` with a short reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import re
import warnings
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from vggfeat.alterations import alter
from vggfeat.errors import DecodeError
from vggfeat.opening import open_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from PIL import ImageFile

    from vggfeat.preprocess import Preprocess

WINDOW_ABOVE: Final = 2**26
"""Resized pixels beyond which only the part that is kept is computed (256 MiB in Pillow).

Up to here a resize is torchvision's to the byte; beyond, to within one grey level.
"""

READ_AT_ONCE: Final = 1 << 26
"""Bytes of a file that are held in memory to be hashed and decoded in one reading."""

REASON_LENGTH: Final = 150
"""Most characters in a reason."""

_GAP = 2  # how many times the size needed a JPEG must stay when it is shrunk while decoding
_LONGEST_NUMBER = 20  # digits
_LONGEST_TEXT = 1 << 24  # bytes of one text or profile in a PNG; Pillow's own limit is 1 MiB
_ORIENTATION = 0x0112
_TIFF_BITS_PER_SAMPLE = 258

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INVERSE = {6: 8, 8: 6}  # all others undo themselves

_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# Its complaints name no file; what fails says why, and the rest is no matter.
logging.getLogger("PIL").addHandler(logging.NullHandler())
logging.getLogger("PIL").propagate = False

_HEADER_ONLY = ("PNG", "JPEG", "TIFF", "BMP", "GIF")  # opening these costs nothing, however large


def pixel_type(preprocess: Preprocess) -> type[np.uint8 | np.uint16]:
    """The type of decoded pixels."""
    return np.uint8 if preprocess.depth == 8 else np.uint16  # noqa: PLR2004 bits


def decode_file(path: bytes, preprocess: Preprocess, max_pixels: int) -> NDArray[np.uint8]:
    """The pixels of the image file `path`; see `decode`.

    Raises:
        DecodeError: there is no such regular file, it may not be read, or it holds no image.
    """
    with open_file(path) as stream:
        return decode(stream, preprocess, max_pixels)


def read_digest(stream: BinaryIO) -> tuple[bytes, BinaryIO]:
    """SHA-256 of all bytes of a stream, and a stream of the same bytes to decode from.

    Up to 64 MiB are read once and kept; of more, only the digest is.
    """
    start = stream.read(READ_AT_ONCE)
    digest = hashlib.sha256(start)
    if len(start) < READ_AT_ONCE:
        return digest.digest(), io.BytesIO(start)
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.digest(), stream


def decode(stream: BinaryIO, preprocess: Preprocess, max_pixels: int) -> NDArray[np.uint8]:
    """The first image in a seekable stream, coloured, turned, altered, resized and cut.

    While it runs, Pillow's pixel limit and the warning filters of the process are its own, so
    other threads that use Pillow should not run beside it; worker processes may.

    Returns:
        uint8 RGB, (H, W, 3), C-contiguous and writable. H = W = `preprocess.size`, but for
        `crop="none"`, where that is the shorter side.

    Raises:
        DecodeError: empty, no image, truncated, damaged, or more than `max_pixels` pixels.
    """
    with _pillow_to_ourselves(max_pixels):
        try:
            image = alter(_load(stream, preprocess), preprocess.augment)
            return np.array(_fit(image, preprocess, max_pixels))
        except DecodeError:
            raise
        except _BOMBS as error:
            raise DecodeError(_bomb(stream, str(error), max_pixels)) from error
        except Exception as error:  # plugins raise nearly anything on broken data
            raise DecodeError(_reason(error)) from error


@contextlib.contextmanager
def _pillow_to_ourselves(max_pixels: int) -> Iterator[None]:
    """Set Pillow's limits for a while, raise where it would warn of them, silence other warnings.

    Pillow checks right after a header is read, the outer one and those inside: an ICO, for one,
    is decoded while it is opened.
    """
    limit, text_limit = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
    Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = max_pixels, _LONGEST_TEXT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = limit, text_limit


def _load(stream: BinaryIO, preprocess: Preprocess) -> Image.Image:
    """The whole image in mode RGB, upright if `preprocess.exif` says so."""
    image = _open(stream)
    # Of what is cut too few pixels would be left; and noise is another one at another scale.
    shrinks = preprocess.decode == "fast" and not preprocess.augment
    if shrinks and image.format in ("JPEG", "MPO"):
        _shrink_on_load(image, preprocess)
    _match_key_to_pixels(image)
    # Pillow turns a TIFF while loading it and drops the tag: then there is nothing left to do, but
    # something to undo.
    turned = _orientation(image) if image.format == "TIFF" else 1
    with _silent_stderr() if image.format == "TIFF" else contextlib.nullcontext():
        image.load()
    rgb = _rgb(image)
    if preprocess.exif == "apply":
        return _turn(rgb, _orientation(image))
    return _turn(rgb, _INVERSE.get(turned, turned))


def _shrink_on_load(image: ImageFile.ImageFile, preprocess: Preprocess) -> None:
    """Has libjpeg leave out the finest frequencies, as long as enough pixels for a resize stay."""
    needed = preprocess.resize or preprocess.size
    side = max(image.size) if preprocess.crop == "pad" else min(image.size)
    factor = side // (_GAP * needed)
    if factor > 1:
        # Pillow takes the largest of 8, 4, 2, 1 that leaves no side smaller than asked for.
        image.draft(None, (image.width // factor, image.height // factor))


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Has libtiff, which writes what it dislikes to standard error by itself, write to nowhere."""
    try:
        kept = os.dup(2)
    except OSError:  # closed already, as some daemons start their children
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _open(stream: BinaryIO) -> ImageFile.ImageFile:
    stream.seek(0)
    if not stream.read(1):
        raise DecodeError("empty file")
    image = Image.open(stream)
    if image.format == "EPS":
        raise DecodeError("EPS, a program for Ghostscript; it is not run")
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or it makes no sense."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 broken EXIF says nothing about the pixels, which may be fine
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _match_key_to_pixels(image: ImageFile.ImageFile) -> None:
    """Bring a PNG's transparent colour, given in the file's bit depth, to that of the pixels."""
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None:
        return
    raw = image.tile[0][3]
    if raw in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if raw == "L;2" else 17)
    elif raw == "RGB;16B":  # Pillow keeps the upper byte of each channel
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _rgb(image: Image.Image) -> Image.Image:
    """`image` in mode RGB; what is transparent shows white."""
    if image.mode[0] in "IF":
        return Image.fromarray(_grey(image)).convert("RGB")
    if image.has_transparency_data:
        return _on_white(image)
    # convert() copies even what is RGB already.
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # Pillow would go by L, and lose what is transparent
        image = image.convert("LA")
    layer = image.convert("RGBA")
    white = Image.new("RGB", layer.size, "white")
    white.paste(layer, mask=layer)
    return white


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels of more than 8 bits as uint8, (H, W).

    Sixteen unsigned bits are divided by 257. Of 32-bit integers and floats no file says what
    white is, so it goes by what they hold: see `_grey_by_range`.
    """
    values = np.asarray(image)
    # Before version 11.3 Pillow gave 16-bit PNG as 32-bit integers, and still does so for PGM.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        return _grey_by_range(values)
    grey = _grey_of_full_scale(values, _white_level(image))
    key = image.info.get("transparency")
    return grey if key is None else np.where(values == key, np.uint8(255), grey)


def _white_level(image: Image.Image) -> int:
    tags: Any = getattr(image, "tag_v2", {})
    return 4095 if tags.get(_TIFF_BITS_PER_SAMPLE) == (12,) else 65535


def _grey_of_full_scale(values: NDArray[Any], white: int) -> NDArray[np.uint8]:
    """Integers 0..white as uint8 0..255, to the nearest."""
    return ((values.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)


def _grey_by_range(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Integers or floats of unknown range as uint8, (H, W).

    Floats within [0, 1] are multiplied by 255; anything within [0, 255] stays; integers within
    [0, 65535] are divided by 257; else the lowest becomes 0 and the highest 255, or all 0 where
    they are one. NaN is 0, infinities are the finite extremes.
    """
    exact = values.astype(np.float64)
    finite = exact[np.isfinite(exact)]
    if not finite.size:
        return np.zeros(values.shape, np.uint8)
    low, high = float(finite.min()), float(finite.max())
    offset, factor = _linear(low, high, whole=values.dtype.kind == "i")
    grey = np.rint((exact.clip(low, high) - offset) * factor)
    grey[np.isnan(exact)] = 0
    return grey.astype(np.uint8)


def _linear(low: float, high: float, *, whole: bool) -> tuple[float, float]:
    """Offset and factor that bring values from `low` to `high` into 0..255."""
    if low >= 0:
        if high <= 1 and not whole:
            return 0.0, 255.0
        if high <= 255:  # noqa: PLR2004 white in eight bits
            return 0.0, 1.0
        if high <= 65535 and whole:  # noqa: PLR2004 white in sixteen bits
            return 0.0, 1 / 257
    return low, 255 / (high - low) if high > low else 0.0


def _fit(image: Image.Image, preprocess: Preprocess, max_pixels: int) -> Image.Image:
    """Resize and cut an RGB image as `preprocess.crop` says."""
    size = preprocess.size
    if preprocess.crop == "center":
        return _centre(image, preprocess.resize or size, size)
    if preprocess.crop == "squash":
        return _resized(image, (size, size))
    if preprocess.crop == "pad":
        return _padded(image, size, preprocess.fill)
    width, height = with_shorter_side(image.size, size)
    if width * height > max_pixels:
        what = "too large once resized for crop none"
        raise DecodeError(_too_large(what, f"{width} x {height}", max_pixels))
    return _resized(image, (width, height))


def with_shorter_side(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Width and height in the proportion of `size`, rounded down as torchvision does."""
    width, height = size
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def _centre(image: Image.Image, resize: int, size: int) -> Image.Image:
    """Shorter side to `resize`, then size x size from the middle; torchvision's arithmetic."""
    whole = with_shorter_side(image.size, resize)
    left, top = (round((side - size) / 2.0) for side in whole)
    window = (left, top, left + size, top + size)
    if whole[0] * whole[1] > WINDOW_ABOVE:
        return _resized_window(image, whole, window)
    return _resized(image, whole).crop(window)


def _resized_window(
    image: Image.Image, whole: tuple[int, int], window: tuple[int, int, int, int]
) -> Image.Image:
    """What `image.resize(whole).crop(window)` shows, without the rest ever being computed."""
    across, down = image.width / whole[0], image.height / whole[1]
    left, top, right, bottom = window
    box = (
        left * across,
        top * down,
        min(right * across, image.width),  # rounding must not lead beyond the edge
        min(bottom * down, image.height),
    )
    return image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=box)


def _padded(image: Image.Image, size: int, fill: tuple[int, ...]) -> Image.Image:
    """Longer side to `size`, the rest filled up equally on both sides."""
    longer = max(image.size)
    width, height = (max(1, round(size * side / longer)) for side in image.size)
    square = Image.new("RGB", (size, size), fill)
    square.paste(_resized(image, (width, height)), ((size - width) // 2, (size - height) // 2))
    return square


def _bomb(stream: BinaryIO, complaint: str, max_pixels: int) -> str:
    """The reason for a file that Pillow finds too large, with its sides where they can be had."""
    Image.MAX_IMAGE_PIXELS = None
    with contextlib.suppress(Exception):  # the sides are a courtesy; the reason stands anyway
        width, height = Image.open(stream, formats=_HEADER_ONLY).size
        if width * height > max_pixels:
            return _too_large("decompression bomb", f"{width} x {height}", max_pixels)
    found = re.search(r"\d+", complaint)
    # A header may claim numbers of any length.
    count = found[0] if found and len(found[0]) <= _LONGEST_NUMBER else "too many"
    return _too_large("decompression bomb", count, max_pixels)


def _too_large(what: str, pixels: str, max_pixels: int) -> str:
    return f"{what}: {pixels} pixels, at most {max_pixels} allowed (--max-pixels)"


def _reason(error: Exception) -> str:
    """One printable line that says what Pillow did not like."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image Pillow can read"
    text = _one_line(str(error))
    if isinstance(error, EOFError) or "truncated" in text.lower():
        return _one_line(f"truncated: {text}")
    return _one_line(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _one_line(text: str) -> str:
    printable = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return printable[:REASON_LENGTH]
