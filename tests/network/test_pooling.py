"""Pools and norms against their papers' definitions, written out in float64; quantisation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vggfeat.core import layer_spec
from vggfeat.core.layer_spec import LayerSpec, PoolKind, parse_specs
from vggfeat.network import pooling
from vggfeat.network.pooling import reduce_map
from vggfeat.network.storage_dtype import quantise

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, np.dtype[np.float64]]

SHAPES = [
    (14, 14),
    (14, 21),
    (21, 14),
    (9, 5),
    (5, 30),
    (36, 20),
    (7, 7),
    (2, 2),
    (2, 3),
    (1, 4),
    (1, 1),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
POOLS = [
    "avg",
    "max",
    "std",
    "gem",
    "gem(p=7.5)",
    "rmac",
    "rmac(levels=4)",
    "regions",
    "regions(levels=2)",
    "spp",
    "spp(3,1)",
    "flatten",
    "map",
]
NORMS = ["none", "l2", "ssr"]
MAPS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=4, max_dims=4, max_side=6),
    elements=st.floats(-1000, 1000, width=32),
)
VECTORS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=8),
    elements=st.floats(-(2.0**80), 2.0**80, width=32),
)


def spec(text: str) -> LayerSpec:
    return parse_specs(text, "vgg19")[0]


def maps(height: int, width: int, n: int = 3, channels: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * height + width)
    return 5 * torch.randn((n, channels, height, width), generator=generator)


def as_float64(x: torch.Tensor) -> Array:
    return x.to(torch.float64).numpy()


def unit(vector: Array) -> Array:
    length = math.sqrt(sum(float(value) ** 2 for value in vector))
    return vector / length if length else vector


def each_channel(x: Array, value: Callable[[Array], float]) -> Array:
    return np.array([[value(channel) for channel in image] for image in x])


def gem_of(p: float) -> Callable[[Array], float]:
    def value(channel: Array) -> float:
        powers = [max(v, 1e-6) ** p for v in channel.ravel().tolist()]
        return float((sum(powers) / len(powers)) ** (1 / p))

    return value


def deviation(channel: Array) -> float:
    values = channel.ravel().tolist()
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def regions_along_longer_side(short: int, long: int) -> int:
    """m of the paper at scale 1, by trying them all."""
    if short == long:
        return 1
    offs = {}
    for m in range(2, 200):
        step = (long - short) / (m - 1)
        offs[m] = round(abs((short - step) / short - 0.4), 9)
    return min(offs, key=lambda m: (offs[m], m))


def region_starts(side: int, region: int, count: int) -> list[int]:
    if count == 1:
        return [0]
    return [math.floor(i * (side - region) / (count - 1) + 1e-9) for i in range(count)]


def rmac_of_one(image: Array, scales: int) -> Array:
    total: Array = regions_of_one(image, scales).reshape(-1, len(image)).sum(0)
    return total


def regions_of_one(image: Array, scales: int) -> Array:
    _, height, width = image.shape
    short, long = min(height, width), max(height, width)
    m = regions_along_longer_side(short, long)
    found = []
    for scale in range(1, scales + 1):
        region = max(1, math.floor(2 * short / (scale + 1)))
        down = scale + m - 1 if height > width else scale
        across = scale + m - 1 if width > height else scale
        for top in region_starts(height, region, down):
            for left in region_starts(width, region, across):
                window = image[:, top : top + region, left : left + region]
                found.append(unit(np.array([channel.max() for channel in window])))
    joined: Array = np.concatenate(found)
    return joined


def spp_of_one(image: Array, levels: tuple[int, ...]) -> Array:
    _, height, width = image.shape
    values = []
    for n in levels:
        for channel in image:
            for i in range(n):
                for j in range(n):
                    rows = slice(math.floor(i * height / n), math.ceil((i + 1) * height / n))
                    columns = slice(math.floor(j * width / n), math.ceil((j + 1) * width / n))
                    values.append(channel[rows, columns].max())
    return np.array(values)


def pooled(x: Array, pool: str) -> Array:
    """What `pool` means, in float64."""
    references: dict[str, Callable[[], Array]] = {
        "avg": lambda: each_channel(x, lambda c: sum(c.ravel().tolist()) / c.size),
        "max": lambda: each_channel(x, lambda c: max(c.ravel().tolist())),
        "std": lambda: each_channel(x, deviation),
        "gem": lambda: each_channel(x, gem_of(3)),
        "gem(p=7.5)": lambda: each_channel(x, gem_of(7.5)),
        "rmac": lambda: np.array([rmac_of_one(image, 3) for image in x]),
        "rmac(levels=4)": lambda: np.array([rmac_of_one(image, 4) for image in x]),
        "regions": lambda: np.array([regions_of_one(image, 3) for image in x]),
        "regions(levels=2)": lambda: np.array([regions_of_one(image, 2) for image in x]),
        "spp": lambda: np.array([spp_of_one(image, (1, 2, 3, 6)) for image in x]),
        "spp(3,1)": lambda: np.array([spp_of_one(image, (3, 1)) for image in x]),
        "flatten": lambda: x.reshape(len(x), -1),
        "map": lambda: x,
    }
    return references[pool]()


def normalised(rows: Array, norm: str) -> Array:
    """What `norm` means, in float64, on axis 1."""
    if norm == "none":
        return rows
    if norm == "ssr":
        rows = np.where(rows < 0, -1.0, 1.0) * np.sqrt(np.abs(rows))
    by_vector = np.moveaxis(rows, 1, -1)
    flat = np.array([unit(vector) for vector in by_vector.reshape(-1, rows.shape[1])])
    return np.moveaxis(flat.reshape(by_vector.shape), -1, 1)


@pytest.mark.parametrize("size", SHAPES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pool", POOLS)
def test_every_pool_and_norm_is_its_definition(pool: str, norm: str, size: tuple[int, int]) -> None:
    """Each pool with each norm equals the paper's definition, on maps of any shape."""
    x = maps(*size)
    found = reduce_map(x, spec(f"conv5_3:{pool}:{norm}"))
    expected = normalised(pooled(as_float64(x), pool), norm)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pool", POOLS)
