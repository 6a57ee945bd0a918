from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vggfeat
from vggfeat.cache.verify import verify
from vggfeat.core.settings import Settings
from vggfeat.errors import CacheError, LockedError
from vggfeat.storage.locks import hold

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS: dict[str, Any] = {
    "layers": "conv1_1,conv2_1:max",
    "model": "vgg11",
    "weights": "random:0",
    "size": 32,
    "precision": "float32",
    "device": "cpu",
    "workers": 0,
}
ROWS = 6
BROKEN = 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of five images and a file that is none."""
    folder = tmp_path_factory.mktemp("verify")
    images = folder / "images"
    images.mkdir()
    noise = np.random.default_rng(0)
    for row in range(ROWS):
        picture = noise.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        PIL.Image.fromarray(picture).save(images / f"{row}.png")
    (images / f"{BROKEN}.png").write_bytes(b"no picture")
    vggfeat.extract(str(images), folder / "feats.h5", Settings(**SETTINGS))
    return folder / "feats.h5"


@pytest.fixture
def cache(whole: Path) -> Path:
    """A copy to spoil."""
    copy = whole.with_name("spoilt.h5")
    shutil.copy(whole, copy)
    return copy


def places(path: Path) -> dict[str, tuple[int, int]]:
    """Offset and bytes a row of each dataset, as h5py tells them."""
    found = {}
    with h5py.File(path, "r") as file:
        names = [f"features/{name}" for name in file["features"]]
        for name in [*names, "images/state", "images/checksum", "images/path"]:
            data = file[name]
            offset = data.id.get_chunk_info_by_coord((0,) * data.ndim).byte_offset
            found[name] = (offset, data.dtype.itemsize * math.prod(data.shape[1:]))
    return found


def flip(path: Path, at: int, mask: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ mask]))


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vggfeat", "verify", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def contents(path: Path) -> dict[str, bytes]:
    with h5py.File(path, "r") as file:
        names = [f"images/{name}" for name in file["images"]]
        names += [f"features/{name}" for name in file["features"]]
        return {name: file[name][()].tobytes() for name in names}


def test_a_sound_cache(whole: Path) -> None:
    """A cache as it was written has no bad row, and is counted."""
    found = verify(whole)
    assert found.bad == ()
    assert (found.rows, found.done, found.failed, found.pending) == (ROWS, ROWS - 1, 1, 0)
    assert found.bytes == ROWS * (64 + 128) * 2


@given(data=st.data())
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_flipped_bit_is_found(whole: Path, data: st.DataObject) -> None:
    """Whatever bit of the feature data changes, its row is named and no other; repair redoes it."""
    spoilt = whole.with_name("flipped.h5")
    shutil.copy(whole, spoilt)
    layer = data.draw(st.sampled_from(["features/conv1_1", "features/conv2_1:max"]))
    offset, size = places(whole)[layer]
    row = data.draw(st.integers(0, ROWS - 1))
    flip(spoilt, offset + row * size + data.draw(st.integers(0, size - 1)), 1 << data.draw(bits))
    assert [bad.row for bad in verify(spoilt).bad] == [row]


bits = st.integers(0, 7)


@pytest.mark.parametrize("row", range(ROWS))
def test_repaired_rows_are_done_again(whole: Path, cache: Path, row: int) -> None:
    """After a repair and the same extraction the cache is what it was."""
    offset, size = places(whole)["features/conv1_1"]
    flip(cache, offset + row * size, 255)
    found = verify(cache, repair=True)
    assert (len(found.bad), found.repaired) == (1, 1)
    assert found.bad[0].path == f"{row}.png"
    assert verify(cache).pending == 1
    assert verify(cache).bad == ()
    vggfeat.extract(str(whole.parent / "images"), cache, Settings(**SETTINGS))
    assert contents(cache) == contents(whole)


@pytest.mark.parametrize(
    ("at", "mask", "problem"),
    [
        (("images/checksum", 3), 16, "checksum"),
        (("images/state", 3), 7 ^ 1, "state 7"),
        (("images/state", BROKEN), 2 ^ 1, "with a reason"),
        (("images/state", 0), 2 ^ 1, "without a reason"),
    ],
)
def test_what_belongs_to_a_row(
    whole: Path, cache: Path, at: tuple[str, int], mask: int, problem: str
) -> None:
    """Checksums, states and reasons that do not fit are bad rows too."""
    dataset, row = at
    offset, size = places(whole)[dataset]
    flip(cache, offset + row * size, mask)
    (bad,) = verify(cache).bad
    assert bad.row == row
    assert problem in bad.problem


def test_paths_out_of_order(whole: Path, cache: Path) -> None:
    """With a damaged path no row can be told, which is an error and not a bad row."""
    offset, size = places(whole)["images/path"]
    flip(cache, offset + 3 * size, 64)
    with pytest.raises(CacheError, match=r"row [34] is out of order"):
        verify(cache, repair=True)


def test_a_file_cut_short(cache: Path) -> None:
    """A file that lost its end is an error, and no crash."""
    with open(cache, "r+b") as file:
        file.truncate(cache.stat().st_size - 5000)
    with pytest.raises(CacheError):
        verify(cache)
    assert run(cache).returncode == 5


def test_a_repair_waits_for_no_run(cache: Path, whole: Path) -> None:
    """What a run holds is not repaired under it; looking is allowed."""
    offset, _ = places(whole)["features/conv1_1"]
    flip(cache, offset, 1)
    with hold(str(cache)):
        assert len(verify(cache).bad) == 1
        with pytest.raises(LockedError):
            verify(cache, repair=True)
        assert run("--repair", cache).returncode == 75
    assert len(verify(cache).bad) == 1


def test_command(cache: Path, whole: Path) -> None:
    """The command says what it found, in words or JSON, and ends with 0 or 5."""
    sound = run(cache)
    assert sound.returncode == 0
    assert "6 rows (5 done, 1 failed, 0 pending), all as they were written" in sound.stdout
    offset, size = places(whole)["features/conv1_1"]
    flip(cache, offset + 4 * size, 1)
    bad = run(cache)
    assert bad.returncode == 5
    assert "row 4, 4.png: what it holds has checksum" in bad.stdout
    assert "1 of 6 rows is bad" in bad.stderr
    told = run("--json", cache)
    assert told.returncode == 5
    assert [row["row"] for row in json.loads(told.stdout)["bad"]] == [4]
    assert run("--repair", cache).returncode == 0
    assert run(cache).returncode == 0
    assert run(cache.with_name("none.h5")).returncode == 3
