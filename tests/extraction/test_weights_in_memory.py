"""Weights in memory: recorded by a digest of their tensors, compared when a run is resumed."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import vgg11

import vggfeat
from vggfeat.errors import CacheMismatchError, WeightsError

if TYPE_CHECKING:
    from pathlib import Path

    Tensors = dict[str, torch.Tensor]


def settings(**more: Any) -> vggfeat.Settings:
    small = {"layers": "conv2_1", "model": "vgg11", "size": 32, "device": "cpu", "workers": 0}
    return vggfeat.Settings(**{**small, "precision": "float32", "dtype": "float32", **more})


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """torchvision's own, its first convolutions alone."""
    torch.manual_seed(0)
    return vgg11(weights=None, init_weights=False).features[:5]  # type: ignore[no-any-return] # torchvision has no types


@pytest.fixture(scope="module")
def state(network: torch.nn.Module) -> Tensors:
    return {f"features.{name}": tensor for name, tensor in network.state_dict().items()}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_features_are_those_of_the_network(network: torch.nn.Module, state: Tensors) -> None:
    """A state dict, one with another library's prefix, and a module compute as torch does."""
    normalised = torch.randn(2, 3, 32, 32)
    expected = network(normalised).mean((2, 3)).detach()
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    module = torch.nn.Module()
    module.features = network
    for weights in (state, prefixed, module):
        extractor = vggfeat.Extractor(settings(weights=weights))
        found = extractor(normalised, normalized=True)["conv2_1"]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_run_is_resumed_with_equal_tensors_only(
    state: Tensors, images: Path, tmp_path: Path
) -> None:
    """The file records their digest; equal tensors resume; others, and a name, do not."""
    out = tmp_path / "f.h5"
    vggfeat.extract(images / "0.png", out, settings(weights=state), root=str(images))
    cache = vggfeat.open(out)
    name = cache.header.identity.weights
    assert name.startswith("memory:")
    assert cache.header.identity.weights_sha256.startswith(name.removeprefix("memory:"))
    assert cache.header.provenance.config["weights"] == name
    policy = vggfeat.UpdatePolicy(update=True)
    equal = {key: tensor.clone() for key, tensor in reversed(state.items())}
    done = vggfeat.extract(images, out, settings(weights=equal), root=str(images), policy=policy)
    assert done.done == 2
    other = {**state, "features.0.bias": state["features.0.bias"] + 1}
    with pytest.raises(CacheMismatchError, match="weights"):
        vggfeat.extract(images, out, settings(weights=other), root=str(images))
    with pytest.raises(WeightsError, match="memory of another program; give their state dict"):
        vggfeat.extract(images, tmp_path / "g.h5", settings(weights=name))


def test_searching_needs_the_tensors(state: Tensors, images: Path, tmp_path: Path) -> None:
    """Without them a search says what to give; a state dict or a file of the same will do."""
    out, file = tmp_path / "f.h5", tmp_path / "weights.pth"
    vggfeat.extract(images, out, settings(weights=state))
    query = images / "1.png"
    with pytest.raises(WeightsError, match=r"give their state dict.*--weights FILE"):
        vggfeat.search(out, query)
    torch.save(state, file)
    for weights in (state, file):
        found = vggfeat.search(out, query, weights=weights, device="cpu")
        assert found.answers[0].hits[0].path == "1.png"
        assert found.answers[0].hits[0].score == pytest.approx(1)
    torch.save({**state, "features.0.bias": state["features.0.bias"] + 1}, file)
    with pytest.raises(CacheMismatchError, match="not those that cache"):
        vggfeat.search(out, query, model_weights=file)


def test_tensors_that_change_are_noticed(state: Tensors) -> None:
    """Training on between the settings and the run is an error; copies and pickles are equal."""
    own = {name: tensor.clone() for name, tensor in state.items()}
    chosen = settings(weights=own)
    assert pickle.loads(pickle.dumps(chosen)) == copy.deepcopy(chosen) == chosen
    own["features.0.weight"][0, 0, 0, 0] += 1
    with pytest.raises(WeightsError, match="changed since the settings were made"):
        vggfeat.Extractor(chosen)


def test_what_does_not_fit_is_refused(state: Tensors) -> None:
    """As for a file, in one line."""
    with pytest.raises(WeightsError, match=r"weights memory:\w+ do not fit vgg11: 2 of 6 tensors"):
        vggfeat.Extractor(settings(weights=state, layers="conv3_1"))
    scaled = {name: tensor * 255 for name, tensor in state.items()}
    assert (
        vggfeat.Extractor(settings(weights=scaled)).weights.name != settings(weights=state).weights
    )
