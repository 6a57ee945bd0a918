from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import pytest
from command_line import write_images

from vggfeat.core.settings import Settings
from vggfeat.errors import LockedError, SpaceError, UsageError
from vggfeat.extraction.api import extract
from vggfeat.extraction.update import UpdatePolicy
from vggfeat.storage.locks import (
    SharedLock,
    hold,
    hold_replaced,
    refuse_if_held,
    wait_for_lock,
)

if TYPE_CHECKING:
    from collections.abc import Callable

HOLDER = """
import os, sys, time
from vggfeat.storage.locks import hold
with hold(sys.argv[1]):
    forks = "fork" in sys.argv
    if not forks or os.fork() == 0:
        # The child says so itself: killed before it runs, the holder would leave it the lock.
        print(os.getpid() if forks else None, flush=True)
    sys.stdin.read()
"""


def start(out: str, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """A process that holds the lock by now, and the line it printed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, out, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    return holder, holder.stdout.readline().strip()


def stop(holder: subprocess.Popen[Any]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    for stream in (holder.stdin, holder.stdout):
        if stream is not None:
            stream.close()


def linked(folder: Path) -> tuple[str, str]:
    """An output that exists, and another name of it."""
    (folder / "f.h5").write_bytes(b"rows")
    os.link(folder / "f.h5", folder / "g.h5")
    return str(folder / "f.h5"), str(folder / "g.h5")


BY_LINK = "is held by another run, by another name of the file .a hard link."


def test_a_hard_link_is_the_same_output(tmp_path: Path) -> None:
    """Of two runs on two hard links of one file the second is refused, and leaves no lock file.

    The lock dies with its holder, even while a forked child of it lives.
    """
    out, link = linked(tmp_path)
    holder, line = start(out, "fork")
    try:
        for refused in (hold, refuse_if_held):
            with pytest.raises(LockedError, match=f"output '{link}' {BY_LINK}") as caught:
                use(refused, link)
            assert caught.value.exit_code == 75
        assert sorted(os.listdir(tmp_path)) == ["f.h5", "f.h5.lock", "g.h5"]
        stop(holder)
        os.kill(int(line), 0)  # the child lives
        with hold(link):
            pass
    finally:
        os.kill(int(line), signal.SIGKILL)
    assert (tmp_path / "g.h5").read_bytes() == b"rows"


def test_the_lock_goes_to_the_file_that_replaces_an_output(tmp_path: Path) -> None:
    """After a rename over the output its links are held, and those of the file before it free."""
    out, link = linked(tmp_path)
    hold_replaced(out)  # nothing without a hold
    with hold(out):
        (tmp_path / "new").write_bytes(b"more")
        os.link(tmp_path / "new", tmp_path / "linked.h5")
        os.replace(tmp_path / "new", out)
        hold_replaced(out)
        with hold(link):  # in this process, to which it is the same as to another
            pass
        with pytest.raises(LockedError, match=BY_LINK), hold(str(tmp_path / "linked.h5")):
            pass
    with hold(str(tmp_path / "linked.h5")):
        pass


def test_an_output_of_which_a_link_is_made_meanwhile(tmp_path: Path) -> None:
    """A run holds the file that it creates, and one that replaces it, by every name it is given."""
    out, images = str(tmp_path / "o.h5"), write_images(tmp_path / "images", 3)
    settings = Settings(
        layers="conv1_1", model="vgg11", weights="random:0", size=32, batch_size=1, workers=0,
        device="cpu",
    )  # fmt: skip
    refused: list[str] = []

    def try_a_link(_: object) -> None:
        link = tmp_path / f"link{len(refused)}.h5"
        os.link(out, link)
        with pytest.raises(LockedError, match=BY_LINK), hold(str(link)):
            pass
        refused.append(link.name)

    extract([images], out, settings, on_progress=try_a_link)
    created = len(refused)
    assert created
    (images / "99.png").write_bytes((images / "00.png").read_bytes())
    extract([images], out, settings, policy=UpdatePolicy(update=True), on_progress=try_a_link)
    assert len(refused) > created


def test_a_held_output_is_open_to_all_else(tmp_path: Path) -> None:
    """Other programs read the output, write to it by HDF5, and lock it, whoever holds it."""
    out = str(tmp_path / "f.h5")
    with h5py.File(out, "w") as file:
        file["x"] = [1]
    code = "import h5py, sys\nwith h5py.File(sys.argv[1], 'r+', locking=True) as f: f['x'][0] = 2"
    with hold(out):
        subprocess.run([sys.executable, "-c", code, out], check=True)
        with h5py.File(out, "r", locking=True) as file, open(out, "rb+") as plain:
            assert file["x"][0] == 2
            fcntl.lockf(plain, fcntl.LOCK_EX | fcntl.LOCK_NB, 1 << 20)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_an_output_that_its_holder_may_not_write() -> None:
    """Who may only read the file keeps those out who may write to it."""
    with tempfile.TemporaryDirectory() as name:  # folders of pytest are root's alone
        os.chmod(name, 0o777)
        out, link = linked(Path(name))
        os.chmod(out, 0o444)
        keep_out_of_a_link(out, link)


def keep_out_of_a_link(out: str, link: str) -> None:
    code = f"""
import os
from vggfeat.storage import locks
os.seteuid(31234)
with locks.hold({out!r}):
    print(flush=True)
    os.read(0, 1)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline(), holder.communicate()[1]
        with pytest.raises(LockedError, match=BY_LINK), hold(link):
            pass
        holder.communicate()


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


def held_against_others(out: str, options: str = "") -> bool:
    """Whether a new process is refused."""
    code = (
        "import sys\nfrom vggfeat.storage.locks import hold\n"
        f"with hold(sys.argv[1], {options}): pass"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, out], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0 or "LockedError" in done.stderr, done.stderr
    return done.returncode != 0


def test_the_lock_is_given_back_and_its_file_removed(tmp_path: Path) -> None:
    """An error in the block gives the lock back; the lock file says who holds it, and goes."""
    out = str(tmp_path / "f.h5")
    lock = tmp_path / "f.h5.lock"
    lock.write_text("pid 1 on an-older-and-much-longer-name-than-the-new-one since then\n" * 9)
    with pytest.raises(ZeroDivisionError), hold(out):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    lock.write_text("pid 1 on an-older-and-much-longer-name-than-the-new-one since then\n" * 9)
    with hold(out):
        text = lock.read_text()
    assert os.listdir(tmp_path) == []
    year = time.gmtime().tm_year
    assert text.startswith(f"pid {os.getpid()} on {socket.gethostname()} since {year}-")
    assert text.count("\n") == 1


def test_a_lock_file_after_a_power_cut(tmp_path: Path) -> None:
    """A lock file whose content did not reach the disk, empty or of zeros, is taken and removed."""
    for content in (b"", b"\0" * 60):
        (tmp_path / "f.h5.lock").write_bytes(content)
        with hold(str(tmp_path / "f.h5")):
            pass
        assert os.listdir(tmp_path) == []


def test_two_outputs_at_once(tmp_path: Path) -> None:
    """One process may hold two outputs."""
    with hold(str(tmp_path / "a.h5")), hold(str(tmp_path / "b.h5")):
        assert sorted(os.listdir(tmp_path)) == ["a.h5.lock", "b.h5.lock"]
    assert os.listdir(tmp_path) == []


def test_a_hidden_lock(tmp_path: Path) -> None:
    """A lock whose name begins with a dot keeps out those who use it, and is removed too."""
    out = str(tmp_path / "f.parquet")
    with hold(out, hidden=True):
        assert os.listdir(tmp_path) == [".f.parquet.lock"]
        assert held_against_others(out, "hidden=True")
        with pytest.raises(LockedError, match="of this process"):
            refuse_if_held(out, hidden=True)
    assert os.listdir(tmp_path) == []


def test_asking_takes_nothing(tmp_path: Path) -> None:
    """Asking whether an output is held makes no file, and answers right."""
    out = str(tmp_path / "f.h5")
    refuse_if_held(out)
    assert os.listdir(tmp_path) == []
    holder, _ = start(out)
    try:
        with pytest.raises(LockedError, match=f"pid {holder.pid} on "):
            refuse_if_held(out)
    finally:
        stop(holder)
    refuse_if_held(out)  # of a run that was killed the lock file is left, and that is no lock


@pytest.mark.parametrize("way", ["link", "symlink"])
def test_closing_another_descriptor_keeps_the_lock(tmp_path: Path, way: str) -> None:
    """A program that reads its own lock file, by whatever name, still holds the lock."""
    out = str(tmp_path / "f.h5")
    with hold(out):
        getattr(os, way)(f"{out}.lock", tmp_path / "000.jpg")
        assert (tmp_path / "000.jpg").read_bytes().startswith(b"pid ")
        assert held_against_others(out)


def test_a_forked_child_gives_nothing_back(tmp_path: Path) -> None:
    """A child that leaves the block of its parent removes nothing and frees nothing."""
    out = str(tmp_path / "f.h5")
    with contextlib.ExitStack() as stack:
        stack.enter_context(hold(out))
        child = os.fork()
        if not child:
            stack.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert os.listdir(tmp_path) == ["f.h5.lock"]
        assert held_against_others(out)
    assert os.listdir(tmp_path) == []


def test_a_child_does_not_keep_a_lock_given_back(tmp_path: Path) -> None:
    """A child that was forked while the lock was held does not keep it once it is given back."""
    out = str(tmp_path / "f.h5")
    asked, answer = os.pipe()
    with hold(out):
        child = os.fork()
        if not child:
            os.close(answer)
            os.read(asked, 1)  # until the parent closes its end
            os._exit(0)
    assert not held_against_others(out)
    os.close(answer)
    os.waitpid(child, 0)
    os.close(asked)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda path: path.symlink_to("victim"), "a symbolic link"),
        (lambda path: path.symlink_to("nowhere"), "a symbolic link"),
        (lambda path: os.link(path.parent / "victim", path), "its content is not that of a lock"),
        (lambda path: path.write_text("# a lock of another tool\n"), "its content is not that"),
        (lambda path: path.mkdir(), "a folder"),
        (os.mkfifo, "no regular file"),
    ],
)
@pytest.mark.parametrize("user", [hold, refuse_if_held, SharedLock, "turns"])
def test_what_is_no_lock_is_not_touched(
    tmp_path: Path, make: Callable[[Path], None], found: str, user: Any
) -> None:
    """What has the name of the lock file and is none is refused by its name, and stays as it is."""
    lock = tmp_path / "f.h5.lock"
    (tmp_path / "victim").write_text("years of work")
    make(lock)
    before = lasting(lock)
    out = str(tmp_path / "f.h5")
    if user is refuse_if_held:
        user(out)  # which it is not
    else:
        with pytest.raises(UsageError, match=rf"f\.h5\.lock.*not a lock of vggfeat: {found}"):
            use(user, out)
    assert lasting(lock) == before
    assert (tmp_path / "victim").read_text() == "years of work"
    assert sorted(os.listdir(tmp_path)) == ["f.h5.lock", "victim"]


