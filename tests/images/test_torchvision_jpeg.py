"""`--decode torchvision`: torchvision's own tensors, byte for byte; other files as by Pillow."""

from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from jpeg_files import picture, saved
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

import vggfeat
from vggfeat.core.preprocessing import Preprocess
from vggfeat.core.settings import Settings
from vggfeat.errors import DecodeError, UsageError
from vggfeat.images.batch_plan import plan_batches
from vggfeat.images.dataset import ImageDataset
from vggfeat.images.decode import decode
from vggfeat.images.loader import load_batches

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

TENSORS = Preprocess(decode="torchvision")
LIMIT = 2**26


def decoded(data: bytes, preprocess: Preprocess = TENSORS) -> NDArray[np.uint8]:
    return decode(io.BytesIO(data), preprocess, LIMIT)


def tensor(data: bytes, *, turned: bool = True) -> torch.Tensor:
    """torchvision's own, (3, H, W)."""
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    image: torch.Tensor = decode_jpeg(raw, mode=ImageReadMode.RGB, apply_exif_orientation=turned)
    return image


def reference(data: bytes, *, turned: bool = True) -> bytes:
    resized = functional.resize(tensor(data, turned=turned), [256], antialias=True)
    cropped: torch.Tensor = functional.center_crop(resized, [224])
    return cropped.permute(1, 2, 0).numpy().tobytes()


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x112] = orientation
    return made


@pytest.mark.parametrize(
    "data",
    [
        saved(picture(500, 375)),
        saved(picture(301, 997), quality=40, subsampling=0),
        saved(picture(333, 259), progressive=True),
        saved(picture(256, 256)),
        saved(picture(90, 60)),
        saved(picture(400, 300, "L")),
        saved(picture(400, 300), comment=b"\xff\xc0 is no marker here", icc_profile=bytes(3000)),
    ],
    ids=["usual", "tall", "progressive", "no-resize", "enlarged", "grey", "segments"],
)
def test_pixels_are_torchvisions(data: bytes) -> None:
    """Decoded, resized and cropped pixels are those of torchvision's functions on a tensor."""
    pixels = decoded(data)
    assert pixels.tobytes() == reference(data)
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned(orientation: int) -> None:
    """Each EXIF orientation is applied, or ignored on request, as Pillow's way does it."""
    data = saved(picture(320, 280), exif=exif(orientation))
    ignored = dataclasses.replace(TENSORS, exif="ignore")
    assert decoded(data).tobytes() == reference(data)
    assert decoded(data, ignored).tobytes() == reference(data, turned=False)
    near = decoded(data).astype(int) - decoded(data, Preprocess())
    assert np.abs(near).max() <= 2  # the same way up


@pytest.mark.parametrize("crop", ["squash", "pad", "none"])
def test_other_crops_are_near_pillows(crop: Any) -> None:
    """All crops have Pillow's geometry; values differ by the arithmetic of the resize alone."""
    data = saved(picture(500, 375))
    size = dataclasses.replace(TENSORS, crop=crop, resize=None)
    pixels, pillows = decoded(data, size), decoded(data, dataclasses.replace(size, decode="exact"))
    assert pixels.shape == pillows.shape
    assert np.abs(pixels.astype(int) - pillows).max() <= 2


@pytest.mark.parametrize(
    "data",
    [
        saved(picture(300, 260, "CMYK")),
        saved(picture(300, 260), "PNG"),
        saved(picture(300, 260), "WEBP"),
        saved(Image.fromarray(np.arange(90_000, dtype=np.uint16).reshape(300, 300)), "PNG"),
    ],
    ids=["cmyk", "png", "webp", "sixteen-bits"],
)
def test_other_files_go_pillows_way(data: bytes) -> None:
    """What the decoder is not for, by the file's own header, has Pillow's pixels."""
    assert decoded(data).tobytes() == decoded(data, Preprocess()).tobytes()


@pytest.mark.parametrize(
    "data",
    [
        saved(picture(300, 260))[:3000],
        saved(picture(300, 260))[:30],
        b"\xff\xd8",
        b"\xff\xd8\xff\xc0\x00\x11\x08\x00",
        b"\xff\xd8\xff\xe1\x00\x01" + bytes(40),
        b"",
    ],
)
def test_damaged_files_fail(data: bytes) -> None:
    """Truncated and empty files are a DecodeError of one line, as they are with Pillow."""
    for preprocess in (TENSORS, Preprocess()):
        with pytest.raises(DecodeError) as caught:
            decoded(data, preprocess)
        assert "\n" not in str(caught.value)


def test_too_many_pixels() -> None:
    """The limit of pixels holds before anything is decoded."""
    with pytest.raises(DecodeError, match="decompression bomb: 300 x 260 pixels"):
        decode(io.BytesIO(saved(picture(300, 260))), TENSORS, 300 * 260 - 1)


def test_workers_give_the_same_pixels(tmp_path: Path) -> None:
    """Batches from worker processes hold torchvision's pixels."""
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(saved(picture(300 + number, 260)))
    settings = Settings(layers="fc7", decode="torchvision")
    plan = plan_batches(np.arange(4), 2)
    batches = load_batches(ImageDataset(tmp_path, settings), plan, settings, workers=2, pin=False)
    found = [batch.images[slot] for batch in batches for slot in batch.slots.tolist()]
    for number, pixels in enumerate(found):
        data = (tmp_path / f"{number}.jpg").read_bytes()
        assert pixels.numpy().tobytes() == reference(data)


def test_pillow_is_another_name_of_exact() -> None:
    """A cache made with `exact` resumes with `pillow`: the preprocessing is the same record."""
    named = [Settings(layers="fc7", decode=word).preprocess() for word in ("exact", "pillow")]
    assert named[0] == named[1]
    assert "decode" not in named[1].recorded()
    torchvisions = Settings(layers="fc7", decode="torchvision").preprocess()
    assert torchvisions.recorded()["decode"] == "torchvision"


def test_what_has_no_tensors_is_refused() -> None:
    """Settings that tensors of 8-bit RGB cannot serve are refused with the remedy."""
    with pytest.raises(UsageError, match="depth 16 with clahe; use decode pillow"):
        Settings(layers="fc7", decode="torchvision", depth=16, clahe="2")
    with pytest.raises(UsageError, match="not icc convert; use decode pillow"):
        Settings(layers="fc7", decode="torchvision", icc="convert")


def test_stats_measures_these_pixels(tmp_path: Path) -> None:
    """`stats` measures the pixels that the network would get."""
    (tmp_path / "a.jpg").write_bytes(data := saved(picture(500, 375)))
    settings = Settings(layers="fc7", decode="torchvision", workers=0)
    found = vggfeat.stats(tmp_path, settings)
    values = np.frombuffer(reference(data), np.uint8).reshape(-1, 3) / 255
    assert [channel.mean for channel in found.channels] == pytest.approx(values.mean(axis=0))
