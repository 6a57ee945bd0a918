"""Real full disks: small file systems of our own, mounted for a test; root alone may do that."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import h5py
import pytest
from command_line import SMALL, vggfeat, write_images
from small_disks import mounted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAPS = [*SMALL[:3], "conv1_1:map", *SMALL[4:]]  # 131 kB a row: a few images fill a small disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 3 MB."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=3m", "tmpfs") as folder:
        yield folder


@pytest.fixture
def forgetful_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext2 of 16 MB, which cannot reserve blocks: what was free may be gone when needed."""
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    try:
        subprocess.run(["mkfs.ext2", "-q", "-F", str(image)], check=True)
    except FileNotFoundError:
        pytest.skip("no mkfs.ext2")
    with mounted(tmp_path / "disk", "-o", "loop", str(image)) as folder:
        (folder / "lost+found").rmdir()
        yield folder


def test_a_disk_too_small_is_found_before_the_first_image(tmp_path: Path, small_disk: Path) -> None:
    """Where there is no room, exit 6 says how much is needed and there, and leaves nothing."""
    write_images(tmp_path / "images", 30)
    out = small_disk / "feats.h5"
    done = vggfeat("extract", "images", *MAPS, "--out", out, cwd=tmp_path)
    assert done.returncode == 6
    assert "needs 4.2 MB, the disk has 3.1 MB free; make room" in done.stderr
    assert os.listdir(small_disk) == []


def test_an_update_without_room_for_the_new_file(tmp_path: Path, small_disk: Path) -> None:
    """An update that does not fit ends with exit 6; the old cache is whole and goes on."""
    images = write_images(tmp_path / "images", 9)
    words = ["extract", "images", *MAPS, "--out", str(small_disk / "feats.h5")]
    assert vggfeat(*words, cwd=tmp_path).returncode == 0
    before = (small_disk / "feats.h5").read_bytes()
    os.link(images / "00.png", images / "new.png")
    done = vggfeat(*words, "--update", cwd=tmp_path)
    assert done.returncode == 6, done.stderr
    assert (small_disk / "feats.h5").read_bytes() == before
    assert os.listdir(small_disk) == ["feats.h5"]
    (images / "new.png").unlink()
    assert vggfeat(*words, "--update", cwd=tmp_path).returncode == 0


def test_a_disk_that_fills_meanwhile(tmp_path: Path, forgetful_disk: Path) -> None:
    """Exit 6, with an intact file whose rows done are right; with room again, it goes on."""
    images = write_images(tmp_path / "images", 4)
    for copy in range(80):
        os.link(images / f"{copy % 4:02}.png", images / f"c{copy:02}.png")
    whole, out = tmp_path / "whole.h5", forgetful_disk / "feats.h5"
    words = ["extract", "images", *MAPS, "--batch-size", "1", "--checkpoint-seconds", "0"]
    assert vggfeat(*words, "--out", whole, cwd=tmp_path).returncode == 0
    with subprocess.Popen(
        [sys.executable, "-m", "vggfeat", *words, "--out", str(out)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        while not out.exists():
            time.sleep(0.001)
        fill(forgetful_disk / "filler")
        _, errors = run.communicate(timeout=600)
    assert run.returncode == 6, errors
    assert "writing failed: No space left on device; the file is intact" in errors
    with h5py.File(out) as file, h5py.File(whole) as right:
        done = file["images/state"][()] == 1
        assert not done.all()
        for name in ("features/conv1_1:map", "images/checksum"):
            assert (file[name][()][done] == right[name][()][done]).all()
    (forgetful_disk / "filler").unlink()
    assert vggfeat(*words, "--out", out, cwd=tmp_path).returncode == 0
    with h5py.File(out) as file, h5py.File(whole) as right:
        for name in ("images/state", "features/conv1_1:map", "images/checksum"):
            assert (file[name][()] == right[name][()]).all()


def fill(path: Path) -> None:
    """Takes all room that is left."""
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
