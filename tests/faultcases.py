"""The commands that write, as small as they can be, for `faults` to end or fail at every call."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from faults import Case
from PIL import Image

import vggfeat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IMAGES = 9
SMALL = (
    "--model", "vgg11", "--weights", "random:0", "--layers", "conv1_1:max,conv2_1", "--size", "32",
    "--batch-size", "2", "--workers", "0", "--device", "cpu", "--precision", "float32",
    "--checkpoint-seconds", "0", "--quiet",
)  # fmt: skip
_COLUMNS = ("path", "size", "state", "checksum", "digest", "error")

_VECTORS = {"a": (1, 0, 0), "b": (0, 1, 0), "c": (0, 0, 1)}

Rows = dict[bytes, tuple[bytes, ...]]


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 44, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(seed, seed))


def vggfeat_command(words: tuple[str, ...], folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vggfeat", *words],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


def rows_of(path: Path) -> Rows:
    """What a file holds of each image that is not removed, by its path, as plain h5py reads it."""
    with h5py.File(path, "r", locking=False) as file:
        images = file["images"]
        columns = [images[name][()] for name in _COLUMNS if name in images]
        features = [file["features"][spec][()] for spec in sorted(file["features"])]
        return {
            name: tuple(array[row].tobytes() for array in (*columns[1:], *features))
            for row, name in enumerate(columns[0].tolist())
            if columns[2][row] != 3
        }


def rows_of_shards(folder: Path) -> Rows:
    found: Rows = {}
    for shard in json.loads((folder / "manifest.json").read_text())["shards"]:
        if shard["rows"]:
            found |= rows_of(folder / shard["name"])
    return found


def is_done(row: tuple[bytes, ...]) -> bool:
    return row[1] == b"\1"


def whole(path: Path) -> vggfeat.FeatureCache:
    """The cache there, of which no shard is missing and every done row agrees with its checksum."""
    cache = vggfeat.open(path)
    assert not getattr(cache, "missing", []), "shards are lost"
    assert not vggfeat.verify(path).bad, "rows are bad"
    return cache


def keeps(rows: Callable[[Path], Rows], name: str, kept: Rows) -> Callable[[Path], None]:
    """A check that an output is whole, and that rows which nothing is to change are done."""

    def check(folder: Path) -> None:
        whole(folder / name)
        found = rows(folder / name)
        lost = [path for path, row in kept.items() if found.get(path) != row]
        assert not lost, f"rows are lost: {lost}"

    return check


def whole_if_there(name: str) -> Callable[[Path], None]:
    """A check that an output is whole, if it is there."""

    def check(folder: Path) -> None:
        anchor = folder / name
        if (anchor / "manifest.json" if anchor.is_dir() else anchor).exists():
            whole(anchor)

    return check


def same_bytes(name: str) -> Callable[[Path], object]:
    def contents(folder: Path) -> object:
        place = folder / name
        files = [place] if place.is_file() else sorted(place.rglob("*"))
        return {str(file.relative_to(folder)): file.read_bytes() for file in files}

    return contents


def arrays(name: str) -> Callable[[Path], object]:
    """All data sets of an HDF5 file, but not the time at which it was made."""

    def contents(folder: Path) -> object:
        found: dict[str, bytes] = {}

        def take(path: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and path != "images/mtime_ns":
                found[path] = np.asarray(item[()]).tobytes()

        with h5py.File(folder / name, "r", locking=False) as file:
            file.visititems(take)
        return found

    return contents


def _images(folder: Path) -> None:
    for number in range(IMAGES):
        save(folder / "images" / f"{'ab'[number % 2]}" / f"{number}.png", number + 1)


def _change(folder: Path) -> None:
    """One image changed, one gone, one new in front and one behind."""
    save(folder / "images" / "a" / "0.png", 100)
    (folder / "images" / "b" / "3.png").unlink()
    save(folder / "images" / "a" / "00.png", 101)
    save(folder / "images" / "zz.png", 102)


def _copy_of(template: Path) -> Callable[[Path], None]:
    def begin(folder: Path) -> None:
        shutil.copytree(template, folder, dirs_exist_ok=True, symlinks=True)

    return begin


def cases(place: Path) -> list[Case]:
    """All commands; `place` is an empty folder that what they start from is laid out in."""
    bare, one, sharded = (place / name for name in ("bare", "one", "sharded"))
    _images(bare)
    shutil.copytree(bare, one)
    extract = ("extract", "images", *SMALL)
    vggfeat_command((*extract, "--out", "out.h5"), one)
    shutil.copytree(bare, sharded)
    vggfeat_command((*extract, "--out", "out/", "--shards", "3"), sharded)
    for made, name in ((one, "changed-one"), (sharded, "changed-sharded")):
        shutil.copytree(made, place / name)
        _change(place / name)
    _mended(one, place / "failed-one", (*extract, "--out", "out.h5"), "out.h5")
    _mended(sharded, place / "failed-sharded", (*extract, "--out", "out/"), "out")
    spoilt = place / "spoilt"
    shutil.copytree(one, spoilt)
    _spoil(spoilt / "out.h5")
    vectors = [f"{name}," + ",".join(map(str, row)) for name, row in _VECTORS.items()]
    (one / "vectors.csv").write_text("\n".join(["class,x,y,z", *vectors]) + "\n")
    return [*_extractions(place, extract), *_others(place)]


def _mended(made: Path, place: Path, command: tuple[str, ...], name: str) -> None:
    """An image that failed, and is readable since."""
    shutil.copytree(made, place)
    shutil.rmtree(place / name) if (place / name).is_dir() else (place / name).unlink()
    (place / "images" / "a" / "4.png").write_bytes(b"no image")
    more = ("--shards", "3") if name == "out" else ()
    vggfeat_command((*command, *more), place)
    save(place / "images" / "a" / "4.png", 104)


def _extractions(place: Path, extract: tuple[str, ...]) -> list[Case]:
    single, sharded = (*extract, "--out", "out.h5"), (*extract, "--out", "out/")

    def of_file(folder: Path) -> object:
        return rows_of(folder / "out.h5")

    def of_shards(folder: Path) -> object:
        return rows_of_shards(folder / "out")

    gone = {b"a/0.png", b"b/3.png"}
    kept = {
        name: row for name, row in rows_of(place / "one" / "out.h5").items() if name not in gone
    }
    kept_failed = {
        name: row for name, row in rows_of(place / "failed-one" / "out.h5").items() if is_done(row)
    }
    shards = ("--shards", "3")
    return [
        Case("extract", single, _copy_of(place / "bare"), of_file, whole_if_there("out.h5")),
        Case(
            "extract-update", (*single, "--update"), _copy_of(place / "changed-one"),
            of_file, keeps(rows_of, "out.h5", kept),
        ),
        Case(
            "extract-retry", (*single, "--retry-failed"), _copy_of(place / "failed-one"),
            of_file, keeps(rows_of, "out.h5", kept_failed),
        ),
        Case(
            "extract-fresh", (*single, "--fresh"), _copy_of(place / "one"),
            of_file, whole_if_there("out.h5"),
        ),
        Case(
            "shards", (*sharded, *shards), _copy_of(place / "bare"),
            of_shards, whole_if_there("out"),
        ),
        Case(
            "shards-update", (*sharded, "--update"), _copy_of(place / "changed-sharded"),
            of_shards, keeps(rows_of_shards, "out", kept),
        ),
        Case(
            "shards-retry",
            # A plan goes by where its images lie, so these stay where they were planned.
            ("extract", str(place / "failed-sharded" / "images"), *sharded[2:], "--retry-failed"),
            _copy_of(place / "failed-sharded"),
            of_shards, keeps(rows_of_shards, "out", kept_failed),
        ),
        Case(
            "shards-fresh", (*sharded, *shards, "--fresh"), _copy_of(place / "sharded"),
            of_shards, whole_if_there("out"),
        ),
    ]  # fmt: skip


def _spoil(path: Path) -> None:
    """One row whose features are not those of its checksum."""
    with h5py.File(path, "r+", locking=False) as file:
        name = next(iter(file["features"]))
        row = file["features"][name][4]
        file["features"][name][4] = row + 1


def _states(folder: Path) -> object:
    with h5py.File(folder / "out.h5", "r", locking=False) as file:
        return file["images/state"][()].tobytes()


def _readable(name: str) -> Callable[[Path], None]:
    """A check that a file which HDF5 wrote opens, if it is there."""

    def check(folder: Path) -> None:
        if (folder / name).exists():
            with h5py.File(folder / name, "r", locking=False) as file:
                assert len(file)

    return check


def _others(place: Path) -> list[Case]:
    one = _copy_of(place / "one")
    derived = ("--layers", "conv1_1:max,conv2_1", "--quiet")

    def of_derived(folder: Path) -> object:
        return rows_of(folder / "new.h5")

    def exported(name: str, *words: str) -> Case:
        return Case(
            f"export-{words[1]}", ("export", "out.h5", *words, "--out", name), one,
            same_bytes(name), replaces=False,
        )  # fmt: skip

    return [
        Case(
            "merge", ("merge", "out/", "--out", "new.h5"), _copy_of(place / "sharded"),
            of_derived, whole_if_there("new.h5"), replaces=False,
        ),
        Case(
            "fuse", ("fuse", "out.h5", *derived, "--norm", "standard", "--out", "new.h5"), one,
            of_derived, whole_if_there("new.h5"),
        ),
        Case(
            "reduce", ("reduce", "out.h5", *derived, "--dims", "3", "--out", "new.h5"), one,
            of_derived, whole_if_there("new.h5"),
        ),
        exported("new.csv", "--to", "csv"),
        exported("new.npz", "--to", "npz"),
        exported("new", "--to", "npy"),
        exported("new.hdf5", "--to", "hdf5"),
        exported("new.hloc", "--to", "hloc"),
        exported("new-shards", "--to", "webdataset"),
        Case(
            "zeroshot-fit",
            ("zeroshot", "fit", "out.h5", "--vectors", "vectors.csv", "--unseen", "c", "--gamma",
             "1", "--lambda", "1", "--out", "new.h5"),
            one, arrays("new.h5"), _readable("new.h5"),
        ),
        Case(
            "verify-repair", ("verify", "out.h5", "--repair"), _copy_of(place / "spoilt"), _states,
        ),
        Case(
            "merge-virtual", ("merge", "out/", "--virtual", "--out", "new.h5"),
            _copy_of(place / "sharded"), arrays("new.h5"), _readable("new.h5"), replaces=False,
        ),
        Case(
            "plot", ("plot", "out.h5", "--out", "new.svg", "--layers", "conv1_1:max"),
            one, same_bytes("new.svg"),
        ),
        Case(
            "search-sheet",
            ("search", "out.h5", "--row", "a/0.png", "--layer", "conv2_1", "--sheet", "new.html"),
            one, same_bytes("new.html"),
        ),
        Case("sheet", ("sheet", "out.h5", "--out", "new.png"), one, same_bytes("new.png")),
        Case(
            "explore", ("explore", "out.h5", "--out", "new.html"), one, same_bytes("new.html")
        ),
        Case("stats", ("stats", "images", "--out", "new.toml"), one, same_bytes("new.toml")),
    ]  # fmt: skip
