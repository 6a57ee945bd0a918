from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import torch
from places import REPOSITORY
from torch.utils.data import DataLoader

import vggfeat
from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.torch_dataset import FeatureDataset, as_tensor
from vggfeat.core.records import Failure
from vggfeat.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PATHS = (b"a.jpg", b"b/c.jpg", b"b/\xff\xfe.jpg", b"z.jpg", "ü.jpg".encode())  # sorted by bytes
PREPROCESS = {
    "size": 224,
    "resize": 256,
    "crop": "center",
    "exif": "apply",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bilinear",
    "background": "white",
}


def write_attributes(file: h5py.File, layers: Sequence[str], dtype: str) -> None:
    """The attributes as docs/FORMAT.md has them, by hand."""
    digested = {
        "dtype": dtype,
        "layers": sorted(layers),
        "model": "vgg16",
        "precision": "float32",
        "preprocess": PREPROCESS,
        "weights_sha256": "cd" * 32,
    }
    text = json.dumps(digested, sort_keys=True, separators=(",", ":"))
    file.attrs.update(
        {
            "format": "vggfeat",
            "format_version": 1,
            "created_utc": "2026-01-02T03:04:05+00:00",
            "tool_version": "0.1",
            "model": "vgg16",
            "weights": "imagenet",
            "weights_sha256": "cd" * 32,
            "preprocess": json.dumps(PREPROCESS),
            "precision": "float32",
            "config": '{"batch_size": 8}',
            "fingerprint": hashlib.sha256(text.encode()).hexdigest(),
            "versions": "{}",
            "root": np.bytes_(b"/data"),
            "warning": "",
        }
    )


def make(
    out: Path,
    features: dict[str, NDArray[Any]],
    states: Sequence[int] = (1, 1, 2, 0, 1),
) -> str:
    """A cache by raw h5py, contiguous."""
    rows = len(states)
    paths = PATHS if rows == len(PATHS) else tuple(b"%06d.jpg" % row for row in range(rows))
    errors = [b"why %d" % row if state == 2 else b"" for row, state in enumerate(states)]
    with h5py.File(out, "w") as file:
        images = file.create_group("images")
        images["path"] = np.array(paths)
        images["size"] = np.arange(rows, dtype=np.int64) * 10
        images["mtime_ns"] = np.arange(rows, dtype=np.int64) * 100
        images["state"] = np.array(states, dtype=np.uint8)
        images["checksum"] = np.arange(rows, dtype=np.uint32) + 2**31
        images["error"] = np.array(errors, dtype="S160")
        for spec, values in features.items():
            file.create_dataset(f"features/{spec}", data=values)
        write_attributes(file, list(features), next(iter(features.values())).dtype.name)
    return str(out)


def random_features(dtype: str = "float16", rows: int = 5) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(0)
    return {
        "conv5_3:map": random.standard_normal((rows, 2, 3, 4)).astype(dtype),
        "fc7": random.standard_normal((rows, 6)).astype(dtype),
    }


@pytest.fixture
def path(tmp_path: Path) -> str:
    return make(tmp_path / "f.h5", random_features())


@pytest.fixture
def cache(path: str) -> FeatureCache:
    return FeatureCache(path)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("chunked", [False, True])
def test_two_readers_agree(tmp_path: Path, dtype: str, *, chunked: bool) -> None:
    """The memory map shows what h5py reads, for each dtype and for vectors and maps."""
    features = random_features(dtype)
    make(tmp_path / "f.h5", features)
    if chunked:  # one chunk, so still one run
        with h5py.File(tmp_path / "f.h5", "r+") as file:
            for spec, values in features.items():
                del file[f"features/{spec}"]
                file.create_dataset(f"features/{spec}", data=values, chunks=values.shape)
    cache = vggfeat.open(tmp_path / "f.h5")
    assert cache.layers == ("conv5_3:map", "fc7")
    assert len(cache) == 5
    with h5py.File(tmp_path / "f.h5") as file:
        for spec in cache.layers:
            expected = file[f"features/{spec}"][:]
            assert isinstance(cache[spec], np.memmap)
            assert cache[spec].dtype == expected.dtype
            assert cache[spec].shape == expected.shape
            assert cache[spec].tobytes() == expected.tobytes() == features[spec].tobytes()


