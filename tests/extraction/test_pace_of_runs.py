"""What a run tells its time limit of its batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from killing import SETTINGS

import vggfeat
from vggfeat.core.signals import Pace

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_the_first_batch_is_a_cold_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch of a run, in which a device loads its libraries, does not count as slow."""
    told = []
    note = Pace.note

    def noted(pace: Pace, seconds: float, *, cold: bool = False) -> None:
        told.append(cold)
        note(pace, seconds, cold=cold)

    monkeypatch.setattr(Pace, "note", noted)
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    settings = vggfeat.Settings(**{**SETTINGS, "layers": "conv1_1:max"})
    vggfeat.extract([pixels] * 10, tmp_path / "f.h5", settings)
    assert told == [True, False, False]
