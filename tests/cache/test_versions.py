"""Caches of every version of the format are read, gone on with in it, and copied into new ones."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

import vggfeat
from vggfeat.cache.format import RowState
from vggfeat.cache.header import read_header
from vggfeat.cache.verify import verify
from vggfeat.cache.writer import CacheWriter
from vggfeat.core.records import Failure, FeatureBatch

DATA = Path(__file__).parents[1] / "data"
VERSIONS = (1, 2)
LAYERS = ("conv1_1", "conv1_1:max")
COLUMNS = ("path", "size", "mtime_ns", "digest", "state", "error")
STATES = [1, 1, 2, 1, 3]
CONTENTS = {
    1: "a647ac93db50c14c5162f2ea6e8dab69b5a53d7b4a1ed4dac9d65b194c0a92b8",
    2: "08cf6f6856ffd07fac3b7d75da3a1ace8473cb95ef4eb9eeab0f3db9301db75a",
}
SETTINGS: dict[str, Any] = {
    "layers": ",".join(LAYERS), "model": "vgg11", "weights": "random:0", "size": 32,
    "batch_size": 4, "device": "cpu", "precision": "float32", "workers": 0, "max_failures": "1",
    "max_removed": "1",
}  # fmt: skip

each_version = pytest.mark.parametrize("version", VERSIONS)


def golden(version: int) -> str:
    return str(DATA / f"version-{version}.h5")


def contents(path: str) -> str:
    digest = hashlib.sha256()
    with h5py.File(path) as file:
        for name in [*(f"features/{one}" for one in LAYERS), *(f"images/{one}" for one in COLUMNS)]:
            digest.update(file[name][()].tobytes())
    return digest.hexdigest()


@each_version
def test_a_file_of_every_version_is_read(version: int) -> None:
    """The committed files open as they are, with rows done, failed and removed, and are whole."""
    path = golden(version)
    cache = vggfeat.open(path)
    assert (cache.header.version, cache.state.tolist()) == (version, STATES)
    assert cache.failures() == [Failure(2, cache.failures()[0].reason)]
    assert contents(path) == CONTENTS[version]
    with h5py.File(path) as file:
        assert np.array_equal(cache["conv1_1"], file["features/conv1_1"][()], equal_nan=True)
    found = verify(path)
    assert (found.bad, found.problems, found.notes) == ((), (), ())


@each_version
def test_checksums_of_every_version(version: int) -> None:
    """Rows have the checksum of their features; in version 2 of digest, reason and state too."""
    with h5py.File(golden(version)) as file:
        for row in range(4):
            data = b"".join(file[f"features/{layer}"][row].tobytes() for layer in LAYERS)
            if version > 1:
                data += file["images/digest"][row].tobytes()
                data += file["images/error"][row].ljust(160, b"\0") + bytes([STATES[row]])
            assert file["images/checksum"][row] == zlib.crc32(data)


@each_version
def test_a_file_keeps_its_version(version: int, tmp_path: Path) -> None:
    """Rows done again, failed, removed or of another size keep to the version of the file."""
    path = shutil.copy(golden(version), str(tmp_path / "f.h5"))
    cache = vggfeat.open(path)
    features = {layer: np.array(cache[layer][[0]]) for layer in LAYERS}
    digests = np.array(cache.digests[[0]])
    writer = CacheWriter(path, read_header(path))
    writer.set_states(np.array([0, 1, 2]), RowState.PENDING)
    writer.set_states(np.array([3]), RowState.REMOVED)
    writer.sync()
    assert verify(path).notes == ()
    writer.clear_reasons(np.array([2]))
    writer.update_files(np.array([0, 1]), np.array([5, 6]), np.array([7, 8]))
    writer.write(FeatureBatch(np.array([0]), digests, features, (Failure(1, "broken"),), 0))
    writer.checkpoint()
    writer.close()
    assert read_header(path).version == version
    assert vggfeat.open(path).state.tolist() == [1, 2, 0, 3, 3]
    found = verify(path)
    assert (found.bad, found.problems, found.notes) == ((), (), ())


def test_versions_are_merged_into_a_new_file(tmp_path: Path) -> None:
    """Rows of both versions in one file have the checksums of version 2."""
    out = str(tmp_path / "merged.h5")
    vggfeat.merge([golden(1), golden(2)], out, keep_paths=True)
    cache = vggfeat.open(out)
    assert (cache.header.version, cache.state.tolist()) == (2, STATES[:4] * 2)
    for start, version in ((0, 1), (4, 2)):
        old = vggfeat.open(golden(version))
        for layer in LAYERS:
            rows = np.array(cache[layer][start : start + 4])
            assert np.array_equal(rows, old[layer][:4], equal_nan=True)
        assert np.array_equal(cache.digests[start : start + 4], old.digests[:4])
    found = verify(out)
    assert (found.bad, found.problems, found.notes) == ((), (), ())


def test_shards_of_both_versions(tmp_path: Path) -> None:
    """A folder of shards of both versions is read, verified, merged and searched as one."""
    folder = tmp_path / "shards"
    folder.mkdir()
    header = read_header(golden(1))
    shards = []
    for number, version in enumerate(VERSIONS):
        shutil.copy(golden(version), folder / f"{number}.h5")
        shards.append({"name": f"{number}.h5", "first_row": 5 * number, "rows": 5})
    manifest = {
        "format": "vggfeat-shards", "format_version": 1, "created_utc": "", "tool_version": "",
        "fingerprint": header.identity.fingerprint(), "batch_size": 4, "root": "/", "sources": [],
        "rows": 10, "path_bytes": 6, "shards": shards,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    cache = vggfeat.open(folder)
    assert cache.state[:].tolist() == STATES * 2
    found = verify(folder)
    assert (found.bad, found.problems, found.notes) == ((), (), ())
    out = str(tmp_path / "merged.h5")
    vggfeat.merge([folder], out)
    assert read_header(out).version == 2
    found = verify(out)
    assert (found.rows, found.bad, found.problems, found.notes) == (8, (), (), ())
    exported = tmp_path / "export.h5"
    vggfeat.export(folder, exported, to="hdf5")
    with h5py.File(exported) as new, h5py.File(out) as merged:
        done = merged["images/state"][()] == 1
        assert np.array_equal(new["images/checksum"], merged["images/checksum"][done])


def test_an_update_with_added_images_is_of_the_new_version(tmp_path: Path) -> None:
    """A cache of version 1 becomes one of version 2 when it is written anew, and only then."""
    path = shutil.copy(golden(1), str(tmp_path / "f.h5"))
    images = tmp_path / "images"
    images.mkdir()
    noise = np.random.default_rng(ord("a"))
    for number in range(4):
        picture = noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(picture).save(images / f"a{number}.png")
    (images / "a2.png").write_bytes(b"no image")
    for image in images.iterdir():
        os.utime(image, (1_700_000_000, 1_700_000_000))
    writer = CacheWriter(path, read_header(path))
    writer.set_states(np.array([1]), RowState.PENDING)
    writer.sync()
    writer.close()
    settings, update = vggfeat.Settings(**SETTINGS), vggfeat.UpdatePolicy(update=True)
    vggfeat.extract(images, path, settings, policy=update)
    assert read_header(path).version == 1
    assert contents(path) == CONTENTS[1]
    Image.new("RGB", (40, 40), "red").save(images / "a9.png")
    report = vggfeat.extract(images, path, settings, policy=update)
    assert report.new_done == 1
    cache = vggfeat.open(path)
    assert (cache.header.version, cache.state.tolist()) == (2, [1, 1, 2, 1, 1])
    found = verify(path)
    assert (found.bad, found.problems, found.notes) == ((), (), ())
