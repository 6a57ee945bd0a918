"""`--decode auto`: an existing cache decides, then the device."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from PIL import Image

import vggfeat
from vggfeat.extraction.metadata import choose_decoding

if TYPE_CHECKING:
    from pathlib import Path


def settings(**more: object) -> vggfeat.Settings:
    return vggfeat.Settings(
        **{  # type: ignore[arg-type] # of every type
            "layers": "conv1_1",
            "model": "vgg11",
            "weights": "random:0",
            "device": "cpu",
            "size": 32,
            "workers": 0,
            "batch_size": 2,
            "precision": "float32",
            **more,
        }
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "b", "c"):
        pixels = rng.integers(0, 256, (90, 120, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.jpg", quality=70)
    return folder


def test_the_device_decides_for_a_new_cache() -> None:
    """Only what torchvision's way can make is decoded so on CUDA."""
    assert choose_decoding(settings(), {"cpu"}).decode == "exact"
    assert choose_decoding(settings(), {"cuda"}).decode == "torchvision"
    assert choose_decoding(settings(depth=16), {"cuda"}).decode == "exact"
    assert choose_decoding(settings(augment="mirror"), {"cuda"}).decode == "exact"


def test_a_new_cache_on_a_cpu_is_what_it_was_before(photos: Path, tmp_path: Path) -> None:
    vggfeat.extract(photos, tmp_path / "auto.h5", settings())
    vggfeat.extract(photos, tmp_path / "exact.h5", settings(decode="exact"))
    with h5py.File(tmp_path / "auto.h5") as auto, h5py.File(tmp_path / "exact.h5") as exact:
        assert auto.attrs["fingerprint"] == exact.attrs["fingerprint"]
        assert json.loads(auto.attrs["config"]) == json.loads(exact.attrs["config"])
        np.testing.assert_array_equal(auto["features/conv1_1"], exact["features/conv1_1"])


@pytest.mark.parametrize("out", ["f.h5", "f/"])
def test_an_existing_cache_decides(photos: Path, tmp_path: Path, out: str) -> None:
    """Images that come later are decoded as those before; another way by name is refused."""
    later = photos / "c.jpg"
    aside = shutil.move(later, tmp_path / "c.jpg")
    sharding = vggfeat.Sharding(shards=1) if out.endswith("/") else None
    place = f"{tmp_path}/{out}"
    vggfeat.extract(photos, place, settings(decode="torchvision"), sharding=sharding)
    shutil.move(aside, later)
    with pytest.raises(vggfeat.CacheMismatchError, match=r"decode.*torchvision"):
        vggfeat.extract(photos, place, settings(decode="pillow"), update=True)
    summary = vggfeat.extract(photos, place, settings(), update=True)
    assert summary.done == 3
    vggfeat.extract(photos, tmp_path / "whole.h5", settings(decode="torchvision"))
    vggfeat.extract(photos, tmp_path / "pillow.h5", settings())
    with vggfeat.open(place) as found, vggfeat.open(tmp_path / "whole.h5") as whole:
        row = found.row("c.jpg")
        expected = whole["conv1_1"][whole.row("c.jpg")]
        np.testing.assert_array_equal(found["conv1_1"][row], expected)
        with vggfeat.open(tmp_path / "pillow.h5") as other:
            assert not np.array_equal(other["conv1_1"][other.row("c.jpg")], expected)
