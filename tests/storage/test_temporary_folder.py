"""Temporary folders that a signal does not leave behind."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from vggfeat.storage.temporary_folder import temporary_folder

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_is_left_by_an_interrupt_in_the_instant_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ctrl-C right after the folder is there removes it, as the end does with all in it."""
    made = os.mkdir

    def interrupted(*given: object, **named: object) -> None:
        made(*given, **named)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt), temporary_folder("x-", str(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    with temporary_folder("x-", str(tmp_path)) as folder:
        os.mkdir(os.path.join(folder, "below"))
    assert list(tmp_path.iterdir()) == []