def test_columns_equal_h5py(path: str, cache: FeatureCache) -> None:
    """States, checksums, sizes, times and paths are those of the file."""
    with h5py.File(path) as file:
        images = {name: item[:] for name, item in file["images"].items()}
    assert cache.state.tolist() == images["state"].tolist() == [1, 1, 2, 0, 1]
    assert cache.done.tolist() == [True, True, False, False, True]
    assert cache.checksums.tolist() == images["checksum"].tolist()
    assert cache.sizes.tolist() == images["size"].tolist()
    assert cache.mtimes.tolist() == images["mtime_ns"].tolist()
    assert cache.paths.tolist() == images["path"].tolist()
    assert cache.failures() == [Failure(2, "why 2")]


def test_arrays_are_read_only(cache: FeatureCache) -> None:
    """Nothing can be written through a cache."""
    for array in (cache["fc7"], cache.state, cache.paths):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]


def test_arrays_show_the_file_as_it_is_now(path: str, cache: FeatureCache) -> None:
    """What a run writes while the cache is open is seen, through the same arrays."""
    features, state = cache["fc7"], cache.state
    assert state[3] == 0
    with h5py.File(path, "r+") as file:
        file["features/fc7"][3] = 7
        file["images/state"][3] = 1
    assert features[3].tolist() == [7.0] * 6
    assert state[3] == 1
    assert cache.done[3]


@pytest.mark.parametrize("row", range(5))
def test_row_and_name(cache: FeatureCache, row: int) -> None:
    """A path finds its row as bytes or text, and a row its path, UTF-8 or not."""
    assert cache.row(PATHS[row]) == row
    assert cache.name(row) == PATHS[row].decode(errors="surrogateescape")
    assert cache.row(cache.name(row)) == row


@pytest.mark.parametrize("name", ["", "a", "a.jp", "a.jpg2", "b/c.jpgx" * 9, "zz", b"b/\xff"])
def test_unknown_paths(cache: FeatureCache, name: str | bytes) -> None:
    """A path that is not in the cache is a KeyError."""
    with pytest.raises(KeyError):
        cache.row(name)


@pytest.mark.parametrize(
    ("states", "views"),
    [((1, 1, 1, 1, 1), True), ((0, 1, 1, 1, 0), True), ((1, 0, 1, 2, 1), False), ((0,) * 5, True)],
)
@pytest.mark.parametrize("size", [1, 2, 3, 1024])
def test_batches(tmp_path: Path, states: tuple[int, ...], size: int, *, views: bool) -> None:
    """Batches are exactly the done rows in order; of rows in a run they are views of the map."""
    features = random_features()
    cache = FeatureCache(make(tmp_path / "f.h5", features, states))
    seen: list[int] = []
    for rows, values in cache.batches("fc7", size):
        assert 1 <= len(rows) <= size
        assert values.tobytes() == features["fc7"][rows].tobytes()
        assert np.shares_memory(values, cache["fc7"]) or not views
        seen += rows.tolist()
    assert seen == [row for row, state in enumerate(states) if state == 1]


def test_names_of_layers(cache: FeatureCache) -> None:
    """Other names of a layer find it."""
    assert cache["relu5_3:map"] is cache["conv5_3:map"]
    assert cache["relu7"] is cache["fc7"]
    assert "relu7" in cache
    assert "fc6" not in cache


@pytest.mark.parametrize("layer", ["fc6", "conv5_3"])
def test_missing_layers(cache: FeatureCache, layer: str) -> None:
    """A layer that the cache does not have is refused, with those it has."""
    with pytest.raises(CacheError, match=f"no layer '{layer}'; it has conv5_3:map, fc7"):
        cache[layer]


def test_layers_that_do_not_exist(cache: FeatureCache) -> None:
    """A layer that the network does not have is refused by name."""
    with pytest.raises(CacheError, match="'conv9_1' is not in vgg16"):
        cache["conv9_1"]


def test_text(cache: FeatureCache) -> None:
    """A cache shows its path, its size and its layers."""
    assert repr(cache) == f"FeatureCache({cache.path!r}, 5 rows, layers conv5_3:map, fc7)"


def test_pickling(cache: FeatureCache) -> None:
    """A cache pickles as its path, however large its arrays, and comes back whole."""
    assert len(cache["fc7"]) == 5
    data = pickle.dumps(cache)
    assert len(data) < 200 + len(cache.path)
    again = pickle.loads(data)
    assert again["fc7"].tobytes() == cache["fc7"].tobytes()
    rows = FeatureDataset(cache, ["fc7"])
    copy = pickle.loads(pickle.dumps(rows))
    assert copy.layers == ("fc7",)
    assert torch.equal(copy[1][0], rows[1][0])


