"""Folders of shards: any number of processes, in any order, killed at any instant, one result."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from documents import blocks
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import basic_indices
from killing import LAYERS, ROWS, SETTINGS, KillServer, contents, make_images

import vggfeat as library
from vggfeat.cache.hdf5_view import view_shards
from vggfeat.cache.shard_manifest import is_ours, read_manifest
from vggfeat.cache.sharded_array import ShardedArray
from vggfeat.cache.sharding import Sharding, split_rows
from vggfeat.errors import CacheError, CacheMismatchError, InputError, LockedError, UsageError
from vggfeat.storage.atomic import TEMPORARY_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COUNTS = {"shards": 3}


@pytest.fixture(scope="module")
def server() -> Iterator[KillServer]:
    with KillServer() as running:
        yield running


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def reference(server: KillServer, images: Path) -> Path:
    out = images.parent / "reference.h5"
    assert server.run(images, out)[0] == 0
    return out


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def files_of(folder: Path) -> list[Path]:
    return [folder / one["name"] for one in manifest_of(folder)["shards"] if one["rows"]]


def joined(folder: Path) -> dict[str, Any]:
    """What `killing.contents` gives of one file, of all shards one behind the other by raw h5py."""
    found: dict[str, list[Any]] = {}
    for path in files_of(folder):
        with h5py.File(path, "r", locking=False) as file:
            names = [
                f"images/{field}"
                for field in ("path", "size", "digest", "state", "checksum", "error")
            ]
            for name in names + [f"features/{spec}" for spec in file["features"]]:
                found.setdefault(name, []).append(file[name][()])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def assert_same(folder: Path, reference: Path) -> None:
    """The shards hold, byte for byte, what the one file holds."""
    with h5py.File(reference, "r") as file:
        width = file["images/path"].dtype.itemsize
    found = joined(folder)
    found["images/path"] = found["images/path"].astype(f"S{width}")
    assert {name: values.tobytes() for name, values in found.items()} == contents(reference)


def assert_only_own_files(folder: Path) -> None:
    names = {path.name for path in files_of(folder)}
    left = set(os.listdir(folder)) - names - {"manifest.json"}
    assert not left, f"left behind: {left}"


def command(images: Path, out: Path | str, *more: str) -> list[str]:
    options = [
        word
        for name, value in SETTINGS.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    return [sys.executable, "-m", "vggfeat", "extract", str(images), *options, "--out", str(out),
            *more]  # fmt: skip


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def vggfeat(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vggfeat", *words],
        cwd=cwd,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def settings(**other: Any) -> library.Settings:
    return library.Settings(**{**SETTINGS, **other})


@pytest.mark.parametrize("shards", [1, 3, 64])
def test_shards_are_the_one_file(
    server: KillServer, images: Path, reference: Path, tmp_path: Path, shards: int
) -> None:
    """Shards in their order are the file of one run, byte for byte, also if some are empty."""
    out = tmp_path / "feats"
    assert server.run(images, out, sharding={"shards": shards})[0] == 0
    assert_same(out, reference)
    found = manifest_of(out)
    assert len(found["shards"]) == shards
    assert [one["rows"] % 4 for one in found["shards"][:-1]] == [0] * (shards - 1)
    assert sum(one["rows"] for one in found["shards"]) == found["rows"] == ROWS
    assert_only_own_files(out)


def test_shares_in_any_order_and_twice(
    server: KillServer, images: Path, reference: Path, tmp_path: Path
) -> None:
    """Shares may come in any order, more than once and more than there are shards."""
    out = tmp_path / "feats"
    assert server.run(images, out, sharding={"share": "2/3"})[0] == 0
    assert [int((file_state(path) > 0).sum()) for path in files_of(out)] == [0, 0, 6]
    for share in ("2/3", "1/2", "0/64", "0/2"):
        assert server.run(images, out, sharding={"share": share})[0] == 0
    assert_same(out, reference)


def file_state(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with h5py.File(path, "r", locking=False) as file:
        state: np.ndarray[Any, np.dtype[np.uint8]] = file["images/state"][()]
        return state


def test_processes_at_the_same_time(images: Path, reference: Path, tmp_path: Path) -> None:
    """Three processes that begin together, two of them with the same share, make one result."""
    out = tmp_path / "feats"
    runs = [
        start(command(images, out, "--shards", "5", *more))
        for more in ([], ["--shard", "1/2"], ["--shard", "1/2"])
    ]
    ends = [run.communicate(timeout=600) for run in runs]
    assert {run.returncode for run in runs} <= {0, 75}, ends
    last = start(command(images, out, "--json"))
    text, _ = last.communicate(timeout=600)
    assert json.loads(text)["pending"] == 0
    assert_same(out, reference)
    assert_only_own_files(out)


def test_a_shard_that_another_run_holds(
    server: KillServer, images: Path, reference: Path, tmp_path: Path
) -> None:
    """A held shard is skipped, the rest is done, and the run ends with 75 and its counts."""
    out = tmp_path / "feats"
    assert server.run(images, out, sharding={"shards": 3, "plan_only": True})[0] == 0
    code = (
        "import sys, vggfeat.storage.locks as lock\n"
        "with lock.hold(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(files_of(out)[1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    done = start(command(images, out, "--json"))
    text, told = done.communicate(timeout=600)
    assert done.returncode == 75
    assert "1 shard of" in told
    assert "is held by other runs" in told
    assert (json.loads(text)["done"], json.loads(text)["pending"]) == (13, 8)
    holder.communicate()
    assert server.run(images, out)[0] == 0
    assert_same(out, reference)


def test_killed_at_many_calls_of_the_plan(
    server: KillServer, images: Path, reference: Path, tmp_path: Path
) -> None:
    """A SIGKILL before any call that makes the plan leaves none or all of it, and no rubbish."""
    calls = server.run(images, tmp_path / "whole", sharding={**COUNTS, "plan_only": True})[1]
    assert calls > 20
    for at in range(1, calls + 1, 3):
        out = tmp_path / f"killed{at}"
        status, _ = server.run(images, out, sharding={**COUNTS, "plan_only": True}, kill_at=at)
        assert status == -signal.SIGKILL
        if (out / "manifest.json").exists():
            assert library.open(out).missing == []  # type: ignore[attr-defined] # a ShardedCache
        assert server.run(images, out, sharding=COUNTS)[0] == 0
        assert_same(out, reference)
        assert_only_own_files(out)
        shutil.rmtree(out)


def test_killed_again_and_again(
    server: KillServer, images: Path, reference: Path, tmp_path: Path
) -> None:
    """A run over shards that dies again and again comes to its end with the same bytes."""
    out = tmp_path / "feats"
    assert server.run(images, out, sharding={**COUNTS, "plan_only": True})[0] == 0
    ends: list[int] = []
    while 0 not in ends and len(ends) < 20:
        ends.append(server.run(images, out, kill_at=16)[0])
    assert set(ends) == {0, -signal.SIGKILL}
    assert len(ends) > 3
    assert_same(out, reference)
    assert_only_own_files(out)


def test_killed_at_random_instants(
    server: KillServer, images: Path, reference: Path, tmp_path: Path
) -> None:
    """A SIGKILL at any time, of runs over all shards and of shares, costs nothing."""
    chance = random.Random(11)
    kills = 0
    for attempt in range(8):
        out = tmp_path / f"{attempt}"
        for _ in range(3):
            share = chance.choice(("", "0/2", "1/3"))
            status, _ = server.run(
                images,
                out,
                sharding={**COUNTS, "share": share},
                kill_after=chance.uniform(0.01, 0.4),
            )
            kills += status == -signal.SIGKILL
            assert status in (0, -signal.SIGKILL)
        assert server.run(images, out, sharding=COUNTS)[0] == 0
        assert_same(out, reference)
        assert_only_own_files(out)
    assert kills >= 5


@pytest.mark.parametrize(
    ("rows", "batch_size", "shards", "expected"),
    [
        (22, 4, 3, [0, 8, 16, 22]),
        (22, 4, 6, [0, 4, 8, 12, 16, 20, 22]),
        (1, 16, 2, [0, 0, 1]),
        (10**9, 256, 2, [0, 499_999_488 + 512, 10**9]),
    ],
)
def test_the_split(rows: int, batch_size: int, shards: int, expected: list[int]) -> None:
    """Rows are split at whole batches, as evenly as these allow."""
    assert split_rows(rows, batch_size, shards) == expected


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"share": "3"}, "expected I/N such as 0/64"),
        ({"share": "64/64"}, r"count from 0, here from 0/64 to 63/64.*SLURM_ARRAY_TASK_ID"),
        ({"share": "0/0"}, "0/1 alone"),
        ({"shards": 0}, "whole number from 1 to"),
        ({"share": "0/2", "plan_only": True}, "--plan-only does no shard"),
    ],
)
def test_shares_that_are_none(asked: dict[str, Any], words: str) -> None:
    """A share or number that makes no sense is refused with what is expected."""
    with pytest.raises(UsageError, match=words):
        Sharding(**asked)


def test_what_a_plan_was_not_made_for(server: KillServer, images: Path, tmp_path: Path) -> None:
    """Another number of shards, other sources, another root or other settings are refused."""
    out = tmp_path / "feats"
    assert server.run(images, out, sharding={**COUNTS, "plan_only": True})[0] == 0
    with pytest.raises(UsageError, match="has 3 shards, requested 4"):
        library.extract(images, out, settings(), sharding=Sharding(shards=4))
    with pytest.raises(CacheMismatchError, match=r"was planned of .*images, requested "):
        library.extract(tmp_path, out, settings())
    with pytest.raises(CacheMismatchError, match="paths relative to"):
        library.extract(images, out, settings(), root=str(images.parent))
    with pytest.raises(CacheMismatchError, match="layers: file"):
        library.extract(images, out, settings(layers=f"{LAYERS},conv3_1"))
    with pytest.raises(UsageError, match="--update is about all shards"):
        library.extract(
            images,
            out,
            settings(),
            sharding=Sharding(share="0/3"),
            policy=library.UpdatePolicy(update=True),
        )


def test_places_that_take_no_shards(images: Path, reference: Path, tmp_path: Path) -> None:
    """A folder of other files, a file, a name of a file and a missing folder are refused."""
    with pytest.raises(UsageError, match=r"holds 22 other files, such as '000\.png'"):
        library.extract(images, images, settings())
    with pytest.raises(UsageError, match="is a file, and shards go into a folder"):
        library.extract(images, reference, settings(), sharding=Sharding(shards=2))
    with pytest.raises(UsageError, match="named like a file"):
        library.extract(images, tmp_path / "f.h5", settings(), sharding=Sharding(shards=2))
    with pytest.raises(UsageError, match="create it first"):
        library.extract(images, f"{tmp_path}/no/feats/", settings())
    assert os.listdir(tmp_path) == []


def test_a_shard_that_is_gone(
    server: KillServer, images: Path, reference: Path, tmp_path: Path
) -> None:
    """Without one shard the rest is read, the gone one is named, and an update heals it."""
    out = tmp_path / "feats"
    assert server.run(images, out, sharding=COUNTS)[0] == 0
    gone = files_of(out)[1]
    gone.unlink()
    cache = library.open(out)
    assert isinstance(cache, library.ShardedCache)
    assert cache.missing == [gone.name]
    assert np.asarray(cache.state).tolist() == [1, 1, 1, 1, 1, 1, 2, 1, *[0] * 8, *[1] * 6]
    assert cache.row("020.png") == 21
    with pytest.raises(KeyError):
        cache.row("010.png")
    with pytest.raises(CacheError, match=rf"1 shard of .* is missing: {gone.name}"):
        library.extract(images, out, settings())
    summary = library.extract(images, out, settings(), policy=library.UpdatePolicy(update=True))
    assert (summary.added, summary.pending, summary.new_done) == (8, 0, 8)
    assert_same(out, reference)
    assert_only_own_files(out)


@pytest.fixture(scope="module")
def feats(server: KillServer, images: Path) -> Path:
    """Seven shards, one of them empty; to be read only."""
    out = images.parent / "feats"
    assert server.run(images, out, sharding={"shards": 7})[0] == 0
    return out


def test_reading_agrees_with_raw_h5py(feats: Path) -> None:
    """Every array and look-up of a folder is what plain h5py finds in its files, joined."""
    raw = joined(feats)
    cache = library.open(feats)
    assert len(cache) == ROWS
    assert cache.layers == tuple(sorted(LAYERS.split(",")))
    for layer in cache.layers:
        array = cache[layer]
        assert (array.shape, str(array.dtype)) == (raw[f"features/{layer}"].shape, "float16")
        np.testing.assert_array_equal(np.asarray(array), raw[f"features/{layer}"])
        np.testing.assert_array_equal(
            cache.values(layer, slice(3, 19)), raw[f"features/{layer}"][3:19].astype(np.float32)
        )
    columns = {
        "state": cache.state, "checksum": cache.checksums, "size": cache.sizes,
        "digest": cache.digests, "path": cache.paths,
    }  # fmt: skip
    for name, column in columns.items():
        np.testing.assert_array_equal(np.asarray(column), raw[f"images/{name}"])
    paths = [bytes(path) for path in raw["images/path"]]
    assert [cache.row(path) for path in paths] == list(range(ROWS))
    assert [cache.name(row).encode() for row in range(ROWS)] == paths
    assert [(failure.row, failure.reason.encode()) for failure in cache.failures()] == [
        (row, raw["images/error"][row]) for row in np.flatnonzero(raw["images/state"] == 2).tolist()
    ]
    rows = [rows.tolist() for rows, _ in cache.batches("conv2_1", size=5)]
    assert [row for part in rows for row in part] == np.flatnonzero(
        raw["images/state"] == 1
    ).tolist()
    for absent in ("", "000", "zzz.png", b"\xff"):
        with pytest.raises(KeyError):
            cache.row(absent)


def test_a_share_by_itself(feats: Path) -> None:
    """Opened by share, a folder has the rows of its own shards alone, counted over these."""
    raw = joined(feats)["images/path"]
    bounds = [(one["first_row"], one["rows"]) for one in manifest_of(feats)["shards"]]
    wanted = [raw[first : first + rows] for first, rows in bounds[1::2]]
    cache = library.open(feats, "1/2")
    np.testing.assert_array_equal(np.asarray(cache.paths), np.concatenate(wanted))
    assert cache.row(bytes(wanted[1][2])) == len(wanted[0]) + 2
    empty = library.open(feats, "60/64")
    assert (len(empty), empty["conv2_1"].shape, empty.failures()) == (0, (0, 128), [])
    summary = library.extract(
        feats.parent / "images", feats, settings(), sharding=Sharding(share="60/64")
    )
    assert (summary.rows, summary.done, summary.pending) == (0, 0, 0)


parts = st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(sum)


def arrays(sizes: list[int], row: tuple[int, ...]) -> tuple[ShardedArray, Any]:
    whole = np.arange(sum(sizes) * int(np.prod(row))).reshape(sum(sizes), *row)
    pieces = np.split(whole, np.cumsum(sizes)[:-1])
    firsts = np.cumsum([0, *sizes])
    return ShardedArray(firsts, row, whole.dtype, lambda number: pieces[number]), whole


@given(st.data(), parts, st.sampled_from([(), (3,), (2, 3)]))
@hypothesis_settings(max_examples=150, deadline=None)
def test_slices_are_those_of_the_joined_array(
    data: st.DataObject, sizes: list[int], row: tuple[int, ...]
) -> None:
    """Numbers, slices, ellipses and new axes give what they give on NumPy's concatenation."""
    array, whole = arrays(sizes, row)
    for key in (data.draw(basic_indices(whole.shape, allow_newaxis=True)), (), ...):
        np.testing.assert_array_equal(array[key], whole[key], strict=True)
    # Hypothesis' own slices are hardly ever of step 1, which is what most readers ask for.
    bounds = st.none() | st.integers(-len(whole) - 1, len(whole) + 1)
    start, stop = data.draw(bounds), data.draw(bounds)
    np.testing.assert_array_equal(array[start:stop], whole[start:stop], strict=True)
    np.testing.assert_array_equal(array[start:stop, ...], whole[start:stop, ...], strict=True)


