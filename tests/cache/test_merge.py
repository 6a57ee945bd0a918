"""Several caches as one: rows by path, the best of each, nothing recomputed, nothing lost."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from command_line import assert_one_line, vggfeat, write_images
from killing import SETTINGS, contents

import vggfeat as library
from vggfeat.errors import CacheError, CacheMismatchError, InputError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


def extract(images: Path | list[Path], out: Path | str, **more: Any) -> None:
    sources = [images] if not isinstance(images, list) else images
    root = more.pop("root", None)
    settings = library.Settings(**{**SETTINGS, "batch_size": 1, **more})
    library.extract([str(source) for source in sources], out, settings, root=root)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two folders of images, one image broken, one name in both."""
    write_images(tmp_path / "images" / "a", 5)
    write_images(tmp_path / "images" / "b", 7)
    (tmp_path / "images" / "b" / "zz.jpg").write_bytes(b"no image")
    return tmp_path / "images"


def test_halves_are_the_whole(images: Path, tmp_path: Path) -> None:
    """Caches of two folders become, byte for byte, the cache of both."""
    extract(images, tmp_path / "whole.h5")
    for name in "ab":
        extract(images / name, tmp_path / f"{name}.h5")
    before = contents(tmp_path / "a.h5")
    merged = library.merge([tmp_path / "b.h5", tmp_path / "a.h5"], tmp_path / "merged.h5")
    assert contents(tmp_path / "merged.h5") == contents(tmp_path / "whole.h5")
    assert contents(tmp_path / "a.h5") == before
    assert (merged.rows, merged.done, merged.failed, merged.shared) == (13, 12, 1, 0)
    with h5py.File(tmp_path / "merged.h5") as file:
        assert bytes(file.attrs["root"]) == os.fsencode(images)
    assert not library.verify(tmp_path / "merged.h5").bad
    extract(images, tmp_path / "merged.h5")  # the same command goes on with it: nothing to do
    assert contents(tmp_path / "merged.h5") == contents(tmp_path / "whole.h5")
    assert set(os.listdir(tmp_path)) == {"images", "a.h5", "b.h5", "merged.h5", "whole.h5"}


def test_the_best_of_each_row(images: Path, tmp_path: Path) -> None:
    """Done beats failed beats pending, whichever comes first; what is pending is done later."""
    extract(images, tmp_path / "whole.h5")
    for name, states in {"one": (1, 0, 2, 3), "two": (0, 0, 1, 1)}.items():
        shutil.copy(tmp_path / "whole.h5", tmp_path / f"{name}.h5")
        with h5py.File(tmp_path / f"{name}.h5", "r+") as file:
            file["images/state"][:4] = states
            for spec in file["features"]:
                for row in np.flatnonzero(np.array(states) != 1):
                    file["features"][spec][row] = 7
    merged = library.merge([tmp_path / "one.h5", tmp_path / "two.h5"], tmp_path / "merged.h5")
    assert (merged.done, merged.failed, merged.pending, merged.shared) == (11, 1, 1, 12)
    assert library.open(tmp_path / "merged.h5").state[:4].tolist() == [1, 0, 1, 1]
    extract(images, tmp_path / "merged.h5")
    assert contents(tmp_path / "merged.h5") == contents(tmp_path / "whole.h5")


def test_a_removed_row_is_left_out(images: Path, tmp_path: Path) -> None:
    """Rows of images that are gone do not come along."""
    extract(images / "a", tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["images/state"][2] = 3
    merged = library.merge([tmp_path / "a.h5"], tmp_path / "merged.h5")
    assert merged.rows == 4
    assert "02.png" not in [library.open(merged.out).name(row) for row in range(4)]


def test_nothing_is_left_to_merge(images: Path, tmp_path: Path) -> None:
    """Caches all of whose rows are given up: one error that says so, and no file."""
    extract(images / "a", tmp_path / "a.h5")
    extract(images / "a", f"{tmp_path}/shards/")
    for path in [tmp_path / "a.h5", *(tmp_path / "shards").glob("*.h5")]:
        with h5py.File(path, "r+") as file:
            file["images/state"][...] = 3
    for sources in (["shards"], ["a.h5"], ["shards", "a.h5"]):
        with pytest.raises(InputError, match=r"nothing to merge: the images of all rows of '"):
            library.merge([tmp_path / name for name in sources], tmp_path / "merged.h5")
    assert set(os.listdir(tmp_path)) == {"images", "a.h5", "shards"}


def test_the_same_folder_at_another_place(images: Path, tmp_path: Path) -> None:
    """With paths kept, caches of copies of one folder have their rows in common."""
    shutil.copytree(images / "a", tmp_path / "mnt" / "a")
    extract(images / "a", tmp_path / "one.h5")
    extract(tmp_path / "mnt" / "a", tmp_path / "two.h5")
    sources = [tmp_path / "one.h5", tmp_path / "two.h5"]
    assert library.merge(sources, tmp_path / "apart.h5").rows == 10
    kept = library.merge(sources, tmp_path / "kept.h5", keep_paths=True)
    assert (kept.rows, kept.shared) == (5, 5)
    assert contents(tmp_path / "kept.h5") == contents(tmp_path / "one.h5")


def test_other_images_under_one_path_are_refused(images: Path, tmp_path: Path) -> None:
    """One path with two contents is an error that names it, and there is no new file."""
    extract(images / "a", tmp_path / "old.h5")
    shutil.copy(images / "b" / "06.png", images / "a" / "03.png")
    extract(images / "a", tmp_path / "new.h5")
    with pytest.raises(CacheMismatchError, match=r"1 path stands for different images.*'03\.png'"):
        library.merge([tmp_path / "old.h5", tmp_path / "new.h5"], tmp_path / "merged.h5")
    assert not (tmp_path / "merged.h5").exists()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"layers": "conv1_1:max"}, "layers: conv1_1:max,conv2_1 and conv1_1:max"),
        ({"dtype": "float32"}, "dtype: file float16, requested float32"),
        ({"weights": "random:1"}, "weights: file random:0"),
    ],
)
def test_other_settings_are_refused(
    images: Path, tmp_path: Path, other: dict[str, str], words: str
) -> None:
    """Caches that differ in their settings are not merged; the error says in what."""
    extract(images / "a", tmp_path / "a.h5")
    extract(images / "b", tmp_path / "b.h5", **other)
    with pytest.raises(CacheMismatchError, match=words):
        library.merge([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "merged.h5")


def test_from_the_command_line(images: Path, tmp_path: Path) -> None:
    """The command says what it made; it replaces nothing, and wants caches."""
    extract(images / "a", tmp_path / "a.h5")
    extract(images / "b", tmp_path / "b.h5")
    done = vggfeat("merge", "a.h5", "b.h5", "--out", "all.h5", cwd=tmp_path)
    assert done.stdout == "all.h5: 13 images from 2 caches (12 done, 1 failed, 0 pending)\n"
    before = contents(tmp_path / "all.h5")
    done = vggfeat("merge", "a.h5", "b.h5", "--out", "all.h5", cwd=tmp_path)
    assert_one_line(done, 2, "output 'all.h5' exists already")
    assert contents(tmp_path / "all.h5") == before
    done = vggfeat("merge", "a.h5", "images/a/00.png", "--out", "other.h5", cwd=tmp_path)
    assert_one_line(done, 5, "images/a/00.png")
    with pytest.raises(UsageError, match="no caches to merge"):
        library.merge([], tmp_path / "none.h5")
    with pytest.raises(CacheError):
        library.merge([tmp_path / "gone.h5"], tmp_path / "none.h5")
