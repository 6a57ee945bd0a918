"""What a machine with a GPU is asked to do, in an environment that has no more than such a one."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from bare_environments import make_bare_environment
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