@given(st.data(), parts, st.sampled_from([(), (3,), (2, 3)]))
@hypothesis_settings(max_examples=150, deadline=None)
def test_picked_rows_are_those_of_the_joined_array(
    data: st.DataObject, sizes: list[int], row: tuple[int, ...]
) -> None:
    """Rows by lists, masks and arrays of any shape give what they give on the concatenation."""
    array, whole = arrays(sizes, row)
    count = len(whole)
    rows = data.draw(st.lists(st.integers(-count, count - 1), max_size=6))
    np.testing.assert_array_equal(array[rows], whole[np.array(rows, dtype=int)])
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    np.testing.assert_array_equal(array[mask], whole[mask], strict=True)
    square = np.resize(np.array([*rows, 0]), (2, 2))
    np.testing.assert_array_equal(array[square], whole[square], strict=True)
    if row:
        rest = data.draw(basic_indices(row, allow_ellipsis=False))
        keys = rest if isinstance(rest, tuple) else (rest,)
        key = (mask, *keys)
        np.testing.assert_array_equal(array[key], whole[key])
        columns = np.resize(np.array([0, row[0] - 1, 1 % row[0]]), len(square))
        np.testing.assert_array_equal(array[square, columns], whole[square, columns])
    np.testing.assert_array_equal(np.asarray(array == whole), np.ones(whole.shape, dtype=bool))
    assert [np.asarray(one).tolist() for one in array] == whole.tolist()


