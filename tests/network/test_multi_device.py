"""Several devices in one run: the same rows in the same places, whoever computed them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import pytest
import torch
from command_line import write_images
from killing import SETTINGS, contents
from PIL import Image

import vggfeat
from vggfeat.core.settings import Settings
from vggfeat.errors import DeviceError, UsageError
from vggfeat.network.device import choose_batch_size, choose_devices
from vggfeat.network.extractor import TensorExtractor
from vggfeat.network.multi_device import Replicas
from vggfeat.network.pass_size import PassLimit

if TYPE_CHECKING:
    from pathlib import Path


def extract(images: Path, out: Path, **more: Any) -> vggfeat.Summary:
    return vggfeat.extract(str(images), out, Settings(**{**SETTINGS, **more}))


@pytest.mark.parametrize("devices", ["cpu,cpu", "cpu,cpu,cpu"])
def test_several_devices_give_the_same_file(tmp_path: Path, devices: str) -> None:
    """Rows, states and checksums are those of one device, and the summary names all."""
    images = write_images(tmp_path / "images", 22)
    extract(images, tmp_path / "one.h5")
    several = extract(images, tmp_path / "several.h5", device=devices)
    assert several.device == devices
    assert several.done == 22
    assert contents(tmp_path / "several.h5") == contents(tmp_path / "one.h5")


def test_each_device_has_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches go round the replicas, and what one of them does again is counted once."""
    images = write_images(tmp_path / "images", 20)
    seen = []
    launch = TensorExtractor.launch

    def noting(self: TensorExtractor, batch: Any) -> Any:
        seen.append(id(self))
        return launch(self, batch)

    monkeypatch.setattr(TensorExtractor, "launch", noting)
    extract(images, tmp_path / "out.h5", device="cpu,cpu")
    assert len(set(seen)) == 2
    assert seen == [seen[0], seen[1]] * 2 + [seen[0]]


def test_a_run_goes_on_with_other_devices(tmp_path: Path) -> None:
    """Which devices computed a row is no setting: a cache goes on with more or fewer of them."""
    images = write_images(tmp_path / "images", 22)
    extract(images, tmp_path / "one.h5")
    extract(images, tmp_path / "more.h5")
    with h5py.File(tmp_path / "more.h5", "r+") as file:
        file["images/state"][5:17] = 0
        file["features/conv1_1:max"][5:17] = 0
    assert extract(images, tmp_path / "more.h5", device="cpu,cpu").new_done == 12
    assert contents(tmp_path / "more.h5") == contents(tmp_path / "one.h5")


@pytest.mark.parametrize("limit", [4, 3])
def test_overflow_in_passes_on_several_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Batches in smaller passes, some redone in float32: one device's file, resumed as well."""

    def settle(self: Replicas, _batch_size: int) -> PassLimit:
        self.keep_to(PassLimit(limit))
        return PassLimit(limit)

    monkeypatch.setattr(Replicas, "settle", settle)
    (tmp_path / "images").mkdir()
    for number in range(14):
        value = 255 if number % 5 == 0 else 121 + number % 4
        picture = Image.new("RGB", (40, 40), (value, value, value - number))
        picture.save(tmp_path / "images" / f"{number:02}.png")
    noise = torch.Generator().manual_seed(0)
    weights = {  # with which white leaves float16, and grey does not
        "features.0.weight": 3000 * torch.rand((64, 3, 3, 3), generator=noise),
        "features.0.bias": torch.zeros(64),
    }
    more = {"weights": weights, "precision": "float16", "layers": "conv1_1:max,conv1_1"}
    redone = []
    for name, device in (("one", "cpu"), ("two", "cpu,cpu")):
        found = extract(tmp_path / "images", tmp_path / f"{name}.h5", device=device, **more)
        redone.append(found.redone)
    assert redone == [3, 3]
    whole = contents(tmp_path / "one.h5")
    assert contents(tmp_path / "two.h5") == whole
    with h5py.File(tmp_path / "two.h5", "r+") as file:
        for name in ("images/state", "features/conv1_1:max", "features/conv1_1"):
            file[name][[1, 4, 5, 6, 13]] = 0
    resumed = extract(tmp_path / "images", tmp_path / "two.h5", device="cpu,cpu", **more)
    assert (resumed.new_done, resumed.redone) == (5, 1)
    assert contents(tmp_path / "two.h5") == whole


@pytest.mark.parametrize(("images", "devices", "size"), [(32, "cpu,cpu", 16), (33, "cpu,cpu", 9)])
def test_every_device_has_as_many_batches(images: int, devices: str, size: int) -> None:
    """Images are spread evenly over passes, and passes over devices."""
    settings = Settings(layers="fc6", size=32, device=devices)
    assert choose_batch_size(settings, images) == size


@pytest.mark.parametrize("name", ["cpu;cpu", "cpu,", "auto,cpu", "all,cpu", "gpu", ""])
def test_names_that_make_no_sense(name: str) -> None:
    """Only devices can be listed; the error says what may be."""
    with pytest.raises(UsageError, match=r"device .* is not known; expected auto, cpu, cuda\[:N\]"):
        Settings(layers="fc7", device=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_devices_that_are_not_there() -> None:
    """Missing devices are named, and none is silently left out."""
    with pytest.raises(DeviceError, match=r"--device all: torch .* sees no CUDA device"):
        choose_devices("all")
    with pytest.raises(DeviceError, match="device cuda:0 does not exist"):
        choose_devices("cpu,cuda:0")


@pytest.mark.parametrize("devices", ["cpu,cpu", "all"])
def test_one_network_is_on_one_device(devices: str) -> None:
    """Where one device is meant, several are an error that says so."""
    settings = Settings(layers="conv1_1", weights="random:0", device=devices)
    with pytest.raises(UsageError, match=f"device '{devices}' names several; expected one here"):
        vggfeat.Extractor(settings)


def test_devices_of_unequal_kinds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row must not depend on which of two kinds of GPU had its turn; names stand in for GPUs."""
    names = iter(("NVIDIA H200 (compute 9.0)", "NVIDIA A100 (compute 8.0)"))
    monkeypatch.setattr("vggfeat.network.multi_device.device_kind", lambda _: next(names))
    with pytest.raises(DeviceError, match=r"cpu is NVIDIA.*; name devices of one kind"):
        Replicas(Settings(layers="conv1_1", weights="random:0", device="cpu,cpu"))
