from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest

from vggfeat.errors import UsageError
from vggfeat.storage.atomic import atomic_file, atomic_folder, atomic_path, write_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OLD, NEW = b"old", b"new"


def by_file(path: Path) -> None:
    with atomic_file(str(path)) as file:
        file.write(NEW)


def by_bytes(path: Path) -> None:
    write_bytes(str(path), NEW)


def by_path(path: Path) -> None:
    with atomic_path(str(path)) as temporary:
        Path(temporary).write_bytes(NEW)


WAYS = pytest.mark.parametrize("write", [by_file, by_bytes, by_path])


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


@WAYS
def test_new_files_get_the_usual_mode(write: Callable[[Path], None], tmp_path: Path) -> None:
    """A new file has the mode that the umask leaves, and nothing stays beside it."""
    before = os.umask(0o027)
    try:
        write(tmp_path / "f")
    finally:
        os.umask(before)
    assert (tmp_path / "f").read_bytes() == NEW
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640
    assert names(tmp_path) == {"f"}


@WAYS
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o444, 0o2755])
def test_replaced_files_keep_their_mode(
    write: Callable[[Path], None], mode: int, tmp_path: Path
) -> None:
    """A replaced file's mode is kept, whatever the umask, a read-only one too."""
    (tmp_path / "f").write_bytes(OLD)
    (tmp_path / "f").chmod(mode)
    write(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == NEW
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == mode


@WAYS
@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_replaced_files_keep_their_owner(write: Callable[[Path], None], tmp_path: Path) -> None:
    """A replaced file's owner and group are kept."""
    (tmp_path / "f").write_bytes(OLD)
    os.chown(tmp_path / "f", 1234, 4321)
    (tmp_path / "f").chmod(0o660)
    write(tmp_path / "f")
    status = (tmp_path / "f").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 4321, 0o660)


def test_replaced_files_keep_their_access_list(tmp_path: Path) -> None:
    """The access list that `setfacl -m u:1234:rw` gives a file is kept."""
    entry = b"".join(
        tag.to_bytes(2, "little") + rights.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, rights, who in (
            (1, 6, 0xFFFFFFFF), (2, 6, 1234), (4, 4, 0xFFFFFFFF), (16, 6, 0xFFFFFFFF),
            (32, 0, 0xFFFFFFFF),
        )
    )  # fmt: skip
    access = (2).to_bytes(4, "little") + entry
    (tmp_path / "f").write_bytes(OLD)
    try:
        os.setxattr(tmp_path / "f", "system.posix_acl_access", access)
    except OSError as error:
        pytest.skip(f"no access lists here: {error.strerror}")
    by_file(tmp_path / "f")
    assert os.getxattr(tmp_path / "f", "system.posix_acl_access") == access


@WAYS
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_file_is_replaced(
    write: Callable[[Path], None], tmp_path: Path, *, exists: bool
) -> None:
    """An output that is a symbolic link stays one; the file that it names is written."""
    (tmp_path / "far").mkdir()
    if exists:
        (tmp_path / "far" / "real").write_bytes(OLD)
    (tmp_path / "f").symlink_to("far/real")
    write(tmp_path / "f")
    assert (tmp_path / "f").is_symlink()
    assert (tmp_path / "far" / "real").read_bytes() == NEW
    assert names(tmp_path) == {"f", "far"}
    assert names(tmp_path / "far") == {"real"}


@WAYS
@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_what_is_not_a_leftover_is_left_alone(
    write: Callable[[Path], None], kind: str, tmp_path: Path
) -> None:
    """A link, folder or pipe at the temporary name is refused, not followed and not removed."""
    victim, temporary = tmp_path / "victim", tmp_path / "f.vggfeat.tmp"
    victim.write_bytes(b"precious")
    if kind == "link":
        temporary.symlink_to("victim")
    elif kind == "dangling":
        temporary.symlink_to("nowhere")
    elif kind == "folder":
        temporary.mkdir()
    else:
        os.mkfifo(temporary)
    before = os.lstat(temporary)
    with pytest.raises(UsageError, match=r"f\.vggfeat\.tmp.*not touched.*move it away"):
        write(tmp_path / "f")
    assert os.path.samestat(os.lstat(temporary), before)
    assert victim.read_bytes() == b"precious"
    assert names(tmp_path) == {"victim", "f.vggfeat.tmp"}


