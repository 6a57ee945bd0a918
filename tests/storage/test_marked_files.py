"""Caches that other HDF5 programs hold open for writing, or were killed over."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from command_line import write_images
from PIL import Image

import vggfeat
from vggfeat.errors import LockedError
from vggfeat.storage.hdf5_metadata.reader import open_metadata

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS: dict[str, Any] = {
    "layers": "conv1_1", "model": "vgg11", "weights": "random:0", "size": 32, "device": "cpu",
    "workers": 0,
}  # fmt: skip
PROGRAM = """
import os, signal, sys, h5py
file = h5py.File(sys.argv[1], "r+", libver="latest")
if sys.argv[2] == "swmr":
    file.swmr_mode = True
else:
    file.attrs["note"] = "of another program"
    file.flush()
print("open", flush=True)
if sys.argv[2] == "held":
    sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 3)


@pytest.mark.parametrize("how", ["killed", "swmr"])
def test_a_file_that_a_killed_program_marked(
    how: str, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is read and verified with a word of warning, and extraction resumes in it."""
    out = tmp_path / "f.h5"
    vggfeat.extract(images, out, vggfeat.Settings(**SETTINGS))
    expected = np.array(vggfeat.open(out)["conv1_1"])
    done = subprocess.run([sys.executable, "-c", PROGRAM, out, how], check=False, timeout=600)
    assert done.returncode == -signal.SIGKILL
    with open_metadata(str(out)) as file:
        assert file.is_marked
    with pytest.raises(OSError, match="already open for write"):
        h5py.File(out, locking=False)
    with caplog.at_level(logging.WARNING, "vggfeat"):
        cache = vggfeat.open(out)
    assert f"`h5clear -s {out}`" in caplog.text
    assert np.array_equal(cache["conv1_1"], expected)
    assert not vggfeat.verify(out).bad
    Image.new("RGB", (40, 40), "red").save(images / "03.png")
    policy = vggfeat.UpdatePolicy(update=True)
    assert vggfeat.extract(images, out, vggfeat.Settings(**SETTINGS), policy=policy).done == 4
    assert np.array_equal(vggfeat.open(out)["conv1_1"][:3], expected)


def test_a_file_that_another_program_holds(images: Path, tmp_path: Path) -> None:
    """It is read; a run that would write to it is told to wait."""
    out = tmp_path / "f.h5"
    vggfeat.extract(images, out, vggfeat.Settings(**SETTINGS))
    expected = np.array(vggfeat.open(out)["conv1_1"])
    with h5py.File(out, "r+") as file:
        file["images/state"][0] = 0  # something is left to do
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, out, "held"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        assert program.stdin is not None
        assert program.stdout.readline() == "open\n"
        assert np.array_equal(vggfeat.open(out)["conv1_1"], expected)
        with pytest.raises(LockedError, match="open for writing in another program"):
            vggfeat.extract(images, out, vggfeat.Settings(**SETTINGS))
        program.stdin.close()
    assert vggfeat.extract(images, out, vggfeat.Settings(**SETTINGS)).done == 3
