from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import pytest
from exposition import figures

from vggfeat.storage.locks import hold

ODD = b'a, "b"\n\xff.png'
SETTINGS = [
    "--layers", "conv1_1", "--model", "vgg11", "--weights", "random:0", "--size", "32",
    "--precision", "float32", "--device", "cpu", "--workers", "0", "--batch-size", "2",
]  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images, and one file with an awkward name that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for row in range(3):
        picture = noise.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        PIL.Image.fromarray(picture).save(folder / f"{row}.png")
    Path(os.fsdecode(os.path.join(os.fsencode(folder), ODD))).write_bytes(b"no picture")
    return folder


def words(images: Path, *more: str) -> list[str]:
    out = str(images.parent / "feats.h5")
    return [sys.executable, "-m", "vggfeat", "extract", str(images), "--out", out, *SETTINGS, *more]


def run(images: Path, *more: str, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words(images, *more),
        capture_output=True, text=True, check=False, timeout=600, cwd=images.parent, umask=umask,
    )  # fmt: skip


def test_all_three_files(images: Path) -> None:
    """Failures, figures and log tell of a finished run, and nothing else is left behind."""
    done = run(
        images, "--failures", "f.csv", "--metrics-file", "m.prom", "--log-file", "l.jsonl", "-q"
    )
    assert done.returncode == 0, done.stderr
    folder = images.parent
    with open(folder / "f.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["path", "reason"],
            ['a, "b"\n\\xff.png', "not an image Pillow can read"],
        ]
    found = figures(folder / "m.prom")
    label = f'out="{folder}/feats.h5"'
    assert found["vggfeat_images", f'{label},state="done"'] == 3
    assert found["vggfeat_images", f'{label},state="failed"'] == 1
    assert found["vggfeat_last_exit_code", label] == 0
    assert found["vggfeat_run_in_progress", label] == 0
    assert found["vggfeat_stage_seconds", f'{label},stage="network"'] > 0
    lines = [json.loads(line) for line in (folder / "l.jsonl").read_text().splitlines()]
    assert "begins" in lines[0]["message"]
    assert any("RANDOM WEIGHTS" in line["message"] for line in lines)  # though it was quiet
    assert (lines[-1]["exit_code"], lines[-1]["done"], lines[-1]["failed"]) == (0, 3, 1)
    left = {path.name for path in folder.iterdir()}
    assert left == {"images", "feats.h5", "f.csv", "m.prom", "l.jsonl"}


def test_a_run_that_fails(images: Path) -> None:
    """The exit code of a run that ends in an error is in figures and log, which goes on."""
    assert run(images, "--log-file", "l.txt", "--metrics-file", "m.prom").returncode == 0
    ended = run(images, "--log-file", "l.txt", "--metrics-file", "m.prom", "--max-failures", "0")
    assert ended.returncode == 4
    found = figures(images.parent / "m.prom")
    assert [value for (name, _), value in found.items() if name == "vggfeat_last_exit_code"] == [4]
    lines = (images.parent / "l.txt").read_text().splitlines()
    assert len([line for line in lines if "vggfeat ends" in line]) == 2
    assert any(" ERROR " in line and "1 of 4 images failed" in line for line in lines)
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ [A-Z]+ \[\d+\] ", line) for line in lines)


def test_no_place_for_the_log(images: Path) -> None:
    """A log file that cannot be opened ends the run before it begins."""
    ended = run(images, "--log-file", "nowhere/l.txt")
    assert ended.returncode == 2
    assert "cannot be opened: No such file or directory" in ended.stderr
    assert not (images.parent / "feats.h5").exists()


@pytest.mark.parametrize("option", ["--failures", "--metrics-file"])
def test_no_folder_for_a_report(images: Path, option: str) -> None:
    """A folder that is not there is found before the run, not after it."""
    ended = run(images, option, "nowhere/file")
    assert ended.returncode == 2
    assert "'nowhere/file': its folder" in ended.stderr
    assert not (images.parent / "feats.h5").exists()


@pytest.mark.parametrize("option", ["--failures", "--metrics-file"])
def test_only_a_regular_file_is_replaced(images: Path, option: str) -> None:
    """A device or FIFO of that name is refused, where a rename over it would destroy it."""
    os.mkfifo(images.parent / "fifo")
    ended = run(images, option, "fifo")
    assert ended.returncode == 2
    assert "'fifo' is a device, pipe or socket, expected a regular file" in ended.stderr
    assert (images.parent / "fifo").is_fifo()


