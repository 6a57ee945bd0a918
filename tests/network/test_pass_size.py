"""Passes fit the memory of a device, are recorded, and never change under a cache.

A CPU plays the GPU: its passes raise what torch raises where a GPU has too little memory.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import torch
from command_line import vggfeat as vggfeat_command
from command_line import write_images
from killing import SETTINGS, contents

import vggfeat
from vggfeat import Extractor, Settings
from vggfeat.cli.extract_report import summary_lines
from vggfeat.core.records import DecodedBatch
from vggfeat.errors import DeviceError
from vggfeat.network import pass_size
from vggfeat.network.device_rows import DeviceRows
from vggfeat.network.extractor import TensorExtractor
from vggfeat.network.multi_device import Replicas
from vggfeat.network.pass_size import PassLimit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SMALL = Settings(
    layers="conv1_1:map,conv2_1", model="vgg11", weights="random:0", size=32, device="cpu",
    precision="float32",
)  # fmt: skip
LACKS: list[tuple[type[RuntimeError], str]] = [
    (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 3.00 GiB."),
    (RuntimeError, "GET was unable to find an engine to execute this computation"),
    (RuntimeError, "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
]
PLACES = ("stored", "chosen", "on_host")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_size, "RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(pass_size, "_spoilt", set())


class Memory:
    """A device whose memory suffices for `images` of a pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, images: int) -> None:
        self.images = images
        self.sizes: list[int] = []
        genuine = TensorExtractor._pass

        def checked(one: TensorExtractor, network: Any, part: torch.Tensor) -> Any:
            self.sizes.append(len(part))
            if len(part) > self.images:
                raise torch.OutOfMemoryError(LACKS[0][1])
            return genuine(one, network, part)

        monkeypatch.setattr(TensorExtractor, "_pass", checked)


def settle_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have new caches settle their passes on a CPU as they do on a GPU."""

    def settle(self: Replicas, batch_size: int) -> PassLimit:
        limit = self.largest_passes(batch_size)
        self.keep_to(limit)
        return limit

    monkeypatch.setattr(Replicas, "settle", settle)


def extract(images: Path, out: Path, **more: Any) -> vggfeat.Summary:
    return vggfeat.extract(str(images), out, Settings(**{**SETTINGS, **more}))


def decoded(count: int, slots: list[int] | None = None) -> DecodedBatch:
    noise = torch.Generator().manual_seed(3)
    images = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, generator=noise)
    taken = np.array(range(count) if slots is None else slots, dtype=np.int64)
    return DecodedBatch(images, taken, taken, np.zeros((len(taken), 32), np.uint8), (), 0.0)


@pytest.mark.parametrize(
    ("limit", "shape", "images"),
    [
        (PassLimit(8), (500, 900), 8),
        (PassLimit(8, 8 * 32 * 64), (32, 64), 8),
        (PassLimit(8, 8 * 32 * 64), (32, 32), 8),
        (PassLimit(8, 8 * 32 * 64), (32, 80), 6),
        (PassLimit(8, 8 * 32 * 64), (32, 6400), 1),
    ],
)
def test_how_many_images_a_pass_takes(
    limit: PassLimit, shape: tuple[int, int], images: int
) -> None:
    """By number where shapes are equal, else by pixels too; never none; and the record is it."""
    assert limit.for_shape(*shape) == images
    assert PassLimit.recorded_in({"batch_size": 9, **limit.record()}) == limit


@pytest.mark.parametrize(
    ("place", "kind", "text"),
    [*(("_pass", *lack) for lack in LACKS), *((name, *LACKS[0]) for name in PLACES)],
)
def test_a_pass_is_settled_wherever_memory_is_lacking(
    monkeypatch: pytest.MonkeyPatch, place: str, kind: type[RuntimeError], text: str
) -> None:
    """Forward, quantising, gathering and copying count, by each text that torch has for it."""
    network = TensorExtractor(SMALL)
    owner: Any = TensorExtractor if place in ("_pass", "stored") else DeviceRows
    genuine, sizes = getattr(owner, place), []

    def small(self: Any, *given: Any) -> Any:
        count = len(given[1]) if owner is TensorExtractor else len(self.in_range)
        sizes.append(count)
        if count > 3:
            raise kind(text)
        return genuine(self, *given)

    monkeypatch.setattr(owner, place, small)
    assert network.largest_pass(10, 32, 32) == 3
    assert list(dict.fromkeys(sizes)) == ([9, 4, 2] if place == "on_host" else [10, 5, 3])
    network.passes.limit = PassLimit(4)
    with pytest.raises(DeviceError, match=r"too little memory for a pass of 4 images of 32 x 32"):
        network.launch(decoded(4))


def test_the_smallest_pass_is_that_of_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one device has too little memory for, none computes; all have tried what is taken."""
    replicas = Replicas(dataclasses.replace(SMALL, device="cpu,cpu,cpu"))
    room = dict(zip(replicas._extractors, (8, 3, 5), strict=True))
    tried: dict[TensorExtractor, list[int]] = {one: [] for one in room}

    def small(self: TensorExtractor, _network: Any, part: torch.Tensor) -> Any:
        tried[self].append(len(part))
        if len(part) > room[self]:
            raise torch.OutOfMemoryError(LACKS[0][1])
        return genuine(self, _network, part)

    genuine = TensorExtractor._pass
    monkeypatch.setattr(TensorExtractor, "_pass", small)
    assert replicas.largest_passes(8) == PassLimit(2)
    assert {sizes[-1] for sizes in tried.values()} == {2}
    monkeypatch.setattr(TensorExtractor, "_pass", genuine)
    unequal = Replicas(dataclasses.replace(SMALL, layers="conv1_1", crop="none"))
    assert unequal.largest_passes(4) == PassLimit(4, 4 * 32 * 64)
    assert unequal.largest_passes(1) == PassLimit(1)


