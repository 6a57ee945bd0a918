"""Features in 8 bits: the error is bounded, zeros stay zeros, and files keep what they say."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
import torch
from command_line import SMALL, assert_one_line, vggfeat, write_images
from hypothesis import given
from hypothesis import strategies as st
from killing import contents

import vggfeat as library
from vggfeat.core.quantization import NAN_CODE, Scales, decode_codes, encode, scales_digest
from vggfeat.errors import CacheError
from vggfeat.network.storage_dtype import quantise

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

INT8 = [*SMALL, "--dtype", "int8"]


def rows(seed: int, count: int = 40, width: int = 7) -> NDArray[np.float32]:
    """Dimensions of very different ranges, one of them constant, one with many zeros."""
    noise = np.random.default_rng(seed)
    x = noise.normal(size=(count, width)) * 10.0 ** noise.integers(-4, 5, width)
    x[:, 0] = 3.25
    x[:, 1] = np.maximum(x[:, 1], 0)
    return x.astype(np.float32)


@given(st.integers(0, 10_000))
def test_the_error_is_half_a_step_at_most(seed: int) -> None:
    """A value within the range comes back within half a step, one 254th of the range."""
    x = rows(seed)
    scales = Scales.over(x.min(0), x.max(0))
    codes, beyond = encode(x, scales)
    step = (x.max(0).astype(np.float64) - x.min(0)) / 254
    error = np.abs(decode_codes(codes, scales).astype(np.float64) - x)
    assert beyond == 0
    assert (error <= step / 2 + 1e-6 * np.abs(x).max(0)).all()


@given(st.integers(0, 10_000))
def test_the_lowest_value_comes_back_exactly(seed: int) -> None:
    """Zeros that a ReLU left, and dimensions that never vary, come back as they were."""
    x = rows(seed)
    back = decode_codes(*_coded(x))
    assert np.array_equal(back[:, 0], x[:, 0])
    assert (back[:, 1][x[:, 1] == 0] == 0).all()


def _coded(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], Scales]:
    scales = Scales.over(x.min(0), x.max(0))
    return encode(x, scales)[0], scales


def test_what_lies_beyond_the_range_is_cut_to_it_and_counted() -> None:
    """Values outside become the nearest end of the range."""
    x = np.array([[-1.0], [0.5], [3.0]], dtype=np.float32)
    scales = Scales.over(np.array([0.0]), np.array([1.0]))
    codes, beyond = encode(x, scales)
    assert beyond == 2
    assert codes.tolist() == [[-127], [0], [127]]
    assert decode_codes(codes, scales)[:, 0].tolist() == pytest.approx([0, 0.5, 1], abs=1e-6)


def test_maps_have_a_scale_for_each_channel() -> None:
    """Rows (C, H, W) are scaled along their channels."""
    x = np.random.default_rng(0).normal(size=(5, 3, 2, 4)).astype(np.float32)
    scales = Scales.over(x.min((0, 2, 3)), x.max((0, 2, 3)))
    back = decode_codes(encode(x, scales)[0], scales)
    assert scales.scale.shape == (3,)
    assert np.abs(back - x).max() <= scales.scale.max() * 0.51


def test_a_code_of_its_own_is_not_a_number() -> None:
    """-128 stands for NaN and no value becomes it."""
    x = rows(0)
    codes, scales = _coded(x)
    assert codes.min() > NAN_CODE
    codes[2] = NAN_CODE
    assert np.isnan(decode_codes(codes, scales)[2]).all()


@given(st.integers(0, 10_000))
def test_the_device_codes_as_numpy_does(seed: int) -> None:
    """What the network's device stores is bit for bit what NumPy would, and counts the same."""
    x = rows(seed)
    scales = Scales.over(0.8 * x.min(0), 0.8 * x.max(0))
    codes, beyond = encode(x, scales)
    scale, offset = (torch.from_numpy(part) for part in scales.along(2))
    stored, clamped, finite = quantise(torch.from_numpy(x), "int8", (scale, offset))
    assert np.array_equal(stored.numpy(), codes)
    assert int(clamped.sum()) == beyond
    assert finite.all()


