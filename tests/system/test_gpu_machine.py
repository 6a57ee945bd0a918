"""What a machine with a GPU is asked to do, in an environment that has no more than such a one."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from bare_environments import make_bare_environment
from commands import install
from places import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

TESTED_WITH = ("torch", "numpy", "h5py", "pillow", "pytest")

LACKING = ("torchvision", "typer", "tqdm", "hypothesis", "sklearn", "scipy", "pydicom", "faiss")

COLLECT = f"""
import importlib.util, sys, pytest
assert not [name for name in {LACKING} if importlib.util.find_spec(name)]
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_gpu_tests_are_collected_with_little(tmp_path: Path) -> None:
    """With torch, NumPy, h5py, Pillow and pytest alone, and no GPU, all are skipped, none fails."""
    python = make_bare_environment(tmp_path / "environment", TESTED_WITH)
    environment = {name: value for name, value in os.environ.items() if "VGGFEAT" not in name}
    done = subprocess.run(
        [python, "-c", COLLECT, "tests/gpu", "-q", "-W", "default", "-p", "no:cacheprovider"],
        cwd=REPOSITORY, env={**environment, "CUDA_VISIBLE_DEVICES": ""}, check=False,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout.splitlines()[-1]
    assert " skipped in " in summary
    assert int(summary.split()[0]) >= 60
    assert not {"passed", "failed", "error", "xfailed"} & set(summary.split())


MEASURED_WITH = (*TESTED_WITH, "torchvision", "typer", "tqdm")
TINY = {
    "DEVICE": "cpu", "IMAGES": "20", "SOME": "6", "SMALL": "4", "DISTINCT": "3", "SIZE": "32",
    "LAYERS": "conv1_1,conv2_1:max", "MODEL": "vgg11", "WORKERS": "1", "REPEATS": "1",
    "FORWARD": "--size 32 --batch-size 2 --batch-sizes 2 --layers conv2_2",
    "DECODE_SECONDS": "0.01",
    "DECODE_BATCH": "4", "BENCH": "--model vgg11 --size 32 --seconds 0.1", "LIMIT": "2",
    "PEER_LAYERS": "conv1_2", "TESTS": "tests/gpu/test_gpu_transforms.py",
    "SECONDS_IN_ALL": "3000", "PATIENCE": "20",
}  # fmt: skip


def test_no_line_of_the_script_is_new_to_a_gpu(tmp_path: Path) -> None:
    """With a CPU as the device and little of everything, every step passes and every figure is."""
    python = make_bare_environment(tmp_path / "environment", MEASURED_WITH)
    environment = {**install(tmp_path), **TINY, "PYTHON": str(python), "OUT": str(tmp_path / "out")}
    done = subprocess.run(
        ["bash", "scripts/bench/gpu.sh"],
        cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=3000,
        env={**environment, "VGGFEAT": "vggfeat", "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert "all steps passed" in done.stdout
    assert "left out" not in done.stdout
    assert "20 rows: nothing differs" in done.stdout
    table = (tmp_path / "out" / "predictions.md").read_text().splitlines()
    empty = {line.split("|")[1].strip() for line in table if line.endswith("|  |")}
    assert empty == {"network, one kernel, images/s", "bfloat16 matrices, TFLOP/s"}
