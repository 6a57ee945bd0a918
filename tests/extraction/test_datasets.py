"""Anything that torch can index is extracted: its rows are those of the same images as files."""

from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import vggfeat
from vggfeat.errors import CacheMismatchError, InputError, TooManyFailuresError, UsageError
from vggfeat.images.item_list import items_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SETTINGS = vggfeat.Settings(
    layers="conv1_1,conv2_1", model="vgg11", weights="random:0", size=32, device="cpu",
    precision="float32", dtype="float32", workers=0, batch_size=2,
)  # fmt: skip


def pixels(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (40 + seed, 50, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images in two classes, and their features in `f.h5`."""
    folder = tmp_path_factory.mktemp("files")
    for number in range(5):
        name = folder / "images" / "ab"[number > 2] / f"{number}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(name)
    vggfeat.extract(folder / "images", folder / "f.h5", SETTINGS)
    return folder


@pytest.fixture(scope="module")
def files(folder: Path) -> list[Path]:
    return sorted((folder / "images").rglob("*.png"))


@pytest.fixture(scope="module")
def right(folder: Path) -> dict[str, NDArray[Any]]:
    cache = vggfeat.open(folder / "f.h5")
    return {layer: np.array(cache[layer]) for layer in cache}


def check(path: Path, right: dict[str, NDArray[Any]]) -> vggfeat.FeatureCache:
    cache = vggfeat.open(path)
    assert cache.done.all()
    for layer, rows in right.items():
        np.testing.assert_array_equal(cache[layer], rows)
    assert not vggfeat.verify(path).bad
    return cache


class Pairs(Dataset[Any]):
    """A map-style data set of images and labels; an item that is an exception is raised."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.items[index], BaseException):
            raise self.items[index]
        return self.items[index], index


def opened(files: list[Path]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(file.read_bytes())) for file in files]


def tensors(files: list[Path]) -> list[torch.Tensor]:
    return [v2.functional.pil_to_tensor(image) for image in opened(files)]


KINDS: dict[str, Callable[[list[Path]], Any]] = {
    "PIL images": opened,
    "loaded ones": lambda files: [image.convert("RGB") for image in opened(files)],
    "transparent ones": lambda files: [image.convert("RGBA") for image in opened(files)],
    "arrays": lambda files: [np.asarray(image) for image in opened(files)],
    "tensors": tensors,
    "floats of 0 to 1": lambda files: [tensor / 255 for tensor in tensors(files)],
    "bytes": lambda files: [file.read_bytes() for file in files],
    "data set": lambda files: Pairs(opened(files)),
    "mappings": lambda files: Pairs([{"image": image, "label": 0} for image in opened(files)]),
    "mixed": lambda files: (files[0], opened(files)[1], pixels(2), *tensors(files)[3:]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_files(
    kind: str, files: list[Path], right: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    """Whatever the items are; nameless ones are numbered."""
    done = vggfeat.extract(KINDS[kind](files), tmp_path / "f.h5", SETTINGS)
    assert (done.done, done.failed) == (5, 0)
    assert check(tmp_path / "f.h5", right).names == [f"{number:06}" for number in range(5)]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("has", ["nothing", "orientation", "profile"])
def test_a_loaded_image_is_read_without_loss(mode: str, has: str) -> None:
    """What is read of an item in memory has its pixels, its orientation and its colour profile."""
    image = Image.fromarray(pixels(0)).convert("L" if mode == "I;16" else mode).convert(mode)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if has == "orientation":
        exif = image.getexif()
        exif[0x0112] = 6
        image.info["exif"] = exif.tobytes()
        image.getexif().load(image.info["exif"])
    if has == "profile":
        image.info["icc_profile"] = profile
    with items_of([image]).open(0) as stream:
        content = stream.read()
    if content.startswith(b"\x93NUMPY"):
        assert (mode in ("L", "RGB"), has) == (True, "nothing")
        np.testing.assert_array_equal(np.load(io.BytesIO(content)), np.asarray(image))
        return
    with Image.open(io.BytesIO(content)) as read:
        assert read.mode == mode
        assert read.getexif().get(0x0112, 1) == (6 if has == "orientation" else 1)
        assert read.info.get("icc_profile") == (profile if has == "profile" else None)
        shown = ImageOps.exif_transpose(image) if read.format == "TIFF" else image
        np.testing.assert_array_equal(np.asarray(read), np.asarray(shown))


def test_processes_read_items_too(
    files: list[Path], right: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    """With workers the items are asked for in other processes."""
    settings = dataclasses.replace(SETTINGS, workers=2)
    vggfeat.extract(Pairs(opened(files)), tmp_path / "f.h5", settings)
    check(tmp_path / "f.h5", right)


def test_an_image_folder_is_its_files(
    folder: Path, right: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    """Without a transform the files themselves are read, and `extract` of the folder resumes it."""
    data = ImageFolder(str(folder / "images"))
    vggfeat.extract(data, tmp_path / "f.h5", SETTINGS)
    cache = check(tmp_path / "f.h5", right)
    assert cache.names == vggfeat.open(folder / "f.h5").names == ["a/0.png", "a/1.png", "a/2.png",
                                                                  "b/3.png", "b/4.png"]  # fmt: skip
    before = (tmp_path / "f.h5").read_bytes()
    vggfeat.extract(folder / "images", tmp_path / "f.h5", SETTINGS)
    assert (tmp_path / "f.h5").read_bytes() == before
    turned = ImageFolder(str(folder / "images"), transform=v2.RandomHorizontalFlip(1))
    vggfeat.extract(turned, tmp_path / "turned.h5", SETTINGS)
    mirrored = [np.asarray(turned[number][0]) for number in range(5)]
    cache = check(tmp_path / "turned.h5", rows_of(mirrored, tmp_path))
    assert cache.names == vggfeat.open(folder / "f.h5").names


def rows_of(images: Sequence[Any], folder: Path) -> dict[str, NDArray[Any]]:
    """Features of these images by a run of their own."""
    (folder / "png").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / "png" / f"{number}.png")
    vggfeat.extract(folder / "png", folder / "png.h5", SETTINGS)
    cache = vggfeat.open(folder / "png.h5")
    return {layer: np.array(cache[layer]) for layer in cache}


def test_a_hugging_face_data_set(
    files: list[Path], right: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    """Its image column is found, its files are read as they are, and a column names the rows."""
    datasets = pytest.importorskip("datasets")
    contents = [{"bytes": file.read_bytes(), "path": None} for file in files]
    table = {"photo": contents, "id": [f"id{number}" for number in range(5)], "label": [0] * 5}
    data = datasets.Dataset.from_dict(table).cast_column("photo", datasets.Image())
    vggfeat.extract(data, tmp_path / "f.h5", SETTINGS, names="id")
    cache = check(tmp_path / "f.h5", right)
    assert cache.names == [f"id{number}" for number in range(5)]
    digests = vggfeat.open(files[0].parents[2] / "f.h5").digests
    np.testing.assert_array_equal(cache.digests, digests)  # of the files' own bytes
    with pytest.raises(UsageError, match="no column 'name'; it has photo, id, label"):
        vggfeat.extract(data, tmp_path / "g.h5", SETTINGS, names="name")
    with pytest.raises(UsageError, match="columns id, label, of images none; expected one of"):
        vggfeat.extract(data.remove_columns("photo"), tmp_path / "g.h5", SETTINGS)


def test_names_decide_the_order_of_rows(
    files: list[Path], right: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    """Rows are sorted by name, and each is its own item's."""
    names = ["e", "d", "c", "b", "a"]
    vggfeat.extract(opened(files)[::-1], tmp_path / "f.h5", SETTINGS, names=names)
    assert check(tmp_path / "f.h5", right).names == names[::-1]


def test_an_item_that_fails_is_a_failed_row(files: list[Path], tmp_path: Path) -> None:
    """With the reason that the data set gives, or why it is no image; the others are done."""
    items = [
        files[0],
        OSError("disk\nerror"),
        "nothing.png",
        None,
        torch.full((3, 9, 9), -1.0),
        b"x",
    ]
    done = vggfeat.extract(Pairs(items), tmp_path / "f.h5", SETTINGS)
    assert (done.done, done.failed) == (1, 5)
    reasons = [failure.reason for failure in vggfeat.open(tmp_path / "f.h5").failures()]
    assert reasons[:2] == ["OSError: disk error", "no such file"]
    assert reasons[2].startswith("image is None; expected a path")
    assert reasons[3].startswith("image is a tensor of floats from -1 to -1; expected pixels")
    assert reasons[4] == "not an image Pillow can read"


def test_a_run_resumes(files: list[Path], tmp_path: Path) -> None:
    """A run that stopped in the middle goes on to the bytes of one that did not."""
    stopping = dataclasses.replace(SETTINGS, on_error="stop", batch_size=1)
    items: list[Any] = opened(files)
    broken = Pairs([*items[:3], ValueError("no"), items[4]])
    with pytest.raises(TooManyFailuresError, match="ValueError: no"):
        vggfeat.extract(broken, tmp_path / "f.h5", stopping)
    assert 0 < int(vggfeat.open(tmp_path / "f.h5").done.sum()) < 5
    for out in ("f.h5", "whole.h5"):
        vggfeat.extract(Pairs(opened(files)), tmp_path / out, stopping)
    found, whole = (vggfeat.open(tmp_path / out) for out in ("f.h5", "whole.h5"))
    for layer in whole:
        np.testing.assert_array_equal(found[layer], whole[layer])
    np.testing.assert_array_equal(found.digests, whole.digests)


def test_a_changed_data_set_is_refused(tmp_path: Path) -> None:
    """Unless it is to be updated, or items are told apart by their names."""
    out = tmp_path / "f.h5"
    arrays = [pixels(number) for number in range(4)]
    vggfeat.extract(arrays, out, SETTINGS)
    before = np.array(vggfeat.open(out)["conv1_1"])
    vggfeat.extract(arrays, out, SETTINGS)  # the same
    changed = [*arrays[:2], pixels(9), arrays[3]]
    message = r"made of other items: 1 of the 4 have changed, the first is '000002'; update=True"
    with pytest.raises(CacheMismatchError, match=message):
        vggfeat.extract(changed, out, SETTINGS)
    vggfeat.extract(changed, out, SETTINGS, fingerprint="name")
    np.testing.assert_array_equal(vggfeat.open(out)["conv1_1"], before)
    with pytest.raises(CacheMismatchError, match="1 of the 5 requested are not in it"):
        vggfeat.extract([*arrays, pixels(5)], out, SETTINGS)
    vggfeat.extract([*changed, pixels(5)], out, SETTINGS, update=True)
    after = vggfeat.open(out)
    assert after.done.sum() == 5
    same = (np.array(after["conv1_1"])[:4] == before).all(axis=1)
    assert same.tolist() == [True, True, False, True]
    vggfeat.extract(arrays[:3], out, SETTINGS, update=True)
    assert np.asarray(vggfeat.open(out).state).tolist() == [1, 1, 1, 3, 3]


def test_a_data_set_goes_into_shards(tmp_path: Path) -> None:
    """Shares of a data set make the rows of one file, resume, and are updated."""
    arrays = [pixels(number) for number in range(9)]
    out, whole = tmp_path / "shards", tmp_path / "whole.h5"
    for share in ("0/2", "1/2"):
        sharding = vggfeat.Sharding(shards=3, share=share)
        vggfeat.extract(arrays[:7], out, SETTINGS, sharding=sharding)
    vggfeat.extract(arrays[:7], whole, SETTINGS)
    right = np.array(vggfeat.open(whole)["conv1_1"])
    np.testing.assert_array_equal(vggfeat.open(out)["conv1_1"][:], right)
    assert vggfeat.extract(arrays[:7], out, SETTINGS).new_done == 0
    with pytest.raises(CacheMismatchError, match="2 of the 9 requested are not in it, the first"):
        vggfeat.extract(arrays, out, SETTINGS)
    changed = [pixels(30), *arrays[1:7]]
    with pytest.raises(CacheMismatchError, match=r"other items: 1 of the .* is '000000'; update"):
        vggfeat.extract(changed, out, SETTINGS)
    with pytest.raises(CacheMismatchError, match="was planned of a data set, requested /"):
        vggfeat.extract(tmp_path, out, SETTINGS)
    summary = vggfeat.extract([*changed, *arrays[7:]], out, SETTINGS, update=True)
    assert (summary.done, summary.added, summary.changed) == (9, 2, 1)
    rows = vggfeat.open(out)["conv1_1"][:]
    assert (rows[:7] == right).all(axis=1).tolist() == [False, *[True] * 6]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "twice": ({"names": ["a", "b", "a"]}, "names must be unique and not empty: 'a'"),
    "empty": ({"names": ["a", "", "c"]}, "names must be unique and not empty: ''"),
    "few": ({"names": ["a"]}, "1 name for 3 items"),
    "column": ({"names": "id"}, "no column or attribute 'id'"),
    "root": ({"root": "/"}, "root is for files"),
    "ray": ({"cluster": vggfeat.RayCluster()}, "by processes that have it, not by Ray's"),
    "fingerprint": ({"fingerprint": "size"}, "unknown fingerprint 'size'; expected one of"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_requests_are_refused(kind: str, tmp_path: Path) -> None:
    """In one line."""
    options, message = WRONG[kind]
    arrays = [pixels(number) for number in range(3)]
    with pytest.raises(UsageError, match=message):
        vggfeat.extract(arrays, tmp_path / "f.h5", SETTINGS, **options)
    assert not list(tmp_path.iterdir())


def test_no_items_and_files(folder: Path, tmp_path: Path) -> None:
    """An empty data set has no image, and files have no names of their own."""
    with pytest.raises(InputError, match="the data set has no items"):
        vggfeat.extract(Pairs([]), tmp_path / "f.h5", SETTINGS)
    stream: Any = iter([pixels(0)])
    with pytest.raises(UsageError, match="sources hold an object of type ndarray; expected paths"):
        vggfeat.extract(stream, tmp_path / "f.h5", SETTINGS)
    with pytest.raises(UsageError, match="names and fingerprint are for data sets"):
        vggfeat.extract(folder / "images", tmp_path / "f.h5", SETTINGS, names=["a"])
