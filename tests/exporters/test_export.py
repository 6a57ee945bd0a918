"""Exports: each read back by the format's own library, equal to what h5py reads of the cache."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import h5py
import hdf5plugin  # noqa: F401 registers its filters with h5py
import numpy as np
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import webdataset
from command_line import assert_one_line, vggfeat, write_images
from safetensors.numpy import load_file
from sklearn.preprocessing import normalize

from vggfeat.cache.format import Provenance
from vggfeat.cache.identity import Identity
from vggfeat.cache.layout import lay_out
from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.verify import verify
from vggfeat.core.arrays import blocks
from vggfeat.core.preprocessing import Preprocess
from vggfeat.errors import UsageError
from vggfeat.exporters.export import export
from vggfeat.exporters.registry import EXPORT_FORMATS, Format
from vggfeat.storage.atomic import TEMPORARY_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vggfeat.exporters.registry import Options
    from vggfeat.exporters.selection import Content

SMALL = ["--model", "vgg11", "--size", "32", "--weights", "random:0", "--device", "cpu",
         "--workers", "0", "--precision", "float32", "-q"]  # fmt: skip
LAYERS = ("conv1_1", "conv2_1.pre:gem(p=2.5):l2", "pool4:map")
STRANGE = os.fsdecode(b"dogs/\xff.png")
STRANGE_TEXT = r"dogs/\xff.png"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of images, one broken, one with a name that is no UTF-8; a cache a dtype."""
    folder = tmp_path_factory.mktemp("export")
    write_images(folder / "images" / "cats", 5)
    write_images(folder / "images" / "dogs", 4)
    (folder / "images" / "cats" / "03b.png").write_bytes(b"no image")
    shutil.copy(folder / "images" / "dogs" / "01.png", folder / "images" / STRANGE)
    for dtype in ("float16", "float32", "int8"):
        done = vggfeat("extract", "images", *SMALL, "--layers", ",".join(LAYERS), "--dtype", dtype,
                       "--out", f"{dtype}.h5", cwd=folder)  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder


def by_h5py(path: Path, *, every: bool = False) -> tuple[list[str], dict[str, NDArray[Any]]]:
    """Paths and features of done rows, or of all with NaN for the others; int8 as its values."""
    with h5py.File(path) as file:
        done = file["images/state"][()] == 1
        rows = np.ones_like(done) if every else done
        paths = [os.fsdecode(path) for path in file["images/path"][()][rows]]
        features = {}
        for layer in LAYERS:
            values = file[f"features/{layer}"][()]
            if values.dtype == np.int8:
                shape = (-1, *[1] * (values.ndim - 2))
                scale, offset = (
                    file[f"{kind}/{layer}"][()].reshape(shape) for kind in ("scales", "offsets")
                )
                values = values.astype(np.float32) * scale + offset
            values[~done] = np.nan
            features[layer] = values[rows]
    return paths, features


def as_text(paths: list[str]) -> list[str]:
    return [STRANGE_TEXT if path == STRANGE else path for path in paths]