@pytest.mark.parametrize("key", [22, -23, [0, 22], [0.5], [True]])
def test_rows_that_are_not_there(feats: Path, key: Any) -> None:
    """A row beyond the end, a mask of another length and rows that are no numbers are errors."""
    with pytest.raises(IndexError):
        library.open(feats)["conv2_1"][key]


def test_more_shards_than_descriptors(feats: Path) -> None:
    """Few descriptors suffice for any number of maps: the oldest ones are given up."""
    code = (
        "import resource, sys, numpy as np, vggfeat, vggfeat.cache.sharded as reader\n"
        "reader._MAPS_KEPT = 3\n"
        "cache = vggfeat.open(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))\n"
        "for name in (*cache.layers, *cache.layers):\n    np.asarray(cache[name])\n"
        "print(int(cache.done.sum()), cache.row('020.png'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(feats)], check=True, capture_output=True, text=True
    )
    assert done.stdout == "21 21\n"


def test_commands_take_a_folder_as_a_file(feats: Path, reference: Path, tmp_path: Path) -> None:
    """Searching, comparing all, fusing, reducing and exporting give what they give of one file."""
    one, many = str(reference), str(feats)
    query = ["--layer", "conv2_1", "--json"]
    found = [
        [
            json.loads(vggfeat("search", path, "--row", "003.png", *query).stdout)["answers"],
            json.loads(vggfeat("duplicates", path, *query).stdout)["groups"],
        ]
        for path in (one, many)
    ]
    assert found[0] == found[1]
    for path, name in ((one, "a"), (many, "b")):
        for words in (
            ("fuse", path, "--out", f"{name}-fused.h5"),
            ("reduce", path, "--layers", "conv2_1", "--dims", "3", "--out", f"{name}-short.h5"),
            ("export", path, "--to", "hdf5", "--out", f"{name}-hdf5.h5"),
        ):
            done = vggfeat(*words, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
    for kind in ("fused", "short", "hdf5"):
        with h5py.File(tmp_path / f"a-{kind}.h5") as a, h5py.File(tmp_path / f"b-{kind}.h5") as b:
            for name in ("path", "state", "checksum", "digest"):
                np.testing.assert_array_equal(a[f"images/{name}"][()], b[f"images/{name}"][()])
            for layer in a["features"]:
                np.testing.assert_array_equal(
                    a[f"features/{layer}"][()], b[f"features/{layer}"][()]
                )
    shown = json.loads(vggfeat("inspect", many, "--json").stdout)
    assert [one["rows"] for one in shown["shards"]] == [
        one["rows"] for one in manifest_of(feats)["shards"]
    ]
    dataset = library.FeatureDataset(feats, ["conv2_1"])
    raw = joined(feats)
    np.testing.assert_array_equal(dataset[20][0].numpy(), raw["features/conv2_1"][21])
    with pytest.raises(UsageError, match="lies in 7 files"):
        library.as_tensor(dataset.cache, "conv2_1")


def test_merged_to_one_file(feats: Path, reference: Path, tmp_path: Path) -> None:
    """A folder merged is the one-process file; with another cache each image comes once."""
    merged = library.merge([feats], tmp_path / "merged.h5")
    assert (merged.rows, merged.done, merged.failed, merged.pending) == (22, 21, 1, 0)
    assert contents(tmp_path / "merged.h5") == contents(reference)
    assert not library.verify(tmp_path / "merged.h5").bad
    both = library.merge([feats, reference], tmp_path / "both.h5")
    assert (both.rows, both.shared, both.sources) == (22, 22, 2)
    assert contents(tmp_path / "both.h5") == contents(reference)
    with pytest.raises(UsageError, match="exists already"):
        library.merge([feats], tmp_path / "both.h5")


def test_a_view_for_other_tools(feats: Path, reference: Path, tmp_path: Path) -> None:
    """A view holds, read by h5py from any place, what the one file holds, and moves along."""
    place = tmp_path / "a"
    place.mkdir()
    shutil.copytree(feats, place / "feats")
    assert view_shards(place / "feats", place / "view.h5") == ROWS
    (tmp_path / "a").rename(tmp_path / "b")
    view = tmp_path / "b" / "view.h5"
    assert contents(view) == contents(reference)
    assert view.stat().st_size < 100_000
    with pytest.raises(CacheError, match="view of shards for other tools; name the folder"):
        library.open(view)


def test_a_view_of_shards_of_two_versions(feats: Path, tmp_path: Path) -> None:
    """A shard that declares its paths as UTF-8, as older ones do, gets no view that fails later."""
    copy = shutil.copytree(feats, tmp_path / "feats")
    first = files_of(copy)[0]
    with h5py.File(first, "r+") as file:
        paths = file["images/path"][()]
        utf8 = h5py.string_dtype("utf-8", paths.dtype.itemsize)
        del file["images/path"]
        file.create_dataset("images/path", data=paths.astype(utf8), dtype=utf8)
    with pytest.raises(UsageError, match=r"different versions .*; merge without --virtual"):
        view_shards(copy, tmp_path / "view.h5")
    assert not (tmp_path / "view.h5").exists()
    assert library.merge([copy], tmp_path / "whole.h5").rows == ROWS


def test_verify_names_rows_of_the_whole(feats: Path, tmp_path: Path) -> None:
    """A bad row is named by its number over all shards; repaired, the next run does it again."""
    out = tmp_path / "feats"
    shutil.copytree(feats, out)
    before = joined(out)
    third = files_of(out)[2]
    with h5py.File(third, "r+") as file:
        file["features/conv2_1"][1] = 7
    (place,) = [one for one in manifest_of(out)["shards"] if one["name"] == third.name]
    (bad,) = library.verify(out, repair=True).bad
    assert bad.row == place["first_row"] + 1
    assert bad.path == bytes(before["images/path"][bad.row]).decode()
    images = feats.parent / "images"
    assert library.extract(images, out, settings()).new_done == 1
    after = joined(out)
    assert all(after[name].tobytes() == before[name].tobytes() for name in before)
    third.unlink()
    done = vggfeat("verify", str(out))
    assert done.returncode == 5
    assert f"1 shard is missing: {third.name}" in done.stderr
    with pytest.raises(CacheError, match="shards are missing, 1 of"):
        library.merge([out], tmp_path / "merged.h5")


def changed_copy(images: Path, place: Path) -> Path:
    """The images with some new ones before, between and behind, some gone, and one changed."""
    shutil.copytree(images, place)
    for name in ("000a.png", "010a.png", "010b.png", "zz.png"):
        shutil.copy(images / "000.png", place / name)
    for name in ("005b.jpg", "012.png"):
        (place / name).unlink()
    shutil.copy(images / "001.png", place / "018.png")
    os.utime(place / "018.png", (1, 1))
    return place


def test_update(server: KillServer, images: Path, tmp_path: Path) -> None:
    """An update brings in what is new, changed and gone, as one of a single file does."""
    place, out = tmp_path / "images", tmp_path / "feats"
    shutil.copytree(images, place)
    assert server.run(place, out, sharding=COUNTS)[0] == 0
    names = {path.name for path in files_of(out)}
    shutil.rmtree(place)
    changed_copy(images, place)
    summary = library.extract(place, out, settings(), policy=library.UpdatePolicy(update=True))
    assert (summary.added, summary.changed, summary.gone) == (4, 1, 2)
    assert (summary.new_done, summary.pending, summary.removed) == (5, 0, 0)
    assert_only_own_files(out)
    assert len(names - {path.name for path in files_of(out)}) == 3
    assert server.run(place, tmp_path / "anew.h5")[0] == 0
    found, right = joined(out), contents(tmp_path / "anew.h5")
    for name in ("images/state", "images/digest", "images/size"):
        assert found[name].tobytes() == right[name]
    with h5py.File(tmp_path / "anew.h5") as file:
        for layer in file["features"]:
            np.testing.assert_allclose(
                found[f"features/{layer}"], file[f"features/{layer}"][()], rtol=1e-2, atol=1e-3
            )
    assert not library.verify(out).bad


def test_update_killed_at_many_calls(server: KillServer, images: Path, tmp_path: Path) -> None:
    """A SIGKILL at any call of an update leaves the old plan or the new, and loses no row."""
    first = tmp_path / "first"
    assert server.run(images, first, sharding=COUNTS)[0] == 0
    place = changed_copy(images, tmp_path / "images")
    policy = {"update": True}
    whole = tmp_path / "whole"
    shutil.copytree(first, whole)
    _, calls = server.run(place, whole, options=policy)
    assert calls > 30
    for at in range(1, calls + 1, 9):
        out = tmp_path / "killed"
        shutil.copytree(first, out)
        status, _ = server.run(place, out, options=policy, kill_at=at)
        assert status == -signal.SIGKILL
        assert not library.verify(out).bad
        assert len(library.open(out)) in (22, 24)
        assert server.run(place, out, options=policy)[0] == 0
        found, right = joined(out), joined(whole)
        assert all(found[name].tobytes() == right[name].tobytes() for name in right)
        assert_only_own_files(out)
        shutil.rmtree(out)


def test_an_image_gone_and_another_changed_in_one_shard(
    server: KillServer, images: Path, tmp_path: Path
) -> None:
    """Rows that were removed are no images asked for: updates, retries and runs all go on."""
    place, out = tmp_path / "images", tmp_path / "feats"
    shutil.copytree(images, place)
    assert server.run(place, out, sharding=COUNTS)[0] == 0
    (place / "001.png").unlink()
    shutil.copy(place / "000.png", place / "002.png")
    update, retry = library.UpdatePolicy(update=True), library.UpdatePolicy(retry_failed=True)
    for policy, done in ((update, 1), (update, 0), (retry, 0)):
        summary = library.extract(place, out, settings(), policy=policy)
        assert (summary.new_done, summary.pending, summary.removed) == (done, 0, 1)
    shutil.copy(place / "000.png", place / "005b.jpg")
    assert library.extract(place, out, settings(), policy=retry).new_done == 1
    shutil.copy(place / "000.png", place / "001.png")  # and back again, which is an update's
    assert library.extract(place, out, settings()).removed == 1
    assert library.extract(place, out, settings(), policy=update).done == 22


def test_a_shard_all_of_whose_images_are_gone(
    server: KillServer, images: Path, tmp_path: Path
) -> None:
    """A shard with removed rows alone has nothing to do, and its share is no failure."""
    place, out = tmp_path / "images", tmp_path / "feats"
    shutil.copytree(images, place)
    assert server.run(place, out, sharding=COUNTS)[0] == 0
    for number in range(8):
        (place / f"{number:03}.png").unlink()
    (place / "005b.jpg").unlink()
    summary = library.extract(place, out, settings(), policy=library.UpdatePolicy(update=True))
    assert (summary.removed, summary.pending) == (9, 0)
    for policy in (library.UpdatePolicy(), library.UpdatePolicy(retry_failed=True)):
        share = library.extract(
            place, out, settings(), sharding=Sharding(share="0/3"), policy=policy
        )  # fmt: skip
        assert (share.rows, share.removed, share.done) == (8, 8, 0)


def test_too_many_gone(server: KillServer, images: Path, tmp_path: Path) -> None:
    """More images gone over all shards than may be change nothing."""
    place, out = tmp_path / "images", tmp_path / "feats"
    shutil.copytree(images, place)
    assert server.run(place, out, sharding=COUNTS)[0] == 0
    before = (out / "manifest.json").read_bytes()
    for name in ("000.png", "010.png", "020.png"):
        (place / name).unlink()
    with pytest.raises(InputError, match=r"3 of the 22 images .* are gone.*2 may be"):
        library.extract(
            place, out, settings(max_removed="2"), policy=library.UpdatePolicy(update=True)
        )
    assert (out / "manifest.json").read_bytes() == before
    assert (joined(out)["images/state"] != 3).all()


def test_a_folder_that_is_not_mounted(server: KillServer, images: Path, tmp_path: Path) -> None:
    """Where all images of a shard are gone none is marked failed, and the run says what it saw."""
    place, out = tmp_path / "images", tmp_path / "feats"
    shutil.copytree(images, place)
    assert server.run(place, out, sharding={**COUNTS, "plan_only": True})[0] == 0
    place.rename(tmp_path / "away")
    place.mkdir()
    with pytest.raises(InputError, match=r"not one of the 8 images of shard .*not mounted\?"):
        library.extract(place, out, settings())
    assert not joined(out)["images/state"].any()
    place.rmdir()
    (tmp_path / "away").rename(place)
    assert library.extract(place, out, settings()).pending == 0


def test_fresh_replaces_the_whole(server: KillServer, images: Path, tmp_path: Path) -> None:
    """A new beginning has a new split, and nothing of the old one is left."""
    out = tmp_path / "feats"
    assert server.run(images, out, sharding=COUNTS)[0] == 0
    old = {path.name for path in files_of(out)}
    summary = library.extract(images, out, settings(), fresh=True, sharding=Sharding(shards=2))
    assert (summary.done, summary.failed, summary.pending) == (21, 1, 0)
    assert len(files_of(out)) == 2
    assert not old & set(os.listdir(out))
    assert_only_own_files(out)


def test_nobody_plans_while_others_work(server: KillServer, images: Path, tmp_path: Path) -> None:
    """An update or a new beginning is refused while a run works in the folder."""
    out = tmp_path / "feats"
    assert server.run(images, out, sharding={**COUNTS, "plan_only": True})[0] == 0
    code = (
        "import sys\nfrom vggfeat.storage.locks import SharedLock\n"
        "with SharedLock(sys.argv[1]) as lock:\n    lock.acquire_shared(print)\n"
        "    print('held', flush=True)\n    sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(out / "manifest.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        for how in ({"fresh": True}, {"policy": library.UpdatePolicy(update=True)}):
            with pytest.raises(LockedError, match="is held by runs at work"):
                library.extract(images, out, settings(), **how)
        assert library.extract(images, out, settings()).done == 21
        holder.communicate()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "x"}, "format is 'x', expected 'vggfeat-shards'"),
        ({"format_version": 2}, "upgrade it"),
        ({"rows": 23}, "rows is 23, those of the shards are 22"),
        ({"batch_size": "x"}, "is damaged: ValueError"),
        ({"shards": [{"name": "../x.h5", "first_row": 0, "rows": 22}]}, "has the name '../x.h5'"),
        ({"shards": [{"name": "x.h5", "first_row": 1, "rows": 21}]}, "expected 0"),
        ({"shards": None}, "is damaged: TypeError"),
    ],
)
def test_manifests_that_lie(
    feats: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    """A manifest of another format, a newer version or with wrong numbers is refused."""
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest_of(feats), **change}))
    with pytest.raises(CacheError, match=words):
        library.open(tmp_path)


