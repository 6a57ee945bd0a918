"""A signal or an error at any call that changes a file loses nothing, whatever command it hits."""

from __future__ import annotations

import random
import shutil
import signal
from typing import TYPE_CHECKING

import pytest
from faultcases import cases, rows_of_shards, whole
from faults import FAULTS, FaultServer, prepare, suffer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from faults import Case, How, Prepared

SAMPLED = 3  # calls of each command; `python tests/faults.py` takes every one


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def known(place: Path) -> dict[str, Case]:
    return {case.name: case for case in cases(place / "begin")}


@pytest.fixture(scope="module")
def prepared(server: FaultServer, place: Path, known: dict[str, Case]) -> dict[str, Prepared]:
    """Filled as tests need them."""

    class Lazy(dict[str, "Prepared"]):
        def __missing__(self, name: str) -> Prepared:
            self[name] = prepare(server, known[name], place / "prepared")
            return self[name]

    return Lazy()


NAMES = (
    "extract",
    "extract-update",
    "extract-retry",
    "extract-fresh",
    "shards",
    "shards-update",
    "shards-retry",
    "shards-fresh",
    "merge",
    "fuse",
    "reduce",
    "export-csv",
    "export-npz",
    "export-npy",
    "export-hdf5",
    "export-hloc",
    "export-webdataset",
    "zeroshot-fit",
    "verify-repair",
    "merge-virtual",
    "plot",
    "search-sheet",
    "sheet",
    "explore",
    "stats",
)


def test_every_command_is_tried(known: dict[str, Case]) -> None:
    """The names of this module are those of the cases, so that none is left out."""
    assert tuple(known) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_at_some_calls(
    server: FaultServer, prepared: dict[str, Prepared], name: str
) -> None:
    """After a fault the output is whole, and the same command again comes to the same end."""
    chance = random.Random(name)
    one = prepared[name]
    for at in chance.sample(range(1, len(one.calls) + 1), min(SAMPLED, len(one.calls))):
        how, after = chance.choice(FAULTS)
        suffer(server, one, at, how, after=after)


@pytest.mark.parametrize("name", ["shards-update", "shards-fresh"])
@pytest.mark.parametrize(("how", "after"), [("SIGTERM", True), ("EIO", False), ("EPERM", False)])
def test_a_plan_in_place_stays(
    server: FaultServer, prepared: dict[str, Prepared], name: str, how: How, *, after: bool
) -> None:
    """What comes once a new manifest is in place removes none of the shards that it names."""
    one = prepared[name]
    placed = [
        number
        for number, call in enumerate(one.calls, 1)
        if call.split()[0] in ("replace", "link", "rename") and call.endswith("manifest.json")
    ]
    behind = [
        number
        for number, call in enumerate(one.calls, 1)
        if number > placed[0] and call.split()[0] in ("fsync", "unlink")
    ]
    for at in (placed[0], *behind[:2]):
        suffer(server, one, at, how, after=after)


@pytest.mark.parametrize(("how", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_plan_that_is_stopped(
    server: FaultServer, prepared: dict[str, Prepared], how: How, status: int
) -> None:
    """A signal while shards are laid out ends the run with its code, one line, and the old plan."""
    one = prepared["shards-fresh"]
    folder = one.template.with_name("stopped")
    shutil.copytree(one.template, folder)
    before = rows_of_shards(folder / "out")
    written = [number for number, call in enumerate(one.calls, 1) if call.startswith("pwrite")]
    ended = server.run(one.case.words, folder, at=written[3], how=how)
    assert ended.status == status
    (line,) = ended.text.splitlines()
    assert line.startswith(f"vggfeat: stopped by {signal.Signals[how].name} while the shards of")
    assert line.endswith("Run the same command again")
    assert rows_of_shards(folder / "out") == before
    names = {path.name for path in folder.rglob("*") if not path.name.endswith(".lock")}
    assert names == {
        path.name for path in one.template.rglob("*") if not path.name.endswith(".lock")
    }
    shutil.rmtree(folder)


def test_a_copy_of_the_manifest_is_no_leftover(
    server: FaultServer, prepared: dict[str, Prepared]
) -> None:
    """A user's copy stays; put back by mistake, it costs none of the shards it does not name."""
    one = prepared["shards-update"]
    folder = one.template.with_name("kept")
    shutil.copytree(one.template, folder)
    manifest, kept = folder / "out" / "manifest.json", folder / "out" / "manifest.json.bak"
    shutil.copy(manifest, kept)
    assert server.run(one.case.words, folder).status == 0
    assert kept.exists()
    new = manifest.read_bytes()
    kept.replace(manifest)  # its shards were replaced by the update, so it names what is not there
    again = server.run([word for word in one.case.words if word != "--update"], folder)
    assert again.status == 5
    manifest.write_bytes(new)
    whole(folder / "out")
    shutil.rmtree(folder)