def test_a_cpu_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a run on a CPU costs no pass, and takes whole batches."""
    memory = Memory(monkeypatch, 0)
    assert Replicas(SMALL).settle(7) == PassLimit(7)
    assert memory.sizes == []


def test_not_one_image_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then settling is an error that names device and size."""
    Memory(monkeypatch, 0)
    with pytest.raises(DeviceError, match=r"cpu has no memory for one image of 32 x 32: CUDA out"):
        Replicas(SMALL).largest_passes(8)


def test_memory_that_comes_back_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A settled pass is tried again in its own shape; what never fits is an error, not a half."""
    network = TensorExtractor(SMALL)
    network.passes.limit = PassLimit(3)
    expected = network.launch(decoded(8)).collect()
    memory = Memory(monkeypatch, 0)

    def wait(_seconds: float) -> None:
        memory.images = 3

    monkeypatch.setattr("vggfeat.network.pass_size.time.sleep", wait)
    found = network.launch(decoded(8)).collect()
    assert memory.sizes == [3, 3, 3, 2]
    for spec, values in expected.features.items():
        np.testing.assert_array_equal(found.features[spec], values)
    memory.images = 0
    memory.sizes.clear()
    monkeypatch.setattr("vggfeat.network.pass_size.time.sleep", lambda _: None)
    with pytest.raises(DeviceError, match=r"pass of 3 images .* run again to resume; or begin aga"):
        network.launch(decoded(8))
    assert memory.sizes == [3, 3, 3]


@pytest.mark.parametrize("fails", [False, True])
def test_a_lack_that_cudnn_hides_is_seen(monkeypatch: pytest.MonkeyPatch, *, fails: bool) -> None:
    """cuDNN takes another kernel for lack of memory and keeps to it: such a pass is none of ours.

    Counters of the allocator tell of it, whether the pass failed as well or not.
    """
    refused = 0
    genuine = TensorExtractor._pass

    def hiding(self: TensorExtractor, network: Any, part: torch.Tensor) -> Any:
        nonlocal refused
        if len(part) > 2:
            refused += 1 + fails
            if fails:
                raise torch.OutOfMemoryError(LACKS[0][1])
        return genuine(self, network, part)

    monkeypatch.setattr(pass_size, "refused_allocations", lambda _: refused)
    monkeypatch.setattr(TensorExtractor, "_pass", hiding)
    network = TensorExtractor(SMALL)
    assert network.largest_pass(4, 32, 32) == 2
    monkeypatch.setattr(TensorExtractor, "_pass", genuine)
    # The kernels of passes of 4 are other ones now, for as long as the process lives.
    assert network.largest_pass(4, 32, 32) == 2
    network.passes.limit = PassLimit(4)
    with pytest.raises(DeviceError, match="cuDNN found no room for its usual kernels"):
        network.launch(decoded(4))
    network.passes.limit = PassLimit(2)
    assert len(network.launch(decoded(4)).collect().rows) == 4


def test_a_row_depends_on_its_own_pass_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only passes with images are computed, each with all its slots, in a resumed batch too."""
    network = TensorExtractor(SMALL)
    network.passes.limit = PassLimit(3)
    whole = network.launch(decoded(8)).collect()
    memory = Memory(monkeypatch, 3)
    some = network.launch(decoded(8, [1, 6, 7])).collect()
    assert memory.sizes == [3, 2]
    for spec, values in whole.features.items():
        np.testing.assert_array_equal(some.features[spec], values[[1, 6, 7]])


