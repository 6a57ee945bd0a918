"""Bias, ReLU, max pooling and the check for overflow in one kernel, with the bits of PyTorch.

Behind a convolution PyTorch runs an operator each for the bias, the ReLU, the pooling and the
check, and each reads the whole map again. In half precision on CUDA that takes about two fifths of
the network's time. The kernel reads the map once. It is used only where a trial on small maps gives
PyTorch's own bits; where anything is in doubt or fails, PyTorch's operators do the work.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812 the name the whole field knows it by

from vggfeat.core.isolation import isolated
from vggfeat.network.device import is_out_of_memory
from vggfeat.storage.temporary_folder import temporary_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

log = logging.getLogger("vggfeat")

WORTHWHILE = 10_000
"""Images from which on the kernel is tried. PyTorch's operators need about 0.06 ms longer an image
on an H200, by arithmetic; compiling, once a machine, takes 1 or 2 s, and the trial some tenths."""

BLOCK_CHANNELS = (64, 128, 256, 512)
"""Channels of VGG's convolutions."""

_HALF = (torch.float16, torch.bfloat16)
_TRIAL = (3, 35, 11)  # images, height, width: odd, and more pixels than a tile


class Epilogue:
    """What follows a convolution: bias, ReLU, and where it ends a block, 2 x 2 max pooling.

    Args:
        device: CUDA, or for tests a CPU on which Triton interprets its kernels.
        dtype: float16 or bfloat16.
        channels: numbers of channels to try it on.

    Attributes:
        problem: why PyTorch's operators do the work; empty if the kernel does.
        seconds: that loading, compiling and trying the kernel took.
    """

    @isolated()
    def __init__(
        self, device: torch.device, dtype: torch.dtype, channels: Iterable[int] = BLOCK_CHANNELS
    ) -> None:
        began = time.perf_counter()
        self.problem = ""
        self._kernels: Any = None
        try:
            with _without_sync_debugging(device), _folder_to_compile_in(device):
                self._kernels = _load_kernels(device, dtype)
                zero = torch.full((64,), -0.0, dtype=dtype, device=device)
                # Versions of PyTorch differ in what their ReLU makes of -0.0.
                self._signed_zero = bool(torch.signbit(torch.relu(zero)).any())
                self._try_out(device, dtype, sorted(set(channels)))
        except Exception as error:  # noqa: BLE001 whatever Triton raises, PyTorch gives the same bits
            self.problem = _one_line(error)
        self.seconds = time.perf_counter() - began

    def __call__(self, x: Tensor, bias: Tensor, finite: Tensor | None, *, pool: bool) -> Tensor:
        """Return the activated map, (N, C, H, W), or with `pool` (N, C, H // 2, W // 2).

        Args:
            x: (N, C, H, W), output of a convolution without its bias; overwritten.
            bias: (C,), of the same dtype.
            finite: bool (N,), set to False for images with an infinite value or NaN in the map that
                is returned; None checks nothing.
            pool: take the maxima of 2 x 2 pixels, without the last row or column of an odd size.
        """
        if self.problem or not x.is_contiguous(memory_format=torch.channels_last):
            return eager_epilogue(x, bias, finite, pool=pool)
        out = _empty_pooled(x) if pool else x
        try:
            self._launch(x, bias, out, finite)
        except Exception as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            # It is raised before the kernel starts, so x is as it was.
            self.problem = _one_line(error)
            log_choice(self)
            return eager_epilogue(x, bias, finite, pool=pool)
        return out

    def _launch(self, x: Tensor, bias: Tensor, out: Tensor, finite: Tensor | None) -> None:
        kernels = self._kernels
        count, channels, height, width = x.shape
        pool = out is not x
        tiles = -(-out.shape[2] * out.shape[3] // kernels.TILE_PIXELS)
        sizes = (height, width) if pool else (height * width,)
        kernel = kernels.bias_relu_pool if pool else kernels.bias_relu
        grid = (count * tiles * (channels // kernels.TILE_CHANNELS),)
        # Triton launches on the current device and its current stream.
        here = torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
        with here:
            kernel[grid](
                x,
                bias,
                out,
                bias if finite is None else finite.view(torch.uint8),
                *sizes,
                channels,
                tiles,
                CHECKED=finite is not None,
                SIGNED_ZERO=self._signed_zero,
                TILE_PIXELS=kernels.TILE_PIXELS,
                TILE_CHANNELS=kernels.TILE_CHANNELS,
                enable_fp_fusion=False,
            )

    def _try_out(self, device: torch.device, dtype: torch.dtype, channels: list[int]) -> None:
        """Raise an error unless the kernel gives the bits of PyTorch's operators."""
        if device.type == "cuda":
            _check_bias_is_apart(device, dtype)
        for width in channels:
            if width % self._kernels.TILE_CHANNELS:
                raise ValueError(f"{width} channels are no multiple of a tile")
            x, bias = _trial_map(width, device, dtype)
            self._compare(x, bias, pool=False, checked=False)
            # As in a network: float16 is checked where a block ends, bfloat16 never.
            self._compare(x, bias, pool=True, checked=dtype == torch.float16)
            if dtype == torch.float16:
                self._compare(x, bias, pool=False, checked=True)

    def _compare(self, x: Tensor, bias: Tensor, *, pool: bool, checked: bool) -> None:
        ours, theirs = (
            torch.ones(len(x), dtype=torch.bool, device=x.device) if checked else None
            for _ in range(2)
        )
        expected = eager_epilogue(x.clone(), bias, theirs, pool=pool)
        x = x.clone()
        found = _empty_pooled(x) if pool else x
        self._launch(x, bias, found, ours)
        alike = ours is None or theirs is None or torch.equal(ours, theirs)
        if not alike or not same_bits(found, expected):
            raise ValueError(f"it gives other bits than PyTorch for {tuple(x.shape)}, {pool=}")


@functools.cache
def tried_epilogue(device: torch.device, dtype: torch.dtype, channels: frozenset[int]) -> Epilogue:
    """Return an epilogue that is tried once in this process, whatever number of networks use it."""
    return Epilogue(device, dtype, channels)


def eager_epilogue(x: Tensor, bias: Tensor, finite: Tensor | None, *, pool: bool) -> Tensor:
    """Do the work of `Epilogue` by PyTorch's operators."""
    x = torch.relu_(x.add_(bias.view(1, -1, 1, 1)))
    x = F.max_pool2d(x, 2) if pool else x
    if finite is not None:
        finite &= torch.isfinite(x.amax((1, 2, 3)))
    return x


def log_choice(epilogue: Epilogue) -> None:
    """Tell whether the kernel is used."""
    if epilogue.problem:
        log.info("bias, ReLU and pooling are PyTorch's operators: %s", epilogue.problem)
    else:
        log.info("bias, ReLU and pooling are one kernel, tried in %.1f s", epilogue.seconds)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors of half precision are equal bit for bit, but for a NaN's own."""
    nan = torch.isnan(a)
    if a.shape != b.shape or not torch.equal(nan, torch.isnan(b)):
        return False
    return torch.equal(*(one.masked_fill(nan, 0).view(torch.int16) for one in (a, b)))


def _load_kernels(device: torch.device, dtype: torch.dtype) -> Any:
    if dtype not in _HALF:
        raise ValueError(f"it computes in half precision, not in {dtype}")
    from vggfeat.network import fused_kernels  # Triton, which only wheels for CUDA bring along

    interpreted = type(fused_kernels.bias_relu).__name__ == "InterpretedFunction"
    if interpreted != (device.type == "cpu"):
        how = "interprets its kernels (TRITON_INTERPRET)" if interpreted else "compiles for CUDA"
        raise ValueError(f"Triton {how}, and the device is {device}")
    return fused_kernels


def _check_bias_is_apart(device: torch.device, dtype: torch.dtype) -> None:
    """Raise an error unless PyTorch adds a bias to the rounded output of cuDNN."""
    generator = torch.Generator().manual_seed(1)
    for inputs in (3, 64):
        shapes = ((2, inputs, 12, 12), (64, inputs, 3, 3), (64,))
        x, weight, bias = (torch.randn(s, generator=generator).to(device, dtype) for s in shapes)
        x, weight = (one.contiguous(memory_format=torch.channels_last) for one in (x, weight))
        apart = F.conv2d(x, weight, padding=1).add_(bias.view(1, -1, 1, 1))
        if not same_bits(F.conv2d(x, weight, bias, padding=1), apart):
            raise ValueError("PyTorch adds the bias inside the convolution here")


def _trial_map(channels: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a map, (N, channels, H, W), with values of every kind, and a bias."""
    count, height, width = _TRIAL
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn((count, channels, height, width), generator=generator)
    bias = torch.randn((channels,), generator=generator)
    smallest = torch.finfo(dtype).smallest_normal
    bias[::5] = -0.0
    bias[1::5] *= smallest / 2  # denormal
    x[:, :, ::3] *= smallest
    x[:, :, ::4, ::3] = -0.0
    x[:, :, 1::4, ::3] = 0.0
    if dtype == torch.float16:
        x[:, 3::5, 2::8] *= 3e4  # some beyond its range
    x[0] = x[0].clamp(-100, 100)  # one image without any
    x[0, :, :, -1] = torch.inf  # but where pooling drops it
    x[1, 2, 5, 6], x[1, 7, 9, 1], x[2, 4, 20, 5], x[2, 6, 0, 0] = (
        torch.inf,
        -torch.inf,
        torch.nan,
        -torch.nan,
    )
    x, bias = x.to(device, dtype), bias.to(device, dtype)
    return x.contiguous(memory_format=torch.channels_last), bias


def _empty_pooled(x: Tensor) -> Tensor:
    count, channels, height, width = x.shape
    return torch.empty(
        (count, channels, height // 2, width // 2),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


@contextlib.contextmanager
def _without_sync_debugging(device: torch.device) -> Iterator[None]:
    """Let the trial wait for the device, which a program may have forbidden itself."""
    if device.type != "cuda":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(0)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@contextlib.contextmanager
def _folder_to_compile_in(device: torch.device) -> Iterator[None]:
    """Let Triton compile in a temporary folder where it cannot write its own."""
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")
    usual = os.environ.get("TRITON_CACHE_DIR") or os.path.join(home, ".triton", "cache")
    if device.type != "cuda" or _is_writable(usual):
        yield
        return
    before = os.environ.get("TRITON_CACHE_DIR")
    with temporary_folder("vggfeat-triton-") as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["TRITON_CACHE_DIR"]
            else:
                os.environ["TRITON_CACHE_DIR"] = before


def _is_writable(folder: str) -> bool:
    """Make a folder where it is missing, and return whether files can be made in it."""
    if not os.path.isabs(folder):  # no home is known
        return False
    with contextlib.suppress(OSError):
        os.makedirs(folder, exist_ok=True)
    return os.access(folder, os.W_OK | os.X_OK)