@WAYS
def test_a_users_own_temporary_is_left_alone(write: Callable[[Path], None], tmp_path: Path) -> None:
    """A name that anybody might give a file is not one of ours; its file is not in the way."""
    for name in ("f.tmp", ".f.tmp", "f.part"):
        (tmp_path / name).write_bytes(b"precious")
    write(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == NEW
    for name in ("f.tmp", ".f.tmp", "f.part"):
        assert (tmp_path / name).read_bytes() == b"precious"
    assert names(tmp_path) == {"f", "f.tmp", ".f.tmp", "f.part"}


@WAYS
def test_a_leftover_is_replaced(write: Callable[[Path], None], tmp_path: Path) -> None:
    """The file that a killed run left is removed; another name of it keeps its bytes."""
    (tmp_path / "other").write_bytes(b"half")
    os.link(tmp_path / "other", tmp_path / "f.vggfeat.tmp")
    write(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == NEW
    assert (tmp_path / "other").read_bytes() == b"half"
    assert names(tmp_path) == {"f", "other"}


@WAYS
@pytest.mark.parametrize("what", ["a folder", "a device, pipe or socket", "a symbolic link"])
def test_only_files_are_replaced(write: Callable[[Path], None], what: str, tmp_path: Path) -> None:
    """A folder, a device or a link to itself is refused and stays."""
    place = tmp_path / "f"
    if what == "a folder":
        place.mkdir()
    elif what == "a symbolic link":
        place.symlink_to("f")
    else:
        place = Path("/dev/null")
    with pytest.raises(UsageError, match=f"is {what}, expected a regular file"):
        write(place)
    assert not place.is_file()
    assert not names(tmp_path) - {"f"}


class _StopError(BaseException):
    pass


@pytest.mark.parametrize("error", [_StopError, KeyboardInterrupt, OSError])
def test_nothing_is_left_of_a_block_that_fails(error: type[BaseException], tmp_path: Path) -> None:
    """Whatever ends the block, the old file is whole and no temporary stays."""
    (tmp_path / "f").write_bytes(OLD)
    for name, block in (("f", atomic_file), ("f", atomic_path), ("d", atomic_folder)):
        with pytest.raises(error), block(str(tmp_path / name)) as where:
            fill_and_fail(where, error)
    assert (tmp_path / "f").read_bytes() == OLD
    assert names(tmp_path) == {"f"}


def fill_and_fail(where: str | BinaryIO, error: type[BaseException]) -> None:
    """Writes half of something where a block says, and fails."""
    if not isinstance(where, str):
        where.write(NEW)
    elif where.endswith(".tmp"):
        Path(where).write_bytes(NEW)
    else:
        Path(where).mkdir()
        (Path(where) / "x").write_bytes(NEW)
    raise error


def test_a_failing_buffer_does_not_hide_an_interrupt(tmp_path: Path) -> None:
    """Ctrl-C while a full disk refuses the buffer is still a KeyboardInterrupt."""
    with pytest.raises(KeyboardInterrupt), atomic_file(str(tmp_path / "f")) as file:
        interrupt_on_a_full_disk(file)


def interrupt_on_a_full_disk(file: BinaryIO) -> None:
    file.write(NEW)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file.fileno())
    os.close(full)
    raise KeyboardInterrupt


def test_exclusive_files_are_never_replaced(tmp_path: Path) -> None:
    """With `exclusive` the file that another process has made meanwhile stays."""
    with pytest.raises(FileExistsError), atomic_file(str(tmp_path / "f"), exclusive=True):
        (tmp_path / "f").write_bytes(OLD)
    assert (tmp_path / "f").read_bytes() == OLD
    (tmp_path / "f").unlink()
    with atomic_file(str(tmp_path / "f"), exclusive=True) as file:
        file.write(NEW)
    assert (tmp_path / "f").read_bytes() == NEW
    assert names(tmp_path) == {"f"}


def test_a_temporary_that_others_replaced_is_not_published(tmp_path: Path) -> None:
    """If another program puts its own file at the temporary name, that is not taken, nor lost."""
    another = tmp_path / "another"
    another.write_bytes(OLD)
    with (
        pytest.raises(OSError, match="replaced by another program"),
        atomic_path(str(tmp_path / "f")) as temporary,
    ):
        os.replace(another, temporary)
    assert names(tmp_path) == {"f.vggfeat.tmp"}


WRITE = """
import sys
from vggfeat.storage.atomic import atomic_file, atomic_folder, atomic_path
{block}
    print("writing", flush=True)
    sys.stdin.read()
"""
FILE = 'with atomic_file("f") as file:\n    file.write(b"half"); file.flush()'
PATH = 'with atomic_path("f") as name:\n    open(name, "wb").write(b"half")'
FOLDER = (
    'with atomic_folder("f") as name:\n'
    '    import os; os.mkdir(name); open(name + "/x", "wb").write(b"half")'
)


@contextlib.contextmanager
def writing(folder: Path, block: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has begun to write `f` and waits for the end of its input."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITE.format(block=block)],
        cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        yield process


@pytest.mark.parametrize("block", [FILE, PATH, FOLDER])
def test_a_killed_writers_leftover_goes_with_the_next(block: str, tmp_path: Path) -> None:
    """SIGKILL leaves the temporary and no output; the next writer removes it."""
    with writing(tmp_path, block) as process:
        process.send_signal(signal.SIGKILL)
    assert names(tmp_path) == {"f.vggfeat.tmp"}
    with writing(tmp_path, block) as process:
        process.communicate(timeout=600)
    assert process.returncode == 0
    assert names(tmp_path) == {"f"}
    path = tmp_path / "f" / "x" if block == FOLDER else tmp_path / "f"
    assert path.read_bytes() == b"half"


@pytest.mark.parametrize("block", [FILE, PATH, FOLDER])
def test_ctrl_c_leaves_nothing(block: str, tmp_path: Path) -> None:
    """An interrupted writer tidies up."""
    with writing(tmp_path, block) as process:
        process.send_signal(signal.SIGINT)
    assert names(tmp_path) == set()


def test_writers_of_one_file_take_turns(tmp_path: Path) -> None:
    """A second writer waits for the first; the file is then that of the last, whole."""
    second = 'with atomic_file("f") as file:\n    file.write(b"second")'
    with writing(tmp_path, FILE) as first:
        code = WRITE.format(block=second)
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as waiting:  # fmt: skip
            wait_for_lock(waiting.pid)
            assert names(tmp_path) == {"f.vggfeat.tmp"}
            first.communicate(timeout=600)
            assert (tmp_path / "f").exists()
            said, _ = waiting.communicate(timeout=600)
    assert (said, first.returncode, waiting.returncode) == (b"writing\n", 0, 0)
    assert (tmp_path / "f").read_bytes() == b"second"
    assert names(tmp_path) == {"f"}


def wait_for_lock(pid: int) -> None:
    """Returns once a process waits for a lock: `->` marks those in the kernel's list."""
    while not any(
        "->" in line and line.split()[5] == str(pid)
        for line in Path("/proc/locks").read_text().splitlines()
    ):
        os.sched_yield()


MANY = """
import sys
from vggfeat.storage.atomic import write_bytes
for _ in range(100):
    write_bytes("f", sys.argv[1].encode() * 5000)
"""


def test_many_writers_at_once(tmp_path: Path) -> None:
    """Whatever process is at it, readers find one writer's bytes, whole."""
    runs = [
        subprocess.Popen([sys.executable, "-c", MANY, letter], cwd=tmp_path) for letter in "abc"
    ]
    seen = set()
    while any(run.poll() is None for run in runs):
        with contextlib.suppress(FileNotFoundError):
            data = (tmp_path / "f").read_bytes()
            seen.add((data[:1], len(data), len(set(data))))
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert {(length, kinds) for _, length, kinds in seen} == {(5000, 1)}
    assert names(tmp_path) == {"f"}


def test_a_folder_is_created_whole(tmp_path: Path) -> None:
    """The folder appears with all files; one that is there is refused."""
    with atomic_folder(str(tmp_path / "d")) as content:
        os.makedirs(Path(content) / "deep")
        (Path(content) / "deep" / "x").write_bytes(NEW)
        assert names(tmp_path) == {"d.vggfeat.tmp"}
    assert (tmp_path / "d" / "deep" / "x").read_bytes() == NEW
    assert names(tmp_path) == {"d"}
    assert names(tmp_path / "d") == {"deep"}
    with pytest.raises(FileExistsError), atomic_folder(str(tmp_path / "d")):
        pass
    assert names(tmp_path) == {"d"}


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_folder_of_others_is_left_alone(kind: str, tmp_path: Path) -> None:
    """A folder at the temporary name that has no mark of ours, a file or a link stays."""
    precious, temporary = tmp_path / "precious", tmp_path / "d.vggfeat.tmp"
    precious.mkdir()
    (precious / "thesis").write_bytes(OLD)
    if kind == "folder":
        precious.rename(temporary)
    elif kind == "file":
        temporary.write_bytes(OLD)
    else:
        temporary.symlink_to("precious")
    before = names(tmp_path)
    with (
        pytest.raises(UsageError, match=r"d\.vggfeat\.tmp.*did not make.*move it away"),
        atomic_folder(str(tmp_path / "d")),
    ):
        pytest.fail("must not begin")
    assert names(tmp_path) == before
    assert kind == "file" or (temporary / "thesis").read_bytes() == OLD


def test_a_folder_killed_before_its_mark_is_used(tmp_path: Path) -> None:
    """An empty folder at the temporary name, of a run killed at its first call, is no hindrance."""
    (tmp_path / "d.vggfeat.tmp").mkdir()
    with atomic_folder(str(tmp_path / "d")) as content:
        Path(content).mkdir()
    assert names(tmp_path) == {"d"}


def test_order_of_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are synced before the name is given, and the name before the block is over."""
    calls: list[tuple[str, str]] = []

    def traced(name: str) -> Callable[..., None]:
        real = getattr(os, name)

        def call(*arguments: object) -> None:
            at = arguments[0] if name == "fsync" else None
            place = os.readlink(f"/proc/self/fd/{at}") if at is not None else arguments[1]
            calls.append((name, os.path.relpath(str(place), tmp_path)))
            real(*arguments)

        return call

    for name in ("fsync", "replace", "rename", "link"):
        monkeypatch.setattr(os, name, traced(name))
    for write in (by_file, by_bytes, by_path):
        calls.clear()
        write(tmp_path / "f")
        assert calls == [("fsync", "f.vggfeat.tmp"), ("replace", "f"), ("fsync", ".")]
    calls.clear()
    with atomic_file(str(tmp_path / "e"), exclusive=True) as file:
        file.write(NEW)
    assert calls == [("fsync", "e.vggfeat.tmp"), ("link", "e"), ("fsync", ".")]
    calls.clear()
    with atomic_folder(str(tmp_path / "d")) as content:
        os.makedirs(f"{content}/deep")
        Path(f"{content}/deep/x").write_bytes(NEW)
    assert calls[-2:] == [("rename", "d"), ("fsync", ".")]
    place = "d.vggfeat.tmp/content"
    assert {("fsync", place + name) for name in ("", "/deep", "/deep/x")} == {*calls[:-2]}


def test_a_sync_that_fails_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is renamed that the disk did not confirm."""
    (tmp_path / "f").write_bytes(OLD)

    def refuse(_handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        by_file(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == OLD
    assert names(tmp_path) == {"f"}
