"""Commands in forked children of one warm process, whose syncs and renames are written down.

In the child, right before the first rename of the output, a signal may come.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

Call = tuple[str, str, str]
"""A call and two paths: of `fsync` and `fdatasync` the file, of others the old and the new name."""


class PublishServer:
    """Runs commands as `vggfeat` does."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        cast("IO[str]", self._process.stdin).close()
        cast("IO[str]", self._process.stdout).close()
        self._process.wait()

    def run(self, cwd: Path, *words: str, signum: int = 0) -> tuple[int, str, list[Call]]:
        """Runs one command.

        Args:
            cwd: where.
            *words: of the command.
            signum: sent before the output gets its name; 0 for none.

        Returns:
            exit status (negative: a signal), stderr, and calls in their order.
        """
        order = {"cwd": str(cwd), "words": words, "signum": signum}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        status, said, calls = json.loads(cast("IO[str]", self._process.stdout).readline())
        return status, said, [tuple(call) for call in calls]


def _install(log: IO[str], signum: int) -> None:
    def traced(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if name in ("fsync", "fdatasync"):
                places = (os.readlink(f"/proc/self/fd/{arguments[0]}"), "")
            else:
                places = tuple(os.path.realpath(os.fspath(place)) for place in arguments[:2])
                if signum:
                    os.kill(os.getpid(), signum)
            log.write(json.dumps((name, *places)) + "\n")
            log.flush()
            return real(*arguments, **named)

        return call

    for name in ("fsync", "fdatasync", "replace", "rename", "link"):
        setattr(os, name, traced(name, getattr(os, name)))


def _child(order: dict[str, Any], log: Path) -> None:
    from vggfeat.cli import app

    os.chdir(order["cwd"])
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(f"{log}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    _install(log.open("w"), order["signum"])
    code: object = 1
    try:
        app(order["words"], prog_name="vggfeat")
    except SystemExit as end:
        code = end.code
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


def _serve() -> None:
    for module in (
        "vggfeat.cli",
        "vggfeat.exporters",
        "vggfeat.transforms.fuse",
        "vggfeat.transforms.reduce",
    ):
        importlib.import_module(module)
    for line in sys.stdin:
        order = json.loads(line)
        log = Path(order["cwd"]).parent / f"log-{os.getpid()}"
        child = os.fork()
        if child == 0:
            _child(order, log)
        _, status = os.waitpid(child, 0)
        calls = [json.loads(one) for one in log.read_text().splitlines()]
        said = Path(f"{log}.err").read_text()
        sys.stdout.write(json.dumps([os.waitstatus_to_exitcode(status), said, calls]) + "\n")
        sys.stdout.flush()
        log.unlink()
        Path(f"{log}.err").unlink()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _serve()
