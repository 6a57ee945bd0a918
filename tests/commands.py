"""Commands of the program as real processes, without the seconds that imports take.

A warm process, one a session of tests, has imported what commands need and computed nothing. It
forks a child for each command, which gets the caller's descriptors, environment, folder, umask and
limits, and ends as `python -m vggfeat` does. Where a difference matters to a process as it starts
(`PYTHON...`, libraries' variables), `run` starts a process anew; so it does always unless
VGGFEAT_WARM_COMMANDS is 1, as it is in `scripts/test.sh`.

This file is all three: the module, the warm process (`--serve`), and the client that stands for the
command (any other words), which imports little, to begin at once.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import sys

TYPE_CHECKING = False  # `typing` takes the client longer to import than its work
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

_ADDRESS = "VGGFEAT_TEST_COMMANDS"
_WARM = (
    "vggfeat.cli",
    *(
        f"vggfeat.cli.{name}"
        for name in (
            "adapt",
            "bench",
            "compare",
            "doctor",
            "duplicates",
            "explore",
            "export",
            "extract",
            "inspect",
            "layers",
            "merge",
            "plot",
            "presets",
            "search",
            "sheet",
            "similarity",
            "stats",
            "trace",
            "transforms",
            "verify",
            "zeroshot",
        )
    ),
    "vggfeat.extraction.api",
    "vggfeat.images.loader",
    "vggfeat.network.extractor",
    "vggfeat.transforms.derive",
    "vggfeat.transforms.fuse",
    "vggfeat.transforms.reduce",
    "vggfeat.exporters",
    "vggfeat.retrieval.layer_ranking",
    "vggfeat.zeroshot",
)
_READ_AT_USE = ("AWS_", "COLUMNS", "HOME", "NO_COLOR", "OLDPWD", "PATH", "PWD", "PYTEST_", "RAY_",
                "SHLVL", "TORCH_HOME", "VGGFEAT_", "XDG_", "_")  # fmt: skip
"""How variables begin that nothing reads before a command does."""
_LIMITS = ("RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE")
_STANDARD = (0, 1, 2)


def run(
    words: Sequence[str], cwd: Path, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command of the program, and return how it ended.

    Args:
        words: behind `vggfeat`.
        cwd: its folder.
        stdin: what it may read.
        env: its environment; `None` is this process's.
    """
    import subprocess

    environment = dict(os.environ if env is None else env)
    command = [sys.executable, "-m", "vggfeat"]
    if _is_wanted():
        address = _start()
        if _is_warm_enough(environment):
            command = [sys.executable, "-I", "-S", __file__]
            environment[_ADDRESS] = address
    return subprocess.run(
        [*command, *words],
        cwd=cwd, input=stdin, capture_output=True, check=False, timeout=300, env=environment,
    )  # fmt: skip


def install(folder: Path) -> dict[str, str]:
    """Write a `vggfeat` into a folder; return the environment in which a shell finds it."""
    if not _is_wanted():
        return {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    program = folder / "vggfeat"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{__file__}" "$@"\n')
    program.chmod(0o755)
    path = f"{folder}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    return {**os.environ, "OMP_NUM_THREADS": "1", _ADDRESS: _start(), "PATH": path}


def _is_wanted() -> bool:
    return os.environ.get("VGGFEAT_WARM_COMMANDS") == "1"


_server: list[tuple[str, dict[str, str]]] = []  # its address and environment, once it is started


def _start() -> str:
    """Start the warm process, if there is none; it ends with this one."""
    if not _server:
        import atexit
        import shutil
        import subprocess
        import tempfile

        folder = tempfile.mkdtemp(prefix="commands-")
        address = os.path.join(folder, "socket")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, __file__, "--serve", address],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment, start_new_session=True,
        )  # fmt: skip  # pipes, as Python's streams remember of files how far they were written
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n", process.stderr.read()
        process.wait()  # for what only starts it
        _server.append((address, environment))

        def stop(pid: int = os.getpid()) -> None:
            if os.getpid() == pid:  # and no child that was forked off
                process.communicate()  # closes its standard input, which it takes for the end
                shutil.rmtree(folder, ignore_errors=True)

        atexit.register(stop)
    return _server[0][0]


