"""From a layer's output to rows of features: pool, normalise, fuse.

Pure functions of tensors. They run on the tensor's device and never wait for it: no value is read
back. All arithmetic is in float32, whatever the network's precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from vggfeat.core.layer_spec import POOLS, regions_a_side
from vggfeat.core.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from vggfeat.core.fusion_spec import Recipe
    from vggfeat.core.layer_spec import LayerSpec, Norm, Pool

_GEM_FLOOR = 1e-6

_Span = tuple[int, int]


def reduce_map(x: Tensor, spec: LayerSpec) -> Tensor:
    """Pool and normalise a batch of a layer's outputs to rows of features.

    Args:
        x: (N, C, H, W) for a layer with positions, (N, D) for a vector; any floating dtype, any
            memory format.
        spec: pool and norm.

    Returns:
        (N, *row) float32 on `x`'s device, contiguous, sharing no memory with `x`, which may be
        overwritten afterwards. `spec.output_shape` gives the shape of a row. NaN in `x` stays NaN.
    """
    expected = 2 if spec.pool is None else 4
    if x.dim() != expected:
        raise ValueError(
            f"{spec}: expected {counted(expected, 'dimension')}, found shape {tuple(x.shape)}"
        )
    if spec.pool is None:
        rows = _own_copy(x)  # (N, D)
    else:
        # By name, since the grammar, which knows all pools, is loaded where torch is not.
        pool: Callable[[Tensor, Pool], Tensor] = globals()[POOLS[spec.pool.name].function]
        rows = pool(x, spec.pool)  # (N, *row), no alias of x
    return _normalise(rows, spec.norm).contiguous()


def fuse_vectors(features: Mapping[str, Tensor], recipe: Recipe) -> Tensor:
    """Fuse the vectors of several layers, (N, D) float32 each, as `vggfeat fuse` does with rows.

    The recipe has no fitted part: its norm is not `standard`, its method not `attention`. Returns
    (N, width) float32.
    """
    parts = [_normalise(features[layer], cast("Norm", recipe.norm)) for layer in recipe.layers]
    fused = join_layers(parts, recipe.factors, add=recipe.method == "sum")
    return _normalise(fused, recipe.final_norm)


def join_layers(parts: Sequence[Tensor], factors: Sequence[float | Tensor], *, add: bool) -> Tensor:
    """Multiply layers, (N, D) each, by their factors, then add them or join them end to end."""
    scaled = [part * factor for part, factor in zip(parts, factors, strict=True)]
    return torch.stack(scaled).sum(0) if add else torch.cat(scaled, 1)


def _own_copy(x: Tensor) -> Tensor:
    return x.to(torch.float32, memory_format=torch.contiguous_format, copy=True)


def average_pool(x: Tensor, _pool: Pool) -> Tensor:
    """Return the mean of each channel, (N, C)."""
    return x.mean((2, 3), dtype=torch.float32)


def max_pool(x: Tensor, _pool: Pool) -> Tensor:
    """Return the maximum of each channel, (N, C)."""
    return x.amax((2, 3)).float()


def deviation_pool(x: Tensor, _pool: Pool) -> Tensor:
    """Return the standard deviation of each channel over its positions, (N, C).

    With the mean, it is what Huang & Belongie, "Arbitrary Style Transfer in Real-time with Adaptive
    Instance Normalization" (ICCV 2017), transfer as the style of an image. It is the population's,
    0 for a map of one position.
    """
    x = x.float()
    # Around the mean, since a difference of large squares would lose small deviations.
    centred = x - x.mean((2, 3), keepdim=True)
    return centred.square_().mean((2, 3)).sqrt()


def keep_map(x: Tensor, _pool: Pool) -> Tensor:
    """Return the map itself, (N, C, H, W)."""
    return _own_copy(x)


def flatten_pool(x: Tensor, _pool: Pool) -> Tensor:
    """Return the map as a vector, channel by channel, (N, C * H * W)."""
    return _own_copy(x).flatten(1)


def gem_pool(x: Tensor, pool: Pool) -> Tensor:
    """Return the generalised mean of each channel, (N, C).

    After Radenović et al., "Fine-tuning CNN Image Retrieval", TPAMI 2018.

    The mean is taken of x / max: x ** p itself leaves float32 where x is in the thousands and p
    around ten.
    """
    x = x.float().clamp(min=_GEM_FLOOR)
    largest = x.amax((2, 3), keepdim=True)  # (N, C, 1, 1)
    mean = (x / largest).pow(pool.p).mean((2, 3))  # (N, C)
    return mean.pow(1 / pool.p) * largest.flatten(1)


def rmac_pool(x: Tensor, pool: Pool) -> Tensor:
    """Return the regional maxima of each channel, (N, C).

    After Tolias, Sicre & Jégou, "Particular Object Retrieval" (ICLR 2016).

    Square regions at scales l = 1, 2, ...; the vectors of their maxima are scaled to unit length
    and added up. The paper's last step, the unit length of the sum, is `:l2`. It whitens each
    region before: see `regions_pool`.
    """
    total = x.new_zeros(x.shape[:2], dtype=torch.float32)  # (N, C)
    for regions in _regions(x, pool):
        total = total + regions.sum((2, 3))
    return total


def regions_pool(x: Tensor, pool: Pool) -> Tensor:
    """Return the vectors of R-MAC's regions, each at unit length, one by one: (N, R * C).

    `vggfeat reduce` fits a PCA to the regions of all images, whitens them, and adds them up.
    """
    parts = [part.flatten(2).transpose(1, 2).flatten(1) for part in _regions(x, pool)]
    return torch.cat(parts, 1)  # (N, R * C)


def _regions(x: Tensor, pool: Pool) -> Iterator[Tensor]:
    """Yield the regions of each scale, at unit length: float32 (N, C, rows, columns)."""
    height, width = x.shape[2:]
    short = min(height, width)
    for scale in range(1, pool.levels[0] + 1):
        side = max(1, 2 * short // (scale + 1))
        count = regions_a_side(scale, height, width)
        rows, columns = (
            _uniform_spans(length, side, number)
            for length, number in zip((height, width), count, strict=True)
        )
        yield _unit_length(_window_maxima(x, rows, columns))


def _uniform_spans(length: int, side: int, count: int) -> list[_Span]:
    """Return `count` spans of `side`, the first at the start of `length`, the last at its end."""
    starts = [i * (length - side) // max(1, count - 1) for i in range(count)]
    return [(start, start + side) for start in starts]


def spp_pool(x: Tensor, pool: Pool) -> Tensor:
    """Return the spatial pyramid of each channel, (N, C * sum(n * n)).

    After He et al., "Spatial Pyramid Pooling in Deep Networks" (ECCV 2014).

    Levels come one after another as given, each as its (C, n, n) maxima flattened. Bins overlap
    where n does not divide the side; those of `adaptive_max_pool2d` do the same, but not on every
    device.
    """
    height, width = x.shape[2:]
    pyramid = [_window_maxima(x, _bins(height, n), _bins(width, n)).flatten(1) for n in pool.levels]
    return torch.cat(pyramid, 1)  # (N, C * sum(n * n))


def _bins(length: int, count: int) -> list[_Span]:
    """Return `count` spans that cover `length`: from floor(i L / n) to ceil((i + 1) L / n)."""
    return [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]


def _window_maxima(x: Tensor, rows: list[_Span], columns: list[_Span]) -> Tensor:
    """Return the maximum of each window rows[i] x columns[j], float32 (N, C, rows, columns)."""
    strips = torch.stack([x[:, :, a:b].amax(2) for a, b in rows], 2)  # (N, C, rows, W)
    windows = torch.stack([strips[..., a:b].amax(3) for a, b in columns], 3)
    return windows.float()  # (N, C, rows, columns)


def _normalise(x: Tensor, norm: Norm) -> Tensor:
    """Normalise `x`, (N, D) or (N, C, H, W) float32, along axis 1: maps at each position.

    `ssr`, the signed square root and then unit length, is the power normalisation of Perronnin et
    al. (ECCV 2010) with exponent 1/2, the Hellinger map of RootSIFT (Arandjelović & Zisserman,
    CVPR 2012) for values of either sign.
    """
    if norm == "l2":
        return _unit_length(x)
    if norm == "ssr":
        return _unit_length(x.sign() * x.abs().sqrt())
    return x


def _unit_length(x: Tensor) -> Tensor:
    """Divide `x` by its Euclidean length along axis 1; zero vectors stay zero.

    It is divided by the largest magnitude first: squares of very large or very small values leave
    float32.
    """
    largest = x.abs().amax(1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1)
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)  # 0, or from 1 to sqrt(D)
    return x / torch.where(length > 0, length, 1)
