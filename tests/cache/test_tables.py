"""A cache as an object of Python, pandas, Arrow, xarray: values and memory are of the file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xarray as xr
from caches_to_search import cache_of, noise

import vggfeat
from vggfeat.errors import CacheError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from vggfeat import FeatureCache

LAYERS = {"conv1_1": noise(6, 4), "conv2_1": noise(6, 3, seed=1)}
MAPS = {**LAYERS, "conv3_1:map": noise(6, 24, seed=2).reshape(6, 2, 3, 4)}
STATES = [1, 2, 1, 0, 1, 1]


def of_file(path: Path, dtype: str, states: list[int] | None = None) -> FeatureCache:
    return cache_of(path / "f.h5", LAYERS if dtype == "int8" else MAPS, dtype, states)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """Three shards of two real rows each."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("shards")
    (folder / "images").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    settings = vggfeat.Settings(
        layers="conv1_1,conv2_1", model="vgg11", weights="random:0", size=32, device="cpu",
        workers=0,
    )  # fmt: skip
    sharding = vggfeat.Sharding(shards=3)
    vggfeat.extract(folder / "images", folder / "feats", settings, sharding=sharding)
    return vggfeat.open(folder / "feats")


def in_file(cache: FeatureCache, layer: str) -> NDArray[Any]:
    """What h5py reads."""
    parts = []
    for part in cache.parts():
        with h5py.File(part.path) as file:
            parts.append(file[f"features/{layer}"][:])
    return np.concatenate(parts)


def test_a_cache_is_a_context_of_named_rows(tmp_path: Path) -> None:
    """Its layers are iterated, its rows counted and named, and its maps dropped at the end."""
    path = of_file(tmp_path, "float16").path
    with vggfeat.open(path) as cache:
        assert list(cache) == list(cache.layers) == ["conv1_1", "conv2_1", "conv3_1:map"]
        assert (len(cache), cache.model) == (6, "vgg11")
        assert cache.names == [f"{row:06}.png" for row in range(6)]
        held = cache["conv1_1"]
    assert not cache._arrays
    np.testing.assert_array_equal(held, in_file(cache, "conv1_1"))
    np.testing.assert_array_equal(cache["conv1_1"], held)  # opened again on use


def test_shards_are_one_too(shards: FeatureCache) -> None:
    """A folder of shards has the same, its rows joined."""
    with shards as cache:
        assert isinstance(cache, vggfeat.ShardedCache)
        assert (list(cache), cache.model, len(cache)) == (["conv1_1", "conv2_1"], "vgg11", 6)
        assert cache.names == [f"{row}.png" for row in range(6)]
        frame, table, data = cache.to_pandas("conv2_1"), cache.to_arrow(), cache.to_xarray()
    right = in_file(shards, "conv2_1")
    np.testing.assert_array_equal(frame.to_numpy(), right)
    np.testing.assert_array_equal(np.stack(table["conv2_1"].to_numpy(zero_copy_only=False)), right)
    np.testing.assert_array_equal(data["conv2_1"].values, right)
    assert list(frame.index) == table["path"].to_pylist() == list(data["path"].values)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_values_are_those_of_the_done_rows(tmp_path: Path, dtype: str) -> None:
    """All three libraries have the done rows, by their paths; of int8 codes what they stand for."""
    cache = of_file(tmp_path, dtype, STATES)
    done = [0, 2, 4, 5]
    right = {layer: cache.values(layer, np.array(done)) for layer in cache}
    names = [f"{row:06}.png" for row in done]
    frame, table, data = cache.to_pandas(), cache.to_arrow(), cache.to_xarray()
    assert list(frame.index) == table["path"].to_pylist() == list(data["path"].values) == names
    assert list(frame.columns.unique("layer")) == ["conv1_1", "conv2_1"]
    for layer in LAYERS:
        np.testing.assert_array_equal(frame[layer].to_numpy(), right[layer])
    for layer, values in right.items():
        lists = np.array(table[layer].to_pylist(), np.float32)
        np.testing.assert_array_equal(lists.reshape(values.shape), values)
        np.testing.assert_array_equal(data[layer].values, values)
        assert data[layer].dims[0] == "path"
    assert cache.to_pandas("conv2_1", rows="all").shape == (6, 3)


