"""Open and decode image files with Pillow: limits, EXIF orientation, transparency, RGB."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from vggfeat.core.file_kinds import KIND_BYTES, file_kind
from vggfeat.errors import DecodeError
from vggfeat.images.intensity import WORD, Range, grey_bytes
from vggfeat.images.optional_formats import check_jpeg_xl_size, lacking
from vggfeat.images.pillow_state import pillow_as_installed
from vggfeat.images.pillow_tiles import is_uncompressed, raw_mode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import ImageFile

    from vggfeat.core.preprocessing import Preprocess

UPRIGHT: Final = 1
"""The EXIF orientation of an image that is stored as it is to be seen."""

_GAP = 2  # how many times the size needed a JPEG must stay when it is shrunk while decoding
_LONGEST_TEXT = 1 << 24  # bytes of one text or profile in a PNG; Pillow's own limit is 1 MiB
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANES = 258, 262, 284  # tags of a TIFF
_WHITE_IS_ZERO, _SEPARATE = 0, 2
_TWELVE_BITS = 4095
_EIGHT, _SIXTEEN, _LONG = 8, 16, 32  # bits

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


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """An image whose pixels are decoded, in Pillow's mode of the file."""

    image: Image.Image
    turn: int  # the EXIF orientation to undo; `UPRIGHT` for none


@contextlib.contextmanager
def isolated_pillow(max_pixels: int) -> Iterator[None]:
    """Use Pillow as installed, with our limits as errors and its other warnings silenced.

    Pillow checks its limits after each header, the outer one and those inside: an ICO, for example,
    is decoded while it is opened.
    """
    limit, text_limit = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
    Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = max_pixels, _LONGEST_TEXT
    with warnings.catch_warnings(), pillow_as_installed():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = limit, text_limit


def load_rgb(stream: BinaryIO, preprocess: Preprocess) -> Image.Image:
    """Decode an image in mode RGB, upright if `preprocess.exif` says so."""
    image = open_image(stream)
    match_key_to_pixels(image)
    return upright_rgb(image, preprocess)