def _is_warm_enough(environment: Mapping[str, str]) -> bool:
    """Whether a process differs from the warm one only in what commands read themselves."""
    _, warm = _server[0]
    names = {*environment, *warm}
    different = {name for name in names if environment.get(name) != warm.get(name)}
    return all(name.startswith(_READ_AT_USE) for name in different)


def _ask(words: list[str]) -> int:
    """Have the warm process do a command, wait for its end, and return its status."""
    import resource

    address = os.environ.pop(_ADDRESS)
    os.umask(umask := os.umask(0))
    limits = {name: resource.getrlimit(getattr(resource, name)) for name in _LIMITS}
    order = json.dumps([words, os.getcwd(), dict(os.environ), umask, limits]).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendmsg(
            [len(order).to_bytes(8, "little")],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", _STANDARD))],
        )
        connection.sendall(order)
        for descriptor in _STANDARD:
            with contextlib.suppress(OSError):
                os.close(descriptor)  # so that its readers see when the command closes its own
        status = int(connection.makefile().read() or 125)
    if status < 0:
        os.kill(os.getpid(), -status)
    return status


def _serve(address: str) -> None:
    import gc
    import importlib
    import select

    for module in _WARM:
        importlib.import_module(module)
    from PIL import Image

    Image.init()
    gc.freeze()  # children write to no page of what is here for good
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            ready, _, _ = select.select([listener.fileno(), 0], [], [])
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if 0 in ready:
                return None
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                return _attend(connection)
            connection.close()


def _attend(connection: socket.socket) -> None:
    """Do one command in a child, and say how it ended; only the child returns."""
    import select
    import signal

    size, ancillary, *_ = connection.recvmsg(8, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    descriptors = array.array("i", ancillary[0][2])
    with connection.makefile("rb") as stream:
        order = json.loads(stream.read(int.from_bytes(size, "little")))
    command = os.fork()
    if command == 0:
        connection.close()
        _become(order, descriptors)
        return
    for descriptor in (*descriptors, *_STANDARD):
        os.close(descriptor)
    ended = os.pidfd_open(command)
    if ended not in select.select([connection.fileno(), ended], [], [])[0]:
        os.kill(command, signal.SIGKILL)  # whoever waited for it is gone
    _, status = os.waitpid(command, 0)
    with contextlib.suppress(OSError):
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(order: list[Any], descriptors: Sequence[int]) -> None:
    """Make this process what a new one would be."""
    import resource
    import tempfile

    words, folder, environment, umask, limits = order
    for standard, descriptor in zip(_STANDARD, descriptors, strict=True):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.umask(umask)
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, name), tuple(limit))
    tempfile.tempdir = None  # of another environment
    sys.argv[:] = ["vggfeat", *words]
    sys.path[0] = folder


def _command() -> None:
    """Do what `python -m vggfeat` does, and end without taking the interpreter to pieces.

    That would take longer than most commands.
    """
    import atexit
    import runpy
    import threading

    code: object = None
    try:
        runpy.run_module("vggfeat", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    threading._shutdown()  # type: ignore[attr-defined] # as the interpreter does: waits for threads
    atexit._run_exitfuncs()
    status = code if isinstance(code, int) else int(code is not None)
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = 120  # as the interpreter's
    os._exit(status)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        if os.fork():  # nobody's child: some tests look whether a child was left behind
            os._exit(0)
        _serve(sys.argv[2])
        if sys.argv[0] == "vggfeat":  # in a child, that is a command now
            _command()
    else:
        sys.exit(_ask(sys.argv[1:]))