def loud() -> dict[str, torch.Tensor]:
    """Weights of conv1_1 and conv2_1 whose activations leave float16 for a bright image alone."""
    noise = torch.Generator().manual_seed(0)
    return {
        "features.0.weight": torch.randn((64, 3, 3, 3), generator=noise).abs() * 300,
        "features.0.bias": torch.zeros(64),
        "features.3.weight": torch.randn((128, 64, 3, 3), generator=noise).abs() * 0.05,
        "features.3.bias": torch.zeros(128),
    }


def test_overflow_is_redone_in_its_own_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 computes only those passes in which float16 overflowed, in their shape."""
    changed: dict[str, Any] = {"layers": "conv1_1,conv2_1", "weights": loud()}
    settings = dataclasses.replace(SMALL, precision="float16", dtype="float32", **changed)
    half = Extractor(settings)
    half.passes.limit = PassLimit(2)
    batch = decoded(6)
    batch.images.div_(32, rounding_mode="floor").add_(112)
    quiet = half.launch(batch).collect()
    assert half.redone == 0
    batch.images[3] = 255
    memory = Memory(monkeypatch, 2)
    found = half.launch(batch).collect()
    assert (half.redone, memory.sizes) == (1, [2, 2, 2, 2])
    exact = Extractor(dataclasses.replace(settings, precision="float32"))
    right = exact(batch.images[2:4].permute(0, 3, 1, 2))
    called = half(batch.images.permute(0, 3, 1, 2))
    for spec, values in found.features.items():
        others = [0, 1, 2, 4, 5]
        np.testing.assert_array_equal(values[others], quiet.features[spec][others])
        np.testing.assert_array_equal(values[3], right[spec][1].numpy())
        np.testing.assert_array_equal(called[spec].numpy(), values)
    assert half.redone == 2


@pytest.mark.parametrize("more", [{}, {"dtype": "int8"}])
def test_a_cache_records_its_passes_and_keeps_to_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    more: dict[str, Any],
) -> None:
    """A run that resumes with ample memory computes in the recorded passes, to the same bytes."""
    images = write_images(tmp_path / "images", 14)
    with monkeypatch.context() as context, caplog.at_level(logging.WARNING, "vggfeat"):
        settle_on_cpus(context)
        Memory(context, 3)
        whole = extract(images, tmp_path / "whole.h5", **more)
    assert (whole.batch_size, whole.pass_images, whole.done) == (4, 2, 14)
    assert "too little memory for batches of 4 images; computing in passes of 2" in caplog.text
    with h5py.File(tmp_path / "whole.h5") as file:
        assert json.loads(file.attrs["config"])["pass_images"] == 2
    said = " in passes of 2, as memory lack"
    assert said in "\n".join(summary_lines(whole, verbose=False))
    assert said in vggfeat_command("inspect", "whole.h5", cwd=tmp_path).stdout
    (tmp_path / "part.h5").write_bytes((tmp_path / "whole.h5").read_bytes())
    with h5py.File(tmp_path / "part.h5", "r+") as file:
        file["images/state"][3:11] = 0
        for name in file["features"]:
            file[f"features/{name}"][3:11] = 0
    memory = Memory(monkeypatch, 99)
    resumed = extract(images, tmp_path / "part.h5", **more)
    assert (resumed.new_done, resumed.pass_images) == (8, 2)
    assert set(memory.sizes) == {2}
    assert contents(tmp_path / "part.h5") == contents(tmp_path / "whole.h5")


def test_a_cache_is_never_gone_on_with_in_smaller_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that no longer suffices ends the run with exit code 6; what is done is kept."""
    images = write_images(tmp_path / "images", 14)
    extract(images, tmp_path / "whole.h5")
    memory = Memory(monkeypatch, 4)
    launches = 0
    launch = TensorExtractor.launch

    def filling(self: TensorExtractor, batch: DecodedBatch) -> Any:
        nonlocal launches
        launches += 1
        memory.images = 4 if launches < 3 else 3
        return launch(self, batch)

    monkeypatch.setattr(TensorExtractor, "launch", filling)
    with pytest.raises(DeviceError, match=r"cpu has too little memory for a pass of 4 im") as error:
        extract(images, tmp_path / "part.h5")
    assert error.value.exit_code == 6
    with h5py.File(tmp_path / "part.h5") as file:
        assert file["images/state"][()].tolist() == [1] * 8 + [0] * 6
    monkeypatch.undo()
    assert extract(images, tmp_path / "part.h5").new_done == 6
    assert contents(tmp_path / "part.h5") == contents(tmp_path / "whole.h5")


