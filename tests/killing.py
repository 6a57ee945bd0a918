"""Real runs in real processes that are killed at chosen instants, and the log of what they wrote.

`KillServer` is a process that has imported all that a run needs, computes nothing itself, and forks
a child for every run. In the child the calls that change the file (`pwrite`, `fsync`, `fdatasync`,
`replace`, `link`) are counted, so that it can end itself with SIGKILL right before any of them, or
halfway through a write. Run this file to kill more often than the tests do:
`python tests/killing.py 500`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import h5py
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

ROWS = 22
LAYERS = "conv1_1:max,conv2_1"
SETTINGS: dict[str, Any] = {
    "layers": LAYERS,
    "model": "vgg11",
    "weights": "random:0",
    "size": 32,
    "batch_size": 4,
    "workers": 0,
    "device": "cpu",
    "precision": "float32",
    "checkpoint_seconds": 0,
}


def make_images(folder: Path) -> Path:
    """Small distinct images, one of them broken."""
    images = folder / "images"
    images.mkdir()
    noise = np.random.default_rng(0)
    for number in range(ROWS - 1):
        pixels = noise.integers(0, 256, (40, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number:03}.png")
    (images / "005b.jpg").write_bytes(b"no image")
    return images


class KillServer:
    """Starts runs of `extract` in forked children of one warm process."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # by which `orphans` knows its descendants
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # tiny maps; threads only get in the way
        )
        return self

    def __exit__(self, *_: object) -> None:
        cast("IO[str]", self._process.stdin).close()
        cast("IO[str]", self._process.stdout).close()
        self._process.wait()

    def orphans(self) -> list[int]:
        """Processes of killed runs that are still about."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.getsid(int(name)) == self._process.pid != int(name):
                    found.append(int(name))
        return found

    def run(
        self,
        images: Path,
        out: Path,
        *,
        kill_at: int = 0,
        torn: bool = False,
        kill_after: float = 0.0,
        log: Path | None = None,
        options: dict[str, bool] | None = None,
        sharding: dict[str, Any] | None = None,
        fresh: bool = False,
        **settings: Any,
    ) -> tuple[int, int]:
        """Runs `extract` once.

        Args:
            images: folder of images.
            out: the cache.
            kill_at: SIGKILL before this call, counted from 1; 0 is never.
            torn: half of that call's bytes, if it is a write, still get through.
            kill_after: SIGKILL after so many seconds; 0 is never.
            log: file that receives every call and its bytes.
            options: of `UpdatePolicy`.
            sharding: of `Sharding`.
            fresh: begin again.
            **settings: over `SETTINGS`.

        Returns:
            exit status (negative: the signal), and the calls made (0 if killed).
        """
        command = {
            "images": str(images),
            "out": str(out),
            "kill_at": kill_at,
            "torn": torn,
            "kill_after": kill_after,
            "log": str(log) if log else None,
            "options": options or {},
            "sharding": sharding or {},
            "fresh": fresh,
            "settings": {**SETTINGS, **settings},
        }
        print(json.dumps(command), file=self._process.stdin, flush=True)
        status, calls = json.loads(cast("IO[str]", self._process.stdout).readline())
        return status, calls


class _Tracer:
    """Stands between Python and the file system calls that change a cache."""

    def __init__(self, kill_at: int, log: str | None, *, torn: bool) -> None:
        self.calls = 0
        self.log: list[tuple[str, str, int, bytes]] = []
        self._kill_at, self._torn, self._logging = kill_at, torn, log is not None
        self._counting = threading.Lock()  # one thread writes rows, another one syncs them

    def install(self) -> None:
        for name in ("pwrite", "fsync", "fdatasync", "replace", "copy_file_range", "link"):
            setattr(os, name, self._traced(name, getattr(os, name)))

    def _traced(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if not self._is_ours(name, arguments):
                return real(*arguments)
            with self._counting:
                self.calls += 1
                if self.calls == self._kill_at:
                    if self._torn and name == "pwrite":
                        handle, data, offset = arguments
                        real(handle, data[: len(data) // 2], offset)
                    os.kill(os.getpid(), signal.SIGKILL)
                if self._logging:
                    self._note(name, arguments)
            result = real(*arguments)
            if self._logging and name == "fdatasync":
                self.log.append(("synced", "", 0, b""))
            return result

        return call

    @staticmethod
    def _is_ours(name: str, arguments: tuple[Any, ...]) -> bool:
        """Calls on a cache, and not on the lock file or the memory of digests."""
        if name in ("replace", "link"):
            return str(arguments[1]).endswith((".h5", "manifest.json", ".fresh"))
        handle = arguments[1] if name == "copy_file_range" else arguments[0]
        target = os.readlink(f"/proc/self/fd/{handle}")
        ours = target.endswith((".h5", ".h5.vggfeat.tmp")) or "manifest.json." in target
        return (ours and not target.endswith(".lock")) or os.path.isdir(target)

    def _note(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "replace":
            self.log.append((name, arguments[1], 0, b""))
            return
        target = os.readlink(f"/proc/self/fd/{arguments[0]}")
        if name == "pwrite":
            self.log.append((name, target, arguments[2], bytes(arguments[1])))
        elif name == "fsync" and target.endswith(".tmp"):
            self.log.append((name, target, 0, Path(target).read_bytes()))
        else:
            self.log.append((name, target, 0, b""))


def _child(command: dict[str, Any]) -> int:
    from vggfeat.cache.sharding import Sharding
    from vggfeat.core.settings import Settings
    from vggfeat.errors import VggfeatError
    from vggfeat.extraction.api import extract
    from vggfeat.extraction.update import UpdatePolicy

    tracer = _Tracer(command["kill_at"], command["log"], torn=command["torn"])
    tracer.install()
    if command["kill_after"]:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, command["kill_after"])
    try:
        settings = Settings(**command["settings"])
        policy, sharding = UpdatePolicy(**command["options"]), Sharding(**command["sharding"])
        extract(
            command["images"], command["out"], settings, fresh=command["fresh"], policy=policy,
            sharding=sharding,
        )  # fmt: skip
    except VggfeatError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    if command["log"]:
        Path(command["log"]).write_bytes(pickle.dumps(tracer.log))
    Path(command["out"] + ".calls").write_text(str(tracer.calls))
    return 0


def _serve() -> None:
    # These imports are the seconds that every child is spared.
    for module in ("vggfeat.extraction.api", "vggfeat.images.loader", "vggfeat.network.extractor"):
        importlib.import_module(module)
    Image.init()
    for line in sys.stdin:
        command = json.loads(line)
        calls = Path(command["out"] + ".calls")
        calls.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            os._exit(_child(command))
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        made = int(calls.read_text() or 0) if calls.exists() else 0  # it may be killed writing it
        calls.unlink(missing_ok=True)
        sys.stdout.write(json.dumps([code, made]) + "\n")
        sys.stdout.flush()


def contents(path: Path) -> dict[str, bytes]:
    """All that two runs must agree in, as plain h5py reads it."""
    with h5py.File(path, "r", locking=False) as file:
        names = [
            f"images/{field}" for field in ("path", "size", "digest", "state", "checksum", "error")
        ]
        names += [f"features/{spec}" for spec in file["features"]]
        return {name: file[name][()].tobytes() for name in names}


def check_done_rows(path: Path, reference: Path) -> int:
    """Requires every row that is reported done to be whole; returns how many are."""
    with h5py.File(path, "r", locking=False) as had, h5py.File(reference, "r") as right:
        done = np.flatnonzero(had["images/state"][()] == 1)
        for spec in right["features"]:
            found = had[f"features/{spec}"][()][done]
            expected = right[f"features/{spec}"][()][done]
            assert found.tobytes() == expected.tobytes(), f"done rows of {spec} are not whole"
        sums = had["images/checksum"][()][done]
        assert (sums == right["images/checksum"][()][done]).all()
        return len(done)


def kill_and_go_on(
    server: KillServer, images: Path, out: Path, reference: Path, **how: Any
) -> bool:
    """One run that is killed, its file examined, and the same run again to the end.

    Returns:
        whether the kill came before the run was over.
    """
    status, _ = server.run(images, out, **how)
    assert status in (0, -signal.SIGKILL)
    if out.exists():
        check_done_rows(out, reference)
    again, _ = server.run(images, out, **{k: v for k, v in how.items() if k in SETTINGS})
    assert again == 0
    assert contents(out) == contents(reference), "resumed and uninterrupted run differ"
    left = {path.name for path in out.parent.iterdir() if path.name.startswith(out.name)}
    assert left == {out.name}, f"the killed run left {left}"
    out.unlink()
    return status != 0


def _kill_many(kills: int) -> None:
    chance = random.Random(0)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name, KillServer() as server:
        folder = Path(name)
        images = make_images(folder)
        reference = folder / "reference.h5"
        _, calls = server.run(images, reference)
        done = 0
        while done < kills:
            how: dict[str, Any] = {"kill_after": chance.uniform(0.001, 0.3)}
            if done % 2:
                how = {"kill_at": chance.randint(1, calls), "torn": chance.random() < 0.5}
            how["workers"] = chance.choice((0, 0, 0, 1))
            done += kill_and_go_on(server, images, folder / "killed.h5", reference, **how)
    seconds = time.monotonic() - started
    sys.stdout.write(f"{done} kills, each resumed to the same bytes, {seconds:.0f} s\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        _serve()
    else:
        _kill_many(int(sys.argv[1]))
