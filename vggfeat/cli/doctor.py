"""`vggfeat doctor`."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from typing import TYPE_CHECKING

from vggfeat._version import __version__
from vggfeat.cli.doctor_devices import Finding, find_devices
from vggfeat.cli.options import Json
from vggfeat.cli.terminal import exit_codes, print_json, say
from vggfeat.core.resources import usable_cores
from vggfeat.core.text import counted
from vggfeat.core.vgg_layers import VARIANTS
from vggfeat.errors import UsageError, VggfeatError

if TYPE_CHECKING:
    from collections.abc import Iterator

_WIDTH = len("fused kernel")  # the longest subject


def doctor(
    *,
    as_json: Json = False,
) -> None:
    """Check this machine: versions, devices, disk.

    Also check weights, HDF5 and file locks. Show how to solve each problem, and end with exit
    code 2 if there is one.
    """
    with exit_codes():
        findings = []
        for finding in examine():
            findings.append(finding)
            if not as_json:  # some take seconds
                say(*_lines(finding))
        if as_json:
            print_json(findings)
        problems = [finding.subject for finding in findings if finding.remedy is not None]
        if problems:
            raise UsageError(f"doctor found problems with {', '.join(problems)}")


def _lines(finding: Finding) -> Iterator[str]:
    mark = "ok     " if finding.remedy is None else "PROBLEM"
    yield f"{mark} {finding.subject:{_WIDTH}}  {finding.found}"
    if finding.remedy is not None:
        yield f"        {'':{_WIDTH}}  {finding.remedy}"


def examine() -> Iterator[Finding]:
    """Examine everything that a run needs, and yield each finding as soon as it is known."""
    yield Finding("vggfeat", f"{__version__}, Python {platform.python_version()}, {sys.executable}")
    yield Finding(
        "system", f"{platform.platform()}, {counted(usable_cores(), 'core')} for this process"
    )
    yield from _torch()
    yield _hdf5()
    yield _pillow()
    yield from _weights()
    yield _locks()
    yield Finding("disk", f"{shutil.disk_usage('.').free / 1e9:.1f} GB free in this folder")


def _torch() -> Iterator[Finding]:
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        yield Finding("torch", f"cannot be imported: {error}", "pip install torch torchvision")
        return
    yield Finding("torch", f"{torch.__version__}, {counted(torch.get_num_threads(), 'thread')}")
    yield _torchvision(str(torch.__version__))
    yield from find_devices(torch)


def _torchvision(torch_version: str) -> Finding:
    """Detect a torchvision that was built for another torch."""
    import importlib.metadata  # slow to load

    try:
        version = importlib.metadata.version("torchvision")
        needs = importlib.metadata.requires("torchvision") or []
    except importlib.metadata.PackageNotFoundError:
        return Finding("torchvision", "not installed", "pip install torchvision")
    wanted = next(
        (line for line in needs if line.split(" ")[0].rstrip("=<>0123456789.") == "torch"), "torch"
    )
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        return Finding(
            "torchvision",
            f"{version} wants {wanted} and does not fit torch {torch_version}: {reason}",
            "install a pair that was built together: "
            "pip install --upgrade --force-reinstall torch torchvision",
        )
    return Finding("torchvision", version)


def _hdf5() -> Finding:
    try:
        h5py = importlib.import_module("h5py")
    except (ImportError, OSError) as error:
        return Finding("h5py", f"cannot be imported: {error}", "pip install h5py")
    return Finding("h5py", f"{h5py.version.version}, HDF5 {h5py.version.hdf5_version}")


def _pillow() -> Finding:
    from PIL import __version__ as version
    from PIL import features

    wanted = {"jpg": "JPEG", "zlib": "PNG", "webp": "WebP", "libtiff": "TIFF", "avif": "AVIF"}
    known = features.get_supported()
    has = [name for key, name in wanted.items() if key in known]
    turbo = " (turbo)" if features.check("libjpeg_turbo") else ""
    remedy = None if {"JPEG", "PNG"} <= set(has) else "pip install --force-reinstall pillow"
    return Finding("pillow", f"{version} reads {', '.join(has)}; JPEG library{turbo}", remedy)


def _weights() -> Iterator[Finding]:
    from vggfeat.network.weights import published_file, weights_folder

    try:
        folder = weights_folder()
    except VggfeatError as error:
        yield Finding("weights", str(error), "set HOME, XDG_CACHE_HOME or TORCH_HOME")
        return
    names = [(name, model) for name in ("imagenet", "features") for model in VARIANTS]
    files = [file for name, model in names for file in [published_file(name, model)] if file]
    here = [file for file in files if os.path.isfile(os.path.join(folder, file))]
    yield Finding("weights", f"{', '.join(here) or 'none yet; fetched when first used'} ({folder})")


def _locks() -> Finding:
    """Try in the current folder the kinds of locks that runs take."""
    from vggfeat.storage.locks import SharedLock, hold
    from vggfeat.storage.temporary_folder import temporary_folder

    def take_shared(place: str) -> None:
        with SharedLock(place) as lock:
            lock.acquire_shared(lambda: None)
            lock.acquire_exclusive()

    def take_exclusive(place: str) -> None:
        with hold(place):
            pass

    missing = []
    users = {"exclusive (every output)": take_exclusive, "shared (folders of shards)": take_shared}
    for kind, use in users.items():
        try:
            with temporary_folder("vggfeat-doctor-", ".") as folder:
                use(os.path.join(folder, "x"))
        except (OSError, VggfeatError) as error:
            missing.append(f"{kind}: {error}")
    if missing:
        remedy = "put outputs on a file system with locks"
        return Finding("locks", f"missing here: {'; '.join(missing)}", remedy)
    return Finding("locks", "this folder's file system has them, exclusive and shared")
