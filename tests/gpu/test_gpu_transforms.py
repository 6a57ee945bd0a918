"""What else computes on the device: codes of fused layers, and learnt weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from accelerator import DEVICE, faint, settings, write_pictures

import vggfeat
from vggfeat.core.fusion_spec import Recipe
from vggfeat.transforms.fusion import Fusion
from vggfeat.transforms.layer_weights import Examples, learn

if TYPE_CHECKING:
    from pathlib import Path


def test_fused_codes_are_those_of_the_cpu(tmp_path: Path) -> None:
    """Fused on the fly and stored as int8, rows are those of the CPU to a step or two."""
    images = write_pictures(tmp_path / "images", list(faint(12, 40)))
    found = []
    for name, device in (("there", DEVICE), ("here", "cpu")):
        given = settings(
            "conv1_1,conv2_1:max", size=32, dtype="int8", fuse="concat", workers=0, device=device
        )
        vggfeat.extract(images, tmp_path / f"{name}.h5", given)
        cache = vggfeat.open(tmp_path / f"{name}.h5")
        found.append(cache.values("concat", np.flatnonzero(cache.done)))
        step = cache.header.scales["concat"].scale
    assert len(found[0]) == 12
    assert (np.abs(found[0] - found[1]) <= 2 * step + 1e-3).all()


@pytest.mark.cuda_only  # as in the tests of `fuse`, which learn on a CPU
def test_learning_finds_the_layer_that_tells_the_groups() -> None:
    """Weights learnt on the device favour the layer that tells the groups."""
    noise = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 8)
    centres = noise.normal(size=(20, 16))
    layers = {
        "good": centres[groups] + 0.8 * noise.normal(size=(160, 16)),
        "bad": noise.normal(size=(160, 24)),
    }
    layers = {name: x / np.linalg.norm(x, axis=1, keepdims=True) for name, x in layers.items()}
    given = Examples({name: x.astype(np.float32) for name, x in layers.items()}, groups)
    widths = {name: x.shape[1] for name, x in layers.items()}
    fusion = Fusion(Recipe("attention", tuple(layers)), widths, "attention")
    learnt = learn(fusion, given, by_group=False, device=DEVICE)
    assert learnt.mean_weights["good"] > 0.75
    assert learnt.after > learnt.before + 0.02
