"""The one kernel behind a convolution: it is used on CUDA, and gives the bits of PyTorch."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from accelerator import (
    DEVICE,
    EVERYTHING,
    ON_CUDA,
    SIDE,
    decoded,
    extractor,
    faint,
    loud_tensors,
    noise,
)

from vggfeat.network.fused_epilogue import (
    BLOCK_CHANNELS,
    WORTHWHILE,
    Epilogue,
    eager_epilogue,
    same_bits,
)

if TYPE_CHECKING:
    from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
EDGES = (224, 112, 56, 28, 14, 7, 33, 5, 2) if ON_CUDA else (5, 2)
OVERFLOWING = "conv1_1,conv5_2" if ON_CUDA else "conv1_1,conv2_1"
LAYERS = ("conv5_2:map", "conv1_1,conv1_2,pool5:map", "conv4_1.pre:map,conv5_2")


@pytest.fixture(scope="module")
def epilogues() -> dict[torch.dtype, Epilogue]:
    return {dtype: Epilogue(torch.device(DEVICE), dtype) for dtype in HALF}


def on_device(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", HALF)
def test_the_kernel_is_used(epilogues: dict[torch.dtype, Epilogue], dtype: torch.dtype) -> None:
    """Triton compiles it here, and the trial finds PyTorch's bits; a CPU keeps to operators."""
    assert (epilogues[dtype].problem == "") == ON_CUDA, epilogues[dtype].problem


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("pool", [False, True])
def test_maps_of_every_size_have_pytorchs_bits(
    epilogues: dict[torch.dtype, Epilogue], dtype: torch.dtype, *, pool: bool
) -> None:
    """At each number of channels and side of VGG's maps, and odd ones, with values not finite."""
    for channels in BLOCK_CHANNELS:
        for edge in EDGES:
            x = on_device((3, channels, edge, edge), dtype, edge) * 8
            x = x.contiguous(memory_format=torch.channels_last)
            x[1, 3, -1, -1], x[2, 5, 0, 1] = torch.inf, torch.nan
            bias = on_device((channels,), dtype, channels)
            ours, theirs = (torch.ones(3, dtype=torch.bool, device=DEVICE) for _ in range(2))
            found = epilogues[dtype](x.clone(), bias, ours, pool=pool)
            assert same_bits(found, eager_epilogue(x, bias, theirs, pool=pool)), (channels, edge)
            assert ours.tolist() == theirs.tolist() == [True, pool and edge % 2 == 1, False]


@pytest.mark.skipif(not ON_CUDA, reason="takes a GPU's memory")
@pytest.mark.parametrize("pool", [False, True])
def test_batches_of_more_than_2_31_values(
    epilogues: dict[torch.dtype, Epilogue], *, pool: bool
) -> None:
    """Places in a map of a large batch exceed 32 bits; its last images are as if alone."""
    count = 700
    if torch.cuda.mem_get_info()[0] < 16e9:
        pytest.skip("takes 14 GB of the GPU's memory")
    last = on_device((2, 64, 224, 224), torch.float16, 0)
    x = torch.empty(
        (count, 64, 224, 224),
        dtype=torch.float16,
        device=DEVICE,
        memory_format=torch.channels_last,
    ).fill_(-1)
    assert x.numel() > 2**31
    x[-2:] = last
    x[-1, 63, 223, 223] = torch.inf
    bias = on_device((64,), torch.float16, 1)
    finite = torch.ones(count, dtype=torch.bool, device=DEVICE)
    expected = eager_epilogue(x[-2:].clone(), bias, None, pool=pool)
    assert same_bits(epilogues[torch.float16](x, bias, finite, pool=pool)[-2:], expected)
    assert finite.tolist() == [True] * (count - 1) + [False]


@pytest.mark.parametrize("precision", ["float16", "bfloat16"] if ON_CUDA else ["float16"])
@pytest.mark.parametrize("layers", [EVERYTHING, *(LAYERS if ON_CUDA else ())])
def test_a_network_gives_the_same_bytes_with_it(precision: str, layers: str) -> None:
    """Whatever is taken where, a long run's rows are those of a short one."""
    images = torch.from_numpy(noise(4)).permute(0, 3, 1, 2)
    plain, fused = (extractor(layers, precision=precision) for _ in range(2))
    fused.expect(WORTHWHILE)
    network: Any = fused._network
    assert (network.epilogue is not None) == ON_CUDA
    found = fused(images)
    for spec, values in plain(images).items():
        assert torch.equal(found[spec], values), spec
    assert network.epilogue is None or network.epilogue.problem == ""


def test_overflow_is_seen_by_the_kernel_as_by_pytorch() -> None:
    """Rows that leave float16 are computed again, the others keep their bits."""
    state = loud_tensors(OVERFLOWING.split(",")[1])
    plain, fused = (extractor(OVERFLOWING, weights=state, precision="float16") for _ in range(2))
    fused.expect(WORTHWHILE)
    pixels = faint(4)
    pixels[1] = noise(4)[1]
    expected = plain.launch(decoded(pixels)).collect()
    found = fused.launch(decoded(pixels)).collect()
    assert plain.redone == fused.redone == 1
    for spec, values in expected.features.items():
        assert np.array_equal(found.features[spec], values), spec


def test_it_keeps_to_the_current_stream_and_the_maps_device(
    epilogues: dict[torch.dtype, Epilogue],
) -> None:
    """On another stream it waits for what made its map; on another GPU it runs there."""
    places: list[tuple[torch.device, Any]] = [(torch.device(DEVICE), contextlib.nullcontext())]
    if ON_CUDA:
        places.append((torch.device(DEVICE), torch.cuda.stream(torch.cuda.Stream())))  # type: ignore[no-untyped-call] # torch has no types here
        others = range(1, torch.cuda.device_count())
        places += [(torch.device("cuda", one), contextlib.nullcontext()) for one in others]
    for device, place in places:
        epilogue = epilogues[torch.float16]
        if device != torch.device(DEVICE):
            epilogue = Epilogue(device, torch.float16)
        with place:
            x = on_device((2, 64, SIDE, SIDE), torch.float16, 3).to(device)
            x = x.contiguous(memory_format=torch.channels_last)
            bias = on_device((64,), torch.float16, 4).to(device)
            expected = eager_epilogue(x.clone(), bias, None, pool=True)
            for _ in range(20 if ON_CUDA else 1):
                x = x * 1
            assert same_bits(epilogue(x, bias, None, pool=True), expected)
