"""A power cut at any instant, with any unsynced sectors lost, leaves every done row whole."""

from __future__ import annotations

import pickle
import random
from typing import TYPE_CHECKING

import pytest
from killing import KillServer, check_done_rows, contents, make_images
from power_cuts import after_power_cut

from vggfeat.cache.reader import FeatureCache

if TYPE_CHECKING:
    from pathlib import Path

    from power_cuts import Call

STATES = 300


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Call]]:
    """An uninterrupted run and the log of all it did to the file."""
    folder = tmp_path_factory.mktemp("power")
    images = make_images(folder)
    out, log = folder / "reference.h5", folder / "log"
    with KillServer() as server:
        status, _ = server.run(images, out, log=log)
    assert status == 0
    return out, pickle.loads(log.read_bytes())


def _split(log: list[Call]) -> tuple[bytes, list[Call]]:
    """The file as it was synced before its rename, and every call after the rename."""
    renamed = next(index for index, call in enumerate(log) if call[0] == "replace")
    synced = [call for call in log[:renamed] if call[0] == "fsync"]
    return synced[-1][3], log[renamed + 1 :]


def test_creation_is_synced_renamed_and_synced(recorded: tuple[Path, list[Call]]) -> None:
    """The new file is on the disk before its name is, and its name before its first row."""
    kinds = [call[0] for call in recorded[1]]
    renamed = kinds.index("replace")
    assert kinds[renamed - 1] == "fsync"
    assert kinds[renamed + 1] == "fsync"  # the directory
    assert set(kinds[:renamed]) == {"pwrite", "fsync"}


def test_done_rows_survive_power_cuts(recorded: tuple[Path, list[Call]], tmp_path: Path) -> None:
    """In 300 states of the disk after a cut, the file opens and each row called done is whole."""
    reference, log = recorded
    base, calls = _split(log)
    chance = random.Random(11)
    done = []
    for state in range(STATES):
        at = chance.randint(1, len(calls))
        keep = (0.0, 0.5, 1.0, chance.random())[state % 4]
        path = tmp_path / "cut.h5"
        path.write_bytes(after_power_cut(base, calls, at, keep, chance))
        assert len(FeatureCache(path)) > 0
        done.append(check_done_rows(path, reference))
    assert min(done) == 0
    assert len(set(done)) > 4


def test_the_whole_log_is_the_whole_file(recorded: tuple[Path, list[Call]], tmp_path: Path) -> None:
    """Replaying every call gives the very file, so the log misses nothing."""
    reference, log = recorded
    base, calls = _split(log)
    path = tmp_path / "all.h5"
    path.write_bytes(after_power_cut(base, calls, len(calls), 1.0, random.Random(0)))
    assert contents(path) == contents(reference)
