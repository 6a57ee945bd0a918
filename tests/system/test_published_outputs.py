"""Outputs of all commands: on the disk when the command ends, nothing left, others' files whole.

What `storage.atomic` promises is tested there; here, that each command goes that way.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
from typing import TYPE_CHECKING

import h5py
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet
import pytest
from command_line import SMALL, vggfeat, write_images
from publishing import Call, PublishServer

import vggfeat as library

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EXPORT = ["export", "feats.h5", "--layers", "conv1_1", "--out", "o", "--to"]
COMMANDS = {
    "npy": ([*EXPORT, "npy"], "o"),
    "npz": ([*EXPORT, "npz"], "o"),
    "csv": ([*EXPORT, "csv"], "o"),
    "parquet": ([*EXPORT, "parquet"], "o"),
    "safetensors": ([*EXPORT, "safetensors"], "o"),
    "webdataset": ([*EXPORT, "webdataset"], "o"),
    "faiss": ([*EXPORT, "faiss"], "o"),
    "hloc": ([*EXPORT, "hloc"], "o"),
    "hdf5": ([*EXPORT, "hdf5"], "o"),
    "model": (["reduce", "feats.h5", "--dims", "2", "--out", "r.h5"], "r.model.h5"),
    "cache": (["reduce", "feats.h5", "--method", "keep", "--out", "k.h5"], "k.h5"),
    "merge": (["merge", "feats.h5", "feats.h5", "--out", "m.h5"], "m.h5"),
    "index": (
        ["search", "feats.h5", "--row", "00.png", "--layer", "conv1_1", "--index", "i"], "i"
    ),
    "search sheet": (
        ["search", "feats.h5", "--row", "00.png", "--layer", "conv1_1", "--sheet", "s.png"],
        "s.png",
    ),
    "sheet": (["sheet", "feats.h5", "--out", "s.html"], "s.html"),
    "explore": (["explore", "feats.h5", "--out", "e.html"], "e.html"),
    "plot": (["plot", "feats.h5", "--out", "p.png"], "p.png"),
    "chart": (["compare", "feats.h5", "--labels", "l.csv", "--chart", "c.svg"], "c.svg"),
    "stats": (["stats", "images", "--workers", "0", "--out", "s.toml"], "s.toml"),
    "metrics": (
        ["extract", "images", *SMALL, "--out", "feats.h5", "--metrics-file", "m.prom"], "m.prom"
    ),
    "failures": (
        ["extract", "images", *SMALL, "--out", "feats.h5", "--failures", "f.csv"], "f.csv"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[PublishServer]:
    with PublishServer() as running:
        yield running


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache of six images, and labels of them."""
    folder = tmp_path_factory.mktemp("published") / "place"
    write_images(folder / "images", 6)
    done = vggfeat("extract", "images", *SMALL, "--out", "feats.h5", cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = [f"{number:02}.png,{'ab'[number % 2]}" for number in range(6)]
    (folder / "l.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "place")
    return tmp_path / "place"


def names(folder: Path) -> set[str]:
    """What is in a folder, but for locks of killed runs."""
    return {name for name in os.listdir(folder) if not name.endswith(".lock")}


def assert_durable(calls: list[Call], output: Path) -> None:
    """The output's bytes were synced before it got its name, and its name afterwards."""
    at = max(i for i, call in enumerate(calls) if call[2] == str(output))
    source = calls[at][1]
    synced = {call[1] for call in calls[:at] if call[0] == "fsync"}
    files = [path for path in output.rglob("*") if path.is_file()] if output.is_dir() else [output]
    assert files
    for path in files:
        assert source + str(path).removeprefix(str(output)) in synced
    assert ("fsync", str(output.parent), "") in calls[at:]


@pytest.mark.parametrize("command", COMMANDS)
def test_outputs_are_on_the_disk(server: PublishServer, place: Path, command: str) -> None:
    """When a command ends its output is synced, and so is the folder that holds its name."""
    words, output = COMMANDS[command]
    before = names(place)
    code, said, calls = server.run(place, *words)
    assert code == 0, said
    assert_durable(calls, place / output)
    assert not [name for name in names(place) - before if "tmp" in name]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_link_at_the_temporary_name(server: PublishServer, place: Path, command: str) -> None:
    """A link at a temporary's name is neither followed nor removed: one line and exit 2.

    Figures for Prometheus are not worth the run that they are about: of them it is a warning.
    """
    words, output = COMMANDS[command]
    (place / "victim").write_bytes(b"precious")
    made = f".{output}" if words[0] == "export" else output
    made += ".vggfeat.tmp"
    (place / made).symlink_to("victim")
    code, said, _ = server.run(place, *words)
    assert code == (0 if command == "metrics" else 2), said
    (line,) = [line for line in said.splitlines() if "not touched" in line]
    assert repr(str(place / made)) in line
    assert (place / made).is_symlink()
    assert (place / "victim").read_bytes() == b"precious"
    assert not (place / output).exists()


@pytest.mark.parametrize("command", ["npy", "webdataset", "faiss"])
def test_a_folder_at_the_temporary_name(server: PublishServer, place: Path, command: str) -> None:
    """A folder of the user's is not taken for a killed run's."""
    (place / ".o.vggfeat.tmp").mkdir()
    (place / ".o.vggfeat.tmp" / "thesis").write_bytes(b"precious")
    code, said, _ = server.run(place, *COMMANDS[command][0])
    assert code == 2
    assert "that vggfeat did not make" in said
    assert (place / ".o.vggfeat.tmp" / "thesis").read_bytes() == b"precious"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("command", ["npy", "hdf5", "plot", "chart", "sheet", "stats"])
def test_signals_leave_nothing(
    server: PublishServer, place: Path, command: str, signum: signal.Signals
) -> None:
    """Ended by a signal before the output has its name: 128 + its number, and no leftover."""
    before = names(place)
    code, said, _ = server.run(place, *COMMANDS[command][0], signum=signum)
    assert code == 128 + signum, said
    assert names(place) == before


@pytest.mark.parametrize("command", ["npy", "hdf5", "parquet", "model", "plot", "sheet", "stats"])
def test_what_a_kill_leaves_goes_with_the_next(
    server: PublishServer, place: Path, command: str
) -> None:
    """SIGKILL leaves a temporary; the same command again leaves its output alone."""
    words, output = COMMANDS[command]
    before = names(place)
    code, _, _ = server.run(place, *words, signum=signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert len(names(place) - before) == 1
    assert not (place / output).exists()
    code, said, _ = server.run(place, *words)
    assert code == 0, said
    assert not [name for name in names(place) if "tmp" in name]
    assert (place / output).exists()


@pytest.mark.parametrize("how", ["--update", "--fresh"])
def test_an_output_that_is_a_link(place: Path, how: str) -> None:
    """The file that the link names is written anew, with its mode, and the link stays a link."""
    (place / "far").mkdir()
    (place / "feats.h5").rename(place / "far" / "real.h5")
    (place / "far" / "real.h5").chmod(0o660)
    (place / "link.h5").symlink_to("far/real.h5")
    shutil.copy(place / "images" / "00.png", place / "images" / "new.png")
    done = vggfeat("extract", "images", *SMALL, "--out", "link.h5", how, cwd=place)
    assert done.returncode == 0, done.stderr
    assert (place / "link.h5").is_symlink()
    assert stat.S_IMODE((place / "far" / "real.h5").stat().st_mode) == 0o660
    assert len(library.open(place / "far" / "real.h5")) == 7
    assert names(place / "far") == {"real.h5"}


@pytest.mark.parametrize("how", ["--update", "--fresh"])
def test_what_others_added_is_named(place: Path, how: str) -> None:
    """A warning names groups, datasets and attributes that a rewritten cache no longer has."""
    with h5py.File(place / "feats.h5", "r+") as file:
        file["labels/cats"] = [1, 2, 3]
        file["images/caption"] = [b"x"] * 6
        file.attrs["doi"] = "10.5281/zenodo.1"
        file["features/conv1_1"].attrs["unit"] = "none"
    shutil.copy(place / "images" / "00.png", place / "images" / "new.png")
    done = vggfeat("extract", "images", *SMALL, "--out", "feats.h5", how, cwd=place)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "written anew" in line]
    assert line.startswith("vggfeat: warning: feats.h5 is written anew without")
    for name in ("attribute doi", "/labels", "/images/caption",
                 "attribute unit of /features/conv1_1"):  # fmt: skip
        assert name in line


def test_nothing_is_named_of_a_cache_of_our_own(place: Path) -> None:
    """A cache that holds only what the format says is rewritten without a word."""
    shutil.copy(place / "images" / "00.png", place / "images" / "new.png")
    done = vggfeat("extract", "images", *SMALL, "--out", "feats.h5", "--update", cwd=place)
    assert "written anew" not in done.stderr


def test_parquet_files_of_one_folder_are_one_data_set(server: PublishServer, place: Path) -> None:
    """pyarrow and pandas read several exports as one table, one schema, a row an image."""
    (place / "d").mkdir()
    for name, rows in (("a", "0[0-2]*"), ("b", "0[3-5]*")):
        words = ["export", "feats.h5", "--to", "parquet", "--rows", rows, "--out"]
        code, said, _ = server.run(place, *words, f"d/{name}.parquet")
        assert code == 0, said
    # A killed export's temporary is no part of the data set either.
    words = ["export", "feats.h5", "--to", "parquet", "--out", "d/c.parquet"]
    assert server.run(place, *words, signum=signal.SIGKILL)[0] == -signal.SIGKILL
    one, other = (pyarrow.parquet.read_schema(place / "d" / f"{name}.parquet") for name in "ab")
    assert one.equals(other, check_metadata=True)
    paths = [f"{number:02}.png" for number in range(6)]
    table = pyarrow.dataset.dataset(place / "d").to_table()
    assert table.schema.equals(one, check_metadata=True)
    assert table["path"].to_pylist() == paths
    assert pd.read_parquet(place / "d")["path"].tolist() == paths
    with h5py.File(place / "feats.h5") as file:
        for layer in ("conv1_1", "conv2_1:max"):
            found = table[layer].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            assert (found.reshape(6, -1) == file[f"features/{layer}"][()]).all()
