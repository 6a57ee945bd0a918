"""What `doctor` says of CUDA devices, from what torch would say of them."""

from __future__ import annotations

import inspect
import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from vggfeat.cli.doctor_devices import find_devices

if TYPE_CHECKING:
    from pathlib import Path

DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build  (dvs)\n"


class Cuda:
    """torch.cuda as it answers on a machine with two H200."""

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 2

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, device: int) -> Any:  # noqa: ARG002 torch's signature
        return SimpleNamespace(name="NVIDIA H200", total_memory=150_000_000_000)

    def get_device_capability(self, device: int) -> tuple[int, int]:  # noqa: ARG002 torch's signature
        return (9, 0)

    def mem_get_info(self, device: int) -> tuple[int, int]:  # noqa: ARG002 torch's signature
        return 149_000_000_000, 150_000_000_000

    def get_arch_list(self) -> list[str]:
        return ["sm_75", "sm_80", "sm_90", "compute_120"]


def a_torch(cuda: Cuda, version: str | None = "13.0") -> Any:
    cudnn = SimpleNamespace(version=lambda: 91_300)
    return SimpleNamespace(
        cuda=cuda,
        device=torch.device,
        version=SimpleNamespace(cuda=version),
        backends=SimpleNamespace(cudnn=cudnn),
    )


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """The file of a driver that is loaded."""
    path = tmp_path / "version"
    path.write_text(DRIVER)
    return path


def test_the_functions_asked_exist_with_these_parameters() -> None:
    """The stand-in answers what torch's own functions are asked."""
    for name, function in vars(Cuda).items():
        if not name.startswith("_"):
            theirs = inspect.signature(getattr(torch.cuda, name)).parameters
            ours = list(inspect.signature(function).parameters)[1:]
            assert ours == list(theirs), name


def test_each_device_is_described(driver: Path) -> None:
    """Memory, compute capability, versions and decoders are shown, and nothing is a problem."""
    found = list(find_devices(a_torch(Cuda()), str(driver)))
    subjects = ["device", "cuda:0", "cuda:1", "cuda", "decoding", "fused kernel"]
    assert [one.subject for one in found] == subjects
    assert found[0].found == "auto is cuda:0, computing in float16"
    assert found[1].found == "NVIDIA H200, compute 9.0, 149.0 GB of 150.0 GB free"
    assert found[3].found == "13.0, cuDNN 91300, driver 550.54.15"
    assert found[4].found.startswith("auto is torchvision; ")
    if not torch.cuda.is_available():
        assert found[5].found.startswith("not used, which is slower and gives the same bytes: ")
    assert all(one.remedy is None for one in found)


@pytest.mark.parametrize(
    ("kernels", "fits"),
    [
        (["sm_90"], True),
        (["sm_90a", "sm_80"], True),
        (["sm_75", "sm_80", "sm_86"], False),
        (["sm_100", "compute_120"], False),
        (["sm_75", "compute_80"], True),  # PTX is compiled for newer devices
        ([], True),  # torch does not say
    ],
)
def test_a_torch_without_kernels_for_a_device_is_a_problem(
    driver: Path, kernels: list[str], fits: bool
) -> None:
    """A device of another generation than torch was built for has a remedy."""
    cuda: Any = Cuda()
    cuda.get_arch_list = lambda: kernels
    card = list(find_devices(a_torch(cuda), str(driver)))[1]
    assert (card.remedy is None) == fits


def test_a_driver_that_fails_is_a_problem(driver: Path) -> None:
    """An error of CUDA's is one finding with its first line, and no traceback."""
    cuda: Any = Cuda()

    def fail(_device: int) -> None:
        raise RuntimeError("CUDA error: device busy\nCUDA kernel errors might be asynchronous")

    cuda.get_device_properties = fail
    (found,) = find_devices(a_torch(cuda), str(driver))
    assert found.found == "CUDA fails: CUDA error: device busy"
    assert found.remedy is not None


@pytest.mark.parametrize(
    ("version", "visible", "expected"),
    [
        (None, None, "driver 570.86.10 is loaded, but this torch is built without CUDA)"),
        ("13.0", "-1", "driver 570.86.10 is loaded, and CUDA_VISIBLE_DEVICES is '-1')"),
        ("13.0", None, "driver 570.86.10 is loaded, as in a container that was given no GPU)"),
    ],
)
def test_a_device_that_is_not_seen_is_explained(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str | None,
    visible: str | None,
    expected: str,
) -> None:
    """Where a driver is loaded and torch sees no device, a likely reason stands beside it."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    (tmp_path / "version").write_text(OPEN)
    cuda: Any = Cuda()

    def unavailable() -> bool:
        warnings.warn("CUDA initialization: too old\nmore", stacklevel=1)
        return False

    cuda.is_available = unavailable
    (found,) = find_devices(a_torch(cuda, version), str(tmp_path / "version"))
    assert found.remedy is None
    assert found.found.endswith(expected)
    assert "(no CUDA device; CUDA initialization: too old; driver" in found.found
    (alone,) = find_devices(a_torch(cuda, version), str(tmp_path / "none"))
    assert alone.found.endswith("(no CUDA device; CUDA initialization: too old)")
