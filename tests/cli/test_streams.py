"""Commands whose standard streams are closed, full, or a pipe that nobody reads."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from command_line import write_images

from vggfeat.cache.verify import verify

RUN = ["extract", "images", "--model", "vgg11", "--weights", "random:0", "--layers", "conv1_1"]
RUN += ["--device", "cpu", "--workers", "0", "--size", "32", "--batch-size", "4"]
STREAMS = ("0", "1", "2")
CLOSED = [c for count in (1, 2, 3) for c in itertools.combinations(STREAMS, count)]
FULL = Path("/dev/full")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    write_images(folder / "images", 5)
    assert start(["-m", "vggfeat", *RUN, "--out", "whole.h5"], folder).returncode == 0
    return folder


def start(
    words: list[str], folder: Path, redirect: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """A real command of a shell that has set its streams up so."""
    return subprocess.run(
        ["/bin/bash", "-c", f'exec "$@" {redirect}', "bash", sys.executable, *words],
        cwd=folder, capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def features(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return np.asarray(file["features/conv1_1"])


@pytest.mark.parametrize("closed", CLOSED, ids="".join)
def test_closed_streams_do_not_get_into_the_cache(workplace: Path, closed: tuple[str, ...]) -> None:
    """Whichever of 0 to 2 a daemon has closed, and whatever a library prints: a whole cache."""
    out = f"{''.join(closed)}.h5"
    redirect = " ".join(f"{number}>&-" for number in closed)
    words = ["-m", "vggfeat", *RUN, "--out", out]
    done = start(words, workplace, redirect, ONEDNN_VERBOSE="1")
    assert done.returncode == 0, done.stderr
    assert not verify(workplace / out).bad
    assert np.array_equal(features(workplace / out), features(workplace / "whole.h5"))


@pytest.mark.parametrize("closed", CLOSED, ids="".join)
def test_a_library_keeps_its_files_above_2(workplace: Path, closed: tuple[str, ...]) -> None:
    """A program with closed descriptors has the cache above 2 while a run of its own fills it."""
    out = f"own{''.join(closed)}.h5"
    code = f"""
import os, ctypes
for number in ({",".join(closed)},):
    os.close(number)
import vggfeat
from vggfeat.core.settings import Settings

def look(progress):
    for number in (0, 1, 2):
        assert os.readlink(f"/proc/self/fd/{{number}}").endswith(("null", "]")), number
        if number:
            os.write(number, b"what a library prints")

settings = Settings(layers="conv1_1", model="vgg11", weights="random:0", size=32, batch_size=4,
                    workers=0, device="cpu")
vggfeat.extract("images", {out!r}, settings, on_progress=look)
os._exit(0)
"""
    done = start(["-c", code], workplace)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(features(workplace / out), features(workplace / "whole.h5"))


def test_other_commands_without_streams(workplace: Path) -> None:
    """Commands that print or write do so without standard streams, and end as always."""
    closed = "<&- >&- 2>&-"
    for words in (
        ["inspect", "whole.h5"],
        ["verify", "whole.h5"],
        ["layers"],
        ["--help"],
        ["export", "whole.h5", "--to", "csv", "--out", "x.csv"],
        ["reduce", "whole.h5", "--out", "r.h5", "--dims", "2"],
        ["merge", "whole.h5", "--out", "m.h5"],
    ):
        assert start(["-m", "vggfeat", *words], workplace, closed).returncode == 0, words
    assert not verify(workplace / "m.h5").bad
    assert start(["-m", "vggfeat", "inspect", "none.h5"], workplace, closed).returncode == 3


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["layers"],
        ["doctor"],
        ["inspect", "whole.h5"],
        ["inspect", "whole.h5", "--json"],
        ["verify", "whole.h5"],
        ["search", "whole.h5", "images/00.png", "--device", "cpu"],
        ["duplicates", "whole.h5"],
        ["export", "whole.h5", "--to", "csv", "--out", "full.csv"],
        [*RUN, "--out", "full.h5", "--json"],
    ],
    ids=lambda words: " ".join(words[:1] + words[-1:]),
)
def test_a_full_standard_output(workplace: Path, words: list[str]) -> None:
    """Where output cannot be written, a command says so in one line, and has done its work."""
    done = start(["-m", "vggfeat", *words], workplace, "> /dev/full")
    assert done.returncode == 6, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("vggfeat: standard output cannot be written: No space left on device")
    assert "Traceback" not in done.stderr
    if "full.h5" in words:
        assert np.array_equal(features(workplace / "full.h5"), features(workplace / "whole.h5"))


@pytest.mark.parametrize(
    "words", [["--help"], ["inspect", "whole.h5"], [*RUN, "--out", "pipe.h5"]], ids=lambda w: w[0]
)
def test_a_pipe_that_nobody_reads(workplace: Path, words: list[str]) -> None:
    """A closed pipe ends a command quietly."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "vggfeat", *words],
        cwd=workplace, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=600,
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == 0
    assert "rror" not in done.stderr


def test_a_run_ends_for_its_reason_though_nobody_reads(workplace: Path) -> None:
    """A closed pipe does not turn the exit code of a run that failed into 0."""
    (workplace / "images" / "broken.png").write_bytes(b"no image")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "vggfeat", *RUN, "--out", "failed.h5", "--max-failures", "0"],
        cwd=workplace, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=600,
    )  # fmt: skip
    os.close(writing)
    (workplace / "images" / "broken.png").unlink()
    assert done.returncode == 4, done.stderr


@pytest.mark.parametrize("where", ["/dev/full", "pipe"])
def test_notices_that_cannot_be_written_do_not_end_a_run(workplace: Path, where: str) -> None:
    """With a standard error that is full, or that nobody reads, a run does its work."""
    out = f"notices-{Path(where).name}.h5"
    words = [sys.executable, "-m", "vggfeat", *RUN, "--out", out]
    reading, writing = os.pipe()
    os.close(reading)
    handle = writing if where == "pipe" else os.open(where, os.O_WRONLY)
    done = subprocess.run(words, cwd=workplace, stderr=handle, check=False, timeout=600,
                          stdout=subprocess.DEVNULL)  # fmt: skip
    for one in {writing, handle}:
        os.close(one)
    assert done.returncode == 0
    assert np.array_equal(features(workplace / out), features(workplace / "whole.h5"))
