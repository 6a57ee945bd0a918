"""Signals and errors at every call that changes a file, in any command of the program.

`FaultServer` is a process that has imported what the commands need and forks a child for each one.
In the child the calls that change files below its folder are counted, and one of them may fail with
an error, or be followed by a signal. Run this file to have every call of every command fail, or
of those named: `python tests/faults.py [NAME ...]`. The commands are in `faultcases`.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

How = Literal["", "SIGTERM", "SIGINT", "SIGKILL", "EIO", "EPERM", "ENOSPC"]

_BY_PATH = ("mkdir", "unlink", "remove", "rmdir", "truncate")
_BY_TWO_PATHS = ("rename", "replace", "link", "symlink")
_BY_HANDLE = ("pwrite", "write", "fsync", "fdatasync", "ftruncate", "posix_fallocate")
_READ_ONLY = os.O_RDONLY
_STANDARD = 2  # descriptors up to this one are the terminal's
_WARM = (
    "vggfeat.cli",
    "vggfeat.extraction.api",
    "vggfeat.images.loader",
    "vggfeat.network.extractor",
    "vggfeat.transforms.derive",
    "vggfeat.zeroshot",
    "vggfeat.visualization.plot_cache",
    "sklearn.decomposition",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its exit code; negative for the signal that killed it.
        text: what it wrote to standard error.
        calls: each call that changed a file, and the file; only of commands that were not killed.
    """

    status: int
    text: str
    calls: tuple[str, ...]


class FaultServer:
    """Runs commands of `vggfeat` in forked children of one warm process."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        cast("IO[str]", self._process.stdin).close()
        cast("IO[str]", self._process.stdout).close()
        self._process.wait()

    def run(
        self,
        words: Sequence[str],
        folder: Path,
        *,
        at: int = 0,
        how: How = "",
        after: bool = False,
    ) -> Ended:
        """Runs one command.

        Args:
            words: its command line, without `vggfeat`.
            folder: where it runs; calls that change files outside of it do not count.
            at: the call at which something happens, counted from 1; 0 for none.
            how: the error that the call ends with instead of being made, or the signal that
                comes before it.
            after: the call is made, and the signal, or the error that is its answer, comes then.
        """
        command = {
            "words": list(words), "folder": str(folder), "at": at, "how": how, "after": after,
        }  # fmt: skip
        print(json.dumps(command), file=self._process.stdin, flush=True)
        status, text, calls = json.loads(cast("IO[str]", self._process.stdout).readline())
        return Ended(status, text, tuple(calls))


class _Calls:
    """Stands between Python and the calls that change files below a folder."""

    def __init__(self, folder: str, at: int, how: str, *, after: bool) -> None:
        self.made: list[str] = []
        self._folder = os.path.realpath(folder) + os.sep
        self._at, self._how, self._after = at, how, after
        self._pid = os.getpid()

    def install(self) -> None:
        for name in (*_BY_PATH, *_BY_TWO_PATHS, *_BY_HANDLE, "copy_file_range", "open"):
            if hasattr(os, name):
                setattr(os, name, self._traced(name, getattr(os, name)))
        io.open = builtins.open = self._traced("fopen", builtins.open)

    def _traced(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            target = self._target(name, arguments, named)
            if os.getpid() != self._pid or not (target + os.sep).startswith(self._folder):
                return real(*arguments, **named)
            self.made.append(f"{name} {target.removeprefix(self._folder)}")
            if len(self.made) != self._at:
                return real(*arguments, **named)
            if self._after:
                result = real(*arguments, **named)
                self._happen()
                return result
            self._happen()
            return real(*arguments, **named)

        return call

    def _happen(self) -> None:
        if self._how.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[self._how])
            return
        number = getattr(errno, self._how)
        raise OSError(number, os.strerror(number))

    @staticmethod
    def _target(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> str:
        """The file that the call changes; empty for none."""
        if name == "fopen":
            mode = named.get("mode", arguments[1] if len(arguments) > 1 else "r")
            if set(mode).isdisjoint("wax+"):
                return ""
        if name == "open":
            flags = arguments[1] if len(arguments) > 1 else named.get("flags", _READ_ONLY)
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return ""
        which = arguments[1 if name in (*_BY_TWO_PATHS, "copy_file_range") else 0]
        if isinstance(which, int):
            if which <= _STANDARD:
                return ""
            with contextlib.suppress(OSError):
                return os.readlink(f"/proc/self/fd/{which}")
            return ""
        return os.path.abspath(os.fsdecode(which))


def _child(command: dict[str, Any], report: str) -> int:
    from vggfeat.cli import main

    os.chdir(command["folder"])
    with open(f"{report}.text", "wb") as text:
        os.dup2(text.fileno(), 1)
        os.dup2(text.fileno(), 2)
    calls = _Calls(command["folder"], command["at"], command["how"], after=command["after"])
    calls.install()
    sys.argv = ["vggfeat", *command["words"]]
    status = 0
    try:
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:  # noqa: BLE001 whatever it is, the command line should not have let it out
        traceback.print_exc()
        status = 99
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    with open(f"{report}.calls", "w", encoding="utf-8") as file:
        json.dump(calls.made, file)
    return status


def _serve() -> None:
    # These imports are the seconds that every child is spared.
    for module in _WARM:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    from PIL import Image

    Image.init()
    for line in sys.stdin:
        command = json.loads(line)
        report = f"{command['folder']}.report"
        child = os.fork()
        if child == 0:
            os._exit(_child(command, report))
        _, status = os.waitpid(child, 0)
        text, calls = Path(f"{report}.text"), Path(f"{report}.calls")
        told = text.read_text(errors="replace") if text.exists() else ""
        made = json.loads(calls.read_text()) if calls.exists() else []
        for path in (text, calls):
            path.unlink(missing_ok=True)
        code = os.waitstatus_to_exitcode(status)
        sys.stdout.write(json.dumps([code, told, made]) + "\n")
        sys.stdout.flush()


@dataclass(frozen=True, slots=True)
class Case:
    """A command that writes, and what must hold of its output whatever happens to it.

    Attributes:
        words: the command line.
        begin: lays out the folder that it runs in.
        contents: all that must be equal after the same command again, and after one that nothing
            happened to.
        check: looks at the folder right after the fault; raises where something is lost or wrong.
        replaces: whether the command replaces an output that is there; else it may refuse one that
            it made before the fault came.
    """

    name: str
    words: tuple[str, ...]
    begin: Callable[[Path], None]
    contents: Callable[[Path], object]
    check: Callable[[Path], object] = lambda _: None
    replaces: bool = True


FAULTS: tuple[tuple[How, bool], ...] = (
    ("SIGTERM", True),
    ("SIGTERM", False),
    ("SIGINT", True),
    ("EIO", False),
    ("EPERM", False),
    ("ENOSPC", False),
    ("SIGKILL", False),
    ("EIO", True),
)
_STOPPED = {"SIGTERM": (143,), "SIGINT": (130,), "SIGKILL": (-signal.SIGKILL,)}
_ON_ERRORS = (3, 5, 6)
_THERE_ALREADY = 2


@dataclass(frozen=True, slots=True)
class Prepared:
    """A case, laid out and run once without a fault."""

    case: Case
    template: Path
    calls: tuple[str, ...]
    right: object
    files: frozenset[str]


def prepare(server: FaultServer, case: Case, place: Path) -> Prepared:
    """Lays out what the command of a case starts from, and runs it once."""
    template = place / f"{case.name}-begin"
    template.mkdir(parents=True)
    case.begin(template)
    whole = place / f"{case.name}-whole"
    shutil.copytree(template, whole, symlinks=True)
    ended = server.run(case.words, whole)
    assert ended.status == 0, ended.text
    right, files = case.contents(whole), _files(whole)
    shutil.rmtree(whole)
    return Prepared(case, template, ended.calls, right, files)


def _files(folder: Path) -> frozenset[str]:
    """Names of all files, the token of a plan of shards left out."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
    return frozenset(_without_token(name) for name in names)


