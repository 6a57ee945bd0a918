"""Complete caches where nothing may be written: a folder without permission, a read-only mount."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from command_line import write_images
from small_disks import with_mount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RUN = [
    "extract",
    "images",
    "--model",
    "vgg11",
    "--weights",
    "random:0",
    "--layers",
    "conv1_1,conv2_1",
]
RUN += ["--device", "cpu", "--workers", "0", "--size", "32", "--batch-size", "4"]

# To root permissions mean nothing; so a nameless user, without other groups.
ANOTHER = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"]
ANOTHER = ANOTHER if os.getuid() == 0 else []


def start(words: list[str], folder: Path, *before: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, sys.executable, *words],
        cwd=folder, capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def as_another_user(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A command of a user who may not write to `folder/out`."""
    if ANOTHER and shutil.which("setpriv") is None:
        pytest.skip("no setpriv")
    if start(["-c", "import vggfeat, h5py, numpy"], folder, *ANOTHER).returncode:
        pytest.skip("another user cannot read this installation")
    (folder / "out").chmod(0o555)
    (folder / "out" / "feats").chmod(0o555)
    try:
        return start(["-m", "vggfeat", *words], folder, *ANOTHER)
    finally:
        (folder / "out").chmod(0o755)
        (folder / "out" / "feats").chmod(0o755)


def on_a_read_only_mount(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A command for which `folder/out` is a read-only file system."""
    mount = 'mount --bind "$PWD/out" "$PWD/out" && mount -o remount,bind,ro "$PWD/out"'
    wrapper = with_mount(mount, folder)
    return start(["-m", "vggfeat", *words], folder, *wrapper)


DERIVED = [
    ["reduce", "out/f.h5", "--out", "out/r.h5", "--layers", "conv1_1", "--dims", "2"],
    ["fuse", "out/f.h5", "--out", "out/fused.h5", "--method", "concat"],
]
WAYS = [as_another_user, on_a_read_only_mount]


@pytest.fixture(scope="module")
def workplace() -> Iterator[Path]:
    """Complete caches in `out`, below a folder that everybody may enter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        write_images(folder / "images", 5)
        (folder / "out").mkdir()
        for out in ("out/f.h5", "out/feats/"):
            done = start(["-m", "vggfeat", *RUN, "--out", out], folder)
            assert done.returncode == 0, done.stderr
        for words in DERIVED:
            done = start(["-m", "vggfeat", *words], folder)
            assert done.returncode == 0, done.stderr
        yield folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("out", ["out/f.h5", "out/feats"])
@pytest.mark.parametrize("more", [[], ["--update"]])
def test_nothing_left_to_do(
    workplace: Path,
    way: Callable[[list[str], Path], subprocess.CompletedProcess[str]],
    out: str,
    more: list[str],
) -> None:
    """A run that has nothing to do says so, and needs no lock for that."""
    done = way([*RUN, "--out", out, *more], workplace)
    assert done.returncode == 0, done.stderr
    assert "nothing left to do" in done.stdout


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("words", DERIVED, ids=lambda words: words[0])
def test_nothing_left_to_derive(
    workplace: Path,
    way: Callable[[list[str], Path], subprocess.CompletedProcess[str]],
    words: list[str],
) -> None:
    """The same for a cache that is made of another."""
    done = way(words, workplace)
    assert done.returncode == 0, done.stderr
    if words[0] == "fuse":  # reduce writes its model first
        done = way([*words, "--fresh"], workplace)
        assert done.returncode == 6, done.stderr
        assert ".lock cannot be created: " in done.stderr


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("out", ["out/f.h5", "out/feats"])
def test_readers(
    workplace: Path,
    way: Callable[[list[str], Path], subprocess.CompletedProcess[str]],
    out: str,
) -> None:
    """What only reads a cache reads it there too."""
    for words in (["inspect", out], ["verify", out], ["duplicates", out, "--layer", "conv1_1"]):
        done = way(words, workplace)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("out", ["out/f.h5", "out/feats"])
def test_work_is_refused(
    workplace: Path,
    way: Callable[[list[str], Path], subprocess.CompletedProcess[str]],
    out: str,
) -> None:
    """Where there is something to write, exit 6 names the lock file, and nothing is changed."""
    for more in (["--fresh"], ["--update"]):
        (workplace / "images" / "new.png").write_bytes((workplace / "images/00.png").read_bytes())
        done = way([*RUN, "--out", out, *more], workplace)
        (workplace / "images" / "new.png").unlink()
        assert done.returncode == 6, done.stderr
        assert ".lock cannot be created: " in done.stderr
    done = way([*RUN, "--out", out.replace("/f", "/g")], workplace)
    assert done.returncode in (2, 6), done.stderr
    assert sorted(os.listdir(workplace / "out")) == [
        "f.h5", "feats", "fused.h5", "r.h5", "r.model.h5",
    ]  # fmt: skip