def assert_same(found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def exported(folder: Path, out: Path, to: str, *more: str, dtype: str = "float16") -> str:
    done = vggfeat("export", f"{dtype}.h5", "--to", to, "--out", out, *more, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert not out.with_name(f".{out.name}.vggfeat.tmp").exists()
    return done.stdout


LEFT_OPEN = pytest.mark.filterwarnings(  # by webdataset's reader of tar files
    "ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
DTYPES = pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])


@DTYPES
def test_npy(workplace: Path, tmp_path: Path, dtype: str) -> None:
    """NumPy opens a file a layer, float16 as float16, beside a line a path."""
    exported(workplace, tmp_path / "out", "npy", dtype=dtype)
    paths, features = by_h5py(workplace / f"{dtype}.h5")
    assert (tmp_path / "out" / "paths.txt").read_text().splitlines() == as_text(paths)
    for layer, expected in features.items():
        name = layer.replace(":", "-")
        assert_same(np.load(tmp_path / "out" / f"{name}.npy", mmap_mode="r"), expected)


@DTYPES
def test_npz(workplace: Path, tmp_path: Path, dtype: str) -> None:
    """NumPy opens one archive of all layers, with the bytes of the paths as they are."""
    exported(workplace, tmp_path / "out.npz", "npz", dtype=dtype)
    paths, features = by_h5py(workplace / f"{dtype}.h5")
    with np.load(tmp_path / "out.npz") as archive:
        assert [os.fsdecode(path) for path in archive["paths"]] == paths
        assert set(archive) == {"paths", "states", *LAYERS}
        dates = {member.date_time for member in archive.zip.infolist()}
        assert dates == {(1980, 1, 1, 0, 0, 0)}  # the same whenever it is written, as np.savez's
        for layer, expected in features.items():
            assert_same(archive[layer], expected)


@DTYPES
@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_parquet(workplace: Path, tmp_path: Path, dtype: str, compress: str) -> None:
    """pyarrow reads a path and a list of fixed length a layer, halves as halves."""
    exported(workplace, tmp_path / "out.parquet", "parquet", "--compress", compress, dtype=dtype)
    paths, features = by_h5py(workplace / f"{dtype}.h5")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["path"].to_pylist() == as_text(paths)
    for layer, expected in features.items():
        shape = json.loads(table.schema.field(layer).metadata[b"shape"])
        flat = table[layer].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        assert_same(flat.reshape(-1, *shape), expected)


@DTYPES
def test_safetensors(workplace: Path, tmp_path: Path, dtype: str) -> None:
    """The safetensors library, which checks every offset, reads a tensor a layer and the paths."""
    exported(workplace, tmp_path / "out.safetensors", "safetensors", dtype=dtype)
    paths, features = by_h5py(workplace / f"{dtype}.h5")
    tensors = load_file(tmp_path / "out.safetensors")
    found = [os.fsdecode(bytes(row).rstrip(b"\0")) for row in tensors["paths"]]
    assert found == paths
    for layer, expected in features.items():
        assert_same(tensors[layer], expected)


@DTYPES
def test_csv(workplace: Path, tmp_path: Path, dtype: str) -> None:
    """pandas reads the very numbers back, a column a dimension."""
    said = exported(workplace, tmp_path / "out.csv", "csv", dtype=dtype)
    paths, features = by_h5py(workplace / f"{dtype}.h5")
    table = pd.read_csv(tmp_path / "out.csv", dtype=str, keep_default_na=False)
    assert table["path"].tolist() == as_text(paths)
    for layer, expected in features.items():
        columns = [f"{layer}_{at}" for at in range(expected[0].size)]
        found = table[columns].to_numpy(dtype=np.float64).astype(expected.dtype)
        assert_same(found.reshape(expected.shape), expected)
    assert r"1 path holds bytes that are no UTF-8" in said
    assert ("written as the float32 values" in said) == (dtype == "int8")


@DTYPES
@LEFT_OPEN
def test_webdataset(workplace: Path, tmp_path: Path, dtype: str) -> None:
    """The webdataset library reads one sample an image: its features and what it is."""
    exported(workplace, tmp_path / "out", "webdataset", dtype=dtype)
    paths, features = by_h5py(workplace / f"{dtype}.h5")
    shards = sorted(str(path) for path in (tmp_path / "out").iterdir())
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert [sample["json"]["path"] for sample in samples] == as_text(paths)
    for layer, expected in features.items():
        name = f"{layer.replace(':', '-')}.npy"
        assert_same(np.stack([sample[name] for sample in samples]), expected)


@LEFT_OPEN
def test_webdataset_in_shards(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of bounded size hold each image once, in order."""
    monkeypatch.setattr("vggfeat.exporters.webdataset.SHARD_BYTES", 4_000)
    export(workplace / "float16.h5", tmp_path / "out", to="webdataset", layers=["conv1_1"])
    shards = sorted(str(path) for path in (tmp_path / "out").iterdir())
    assert len(shards) > 1
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    paths, features = by_h5py(workplace / "float16.h5")
    assert [sample["json"]["path"] for sample in samples] == as_text(paths)
    assert_same(np.stack([sample["conv1_1.npy"] for sample in samples]), features["conv1_1"])


@DTYPES
def test_hloc(workplace: Path, tmp_path: Path, dtype: str) -> None:
    """Of one vector hloc finds `global_descriptor` by the image's name; of several, each layer."""
    exported(workplace, tmp_path / "one.h5", "hloc", "--layers", "conv1_1", "--norm", "none",
             dtype=dtype)  # fmt: skip
    exported(workplace, tmp_path / "all.h5", "hloc", dtype=dtype)
    paths, features = by_h5py(workplace / f"{dtype}.h5")
    names = as_text(paths)
    with h5py.File(tmp_path / "one.h5") as one, h5py.File(tmp_path / "all.h5") as every:
        # As hloc's pairs_from_retrieval reads them.
        found = np.stack([one[name]["global_descriptor"].__array__() for name in names])
        assert_same(found, features["conv1_1"])
        for layer, expected in features.items():
            assert_same(np.stack([every[name][layer][()] for name in names]), expected)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_faiss(workplace: Path, tmp_path: Path, metric: str) -> None:
    """faiss reads a flat index of the rows, at unit length for cosine; ids are lines of paths."""
    exported(workplace, tmp_path / "out", "faiss", "--layers", "conv1_1", "--metric", metric)
    paths, features = by_h5py(workplace / "float16.h5")
    index = faiss.read_index(str(tmp_path / "out" / "index.faiss"))
    expected = features["conv1_1"].astype(np.float32)
    if metric == "cosine":
        expected = normalize(expected)
    np.testing.assert_allclose(index.reconstruct_n(0, len(paths)), expected, rtol=1e-6)
    assert index.metric_type == (faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT)
    assert (tmp_path / "out" / "paths.txt").read_text().splitlines() == as_text(paths)


@DTYPES
@pytest.mark.parametrize("compress", ["none", "gzip", "zstd"])
def test_hdf5(workplace: Path, tmp_path: Path, dtype: str, compress: str) -> None:
    """h5py reads the same names, types, attributes and values, int8 still as codes."""
    exported(workplace, tmp_path / "out.h5", "hdf5", "--compress", compress, dtype=dtype)
    with h5py.File(workplace / f"{dtype}.h5") as old, h5py.File(tmp_path / "out.h5") as new:
        done = old["images/state"][()] == 1
        assert dict(new.attrs) == dict(old.attrs)
        for group in ("images", "features"):
            assert set(new[group]) == set(old[group])
            for name in old[group]:
                assert_same(new[group][name][()], old[group][name][()][done])
        assert ("scales" in new) == (dtype == "int8")
        for name in new.get("scales", ()):
            assert_same(new["scales"][name][()], old["scales"][name][()])
    if compress != "none":
        assert (tmp_path / "out.h5").stat().st_size < (workplace / f"{dtype}.h5").stat().st_size


def test_hdf5_without_filters_is_a_cache(workplace: Path, tmp_path: Path) -> None:
    """Some layers and rows in uncompressed HDF5 are a cache that reads and verifies as one."""
    exported(workplace, tmp_path / "out.h5", "hdf5", "--layers", "conv1_1", "--rows", "cats/*")
    cache = FeatureCache(tmp_path / "out.h5")
    paths, features = by_h5py(workplace / "float16.h5")
    cats = [at for at, path in enumerate(paths) if path.startswith("cats/")]
    assert cache.layers == ("conv1_1",)
    assert verify(tmp_path / "out.h5").bad == ()
    assert [cache.name(row) for row in range(len(cache))] == [paths[at] for at in cats]
    assert_same(np.asarray(cache["conv1_1"]), features["conv1_1"][cats])


def test_rows_all(workplace: Path, tmp_path: Path) -> None:
    """All rows keep their numbers: one that failed is NaN, and its state is named."""
    exported(workplace, tmp_path / "out.csv", "csv", "--rows", "all", "--layers", "relu1_1")
    paths, features = by_h5py(workplace / "float16.h5", every=True)
    table = pd.read_csv(tmp_path / "out.csv", dtype=str, keep_default_na=False)
    assert table["path"].tolist() == as_text(paths)
    assert table["state"].tolist() == ["failed" if "03b" in path else "done" for path in paths]
    found = table.drop(columns=["path", "state"]).to_numpy(dtype=np.float64)
    np.testing.assert_array_equal(found.astype(np.float16), features["conv1_1"])


def test_rows_to_come_are_no_numbers(workplace: Path, tmp_path: Path) -> None:
    """What a file holds where a row is pending is not taken for features."""
    shutil.copy(workplace / "float32.h5", tmp_path / "pending.h5")
    with h5py.File(tmp_path / "pending.h5", "r+") as file:
        file["images/state"][2] = 0
    export(tmp_path / "pending.h5", tmp_path / "out", to="npz", rows="all")
    with np.load(tmp_path / "out") as archive:
        assert archive["states"][:4].tolist() == ["done", "done", "pending", "done"]
        for layer in LAYERS:
            assert np.isnan(archive[layer][2]).all()
            assert not np.isnan(archive[layer][1]).any()


def test_small_blocks_change_nothing(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read a few rows at a time, every format of one file comes out the same, byte for byte."""
    forms = [name for name, form in EXPORT_FORMATS.items() if not form.is_folder]
    for name in forms:
        export(workplace / "float16.h5", tmp_path / f"whole.{name}", to=name)
    monkeypatch.setattr("vggfeat.core.arrays.BLOCK_BYTES", 3 * 4 * (64 + 128 + 2048))
    assert blocks(10, 4 * (64 + 128 + 2048)) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    for name in set(forms) - {"parquet"}:  # which makes a group of rows of each block
        export(workplace / "float16.h5", tmp_path / f"parts.{name}", to=name)
        whole, parts = (tmp_path / f"{how}.{name}" for how in ("whole", "parts"))
        assert whole.read_bytes() == parts.read_bytes(), name
    export(workplace / "float16.h5", tmp_path / "parts.parquet", to="parquet")
    one, other = (pq.read_table(tmp_path / f"{how}.parquet") for how in ("whole", "parts"))
    assert one.equals(other)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--to", "mat"], "unknown format 'mat'; expected one of npy, npz"),
        (["--to", "csv", "--compress", "zstd"], "compress zstd is not for csv; it is for parquet"),
        (["--to", "hdf5", "--compress", "xz"], "unknown compress 'xz'; expected one of none, gzip"),
        (["--to", "csv", "--rows", "birds/*"], "matches 'birds/*'; paths look like"),
        (["--to", "csv", "--rows", "*03b*"], "none of them is done"),
        (["--to", "faiss"], "one layer of vectors, requested"),
        (["--to", "faiss", "--layers", "pool4:map"], "one layer of vectors, requested pool4:map"),
        (
            ["--to", "faiss", "--metric", "l1"],
            "unknown metric 'l1'; expected one of cosine, ip",
        ),
    ],
)
def test_usage(workplace: Path, tmp_path: Path, words: list[str], expected: str) -> None:
    """What makes no sense ends in exit 2 and leaves nothing behind."""
    out = tmp_path / "out"
    done = vggfeat("export", "float16.h5", "--out", out, *words, cwd=workplace)
    assert_one_line(done, 2, expected)
    assert os.listdir(tmp_path) == []


def test_what_is_there_stays(workplace: Path, tmp_path: Path) -> None:
    """An output that is there already is refused and stays as it is."""
    out = tmp_path / "out.csv"
    out.write_text("mine")
    done = vggfeat("export", "float16.h5", "--to", "csv", "--out", out, cwd=workplace)
    assert_one_line(done, 2, "exists; choose another --out or delete it")
    assert out.read_text() == "mine"
    done = vggfeat("export", "float16.h5", "--to", "csv", "--out", tmp_path / "no" / "x.csv",
                   cwd=workplace)  # fmt: skip
    assert_one_line(done, 2, "does not exist; create it first")
    done = vggfeat("export", "float16.h5", "--to", "csv", "--out", tmp_path / "y.csv", "--layers",
                   "fc7", cwd=workplace)  # fmt: skip
    assert_one_line(done, 2, "has no layer 'fc7'; it has conv1_1")


@pytest.mark.parametrize("to", ["csv", "npy"])
def test_what_a_run_killed_at_its_end_left(workplace: Path, tmp_path: Path, to: str) -> None:
    """Killed between the output's name and the end of the temporary, the next run removes that."""
    out, temporary = tmp_path / "out", tmp_path / f".out{TEMPORARY_SUFFIX}"
    export(workplace / "float16.h5", out, to=to)
    if to == "csv":
        os.link(out, temporary)
    else:
        temporary.mkdir()
        (temporary / ".vggfeat-unfinished").touch()
    with pytest.raises(UsageError, match="exists"):
        export(workplace / "float16.h5", out, to=to)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("module", "extra", "words"),
    [
        ("pyarrow", "parquet", ["--to", "parquet"]),
        ("faiss", "faiss", ["--to", "faiss", "--layers", "conv1_1"]),
        ("hdf5plugin", "zstd-hdf5", ["--to", "hdf5", "--compress", "zstd"]),
    ],
)
def test_a_missing_library_is_named(
    workplace: Path, tmp_path: Path, module: str, extra: str, words: list[str]
) -> None:
    """Where an extra is not installed, the message says what to install, and nothing is left."""
    code = f"import sys; sys.modules[{module!r}] = None; from vggfeat.cli import main; main()"
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", code, "export", "float16.h5", "--out", out, *words],
        cwd=workplace, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert_one_line(done, 2, f"needs {module}", "pip install '", f"[{extra}]'")
    assert os.listdir(tmp_path) == []


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache whose CSV takes seconds to write."""
    out = tmp_path_factory.mktemp("large") / "large.h5"
    rows = 20_000
    identity = Identity("vgg16", "w", "00" * 32, "float32", "float32", Preprocess(), ("fc7",))
    provenance = Provenance(b"/", {"batch_size": 1}, "2026-01-02T03:04:05+00:00", "1", {})
    lay_out(str(out), rows, 9, shapes={"fc7": (512,)}, identity=identity, provenance=provenance)
    with h5py.File(out, "r+") as file:
        file["images/path"][:] = [f"{row:05}.png".encode() for row in range(rows)]
        file["images/state"][:] = 1
        file["features/fc7"][:] = np.random.default_rng(0).normal(size=(rows, 512))
    return out


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to", ["csv", "webdataset"])
def test_killed_in_the_middle(large: Path, tmp_path: Path, number: signal.Signals, to: str) -> None:
    """Killed while it writes, there is nothing under the final name; again, it is whole."""
    out, unfinished = tmp_path / "out", tmp_path / f".out{TEMPORARY_SUFFIX}"
    process = subprocess.Popen(
        [sys.executable, "-m", "vggfeat", "export", large, "--to", to, "--out", out],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not unfinished.exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    status = process.wait()
    assert status == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert not out.exists()
    if number != signal.SIGKILL:
        assert os.listdir(tmp_path) == []
    assert all(name.startswith(".") for name in os.listdir(tmp_path))
    if to == "webdataset" and number == signal.SIGKILL:
        export(large, out, to=to)
        with tarfile.open(out / "shard-000000.tar") as shard:
            assert len(shard.getnames()) == 2 * len(FeatureCache(large))
        assert not unfinished.exists()


def test_others_read_the_folder_of_an_export(workplace: Path, large: Path, tmp_path: Path) -> None:
    """pyarrow and pandas read a folder of exports, while one is made and after it is killed."""
    export(workplace / "float16.h5", tmp_path / "a.parquet", to="parquet", layers=["conv1_1"])
    assert os.listdir(tmp_path) == ["a.parquet"]
    rows = pq.read_metadata(tmp_path / "a.parquet").num_rows
    words = ["--to", "parquet", "--out", str(tmp_path / "b.parquet")]
    process = subprocess.Popen(
        [sys.executable, "-m", "vggfeat", "export", str(large), *words], stdout=subprocess.DEVNULL
    )
    unfinished = tmp_path / f".b.parquet{TEMPORARY_SUFFIX}"
    while not unfinished.exists():
        assert process.poll() is None
    process.send_signal(signal.SIGSTOP)
    assert (tmp_path / ".b.parquet.lock").exists()
    for way in ("at work", "killed"):
        assert pyarrow.dataset.dataset(tmp_path).count_rows() == rows, way
        assert len(pd.read_parquet(tmp_path)) == rows, way
        process.kill()
        process.wait()
    export(large, tmp_path / "b.parquet", to="parquet")
    assert sorted(os.listdir(tmp_path)) == ["a.parquet", "b.parquet"]


def test_a_format_is_a_function_and_a_line(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function and its line in the registry make a format that `export` writes and publishes."""

    def write_sums(content: Content, path: str, _options: Options) -> None:
        sums = np.concatenate([values.sum(axis=1) for values in content.of("conv1_1")])
        Path(path).write_text("\n".join(map(str, sums)))

    monkeypatch.setitem(EXPORT_FORMATS, "sums", Format(write_sums))
    report = export(workplace / "float16.h5", tmp_path / "out", to="sums", layers=["conv1_1"])
    cache = FeatureCache(workplace / "float16.h5")
    expected = cache["conv1_1"][np.flatnonzero(cache.done)].sum(axis=1)
    assert (tmp_path / "out").read_text().split() == [str(one) for one in expected]
    assert (report.format, report.rows) == ("sums", len(expected))


def test_a_name_with_a_line_end_stays_in_its_line(tmp_path: Path) -> None:
    """Control characters of a path are escaped, so that line and row numbers agree."""
    write_images(tmp_path / "images", 2)
    (tmp_path / "images" / "00.png").rename(tmp_path / "images" / "0\n0.png")
    done = vggfeat("extract", "images", *SMALL, "--layers", "conv1_1", "--out", "f.h5",
                   cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = vggfeat("export", "f.h5", "--to", "npy", "--out", "out", "--json", cwd=tmp_path)
    assert (tmp_path / "out" / "paths.txt").read_text() == "0\\x0a0.png\n01.png\n"
    assert json.loads(said.stdout)["notes"]
    with (tmp_path / "out" / "states.txt").open(newline="") as file:
        assert [row for (row,) in csv.reader(file)] == ["done", "done"]


def unit(values: NDArray[Any], norm: str) -> NDArray[Any]:
    """Rows by NumPy in float64, maps at each position, in the dtype that they had."""
    x = values.astype(np.float64)
    if norm == "ssr":
        x = np.sign(x) * np.abs(x) ** 0.5
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return (x / np.where(length > 0, length, 1)).astype(values.dtype)


def by_pyarrow(out: Path, layer: str) -> NDArray[Any]:
    column = pq.read_table(out)[layer].combine_chunks()
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), -1)


def by_webdataset(out: Path, layer: str) -> NDArray[Any]:
    shards = sorted(map(str, out.iterdir()))
    samples = webdataset.WebDataset(shards, shardshuffle=False).decode()
    return np.stack([sample[f"{layer}.npy"] for sample in samples])


def by_hloc(out: Path, _layer: str) -> NDArray[Any]:
    """The one dataset of each image, whatever its name."""
    found: list[Any] = []
    with h5py.File(out) as file:
        file.visititems(lambda _, one: found.append(one) if isinstance(one, h5py.Dataset) else None)
        return np.stack([one[()] for one in found])


def normed_by_h5py(out: Path, layer: str) -> NDArray[Any]:
    with h5py.File(out) as file:
        return np.asarray(file[f"features/{layer}:l2"][()])


READERS: dict[str, Callable[[Path, str], NDArray[Any]]] = {
    "npy": lambda out, layer: np.asarray(np.load(out / f"{layer}.npy")),
    "npz": lambda out, layer: np.asarray(np.load(out)[layer]),
    "parquet": by_pyarrow,
    "safetensors": lambda out, layer: np.asarray(load_file(out)[layer]),
    "csv": lambda out, _: np.asarray(pd.read_csv(out).iloc[:, 2:].to_numpy()),
    "webdataset": by_webdataset,
    "hloc": by_hloc,
    "hdf5": normed_by_h5py,
}


@LEFT_OPEN
@DTYPES
@pytest.mark.parametrize("to", READERS)
def test_unit_length_in_every_format(workplace: Path, tmp_path: Path, to: str, dtype: str) -> None:
    """With --norm l2 vectors are NumPy's at unit length, codes decoded first, in the same dtype."""
    said = exported(workplace, tmp_path / "out", to, "--layers", "conv1_1", "--norm", "l2",
                    dtype=dtype)  # fmt: skip
    assert "norm l2: vectors at unit length" in said
    expected = unit(by_h5py(workplace / f"{dtype}.h5")[1]["conv1_1"], "l2")
    found = READERS[to](tmp_path / "out", "conv1_1")
    if to == "csv":
        found = found.astype(expected.dtype)
    assert_same(found, expected)


def neighbours(vectors: NDArray[Any], *, cosine: bool) -> NDArray[np.int64]:
    """The first of each row by inner products, as hloc's pairs_from_retrieval, or by cosines."""
    x = vectors.astype(np.float64)
    scores = normalize(x) @ normalize(x).T if cosine else x @ x.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :3]


