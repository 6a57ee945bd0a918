"""Run the command as a user does, on images made for a test."""

from __future__ import annotations

import math
import os
import subprocess
from typing import TYPE_CHECKING

import commands
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path


SMALL = ["--model", "vgg11", "--layers", "conv1_1,conv2_1:max", "--size", "32",
         "--weights", "random:0", "--device", "cpu", "--workers", "0",
         "--precision", "float32"]  # fmt: skip


def vggfeat(
    *words: str | Path, cwd: Path, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the command as a process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    done = commands.run([*map(str, words)], cwd, stdin, environment)
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def write_images(folder: Path, count: int) -> Path:
    """Small distinct images."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(1)
    for number in range(count):
        pixels = noise.integers(0, 256, (36, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, (done.stdout, done.stderr)
    notices = ("vggfeat: warning:", "vggfeat: skipped")
    lines = [line for line in done.stderr.splitlines() if not line.startswith(notices)]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("vggfeat: ")
    for word in words:
        assert word in lines[0]


def cpu_seconds(pid: int) -> float:
    """What a process has computed so far: how far it is, however busy the machine; inf if gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return math.inf
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
