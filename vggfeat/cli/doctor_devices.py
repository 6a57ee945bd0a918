"""What `vggfeat doctor` says of devices: which there are, and what computes and decodes on them."""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggfeat.core.text import byte_count
from vggfeat.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_DRIVER = "/proc/driver/nvidia/version"
_BROKEN = "nvidia-smi shows whether the driver works; --device cpu needs none"


@dataclass(frozen=True, slots=True)
class Finding:
    """The state of one subject, and what to do if it is a problem."""

    subject: str
    found: str
    remedy: str | None = None


def find_devices(torch: Any, driver_file: str = _DRIVER) -> Iterator[Finding]:
    """Examine the device that `auto` stands for, and all CUDA devices; `torch` is the module."""
    from vggfeat.network.device import choose_precision

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    driver = _driver(driver_file)
    if not available:
        why = "no CUDA device" + "".join(f"; {_first_line(one.message)}" for one in said[:1])
        why += f"; driver {driver} is loaded, {_why_unseen(torch)}" if driver else ""
        precision = choose_precision("auto", torch.device("cpu"))
        yield Finding("device", f"auto is cpu, computing in {precision} ({why})")
        return
    try:
        device = torch.device("cuda", torch.cuda.current_device())  # what `auto` stands for
        precision = choose_precision("auto", device)
        cards = [_card(torch, index) for index in range(torch.cuda.device_count())]
    except RuntimeError as error:  # the driver is of another version, or a device is lost
        yield Finding("device", f"CUDA fails: {_first_line(error)}", _BROKEN)
        return
    yield Finding("device", f"auto is {device}, computing in {precision}")
    yield from cards
    cudnn = torch.backends.cudnn.version()
    yield Finding("cuda", f"{torch.version.cuda}, cuDNN {cudnn}, driver {driver or 'unknown'}")
    yield Finding("decoding", _decoding(device))
    yield Finding("fused kernel", _fused_kernel(device))


def _card(torch: Any, index: int) -> Finding:
    properties = torch.cuda.get_device_properties(index)
    major, minor = torch.cuda.get_device_capability(index)
    free, total = torch.cuda.mem_get_info(index)
    memory = f"{byte_count(free)} of {byte_count(total)} free"
    found = f"{properties.name}, compute {major}.{minor}, {memory}"
    kernels = torch.cuda.get_arch_list()
    if not kernels or _has_kernels(kernels, major, minor):
        return Finding(f"cuda:{index}", found)
    return Finding(
        f"cuda:{index}",
        f"{found}; this torch has kernels for {', '.join(kernels)} alone",
        "install a torch that is built for it, or use --device cpu",
    )


def _has_kernels(kernels: list[str], major: int, minor: int) -> bool:
    """Return whether a build runs on a device: by its own code, or by PTX, which is compiled."""
    for name in kernels:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name)
        if found is None:
            return True  # of another kind than we know
        own = int(found[2]) == major and int(found[3]) <= minor
        if own or (found[1] == "compute" and (int(found[2]), int(found[3])) <= (major, minor)):
            return True
    return False


def _decoding(device: Any) -> str:
    """Say how `--decode auto` and `--decode gpu` decode JPEGs on a CUDA device."""
    from vggfeat.core.settings import Settings
    from vggfeat.extraction.metadata import choose_decoding
    from vggfeat.images.device_jpeg import jpeg_library

    auto = choose_decoding(Settings(layers="fc7"), {"cuda"}).decode
    auto = "pillow" if auto == "exact" else auto
    try:
        return f"auto is {auto}; gpu by {jpeg_library(device).name}"
    except (DeviceError, UsageError) as error:
        return f"auto is {auto}; {_first_line(error)}"


def _fused_kernel(device: Any) -> str:
    """Say whether one kernel does what follows a convolution, as it would in a long run."""
    import torch

    from vggfeat.network.fused_epilogue import Epilogue

    epilogue = Epilogue(device, torch.float16)
    if epilogue.problem:
        return f"not used, which is slower and gives the same bytes: {epilogue.problem}"
    return f"used for many images; loaded, compiled and tried in {epilogue.seconds:.1f} s"


def _driver(path: str) -> str:
    """Return the version of NVIDIA's kernel module; '' without one."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            found = re.search(r"Module.*?\s(\d+(?:\.\d+)+)", file.readline())
    except OSError:
        return ""
    return found[1] if found else "of unknown version"


def _why_unseen(torch: Any) -> str:
    if torch.version.cuda is None:
        return "but this torch is built without CUDA"
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return f"and CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r}"
    return "as in a container that was given no GPU"


def _first_line(error: object) -> str:
    return next(iter(str(error).splitlines()), "")
