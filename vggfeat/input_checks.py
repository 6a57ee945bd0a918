"""Images given to an `Extractor` as tensors: what cannot be the network's input is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from vggfeat.preprocess import Preprocess

_FOUR = 4  # axes: N, C, H, W
_LARGEST_BYTE = 255
_MARGIN = 1.01  # beyond white, for the rounding of half precision


def check_images(
    images: Tensor, preprocess: Preprocess, precision: str, *, normalized: bool
) -> None:
    """Refuse a batch whose numbers the network would take for something else, silently.

    Args:
        images: see `Extractor.__call__`.
        preprocess: what the images should have been through.
        precision: of the extractor.
        normalized: floating-point images are normalised, whatever their values look like.

    Raises:
        ValueError: says what was expected, what was found and what to do.
    """
    _check_shape(images, preprocess.channels)
    if images.dtype in (torch.uint8, torch.uint16):
        _check_integers(images, preprocess, precision, normalized=normalized)
    elif not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype}; expected uint8 or uint16 pixels, or floating-point images "
            "that are normalised: images.to(torch.uint8) if they are pixels of 0 to 255"
        )
    elif precision == "int8":
        raise ValueError(f"images are {images.dtype}; precision int8 takes uint8 alone")
    else:
        _check_floats(images, preprocess, normalized=normalized)


def _check_shape(images: Tensor, channels: int) -> None:
    if images.dim() == _FOUR and images.shape[1] == channels:
        return
    hint = ""
    if images.dim() == _FOUR and images.shape[3] == channels:
        hint = "; channels come first here: images.permute(0, 3, 1, 2)"
    elif images.dim() == _FOUR - 1 and images.shape[0] == channels:
        hint = "; a single image is images[None]"
    raise ValueError(
        f"images have shape {list(images.shape)}; expected (N, {channels}, H, W){hint}"
    )


def _check_integers(
    images: Tensor, preprocess: Preprocess, precision: str, *, normalized: bool
) -> None:
    if normalized:
        raise ValueError(f"images are {images.dtype} pixels; normalized=True is for float images")
    if precision == "int8" and images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}; precision int8 takes uint8 alone")
    height, width = images.shape[2:]
    size = preprocess.size
    if preprocess.crop == "none":
        if min(height, width) == size:
            return
        expected, choice = f"a shorter side of {size}", f"size={min(height, width)}"
    elif (height, width) == (size, size):
        return
    else:
        expected = f"{size} x {size}"
        choice = f"size={min(height, width)}" + (', crop="none"' if height != width else "")
    raise ValueError(
        f"images are {height} x {width} pixels; expected {expected}, as the preprocessing of the "
        f"settings makes them: resize them first, or have Settings({choice})"
    )


def _check_floats(images: Tensor, preprocess: Preprocess, *, normalized: bool) -> None:
    if not images.numel():
        return
    low, high = (float(value) for value in images.detach().aminmax())
    if low != low or high != high:  # noqa: PLR0124 a NaN, which is unlike itself
        raise ValueError("images hold NaN, which no feature would be free of; expected numbers")
    if normalized or low < 0:
        return
    remedy = "pass uint8 pixels, or normalise them and pass normalized=True"
    if high <= 1:
        raise ValueError(
            f"float images of {low:g} to {high:g} look like pixels of 0 to 1; expected normalised "
            f"ones, (image - mean) / std: {remedy}"
        )
    white = max((1 - mean) / std for mean, std in zip(preprocess.mean, preprocess.std, strict=True))
    if white * _MARGIN < high <= _LARGEST_BYTE:
        raise ValueError(
            f"float images of {low:g} to {high:g} look like pixels of 0 to 255, white is "
            f"{white:.3g} once normalised; expected (image / 255 - mean) / std: {remedy}"
        )