def test_a_manifest_is_what_the_format_says(feats: Path) -> None:
    """The manifest has the fields of the format and those alone, and reads back to itself."""
    found = manifest_of(feats)
    assert list(found) == [
        "format", "format_version", "created_utc", "tool_version", "fingerprint", "batch_size",
        "root", "sources", "rows", "path_bytes", "shards",
    ]  # fmt: skip
    assert {tuple(one) for one in found["shards"]} == {("name", "first_row", "rows")}
    assert read_manifest(str(feats)).as_json() == (feats / "manifest.json").read_text()
    with pytest.raises(CacheError, match=r"is no sharded cache: it has no manifest\.json"):
        library.open(feats.parent / "images")
    (feats.parent / "broken").mkdir(exist_ok=True)
    (feats.parent / "broken" / "manifest.json").write_text("{")
    with pytest.raises(CacheError, match="is no JSON"):
        library.open(feats.parent / "broken")


def test_a_shard_of_another_plan(feats: Path, tmp_path: Path) -> None:
    """A shard that is not the manifest's is refused where it is looked at, and named."""
    out = tmp_path / "feats"
    shutil.copytree(feats, out)
    first, *_, last = files_of(out)
    shutil.copy(last, first)
    with pytest.raises(CacheError, match=rf"{first.name}' is not the one of the manifest: 2 rows"):
        library.open(out)