def test_hloc_retrieves_by_cosine(tmp_path: Path) -> None:
    """Inner products of what hloc reads are the cosines of the features, though lengths differ."""
    noise = np.random.default_rng(3)
    features = noise.random((40, 32), np.float32) * np.exp(2 * noise.standard_normal((40, 1)))
    cache = made_of(tmp_path / "f.h5", features.astype(np.float32))
    for name, norm in (("default.h5", None), ("raw.h5", "none")):
        made = export(cache, tmp_path / name, to="hloc", norm=norm)  # type: ignore[arg-type] # a choice
        assert made.norm == (norm or "l2")
    found = {name: by_hloc(tmp_path / name, "") for name in ("default.h5", "raw.h5")}
    right = neighbours(features, cosine=True)
    np.testing.assert_array_equal(neighbours(found["default.h5"], cosine=False), right)
    overlap = np.mean([len({*a} & {*b}) / 3 for a, b in zip(
        neighbours(found["raw.h5"], cosine=False), right, strict=True)])  # fmt: skip
    assert overlap < 0.7  # long vectors are hubs: this is what unit length is for


def made_of(path: Path, rows: NDArray[np.float32], dtype: str = "float32") -> Path:
    """A cache of one layer, conv1_1, of these rows."""
    identity = Identity("vgg11", "w", "00" * 32, "float32", dtype, Preprocess(), ("conv1_1",))
    provenance = Provenance(b"/", {"batch_size": 1}, "2026-01-02T03:04:05+00:00", "1", {})
    lay_out(str(path), len(rows), 8, shapes={"conv1_1": rows.shape[1:]}, identity=identity,
            provenance=provenance)  # fmt: skip
    with h5py.File(path, "r+") as file:
        file["images/path"][:] = [f"{row:03}.png".encode() for row in range(len(rows))]
        file["images/state"][:] = 1
        file["features/conv1_1"][:] = rows
    return path


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("norm", ["l2", "ssr"])
def test_rows_that_are_hard_to_normalise(tmp_path: Path, dtype: str, norm: Any) -> None:
    """Zeros stay zeros, the largest and smallest numbers overflow nowhere, signs are kept."""
    limits = np.finfo(dtype)
    rows = np.array(
        [[0, 0, 0], [limits.max] * 3, [limits.smallest_subnormal] * 3, [-3, 0, 4], [1e-4, 2, -9]]
    ).astype(dtype)
    cache = made_of(tmp_path / "f.h5", rows, dtype)
    export(cache, tmp_path / "f.npz", to="npz", norm=norm)
    found = np.load(tmp_path / "f.npz")["conv1_1"]
    assert_same(found, unit(rows, norm))
    assert np.isfinite(found).all()
    assert not found[0].any()
    again = tmp_path / "g.npz"
    export(made_of(tmp_path / "u.h5", found, dtype), again, to="npz", norm="l2")
    np.testing.assert_allclose(np.load(again)["conv1_1"], found, rtol=2 * float(limits.eps))


