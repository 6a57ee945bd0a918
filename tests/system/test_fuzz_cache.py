"""Damaged and lying caches end in one line by every command: `scripts/fuzz_cache.py`, bounded."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

from places import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

FUZZER = REPOSITORY / "scripts" / "fuzz_cache.py"
SECONDS = 300


def test_the_fuzzer_finds_nothing_at_first(tmp_path: Path) -> None:
    """Both versions, mutated, opened by fifteen commands and from Python."""
    ended = subprocess.run(
        [sys.executable, str(FUZZER), "--inputs", "16", "--findings", str(tmp_path / "found")],
        cwd=REPOSITORY, capture_output=True, check=False, timeout=SECONDS, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    assert re.search(r"16 inputs, 256 runs, 0 findings", ended.stdout)
    assert " 0\n" in ended.stdout
    assert " 5\n" in ended.stdout


DEFECTS = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
import fuzz_cache as fuzzer
def opened(path):
    number = os.path.getsize(path)
    if number == 1: raise ZeroDivisionError("odd")
    if number == 2: os.kill(os.getpid(), signal.SIGSEGV)
    if number == 3: time.sleep(100)
    if number == 4: raise fuzzer.vggfeat.CacheError("two") from bytearray(2**40)
    if number == 5: raise fuzzer.vggfeat.CacheError("\\x1b[2J")
    raise fuzzer.vggfeat.CacheError("as it should be")
fuzzer.opened, fuzzer.COMMANDS, fuzzer.SECONDS_AN_INPUT = opened, (), 1.0
fuzzer.Fuzzer.input = lambda self, number: (0, bytes(number), "")
sys.exit(fuzzer.main(["--inputs", "7", "--seed", "7", "--findings", sys.argv[2]]))
"""


def test_the_fuzzer_keeps_what_it_finds(tmp_path: Path) -> None:
    """A defect, a signal, a hang, too much memory and more than a line are saved with a reason."""
    ended = subprocess.run(
        [sys.executable, "-c", DEFECTS, str(FUZZER.parent), str(tmp_path / "found")],
        cwd=REPOSITORY, capture_output=True, check=False, timeout=SECONDS, text=True,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    found = {
        path.stem: path.read_text().split("open: ")[1].splitlines()[0]
        for path in (tmp_path / "found").glob("*.txt")
    }
    assert found == {
        "seed7-1": "exit 1: vggfeat: a defect, ZeroDivisionError: odd",
        "seed7-2": "ended with -11",
        "seed7-3": "hangs",
        "seed7-4": "exit 1: vggfeat: a defect, MemoryError: ",
        "seed7-5": "exit 5, 1 lines: vggfeat: \x1b[2J",
    }
    assert {path.stem for path in (tmp_path / "found").glob("*.h5")} == set(found)