def test_a_report_that_cannot_be_written(images: Path) -> None:
    """Figures that cannot be written are a warning, failures an error once all is done."""
    name = "n" * 250  # its temporary's would be longer than any file system takes
    done = run(images, "--metrics-file", name)
    assert done.returncode == 0
    assert f"warning: '{name}' cannot be written: File name too long" in done.stderr
    ended = run(images, "--failures", name, "--log-file", "l.jsonl")
    assert ended.returncode == 6
    assert f"'{name}' cannot be written: File name too long" in ended.stderr
    last = json.loads((images.parent / "l.jsonl").read_text().splitlines()[-1])
    assert (last["exit_code"], last["done"]) == (6, 3)
    assert run(images, "--failures", name, "--max-failures", "0").returncode == 4
    assert not list(images.parent.glob("nnn*"))


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full")
def test_a_log_on_a_full_disk(images: Path) -> None:
    """Log lines that find no room are told once, and cost nothing else."""
    done = run(images, "--log-file", "/dev/full", "--quiet")
    assert done.returncode == 0, done.stderr
    line = "vggfeat: warning: log file '/dev/full': No space left on device; lines are lost"
    assert done.stderr.splitlines() == [line]
    with h5py.File(images.parent / "feats.h5") as file:
        assert (file["images/state"][()] == 1).sum() == 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_while_images_are_listed(images: Path, number: signal.Signals, code: int) -> None:
    """Where no loop runs yet a signal ends the run at once, and the reports say so."""
    os.mkfifo(images.parent / "list")
    options = ["--metrics-file", "m.prom", "--log-file", "l.jsonl", "--quiet"]
    command = words(images, *options)
    command[command.index(str(images))] = "@list"
    before = signal.signal(number, signal.SIG_DFL)  # under nohup the tests themselves ignore it
    with subprocess.Popen(
        command, cwd=images.parent, stderr=subprocess.PIPE, text=True
    ) as process, open(images.parent / "list", "wb"):  # fmt: skip
        signal.signal(number, before)
        # It has opened the list by now, and waits for what is in it, or is just about to: then it
        # learns of the signal only with the next one.
        errors = ""
        while process.poll() is None:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                _, errors = process.communicate(timeout=5)
    assert process.returncode == code
    assert errors == "vggfeat: stopped at once; rows up to the last checkpoint are kept\n"
    found = figures(images.parent / "m.prom")
    assert [value for (name, _), value in found.items() if name == "vggfeat_last_exit_code"] == [
        code
    ]
    last = json.loads((images.parent / "l.jsonl").read_text().splitlines()[-1])
    assert last["exit_code"] == code


def test_an_ignored_hangup_stays_ignored(images: Path) -> None:
    """Under nohup a run outlives its terminal."""
    for row in range(3, 300):
        (images / f"{row}.png").write_bytes((images / "0.png").read_bytes())
    command = ["nohup", *words(images, "--batch-size", "1", "--quiet")]
    with subprocess.Popen(command, cwd=images.parent, stdin=subprocess.DEVNULL) as process:
        while not (images.parent / "feats.h5").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGHUP)
    assert process.returncode == 0
    with h5py.File(images.parent / "feats.h5") as file:
        assert (file["images/state"][()] == 1).sum() == 300


def test_a_run_that_must_wait_leaves_the_reports_alone(images: Path) -> None:
    """Exit code 75 is no figure of the run at work, whose files they are."""
    (images.parent / "m.prom").write_text("of the run at work")
    (images.parent / "f.csv").write_text("likewise")
    options = ("--metrics-file", "m.prom", "--failures", "f.csv", "--log-file", "l.jsonl")
    with hold(str(images.parent / "feats.h5")):
        assert run(images, *options).returncode == 75
    assert (images.parent / "m.prom").read_text() == "of the run at work"
    assert (images.parent / "f.csv").read_text() == "likewise"
    last = json.loads((images.parent / "l.jsonl").read_text().splitlines()[-1])
    assert last["exit_code"] == 75


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_permissions_are_the_umasks(images: Path, umask: int, mode: int) -> None:
    """Every file that a run makes has the permissions the umask leaves."""
    names = ("f.csv", "m.prom", "l.txt")
    options = ("--failures", "f.csv", "--metrics-file", "m.prom", "--log-file", "l.txt")
    assert run(images, *options, umask=umask).returncode == 0
    for name in (*names, "feats.h5"):
        assert (images.parent / name).stat().st_mode & 0o777 == mode, name


def test_an_interrupted_run_tells_as_well(images: Path) -> None:
    """SIGTERM in the middle leaves figures, log and failures that say so."""
    for row in range(3, 600):
        (images / f"{row}.png").write_bytes((images / "0.png").read_bytes())
    options = ("--metrics-file", "m.prom", "--failures", "f.csv", "--checkpoint-seconds", "0")
    with subprocess.Popen(
        [*words(images, *options), "--log-file", "l.jsonl", "--batch-size", "1", "--quiet"],
        cwd=images.parent,
    ) as process:
        while not (images.parent / "feats.h5").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 143
    found = figures(images.parent / "m.prom")
    assert 143 in [value for (name, _), value in found.items() if name == "vggfeat_last_exit_code"]
    assert (images.parent / "f.csv").read_text().startswith("path,reason")
    last = json.loads((images.parent / "l.jsonl").read_text().splitlines()[-1])
    assert (last["exit_code"], last["stopped"]) == (143, "SIGTERM")
    assert last["pending"] > 0