CONVERSIONS: dict[str, Callable[[FeatureCache], NDArray[Any]]] = {
    "pandas": lambda cache: cache.to_pandas("conv1_1").to_numpy(),
    "arrow": lambda cache: np.frombuffer(
        cache.to_arrow("conv1_1")["conv1_1"].chunk(0).flatten().buffers()[1], np.float16
    ),
    "xarray": lambda cache: cache.to_xarray("conv3_1:map")["conv3_1:map"].to_numpy(),
}


@pytest.mark.parametrize("library", CONVERSIONS)
@pytest.mark.parametrize("states", [None, [0, 1, 1, 1, 2, 3]])
def test_nothing_is_copied(library: str, states: list[int] | None, tmp_path: Path) -> None:
    """Where the done rows follow one another, the memory is the map's; else it is not."""
    layer = "conv3_1:map" if library == "xarray" else "conv1_1"
    cache = of_file(tmp_path, "float16", states)
    assert np.shares_memory(CONVERSIONS[library](cache), cache[layer])
    cache = of_file(tmp_path, "float16", STATES)
    assert not np.shares_memory(CONVERSIONS[library](cache), cache[layer])


def test_types_are_those_of_the_libraries(tmp_path: Path) -> None:
    """A DataFrame, a Table with the shape of maps, a Dataset with the network's name."""
    cache = of_file(tmp_path, "float16")
    assert isinstance(cache.to_pandas("conv1_1"), pd.DataFrame)
    table, data = cache.to_arrow(["conv3_1:map"]), cache.to_xarray("conv3_1:map")
    assert isinstance(table, pa.Table)
    assert table.schema.field("conv3_1:map").metadata == {b"shape": b"[2, 3, 4]"}
    assert table.schema.field("conv3_1:map").type == pa.list_(pa.float16(), 24)
    assert isinstance(data, xr.Dataset)
    assert data.attrs["model"] == "vgg11"
    assert data["conv3_1:map"].shape == (6, 2, 3, 4)


def test_no_rows_and_no_text(tmp_path: Path) -> None:
    """Nothing done gives empty tables; a path that is no UTF-8 is written with its bytes."""
    cache = of_file(tmp_path, "float16", [0] * 6)
    assert cache.to_pandas("conv1_1").shape == (0, 4)
    assert cache.to_arrow().num_rows == 0
    assert cache.to_xarray().sizes["path"] == 0
    with h5py.File(cache.path, "r+") as file:
        file["images/path"][0] = b"\xff.png"
    with vggfeat.open(cache.path) as cache:
        assert cache.names[0] == "\udcff.png"
        assert cache.to_arrow("conv1_1", rows="all")["path"][0].as_py() == "\\xff.png"


def test_what_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers, maps as columns, rows, and libraries that are not installed."""
    cache = of_file(tmp_path, "float16")
    for convert in (cache.to_pandas, cache.to_arrow, cache.to_xarray):
        with pytest.raises(CacheError, match="no layer 'conv5_1'; it has conv1_1"):
            convert("conv5_1")
        with pytest.raises(UsageError, match="unknown rows 'some'; expected done or all"):
            convert(rows="some")  # type: ignore[arg-type] # as a user may
    with pytest.raises(UsageError, match=r"conv3_1:map of cache .* holds maps.*use to_xarray"):
        cache.to_pandas("conv3_1:map")
    for library, convert in (("pandas", cache.to_pandas), ("xarray", cache.to_xarray)):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(UsageError, match=rf"pip install '.*\[{library}\]'"):
            convert("conv1_1")
