"""A weight file that is replaced after settings were made of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from vggfeat import Extractor, Settings
from vggfeat.errors import WeightsError

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, size: int) -> None:
    """Write a first convolution that says it was trained with images of this size."""
    layer = torchvision.models.vgg11().features[0]
    tensors = {f"features.0.{name}": value.detach() for name, value in layer.named_parameters()}
    metadata = {"vggfeat.model": "vgg11", "vggfeat.preprocess": json.dumps({"size": size})}
    save_file(tensors, path, metadata)


def test_settings_of_the_file_before_are_refused(tmp_path: Path) -> None:
    """Settings and weights are of the same file; with the same settings another one is taken."""
    path = tmp_path / "w.safetensors"
    with torch.random.fork_rng():
        write(path, 64)
        settings = Settings.for_weights(str(path), layers="conv1_1", device="cpu")
        assert settings.size == 64
        write(path, 64)
        Extractor(settings)
        write(path, 96)
        message = "replaced after the settings were made: size 64 is from the previous file;"
        with pytest.raises(WeightsError, match=message):
            Extractor(settings)
        fresh = Settings.for_weights(str(path), layers="conv1_1", device="cpu")
        Extractor(fresh)
        assert fresh.size == 96
