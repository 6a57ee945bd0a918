"""What goes wrong beside a live device: decoders that die, a device that fails, and commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from accelerator import DEVICE, ON_CUDA, decoded, extractor, faint, settings, write_pictures
from command_line import vggfeat as command
from killing import contents

import vggfeat

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

TIMES = 100 if ON_CUDA else 4
SECONDS = 300


class Dangerous:
    """A map-style data set, some items of which kill or hold up the process that reads them."""

    def __init__(self, fates: list[str]) -> None:
        self.fates, self.parent = fates, os.getpid()

    def __len__(self) -> int:
        return len(self.fates)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        assert os.getpid() != self.parent, "decoded in the process that has the device"
        if self.fates[index] == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fates[index] == "hangs":
            time.sleep(SECONDS)
        pixels: NDArray[np.uint8] = faint(1, 48, seed=index)[0]
        return pixels


def test_decoders_die_and_hang_beside_a_live_device(tmp_path: Path) -> None:
    """Each image that kills or holds up its process costs itself; the device computes on."""
    network = extractor("conv2_1", size=32)
    fates = (["good"] * 3 + ["dies"] + ["good"] * 2 + ["hangs"]) * (TIMES // 2)
    more: dict[str, Any] = {"size": 32, "batch_size": 4, "workers": 8 if ON_CUDA else 2,
                            "max_failures": "50%", "decode_timeout": 2.0}  # fmt: skip
    for name, items in (("good", ["good"] * len(fates)), ("bad", fates)):
        done = vggfeat.extract(
            Dangerous(items), tmp_path / f"{name}.h5", settings("conv2_1", **more),
            fingerprint="name",
        )  # fmt: skip
        assert done.done == items.count("good")
    good, bad = (vggfeat.open(tmp_path / f"{name}.h5") for name in ("good", "bad"))
    kept = [row for row, fate in enumerate(fates) if fate == "good"]
    assert np.flatnonzero(bad.done).tolist() == kept
    np.testing.assert_array_equal(bad["conv2_1"][kept], good["conv2_1"][kept])
    with h5py.File(tmp_path / "bad.h5") as file:
        reasons = file["images/error"][()]
    for row, fate in enumerate(fates):
        expected = {"dies": b"killed by SIGKILL", "hangs": b"took longer than 2 s", "good": b""}
        assert expected[fate] in reasons[row]
    assert np.isfinite(network.launch(decoded(faint(1, 32))).collect().features["conv2_1"]).all()


FAILING = """
import sys, torch
from vggfeat.errors import DeviceError
from vggfeat.network.extractor import TensorExtractor
launch, launched = TensorExtractor.launch, []
def failing(self, batch):
    launched.append(batch)
    if len(launched) == 4:
        if self.device.type == "cpu":
            raise DeviceError("device cpu failed: this stands in for an assert on a device")
        torch.zeros(2, device=self.device)[torch.tensor([5], device=self.device)]
    return launch(self, batch)
TensorExtractor.launch = failing
from vggfeat.__main__ import main
main()
"""


def test_a_device_that_fails_costs_no_row(tmp_path: Path) -> None:
    """After an assert on the device: exit 6, one line, and the same command resumes."""
    pytest.importorskip("typer")
    images = write_pictures(tmp_path / "images", list(faint(22, 40)))
    words = ["extract", str(images), "--layers", "conv1_1,conv2_1:max", "--model", "vgg11",
             "--weights", "random:0", "--size", "32", "--batch-size", "4", "--workers", "2",
             "--device", DEVICE, "--checkpoint-seconds", "0", "--quiet", "--out"]  # fmt: skip

    failed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FAILING, *words, "failed.h5"],
        cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    lines = [line for line in failed.stderr.splitlines() if line.startswith("vggfeat: ")]
    assert failed.returncode == 6, failed.stderr
    lines = [line for line in lines if "warning" not in line]
    assert len(lines) == 1, failed.stderr
    assert f"device {DEVICE} failed" in lines[0]
    assert "Traceback" not in failed.stderr
    kept = int(vggfeat.open(tmp_path / "failed.h5").done.sum())
    assert 4 <= kept < 22
    for out in ("failed.h5", "whole.h5"):
        done = command(*words, out, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "failed.h5") == contents(tmp_path / "whole.h5")


def test_doctor_and_bench_end_well(tmp_path: Path) -> None:
    """`doctor` finds no problem, and `bench` measures the device."""
    pytest.importorskip("typer")
    pytest.importorskip("torchvision")
    done = command("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    done = command(
        "bench", "--model", "vgg11", "--layers", "conv2_1", "--size", "32",
        "--seconds", "0.5" if ON_CUDA else "0.02", "--device", DEVICE, "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["device"] == DEVICE
