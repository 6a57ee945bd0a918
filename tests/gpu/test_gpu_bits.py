"""A row depends on its own pixels, its slot and the batch's shape, and on nothing else."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import torch
from accelerator import (
    DEVICE,
    EVERYTHING,
    ON_CUDA,
    PRECISIONS,
    as_in_a_long_run,
    decoded,
    extractor,
    faint,
    loud_tensors,
    noise,
    poison,
    settings,
    write_pictures,
)
from killing import KillServer, contents, kill_and_go_on

import vggfeat
from vggfeat.core.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from vggfeat.network.extractor import TensorExtractor

SLOT = 2
FUSED = ("float16, fused", "bfloat16, fused") if ON_CUDA else ()
KILLS = 4 if ON_CUDA else 1


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "loud.pth"
    torch.save(loud_tensors("fc8" if ON_CUDA else "pool3"), path)
    return str(path)


@pytest.fixture(scope="module", params=[*PRECISIONS, *FUSED])
def network(weights: str, request: pytest.FixtureRequest) -> TensorExtractor:
    precision, _, fused = request.param.partition(", ")
    made = extractor(EVERYTHING, weights=weights, precision=precision)
    return as_in_a_long_run(made) if fused else made


def overflowing() -> NDArray[np.uint8]:
    """Faint images, of which the first overflows in float16."""
    images = faint(4, seed=3)
    images[0] = noise(1)[0]
    return images


COMPANY = {
    "faint": faint(4, seed=1),
    "zeros": np.zeros_like(faint(4)),
    "noise": noise(4, seed=2),
    "one that overflows": overflowing(),
}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_stored_row_does_not_depend_on_its_company(network: TensorExtractor, dtype: str) -> None:
    """One image in one slot has the same bytes among faint ones, and others that overflow."""
    network.settings = settings(EVERYTHING, dtype=dtype, precision=network.precision)
    probe, before, found = faint(1, seed=9)[0], network.redone, {}
    for name, others in COMPANY.items():
        images = others.copy()
        images[SLOT] = probe
        done = network.launch(decoded(images)).collect()
        assert done.rows.tolist() == [100, 101, 102, 103]
        found[name] = {spec: rows[SLOT].tobytes() for spec, rows in done.features.items()}
    for name, rows in found.items():
        assert rows == found["faint"], name
    assert network.redone - before == (3 if network.precision == "float16" else 0)


def test_a_row_does_not_depend_on_nan_beside_it(network: TensorExtractor) -> None:
    """The same of floats in memory, among which may be NaN, infinity and what overflows."""
    images = torch.from_numpy(faint(4)).permute(0, 3, 1, 2).float() / 255 - 0.45
    expected = network.compute(images)
    for other in (0.0, float("nan"), float("inf"), 1e4):
        changed = images.clone()
        changed[0, :, ::3] = other
        found = network.compute(changed)
        for spec, rows in expected.items():
            assert torch.equal(found[spec][1:], rows[1:]), (spec, other)


def test_a_row_does_not_depend_on_memory(network: TensorExtractor) -> None:
    """Memory that holds NaN changes nothing, nor do slots without an image."""
    images = np.concatenate([faint(3), noise(1)])
    images[1] = 0
    clean = network.launch(decoded(images, [0, 2, 3])).collect()
    for _ in range(3):
        poison(256 if ON_CUDA else 16)
        again = network.launch(decoded(images, [0, 2, 3])).collect()
        for spec, rows in clean.features.items():
            assert again.features[spec].tobytes() == rows.tobytes(), spec


def test_batches_in_flight_do_not_mix(network: TensorExtractor) -> None:
    """Batches launched before earlier ones are collected equal those collected one by one."""
    batches = [faint(4, seed=seed) for seed in range(5)]
    batches[1] = overflowing()
    plain = [network.launch(decoded(images)).collect().features for images in batches]
    pending = [network.launch(decoded(images)) for images in batches]
    for expected, one in zip(plain, pending, strict=True):
        for spec, rows in one.collect().features.items():
            assert rows.tobytes() == expected[spec].tobytes(), spec


def folder_of(place: Path) -> Path:
    """Small images, three of which overflow in float16 and one is broken."""
    pictures = list(faint(17, 40))
    for number in (3, 4, 14):
        pictures[number] = noise(1, 40, seed=number)[0]
    images = write_pictures(place / "images", pictures)
    (images / "0005b.jpg").write_bytes(b"no image")
    return images


def test_killed_runs_resume_to_the_same_bytes(weights: str, tmp_path: Path) -> None:
    """Killed anywhere, or with rows missing here and there: other processes make the same file."""
    images, reference = folder_of(tmp_path), tmp_path / "reference.h5"
    how: dict[str, Any] = {"weights": weights, "device": DEVICE, "precision": "float16",
                           "layers": "conv1_1:max,conv2_1"}  # fmt: skip
    with KillServer() as server:
        status, calls = server.run(images, reference, **how)
        assert status == 0
        killed = 0
        for turn in range(KILLS):
            # Not towards the end: a run that waits less for its disk makes fewer calls.
            kill_at = calls * (turn + 1) // (KILLS + 2)
            out = tmp_path / "killed.h5"
            killed += kill_and_go_on(
                server, images, out, reference, kill_at=kill_at, torn=turn % 2 == 0,
                workers=turn % 2, **how,
            )  # fmt: skip
        assert killed
        holes = tmp_path / "holes.h5"
        holes.write_bytes(reference.read_bytes())
        forget(holes, [0, 3, 6, 7, 13])
        assert server.run(images, holes, **how)[0] == 0
    here = vggfeat.extract(images, tmp_path / "here.h5", run_settings(**how))
    assert here.redone
    for path in (holes, tmp_path / "here.h5"):
        assert contents(path) == contents(reference)


def run_settings(**more: Any) -> Settings:
    given = {"model": "vgg11", "size": 32, "batch_size": 4, "workers": 0, **more}
    return Settings(**given)


def forget(path: Path, rows: list[int]) -> None:
    """Make rows of a cache pending, and their features something else."""
    with h5py.File(path, "r+") as file:
        for row in rows:
            file["images/state"][row] = 0
            for values in file["features"].values():
                values[row] = 7


def test_replicas_give_the_file_of_one(weights: str, tmp_path: Path) -> None:
    """Two networks on one device overlap and give the rows of one, bit for bit."""
    images = folder_of(tmp_path)
    for name, device in (("one", DEVICE), ("two", f"{DEVICE},{DEVICE}")):
        given = run_settings(layers="conv1_1,conv2_1", weights=weights, device=device,
                             precision="float16")  # fmt: skip
        assert vggfeat.extract(images, tmp_path / f"{name}.h5", given).redone
    assert contents(tmp_path / "two.h5") == contents(tmp_path / "one.h5")


@pytest.mark.cuda_only
def test_devices_of_unequal_precision_are_refused() -> None:
    """A file holds rows of one precision, so CPU and GPU do not mix by themselves."""
    from vggfeat.network.multi_device import Replicas

    with pytest.raises(vggfeat.DeviceError, match="would compute in different precisions"):
        Replicas(Settings(layers="conv1_1", weights="random:0", device=f"{DEVICE},cpu"))


PROCESS = """
import hashlib, json, sys
import numpy as np, torch
if sys.argv[2] == "other":
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = True
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    if sys.argv[1] != "cpu":  # something for cuDNN and the allocator to remember
        x = torch.randn(4, 64, 64, 64, device=sys.argv[1], dtype=torch.float16)
        torch.nn.functional.conv2d(x, torch.randn(64, 64, 3, 3).to(x))