def test_maps_are_normalised_at_each_position(workplace: Path, tmp_path: Path) -> None:
    """As `:map:l2` does; without --norm maps and several layers go to hloc as they are."""
    exported(workplace, tmp_path / "m.npz", "npz", "--layers", "pool4:map", "--norm", "l2",
             dtype="float32")  # fmt: skip
    _, features = by_h5py(workplace / "float32.h5")
    assert_same(np.load(tmp_path / "m.npz")["pool4:map"], unit(features["pool4:map"], "l2"))
    said = exported(workplace, tmp_path / "m.h5", "hloc", "--layers", "pool4:map", dtype="float32")
    assert "note: norm" not in said
    assert_same(by_hloc(tmp_path / "m.h5", ""), features["pool4:map"])


def test_a_normalised_cache_names_its_values(workplace: Path, tmp_path: Path) -> None:
    """To hdf5 conv1_1 becomes conv1_1:l2, whose checksums hold, equal to an extraction of it."""
    done = vggfeat("extract", "images", *SMALL, "--layers", "conv1_1:l2", "--dtype", "float32",
                   "--out", tmp_path / "right.h5", cwd=workplace)  # fmt: skip
    assert done.returncode == 0, done.stderr
    exported(workplace, tmp_path / "out.h5", "hdf5", "--layers", "conv1_1", "--norm", "l2",
             "--rows", "all", dtype="float32")  # fmt: skip
    right, made = FeatureCache(tmp_path / "right.h5"), FeatureCache(tmp_path / "out.h5")
    assert made.header.identity == right.header.identity
    np.testing.assert_allclose(made.values("conv1_1:l2"), right.values("conv1_1:l2"), rtol=1e-6)
    assert not len(verify(tmp_path / "out.h5").bad)
    for words, says in (
        (["--layers", LAYERS[1], "--norm", "ssr"], "has norm l2 already"),
        (["--layers", "conv1_1", "--norm", "l1"], "unknown norm 'l1'"),
    ):
        done = vggfeat("export", "float16.h5", "--to", "hdf5", "--out", tmp_path / "no.h5", *words,
                       cwd=workplace)  # fmt: skip
        assert_one_line(done, 2, says)
        assert not (tmp_path / "no.h5").exists()
