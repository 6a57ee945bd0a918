"""Batch normalisation folded into convolutions, against torchvision's own networks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torchvision.models import vgg

from vggfeat import Extractor
from vggfeat.core.layer_spec import parse_specs
from vggfeat.core.settings import Settings
from vggfeat.network.vgg import needed_layers, network_of

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = dict[str, Tensor]

CONFIGURATIONS = {"vgg11_bn": "A", "vgg16_bn": "D"}
"""What torchvision calls them."""


def torchvision_convolutions(model: str, variance: tuple[float, float]) -> nn.Sequential:
    """The `features` of torchvision's model, with running statistics of every size."""
    generator = torch.Generator().manual_seed(3)
    layers: nn.Sequential = vgg.make_layers(vgg.cfgs[CONFIGURATIONS[model]], batch_norm=True)
    for module in layers.modules():
        if isinstance(module, nn.Conv2d):
            deviation = math.sqrt(2 / (9 * module.out_channels))
            nn.init.normal_(module.weight, 0, deviation, generator)
            nn.init.normal_(module.bias, 0, 0.1, generator)  # type: ignore[arg-type] # None in the stubs
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator)
            nn.init.normal_(module.bias, 0.1, 0.1, generator)
            nn.init.normal_(module.running_mean, 0, 0.1, generator)  # type: ignore[arg-type] # None in the stubs
            nn.init.uniform_(module.running_var, *variance, generator)  # type: ignore[arg-type] # None in the stubs
    return layers.eval().requires_grad_(requires_grad=False)


def of_torchvision(layers: nn.Sequential, images: Tensor, ends: set[int]) -> dict[int, Tensor]:
    """Outputs of the modules with these indices, in float32."""
    found = {}
    for index, module in enumerate(layers):
        images = nn.functional.relu(images) if isinstance(module, nn.ReLU) else module(images)
        if index in ends:
            found[index] = images
    return found


def state_of(layers: nn.Sequential) -> Tensors:
    return {f"features.{name}": tensor for name, tensor in layers.state_dict().items()}


def noise(count: int, side: int) -> Tensor:
    return torch.randn((count, 3, side, side), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("model", CONFIGURATIONS)
def test_folded_norms_are_torchvisions(model: str) -> None:
    """Before and behind every ReLU, folded convolutions give what torchvision's norms give."""
    theirs = torchvision_convolutions(model, (0.5, 1.5))
    images = noise(2, 32)
    last = {"vgg11_bn": "conv5_2", "vgg16_bn": "conv5_3"}[model]
    layers = needed_layers(parse_specs(last, model), model)
    taken = ",".join(
        f"{layer.name}:map,{layer.name}.pre:map" for layer in layers if layer.kind == "conv"
    )
    specs = parse_specs(taken, model)
    network = network_of(state_of(theirs), layers, specs, fold=True)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    found = network(images)[0]
    nodes = {str(spec): int(spec.layer.node(pre=spec.pre).split(".")[1]) for spec in specs}
    expected = of_torchvision(theirs, images, set(nodes.values()))
    errors = {
        spec: float((found[spec] - expected[node]).abs().max() / expected[node].abs().max())
        for spec, node in nodes.items()
    }
    assert {spec: error for spec, error in errors.items() if not error <= 1e-5} == {}


@pytest.mark.parametrize("variance", [1e5, 1e-6])
def test_float16_holds_any_running_variance(variance: float) -> None:
    """Variances that float16 cannot hold are folded before the cast: finite, and torchvision's."""
    theirs = torchvision_convolutions("vgg11_bn", (variance, 2 * variance))
    first: Any = theirs[0]
    first.weight *= math.sqrt(variance)  # so that the norm has something to bring back to 1
    first.bias *= math.sqrt(variance)
    images = noise(2, 32)
    state = state_of(theirs)
    expected = of_torchvision(theirs, images, {1, 2})
    settings = Settings(
        layers="conv1_1.pre:map,conv1_1:map",
        model="vgg11_bn",
        weights=state,  # type: ignore[arg-type] # text, or tensors in memory
        precision="float16",
        device="cpu",
        size=32,
    )
    extractor = Extractor(settings)
    found = extractor(images)
    assert extractor.redone == 0
    for spec, right in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(found[spec], right, rtol=1e-3, atol=5e-3, msg=spec)
    # The cast alone, as it was: variances become infinite, and what small ones magnify is rounded.
    plain = network_of(state, needed_layers(settings.specs, "vgg11_bn"), settings.specs).half()
    unfolded = plain(images.half())[0]["conv1_1.pre:map"]
    assert not torch.allclose(unfolded, expected[1], rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_on_a_cpu_float32_and_bfloat16_keep_their_bits(precision: Any) -> None:
    """There the norms stay modules of their own: rows of caches that were begun do not change."""
    state = state_of(torchvision_convolutions("vgg11_bn", (0.5, 1.5)))
    settings = Settings(
        layers="conv2_1:map",
        model="vgg11_bn",
        weights=state,  # type: ignore[arg-type] # text, or tensors in memory
        precision=precision,
        device="cpu",
        size=32,
    )
    images = noise(2, 32)
    dtype = getattr(torch, precision)
    plain: Any = network_of(state, needed_layers(settings.specs, "vgg11_bn"), settings.specs)
    plain = plain.to(dtype).to(memory_format=torch.channels_last)
    x = images.contiguous(memory_format=torch.channels_last).to(dtype)
    assert torch.equal(Extractor(settings)(images)["conv2_1:map"], plain(x)[0]["conv2_1:map"])
