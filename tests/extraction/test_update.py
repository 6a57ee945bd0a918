"""A cache follows its folder: new, changed, removed and mended images, killed at any instant."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import warnings
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from command_line import assert_one_line, vggfeat, write_images
from killing import SETTINGS, KillServer, contents
from PIL import Image

import vggfeat as library
from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.rows import match_paths
from vggfeat.cache.sharding import Sharding
from vggfeat.errors import (
    CacheMismatchError,
    InputError,
    InterruptedRunError,
    SpaceError,
    TooManyFailuresError,
)
from vggfeat.extraction.update import UpdatePolicy, apply_changes, find_changes
from vggfeat.images.sources import discover

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vggfeat.core.records import Summary

UPDATE = {"update": True}
CHANGED = "003.png"
REMOVED = ("000.png", "007.png")
MENDED = "005b.jpg"
SPOILT = "010.png"
ADDED = ("00.png", "004x.png", "zz/new.png")


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 44, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")


def make_folder(folder: Path) -> Path:
    for number in range(14):
        save(folder / f"{number:03}.png", number)
    (folder / MENDED).write_bytes(b"no image")
    return folder


def change_folder(folder: Path, *, with_new: bool) -> None:
    save(folder / CHANGED, 103)
    save(folder / MENDED, 105)
    (folder / SPOILT).write_bytes(b"spoilt since")
    for name in REMOVED:
        (folder / name).unlink()
    for number, name in enumerate(ADDED if with_new else ()):
        save(folder / name, 200 + number)


def extract(images: Path, out: Path, *, max_removed: str | None = None, **policy: bool) -> Summary:
    settings = library.Settings(**SETTINGS, max_removed=max_removed)
    return library.extract(images, out, settings, policy=UpdatePolicy(**policy))


def test_the_old_name_of_policy_works_with_a_warning(tmp_path: Path) -> None:
    images, out = make_folder(tmp_path / "images"), tmp_path / "feats.h5"
    extract(images, out)
    (images / REMOVED[0]).unlink()
    settings = library.Settings(**SETTINGS)
    with pytest.warns(DeprecationWarning, match=r"extract\(policy=") as told:
        assert library.extract(images, out, settings, wish=UpdatePolicy(update=True)).gone == 1
    assert told[0].filename == __file__
    with warnings.catch_warnings():  # `isolated` makes no error of warnings: this one comes before
        warnings.simplefilter("error")
        with pytest.raises(DeprecationWarning):
            library.extract(images, out, settings, wish=UpdatePolicy())


def rows_of(path: Path) -> dict[bytes, tuple[Any, ...]]:
    """What the file says of each image that is not removed, by path, as plain h5py reads it."""
    with h5py.File(path, "r", locking=False) as file:
        images = file["images"]
        columns = [images[name][()] for name in ("state", "checksum", "size", "digest", "error")]
        features = [file["features"][spec][()] for spec in sorted(file["features"])]
        return {
            name: tuple(array[row].tobytes() for array in (*columns, *features))
            for row, name in enumerate(images["path"][()].tolist())
            if columns[0][row] != 3
        }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    return make_folder(folder)


@pytest.mark.parametrize("with_new", [True, False])
def test_an_update_equals_a_fresh_extraction(
    images: Path, tmp_path: Path, *, with_new: bool
) -> None:
    """After an update every row is that of a fresh extraction; the others are not computed."""
    out = tmp_path / "out.h5"
    extract(images, out)
    change_folder(images, with_new=with_new)
    summary = extract(images, out, update=True)
    assert (summary.added, summary.changed, summary.gone) == (3 if with_new else 0, 3, 2)
    assert (summary.new_done, summary.new_failed) == (5 if with_new else 2, 1)
    assert summary.removed == (0 if with_new else 2)
    extract(images, tmp_path / "fresh.h5")
    assert rows_of(out) == rows_of(tmp_path / "fresh.h5")
    again = extract(images, out, update=True)
    assert (again.added, again.changed, again.gone, again.new_done) == (0, 0, 0, 0)


def test_without_update_the_folder_may_not_have_grown(images: Path, tmp_path: Path) -> None:
    """New images without --update are refused and say what to do; removed rows count as new."""
    out = tmp_path / "out.h5"
    extract(images, out)
    change_folder(images, with_new=False)
    extract(images, out, update=True)
    save(images / REMOVED[0], 0)
    before = out.read_bytes()
    with pytest.raises(CacheMismatchError, match=r"1 of the 14 .* '000\.png'\. --update brings"):
        extract(images, out)
    assert out.read_bytes() == before
    assert extract(images, out, update=True).changed == 1
    extract(images, tmp_path / "fresh.h5")
    assert rows_of(out) == rows_of(tmp_path / "fresh.h5")


def test_only_failed_images_are_retried(images: Path, tmp_path: Path) -> None:
    """--retry-failed tries failed images again and no other, even one that has changed."""
    out = tmp_path / "out.h5"
    extract(images, out)
    save(images / MENDED, 105)
    save(images / CHANGED, 103)
    summary = extract(images, out, retry_failed=True)
    assert (summary.retried, summary.new_done, summary.new_failed) == (1, 1, 0)
    cache = FeatureCache(out)
    assert cache.done.all()
    assert not cache.failures()
    assert not len(cache.rows_with_reason(np.arange(len(cache))))
    assert extract(images, out, retry_failed=True).new_done == 0


def test_an_update_leaves_failed_images_alone(images: Path, tmp_path: Path) -> None:
    """A failed image that has not changed is not tried again by --update."""
    out = tmp_path / "out.h5"
    extract(images, out)
    summary = extract(images, out, update=True)
    assert (summary.failed, summary.new_failed, summary.retried) == (1, 0, 0)


def test_by_digest_goes_by_contents(images: Path, tmp_path: Path) -> None:
    """--by-digest finds other contents of the same size and time, and no change in a mere touch."""
    out = tmp_path / "out.h5"
    raw = images / "raw.bmp"
    Image.new("RGB", (40, 44), (1, 2, 3)).save(raw)
    extract(images, out)
    stamp = raw.stat()
    Image.new("RGB", (40, 44), (200, 2, 3)).save(raw)
    os.utime(raw, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    os.utime(images / CHANGED)
    assert extract(images, out, update=True, by_digest=True).new_done == 1
    assert FeatureCache(out).row("raw.bmp") >= 0
    extract(images, tmp_path / "fresh.h5")
    assert rows_of(out) == rows_of(tmp_path / "fresh.h5")
    assert extract(images, out, update=True).new_done == 0, "the touched file's time was not kept"


def test_asking_for_less_removes_nothing(images: Path, tmp_path: Path) -> None:
    """An image that is not asked for, but still there, is not removed."""
    out = tmp_path / "out.h5"
    save(images / "sub" / "a.png", 1)
    extract(images, out)
    settings = library.Settings(**SETTINGS)
    summary = library.extract(
        images / "sub", out, settings, policy=UpdatePolicy(update=True), root=str(images)
    )
    assert summary.gone == summary.removed == 0


@pytest.mark.parametrize(
    ("limit", "refused"), [("1", True), ("2", False), ("10%", True), ("15%", False)]
)
def test_more_may_not_be_gone(images: Path, tmp_path: Path, limit: str, *, refused: bool) -> None:
    """Beyond the limit an update changes nothing and says what it looks like; within it goes on."""
    out = tmp_path / "out.h5"
    extract(images, out)
    before = out.read_bytes()
    change_folder(images, with_new=True)
    if refused:
        words = r"2 of the 15 images of cache .* are gone, the first is '000.png'; 1 may be"
        with pytest.raises(InputError, match=words):
            extract(images, out, update=True, max_removed=limit)
        assert out.read_bytes() == before
    else:
        assert extract(images, out, update=True, max_removed=limit).gone == 2


def test_an_archive_that_is_not_asked_for_keeps_its_rows(images: Path, tmp_path: Path) -> None:
    """Members stay while their archive is not named, and go when it no longer has them."""
    out, archive = tmp_path / "out.h5", tmp_path / "more.zip"
    shutil.make_archive(str(tmp_path / "more"), "zip", images)
    settings = library.Settings(**SETTINGS)
    library.extract([images, archive], out, settings)
    update = UpdatePolicy(update=True)
    alone = library.extract([images], out, settings, policy=update, root=str(tmp_path))
    assert alone.gone == 0
    (images / "000.png").unlink()
    archive.unlink()
    shutil.make_archive(str(tmp_path / "more"), "zip", images)
    assert library.extract([images, archive], out, settings, policy=update).gone == 2


def test_a_list_that_names_what_is_gone(images: Path, tmp_path: Path) -> None:
    """A removed row stays so while a list names its file and that is not there."""
    out, listed = tmp_path / "out.h5", tmp_path / "list.txt"
    listed.write_text("\n".join(map(str, sorted(images.iterdir()))))
    extract(images, out)
    (images / REMOVED[0]).unlink()
    assert extract(images, out, update=True).gone == 1
    settings = library.Settings(**SETTINGS)
    for policy in (UpdatePolicy(), UpdatePolicy(update=True), UpdatePolicy(retry_failed=True)):
        summary = library.extract(f"@{listed}", out, settings, policy=policy, root=str(images))
        assert (summary.removed, summary.failed, summary.changed) == (1, 1, 0)


def test_another_folder_is_refused(images: Path, tmp_path: Path) -> None:
    """An update from a folder that shares no image with the cache would empty it: refused."""
    out = tmp_path / "out.h5"
    extract(images, out)
    other = write_images(tmp_path / "other" / "deep", 2).parent
    before = out.read_bytes()
    with pytest.raises(CacheMismatchError, match="none of those requested"):
        extract(other, out, update=True)
    assert out.read_bytes() == before


def test_other_settings_change_nothing(images: Path, tmp_path: Path) -> None:
    """An update with other settings is refused before it touches the file."""
    out = tmp_path / "out.h5"
    extract(images, out)
    change_folder(images, with_new=True)
    before = out.read_bytes()
    settings = library.Settings(**{**SETTINGS, "weights": "random:1"})
    with pytest.raises(CacheMismatchError, match="random:1"):
        library.extract(images, out, settings, policy=UpdatePolicy(update=True))
    assert out.read_bytes() == before


def test_readers_keep_the_old_file(images: Path, tmp_path: Path) -> None:
    """A reader that has the cache open while it is written anew goes on reading what it had."""
    out = tmp_path / "out.h5"
    extract(images, out)
    cache = FeatureCache(out)
    values = np.array(cache["conv1_1:max"])
    change_folder(images, with_new=True)
    extract(images, out, update=True)
    np.testing.assert_array_equal(cache["conv1_1:max"], values)


def test_no_room_for_the_new_file(images: Path, tmp_path: Path) -> None:
    """Where the disk has no room for the new file, the old one stays, and nothing is left."""
    out = tmp_path / "out.h5"
    extract(images, out)
    before = out.read_bytes()
    save(images / "new.png", 9)
    cache, manifest = FeatureCache(out), discover([str(images)])
    match = match_paths(cache.paths, manifest.paths)
    changes = find_changes(cache, manifest, match, UpdatePolicy(update=True))
    # The kernel refuses to let files grow beyond the limit, as it does on a full disk.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(SpaceError):
            apply_changes(cache, manifest, match, changes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert out.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"images", "out.h5"}


@pytest.fixture(scope="module")
def server() -> Iterator[KillServer]:
    with KillServer() as running:
        yield running


@pytest.mark.parametrize("with_new", [True, False])
def test_killed_at_every_call_of_an_update(
    server: KillServer, tmp_path: Path, *, with_new: bool
) -> None:
    """Killed anywhere in an update, each done row is the old or the new one, and it can go on."""
    images = tmp_path / "images"
    images.mkdir()
    make_folder(images)
    old = tmp_path / "old.h5"
    assert server.run(images, old)[0] == 0
    change_folder(images, with_new=with_new)
    new = tmp_path / "new.h5"
    shutil.copy(old, new)
    status, calls = server.run(images, new, options=UPDATE)
    assert status == 0
    assert calls > 20
    before, after = rows_of(old), rows_of(new)
    for at in range(1, calls + 1):
        out = tmp_path / "killed.h5"
        shutil.copy(old, out)
        status, _ = server.run(images, out, options=UPDATE, kill_at=at, torn=at % 2 == 0)
        assert status == -signal.SIGKILL
        done = {name: row for name, row in rows_of(out).items() if row[0] == b"\1"}
        for name, row in done.items():
            values = (row[1], *row[5:])
            known = [r for r in (before.get(name), after.get(name)) if r is not None]
            assert values in [(r[1], *r[5:]) for r in known], (at, name)
        assert server.run(images, out, options=UPDATE)[0] == 0
        assert contents(out) == contents(new), f"killed at call {at} of {calls}"
        assert not (tmp_path / "killed.h5.tmp").exists()
        out.unlink()


def test_stopping_on_errors(images: Path, tmp_path: Path) -> None:
    """--on-error stop ends at the image that fails, names it, and goes on once it is mended."""
    out = tmp_path / "out.h5"
    settings = library.Settings(**{**SETTINGS, "on_error": "stop"})
    for _ in range(2):
        with pytest.raises(
            TooManyFailuresError, match=r"'005b\.jpg' failed: not an image.*stop"
        ) as stopped:
            library.extract(images, out, settings)
        assert stopped.value.summary.stopped == "a failed image"
    cache = FeatureCache(out)
    assert not cache.failures()
    assert 0 < cache.done.sum() < len(cache)
    save(images / MENDED, 105)
    assert library.extract(images, out, settings).done == len(cache)
    extract(images, tmp_path / "fresh.h5")
    assert contents(out) == contents(tmp_path / "fresh.h5")


def test_some_of_the_images_are_no_time_limit(images: Path, tmp_path: Path) -> None:
    """A run that was asked for some images of a cache leaves others, and nothing stopped it."""
    out = tmp_path / "out.h5"
    with pytest.raises(TooManyFailuresError):
        library.extract(images, out, library.Settings(**{**SETTINGS, "on_error": "stop"}))
    some = sorted(images.glob("00*.png"))[:3]
    summary = library.extract(some, out, library.Settings(**SETTINGS), root=str(images))
    assert summary.pending > 0
    assert summary.stopped == ""


def test_options_from_the_command_line(images: Path, tmp_path: Path) -> None:
    """update, by-digest, retry-failed and time-limit do their work, and say so."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    done = vggfeat(
        "extract", images, *flags, "--out", "a.h5", "--time-limit", "0.001s", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "UNFINISHED (time limit)" in done.stdout
    done = vggfeat("extract", images, *flags, "--out", "a.h5", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["stopped"] == ""
    change_folder(images, with_new=True)
    done = vggfeat("extract", images, *flags, "--out", "a.h5", cwd=tmp_path)
    assert_one_line(done, 5, "--update")
    done = vggfeat("extract", images, *flags, "--out", "a.h5", "--update", cwd=tmp_path)
    assert "update   3 new, 3 changed, 2 gone, 0 tried again" in done.stdout
    done = vggfeat("extract", images, *flags, "--out", "a.h5", "--update", "--by-digest",
                   cwd=tmp_path, env={"PYTHONPROFILEIMPORTTIME": "1"})  # fmt: skip
    assert "nothing left to do" in done.stdout
    assert "| torch" not in done.stderr
    done = vggfeat("extract", images, *flags, "--out", "a.h5", "--retry-failed", cwd=tmp_path)
    assert "0 new, 0 changed, 0 gone, 1 tried again" in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--by-digest"], "--update"),
        (["--fresh", "--update"], "--fresh"),
        (["--time-limit", "soon"], "55m"),
        (["--on-error", "ignore"], "skip, stop"),
        (["--update", "--max-removed", "some"], "max_removed is 'some'; expected for example"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, flags: list[str], words: str) -> None:
    """Contradictory or unreadable options end in exit 2 before anything is done."""
    write_images(tmp_path / "images", 1)
    done = vggfeat("extract", "images", "--layers", "conv1_1", *flags, "--out", "a.h5",
                   cwd=tmp_path)  # fmt: skip
    assert_one_line(done, 2, words)
    assert not (tmp_path / "a.h5").exists()


def batches_until(act: Any, count: int = 2) -> Any:
    """A `on_progress` that acts after so many batches."""
    seen: list[int] = []

    def told(_: object) -> None:
        seen.append(1)
        if len(seen) == count:
            act()

    return told


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_fresh_run_that_is_stopped(
    images: Path, tmp_path: Path, *, sharded: bool, again: bool
) -> None:
    """The same command does the rest, also without `fresh`; once all is done, it begins again."""
    out = tmp_path / ("out" if sharded else "out.h5")
    settings = library.Settings(**SETTINGS)
    library.extract(images, out, settings, sharding=Sharding(shards=2) if sharded else None)
    stop = batches_until(lambda: signal.raise_signal(signal.SIGTERM))
    words = "run the same command again to resume"
    with pytest.raises(InterruptedRunError, match=words) as stopped:
        library.extract(images, out, settings, fresh=True, on_progress=stop)
    assert stopped.value.exit_status == 143
    done = stopped.value.summary.done
    assert 0 < done < 14
    assert library.extract(images, out, settings, fresh=again).new_done == 14 - done
    assert not [name for name in os.listdir(out if sharded else tmp_path) if "fresh" in name]
    assert library.extract(images, out, settings, fresh=True).new_done == 14


def test_a_fresh_run_goes_on_only_with_what_it_began(images: Path, tmp_path: Path) -> None:
    """Other settings begin again; images that have changed meanwhile are done again, and no other.

    A complete cache that an update has left unfinished was not begun by `fresh`, and begins again.
    """
    out, settings = tmp_path / "out.h5", library.Settings(**SETTINGS)
    stop = batches_until(lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(InterruptedRunError) as stopped:
        library.extract(images, out, settings, fresh=True, on_progress=stop)
    done = stopped.value.summary.done
    with (images / library.open(out).name(0)).open("ab") as file:
        file.write(b"more")
    assert library.extract(images, out, settings, fresh=True).new_done == 14 - done + 1
    stop = batches_until(lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(InterruptedRunError):
        library.extract(images, out, settings, fresh=True, on_progress=stop)
    other = library.Settings(**{**SETTINGS, "layers": "conv2_1"})
    assert library.extract(images, out, other, fresh=True).new_done == 14
    for number in range(6):
        shutil.copy(images / library.open(out).name(0), images / f"zz{number}.png")
    stop = batches_until(lambda: signal.raise_signal(signal.SIGTERM), 1)
    with pytest.raises(InterruptedRunError):
        library.extract(images, out, other, update=True, on_progress=stop)
    assert library.extract(images, out, other, fresh=True).new_done == 20


def test_a_fresh_run_does_not_go_on_with_what_other_versions_began(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new cache would differ from what they computed."""
    out, settings = tmp_path / "out.h5", library.Settings(**SETTINGS)
    stop = batches_until(lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(InterruptedRunError):
        library.extract(images, out, settings, fresh=True, on_progress=stop)
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"0.{len(name)}")
    assert library.extract(images, out, settings, fresh=True).new_done == 14


@pytest.mark.parametrize("name", ["out.h5", f"{'x' * 230}.h5"])
def test_a_place_where_no_mark_can_be_does_not_stop_a_run(
    images: Path, tmp_path: Path, name: str
) -> None:
    """A folder of the mark's name, or an output whose name is too long for one."""
    out, settings = tmp_path / name, library.Settings(**SETTINGS)
    if name == "out.h5":
        (tmp_path / f"{name}.vggfeat.fresh").mkdir()
    for _ in range(2):
        assert library.extract(images, out, settings, fresh=True).new_done == 14


class _Stopper(logging.Handler):
    """Stops the run of which it gets the first line."""

    def emit(self, _: logging.LogRecord) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_a_fresh_run_that_is_stopped_before_its_first_image(images: Path, tmp_path: Path) -> None:
    """A signal while the network comes up leaves the old cache, and the same command is right."""
    out = tmp_path / "out.h5"
    settings = library.Settings(**SETTINGS)
    library.extract(images, out, settings)
    before = out.read_bytes()
    stopper = _Stopper()
    logging.getLogger("vggfeat").addHandler(stopper)  # the line says that weights are random
    try:
        with pytest.raises(InterruptedRunError, match=r"is as it was; run the same command again$"):
            library.extract(images, out, settings, fresh=True)
    finally:
        logging.getLogger("vggfeat").removeHandler(stopper)
    assert out.read_bytes() == before
    assert library.extract(images, out, settings, fresh=True).new_done == 14


def test_a_fresh_run_out_of_time(images: Path, tmp_path: Path) -> None:
    """The line about what is left says the same, and so does the command's help."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    words: list[str | Path] = ["extract", images, *flags, "--out", "a.h5"]
    assert vggfeat(*words, cwd=tmp_path).returncode == 0
    done = vggfeat(*words, "--fresh", "--time-limit", "0.001s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "UNFINISHED (time limit); the same command again resumes it" in done.stdout
    done = vggfeat(*words, "--fresh", cwd=tmp_path)
    told = "resuming 'a.h5', which --fresh has begun and no run has finished: 0 rows are done"
    assert (done.returncode, told in done.stderr) == (0, True)
    assert "also one with --fresh" in " ".join(
        vggfeat("extract", "--help", cwd=tmp_path).stdout.split()
    )