def test_from_the_command_line(images: Path, tmp_path: Path) -> None:
    """Shares say which they are; failures, metrics and exit codes are theirs alone."""
    words = command(images, "feats/", "--shards", "3")[3:]
    done = vggfeat(*words, "--plan-only", cwd=tmp_path)
    assert (done.returncode, "22 left" in done.stdout) == (0, True), done.stderr
    assert "PLANNED  the same command without --plan-only extracts the images" in done.stdout
    assert "nothing left to do" not in done.stdout
    done = vggfeat(
        *words, "--shard", "0/3", "--failures", "f.csv", "--metrics-file", "m.prom",
        "--max-failures", "0", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 4
    assert done.stdout.startswith("feats/, share 0/3: 8 images, 7 done, 1 failed")
    assert (tmp_path / "f.csv").read_text().splitlines()[1].startswith("005b.jpg,")
    assert (
        'vggfeat_images{out="feats/",share="0/3",state="done"} 7'
        in (tmp_path / "m.prom").read_text()
    )
    done = vggfeat(*words, "--shard", "3/3", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    done = vggfeat(*words, "--shard", "1/3", "--time-limit", "0.001s", cwd=tmp_path)
    assert done.returncode == 0
    done = vggfeat("merge", "feats", "--out", "view.h5", "--virtual", cwd=tmp_path)
    assert done.stdout.startswith("view.h5: a view of 22 images")
    done = vggfeat("merge", "feats", "feats", "--out", "x.h5", "--virtual", cwd=tmp_path)
    assert done.returncode == 2


def test_the_array_of_the_operations_page(images: Path, tmp_path: Path) -> None:
    """The job script shown for Slurm does the share of its task, and its array is as many tasks."""
    (script,) = blocks("docs/OPERATIONS.md", "slurm")
    line = script.strip().splitlines()[-1]
    assert "#SBATCH --array=0-63\n" in script
    assert "/64 " in line
    words = " ".join(command(images, "feats/")[5:])
    line = line.replace(
        "vggfeat extract /srv/photos", f"{sys.executable} -m vggfeat extract {images}"
    )
    line = line.replace("--layers conv5_3,fc7 --out /srv/feats/", words)
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "SLURM_ARRAY_TASK_ID": "63"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == ""
    shards = manifest_of(tmp_path / "feats")["shards"]
    assert len(shards) == 64
    done_rows = [
        int((file_state(tmp_path / "feats" / one["name"]) > 0).sum()) if one["rows"] else 0
        for one in shards
    ]
    assert done_rows == [*[0] * 63, shards[63]["rows"]]
    assert shards[63]["rows"] > 0


@pytest.mark.parametrize("stem", ["shard-00000-0123abcd.h5", "manifest.json"])
def test_names_that_are_our_own(stem: str) -> None:
    """Locks and temporaries of the folder's files are ours, those of transfers too; no others."""
    assert is_ours(f"{stem}.lock")
    assert is_ours(f"{stem}{TEMPORARY_SUFFIX}")  # what `transfer.download` writes to
    for name in (f"{stem}.bak", f"{stem}.part", f"{stem}.orig", f"my{stem}", "manifest.json.tmp"):
        assert not is_ours(name)