from vggfeat.core.settings import Settings
from vggfeat.network.extractor import TensorExtractor
images = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (4, 3, 32, 32), np.uint8))
found = {}
for precision in sys.argv[4].split(","):
    network = TensorExtractor(Settings(layers=sys.argv[3], model="vgg11", weights="random:0",
                              size=32, precision=precision, device=sys.argv[1]))
    found[precision] = {spec: hashlib.sha256(rows.cpu().numpy().tobytes()).hexdigest()
                        for spec, rows in network(images).items()}
print(json.dumps(found))
"""


def test_processes_agree(tmp_path: Path) -> None:
    """Two processes compute the same bits, though the one tries algorithms as PyTorch offers to."""
    words = [EVERYTHING, ",".join(PRECISIONS)]
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PROCESS, DEVICE, host, *words],
            cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        )
        for host in ("usual", "other")
    ]  # fmt: skip
    told = [process.communicate(timeout=300)[0] for process in running]
    one, other = (json.loads(text) for text in told)
    assert one == other
    assert {len(rows) for rows in one.values()} == {len(EVERYTHING.split(","))}
    assert list(one) == list(PRECISIONS)
    images = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (4, 3, 32, 32), np.uint8))
    here = extractor(EVERYTHING)(images)
    assert one["float32"] == {
        spec: hashlib.sha256(rows.cpu().numpy().tobytes()).hexdigest()
        for spec, rows in here.items()
    }