def test_the_digest_tells_scales_apart() -> None:
    """Another scale, another layer's name: another digest; none without scales."""
    one, other = Scales.over(np.zeros(3), np.ones(3)), Scales.over(np.zeros(3), np.full(3, 2.0))
    digests = {scales_digest(s) for s in ({"a": one}, {"a": other}, {"b": one}, {})}
    assert len(digests) == 4
    assert scales_digest({}) == ""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    write_images(folder / "images", 9)
    (folder / "images" / "broken.png").write_bytes(b"no image")
    for name, words in {"wide": [*SMALL, "--dtype", "float32"], "narrow": INT8}.items():
        done = vggfeat("extract", "images", *words, "--out", f"{name}.h5", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_extracted_codes_are_the_values_to_a_step(workplace: Path) -> None:
    """`--dtype int8` stores what float32 stores, to within half a step of each dimension."""
    wide, narrow = (library.open(workplace / f"{name}.h5") for name in ("wide", "narrow"))
    for layer in wide.layers:
        assert narrow[layer].dtype == np.int8
        scale = narrow.header.scales[layer].scale
        right = np.asarray(wide[layer][wide.done])
        found = narrow.values(layer, np.flatnonzero(narrow.done))
        assert (np.abs(found - right) <= 0.51 * scale + 1e-6).all()
        assert np.isnan(narrow.values(layer, np.flatnonzero(~narrow.done))).all()


def test_hdf5_tools_can_read_the_values(workplace: Path) -> None:
    """scale * code + offset of the plain datasets is what the reader gives."""
    cache = library.open(workplace / "narrow.h5")
    with h5py.File(workplace / "narrow.h5") as file:
        layer = cache.layers[0]
        codes = file[f"features/{layer}"][:].astype(np.float32)
        values = codes * file[f"scales/{layer}"][:] + file[f"offsets/{layer}"][:]
    assert np.array_equal(values[cache.done], cache.values(layer)[cache.done])


def test_an_int8_run_goes_on_with_the_scales_it_began_with(workplace: Path, tmp_path: Path) -> None:
    """Stopped after some rows and run again, also by a program that cannot see all images."""
    words: list[str | Path] = [
        "extract",
        workplace / "images",
        *INT8,
        "--out",
        tmp_path / "again.h5",
    ]
    assert vggfeat(*words, cwd=tmp_path).returncode == 0
    whole = contents(tmp_path / "again.h5")
    with h5py.File(tmp_path / "again.h5", "r+") as file:
        file["images/state"][3:7] = 0
        for layer in file["features"].values():
            layer[3:7] = 1
    assert vggfeat(*words, cwd=tmp_path).returncode == 0
    assert contents(tmp_path / "again.h5") == whole
    found = vggfeat("verify", tmp_path / "again.h5", cwd=tmp_path)
    assert found.returncode == 0, found.stdout


def test_new_images_come_in_with_the_old_scales(workplace: Path, tmp_path: Path) -> None:
    """`--update` keeps the scales, so old rows stay what they are."""
    images = write_images(tmp_path / "images", 5)
    words: list[str | Path] = ["extract", images, *INT8, "--out", tmp_path / "f.h5"]
    assert vggfeat(*words, cwd=tmp_path).returncode == 0
    before = library.open(tmp_path / "f.h5")
    old = before.values(before.layers[0])
    source = workplace / "images" / "08.png"
    (images / "zz.png").write_bytes(source.read_bytes())
    assert vggfeat(*words, "--update", cwd=tmp_path).returncode == 0
    after = library.open(tmp_path / "f.h5")
    assert len(after) == 6
    assert np.array_equal(after.values(after.layers[0])[:5], old)
    assert vggfeat("verify", tmp_path / "f.h5", cwd=tmp_path).returncode == 0


def test_caches_of_other_scales_are_not_merged(workplace: Path, tmp_path: Path) -> None:
    """Two int8 caches scaled to other images are refused with the reason."""
    images = write_images(tmp_path / "images", 4)
    vggfeat("extract", images, *INT8, "--out", "other.h5", cwd=tmp_path)
    done = vggfeat("merge", workplace / "narrow.h5", "other.h5", "--out", "m.h5", cwd=tmp_path)
    assert_one_line(done, 5, "int8 scaled to other images")


def test_wrong_scales_are_damage(workplace: Path, tmp_path: Path) -> None:
    """Scales that are missing, misshapen or changed are found on opening."""
    for change, words in (
        (lambda file, layer: file["scales"].__delitem__(layer), r"missing, or not float32"),
        (lambda file, layer: file[f"scales/{layer}"].write_direct(np.ones(64, np.float32)),
         "does not belong"),
    ):  # fmt: skip
        path = tmp_path / "bad.h5"
        path.write_bytes((workplace / "narrow.h5").read_bytes())
        with h5py.File(path, "r+") as file:
            layer = next(name for name in file["features"] if name == "conv1_1")
            change(file, layer)  # type: ignore[no-untyped-call] # a lambda has no types
        with pytest.raises(CacheError, match=words):
            library.open(path)


def test_an_int8_cache_serves_as_tensors_and_in_batches(workplace: Path) -> None:
    """Datasets and batches give values and not codes."""
    cache = library.open(workplace / "narrow.h5")
    layer = cache.layers[0]
    right = cache.values(layer, np.flatnonzero(cache.done))
    dataset = library.FeatureDataset(cache, [layer])
    assert np.array_equal(torch.stack([item[0] for item in dataset]).numpy(), right)  # type: ignore[attr-defined] # a Dataset iterates by index
    parts = [values for _, values in cache.batches(layer, 4)]
    assert np.array_equal(np.concatenate(parts), right)


def test_inspect_shows_values(workplace: Path) -> None:
    """`inspect` of an int8 cache speaks of values, near those of float32."""
    shown = {}
    for name in ("wide", "narrow"):
        done = vggfeat("inspect", f"{name}.h5", "--json", cwd=workplace)
        shown[name] = json.loads(done.stdout)["layers"]
    for wide, narrow in zip(shown["wide"], shown["narrow"], strict=True):
        assert narrow["dtype"] == "int8"
        assert narrow["mean"] == pytest.approx(wide["mean"], rel=0.02)
        assert narrow["saturated"] == 0