def _without_token(name: str) -> str:
    head, mark, tail = name.rpartition("shard-")
    return f"{head}{mark}{tail[:5]}{tail[14:]}" if mark else name


def suffer(server: FaultServer, prepared: Prepared, at: int, how: How, *, after: bool) -> None:
    """One fault, a look at what it left, the same command again, and a look at what that made."""
    case = prepared.case
    folder = prepared.template.with_name(f"{case.name}-run")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prepared.template, folder, symlinks=True)
    ended = server.run(case.words, folder, at=at, how=how, after=after)
    where = f"{case.name}: {how} {'after' if after else 'at'} call {at}, {prepared.calls[at - 1]}"
    allowed = (0, *_STOPPED.get(how, _ON_ERRORS))
    assert ended.status in allowed, f"{where}: ended with {ended.status}\n{ended.text}"
    assert "Traceback" not in ended.text, f"{where}\n{ended.text}"
    try:
        case.check(folder)
        again = server.run(case.words, folder)
        refused = not case.replaces and again.status == _THERE_ALREADY
        assert again.status == 0 or refused, f"again: ended with {again.status}\n{again.text}"
        assert case.contents(folder) == prepared.right, "again: another result"
        left = _files(folder) ^ prepared.files
        assert not left, f"again: other files, {sorted(left)}"
    except Exception as error:
        raise AssertionError(f"{where}, {ended.status}\n{ended.text}\n{error!r}") from error
    shutil.rmtree(folder)


def _suffer_everything(names: Sequence[str]) -> int:
    import tempfile

    from faultcases import cases

    wrong = total = 0
    with tempfile.TemporaryDirectory() as place, FaultServer() as server:
        for case in cases(Path(place)):
            if names and case.name not in names:
                continue
            prepared = prepare(server, case, Path(place))
            bad = 0
            for at in range(1, len(prepared.calls) + 1):
                for how, after in FAULTS:
                    total += 1
                    try:
                        suffer(server, prepared, at, how, after=after)
                    except AssertionError as error:
                        bad += 1
                        sys.stdout.write(f"{error}\n\n")
                        sys.stdout.flush()
            wrong += bad
            sys.stdout.write(
                f"== {case.name}: {len(prepared.calls)} calls, {len(FAULTS)} faults each, "
                f"{bad} wrong\n"
            )
            sys.stdout.flush()
    sys.stdout.write(f"{total} faults, {wrong} wrong\n")
    return int(wrong > 0)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        _serve()
    else:
        sys.exit(_suffer_everything(sys.argv[1:]))