def test_all_shards_have_the_passes_of_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan settles once; its own process and others compute every shard so."""
    images = write_images(tmp_path / "images", 14)
    with monkeypatch.context() as context:
        settle_on_cpus(context)
        Memory(context, 3)
        extract(images, tmp_path / "one.h5")
        plan = vggfeat.Sharding(shards=3, plan_only=True)
        vggfeat.extract(images, tmp_path / "f", Settings(**SETTINGS), sharding=plan)
    memory = Memory(monkeypatch, 99)
    found = vggfeat.extract(images, tmp_path / "f", Settings(**SETTINGS))
    assert (found.done, found.pass_images, set(memory.sizes)) == (14, 2, {2})
    one, shards = vggfeat.open(tmp_path / "one.h5"), vggfeat.open(tmp_path / "f")
    for spec in one.layers:
        np.testing.assert_array_equal(one[spec], shards[spec][:])


def test_a_cache_made_before_is_gone_on_with_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_pass_size: Callable[[Path], None]
) -> None:
    """A file without the record finds its passes by trying."""
    images = write_images(tmp_path / "images", 6)
    extract(images, tmp_path / "f.h5")
    without_pass_size(tmp_path / "f.h5")
    memory = Memory(monkeypatch, 3)
    assert extract(images, tmp_path / "f.h5").new_done == 6
    assert memory.sizes == [4, 2, 2, 2]


@pytest.fixture
def without_pass_size() -> Callable[[Path], None]:
    """Make a file one of an earlier version, with all of its rows pending."""

    def strip(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["config"])
            assert config.pop("pass_images") == config["batch_size"]
            file.attrs["config"] = json.dumps(config)
            file["images/state"][:] = 0

    return strip
