"""Runs the fused kernel in Triton's interpreter, on a CPU, and prints what it found as JSON.

Its own process, since Triton reads TRITON_INTERPRET when it is imported.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from vggfeat.core.layer_spec import parse_specs
from vggfeat.core.vgg_layers import layer_table
from vggfeat.network.fused_epilogue import Epilogue, same_bits
from vggfeat.network.vgg import TappedVgg, needed_layers, network_of

if TYPE_CHECKING:
    from torch import Tensor

CPU = torch.device("cpu")
SIZES = ((3, 2), (7, 9), (10, 8))
LAYERS = "pool1,conv2_1,conv3_1:map,conv3_2.pre:map,pool3:map,conv4_1:max,conv5_2:map,pool5"


def trial_map(count: int, channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    if dtype == torch.bfloat16:  # the interpreter truncates its sums, so they are exact ones
        x = torch.randint(-32, 32, (count, channels, height, width), generator=generator) / 4
    else:
        x = torch.randn((count, channels, height, width), generator=generator) * 30
    x.view(-1)[::13] = -0.0
    x.view(-1)[5::31] = 1e-7 if dtype == torch.float16 else 0.25
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def bias_of(channels: int, dtype: torch.dtype) -> Tensor:
    bias = (torch.arange(channels) % 23 - 11) / 4
    bias[::3] = -0.0
    return bias.to(dtype)


def by_torch(x: Tensor, bias: Tensor, *, pool: bool) -> tuple[Tensor, list[bool]]:
    """The same by operators, and which images are finite."""
    x = functional.relu(x + bias.view(1, -1, 1, 1))
    x = functional.max_pool2d(x, 2) if pool else x
    return x, torch.isfinite(x).flatten(1).all(1).tolist()


def wrong_shapes() -> list[str]:
    """Cases in which kernel and operators differ, in bits or in what they call finite."""
    wrong = []
    for dtype in (torch.float16, torch.bfloat16):
        epilogue = Epilogue(CPU, dtype, ())
        for height, width in SIZES:
            channels = 128 if height == 7 else 64
            x, bias = trial_map(4, channels, height, width, dtype), bias_of(channels, dtype)
            for image, special in ((1, torch.inf), (2, torch.nan), (3, -torch.inf)):
                x[image, 40, height - 1, width - 1] = special
                x[image, 63, 0, 1] = special if height != 7 else 0
            for pool in (False, True):
                expected, finite = by_torch(x, bias, pool=pool)
                seen = torch.ones(4, dtype=torch.bool)
                found = epilogue(x.clone(), bias, seen, pool=pool)
                if epilogue.problem or seen.tolist() != finite or not same_bits(found, expected):
                    wrong.append(f"{dtype} {height} x {width} {pool=} {epilogue.problem}")
    return wrong


def network() -> TappedVgg:
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    specs = parse_specs(LAYERS, "vgg11")
    for layer in layer_table("vgg11"):
        if layer.kind == "conv":
            shape = (layer.channels, layer.in_channels, 3, 3)
            deviation = (2 / (9 * layer.in_channels)) ** 0.5
            weight = torch.randn(shape, generator=generator) * deviation
            tensors[f"features.{layer.index}.weight"] = weight
            bias = torch.randn(layer.channels, generator=generator) * 0.1
            tensors[f"features.{layer.index}.bias"] = bias
    built: Any = network_of(tensors, needed_layers(specs, "vgg11"), specs).half()
    return built.to(memory_format=torch.channels_last)  # type: ignore[no-any-return] # Any above


class ApartBias(torch.nn.Conv2d):
    """Rounds before it adds the bias, as PyTorch does on CUDA and not on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        return functional.conv2d(x, self.weight, padding=1).add_(self.bias.view(1, -1, 1, 1))


def network_differs() -> list[str]:
    """Layers of VGG11 whose features the kernel changes, and `finite` if it does."""
    eager, fused = network(), network()
    for module in (*eager.modules(), *fused.modules()):
        if isinstance(module, torch.nn.Conv2d):
            module.__class__ = ApartBias
    fused.epilogue = Epilogue(CPU, torch.float16, ())
    images = torch.randn((2, 3, 33, 34), generator=torch.Generator().manual_seed(8)).half()
    images[1] *= 3e4  # leaves float16
    images = images.contiguous(memory_format=torch.channels_last)
    expected, finite = eager(images)
    found, seen = fused(images)
    assert fused.epilogue.problem == ""
    assert finite.tolist() == [True, False]
    wrong = [
        spec
        for spec in expected
        if not same_bits(found[spec].half(), expected[spec].half())
        or not torch.equal(found[spec][0], expected[spec][0])
    ]
    return (
        wrong
        + ["finite"] * (seen.tolist() != finite.tolist())
        + ["order"] * (list(found) != list(expected))
    )


class OneBitOff(Epilogue):
    """A compiler that errs."""

    def _launch(self, x: Tensor, bias: Tensor, out: Tensor, finite: Tensor | None) -> None:
        super()._launch(x, bias, out, finite)
        out.view(torch.int16)[0, 3, 1, 1] ^= 1


def fallback() -> dict[str, object]:
    """What becomes of a kernel that fails once it is in use."""
    epilogue = Epilogue(CPU, torch.float16, ())
    x, bias = trial_map(2, 64, 6, 6, torch.float16), bias_of(64, torch.float16)
    x[1, 5, 3, 3] = torch.inf
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("vggfeat").addHandler(handler)
    logging.getLogger("vggfeat").setLevel(logging.INFO)
    narrow = x[:, :40].contiguous(memory_format=torch.channels_last)
    seen = torch.ones(2, dtype=torch.bool)
    scattered = epilogue(x.contiguous(), bias, seen, pool=True)
    right = same_bits(scattered, by_torch(x, bias, pool=True)[0]) and not epilogue.problem
    epilogue._kernels = None
    after = epilogue(narrow.clone(), bias[:40], None, pool=False)
    right &= same_bits(after, by_torch(narrow, bias[:40], pool=False)[0])
    return {"right": right, "seen": seen.tolist(), "problem": epilogue.problem, "lines": lines}


if __name__ == "__main__":
    json.dump(
        {
            "trial": Epilogue(CPU, torch.float16, (64,)).problem,
            "wrong": wrong_shapes(),
            "network": network_differs(),
            "one bit off": OneBitOff(CPU, torch.float16, (64,)).problem,
            "odd channels": Epilogue(CPU, torch.float16, (72,)).problem,
            "fallback": fallback(),
        },
        sys.stdout,
    )