def test_dtype_and_memory_format_change_no_value(
    pool: str, dtype: torch.dtype, memory: torch.memory_format
) -> None:
    """Half-precision and channels-last input gives what its own values come to in float64."""
    x = maps(14, 9).to(dtype).to(memory_format=memory)
    found = reduce_map(x, spec(f"conv5_3:{pool}"))
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    np.testing.assert_allclose(found, pooled(as_float64(x), pool), rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_vectors_are_only_normalised(norm: str, dtype: torch.dtype) -> None:
    """A layer without positions is normalised over its whole length and not pooled."""
    x = maps(1, 50, n=4).flatten(1).to(dtype)
    found = reduce_map(x, spec(f"fc7:{norm}"))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, normalised(as_float64(x), norm), rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("side", [1, 2, 14])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pool", [*POOLS, None])
def test_result_survives_its_input(pool: str | None, norm: str, side: int) -> None:
    """Overwriting the input in place, as torchvision's ReLUs do, leaves the rows as they were."""
    x = maps(side, side) if pool else maps(side, side).flatten(1)
    found = reduce_map(x, spec(f"conv5_3:{pool}:{norm}" if pool else f"fc7:{norm}"))
    before = found.clone()
    x.fill_(math.nan)
    assert torch.equal(found, before)


@pytest.mark.parametrize("size", [(224, 224), (200, 333)], ids=str)
@pytest.mark.parametrize("pool", POOLS)
def test_row_shape_is_the_specs_and_no_value_is_read_back(pool: str, size: tuple[int, int]) -> None:
    """Rows have the shape that the spec announces, also on a device that holds no values at all."""
    asked = spec(f"conv5_3:{pool}:ssr")
    x = torch.empty((2, 512, *asked.layer.grid(*size)), dtype=torch.float16, device="meta")
    rows = reduce_map(x, asked)
    assert rows.device.type == "meta"
    assert rows.shape == (2, *asked.output_shape(*size, classes=1000))
    stored, clamped, finite = quantise(rows, "float16")
    assert (stored.dtype, clamped.shape, finite.shape) == (torch.float16, (2,), (2,))


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_spp_bins_are_those_of_adaptive_pooling(size: tuple[int, int]) -> None:
    """Each level of the pyramid equals torch's adaptive max pooling, bit for bit."""
    x = maps(*size)
    levels = [torch.nn.functional.adaptive_max_pool2d(x, n).flatten(1) for n in (1, 2, 4)]
    assert torch.equal(reduce_map(x, spec("conv5_3:spp(1,2,4)")), torch.cat(levels, 1))


@pytest.mark.parametrize(
    ("size", "regions"),
    [((14, 14), 14), ((14, 18), 20), ((14, 28), 26), ((18, 10), 20), ((1, 1), 14)],
    ids=str,
)
def test_rmac_counts_its_regions(size: tuple[int, int], regions: int) -> None:
    """R-MAC takes 1 + 4 + 9 regions of a square map, and l * (l + m - 1) at scale l of others."""
    one_channel = torch.ones((1, 1, *size))  # each region's unit vector is (1,)
    assert reduce_map(one_channel, spec("conv5_3:rmac")).item() == regions


@pytest.mark.parametrize("text", ["conv5_3:map:l2", "conv5_3:flatten:l2", "conv5_3:gem:ssr"])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e4, 1e15])
def test_no_scale_leaves_float32(text: str, scale: float) -> None:
    """Unit length is reached from values whose squares float32 cannot hold."""
    x = maps(4, 4).abs() * scale if scale >= 1 or "gem" not in text else maps(4, 4).abs()
    lengths = torch.linalg.vector_norm(reduce_map(x, spec(text)), dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_gem_of_large_activations_stays_finite() -> None:
    """A high exponent does not overflow on activations in the thousands."""
    x = torch.tensor([9000.0, 3000.0, 0.0, 10.0]).reshape(1, 1, 2, 2)
    found = reduce_map(x, spec("conv5_3:gem(p=50)")).item()
    assert found == pytest.approx(9000 * (1 / 4) ** (1 / 50), rel=1e-5)


def test_std_of_large_values_keeps_small_deviations() -> None:
    """A channel around 1,000 that varies by a hundredth has that deviation: it is no rounding."""
    x = 1000 + 0.01 * maps(14, 14) / 5
    found = reduce_map(x, spec("conv5_3:std"))
    np.testing.assert_allclose(found, as_float64(x).std((2, 3)), rtol=1e-3)


@pytest.mark.parametrize(
    "text", ["conv5_3:map", "conv5_3:avg", "conv5_3:std", "conv5_3:rmac", "fc7"]
)
@pytest.mark.parametrize("norm", ["l2", "ssr"])
def test_zeros_stay_zero(text: str, norm: str) -> None:
    """A vector of zeros has no direction and stays as it is, neither NaN nor anything else."""
    x = torch.zeros((2, 5)) if text == "fc7" else torch.zeros((2, 5, 3, 3))
    assert not reduce_map(x, spec(f"{text}:{norm}")).any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
def test_a_bad_value_shows_in_its_own_row_only(pool: str, norm: str, bad: float) -> None:
    """NaN and infinity in an activation come through every pool and norm, and stay in their row."""
    x = maps(7, 7)
    x[1, 2, 3, 3] = bad
    _, _, finite = quantise(reduce_map(x, spec(f"conv5_3:{pool}:{norm}")), "float16")
    assert finite.tolist() == [True, False, True]


@pytest.mark.parametrize(("text", "shape"), [("fc7", (2, 3, 4, 4)), ("conv5_3", (2, 3))])
def test_wrong_number_of_dimensions_is_refused(text: str, shape: tuple[int, ...]) -> None:
    """A map for a vector layer, or the reverse, is an error that names both."""
    with pytest.raises(ValueError, match=rf"{text}: expected \d dimensions, found shape \(2, 3"):
        reduce_map(torch.zeros(shape), spec(text))


@given(x=MAPS)
def test_l2_gives_length_one_or_zero(x: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    """Each position's channel vector has length one after l2, or was zero."""
    rows = reduce_map(torch.from_numpy(x), spec("conv5_3:map:l2"))
    lengths = np.linalg.norm(as_float64(rows), axis=1)
    np.testing.assert_allclose(lengths, np.abs(x).max(axis=1) > 0, atol=1e-6)


@given(x=VECTORS)
def test_ssr_keeps_signs_and_has_length_one(x: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    """The signed square root turns no sign round, and its vectors have length one or are zero."""
    rows = as_float64(reduce_map(torch.from_numpy(x), spec("fc7:ssr")))
    assert (rows * np.sign(x) >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), np.abs(x).max(axis=1) > 0, atol=1e-6)


@given(x=MAPS, p=st.floats(1, 60))
def test_gem_lies_between_avg_and_max(x: np.ndarray[Any, np.dtype[np.float32]], p: float) -> None:
    """For non-negative maps the generalised mean is no less than the mean, no more than the max."""
    positive = torch.from_numpy(np.abs(x)).clamp(min=1e-6)
    low, middle, high = (
        as_float64(reduce_map(positive, spec(f"conv5_3:{pool}")))
        for pool in ("avg", f"gem(p={p})", "max")
    )
    assert (low <= middle * (1 + 1e-5)).all()
    assert (middle <= high * (1 + 1e-5)).all()


@given(x=MAPS)
def test_gem_of_exponent_one_is_the_mean(x: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    """With p = 1 the generalised mean is the mean of the values clamped to 1e-6."""
    found = reduce_map(torch.from_numpy(x), spec("conv5_3:gem(p=1)"))
    expected = np.maximum(x.astype(np.float64), 1e-6).mean((2, 3))
    np.testing.assert_allclose(found, expected, rtol=2e-6)


@given(x=MAPS, channels_last=st.booleans())
def test_flatten_is_numpys_reshape(
    x: np.ndarray[Any, np.dtype[np.float32]], *, channels_last: bool
) -> None:
    """Flattening goes by channel, row, column whatever the memory format."""
    memory = torch.channels_last if channels_last else torch.contiguous_format
    found = reduce_map(
        torch.from_numpy(x).contiguous(memory_format=memory), spec("conv5_3:flatten")
    )
    np.testing.assert_array_equal(found, x.reshape(len(x), -1))


@given(x=MAPS, pool=st.sampled_from(["max", "std", "spp", "flatten", "map", "rmac"]))
def test_rows_do_not_depend_on_their_company(
    x: np.ndarray[Any, np.dtype[np.float32]], pool: str
) -> None:
    """Each image reduced alone gives its row of the batch."""
    batch = reduce_map(torch.from_numpy(x), spec(f"conv5_3:{pool}"))
    alone = [
        reduce_map(torch.from_numpy(x[i : i + 1]), spec(f"conv5_3:{pool}")) for i in range(len(x))
    ]
    torch.testing.assert_close(batch, torch.cat(alone), rtol=1e-6, atol=1e-6)


@given(
    x=hnp.arrays(
        np.float32, (3, 7), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)
    )
)
def test_float16_is_within_half_an_ulp_and_never_infinite(
    x: np.ndarray[Any, np.dtype[np.float32]],
) -> None:
    """Finite values become the nearest float16, at most 65504 in magnitude, and are counted."""
    stored, clamped, finite = quantise(torch.from_numpy(x), "float16")
    values = as_float64(stored)
    wanted = np.clip(x.astype(np.float64), -65504, 65504)
    assert stored.dtype == torch.float16
    assert np.isfinite(values).all()
    assert finite.tolist() == [True] * 3
    assert clamped.dtype == torch.int64
    assert clamped.tolist() == (np.abs(x.astype(np.float64)) > 65504).sum(1).tolist()
    exponent = np.maximum(np.frexp(wanted)[1] - 1, -14)  # below 2 ** -14 they are subnormal
    assert (np.abs(values - wanted) <= np.exp2(exponent - 10) / 2).all()


@pytest.mark.parametrize(
    ("value", "becomes", "count"),
    [
        (65504.0, 65504.0, 0),
        (65505.0, 65504.0, 1),
        (-65519.0, -65504.0, 1),
        (65520.0, 65504.0, 1),
        (-3e38, -65504.0, 1),
    ],
)
def test_only_values_above_float16s_largest_are_clamped(
    value: float, becomes: float, count: int
) -> None:
    """The largest float16 itself is no clamp; anything above it is, rounding or not."""
    stored, clamped, _ = quantise(torch.tensor([[value, 1.0]]), "float16")
    assert stored.tolist() == [[becomes, 1.0]]
    assert clamped.tolist() == [count]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_rows_that_were_not_finite_are_told(
    bad: float, dtype: Literal["float16", "float32"]
) -> None:
    """NaN and infinity mark their row, in maps too, and count as no clamp."""
    x = torch.ones((3, 2, 2, 2))
    x[1, 1, 0, 1] = bad
    _, clamped, finite = quantise(x, dtype)
    assert finite.tolist() == [True, False, True]
    assert clamped.tolist() == [0] * len(x)


def test_float32_is_stored_as_it_is() -> None:
    """Nothing is clamped or rounded on the way to float32."""
    x = torch.tensor([[3e38, -1e-40, 65520.0]])
    stored, clamped, finite = quantise(x, "float32")
    assert torch.equal(stored, x)
    assert clamped.tolist() == [0] * len(x)
    assert finite.tolist() == [True]


def test_every_pool_has_its_function() -> None:
    """The functions that the grammar names exist."""
    kinds = layer_spec.POOLS.values()
    assert all(callable(getattr(pooling, kind.function)) for kind in kinds)


def test_a_pool_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool registered by one line works from a layer spec to a row, with its norm and name."""

    def range_pool(x: torch.Tensor, _pool: layer_spec.Pool) -> torch.Tensor:
        return (x.amax((2, 3)) - x.amin((2, 3))).float()

    monkeypatch.setattr(pooling, "range_pool", range_pool, raising=False)
    monkeypatch.setitem(layer_spec.POOLS, "range", PoolKind("range_pool"))

    (one,) = parse_specs("conv5_3:range:l2", "vgg16")
    assert str(one) == "conv5_3:range:l2"
    assert one.output_shape(224, 224, classes=1000) == (512,)
    x = torch.randn(2, 512, 14, 14)
    spread = x.amax((2, 3)) - x.amin((2, 3))
    torch.testing.assert_close(reduce_map(x, one), spread / spread.norm(dim=1, keepdim=True))
