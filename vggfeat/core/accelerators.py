"""Which kinds of devices a run will probably compute on, without importing torch."""

from __future__ import annotations

import glob
import importlib.metadata
import os

# Of NVIDIA's driver, its integrated devices, Windows' subsystem, and AMD's driver.
_DRIVERS = ("nvidiactl", "nvhost-ctrl*", "nvgpu", "nvmap", "dxg", "kfd")
_DEVICES = "nvidia[0-9]*"


def likely_devices(names: str, root: str = "/") -> list[str]:
    """Return the kind of each device that `--device` will probably stand for, `cpu` or `cuda`.

    Only torch knows, and its import takes seconds: who begins with something by these kinds begins
    again if they were wrong. `/dev` is at `root`.
    """
    if names == "auto":
        return ["cuda" if _has_driver(root) else "cpu"]
    if names == "all":
        return ["cuda"] * max(1, len(glob.glob(_at(root, _DEVICES))))
    return [name.partition(":")[0] for name in names.split(",")]


def _has_driver(root: str) -> bool:
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):  # how they are hidden from torch
        return False
    try:
        if importlib.metadata.version("torch").endswith("+cpu"):
            return False
    except importlib.metadata.PackageNotFoundError:
        return False
    return any(glob.glob(_at(root, driver)) for driver in _DRIVERS)


def _at(root: str, path: str) -> str:
    return os.path.join(root, "dev", path)
