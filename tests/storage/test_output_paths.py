"""Places where no output can be, asked before anything is made."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from vggfeat.errors import UsageError
from vggfeat.storage.paths import check_place

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_file").symlink_to("file")
    (tmp_path / "to_new").symlink_to("folder/new")
    (tmp_path / "to_nowhere").symlink_to("gone/new")
    (tmp_path / "circle").symlink_to("circle")
    return tmp_path


@pytest.mark.parametrize("name", ["file", "new", "folder", "to_file", "to_new", "folder/-"])
def test_places_for_outputs(place: Path, name: str) -> None:
    """Files that are there, new names, folders and links to any of them pass; nothing is made."""
    before = sorted(os.walk(place))
    check_place(name)
    assert sorted(os.walk(place)) == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("-", r"model '-' is not standard output here.*; name a file$"),
        ("pipe", r"model 'pipe' is a device, pipe or socket, expected a regular file or a new"),
        ("/dev/full", r"model '/dev/full' is a device, pipe or socket, expected a regular file"),
        ("circle", r"model 'circle' is not a file name: Too many levels of symbolic links"),
        ("x" * 300, r"is not a file name: File name too long"),
        ("gone/x", r"model 'gone/x': its folder '.*/gone' does not exist; create it first$"),
        ("file/x", r"model 'file/x': its folder '.*/file' does not exist; create it first$"),
        ("to_nowhere", r"'to_nowhere' is a link to '.*/gone/new': its folder '.*/gone' does not"),
    ],
)
def test_no_places_for_outputs(place: Path, name: str, said: str) -> None:
    """One line says what is wrong with the place, and what to do."""
    before = sorted(os.walk(place))
    with pytest.raises(UsageError, match=said) as caught:
        check_place(name, "model")
    assert "\n" not in str(caught.value)
    assert sorted(os.walk(place)) == before
