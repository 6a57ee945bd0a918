"""Decoding begins before torch is imported, by guesses that are put right."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from command_line import SMALL, write_images
from killing import contents

import vggfeat
from vggfeat.core.accelerators import likely_devices
from vggfeat.extraction import early_decoding

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import sys
from vggfeat.images import worker_pool
fork = worker_pool.fork
def noted():
    print("torch" in sys.modules, flush=True)
    return fork()
worker_pool.fork = noted
from vggfeat.cli import main
main()
"""


def test_workers_begin_before_torch_is_imported(tmp_path: Path) -> None:
    """On a CPU the workers of a new run are forked first, those of a resumed one too."""
    write_images(tmp_path / "images", 3)
    words = ["extract", "images", *SMALL, "--out", "f.h5", "--workers", "2", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["False", "False"], done.stderr
    assert (vggfeat.open(tmp_path / "f.h5").state == 1).all()


@pytest.mark.parametrize("wrong", [["cuda"], ["cuda", "cuda"], ["cpu", "cuda"]])
def test_a_wrong_guess_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: list[str]
) -> None:
    """Where torch sees other devices than were guessed, the run is as if nothing had begun."""
    images = write_images(tmp_path / "images", 7)
    settings = vggfeat.Settings(
        layers="conv1_1", model="vgg11", weights="random:0", size=32, workers=2, device="cpu"
    )
    vggfeat.extract(images, tmp_path / "right.h5", settings)
    monkeypatch.setattr(early_decoding, "likely_devices", lambda _: wrong)
    vggfeat.extract(images, tmp_path / "other.h5", settings)
    assert contents(tmp_path / "other.h5") == contents(tmp_path / "right.h5")
    assert vggfeat.open(tmp_path / "other.h5").header.identity.preprocess.decode == "exact"


def test_devices_are_guessed_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their names, or by the files of drivers, unless they are hidden."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "2.9.0+cu128")
    root = str(tmp_path)
    assert likely_devices("auto", root) == ["cpu"]
    assert likely_devices("cpu", root) == ["cpu"]
    assert likely_devices("cuda:1,cuda:3", root) == ["cuda", "cuda"]
    assert likely_devices("all", root) == ["cuda"]
    (tmp_path / "dev").mkdir()
    for name in ("nvidiactl", "nvidia0", "nvidia1", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    assert likely_devices("auto", root) == ["cuda"]
    assert likely_devices("all", root) == ["cuda", "cuda"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert likely_devices("auto", root) == ["cpu"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("importlib.metadata.version", lambda _: "2.9.0+cpu")
    assert likely_devices("auto", root) == ["cpu"]
