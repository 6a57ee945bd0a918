"""Choose device, precision and batch size; copy tensors to the host."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Literal, cast

import torch

from vggfeat.core.lost_device import keep_if_lost
from vggfeat.core.text import counted
from vggfeat.errors import DeviceError, UsageError
from vggfeat.network import onednn
from vggfeat.network.batch_size import (
    fixed_batch_size,
    is_batch_size_fixed,
    largest_cpu_batch,
    largest_cuda_batch,
    spread_batches,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from vggfeat.core.settings import Settings

Compute = Literal["float32", "bfloat16", "float16", "int8"]

_OUT_OF_MEMORY = (
    "unable to find an engine to execute this computation",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)


@contextlib.contextmanager
def device_errors(device: torch.device) -> Iterator[None]:
    """Raise DeviceError for a failing accelerator, but let a lack of memory through."""
    try:
        yield
    except RuntimeError as error:
        if device.type == "cpu" or isinstance(error, DeviceError) or is_out_of_memory(error):
            raise
        raise DeviceError(
            f"device {device} failed: {str(error).splitlines()[0]}; rows up to the last "
            "checkpoint are kept, run again to resume"
        ) from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error of torch is a device's lack of memory.

    Only torch's own allocator says so by a class of its own. A convolution that finds no room for
    its workspace finds no algorithm, and libraries that allocate for themselves return their codes.
    """
    return isinstance(error, torch.OutOfMemoryError) or any(
        text in str(error) for text in _OUT_OF_MEMORY
    )


def to_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to host memory; from CUDA asynchronously, so wait for an event before use."""
    if tensor.device.type == "cpu":
        return tensor
    host = keep_if_lost(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True))
    return host.copy_(tensor, non_blocking=True)


def choose_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:N` stands for."""
    if name == "all" or "," in name:
        raise UsageError(f"device {name!r} names several; expected one here, such as cpu or cuda:0")
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = device.index or 0
        if index >= count:
            raise DeviceError(
                f"device {name} does not exist: torch {torch.__version__} sees "
                f"{counted(count, 'CUDA device')}; `vggfeat doctor` shows more, --device cpu needs "
                "none"
            )
        return torch.device("cuda", index)
    return device


def choose_devices(names: str) -> list[torch.device]:
    """Return the devices that names separated by commas, or `all` CUDA devices, stand for."""
    if names == "all":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise DeviceError(
                f"--device all: torch {torch.__version__} sees no CUDA device; `vggfeat doctor` "
                "shows more, --device cpu needs none"
            )
        return [torch.device("cuda", index) for index in range(count)]
    return [choose_device(name) for name in names.split(",")]


def device_kind(device: torch.device) -> str:
    """Return what a device is: two of one kind compute the same bits."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} (compute {major}.{minor})"


def choose_precision(name: str, device: torch.device) -> Compute:
    """Return the precision that a name stands for on `device`, on which only `auto` depends."""
    if name == "int8":
        _check_int8(device)
    if name != "auto":
        return cast("Compute", name)
    if device.type == "cuda":
        return "float16"
    return "bfloat16" if device.type == "cpu" and cpu_has_bfloat16() else "float32"


def _check_int8(device: torch.device) -> None:
    problem = ""
    if device.type != "cpu":
        problem = f"{device} is no CPU"
    elif not cpu_has_vnni():
        problem = "this CPU has none"
    elif not onednn.has_convolution():
        problem = f"torch {torch.__version__} has no convolution for it"
    if problem:
        raise DeviceError(
            f"precision int8 needs a CPU with VNNI (AVX-512 VNNI, AVX-VNNI or AMX): {problem}; use "
            "another --precision"
        )


def cpu_has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 natively (AVX-512 BF16, AMX, or Arm's)."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & _cpu_flags())


def cuda_has_bfloat16() -> bool:
    """Return whether the current CUDA device multiplies bfloat16 natively: compute 8.0 or later."""
    return torch.cuda.get_device_capability()[0] >= 8  # noqa: PLR2004 Ampere


def cpu_has_vnni() -> bool:
    """Return whether this CPU sums products of bytes without intermediate overflow."""
    return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & _cpu_flags())


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            text = file.read()
    except OSError:
        return set()
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return set(flags.group(1).split()) if flags else set()


def choose_batch_size(settings: Settings, images: int) -> int:
    """Return the batch size: the requested one, or what fits the device, spread evenly."""
    if is_batch_size_fixed(settings):
        return fixed_batch_size(settings)
    devices = choose_devices(settings.device)
    most = min(_largest_batch(settings, device) for device in devices)
    return spread_batches(images, most, len(devices))


def _largest_batch(settings: Settings, device: torch.device) -> int:
    if device.type != "cuda":
        return largest_cpu_batch(settings)
    free, _ = torch.cuda.mem_get_info(device)
    return largest_cuda_batch(settings, free)
