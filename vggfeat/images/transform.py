"""The preprocessing of a cache as a transform: an image in memory or in a file, pixels out."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

import numpy as np
from PIL import Image

from vggfeat.core.isolation import isolated
from vggfeat.errors import DecodeError, UsageError
from vggfeat.images.corruptions import corrupt
from vggfeat.images.decode import as_decode_errors, decode, decode_file, finish
from vggfeat.images.numpy_file import raster_of
from vggfeat.images.pillow import unread_file, upright_rgb
from vggfeat.images.pillow_values import values_of
from vggfeat.images.resize import fit_inside, too_large

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from vggfeat.core.preprocessing import Preprocess

ImageLike: TypeAlias = (
    "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[Any] | Tensor"
)
"""One image: a path or an address, the bytes of a file or a binary stream of them, a PIL image, an
array (H, W) or (H, W, C), or a tensor (C, H, W)."""

_EXPECTED = (
    "expected a path, the bytes of an image file, a PIL image, a NumPy array (H, W, C), or a "
    "tensor (C, H, W)"
)
_AXES = 3


def is_one_image(images: Any) -> bool:
    """Return whether this is one image by itself, and no sequence of images."""
    if isinstance(images, (str, bytes, bytearray, os.PathLike, Image.Image)):
        return True
    if isinstance(images, np.ndarray) or _is_tensor(images):
        return bool(images.ndim <= _AXES)
    return hasattr(images, "read")


def file_name_of(image: Any) -> str:
    """Return the name of the file that an image was opened from; '' where there is none."""
    name = getattr(image, "filename", None) or getattr(image, "name", None)
    return os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else ""


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """Decode, turn, resize and crop one image as `extract` does before the network.

        transform = extractor.transform
        batch = torch.stack([transform(image) for image in images])   # (N, 3, 224, 224) uint8
        dataset = torchvision.datasets.ImageFolder("photos", transform=transform)

    A file, its bytes and the image that `PIL.Image.open` makes of it give the same pixels, bit for
    bit, unless the caller has changed or loaded the image: once it is loaded, Pillow's own pixels
    are taken, of 8 bits a channel, whatever `decode` says. An array is taken as a `.npy` file of
    it: 8 and 16 bits by their full range, floats within 0 to 1 as such.

    Attributes:
        preprocess: sizes, crop, channels, depth, window and the rest.
        max_pixels: a larger image is a `DecodeError`.
    """

    preprocess: Preprocess
    max_pixels: int

    def __call__(self, image: ImageLike) -> Tensor:
        """Return the pixels of an image as the network gets them.

        Args:
            image: a path (`str` or `PathLike`) or an address in an object store; the bytes of an
                image file, or a seekable binary stream; a PIL image of any mode; an array (H, W) or
                (H, W, C), RGB where there are three channels; a tensor (C, H, W) of pixels, uint8,
                uint16, or floats of 0 to 1.

        Returns:
            uint8, or uint16 for `depth=16`, (C, H, W); not normalised, which the extractor does.

        Raises:
            DecodeError: no image, damaged, of other channels than the settings say, or too large.
            UsageError: nothing of these kinds.
        """
        import torch

        return torch.from_numpy(self.pixels(image)).permute(2, 0, 1)  # (C, H, W)

    @isolated()
    def pixels(self, image: ImageLike) -> NDArray[Any]:
        """Return the pixels as an array (H, W, C), without torch; otherwise as a call does."""
        if isinstance(image, (bytes, bytearray)):
            return decode(io.BytesIO(image), self.preprocess, self.max_pixels)
        if isinstance(image, (str, os.PathLike)):
            return decode_file(os.fsencode(image), self.preprocess, self.max_pixels)
        if isinstance(image, Image.Image):
            return self._of_picture(image)
        if hasattr(image, "read"):
            return decode(cast("BinaryIO", image), self.preprocess, self.max_pixels)
        return self._of_array(as_array(image))

    def _of_picture(self, image: Image.Image) -> NDArray[Any]:
        content = unread_file(image)
        if content is not None:
            return decode(io.BytesIO(content), self.preprocess, self.max_pixels)
        if image.width * image.height > self.max_pixels:
            sides = f"{image.width} x {image.height}"
            raise DecodeError(too_large("PIL image", sides, self.max_pixels))
        nothing = io.BytesIO()  # of a loaded image there is nothing left to read
        with as_decode_errors(nothing, self.max_pixels):
            if self.preprocess.usual:
                shown = corrupt(upright_rgb(image, self.preprocess), self.preprocess.augment)
                return np.array(
                    fit_inside(shown, self.preprocess, self.max_pixels, self.preprocess.fill)
                )
            # A copy, since looking for pages would wind the caller's image to another one.
            raster = values_of(image.copy(), nothing, self.preprocess)
            return finish(raster, self.preprocess, self.max_pixels)

    def _of_array(self, values: NDArray[Any]) -> NDArray[Any]:
        with as_decode_errors(io.BytesIO(), self.max_pixels):
            raster = raster_of(values, self.max_pixels)
            return finish(raster, self.preprocess, self.max_pixels)


def as_array(image: Any) -> NDArray[Any]:
    """Return an array as it is, or a tensor (C, H, W) of pixels as one (H, W, C)."""
    if isinstance(image, np.ndarray):
        return image
    if _is_tensor(image):
        return _channels_last(cast("Tensor", image))
    raise UsageError(f"image is {_described(image)}; {_EXPECTED}")


def _is_tensor(image: Any) -> bool:
    # Without importing torch: what is a tensor has loaded it.
    return type(image).__module__.partition(".")[0] in ("torch", "torchvision") and hasattr(
        image, "permute"
    )


def _channels_last(image: Tensor) -> NDArray[Any]:
    """Return a tensor (C, H, W) of pixels as an array (H, W, C)."""
    if image.dim() != _AXES:
        raise UsageError(f"image is a tensor of shape {list(image.shape)}; expected (C, H, W)")
    values = image.detach().cpu()
    if values.is_floating_point():
        values = values.float()  # NumPy has no bfloat16
        low, high = (float(value) for value in values.aminmax())
        if not 0 <= low <= high <= 1:
            raise UsageError(
                f"image is a tensor of floats from {low:g} to {high:g}; expected pixels, uint8, "
                "uint16 or floats of 0 to 1: pass what is normalised to the extractor itself"
            )
    return values.permute(1, 2, 0).numpy()


def _described(image: Any) -> str:
    return "None" if image is None else f"of type {type(image).__name__}"
