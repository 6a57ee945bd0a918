"""`vggfeat.Extractor` takes images of any kind, and makes the rows that `extract` writes."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import functional

import vggfeat
from vggfeat.errors import DecodeError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

EXIF_ROTATED = 6
SMALL = {"model": "vgg11", "weights": "random:0", "size": 64, "device": "cpu"}


def settings(**more: Any) -> vggfeat.Settings:
    exact = {"precision": "float32", "dtype": "float32", "workers": 0}
    return vggfeat.Settings(**{"layers": "conv1_1,conv2_1", **SMALL, **exact, **more})


def noise(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(height).integers(0, 256, (height, width, channels), np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of many kinds, sorted, that Pillow opens."""
    folder = tmp_path_factory.mktemp("files")
    image, exif = Image.fromarray(noise(90, 120)), Image.Exif()
    exif[0x0112] = EXIF_ROTATED
    image.save(folder / "a.jpg", quality=90, exif=exif)
    image.save(folder / "b.png")
    image.convert("L").save(folder / "c.tif", compression="tiff_lzw")
    image.convert("CMYK").save(folder / "d.jpg")
    image.quantize(16).save(folder / "e.gif")
    image.convert("RGBA").save(folder / "f.webp", lossless=True)
    deep = (noise(70, 80, 1)[..., 0].astype(np.uint16) << 8) + 77
    Image.fromarray(deep).save(folder / "g.png")
    masked = image.convert("L").quantize(4)
    masked.save(folder / "h.png", transparency=1)
    return sorted(folder.iterdir())


WAYS: dict[str, dict[str, Any]] = {
    "usual": {},
    "upright or not": {"exif": "ignore", "crop": "pad"},
    "grey": {"channels": 1, "crop": "squash"},
    "fast": {"decode": "fast", "size": 32},
    "deep": {"depth": 16},
    "whole": {"crop": "none"},
    "altered": {"augment": "noise"},
}


@pytest.mark.parametrize("way", WAYS)
def test_an_image_has_its_cached_row(way: str, files: list[Path], tmp_path: Path) -> None:
    """Path, bytes and opened image give the row of the cache to the bit, at a batch of one."""
    chosen = settings(batch_size=1, **WAYS[way])
    vggfeat.extract(files, tmp_path / "f.h5", chosen)
    cache = vggfeat.open(tmp_path / "f.h5")
    assert cache.done.all()
    extractor = vggfeat.Extractor(chosen)
    rows = extractor(files)
    for layer in cache.layers:
        np.testing.assert_array_equal(rows[layer].numpy(), cache[layer])
    for path in files:
        pixels = extractor.transform(path)
        assert pixels.dtype == (torch.uint16 if way == "deep" else torch.uint8)
        content = path.read_bytes()
        with Image.open(path) as opened:
            for kind in (str(path), content, io.BytesIO(content), opened):
                assert torch.equal(extractor.transform(kind), pixels)
            opened.load()  # and it is still the caller's


def test_batches_have_the_rows_of_the_cache(files: list[Path], tmp_path: Path) -> None:
    """Vectors of a matrix product too, where a list has the cache's batches, the last one full."""
    chosen = settings(batch_size=4, layers="conv2_1,fc6")
    vggfeat.extract(files, tmp_path / "f.h5", chosen)
    cache = vggfeat.open(tmp_path / "f.h5")
    extractor = vggfeat.Extractor(chosen)
    stacked = torch.stack([extractor.transform(path) for path in files[:4]])
    for layer in cache.layers:
        np.testing.assert_array_equal(extractor(files)[layer].numpy(), cache[layer])
        np.testing.assert_array_equal(extractor(stacked)[layer].numpy(), cache[layer][:4])


def test_stored_types_are_those_of_the_cache(files: list[Path], tmp_path: Path) -> None:
    """A float16 cache has what `extractor` gives, rounded."""
    chosen = settings(batch_size=1, dtype="float16")
    vggfeat.extract(files[:1], tmp_path / "f.h5", chosen)
    row = vggfeat.open(tmp_path / "f.h5")["conv2_1"][:]
    np.testing.assert_array_equal(
        vggfeat.Extractor(chosen)(files[0])["conv2_1"].half().numpy(), row
    )


@pytest.fixture(scope="module")
def extractor() -> vggfeat.Extractor:
    return vggfeat.Extractor(settings(layers="conv2_1"))


def test_the_transform_is_torchvisions(extractor: vggfeat.Extractor) -> None:
    """Of an RGB image the pixels are those of torchvision's resize and crop."""
    image = Image.fromarray(noise(97, 131))
    small = functional.center_crop(functional.resize(image, [73]), [64])
    assert torch.equal(extractor.transform(image), functional.pil_to_tensor(small))
    again = pickle.loads(pickle.dumps(extractor.transform))
    assert torch.equal(again(image), extractor.transform(image))


def test_images_in_memory_of_any_size(extractor: vggfeat.Extractor, tmp_path: Path) -> None:
    """Each row of a list of arrays, images and tensors is that of the same pixels in a file."""
    sides = [(97, 131), (64, 64), (200, 70)]
    arrays = [noise(*side) for side in sides]
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    right = extractor(paths)["conv2_1"]
    pillow = [Image.fromarray(array) for array in arrays]
    small = [extractor.transform(torch.from_numpy(array).permute(2, 0, 1)) for array in arrays]
    unit = [extractor.transform(functional.to_tensor(image)) for image in pillow]
    lists: list[Any] = [arrays, pillow, tuple(pillow), small, unit, [arrays[0], paths[1], small[2]]]
    for images in lists:
        assert torch.equal(extractor(images)["conv2_1"], right)
    assert torch.equal(extractor(np.stack(arrays[:1] * 2))["conv2_1"], right[[0, 0]])
    assert torch.equal(extractor(arrays[2])["conv2_1"], right[2:])