def upright_rgb(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Return an image in mode RGB, upright if `preprocess.exif` says so."""
    loaded = load(image, preprocess)
    shown = in_srgb(loaded.image) if preprocess.icc == "convert" else loaded.image
    return upright(Loaded(rgb(shown), loaded.turn))


def unread_file(image: Image.Image) -> bytes | None:
    """Return the file of an image that was opened and not decoded yet; None of any other.

    Decoded as a file, it gives all bits of 16 and the colours that a JPEG has, which Pillow's
    pixels do not. An image that the caller has drafted or wound to another frame is not that file.
    """
    stream = getattr(image, "fp", None)
    if not getattr(image, "tile", None) or image.tell() or stream is None or stream.closed:
        return None
    place = stream.tell()
    try:
        stream.seek(0)
        content: bytes = stream.read()
    finally:
        stream.seek(place)
    again = Image.open(io.BytesIO(content))
    return content if (again.size, again.mode) == (image.size, image.mode) else None


def load(image: Image.Image, preprocess: Preprocess) -> Loaded:
    """Decode an opened image; of a JPEG only the part that `preprocess` needs."""
    _draft(image, preprocess)
    # Pillow turns a TIFF while loading it and drops the tag: then nothing is left to apply, and if
    # orientation is to be ignored, the turn must be undone.
    turned = orientation(image) if image.format == "TIFF" else UPRIGHT
    with _silent_stderr() if image.format == "TIFF" else contextlib.nullcontext():
        image.load()
    if preprocess.exif == "apply":
        return Loaded(image, orientation(image))
    return Loaded(image, _INVERSE.get(turned, turned))


def _draft(image: Image.Image, preprocess: Preprocess) -> None:
    """Let libjpeg skip colours for one channel, and the highest frequencies for decode `fast`."""
    if image.format not in ("JPEG", "MPO"):
        return
    mode = "L" if preprocess.channels == 1 else None
    # Corruptions may crop to too few pixels, and noise, percentiles and histograms differ at other
    # scales.
    shrinks = preprocess.decode == "fast" and not (
        preprocess.augment or preprocess.clip or preprocess.clahe
    )
    size = _small_enough(image.size, preprocess) if shrinks else None
    if mode or size:
        image.draft(mode, size)


def _small_enough(size: tuple[int, int], preprocess: Preprocess) -> tuple[int, int] | None:
    """Return smaller sides that suffice for the resize; None if there are none."""
    needed = preprocess.resize or preprocess.size
    side = max(size) if preprocess.crop == "pad" else min(size)
    factor = side // (_GAP * needed)
    # Pillow divides by the largest of 8, 4, 2, 1 that makes no side smaller than requested.
    return (size[0] // factor, size[1] // factor) if factor > 1 else None


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard the messages that libtiff itself writes to standard error."""
    try:
        kept = os.dup(2)
    except OSError:  # closed, as some daemons start their children
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def not_an_image(stream: BinaryIO) -> str:
    """Return why a stream that Pillow did not recognize is no image."""
    stream.seek(0)
    kind = file_kind(stream.read(KIND_BYTES))
    other = kind and not kind.endswith("image")  # else a damaged one
    return f"{kind}, and no image" if other else "not an image Pillow can read"


def open_image(stream: BinaryIO) -> ImageFile.ImageFile:
    """Read the header of the first image in a stream."""
    stream.seek(0)
    if not stream.read(1):
        raise DecodeError("empty file")
    check_jpeg_xl_size(stream, Image.MAX_IMAGE_PIXELS)
    try:
        image = Image.open(stream)
    except UnidentifiedImageError as error:
        raise DecodeError(lacking(stream) or not_an_image(stream)) from error
    if image.format == "EPS":
        raise DecodeError("EPS, a program for Ghostscript; it is not run")
    if has_planes(image) and bits_of(image) == _SIXTEEN and is_uncompressed(image):
        raise DecodeError("TIFF with 16-bit channels in separate planes; expected interleaved ones")
    return image


def has_planes(image: Image.Image) -> bool:
    """Return whether a TIFF stores its channels one after the other, not pixel by pixel."""
    return bool(_tag(image, _PLANES) == _SEPARATE and len(image.getbands()) > 1)


def bits_of(image: Image.Image) -> int:
    """Return the bits of a channel in the file."""
    tag = _tag(image, _BITS_PER_SAMPLE)
    if isinstance(tag, tuple) and tag and isinstance(tag[0], int):
        return tag[0]
    if image.mode == "1":
        return 1
    if image.mode.startswith("I;16") or ";16" in raw_mode(image):
        return _SIXTEEN
    return _LONG if image.mode in ("I", "F") else _EIGHT


def scale_of(image: Image.Image) -> Range | None:
    """Return black and white of an image of one channel; None for 32-bit integers and floats."""
    # Before version 11.3 Pillow gave 16-bit PNG as 32-bit integers, and still does so for PGM.
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        return None
    twelve = _tag(image, _BITS_PER_SAMPLE) == (12,)
    return Range(0, _TWELVE_BITS if twelve else WORD)


def is_inverted(image: Image.Image) -> bool:
    """Return whether zero is white in a TIFF of more than 8 bits; Pillow inverts 8 bits itself."""
    return image.mode[0] in "IF" and _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO


def _tag(image: Image.Image, tag: int) -> Any:
    return getattr(image, "tag_v2", {}).get(tag)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if it is missing or invalid."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 the pixels may be fine although the EXIF is broken
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def upright(loaded: Loaded) -> Image.Image:
    """Return the image upright."""
    turn = _TURNS.get(loaded.turn)
    return loaded.image if turn is None else loaded.image.transpose(turn)


def match_key_to_pixels(image: Image.Image) -> None:
    """Convert a PNG's transparent colour from the file's bit depth to that of the pixels."""
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None:
        return
    raw = raw_mode(image)
    if raw in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if raw == "L;2" else 17)
    elif raw == "RGB;16B":  # Pillow keeps the upper byte of each channel
        image.info["transparency"] = tuple(value >> 8 for value in key)


def in_srgb(image: Image.Image) -> Image.Image:
    """Return an image of 8 bits a channel in sRGB, as RGB or RGBA, by its embedded profile.

    One whose profile is missing, damaged, or of another kind of colours is returned as it is, as
    browsers show it.
    """
    profile = image.info.get("icc_profile")
    if not profile or image.mode[0] in "IF1":
        return image
    from PIL import ImageCms  # takes 10 ms to import, and is seldom needed

    if image.mode == "La":  # which converts to nothing else
        image = image.convert("LA")
    alpha = image.has_transparency_data
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode not in ("RGB", "L", "CMYK"):
            # The colours of a palette are in the profile's space too.
            grey = source.profile.xcolor_space == "GRAY"
            image = image.convert("LA" if grey else "RGBA")
        colours = image.convert(image.mode.removesuffix("A"))
        target = ImageCms.createProfile("sRGB")
        shown = ImageCms.buildTransform(source, target, colours.mode, "RGB").apply(colours)
    except (ImageCms.PyCMSError, OSError):
        return image
    if alpha:
        shown.putalpha(image.convert("RGBA").getchannel("A"))
    return shown


def rgb(image: Image.Image) -> Image.Image:
    """Return `image` in mode RGB, on white where it is transparent.

    Sixteen unsigned bits are divided by 257. No file states the white of 32-bit integers and
    floats, so it depends on their values: see `intensity.by_values`.
    """
    if image.mode[0] in "IF":
        values = np.asarray(image)
        grey = grey_bytes(values, scale_of(image), inverted=is_inverted(image))
        key = image.info.get("transparency")
        if key is not None:
            grey = np.where(values == key, np.uint8(255), grey)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        return _on_white(image)
    # convert() would copy an image in mode RGB too.
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # Pillow would convert it by way of L, without transparency
        image = image.convert("LA")
    layer = image.convert("RGBA")
    white = Image.new("RGB", layer.size, "white")
    white.paste(layer, mask=layer)
    return white
