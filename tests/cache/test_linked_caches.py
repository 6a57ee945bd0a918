"""Caches that only refer to their data: refused, whichever way HDF5 has to refer."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import h5py
import pytest
from command_line import SMALL, assert_one_line, vggfeat, write_images

import vggfeat as library
from vggfeat.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAMES = ("features/conv1_1", "images/path", "images/state", "images/digest", "scales/conv1_1")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two caches of int8, of other images."""
    folder = tmp_path_factory.mktemp("linked")
    for name, count in (("a", 5), ("b", 5)):
        write_images(folder / name, count)
        done = vggfeat("extract", name, *SMALL, "--dtype", "int8", "--out", f"{name}.h5",
                       cwd=folder)  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder


def soft(file: h5py.File, name: str, _folder: Path) -> str:
    file.move(name, "elsewhere")
    file[name] = h5py.SoftLink("/elsewhere")
    return f"/{name} is a soft link to '/elsewhere'"


def external(file: h5py.File, name: str, _folder: Path) -> str:
    del file[name]
    file[name] = h5py.ExternalLink("b.h5", name)
    return f"/{name} is an external link to '{name}' in 'b.h5'"


def dangling(file: h5py.File, name: str, _folder: Path) -> str:
    del file[name]
    file[name] = h5py.ExternalLink("gone.h5", name)
    return f"/{name} is an external link to '{name}' in 'gone.h5'"


def virtual(file: h5py.File, name: str, _folder: Path) -> str:
    old = file[name]
    layout = h5py.VirtualLayout(old.shape, old.dtype)
    layout[:] = h5py.VirtualSource("b.h5", name, old.shape, old.dtype)
    del file[name]
    file.create_virtual_dataset(name, layout)
    return f"/{name} is a virtual dataset of 'b.h5'"


def raw(file: h5py.File, name: str, folder: Path) -> str:
    values = file[name][()]
    kind = file[name].dtype
    parts = [(str(folder / "raw"), 0, values.nbytes)]
    (folder / "raw").write_bytes(values.tobytes())
    del file[name]
    file.create_dataset(name, values.shape, kind, external=parts)
    return f"/{name} lies in the raw file"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("refer", [soft, external, dangling, virtual, raw])
def test_data_elsewhere_is_refused(
    workplace: Path, tmp_path: Path, refer: Callable[[h5py.File, str, Path], str], name: str
) -> None:
    """A dataset that is a link, virtual, or in a raw file is named; nothing is read of it."""
    for cache in ("a.h5", "b.h5"):
        shutil.copy(workplace / cache, tmp_path)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        words = refer(file, name, tmp_path)
    with pytest.raises(CacheError, match="does not hold its own data") as caught:
        library.open(tmp_path / "a.h5")
    assert words in str(caught.value)


@pytest.mark.parametrize("group", ["features", "images", "scales"])
@pytest.mark.parametrize("refer", [soft, external])
def test_groups_elsewhere_are_refused(
    workplace: Path, tmp_path: Path, refer: Callable[[h5py.File, str, Path], str], group: str
) -> None:
    """Of a group that is a link the same is said."""
    for cache in ("a.h5", "b.h5"):
        shutil.copy(workplace / cache, tmp_path)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        words = refer(file, group, tmp_path)
    with pytest.raises(CacheError) as caught:
        library.open(tmp_path / "a.h5")
    assert words in str(caught.value)


def test_hard_links_are_fine(workplace: Path, tmp_path: Path) -> None:
    """A dataset with a second name in its file, such as h5py makes, is read as ever."""
    shutil.copy(workplace / "a.h5", tmp_path)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["mine"] = file["features/conv1_1"]
        right = file["features/conv1_1"][()]
    assert (library.open(tmp_path / "a.h5")["conv1_1"] == right).all()


@pytest.mark.parametrize(
    "words",
    [
        ["search", "a.h5", "00.png", "--layer", "conv1_1"],
        ["export", "a.h5", "--to", "npy", "--out", "o"],
        ["merge", "a.h5", "b.h5", "--out", "o.h5"],
        ["inspect", "a.h5"],
        ["verify", "a.h5"],
    ],
)
def test_commands_refuse_data_elsewhere(workplace: Path, tmp_path: Path, words: list[str]) -> None:
    """Exit 5 and one line, and no output."""
    for cache in ("a.h5", "b.h5"):
        shutil.copy(workplace / cache, tmp_path)
    shutil.copy(workplace / "a" / "00.png", tmp_path)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        external(file, "features/conv1_1", tmp_path)
    done = vggfeat(*words, cwd=tmp_path)
    assert_one_line(done, 5, "cache 'a.h5' does not hold its own data", "in 'b.h5'")
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "o.h5").exists()
