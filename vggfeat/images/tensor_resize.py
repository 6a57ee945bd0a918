"""Turn, resize and crop decoded images as torchvision does with tensors, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from vggfeat.errors import DecodeError
from vggfeat.images.resize import too_large, with_shorter_side

if TYPE_CHECKING:
    from vggfeat.core.preprocessing import Preprocess

_FLIPPED = {2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,)}
_TRANSPOSED = 5  # orientations from this on


def turned(image: Tensor, orientation: int) -> Tensor:
    """Return (C, H, W) upright, as torchvision turns what it decodes by EXIF."""
    if orientation >= _TRANSPOSED:
        image = image.transpose(-2, -1)
    flipped = _FLIPPED.get(orientation, ())
    return image.flip(flipped) if flipped else image


def fit_tensor(image: Tensor, preprocess: Preprocess, max_pixels: int) -> Tensor:
    """Resize and crop (3, H, W) uint8, and pad it with the mean; on the device that it is on.

    Raises DecodeError for a result of more than `max_pixels`, which only crop none can have.
    """
    size = preprocess.size
    if preprocess.crop == "center":
        resized = _resize(image, [preprocess.resize or size])
        cropped: Tensor = functional.center_crop(resized, [size, size])
        return cropped
    if preprocess.crop == "squash":
        return _resize(image, [size, size])
    if preprocess.crop == "pad":
        return _padded(image, preprocess)
    width, height = with_shorter_side((image.shape[2], image.shape[1]), size)
    if width * height > max_pixels:
        what = "too large once resized for crop none"
        raise DecodeError(too_large(what, f"{width} x {height}", max_pixels))
    return _resize(image, [size])


def _resize(image: Tensor, size: list[int]) -> Tensor:
    resized: Tensor = functional.resize(image, size, antialias=True)
    return resized


def _padded(image: Tensor, preprocess: Preprocess) -> Tensor:
    size, (_, height, width) = preprocess.size, image.shape
    longer = max(height, width)
    inner = [max(1, round(size * side / longer)) for side in (height, width)]
    fill = torch.tensor(preprocess.fill, dtype=torch.uint8, device=image.device)
    square = fill[:, None, None].repeat(1, size, size)
    top, left = ((size - side) // 2 for side in inner)
    square[:, top : top + inner[0], left : left + inner[1]] = _resize(image, inner)
    return square