def test_reading_leaves_torch_alone(path: str) -> None:
    """Opening a cache and reading a layer does not load torch."""
    code = (
        "import sys, vggfeat\n"
        "cache = vggfeat.open(sys.argv[1])\n"
        "print(cache['fc7'].shape, sorted({'torch', 'torchvision'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], cwd=REPOSITORY, check=True, capture_output=True
    )
    assert done.stdout == b"(5, 6) []\n"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_tensors_equal_the_file(tmp_path: Path, dtype: str) -> None:
    """A layer as a tensor has the file's dtype, shape and values."""
    features = random_features(dtype)
    cache = FeatureCache(make(tmp_path / "f.h5", features))
    for spec, values in features.items():
        tensor = as_tensor(cache, spec)
        assert tensor.dtype == getattr(torch, dtype)
        assert tensor.shape == values.shape
        assert tensor.numpy().tobytes() == values.tobytes()


def test_tensors_copy_nothing(path: str, cache: FeatureCache) -> None:
    """A tensor's memory is a map of the file."""
    tensor = as_tensor(cache, "fc7")
    address = tensor.data_ptr()
    holding = [
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        for start, end in [[int(part, 16) for part in line.split()[0].split("-")]]
        if start <= address < end
    ]
    assert holding == [os.path.realpath(path)]


def test_writing_to_a_tensor_leaves_the_file(path: str, cache: FeatureCache) -> None:
    """A slip of the pen changes neither the file nor what others read of it."""
    before = Path(path).read_bytes()
    tensor = as_tensor(cache, "fc7")
    tensor += 1
    assert tensor[0, 0].item() != cache["fc7"][0, 0]
    assert Path(path).read_bytes() == before
    assert cache["fc7"].tobytes() == random_features()["fc7"].tobytes()


def test_a_dataset_item(cache: FeatureCache) -> None:
    """An item is a done row's features, a tensor a layer in the order asked for, and the row."""
    dataset = FeatureDataset(cache, ["fc7", "conv5_3:map"])
    assert len(dataset) == 3
    vector, map_, row = dataset[2]
    assert row.dtype == torch.int64
    assert row.item() == 4
    assert vector.numpy().tobytes() == random_features()["fc7"][4].tobytes()
    assert map_.numpy().tobytes() == random_features()["conv5_3:map"][4].tobytes()


@pytest.mark.filterwarnings("ignore:(?s).*use of fork.*:DeprecationWarning")
def test_a_data_loader_gives_every_done_row_once(tmp_path: Path) -> None:
    """Through two workers, each done row comes once with its own features."""
    features = random_features(rows=40)
    states = [1 if row % 3 else 2 for row in range(40)]
    dataset = FeatureDataset(make(tmp_path / "f.h5", features, states))
    seen: list[int] = []
    for maps, vectors, rows in DataLoader(dataset, batch_size=4, shuffle=True, num_workers=2):
        assert maps.numpy().tobytes() == features["conv5_3:map"][rows.numpy()].tobytes()
        assert vectors.numpy().tobytes() == features["fc7"][rows.numpy()].tobytes()
        seen += rows.tolist()
    assert sorted(seen) == [row for row in range(40) if row % 3]


def test_a_million_rows_open_unread(tmp_path: Path) -> None:
    """A sparse file of 8 GB opens, maps and is a dataset without its bytes being read or made."""
    rows = 1_000_000
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        columns = {
            "images/path": ("S40", (rows,)),
            "images/size": ("<i8", (rows,)),
            "images/mtime_ns": ("<i8", (rows,)),
            "images/state": ("|u1", (rows,)),
            "images/checksum": ("<u4", (rows,)),
            "images/error": ("S160", (rows,)),
            "features/fc7": ("<f2", (rows, 4096)),
        }
        file.create_group("images")
        file.create_group("features")
        for name, (dtype, shape) in columns.items():
            space = h5py.h5s.create_simple(shape)
            kind = h5py.h5t.py_create(np.dtype(dtype))
            h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=early)
        write_attributes(file, ["fc7"], "float16")
        file["images/state"][-1:] = 1
        file["features/fc7"][-1:] = 3
    assert os.stat(path).st_size > 8 * 10**9
    before = resident()
    cache = FeatureCache(path)
    dataset = FeatureDataset(cache)
    assert cache["fc7"].shape == (rows, 4096)
    assert as_tensor(cache, "fc7").shape == (rows, 4096)
    assert len(dataset) == 1
    features, row = dataset[0]
    assert row.item() == rows - 1
    assert np.unique(features.numpy()).tolist() == [3.0]
    assert resident() - before < 64 * 2**20
    assert os.stat(path).st_blocks * 512 < 2**20


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
