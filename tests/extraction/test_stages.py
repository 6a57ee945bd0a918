"""The seconds of a run's stages, by which a user sees what limited it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from command_line import write_images

import vggfeat

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

SETTINGS = vggfeat.Settings(
    layers="conv1_1", model="vgg11", weights="random:0", size=32, device="cpu", workers=1
)


def test_a_slow_disk_shows_where_the_file_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preparing lasts until the first batch: making the file and planning a resumption count."""
    folder, out = write_images(tmp_path / "images", 3), tmp_path / "feats.h5"
    sync = os.fsync

    def slow(handle: int) -> None:
        time.sleep(0.3)
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", slow)
        made = vggfeat.extract(folder, out, SETTINGS)
    assert made.stages.prepare >= 0.3
    again = vggfeat.extract(folder, out, SETTINGS)
    assert again.stages.prepare > 0
    assert (again.stages.wait, again.stages.network, again.stages.write) == (0, 0, 0)


def test_stages_of_the_callers_time_are_part_of_the_whole(tmp_path: Path) -> None:
    """They follow one another, so together they are no more than the run; none is negative."""
    folder = write_images(tmp_path / "images", 9)
    for crop in ("center", "none"):
        settings = vggfeat.Settings(**{**SETTINGS.as_dict(), "crop": crop, "batch_size": 4})
        summary = vggfeat.extract(folder, tmp_path / f"{crop}.h5", settings)
        one = summary.stages
        stages = [one.discover, one.prepare, one.wait, one.collate, one.network, one.write]
        assert min(stages) > 0
        assert sum(stages) <= summary.seconds
