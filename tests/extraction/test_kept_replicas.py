"""Networks are built once for all shards of a run, which changes nothing else."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

import vggfeat
from vggfeat import Settings
from vggfeat.extraction.kept_replicas import KeptReplicas
from vggfeat.network.multi_device import Replicas
from vggfeat.network.weights import find_weights

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def bright_images(folder: Path, count: int, every: int) -> Path:
    """Grey images, of which each so many-th is white."""
    folder.mkdir()
    for number in range(count):
        value = 255 if number % every == 0 else 121 + number % 4
        Image.new("RGB", (40, 40), (value, value, value)).save(folder / f"{number:02}.png")
    return folder


def settings(**more: Any) -> Settings:
    """Float16, which white images leave in conv1_1, and grey ones do not."""
    noise = torch.Generator().manual_seed(0)
    weights = {
        "features.0.weight": torch.rand((64, 3, 3, 3), generator=noise) * 3000,
        "features.0.bias": torch.zeros(64),
    }
    given: dict[str, Any] = {
        "layers": "conv1_1", "model": "vgg11", "weights": weights, "size": 32, "batch_size": 2,
        "workers": 0, "device": "cpu", "precision": "float16", "dtype": "float32",
    }  # fmt: skip
    return Settings(**{**given, **more})


def test_networks_are_built_once_for_all_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are those of one file, and batches done again are counted once each."""
    images = bright_images(tmp_path / "images", 16, 5)
    one = vggfeat.extract(images, tmp_path / "one.h5", settings())
    assert one.redone == 4
    plan = vggfeat.Sharding(shards=4, plan_only=True)
    vggfeat.extract(images, tmp_path / "f", settings(), sharding=plan)
    built = []
    build = Replicas.__init__

    def counted(self: Replicas, *given: Any) -> None:
        built.append(self)
        build(self, *given)

    monkeypatch.setattr(Replicas, "__init__", counted)
    found = vggfeat.extract(images, tmp_path / "f", settings())
    assert len(built) == 1
    assert (found.done, found.redone) == (16, 4)
    expected = np.asarray(vggfeat.open(tmp_path / "one.h5")["conv1_1"])
    np.testing.assert_array_equal(vggfeat.open(tmp_path / "f")["conv1_1"][:], expected)


def test_other_settings_have_networks_of_their_own() -> None:
    """Equal settings, weights and activations share networks; any that differ do not."""
    kept = KeptReplicas()
    first = settings(precision="float32")
    weights = find_weights(first.weights, first.model)
    made = kept.get(first, weights, None)
    assert kept.get(settings(precision="float32"), weights, {}) is made
    others = [
        (dataclasses.replace(first, size=64), weights, None),
        (first, dataclasses.replace(weights, sha256="0" * 64), None),
        (first, weights, {"conv1_1": 1.0}),
    ]
    for one in others:
        found = kept.get(*one)
        assert found is not made
        assert kept.get(*one) is found