def test_an_array_is_its_npy_file(extractor: vggfeat.Extractor, tmp_path: Path) -> None:
    """Grey, 16 bits, floats of 0 to 1 and of any range are taken as in a `.npy` file."""
    values = noise(80, 90, 1)[..., 0]
    for array in (values, values.astype(">u2") * 256, values / 255, values - 300.0, values > 99):
        np.save(tmp_path / "a.npy", array)
        expected = extractor.transform(tmp_path / "a.npy")
        assert torch.equal(extractor.transform(array), expected)


def test_a_turned_image_in_memory_is_upright(
    extractor: vggfeat.Extractor, files: list[Path]
) -> None:
    """EXIF counts for a loaded image too, as for Pillow's own `exif_transpose`."""
    with Image.open(files[0]) as loaded:
        loaded.load()
    turned = ImageOps.exif_transpose(loaded)
    assert turned.size == loaded.size[::-1]
    assert torch.equal(extractor.transform(loaded), extractor.transform(turned))


def test_a_changed_image_is_what_it_has_become(
    extractor: vggfeat.Extractor, files: list[Path]
) -> None:
    """Drafted or wound by the caller, an image is no longer its file."""
    with Image.open(files[0]) as drafted, Image.open(files[0]) as same:
        for image in (drafted, same):
            image.draft("L", (60, 45))
        expected = extractor.transform(np.asarray(ImageOps.exif_transpose(drafted)))
        assert torch.equal(extractor.transform(same), expected)
    frames = io.BytesIO()
    first, second = (Image.fromarray(noise(side, side)) for side in (70, 71))
    first.save(frames, "TIFF", save_all=True, append_images=[second])
    wound = Image.open(frames)
    wound.seek(1)
    assert torch.equal(extractor.transform(wound), extractor.transform(second))
    assert wound.tell() == 1


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "None": (None, UsageError, "image is None; expected a path, the bytes of an image file, a PIL"),
    "number": (5, UsageError, "image is of type int; expected a path"),
    "in a list": ([noise(70, 70), 5], UsageError, r"images\[1\]: image is of type int"),
    "missing": ("nothing.png", DecodeError, "no such file"),
    "text": (b"some text", DecodeError, "not an image Pillow can read"),
    "one of several": ([noise(70, 70), b"text"], DecodeError, r"images\[1\]: not an image"),
    "channels first": (
        np.moveaxis(noise(70, 80), 2, 0),
        DecodeError,
        r"array of shape \(3, 70, 80\), type uint8; expected \(H, W, C\) of at most 64 channels",
    ),
    "two axes too many": (np.zeros((1, 1, 9, 9, 3)), DecodeError, r"images\[0\]: array of shape"),
    "large": (Image.new("1", (20_000, 10_000)), DecodeError, "PIL image: 20000 x 10000 pixels"),
    "pixels of another size": (
        [torch.zeros(3, 70, 70, dtype=torch.uint8)],
        UsageError,
        "images are 70 x 70 pixels; expected 64 x 64",
    ),
    "floats of 0 to 1": ([torch.full((3, 64, 64), 0.5)], UsageError, "look like pixels of 0 to 1"),
    "unlike": (
        [torch.zeros(3, 64, 64), noise(70, 70)],
        UsageError,
        r"images\[1\] is torch.uint8 \[3, 64, 64\] on cpu, and images\[0\] torch.float32",
    ),
    "batches in a list": (
        [torch.zeros(1, 3, 64, 64)],
        UsageError,
        r"images\[0\] is a tensor of shape \[1, 3, 64, 64\]; expected \(C, H, W\)",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_image_is_refused(kind: str, extractor: vggfeat.Extractor) -> None:
    """In one line that says which of a list, what was expected and what was found."""
    images, error, message = REFUSED[kind]
    with pytest.raises(error, match=message) as found:
        extractor(images)
    assert "\n" not in str(found.value)


def test_normalised_tensors_are_no_images(extractor: vggfeat.Extractor) -> None:
    """The transform takes pixels only; the extractor takes normalised lists where it is told."""
    unit = torch.full((3, 64, 64), 0.5)
    with pytest.raises(UsageError, match=r"floats from -1 to -1; expected pixels, .*extractor"):
        extractor.transform(unit - 1.5)
    with pytest.raises(UsageError, match=r"tensor of shape \[1, 3, 64, 64\]; expected \(C, H, W\)"):
        extractor.transform(unit[None])
    expected = extractor(unit[None], normalized=True)["conv2_1"]
    for images in ([unit], unit, (unit,)):
        assert torch.equal(extractor(images, normalized=True)["conv2_1"], expected)
    with pytest.raises(UsageError, match="normalized=True is for float images"):
        extractor([noise(70, 70)], normalized=True)


def test_an_empty_list_has_no_rows(extractor: vggfeat.Extractor) -> None:
    """Nothing in, nothing out, of the right width."""
    assert extractor([])["conv2_1"].shape == (0, 128)
