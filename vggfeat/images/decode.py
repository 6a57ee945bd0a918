"""Decode the bytes of an image file to the network's pixels: uint8 or uint16 (H, W, C).

Pillow alone decodes and resizes usual images, 8-bit RGB on their full scale, so that the result
equals torchvision's transform byte for byte. Any error in a file's content becomes a `DecodeError`
with a short reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import re
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from vggfeat.errors import DecodeError, UsageError
from vggfeat.images.corruptions import corrupt
from vggfeat.images.intensity import develop
from vggfeat.images.pillow import isolated_pillow, load_rgb, not_an_image
from vggfeat.images.raw_values import is_of_values, read_raster
from vggfeat.images.resize import fit_inside, fit_pixels, too_large
from vggfeat.images.streams import open_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from vggfeat.core.preprocessing import Preprocess
    from vggfeat.images.intensity import Raster

READ_AT_ONCE: Final = 1 << 26
"""Bytes of a file that are held in memory to be hashed and decoded in one reading."""

REASON_LENGTH: Final = 150
"""Most characters in a reason."""

_LONGEST_NUMBER = 20  # digits
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_HEADER_ONLY = ("PNG", "JPEG", "TIFF", "BMP", "GIF")  # opened without decoding, however large


def pixel_type(preprocess: Preprocess) -> type[np.uint8 | np.uint16]:
    """Return the type of decoded pixels."""
    return np.uint8 if preprocess.depth == 8 else np.uint16  # noqa: PLR2004 bits


def decode_file(path: bytes, preprocess: Preprocess, max_pixels: int) -> NDArray[Any]:
    """Decode the image file `path`; see `decode`."""
    with open_file(path) as stream:
        return decode(stream, preprocess, max_pixels)


def read_digest(stream: BinaryIO) -> tuple[bytes, BinaryIO]:
    """Return the SHA-256 of a stream, and a stream of the same bytes to decode from.

    Up to 64 MiB are read once and held in memory; a larger file is read twice.
    """
    start = stream.read(READ_AT_ONCE)
    digest = hashlib.sha256(start)
    if len(start) < READ_AT_ONCE:
        return digest.digest(), io.BytesIO(start)
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.digest(), stream


def decode(stream: BinaryIO, preprocess: Preprocess, max_pixels: int) -> NDArray[Any]:
    """Decode the first image in a seekable stream: turned, corrupted, resized and cropped.

    It changes Pillow's pixel limit and the warning filters of the process while it runs: other
    threads must not use Pillow meanwhile, other processes may.

    Returns:
        uint8, or uint16 for `depth=16`, (H, W, `preprocess.channels`), RGB if those are 3;
        C-contiguous and writable. H = W = `preprocess.size`; with `crop="none"` that is the shorter
        side.

    Raises:
        DecodeError: empty, no image, truncated, damaged, of other channels than requested, or more
            than `max_pixels` pixels.
    """
    return np.require(read_pixels(stream, preprocess, max_pixels), requirements=["C", "W"])


def read_pixels(stream: BinaryIO, preprocess: Preprocess, max_pixels: int) -> NDArray[Any]:
    """Decode as `decode` does, to pixels that may be read-only: it saves a copy of them."""
    if preprocess.on_tensors:
        try:
            by_torchvision = _torchvision_jpeg().pixels_by_torchvision
            pixels: NDArray[Any] | None = by_torchvision(stream, preprocess, max_pixels)
        except RuntimeError as error:  # DecodeError is none
            raise DecodeError(_reason(error)) from error
        if pixels is not None:
            return pixels
    with as_decode_errors(stream, max_pixels):
        if preprocess.usual and not is_of_values(stream):
            image = corrupt(load_rgb(stream, preprocess), preprocess.augment)
            return np.asarray(fit_inside(image, preprocess, max_pixels, preprocess.fill))
        raster = read_raster(stream, preprocess, max_pixels)
        return finish(raster, preprocess, max_pixels)


def finish(raster: Raster, preprocess: Preprocess, max_pixels: int) -> NDArray[Any]:
    """Map an image's values to pixels, as `decode` does."""
    pixels = develop(raster, preprocess)
    if preprocess.augment:  # settings allow this for 8-bit RGB only
        pixels = np.asarray(corrupt(Image.fromarray(pixels), preprocess.augment))
    return fit_pixels(pixels, preprocess, max_pixels)


def load_decoder(preprocess: Preprocess) -> None:
    """Import what decoding needs before processes are forked, which else would each import it."""
    if preprocess.on_tensors:
        _torchvision_jpeg()


def _torchvision_jpeg() -> Any:
    try:
        return importlib.import_module("vggfeat.images.torchvision_jpeg")
    except ImportError as error:  # its decoders will go, once TorchCodec has them
        raise UsageError(
            "decode torchvision needs torchvision with torchvision.io.decode_jpeg, which cannot be "
            f"imported here ({error}); use decode pillow"
        ) from error


@contextlib.contextmanager
def as_decode_errors(stream: BinaryIO, max_pixels: int) -> Iterator[None]:
    """Turn any error in a file's content into a `DecodeError` with a short reason."""
    with isolated_pillow(max_pixels):
        try:
            yield
        except DecodeError:
            raise
        except _BOMBS as error:
            raise DecodeError(_bomb(stream, str(error), max_pixels)) from error
        except UnidentifiedImageError as error:
            raise DecodeError(not_an_image(stream)) from error
        except Exception as error:  # plugins raise nearly anything on broken data
            raise DecodeError(_reason(error)) from error


def _bomb(stream: BinaryIO, complaint: str, max_pixels: int) -> str:
    """Return the reason to refuse a file that Pillow calls too large, with its sides if known."""
    Image.MAX_IMAGE_PIXELS = None
    with contextlib.suppress(Exception):  # the sides are a courtesy; the reason does without
        width, height = Image.open(stream, formats=_HEADER_ONLY).size
        if width * height > max_pixels:
            return too_large("decompression bomb", f"{width} x {height}", max_pixels)
    found = re.search(r"\d+", complaint)
    # A header may claim numbers of any length.
    count = found[0] if found and len(found[0]) <= _LONGEST_NUMBER else "too many"
    return too_large("decompression bomb", count, max_pixels)


def _reason(error: Exception) -> str:
    """Return why Pillow failed, as one printable line."""
    text = _one_line(str(error))
    if isinstance(error, EOFError) or "truncated" in text.lower():
        return _one_line(f"truncated: {text}")
    return _one_line(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _one_line(text: str) -> str:
    printable = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return printable[:REASON_LENGTH]
