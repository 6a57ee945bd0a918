"""The kernel of bias, ReLU and pooling: PyTorch's bits, or PyTorch's operators."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fused_child import CPU, bias_of, by_torch, trial_map
from places import TESTS

from vggfeat import Extractor
from vggfeat.core.settings import Settings
from vggfeat.network import extractor as extractor_module
from vggfeat.network import fused_epilogue
from vggfeat.network.fused_epilogue import Epilogue, same_bits

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What a process found in which Triton interprets kernels on the CPU."""
    pytest.importorskip("triton", reason="PyTorch's wheel for CPUs is without Triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(TESTS)}
    child = subprocess.run(
        [sys.executable, str(TESTS / "fused_child.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found: dict[str, Any] = json.loads(child.stdout)
    return found


def test_the_kernel_gives_pytorchs_bits(interpreted: dict[str, Any]) -> None:
    """Odd sizes, several tiles, -0.0, denormals, infinities and NaN: bits, and rows in range."""
    assert interpreted["trial"] == ""
    assert interpreted["wrong"] == []


def test_a_network_gives_the_same_bits_with_the_kernel(interpreted: dict[str, Any]) -> None:
    """VGG11 with taps before and behind ReLUs and pools, one image of two beyond float16."""
    assert interpreted["network"] == []


def test_a_kernel_that_errs_is_not_used(interpreted: dict[str, Any]) -> None:
    """One wrong bit in the trial, or channels that it does not know, and PyTorch does the work."""
    assert interpreted["one bit off"].startswith("ValueError: it gives other bits than PyTorch")
    assert interpreted["odd channels"] == "ValueError: 72 channels are no multiple of a tile"


def test_a_kernel_that_fails_in_use_is_replaced(interpreted: dict[str, Any]) -> None:
    """Whatever its launch raises, operators give the same bits, and one line says so."""
    found = interpreted["fallback"]
    assert found["right"]
    assert found["seen"] == [True, False]
    assert "has no attribute" in found["problem"]
    assert found["lines"] == [f"bias, ReLU and pooling are PyTorch's operators: {found['problem']}"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_without_cuda_operators_do_the_work(dtype: torch.dtype) -> None:
    """On a CPU, and where there is no Triton, the trial says why, and the bits are PyTorch's."""
    epilogue = Epilogue(CPU, dtype, (64,))
    assert epilogue.problem
    if dtype == torch.float32:
        assert "not in torch.float32" in epilogue.problem
        return
    x, bias = trial_map(2, 64, 5, 5, dtype), bias_of(64, dtype)
    seen = torch.ones(2, dtype=torch.bool)
    expected, finite = by_torch(x, bias, pool=True)
    assert same_bits(epilogue(x.clone(), bias, seen, pool=True), expected)
    assert seen.tolist() == finite


def test_without_triton_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel without Triton, as for CPUs or macOS, is no error."""
    monkeypatch.delitem(sys.modules, "vggfeat.network.fused_kernels", raising=False)
    monkeypatch.delattr("vggfeat.network.fused_kernels", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "triton" in Epilogue(CPU, torch.float16, (64,)).problem


@pytest.mark.parametrize("place", ["", "file/cache", "cache"])
def test_a_home_that_cannot_be_written_is_replaced(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton then compiles in a temporary folder, which is gone afterwards; the rest stays."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / place) if place else "not/absolute")
    before = os.environ["TRITON_CACHE_DIR"]
    with fused_epilogue._folder_to_compile_in(torch.device("cuda")):
        used = os.environ["TRITON_CACHE_DIR"]
        assert os.path.isdir(used)
        assert (used == before) == (place == "cache")
    assert os.path.isdir(used) == (place == "cache")
    assert os.environ["TRITON_CACHE_DIR"] == before


def test_nothing_is_tried_for_few_images(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Compiling pays for many images: the trial waits for them, and is made once."""
    settings = Settings(layers="conv1_1", model="vgg11", weights="random:0", device="cpu", size=32)
    network = Extractor(settings)
    tried: list[torch.dtype] = []

    def trial(_: torch.device, dtype: torch.dtype, channels: frozenset[int]) -> Epilogue:
        tried.append(dtype)
        return Epilogue(CPU, dtype, channels)

    monkeypatch.setattr(extractor_module, "tried_epilogue", trial)
    monkeypatch.setattr(network, "device", torch.device("cuda"))  # never computed on
    monkeypatch.setattr(network, "precision", "float16")
    with caplog.at_level(logging.INFO, "vggfeat"):
        network.expect(9_999)
        assert tried == []
        network.expect(1)
        network.expect(1_000_000)
    assert tried == [torch.float16]
    assert "bias, ReLU and pooling are PyTorch's operators: " in caplog.text
    assert network._network.epilogue is None


@pytest.mark.parametrize(("dtype", "arch"), [("fp16", 75), ("fp16", 90), ("bf16", 90)])
def test_the_kernels_compile_for_gpus(
    dtype: str, arch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From Turing on, without a GPU: memory in pieces of 16 bytes, denormals kept."""
    pytest.importorskip("triton", reason="PyTorch's wheel for CPUs is without Triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_for

    from vggfeat.network import fused_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pointers = {"x": f"*{dtype}", "bias": f"*{dtype}", "out": f"*{dtype}", "finite": "*u8"}
    fixed = {"CHECKED": True, "SIGNED_ZERO": True, "TILE_PIXELS": 64, "TILE_CHANNELS": 64}
    for kernel in (fused_kernels.bias_relu, fused_kernels.bias_relu_pool):
        names = kernel.arg_names
        signature = {name: pointers.get(name, "i32") for name in names}
        signature |= dict.fromkeys(fixed, "constexpr")
        known = {(names.index(name),): value for name, value in fixed.items()}
        aligned = [names.index(name) for name in (*pointers, "channels") if name != "finite"]
        attributes = {(index,): [["tt.divisibility", 16]] for index in aligned}
        source = ASTSource(kernel, signature, known, attributes)
        options = {"enable_fp_fusion": False}
        made = compile_for(source, target=GPUTarget("cuda", arch, 32), options=options)
        assembly = made.asm["ptx"]
        assert len(made.asm["cubin"]) > 1000
        assert "ld.global.v4" in assembly
        assert "st.global.v4" in assembly
        assert ".ftz" not in assembly
