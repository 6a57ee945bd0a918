"""What a command says while it works: steps on a terminal, a bar that moves, one rate."""

from __future__ import annotations

import contextlib
import logging
import os
import pty
import re
import sys
from typing import TYPE_CHECKING

import pytest
from command_line import SMALL, write_images

import vggfeat
from vggfeat.cli.terminal import Bar
from vggfeat.core import activity
from vggfeat.core.records import Progress
from vggfeat.core.settings import Settings
from vggfeat.extraction import progress_bar

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = Settings(
    layers="conv2_1", model="vgg11", weights="random:0", size=32, device="cpu", workers=0,
    batch_size=4, precision="float32",
)  # fmt: skip
BAR = re.compile(r"(\d+)/6 images \[\d\d:\d\d(?:, ([\d.]+) images/s)?")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("progress") / "images", 6)


def test_a_bar_moves_within_a_batch_and_ends_with_the_rate_of_the_summary(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It begins before the first batch, stands between batches, and its last rate is the run's."""
    monkeypatch.setattr(progress_bar, "_DRAW_EVERY_SECONDS", 0)
    summary = vggfeat.extract(images, tmp_path / "f.h5", SETTINGS, progress=True)
    drawn = BAR.findall(capsys.readouterr().err)
    counts = [int(count) for count, _ in drawn]
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 4, 5, 6}  # batches of 4 with three layers
    assert drawn[-1] == ("6", f"{summary.images_per_second:.1f}")


def test_steps_are_told_to_who_watches(images: Path, tmp_path: Path) -> None:
    """Listing with its count, then weights; layers of a batch one after the other."""
    steps: list[str] = []
    layers: list[float] = []

    class Watcher(activity.Watcher):
        def begins(self, what: str) -> None:
            steps.append(what)

        def computed(self, images: float) -> None:
            layers.append(images)

    with activity.watched_by(Watcher()):
        vggfeat.extract(images, tmp_path / "f.h5", SETTINGS)
    assert steps == ["listing images", "listing images: 6", "loading weights"]
    assert layers[:3] == pytest.approx([4 / 3, 8 / 3, 4])  # conv1_1, pool1, conv2_1
    vggfeat.extract(images, tmp_path / "g.h5", SETTINGS)
    assert len(steps) == 3  # nobody watches any more


def test_a_bar_elsewhere_than_on_a_terminal_is_a_line_now_and_then(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A log of cron has no bar and no steps; every half minute it has a line with the rate."""
    caplog.set_level("INFO", "vggfeat")
    monkeypatch.setattr(logging.getLogger("vggfeat"), "handlers", [])  # of commands tried before
    with Bar(quiet=False, unit="rows") as bar:
        activity.begins("loading weights")
        bar.update(Progress(10, 0, 100, 5.0))
        monkeypatch.setattr("vggfeat.cli.terminal._LINE_EVERY_SECONDS", 0)
        bar.update(Progress(20, 1, 101, 4.0))
    assert capsys.readouterr().err == ""
    assert caplog.messages == ["21 of 101 rows, 1 failed, 4.0 rows/s, 20.0 s to go"]


def on_terminal(words: list[str], folder: Path, **environment: str) -> tuple[int, int]:
    """Start a command on a terminal of its own; return its process and what it is read from."""
    child, terminal = pty.fork()
    if not child:
        with contextlib.suppress(OSError):
            os.chdir(folder)
            os.execve(
                sys.executable, [sys.executable, "-m", "vggfeat", *words],
                {**os.environ, "TERM": "xterm", **environment},
            )  # fmt: skip
        os._exit(99)
    return child, terminal


def read_until(terminal: int, wanted: bytes) -> bytes:
    """Read from a terminal until something is on it, or all that wrote to it have ended."""
    seen = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while wanted not in seen and (more := os.read(terminal, 4096)):
            seen += more
    return seen


COMMANDS = {
    "extract": ["images", *SMALL, "--out", "new.h5"],
    "search": ["feats.h5", "images/00.png"],
    "adapt": ["classes", "--model", "vgg11", "--weights", "random:0", "--out", "w.safetensors"],
    "doctor": [],
}


def test_what_a_command_does_is_said_before_torch_is_loaded(images: Path, tmp_path: Path) -> None:
    """With a torch whose import never ends, a terminal still says that it is being loaded."""
    library = tmp_path / "library" / "torch"
    library.mkdir(parents=True)
    os.mkfifo(library / "nobody")
    (library / "__init__.py").write_text(f"open({str(library / 'nobody')!r})\n")
    vggfeat.extract(images, tmp_path / "feats.h5", SETTINGS)
    (tmp_path / "images").symlink_to(images)
    for name in ("a", "b"):
        write_images(tmp_path / "classes" / name, 4)
    started = {
        command: on_terminal([command, *words], tmp_path, PYTHONPATH=str(library.parent))
        for command, words in COMMANDS.items()
    }
    said = {}
    for command, (child, terminal) in started.items():
        said[command] = read_until(terminal, b"loading torch")
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)
    for command, text in said.items():
        assert b"vggfeat: loading torch" in text, (command, text)
        assert text.startswith(f"vggfeat: starting {command}".encode())


def test_a_step_gives_way_to_what_is_written(images: Path, tmp_path: Path) -> None:
    """Nothing of a step is left on the screen: it is erased before any other text."""
    words = ["extract", str(images), *SMALL, "--out", "f.h5"]
    child, terminal = on_terminal(words, tmp_path)
    text = read_until(terminal, b"never").decode()
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "vggfeat: loading weights\r\x1b[K" in text
    for step in re.findall(r"vggfeat: (?:starting|listing|loading)[^\r\x1b]*(.{4})", text):
        assert step == "\r\x1b[K"
    assert "f.h5: 6 images, 6 done, 0 failed\r\n" in text
