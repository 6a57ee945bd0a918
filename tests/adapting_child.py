"""Adaptations in forked children of one warm process, each killed before a chosen call.

As `killing.py` does for `extract`: in the child every call that changes a file is counted, and it
can end itself with SIGKILL right before any of them. Run as a script it serves.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typing_extensions import Self

_WARM = (
    "vggfeat.finetuning.adapt",
    "vggfeat.finetuning.model",
    "vggfeat.finetuning.trainer",
    "vggfeat.network.multi_device",
    "torch._dynamo",
)
_COUNTED = ("pwrite", "fsync", "fdatasync", "replace", "unlink")


class AdaptServer:
    """Starts adaptations in forked children of one warm process."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # tiny maps; threads only get in the way
        )
        return self

    def __exit__(self, *_: object) -> None:
        cast("IO[str]", self._process.stdin).close()
        cast("IO[str]", self._process.stdout).close()
        self._process.wait()

    def run(
        self,
        images: Path,
        out: Path,
        network: dict[str, Any],
        training: dict[str, Any],
        *,
        kill_at: int = 0,
    ) -> tuple[int, int]:
        """Runs `adapt` once.

        Args:
            images: folder of class folders.
            out: the weights.
            network: of `Settings`.
            training: of `AdaptSettings`.
            kill_at: SIGKILL before this call, counted from 1; 0 is never.

        Returns:
            exit status (negative: the signal), and the calls made (0 if killed).
        """
        command = [str(images), str(out), network, training, kill_at]
        print(json.dumps(command), file=self._process.stdin, flush=True)
        status, calls = json.loads(cast("IO[str]", self._process.stdout).readline())
        return status, calls


class _Counter:
    """Counts calls that change files, and kills its process before one of them."""

    def __init__(self, kill_at: int) -> None:
        self.calls = 0
        self._kill_at = kill_at
        for name in _COUNTED:
            setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call


def _child(command: list[Any], calls: int) -> int:
    from vggfeat.core.settings import Settings
    from vggfeat.finetuning.adapt import adapt
    from vggfeat.finetuning.settings import AdaptSettings

    images, out, network, training, kill_at = command
    counter = _Counter(kill_at)
    adapt(images, out, AdaptSettings(Settings(**network), **training))
    os.write(calls, str(counter.calls).encode())
    return 0


def _serve() -> None:
    for module in _WARM:
        importlib.import_module(module)  # the seconds that every child is spared
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os._exit(_child(json.loads(line), writing))
        os.close(writing)
        _, status = os.waitpid(child, 0)
        made = int(os.read(reading, 100) or 0)
        os.close(reading)
        sys.stdout.write(json.dumps([os.waitstatus_to_exitcode(status), made]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
