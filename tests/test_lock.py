from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from vggfeat.errors import LockedError, SpaceError
from vggfeat.lock import hold

if TYPE_CHECKING:
    from pathlib import Path

HOLDER = """
import os, sys, time
from vggfeat.lock import hold
with hold(sys.argv[1]):
    child = os.fork() if "fork" in sys.argv else None
    if child != 0:
        print(child, flush=True)
    time.sleep(60)
"""


def start(out: str, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """A process that holds the lock by now, and the line it printed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, out, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    return holder, holder.stdout.readline().strip()


def stop(holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert holder.stdout is not None
    holder.stdout.close()


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """While another process holds the output, the error names its pid and host and the output."""
    out = str(tmp_path / "f.h5")
    holder, _ = start(out)
    try:
        with pytest.raises(LockedError) as caught, hold(out):
            pass
        caught.match(f"'{out}' is held by another run .pid {holder.pid} on {socket.gethostname()} ")
        assert caught.value.exit_code == 75
        assert isinstance(caught.value, BlockingIOError)
    finally:
        stop(holder)


def test_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    """After SIGKILL of the holder the output is free, even while a forked child of it lives."""
    out = str(tmp_path / "f.h5")
    holder, line = start(out, "fork")
    child = int(line)
    try:
        with pytest.raises(LockedError), hold(out):
            pass
        stop(holder)
        os.kill(child, 0)  # it lives
        with hold(out):
            pass
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_process_is_kept_from_itself(tmp_path: Path) -> None:
    """The same process is refused a second hold, by whatever name, and keeps the first one."""
    out = str(tmp_path / "f.h5")
    os.symlink(tmp_path, tmp_path / "link")
    with hold(out):
        for name in (out, str(tmp_path / "link" / "f.h5"), os.path.relpath(out)):
            with (
                pytest.raises(LockedError, match="held by another run of this process"),
                hold(name),
            ):
                pass
        assert held_against_others(out)
    assert not held_against_others(out)


def held_against_others(out: str) -> bool:
    """Whether a new process is refused."""
    code = "import sys\nfrom vggfeat.lock import hold\nwith hold(sys.argv[1]): pass"
    done = subprocess.run(
        [sys.executable, "-c", code, out], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0 or "LockedError" in done.stderr, done.stderr
    return done.returncode != 0


def test_the_lock_is_given_back_and_its_file_stays(tmp_path: Path) -> None:
    """An error in the block gives the lock back; the lock file stays, naming its last holder."""
    out = str(tmp_path / "f.h5")
    (tmp_path / "f.h5.lock").write_text("an older and much longer line than the new one\n" * 9)
    with pytest.raises(ZeroDivisionError), hold(out):
        raise ZeroDivisionError
    with hold(out):
        pass
    assert os.listdir(tmp_path) == ["f.h5.lock"]
    text = (tmp_path / "f.h5.lock").read_text()
    year = time.gmtime().tm_year
    assert text.startswith(f"pid {os.getpid()} on {socket.gethostname()} since {year}-")
    assert text.count("\n") == 1


def test_two_outputs_at_once(tmp_path: Path) -> None:
    """One process may hold two outputs."""
    with hold(str(tmp_path / "a.h5")), hold(str(tmp_path / "b.h5")):
        assert sorted(os.listdir(tmp_path)) == ["a.h5.lock", "b.h5.lock"]


def test_no_folder(tmp_path: Path) -> None:
    """A lock file that cannot be made is a SpaceError with its name."""
    with (
        pytest.raises(SpaceError, match=r"lock file .*gone/f\.h5\.lock cannot be made: "),
        hold(str(tmp_path / "gone" / "f.h5")),
    ):
        pass


# Has the kernel refuse record locks from here on, as a file system without them does (seccomp).
WITHOUT_LOCKS = """
import ctypes, errno, struct, sys
call, set_lock = {"x86_64": 72, "aarch64": 25}[sys.argv[2]], 6
steps = [
    (0x20, 0, 0, 0),  # load the number of the call
    (0x15, 0, 3, call),  # fcntl?
    (0x20, 0, 0, 24),  # load its second argument
    (0x15, 0, 1, set_lock),
    (0x06, 0, 0, 0x00050000 | errno.ENOLCK),  # fail
    (0x06, 0, 0, 0x7FFF0000),  # go ahead
]
code = b"".join(struct.pack("HBBI", *step) for step in steps)
code = ctypes.create_string_buffer(code)
program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
for option, value, address in ((38, 1, None), (22, 2, program)):  # no new rights; seccomp's filter
    if libc.prctl(option, value, address, None, None):
        sys.exit(f"refused: {ctypes.get_errno()}")
from vggfeat.lock import hold
with hold(sys.argv[1]):
    print("held")
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="system call numbers")
@pytest.mark.skipif(sys.platform != "linux", reason="seccomp")
def test_a_file_system_without_locks_is_an_error(tmp_path: Path) -> None:
    """Where the file system has no locks, that is said, and nothing is run without one."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LOCKS, str(tmp_path / "f.h5"), platform.machine()],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if "refused" in done.stderr:
        pytest.skip("seccomp is not to be had")
    assert "held" not in done.stdout
    assert "SpaceError: file system of " in done.stderr, done.stderr
    assert "has no locks (No locks available)" in done.stderr
