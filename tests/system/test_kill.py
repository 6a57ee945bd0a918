"""Killed at any instant, the same command again gives the same file."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import time
from typing import TYPE_CHECKING

import h5py
import pytest
from killing import (
    SETTINGS,
    KillServer,
    check_done_rows,
    contents,
    kill_and_go_on,
    make_images,
)

import vggfeat
from vggfeat.cache.format import RowState
from vggfeat.cache.reader import FeatureCache

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def server() -> Iterator[KillServer]:
    with KillServer() as running:
        yield running


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("kill"))


@pytest.fixture(scope="module")
def reference(server: KillServer, images: Path) -> tuple[Path, int]:
    out = images.parent / "reference.h5"
    status, calls = server.run(images, out)
    assert status == 0
    return out, calls


@pytest.mark.parametrize("torn", [False, True])
def test_killed_before_every_write_sync_and_rename(
    server: KillServer, images: Path, reference: tuple[Path, int], tmp_path: Path, *, torn: bool
) -> None:
    """A SIGKILL before, or in the middle of, each call that changes the file costs nothing."""
    expected, calls = reference
    assert calls > 25
    for at in range(1, calls + 1):
        out = tmp_path / f"{at}.h5"
        assert kill_and_go_on(server, images, out, expected, kill_at=at, torn=torn)


def test_fresh_that_is_killed_is_resumed_by_the_same_command(
    server: KillServer, images: Path, reference: tuple[Path, int], tmp_path: Path
) -> None:
    """Killed before any call, what `fresh` has done by then is kept; once done it begins again."""
    expected, _ = reference
    good = int((FeatureCache(expected).state == RowState.DONE).sum())
    kept = []
    for at in itertools.count(1, 7):
        out = tmp_path / f"{at}.h5"
        shutil.copy(expected, out)
        status, _ = server.run(images, out, fresh=True, kill_at=at)
        state = FeatureCache(out).state
        check_done_rows(out, expected)
        begun = os.path.exists(f"{out}.vggfeat.fresh") and bool((state == RowState.PENDING).any())
        before = int((state == RowState.DONE).sum()) if begun else 0
        kept.append(before)
        found = vggfeat.extract(images, out, vggfeat.Settings(**SETTINGS), fresh=True)
        assert found.new_done == good - before, at
        assert contents(out) == contents(expected)
        assert {path.name for path in tmp_path.iterdir()} == {out.name}
        out.unlink()
        if not status:
            break
    assert 0 in kept
    assert max(kept) > good // 2


def test_killed_at_random_instants(
    server: KillServer, images: Path, reference: tuple[Path, int], tmp_path: Path
) -> None:
    """A SIGKILL at any time, with workers about too, costs nothing and leaves no process."""
    chance = random.Random(7)
    kills = 0
    for attempt in range(60):
        kills += kill_and_go_on(
            server,
            images,
            tmp_path / f"{attempt}.h5",
            reference[0],
            kill_after=chance.uniform(0.001, 0.2),
            workers=attempt % 2,
            checkpoint_seconds=(0, 0.001)[attempt // 2 % 2],  # the latter syncs while rows come in
        )
    assert kills >= 15
    deadline = time.monotonic() + 120
    while server.orphans() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not server.orphans(), "decoding processes outlived their killed run"


def test_killed_again_and_again(
    server: KillServer, images: Path, reference: tuple[Path, int], tmp_path: Path
) -> None:
    """A run that dies at every fifteenth call comes to its end, and never loses a done row."""
    out = tmp_path / "out.h5"
    done = [0]
    for _ in range(100):
        status, _calls = server.run(images, out, kill_at=16)
        done.append(check_done_rows(out, reference[0]) if out.exists() else 0)
        assert done[-1] >= done[-2]
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert status == 0
    assert len(done) > 3
    assert contents(out) == contents(reference[0])


@pytest.mark.parametrize("at", [3, 9, 16])
def test_killed_where_batches_are_computed_in_parts(
    server: KillServer, images: Path, reference: tuple[Path, int], tmp_path: Path, at: int
) -> None:
    """A cache that records passes smaller than its batches resumes as any other."""
    begun = tmp_path / "begun.h5"
    shutil.copy(reference[0], begun)
    with h5py.File(begun, "r+") as file:
        file.attrs["config"] = json.dumps({**json.loads(file.attrs["config"]), "pass_images": 3})
        file["images/state"][:] = 0
    whole, killed = tmp_path / "whole.h5", tmp_path / "killed.h5"
    shutil.copy(begun, whole)
    shutil.copy(begun, killed)
    assert server.run(images, whole)[0] == 0
    assert server.run(images, killed, kill_at=at)[0] == -signal.SIGKILL
    check_done_rows(killed, whole)
    assert server.run(images, killed)[0] == 0
    assert contents(killed) == contents(whole)
