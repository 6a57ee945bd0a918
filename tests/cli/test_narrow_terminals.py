"""Summaries on a terminal of 60 columns: lines break between words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from caches_to_search import cache_of, noise
from pseudo_terminal import COLUMNS, on_terminal
from typer.testing import CliRunner

from vggfeat.cli import app

if TYPE_CHECKING:
    from pathlib import Path


def visible(text: str) -> list[str]:
    """Lines without colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache of long paths, two of its rows failed."""
    folder = tmp_path_factory.mktemp("narrow")
    paths = [b"a-folder/an-image-with-a-long-name-%d.png" % row for row in range(9)]
    layers = {"conv1_1": noise(9, 6), "conv2_1": noise(9, 9, seed=1)}
    cache_of(folder / "f.h5", layers, states=[1] * 7 + [2] * 2, paths=paths)
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["duplicates", "f.h5", "--layers", "conv1_1", "--threshold", "0.1"],
        ["merge", "f.h5", "f.h5", "--out", "m.h5"],
        ["presets"],
    ],
    ids=lambda words: words[0],
)
def test_summaries_break_between_words(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """No line is wider than the terminal, and its words are those that a pipe gets."""
    lines = visible(on_terminal(*words, cwd=workplace))
    (workplace / "m.h5").unlink(missing_ok=True)
    monkeypatch.chdir(workplace)
    piped = CliRunner().invoke(app, words).stdout
    (workplace / "m.h5").unlink(missing_ok=True)
    assert max(map(len, lines)) <= COLUMNS < max(map(len, piped.splitlines()))
    assert " ".join(lines).split() == piped.split()


@pytest.mark.parametrize("words", [["layers"], ["trace", "--model", "vgg11"], ["inspect", "f.h5"]])
def test_tables_leave_out_columns(workplace: Path, words: list[str]) -> None:
    """A row of a table stays one line."""
    lines = visible(on_terminal(*words, cwd=workplace))
    assert max(map(len, lines)) <= COLUMNS
    rows = [line for line in lines if re.match(r"\s*conv\d_\d\s", line)]
    assert len(rows) == {"layers": 16, "trace": 8, "inspect": 2}[words[0]]
    assert len({len(row.split()) for row in rows}) <= 2  # "edges, colours" are two words
