"""A file that is cut short while it is mapped: one line and exit code 5, and never SIGBUS."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hostile_caches import write_sparse

from vggfeat.storage.mapped_files import cut_short, end_on_cut_files

if TYPE_CHECKING:
    from collections.abc import Callable


def copy(rows: np.memmap) -> None:
    np.array(rows)


def multiply_in_a_thread(rows: np.memmap) -> None:
    """NumPy lets go of the GIL for it, and the fault is in a thread that is not the first."""
    threads = [threading.Thread(target=np.dot, args=(rows, rows.T)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("touch", [copy, multiply_in_a_thread])
def test_a_fault_is_a_line_and_an_exit_code(
    tmp_path: Path, touch: Callable[[np.memmap], None]
) -> None:
    """Whichever thread touches a page that is gone, the file is named with both sizes."""
    path = tmp_path / "rows of mine"
    np.ones((64, 1024), np.float32).tofile(path)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            end_on_cut_files(lambda said: Path(f"/dev/fd/{writer}").write_text(said))
            rows = np.memmap(path, np.float32, "r", shape=(64, 1024))
            os.truncate(path, 5000)
            touch(rows)
        os._exit(99)
    os.close(writer)
    with open(reader, "rb") as stream:
        said = stream.read().decode()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    assert said.startswith(f"file {str(path)!r} was cut short while it was read: 5000 bytes are")


def test_writing_rows_that_are_gone_is_told_as_what_it_is(tmp_path: Path) -> None:
    """The kernel says `Bad address` then, which would send the user to look at the output."""
    path = tmp_path / "rows"
    np.ones(10_000, np.float32).tofile(path)
    rows = np.memmap(path, np.float32, "r")
    os.truncate(path, 0)
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="Bad address") as caught:
        os.write(writer, rows.data)
    os.close(reader)
    os.close(writer)
    found = cut_short(ValueError("cannot be written").with_traceback(None))
    assert found is None
    found = cut_short(caught.value)
    assert found is not None
    assert str(path) in str(found)


def test_a_command_whose_cache_is_cut_short(tmp_path: Path) -> None:
    """`duplicates` over a cache that another program truncates meanwhile."""
    cache = write_sparse(tmp_path / "large.h5", rows=60_000)
    command = subprocess.Popen(
        [sys.executable, "-m", "vggfeat", "duplicates", cache, "--layer", "fc7"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in range(12_000):
        with contextlib.suppress(OSError), open(f"/proc/{command.pid}/maps") as maps:
            if cache.name in maps.read() or command.poll() is not None:
                break
        time.sleep(0.005)
    command.send_signal(signal.SIGSTOP)
    os.truncate(cache, 100_000)
    command.send_signal(signal.SIGCONT)
    out, err = command.communicate(timeout=600)
    assert command.returncode == 5, (out, err)
    assert err.count("\n") == 1
    assert "large.h5" in err
    assert "cut short" in err


FAISS = """
import os, sys, faiss, numpy
from vggfeat.storage.mapped_files import end_on_cut_files
path, rows = sys.argv[1], numpy.ones((2000, 64), numpy.float32)
index = faiss.IndexIVFFlat(faiss.IndexFlatL2(64), 64, 4)
index.train(rows)
index.add(rows)
faiss.write_index(index, path)
end_on_cut_files(lambda said: os.write(2, said.encode()))
mapped = faiss.read_index(path, faiss.IO_FLAG_MMAP)
mapped.nprobe = 4
os.truncate(path, 5000)
mapped.search(rows[:64], 5)
"""


def test_an_index_that_faiss_has_mapped(tmp_path: Path) -> None:
    """The fault is in a thread of OpenMP, which Python does not know; it ends all the same."""
    pytest.importorskip("faiss")
    ended = subprocess.run(
        [sys.executable, "-c", FAISS, tmp_path / "rows.index"],
        env={**os.environ, "OMP_NUM_THREADS": "3"},
        capture_output=True, check=False, text=True, timeout=600,
    )  # fmt: skip
    assert ended.returncode == 5, ended.stderr
    assert "rows.index' was cut short while it was read: 5000 bytes" in ended.stderr