def lasting(path: Path) -> tuple[object, ...]:
    """What stays the same of a file that is only read; its access time may change."""
    status = os.lstat(path)
    content: object = None
    if stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        content = path.read_bytes()
    owner = (status.st_uid, status.st_gid)
    size, modified = status.st_size, status.st_mtime_ns
    return status.st_ino, status.st_mode, status.st_nlink, owner, size, modified, content


def use(user: Any, out: str) -> None:
    if user == "turns":
        with wait_for_lock(out, lambda: None):
            pass
    elif user is SharedLock:
        with SharedLock(out) as lock:
            lock.acquire_shared(lambda: None)
    elif user is refuse_if_held:
        user(out)
    else:
        with user(out):
            pass


# Takes a lock again and again; in it nobody else may be, and the count is one more.
RACER = """
import contextlib, os, random, sys, time
from vggfeat.errors import LockedError
from vggfeat.storage.locks import SharedLock, hold, wait_for_lock

out, how, times, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
chance = random.Random(seed)

def work():
    alone = os.open(out + ".alone", os.O_CREAT | os.O_EXCL)  # fails if another is here
    count = int(open(out).read() or 0)
    time.sleep(chance.random() / 2000)
    with open(out, "w") as file:
        file.write(str(count + 1))
    os.unlink(out + ".alone")
    os.close(alone)

def shared():
    with SharedLock(out) as lock:
        for _ in range(3):
            lock.acquire_shared(lambda: None)
            assert not os.path.exists(out + ".alone"), "shared beside an owner"
            open(out).close()
        if chance.random() < 0.5:
            lock.acquire_exclusive(lambda: None)
            work()
            lock.acquire_shared(lambda: None)
            assert not os.path.exists(out + ".alone"), "shared beside an owner"
            return 1
    return 0

done = 0
while done < times:
    if how == "turns":
        with wait_for_lock(out, lambda: None):
            work()
        done += 1
    elif how == "shared":
        done += shared()
    else:
        with contextlib.suppress(LockedError):
            with hold(out):
                work()
                done += 1
"""


