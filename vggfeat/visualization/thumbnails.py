"""Load image files for display: small, upright, and located by a cache's paths."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from vggfeat.core.preprocessing import AS_FILES_SAY, Preprocess
from vggfeat.core.settings import Settings
from vggfeat.core.text import printable
from vggfeat.errors import DecodeError
from vggfeat.images.decode import as_decode_errors, decode, finish
from vggfeat.images.pillow import isolated_pillow, open_image
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


def load_picture(
    path: str | bytes, longest: int, preprocess: Preprocess = AS_FILES_SAY
) -> Image.Image:
    """Load an image file of any kind that an extraction accepts, upright, in mode RGB.

    The longer side has `longest` pixels at most. Window, clip and clahe of `preprocess` say what
    becomes black and white; without them, images of 12 or 16 bits or in physical units show little.
    """
    with open_file(os.fsencode(path)) as stream:
        if is_of_values(stream) or not preprocess.full_scale:
            return _picture_of_values(stream, longest, preprocess)
        try:
            with isolated_pillow(MAX_PIXELS), open_image(stream) as image:
                sides: Any = image.size  # a plugin fills it in, from whatever the file says
        except DecodeError:
            raise
        except Exception as error:  # plugins raise nearly anything on broken data
            raise DecodeError("not an image Pillow can read") from error
        small, large = sorted(sides)
        shorter = _shorter_side(small, large, longest)
        shown = Preprocess(size=shorter, resize=None, crop="none", decode="fast")
        return Image.fromarray(decode(stream, shown, MAX_PIXELS))


def _picture_of_values(stream: BinaryIO, longest: int, like: Preprocess) -> Image.Image:
    """Load any file by its values; Pillow cannot tell the size of an array or of DICOM."""
    shown = Preprocess(
        crop="none", resize=None, window=like.window, clip=like.clip, clahe=like.clahe
    )
    with as_decode_errors(stream, MAX_PIXELS):
        raster = read_raster(stream, shown, MAX_PIXELS)
        small, large = sorted(raster.values.shape[:2])
        preprocess = dataclasses.replace(shown, size=_shorter_side(small, large, longest))
        return Image.fromarray(finish(raster, preprocess, MAX_PIXELS))


def _shorter_side(small: int, large: int, longest: int) -> int:
    """Return the pixels of the shorter side once the longer one is at most `longest`."""
    return int(small) if large <= longest else max(1, round(small * longest / large))


@contextlib.contextmanager
def picture_of(
    path: str | None, longest: int, preprocess: Preprocess = AS_FILES_SAY
) -> Iterator[Image.Image | str]:
    """Yield the image in a file as `load_picture` does, or the reason why it cannot be shown."""
    if path is None or not os.path.isfile(path):
        yield "file not found"
        return
    try:
        image = load_picture(path, longest, preprocess)
    except DecodeError as error:
        yield printable(str(error))
        return
    with image:
        yield image


def image_file(cache: FeatureCache, row: int, root: str | None = None) -> str | None:
    """Return the path of a row's image now; None if no such file exists, as for archive members.

    `root` is the folder of the images now; by default that of the extraction.
    """
    base = cache.header.provenance.root if root is None else os.fsencode(root)
    path = os.path.join(base, bytes(cache.paths[row]))
    exists = is_there(os.fsdecode(path)) if remote_scheme(path) else os.path.isfile(path)
    return os.fsdecode(path) if exists else None


def shortened(text: str) -> str:
    """Shorten a name in the middle to at most 40 printable characters."""
    plain = printable(text)
    if len(plain) <= _BEGINNING + 3 + _END:
        return plain
    return f"{plain[:_BEGINNING]}...{plain[-_END:]}"
