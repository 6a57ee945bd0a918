"""`ImageDataset`: what a DataLoader of torch makes of it, by any start method."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import functional

import vggfeat
from vggfeat.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = vggfeat.Settings(layers="fc7", size=32, resize=40)
GOOD = ("a.png", "b.png", "d.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of noise, and one file that is none."""
    root = tmp_path_factory.mktemp("dataset")
    for number, name in enumerate(GOOD):
        noise = np.random.default_rng(number).integers(0, 256, (50, 60, 3), np.uint8)
        Image.fromarray(noise).save(root / name)
    (root / "c.png").write_bytes(b"no image")
    return root


def reference(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """torchvision's own transform of the image."""
    image = functional.resize(Image.open(path).convert("RGB"), [40])
    return np.asarray(functional.center_crop(image, [32]))


def test_items_are_what_torchvision_makes(folder: Path) -> None:
    """An item holds torchvision's pixels and the file's SHA-256, a failure zeros and a reason."""
    dataset = vggfeat.ImageDataset(folder, SETTINGS)
    assert len(dataset) == 4
    assert [dataset.name(row) for row in range(4)] == ["a.png", "b.png", "c.png", "d.png"]
    for row in range(4):
        item = dataset[row]
        path = folder / dataset.name(row)
        assert item.row == row
        assert item.digest == hashlib.sha256(path.read_bytes()).digest()
        assert item.ok == (path.name in GOOD)
        if item.ok:
            assert item.pixels.tobytes() == reference(path).tobytes()
        else:
            assert item.reason == "not an image Pillow can read"
            assert not item.pixels.any()
    assert dataset[-1].row == 3
    with pytest.raises(IndexError, match="image 4 of 4"):
        dataset[4]


def check_batches(folder: Path, workers: int, start: str | None) -> None:
    dataset = vggfeat.ImageDataset(folder, SETTINGS)
    loader = DataLoader(
        dataset,
        batch_size=3,
        num_workers=workers,
        multiprocessing_context=start,
        worker_init_fn=random.seed,
        prefetch_factor=1 if workers else None,
    )
    batches = list(loader)
    assert [type(batch) for batch in batches] == [vggfeat.ImageItem] * 2
    assert [batch.row.tolist() for batch in batches] == [[0, 1, 2], [3]]
    assert [batch.ok.tolist() for batch in batches] == [[True, True, False], [True]]
    assert batches[0].pixels.shape == (3, 32, 32, 3)
    assert batches[0].pixels.dtype == torch.uint8
    for batch in batches:
        for row, pixels, digest in zip(batch.row, batch.pixels, batch.digest, strict=True):
            item = dataset[row]
            assert (pixels.numpy() == item.pixels).all()
            assert digest == item.digest


@pytest.mark.filterwarnings("ignore:(?s).*use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataloader_takes_it(folder: Path, workers: int) -> None:
    """Batches of torch's own DataLoader hold the items, from this process or from workers."""
    check_batches(folder, workers, "fork" if workers else None)


def test_spawned_workers_take_it(folder: Path) -> None:
    """Workers that are started by `spawn` give the same batches."""
    # Not in this process: there a resource tracker would stay.
    paths = [os.path.dirname(__file__), *sys.path]
    program = f"""
import pathlib, sys
sys.path[:0] = {paths!r}
import test_dataset
test_dataset.check_batches(pathlib.Path({str(folder)!r}), 1, "spawn")
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_sixteen_bits_are_batched(tmp_path: Path) -> None:
    """Items of 16 bits become a batch of uint16."""
    values = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 60
    Image.fromarray(values).save(tmp_path / "x.png")
    settings = vggfeat.Settings(
        layers="fc7", size=32, resize=32, depth=16, channels=1, first_layer="sum"
    )
    dataset = vggfeat.ImageDataset([tmp_path, tmp_path / "x.png"], settings)
    (batch,) = DataLoader(dataset, batch_size=2)
    assert batch.pixels.dtype == torch.uint16
    assert (batch.pixels[0, :, :, 0].numpy() == values).all()


def test_rows_are_those_of_a_cache(folder: Path, tmp_path: Path) -> None:
    """Item i is row i of a cache of the same sources: same name, same digest, same reason."""
    settings = vggfeat.Settings(
        layers="conv1_1", size=32, resize=40, model="vgg11", weights="random:0", device="cpu",
        workers=0, max_failures="2",
    )  # fmt: skip
    vggfeat.extract(folder, tmp_path / "f.h5", settings)
    cache, dataset = vggfeat.open(tmp_path / "f.h5"), vggfeat.ImageDataset(folder, settings)
    assert [dataset.name(row) for row in range(4)] == [cache.name(row) for row in range(4)]
    assert cache.done.tolist() == [dataset[row].ok for row in range(4)]


def test_it_pickles_with_its_archives(folder: Path, tmp_path: Path) -> None:
    """A data set of an archive's members survives pickling, as `spawn` needs it."""
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(folder / "a.png", "a.png")
    dataset = vggfeat.ImageDataset(str(tmp_path / "all.zip"), SETTINGS)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[0].digest == hashlib.sha256((folder / "a.png").read_bytes()).digest()
    assert copy.name(0) == "all.zip!a.png"


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    """A source that is not there is an error at once, and not at the first item."""
    with pytest.raises(InputError, match="nowhere"):
        vggfeat.ImageDataset(tmp_path / "nowhere", SETTINGS)


def test_the_hosts_settings_change_no_pixel(folder: Path) -> None:
    """Warnings as errors and NumPy's errors as exceptions are put aside while an item is read."""
    expected = vggfeat.ImageDataset(folder, SETTINGS)[0].pixels
    from PIL import ImageFile

    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        whole = (folder / "a.png").read_bytes()
        (cut := folder / "cut.png").write_bytes(whole[: len(whole) // 2])
        with np.errstate(all="raise"):
            item = vggfeat.ImageDataset(cut, SETTINGS)[0]
            found = vggfeat.ImageDataset(folder, SETTINGS)[0].pixels
        cut.unlink()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    assert "truncated" in item.reason
    assert (found == expected).all()
