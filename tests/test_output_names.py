"""Outputs whose names promise another format than a cache's, and what is suggested instead."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import h5py
import pytest
from test_cli import SMALL, assert_one_line, vggfeat, write_images

import vggfeat as library
from vggfeat.errors import CacheError
from vggfeat.names import other_format

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    write_images(folder / "images", 3)
    done = vggfeat("extract", "images", *SMALL, "--out", "feats.h5", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    "name", ["a.h5", "a.hdf5", "a.hdf", "a.H5", "a", "a.v2", "vgg16.fc7", "b.c/a", ".npy", "a.nc"]
)
def test_names_of_caches(name: str) -> None:
    """HDF5's endings, none, and endings that nothing else is known by are allowed."""
    assert not other_format(name)


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.npy", "npy"), ("d/a.NPZ", "npz"), ("a.csv", "csv"), ("a.parquet", "parquet"),
     ("a.safetensors", "safetensors"), ("a.json", "FORMAT"), ("a.pt", "FORMAT"),
     ("a.h5.gz", "FORMAT")],
)  # fmt: skip
def test_names_of_other_formats(name: str, form: str) -> None:
    """The message names the cache to make and the export that makes the format asked for."""
    stem = name.rpartition(".")[0]
    message = other_format(name)
    assert f"output {name!r} is named like a file of another format" in message
    assert f"`vggfeat export {stem}.h5 --to {form} --out PATH`" in message


def test_no_cache_is_suggested_among_pictures() -> None:
    """`--out photos/*.jpg`, which the shell spreads, is not answered by a place in photos/."""
    assert "photos/a.h5" not in other_format("photos/a.jpg")
    assert "'feats.h5'" in other_format("photos/a.JPG")


@pytest.mark.parametrize(
    "words",
    [
        ["extract", "images", *SMALL],
        ["fuse", "feats.h5", "--method", "concat"],
        ["reduce", "feats.h5", "--dims", "2"],
        ["merge", "feats.h5", "feats.h5"],
    ],
)
def test_commands_refuse_such_names(workplace: Path, words: list[str]) -> None:
    """Exit 2, one line, and nothing is made."""
    before = sorted(os.listdir(workplace))
    done = vggfeat(*words, "--out", "x.npy", cwd=workplace)
    assert_one_line(done, 2, "output 'x.npy'", "vggfeat export x.h5 --to npy")
    left = {name for name in os.listdir(workplace) if not name.endswith(".lock")}
    assert left == {name for name in before if not name.endswith(".lock")}


def test_other_names_still_work(workplace: Path) -> None:
    """A cache may be called as one likes."""
    done = vggfeat("extract", "images", *SMALL, "--out", "feats.v2", cwd=workplace)
    assert done.returncode == 0, done.stderr
    with h5py.File(workplace / "feats.v2") as file:
        assert (file["images/state"][()] == 1).all()


def test_a_folder_of_pictures_is_not_offered_as_an_output(workplace: Path) -> None:
    """Who names pictures where a cache is meant is not told to extract into their folder."""
    with pytest.raises(CacheError, match="is no sharded cache") as caught:
        library.open(workplace / "images")
    assert f"--out {workplace}" not in str(caught.value)
