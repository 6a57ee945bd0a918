"""Check images passed to an `Extractor`: refuse tensors that cannot be the network's input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from vggfeat.core.preprocessing import Preprocess

_FOUR = 4  # axes: N, C, H, W
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LARGEST_BYTE = 255
_LARGEST_FLOAT = torch.finfo(torch.float32).max
_MARGIN = 1.01  # beyond white, for the rounding of half precision


def check_images(
    images: Tensor, preprocess: Preprocess, precision: str, shortest: int, *, normalized: bool
) -> None:
    """Refuse a batch whose numbers the network would take for something else, silently.

    Args:
        images: see `Extractor.__call__`.
        preprocess: what the images should have been through.
        precision: of the extractor.
        shortest: side that the network's pools need.
        normalized: floating-point images are normalised, whatever their values look like.
    """
    _check_layout(images, preprocess.channels)
    _check_shape(images, preprocess.channels, shortest)
    if images.dtype in (torch.uint8, torch.uint16):
        _check_integers(images, preprocess, precision, normalized=normalized)
    elif images.dtype not in _FLOATS:
        raise UsageError(
            f"images are {images.dtype}; expected uint8 or uint16 pixels, or float16, bfloat16, "
            "float32 or float64 images that are normalised: images.to(torch.uint8) if they are "
            "pixels of 0 to 255"
        )
    elif precision == "int8":
        raise UsageError(f"images are {images.dtype}; precision int8 takes uint8 alone")
    else:
        _check_floats(images, preprocess, normalized=normalized)


def _check_layout(images: Tensor, channels: int) -> None:
    """Refuse a tensor whose values do not all lie in memory, whatever was passed."""
    expected = f"expected a torch.Tensor (N, {channels}, H, W)"
    if images.is_nested or images.layout != torch.strided:
        kind = "nested" if images.is_nested else str(images.layout).removeprefix("torch.")
        remedy = "torch.stack(images.unbind())" if images.is_nested else "images.to_dense()"
        raise UsageError(f"images are a {kind} tensor; {expected} that is dense: {remedy}")
    if images.is_meta:
        raise UsageError(f"images are on device meta, without values; {expected} that has some")


def _check_shape(images: Tensor, channels: int, shortest: int) -> None:
    if images.dim() == _FOUR and images.shape[1] == channels:
        height, width = images.shape[2:]
        if len(images) and min(height, width) < shortest:
            raise UsageError(
                f"images are {height} x {width}; expected {shortest} x {shortest} at least, which "
                "the network halves at each of its pools: resize them, or request earlier layers"
            )
        return
    hint = ""
    if images.dim() == _FOUR and images.shape[3] == channels:
        hint = "; channels come first here: images.permute(0, 3, 1, 2)"
    elif images.dim() == _FOUR - 1 and images.shape[0] == channels:
        hint = "; a single image is images[None]"
    raise UsageError(
        f"images have shape {list(images.shape)}; expected (N, {channels}, H, W){hint}"
    )


def _check_integers(
    images: Tensor, preprocess: Preprocess, precision: str, *, normalized: bool
) -> None:
    if normalized:
        raise UsageError(f"images are {images.dtype} pixels; normalized=True is for float images")
    if precision == "int8" and images.dtype != torch.uint8:
        raise UsageError(f"images are {images.dtype}; precision int8 takes uint8 alone")
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
    raise UsageError(
        f"images are {height} x {width} pixels; expected {expected}, as the preprocessing of the "
        f"settings makes them: resize them first, or have Settings({choice})"
    )


def _check_floats(images: Tensor, preprocess: Preprocess, *, normalized: bool) -> None:
    if not images.numel():
        return
    low, high = (float(value) for value in images.detach().aminmax())
    if not -_LARGEST_FLOAT <= low <= high <= _LARGEST_FLOAT:  # NaN is in no range
        found = "NaN" if low != low or high != high else f"{low:g} to {high:g}"  # noqa: PLR0124 only NaN is unlike itself
        raise UsageError(
            f"images hold {found}, which would make features that are not finite; expected finite "
            "float32 numbers"
        )
    # Only a trial batch is zero throughout; pixels are refused as soon as one of them is not black.
    if normalized or low < 0 or high == 0:
        return
    remedy = "pass uint8 pixels, or normalise them and pass normalized=True"
    if high <= 1:
        raise UsageError(
            f"float images of {low:g} to {high:g} look like pixels of 0 to 1; expected normalised "
            f"ones, (image - mean) / std: {remedy}"
        )
    white = max((1 - mean) / std for mean, std in zip(preprocess.mean, preprocess.std, strict=True))
    if white * _MARGIN < high <= _LARGEST_BYTE:
        raise UsageError(
            f"float images of {low:g} to {high:g} look like pixels of 0 to 255; expected "
            f"(image / 255 - mean) / std, which is {white:.3g} at most: {remedy}"
        )
