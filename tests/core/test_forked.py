"""Extraction in child processes works, or says at once why it cannot; it never hangs."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from command_line import write_images

import vggfeat

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import os, sys
import torch, vggfeat
torch.set_num_threads(2)
images, out, computed, threads = sys.argv[1:]
settings = vggfeat.Settings(
    layers="conv1_1", model="vgg11", weights="random:0", size=32, device="cpu", workers=1)
if computed == "yes":
    vggfeat.extract(images, out + ".first", settings)
pid = os.fork()
if pid == 0:
    torch.set_num_threads(int(threads))
    try:
        os._exit(vggfeat.extract(images, out, settings).done)
    except vggfeat.VggfeatError as error:
        print(error, flush=True)
        os._exit(100 + error.exit_code)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
SETTINGS: dict[str, Any] = {
    "layers": "conv1_1", "model": "vgg11", "weights": "random:0", "size": 32,
    "device": "cpu", "workers": 1,
}  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 3)


@pytest.mark.parametrize(
    ("computed", "threads", "status"), [("yes", 2, 102), ("yes", 1, 3), ("no", 2, 3)]
)
def test_a_forked_child(
    images: Path, tmp_path: Path, computed: str, threads: int, status: int
) -> None:
    """Of a parent that has computed it says to spawn; else, or with one thread, it works."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, images, tmp_path / "f.h5", computed, str(threads)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == str(status)
    assert ("get_context('spawn')" in lines[0]) == (status == 102)


def in_process(images: str, out: str) -> None:
    sys.exit(vggfeat.extract(images, out, vggfeat.Settings(**SETTINGS)).done)


def test_a_daemonic_process(images: Path, tmp_path: Path) -> None:
    """A daemon of multiprocessing, which may have no children of its own, extracts with workers."""
    process = multiprocessing.get_context("spawn").Process(
        target=in_process, args=(str(images), str(tmp_path / "f.h5")), daemon=True
    )
    process.start()
    process.join(300)
    assert process.exitcode == 3


class Extracts(torch.utils.data.Dataset[int]):
    """Each item is an extraction."""

    def __init__(self, images: Path, folder: Path) -> None:
        self._images, self._folder = images, folder

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        out = self._folder / f"{index}.h5"
        return vggfeat.extract(self._images, out, vggfeat.Settings(**SETTINGS)).done


def test_a_worker_of_a_data_loader(images: Path, tmp_path: Path) -> None:
    """In a worker of torch's DataLoader, which has one thread, extraction works."""
    vggfeat.extract(images, tmp_path / "before.h5", vggfeat.Settings(**SETTINGS))
    loader = torch.utils.data.DataLoader(Extracts(images, tmp_path), num_workers=1, timeout=300)
    assert [int(done) for done in loader] == [3, 3]
