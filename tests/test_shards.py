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
from killing import LAYERS, ROWS, SETTINGS, KillServer, contents, make_images

import vggfeat as library
from vggfeat.errors import CacheError, CacheMismatchError, UsageError
from vggfeat.splitting import Sharding, split_rows

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
    allowed = names | {f"{name}.lock" for name in names} | {"manifest.json", "manifest.json.lock"}
    left = set(os.listdir(folder)) - allowed
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
    ends = [run.communicate(timeout=120) for run in runs]
    assert {run.returncode for run in runs} <= {0, 75}, ends
    last = start(command(images, out, "--json"))
    text, _ = last.communicate(timeout=120)
    assert json.loads(text)["pending"] == 0
    assert_same(out, reference)
    assert_only_own_files(out)


def test_a_shard_that_another_run_holds(
    server: KillServer, images: Path, reference: Path, tmp_path: Path
) -> None:
    """A held shard is passed over, the rest is done, and the run ends with 75 and its counts."""
    out = tmp_path / "feats"
    assert server.run(images, out, sharding={"shards": 3, "plan_only": True})[0] == 0
    code = (
        "import sys, vggfeat.lock as lock\n"
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
    text, told = done.communicate(timeout=120)
    assert done.returncode == 75
    assert "1 shards of" in told
    assert "are held by other runs" in told
    assert (json.loads(text)["done"], json.loads(text)["pending"]) == (13, 8)
    holder.communicate()
    assert server.run(images, out)[0] == 0
    assert_same(out, reference)


def test_killed_at_every_call_of_the_plan(
    server: KillServer, images: Path, reference: Path, tmp_path: Path
) -> None:
    """A SIGKILL before any call that makes the plan leaves none or all of it, and no rubbish."""
    calls = server.run(images, tmp_path / "whole", sharding={**COUNTS, "plan_only": True})[1]
    assert calls > 20
    for at in range(1, calls + 1, 2):
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
    with pytest.raises(UsageError, match="has 3 shards, asked 4"):
        library.extract(images, out, settings(), sharding=Sharding(shards=4))
    with pytest.raises(CacheMismatchError, match=r"was planned of .*images, asked "):
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
            wish=library.Wish(update=True),
        )


def test_places_that_take_no_shards(images: Path, reference: Path, tmp_path: Path) -> None:
    """A folder of other files, a file, a name of a file and a missing folder are refused."""
    with pytest.raises(UsageError, match=r"holds 22 other files, such as '000\.png'"):
        library.extract(images, images, settings())
    with pytest.raises(UsageError, match="is a file, and shards go into a folder"):
        library.extract(images, reference, settings(), sharding=Sharding(shards=2))
    with pytest.raises(UsageError, match="named like a file"):
        library.extract(images, tmp_path / "f.h5", settings(), sharding=Sharding(shards=2))
    with pytest.raises(UsageError, match="make it first"):
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
    with pytest.raises(CacheError, match=rf"1 shards of .* are not there: {gone.name}"):
        library.extract(images, out, settings())
    summary = library.extract(images, out, settings(), wish=library.Wish(update=True))
    assert (summary.added, summary.pending, summary.new_done) == (8, 0, 8)
    assert_same(out, reference)
    assert_only_own_files(out)
