"""Limits of the machine end a run with one line and exit 6, and leave nothing behind."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

import vggfeat
from vggfeat.cli.terminal import exit_codes
from vggfeat.core.exhaustion import exhaustion_of
from vggfeat.errors import DecodeError, ResourceError, SpaceError
from vggfeat.images.worker_pool import decode_batches

if TYPE_CHECKING:
    from pathlib import Path

WORDS = [
    "--layers", "conv1_1", "--model", "vgg11", "--weights", "random:0", "--size", "32",
    "--device", "cpu", "--batch-size", "4", "--quiet",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exhaustion") / "images"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(12):
        pixels = noise.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


def extract(images: Path, out: Path, *more: str, before: tuple[str, ...] = ()) -> Any:
    command = [*before, sys.executable, "-m", "vggfeat", "extract", str(images), "--out", str(out)]
    return subprocess.run(
        [*command, *WORDS, *more],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )


@pytest.mark.skipif(
    not (shutil.which("setpriv") and shutil.which("prlimit") and os.getuid() == 0),
    reason="only root may become a user whom the limit of processes binds",
)
def test_too_few_processes(images: Path, tmp_path: Path) -> None:
    """Eight workers where three processes are allowed are exit 6 and one line."""
    tmp_path.chmod(0o777)
    rights = "+dac_override,+dac_read_search"
    user = ("setpriv", "--reuid", "31234", "--clear-groups", "--inh-caps", rights)
    limit = ("--ambient-caps", rights, "prlimit", "--nproc=3")
    done = extract(images, tmp_path / "f.h5", "--workers", "8", before=(*user, *limit))
    assert done.returncode == 6, done.stderr
    assert "the machine has no more processes or threads: raise the limit" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("kilobytes", [115_000, 175_000, 400_000, 800_000])
def test_too_little_memory_for_libraries(images: Path, tmp_path: Path, kilobytes: int) -> None:
    """Where OpenBLAS, HDF5 or torch end the process as they load, the error speaks of memory."""
    limit = ("sh", "-c", f'ulimit -v {kilobytes}; exec "$@"', "sh")
    done = extract(images, tmp_path / "f.h5", "--workers", "0", before=limit)
    assert done.returncode == 6, done.stderr
    assert "the machine has no more memory" in done.stderr
    assert "of address space (ulimit -v)" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_too_few_files_fail_no_image() -> None:
    """A worker that has no descriptor left for an image ends the run, and fails no image."""
    from vggfeat.images.streams import open_file

    def opened(_row: int) -> Any:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # of this worker alone
        with open_file(os.fsencode(__file__)) as stream:
            return bytes(32), np.frombuffer(stream.read(18), np.uint8).reshape(2, 3, 3)

    plan = np.arange(8).reshape(2, 4)
    decoded = decode_batches(plan, (2, 3, 3), opened, workers=2, timeout=60, goes_on=lambda: True)
    with pytest.raises(ResourceError, match="no more open files: raise the limit"):
        list(decoded)
    check_nothing_is_left()


def check_nothing_is_left() -> None:
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_workers_that_cannot_be_started_leave_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the third worker cannot be forked, the first two are ended."""
    fork, left = os.fork, [2]

    def few() -> int:
        if not left[0]:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        left[0] -= 1
        return fork()

    monkeypatch.setattr(os, "fork", few)
    plan = np.arange(8).reshape(2, 4)
    with pytest.raises(ResourceError, match="no more processes"):
        decode_batches(
            plan, (2, 3, 3), lambda _row: (b"", None), workers=4, timeout=60, goes_on=lambda: True
        )
    check_nothing_is_left()


def test_batches_never_asked_for_leave_no_worker() -> None:
    """Workers end when nobody is interested in their batches any more."""
    plan = np.arange(8).reshape(2, 4)
    decoded = decode_batches(
        plan, (2, 3, 3), lambda _row: (b"", None), workers=2, timeout=60, goes_on=lambda: True
    )
    del decoded
    check_nothing_is_left()


def test_a_failing_start_leaves_nothing(images: Path, tmp_path: Path) -> None:
    """An error after the workers were started leaves no process, thread, descriptor or file."""
    settings = vggfeat.Settings(
        layers="conv1_1", model="vgg11", weights="random:0", size=32, device="cpu", workers=2
    )
    vggfeat.extract(images, tmp_path / "warm.h5", settings)
    before = (sorted(os.listdir("/proc/self/fd")), threading.active_count())

    def interrupt(_progress: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vggfeat.extract(images, tmp_path / "f.h5", settings, on_progress=interrupt)
    check_nothing_is_left()
    assert len(os.listdir("/proc/self/fd")) == len(before[0])
    assert threading.active_count() == before[1]


@pytest.mark.parametrize(
    ("error", "lacking"),
    [
        (MemoryError(), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (OSError(errno.EMFILE, "Too many open files"), "open files"),
        (RuntimeError("can't start new thread"), "processes or threads"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "memory"),
    ],
)
def test_what_is_lacking_is_named(error: Exception, lacking: str) -> None:
    """Errors of the system and of libraries alike say what has run out."""
    found = exhaustion_of(error)
    assert isinstance(found, RuntimeError)
    assert found.exit_code == 6
    assert str(found).startswith(f"the machine has no more {lacking}: ")


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), DecodeError("x"), SpaceError("x"), OSError(errno.ENOENT, "x"), KeyError()],
)
def test_all_else_is_left_alone(error: Exception) -> None:
    """Errors of ours and of other kinds are no exhaustion."""
    assert exhaustion_of(error) is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 574.00 MiB. GPU 0 has\nmore"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronous"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_gpu_without_memory_for_a_network_is_no_defect(
    error: RuntimeError, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nothing can be tried in smaller passes, a command ends in one line and exit code 6."""
    with pytest.raises(typer.Exit) as ended, exit_codes():
        raise error
    assert ended.value.exit_code == 6
    said = capsys.readouterr().err
    assert said.startswith("vggfeat: the GPU has too little memory: free some (nvidia-smi")
    assert said.endswith(f"it said: {str(error).splitlines()[0]}\n")
    assert exhaustion_of(error) is None  # so that passes within the library are halved
