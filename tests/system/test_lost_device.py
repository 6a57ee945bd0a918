"""A device that fails for good ends a command with exit 6 and one line, and the rows are kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from command_line import write_images
from killing import contents

import vggfeat
from vggfeat.core.isolation import isolated
from vggfeat.core.lost_device import lost_device
from vggfeat.errors import DeviceError, SpaceError

if TYPE_CHECKING:
    from pathlib import Path

ASSERT = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously"
WORDS = [
    "--layers", "conv1_1", "--model", "vgg11", "--weights", "random:0", "--size", "32",
    "--device", "cpu", "--batch-size", "4", "--checkpoint-seconds", "1000",
]  # fmt: skip
PROGRAM = """
import atexit, json, os, sys
import vggfeat.cli, vggfeat.extraction.api, vggfeat.images.loader
from vggfeat.network.vgg import TappedVgg

text, *commands = map(json.loads, sys.argv[1:])
forward, left = TappedVgg.forward, [0]

def fail(self, images):
    left[0] -= 1
    if left[0] < 0:
        raise RuntimeError(text)
    return forward(self, images)

TappedVgg.forward = fail
for skipped, *words in commands:
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        atexit.register(os.abort)  # as the destructors of CUDA's host allocator do
        left[0] = skipped
        sys.argv = ["vggfeat", *words]
        vggfeat.cli.main()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
os._exit(0)
"""


def test_commands_end_at_once_and_keep_rows(tmp_path: Path) -> None:
    """Exit 6 and one line, though leaving as usual would abort; the same command does the rest."""
    images, out, whole = write_images(tmp_path / "images", 14), "feats.h5", tmp_path / "whole.h5"
    settings = vggfeat.Settings(
        layers="conv1_1", model="vgg11", weights="random:0", size=32, device="cpu", batch_size=4
    )
    vggfeat.extract(images, whole, settings)
    query = str(next(iter(sorted(images.iterdir()))))
    extract = ["extract", "images", "--out", out, *WORDS]
    watched = [*extract, "--json", "--log-file", "log.jsonl", "--metrics-file", "run.prom"]
    commands: list[list[Any]] = [
        [2, *watched],
        [0, *extract],
        [0, "search", str(whole), query, "--device", "cpu", "--json"],
        [0, "--debug", *extract],
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(ASSERT), *map(json.dumps, commands)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.split() == ["6", "6", "6", "1"], done.stderr
    lines = [line for line in done.stderr.splitlines() if "random weights" not in line]
    told = "vggfeat: the device failed, and this process can use it no more: CUDA error: device-"
    assert all(line.startswith(told) for line in lines[:3]), lines
    assert lines[3].startswith("Traceback")
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["exit_code"] == 6
    metrics = (tmp_path / "run.prom").read_text()
    assert 'vggfeat_last_exit_code{out="feats.h5"} 6' in metrics
    assert "vggfeat_run_in_progress" in metrics
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"images", out, "whole.h5", "log.jsonl", "run.prom"}
    assert (vggfeat.open(tmp_path / out).state == 1).sum() == 8
    vggfeat.extract(images, tmp_path / out, settings)
    assert contents(tmp_path / out) == contents(whole)


@pytest.mark.parametrize(
    "text",
    [
        ASSERT,
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: uncorrectable ECC error encountered",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
        "unspecified launch failure",
    ],
)
def test_a_lost_device_is_recognised(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library caller gets a DeviceError of one line; the original is its cause."""
    monkeypatch.setattr("vggfeat.core.lost_device._kept", [])

    @isolated()
    def compute() -> None:
        raise RuntimeError(text)

    with pytest.raises(DeviceError, match="this process can use it no more") as caught:
        compute()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x5 and 6x7)"),
        ValueError("device-side assert"),
        SpaceError(28, "the disk is full"),
    ],
)
def test_other_errors_are_no_lost_device(error: Exception) -> None:
    """A lack of memory passes, and what no device says is none of it."""
    assert lost_device(error) is None
