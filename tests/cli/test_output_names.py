"""Outputs whose names promise another format than a cache's, and what is suggested instead."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import h5py
import pytest
from command_line import SMALL, assert_one_line, vggfeat, write_images
from publishing import PublishServer

import vggfeat as library
from vggfeat.core.file_types import other_format
from vggfeat.errors import CacheError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
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
    ("name", "command"),
    [("d/a.html", "explore feats.h5"), ("a.PNG", "plot feats.h5"), ("a.svg", "plot feats.h5")],
)
def test_names_of_pictures_and_pages(name: str, command: str) -> None:
    """The message has the command that draws a cache into a file of that name."""
    command = command.replace(
        "feats", "d/a" if "html" in name else "a" if "svg" in name else "feats"
    )
    assert f"`vggfeat {command} --out {name}`" in other_format(name)


@pytest.mark.parametrize("to", ["hdf5", "hloc"])
def test_exports_to_hdf5_refuse_such_names(workplace: Path, to: str) -> None:
    """The other formats of export are a word away."""
    with pytest.raises(UsageError, match=rf"--to {to} writes HDF5; name it '.*x.h5', or use"):
        library.export(workplace / "feats.h5", workplace / "x.npz", to=to, layers=["conv1_1"])
    assert not (workplace / "x.npz").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["extract", "images", *SMALL],
        ["fuse", "feats.h5", "--method", "concat"],
        ["reduce", "feats.h5", "--dims", "2"],
        ["merge", "feats.h5", "feats.h5"],
        ["extract", "images", *SMALL, "--shards", "2"],
    ],
)
def test_commands_refuse_such_names(workplace: Path, words: list[str]) -> None:
    """Exit 2, one line, and nothing is made."""
    before = sorted(os.listdir(workplace))
    done = vggfeat(*words, "--out", "x.npy", cwd=workplace)
    assert_one_line(done, 2, "output 'x.npy'", "vggfeat export x.h5 --to npy")
    left = {name for name in os.listdir(workplace) if not name.endswith(".lock")}
    assert left == {name for name in before if not name.endswith(".lock")}


EXTRACT = ["extract", "images", *SMALL]
SEARCH = ["search", "feats.h5", "--row", "00.png", "--layer", "conv1_1"]
WRITING = {
    "extract": [*EXTRACT, "--out", "{}.h5"],
    "shards": [*EXTRACT, "--shards", "2", "--out", "{}"],
    "failures": [*EXTRACT, "--out", "feats.h5", "--failures", "{}.csv"],
    "metrics": [*EXTRACT, "--out", "feats.h5", "--metrics-file", "{}.prom"],
    "merge": ["merge", "feats.h5", "feats.h5", "--out", "{}.h5"],
    "export": ["export", "feats.h5", "--to", "npz", "--layers", "conv1_1", "--out", "{}.npz"],
    "folder": ["export", "feats.h5", "--to", "npy", "--out", "{}"],
    "reduce": ["reduce", "feats.h5", "--dims", "2", "--out", "{}.h5"],
    "model": ["reduce", "feats.h5", "--dims", "2", "--out", "r.h5", "--save", "{}.h5"],
    "fuse": ["fuse", "feats.h5", "--method", "concat", "--out", "{}.h5"],
    "zeroshot": ["zeroshot", "fit", "feats.h5", "--vectors", "v.csv", "--out", "{}.h5"],
    "adapt": ["adapt", "images", "--labels", "l.csv", "--out", "{}.safetensors"],
    "index": [*SEARCH, "--index", "{}.faiss"],
    "sheet": ["sheet", "feats.h5", "--out", "{}.png"],
    "explore": ["explore", "feats.h5", "--out", "{}.html"],
    "plot": ["plot", "feats.h5", "--out", "{}.png"],
    "stats": ["stats", "images", "--workers", "0", "--out", "{}.toml"],
}


@pytest.fixture(scope="module")
def server() -> Iterator[PublishServer]:
    with PublishServer() as running:
        yield running


@pytest.mark.parametrize("command", WRITING)
def test_places_where_no_file_can_be(server: PublishServer, workplace: Path, command: str) -> None:
    """`-`, a device and a link into a folder that is not there: exit 2, one line, nothing made."""
    words, ending = WRITING[command], os.path.splitext(WRITING[command][-1])[1]
    link = workplace / f"dangling{ending}"
    link.unlink(missing_ok=True)
    link.symlink_to(f"gone/x{ending}")
    before = sorted(os.walk(workplace))
    for place in ("-", "/dev/full", str(link), "gone/x" + ending):
        name = place.removesuffix(ending) if place != "-" and ending else place
        last = words[-1].format(name) if place not in ("-", "/dev/full") else place
        code, said, _ = server.run(workplace, *words[:-1], last)
        assert code == 2, (place, said)
        (line,) = [one for one in said.splitlines() if one.startswith("vggfeat: ")]
        assert repr(last) in line or "expected a name that ends in" in line
        assert ".lock" not in line
    assert sorted(os.walk(workplace)) == before
    link.unlink()


@pytest.mark.parametrize("name", ["x.npy", "x.NPZ", "x.csv", "x.parquet", "x.png", "x.json"])
@pytest.mark.parametrize("command", ["model", "zeroshot", "index"])
def test_names_of_models_and_indexes(
    server: PublishServer, workplace: Path, command: str, name: str
) -> None:
    """A model or index whose name is that of another format is refused before it is fitted."""
    before = sorted(os.walk(workplace))
    code, said, _ = server.run(workplace, *WRITING[command][:-1], name)
    assert code == 2, said
    (line,) = [one for one in said.splitlines() if one.startswith("vggfeat: ")]
    assert f"{name!r} is named like a file of another format" in line
    assert f"name it 'x.{'faiss' if command == 'index' else 'h5'}'" in line
    assert sorted(os.walk(workplace)) == before


def test_shards_behind_a_link_to_a_new_folder(workplace: Path) -> None:
    """The folder that a link names is made, and the link stays one."""
    (workplace / "link").symlink_to("shards")
    done = vggfeat(*EXTRACT, "--shards", "2", "--out", "link", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert (workplace / "link").is_symlink()
    assert len(library.open(workplace / "shards")) == 3


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
