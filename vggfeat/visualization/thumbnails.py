"""Image files for people to look at: small, upright, and found again from a cache's paths."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from vggfeat.core.preprocessing import AS_FILES_SAY, Preprocess, Tones
from vggfeat.core.settings import Settings
from vggfeat.core.text import printable
from vggfeat.errors import DecodeError
from vggfeat.images.decode import as_decode_errors, decode, finish
from vggfeat.images.pillow import pillow_to_ourselves
from vggfeat.images.raw_values import is_of_values, read_raster
from vggfeat.images.streams import open_file
from vggfeat.storage.object_store import is_there
from vggfeat.storage.paths import remote_scheme

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vggfeat.cache.reader import FeatureCache

MAX_PIXELS = Settings(layers="fc7").max_pixels
"""Larger images are taken for decompression bombs, as in a run."""

_BEGINNING, _END = 22, 15  # characters of a name that are kept


def load_picture(path: str | bytes, longest: int, tones: Tones = AS_FILES_SAY) -> Image.Image:
    """The image in a file, upright, in mode RGB.

    Args:
        path: an image file of any kind that a run takes.
        longest: pixels of the longer side at most; a smaller image keeps its size.
        tones: what becomes black and white; of values in 12 or 16 bits, or in units of their own,
            little is to be seen without.
    """
    with open_file(os.fsencode(path)) as stream:
        if is_of_values(stream) or tones != AS_FILES_SAY:
            return _picture_of_values(stream, longest, tones)
        shorter = _shorter_side(stream, longest)
        preprocess = Preprocess(size=shorter, resize=None, crop="none", decode="fast")
        return Image.fromarray(decode(stream, preprocess, MAX_PIXELS))


def _picture_of_values(stream: BinaryIO, longest: int, tones: Tones) -> Image.Image:
    """Of any file by its values; of an array or of DICOM no header tells Pillow the sides."""
    shown = Preprocess(crop="none", resize=None, **dataclasses.asdict(tones))
    with as_decode_errors(stream, MAX_PIXELS):
        raster = read_raster(stream, shown, MAX_PIXELS)
        small, large = sorted(raster.values.shape[:2])
        shorter = small if large <= longest else max(1, round(small * longest / large))
        preprocess = dataclasses.replace(shown, size=shorter)
        return Image.fromarray(finish(raster, preprocess, MAX_PIXELS))


def _shorter_side(stream: BinaryIO, longest: int) -> int:
    """Pixels of the shorter side once the longer one is `longest` or less."""
    try:
        with pillow_to_ourselves(MAX_PIXELS), Image.open(stream) as image:
            sides: Any = image.size  # a plugin fills it in, from whatever the file says
    except Exception as error:  # plugins raise nearly anything on broken data
        raise DecodeError("not an image Pillow can read") from error
    small, large = sorted(sides)
    return int(small) if large <= longest else max(1, round(small * longest / large))


@contextlib.contextmanager
def picture_of(
    path: str | None, longest: int, tones: Tones = AS_FILES_SAY
) -> Iterator[Image.Image | str]:
    """Yield the image in a file as `load_picture` does, or a few words on why there is none."""
    if path is None or not os.path.isfile(path):
        yield "file not found"
        return
    try:
        image = load_picture(path, longest, tones)
    except DecodeError as error:
        yield printable(str(error))
        return
    with image:
        yield image


def image_file(cache: FeatureCache, row: int, root: str | None = None) -> str | None:
    """Where the image of a row lies now; None where there is no such file.

    Members of archives are none: they have no file of their own.

    Args:
        cache: whose row.
        row: its number.
        root: where the images are now; by default where they were when the cache was made.
    """
    base = cache.header.provenance.root if root is None else os.fsencode(root)
    path = os.path.join(base, bytes(cache.paths[row]))
    there = is_there(os.fsdecode(path)) if remote_scheme(path) else os.path.isfile(path)
    return os.fsdecode(path) if there else None


def shortened(text: str) -> str:
    """A name in 40 printable characters at most; of a longer one the middle is left out."""
    plain = printable(text)
    if len(plain) <= _BEGINNING + 3 + _END:
        return plain
    return f"{plain[:_BEGINNING]}...{plain[-_END:]}"
