"""A cache that was begun on a device that there is no more, or never was here."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from command_line import vggfeat as run
from command_line import write_images

import vggfeat
from vggfeat.cache.writer import create_cache
from vggfeat.extraction.metadata import describe_cache
from vggfeat.images.sources import discover

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("device", ["mps", "cuda:7", "tpu"])
def test_a_device_on_record_binds_nobody(device: str, tmp_path: Path) -> None:
    """Its name is kept and shown; resuming, updating and searching compute on what there is."""
    folder, out = write_images(tmp_path / "images", 3), tmp_path / "feats.h5"
    settings = vggfeat.Settings(
        layers="conv1_1", model="vgg11", weights="random:0", size=32, device="cpu", workers=0,
        precision="float32",
    )  # fmt: skip
    images = discover([folder])
    metadata = describe_cache(settings, images)
    config = {**metadata.provenance.config, "device": device}
    provenance = dataclasses.replace(metadata.provenance, config=config)
    create_cache(str(out), images, dataclasses.replace(metadata, provenance=provenance))
    assert vggfeat.extract(folder, out, settings).new_done == 3
    (folder / "00.png").rename(folder / "03.png")
    updated = vggfeat.extract(folder, out, settings, update=True)
    assert (updated.new_done, updated.added) == (1, 1)
    found = vggfeat.search(out, [folder / "01.png"], layers=["conv1_1"], device="cpu")
    assert found.answers[0].hits[0].is_self
    if device == "mps":
        assert run("inspect", out, cwd=tmp_path).returncode == 0
        assert f'"device": "{device}"' in run("inspect", out, "--json", cwd=tmp_path).stdout
    fresh = tmp_path / "fresh.h5"
    vggfeat.extract(folder, fresh, settings)
    with h5py.File(out) as one, h5py.File(fresh) as other:
        done = one["images/state"][:] == 1
        np.testing.assert_array_equal(
            one["features/conv1_1"][:][done], other["features/conv1_1"][:]
        )