@pytest.mark.parametrize("how", ["hold", "turns", "shared"])
def test_processes_race_for_one_lock(tmp_path: Path, how: str) -> None:
    """Many processes that take and remove one lock: never two at once, none lost, no file left."""
    out = tmp_path / "count"
    out.write_text("0")
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(out), how, "60", str(seed)],
            stderr=subprocess.PIPE, text=True,
        )
        for seed in range(6)
    ]  # fmt: skip
    errors = [racer.communicate()[1] for racer in racers]
    assert errors == [""] * 6
    assert out.read_text() == str(6 * 60)
    assert os.listdir(tmp_path) == ["count"]


def test_processes_race_with_those_that_are_killed(tmp_path: Path) -> None:
    """Racers killed at any instant keep nobody out, and what they leave the next removes."""
    out = tmp_path / "count"
    out.write_text("0")
    code = "import sys\nfrom vggfeat.storage.locks import wait_for_lock\nwhile True:\n    use()\n"
    code = code.replace("use()", "with wait_for_lock(sys.argv[1], lambda: None): pass")
    doomed = [subprocess.Popen([sys.executable, "-c", code, str(out)]) for _ in range(3)]
    racer = [sys.executable, "-c", RACER, str(out), "turns", "200", "0"]
    racers = [subprocess.Popen(racer, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in doomed:
        time.sleep(0.3)
        stop(process)
    assert [process.communicate()[1] for process in racers] == ["", ""]
    assert out.read_text() == "400"
    with wait_for_lock(str(out), lambda: None):
        pass
    assert os.listdir(tmp_path) == ["count"]


def test_no_folder(tmp_path: Path) -> None:
    """A lock file that cannot be made is a SpaceError with its name."""
    with (
        pytest.raises(SpaceError, match=r"lock file .*gone/f\.h5\.lock cannot be created: "),
        hold(str(tmp_path / "gone" / "f.h5")),
    ):
        pass


# Has the kernel refuse kinds of locks from here on, as file systems without them do (seccomp).
WITHOUT_LOCKS = """
import ctypes, os, struct, sys
call = {"x86_64": 72, "aarch64": 25}[sys.argv[2]]
number, (first, *_, last) = int(sys.argv[3]), [int(command) for command in sys.argv[4].split(",")]
steps = [
    (0x20, 0, 0, 0),  # load the number of the call
    (0x15, 0, 4, call),  # fcntl?
    (0x20, 0, 0, 24),  # load its second argument
    (0x15, 1, 0, first),
    (0x15, 0, 1, last),
    (0x06, 0, 0, 0x00050000 | number),  # fail
    (0x06, 0, 0, 0x7FFF0000),  # go ahead
]
code = b"".join(struct.pack("HBBI", *step) for step in steps)
code = ctypes.create_string_buffer(code)
program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
for option, value, address in ((38, 1, None), (22, 2, program)):  # no new rights; seccomp's filter
    if libc.prctl(option, value, address, None, None):
        sys.exit(f"refused: {ctypes.get_errno()}")
exec(sys.argv[5])
"""
HELD = "from vggfeat.storage.locks import hold\nwith hold(sys.argv[1]):\n    print('held')\n"
READ_LOCK = """
    from vggfeat.errors import VggfeatError
    from vggfeat.images.streams import open_file
    from vggfeat.images.sources import discover
    from vggfeat.storage.text_files import read_text
    def read_image(path):
        with open_file(os.fsencode(path)): pass
    ways = [lambda path: read_text(path, "labels"), lambda path: discover(["@" + path]), read_image]
    for read in ways:
        try:
            read(sys.argv[1] + ".lock")
        except VggfeatError as error:
            assert "lock file of this run" in str(error), error
        else:
            sys.exit("it was read")
"""
POSIX_LOCK, OWN_DESCRIPTION = "6,6", "37,38"  # F_SETLK; F_OFD_SETLK and F_OFD_SETLKW


def without_locks(
    tmp_path: Path, number: int, commands: str, code: str
) -> subprocess.CompletedProcess[str]:
    """Run `code` where these commands of fcntl fail with this error."""
    machine = platform.machine()
    if machine not in ("x86_64", "aarch64") or sys.platform != "linux":
        pytest.skip("seccomp, and system call numbers")
    place = str(tmp_path / "f.h5")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LOCKS, place, machine, str(number), commands, code],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if "refused" in done.stderr:
        pytest.skip("seccomp is not to be had")
    return done


def test_a_file_system_without_locks_is_an_error(tmp_path: Path) -> None:
    """Where the file system has no locks, that is said, and nothing is run without one."""
    done = without_locks(tmp_path, errno.ENOLCK, "6,37", HELD)
    assert "held" not in done.stdout
    assert "SpaceError: file system of " in done.stderr, done.stderr
    assert "has no locks (No locks available)" in done.stderr


def test_a_file_system_with_posix_locks_alone(tmp_path: Path) -> None:
    """Where locks of an open file are unknown, a POSIX lock is taken, and its file stays.

    Closing another descriptor of the file would give it back, as on FUSE: so no input may be it.
    """
    code = HELD + READ_LOCK + "    assert os.system(sys.argv[6]) == 0\n"
    other = f"{sys.executable} -c 'import sys\n{HELD}' {tmp_path / 'f.h5'} 2>&1 | grep -q LockedE"
    code = code.replace("sys.argv[6]", repr(other))
    done = without_locks(tmp_path, errno.EINVAL, OWN_DESCRIPTION, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "held\n"
    assert os.listdir(tmp_path) == ["f.h5.lock"]
    with hold(str(tmp_path / "f.h5")):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("policy", [UpdatePolicy(), UpdatePolicy(update=True, by_digest=True)])
def test_an_image_that_is_the_lock(tmp_path: Path, policy: UpdatePolicy) -> None:
    """A run among whose images its own lock file is fails that row and keeps its lock."""
    out = str(tmp_path / "o.h5")
    images = write_images(tmp_path / "images", 3)
    settings = Settings(
        layers="conv1_1", model="vgg11", weights="random:0", size=32, batch_size=1, workers=0,
        device="cpu",
    )  # fmt: skip
    (tmp_path / "o.h5.lock").write_text("pid 1 on elsewhere since then\n")  # of a killed run
    os.symlink("../o.h5.lock", images / "000.jpg")
    if policy.update:
        extract([images], out, settings)
        (tmp_path / "o.h5.lock").write_text("pid 1 on elsewhere since then\n")
        (images / "99.png").write_bytes((images / "00.png").read_bytes())
    held = []
    summary = extract(
        [images], out, settings, policy=policy, on_progress=lambda _: held.append(no_other(out))
    )
    assert held
    assert all(held)
    assert summary.failed == 1
    assert sorted(os.listdir(tmp_path)) == ["images", "o.h5"]


def no_other(out: str) -> bool:
    """Whether a second process is refused while it only asks, and while it wants the lock."""
    code = (
        "import sys\nfrom vggfeat.storage.locks import refuse_if_held\nrefuse_if_held(sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, out], check=False, capture_output=True)
    return b"LockedError" in done.stderr and held_against_others(out)


WITHOUT_SHARED = """
import errno, fcntl, struct

def refusing(real):
    # As some FUSE file systems do, which cannot be mounted here: no shared locks.
    def call(handle, command, argument=0):
        if command in (fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW):
            if struct.unpack("hhqqi4x", argument)[0] == fcntl.F_RDLCK:
                raise OSError(errno.ENOSYS, "Function not implemented")
        return real(handle, command, argument)
    return call

def no_posix(handle, command):
    if command & fcntl.LOCK_SH:
        raise OSError(errno.ENOSYS, "Function not implemented")

fcntl.fcntl, fcntl.lockf = refusing(fcntl.fcntl), no_posix
from vggfeat.cli.doctor import _locks
print(_locks())
"""


def test_the_doctor_tries_every_kind(tmp_path: Path) -> None:
    """Where shared locks alone are missing, `doctor` says so."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SHARED], cwd=tmp_path, check=True, capture_output=True,
        text=True,
    )  # fmt: skip
    assert "missing here: shared (folders of shards): file system of " in done.stdout
    assert "exclusive" not in done.stdout
    assert "put outputs on a file system with locks" in done.stdout
    done = subprocess.run(
        [sys.executable, "-c", "from vggfeat.cli.doctor import _locks; print(_locks())"],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "has them, exclusive and shared" in done.stdout
    assert "remedy=None" in done.stdout
