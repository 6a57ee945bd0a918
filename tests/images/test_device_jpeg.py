"""`--decode gpu`: the whole way on a CPU, where the same libraries decode, and nvJPEG on CUDA."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import torch
import torchvision
from jpeg_files import (
    CPU,
    FOR_THE_DEVICE,
    FRAME,
    LIMIT,
    NOT_FOR_THE_DEVICE,
    SETTINGS,
    USUAL,
    batches,
    by_row,
    encoded,
    exif,
    patched,
    picture,
    pillows,
    reference,
    run_settings,
    saved,
    write_photos,
)
from PIL import Image
from torchvision.io import decode_jpeg

import vggfeat
from vggfeat.core.preprocessing import Preprocess
from vggfeat.core.settings import Settings
from vggfeat.errors import DeviceError, UsageError
from vggfeat.images import device_jpeg
from vggfeat.images.device_jpeg import decode_jpegs, jpeg_library
from vggfeat.images.jpeg_header import encoded_jpeg
from vggfeat.images.loader import ENCODED_ROOM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


@pytest.fixture(params=["torchcodec", "torchvision"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each of the two libraries; torchvision is taken where the other cannot be imported."""
    if request.param == "torchcodec":
        pytest.importorskip("torchcodec.decoders")
    else:
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    jpeg_library.cache_clear()
    yield request.param
    jpeg_library.cache_clear()


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_are_torchvisions(library: str, tmp_path: Path, workers: int) -> None:
    """Decoded, turned, resized and cropped pixels are those of torchvision's functions."""
    files = list(FOR_THE_DEVICE.values())
    found = batches(tmp_path, files, workers=workers)
    assert jpeg_library(CPU).name == library
    assert len(FOR_THE_DEVICE["large"]) > ENCODED_ROOM
    for row, pixels in by_row(found).items():
        name = list(FOR_THE_DEVICE)[row]
        np.testing.assert_array_equal(pixels, reference(files[row]), err_msg=name)
    assert sum(len(batch.rows) for batch in found) == len(files)
    assert all(not batch.encoded and batch.images.shape == (4, 224, 224, 3) for batch in found)


@pytest.mark.parametrize("data", FOR_THE_DEVICE.values(), ids=FOR_THE_DEVICE)
def test_what_the_device_gets_is_the_picture(data: bytes) -> None:
    """What is left of a file has its pixels and no EXIF; its turn is beside it."""
    image = encoded(data)
    with Image.open(io.BytesIO(data)) as whole, Image.open(io.BytesIO(image.data)) as left:
        assert not left.getexif()
        assert image.turn == whole.getexif().get(0x112, 1)
        assert (image.width, image.height) == whole.size
        np.testing.assert_array_equal(np.asarray(left), np.asarray(whole))
    assert encoded(data, exif="ignore").turn == 1


@pytest.mark.parametrize("data", NOT_FOR_THE_DEVICE.values(), ids=NOT_FOR_THE_DEVICE)
def test_others_go_pillows_way(data: bytes) -> None:
    """What a device may not know, or decode without a word, stays with Pillow."""
    assert encoded(data) is None


def test_too_many_pixels_stay_with_pillow() -> None:
    """The limit of pixels holds, that of the settings and that of the device."""
    assert encoded_jpeg(io.BytesIO(USUAL), Preprocess(), 400 * 300 - 1) is None
    assert encoded(patched(FRAME + 5, b"\x40\0\x40\0")) is None


def test_no_damage_of_a_header_raises() -> None:
    """Whatever stands in a header, a file is for the device or for Pillow, which says what."""
    whole = saved(picture(120, 90), exif=exif(6), icc_profile=bytes(40), comment=b"said")
    start = whole.index(b"\xff\xda") + 12
    rng = np.random.default_rng(0)
    taken = 0
    for _ in range(1500):
        data = bytearray(whole)
        for at in rng.integers(0, start, rng.integers(1, 4)).tolist():
            data[at] = rng.choice([0, 1, 0xFF, int(rng.integers(256))])
        cut = len(data) if rng.integers(3) else int(rng.integers(len(data)))
        image = encoded(bytes(data[:cut]))
        taken += image is not None
        assert image is None or image.turn in range(1, 9)
    assert 100 < taken < 1400


def test_company_changes_nothing(tmp_path: Path) -> None:
    """Rows of all ways share batches: each is what it is alone, broken files cost themselves."""
    files = [
        FOR_THE_DEVICE["usual"],
        NOT_FOR_THE_DEVICE["progressive"],
        NOT_FOR_THE_DEVICE["truncated"],
        FOR_THE_DEVICE["turn6"],
        NOT_FOR_THE_DEVICE["cmyk"],
        NOT_FOR_THE_DEVICE["png"],
        b"no image",
        NOT_FOR_THE_DEVICE["no-end"],
    ]
    expected = {0: reference(files[0]), 3: reference(files[3])}
    expected |= {row: pillows(files[row]) for row in (1, 4, 5)}
    for batch_size in (1, 3, 8):
        found = batches(tmp_path, files, workers=2, batch_size=batch_size)
        pixels = by_row(found)
        assert pixels.keys() == expected.keys()
        for row, wanted in expected.items():
            np.testing.assert_array_equal(pixels[row], wanted)
        failures = {one.row: one.reason for batch in found for one in batch.failures}
        assert failures.keys() == {2, 6, 7}
        assert failures[2].startswith("truncated")


def stand_in(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[[list[torch.Tensor]], Exception | None]
) -> None:
    """Have torchvision's decoder, the only library, fail as nvJPEG may: for a whole call."""

    def fake(sources: list[torch.Tensor], **more: Any) -> list[torch.Tensor]:
        error = fails(sources)
        if error is not None:
            raise error
        found: list[torch.Tensor] = decode_jpeg(sources, **more)
        return found

    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    monkeypatch.setattr(torchvision.io, "decode_jpeg", fake)
    jpeg_library.cache_clear()


@pytest.fixture
def _forgotten() -> Iterator[None]:
    yield
    jpeg_library.cache_clear()


@pytest.mark.usefixtures("_forgotten")
@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_device_refuses_is_decoded_by_pillow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A refused image has Pillow's pixels or reason; the others of its call are decoded."""
    odd, broken = saved(picture(301, 300)), bytearray(saved(picture(303, 300)))
    table = broken.index(b"\xff\xc4")
    broken[table + 5 : table + 21] = b"\xff" * 16  # more codes than there are
    files = [saved(picture(300 + 10 * row, 280)) for row in range(7)]
    files[3], files[5] = odd, bytes(broken)
    taken = len(encoded(odd).data)

    def fails(sources: list[torch.Tensor]) -> Exception | None:
        refused = any(len(source) == taken for source in sources)
        return RuntimeError("Failed to decode batch: 4\nmore") if refused else None

    stand_in(monkeypatch, fails)
    found = batches(tmp_path, files, workers=workers, batch_size=7)
    pixels = by_row(found)
    assert list(pixels) == [0, 1, 2, 3, 4, 6]
    np.testing.assert_array_equal(pixels[3], pillows(odd))
    for row in (0, 1, 2, 4, 6):
        np.testing.assert_array_equal(pixels[row], reference(files[row]))
    assert [(one.row, len(one.digest)) for one in found[0].failures] == [(5, 32)]
    assert found[0].digests.shape == (6, 32)
    [said] = caplog.messages
    assert said.startswith("nvJPEG does not decode '003.jpg' (Failed to decode batch: 4): such")


@pytest.mark.usefixtures("_forgotten")
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no room"),
        RuntimeError("Error while decoding JPEG images: Failed to decode batch: 5"),
        RuntimeError("torch_empty(size) API call failed at ops.h, line 12"),
        RuntimeError("call, /src/ops.h:12, CUDA out of memory. Tried to allocate 2 MiB"),
    ],
    ids=["torch", "nvjpeg", "stable", "told"],
)
def test_out_of_memory_blames_no_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    """Without memory for a batch its halves are decoded; without any the device has failed."""
    files = [saved(picture(300 + 10 * row, 280)) for row in range(5)]
    most = [2]
    stand_in(
        monkeypatch,
        lambda sources: error if len(sources) > most[0] else None,
    )
    pixels = by_row(batches(tmp_path, files, batch_size=5))
    for row, data in enumerate(files):
        np.testing.assert_array_equal(pixels[row], reference(data))
    most[0] = 0
    with pytest.raises(DeviceError, match=r"cpu has no memory to decode one JPEG: [^/]*$"):
        batches(tmp_path, files)


@pytest.mark.usefixtures("_forgotten")
def test_a_library_that_decodes_wrongly_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not give two test pictures is passed over; without any it is one line."""
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    monkeypatch.setattr(
        torchvision.io,
        "decode_jpeg",
        lambda *given, **more: [255 - one for one in decode_jpeg(*given, **more)],
    )
    jpeg_library.cache_clear()
    with pytest.raises(DeviceError) as caught:
        decode_jpegs([torch.frombuffer(bytearray(USUAL), dtype=torch.uint8)], CPU)
    assert "\n" not in str(caught.value)
    assert "torchvision: it decodes a test picture wrongly): pip install '" in str(caught.value)
    assert "[gpu]', or use decode torchvision" in str(caught.value)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


def test_a_run_on_the_device(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run has the features of torchvision's pixels, resumes to the same bytes, and is found."""
    monkeypatch.setattr(device_jpeg, "DEVICE_TYPES", ("cpu",))
    whole, parts, other = (str(tmp_path / name) for name in ("whole.h5", "parts.h5", "other.h5"))
    vggfeat.extract(photos, whole, run_settings())
    later = [photos / f"{number}.jpg" for number in (1, 2)]
    aside = [path.rename(tmp_path / path.name) for path in later]
    vggfeat.extract(photos, parts, run_settings())
    for path, back in zip(aside, later, strict=True):
        path.rename(back)
    vggfeat.extract(photos, parts, run_settings(decode="auto"), update=True)
    vggfeat.extract(photos, other, run_settings(decode="torchvision"))
    with h5py.File(whole) as one, h5py.File(parts) as two, h5py.File(other) as three:
        for name in ("features/conv1_1", "images/checksum", "images/state"):
            np.testing.assert_array_equal(one[name], two[name])
            np.testing.assert_array_equal(one[name], three[name])
        assert one.attrs["fingerprint"] == two.attrs["fingerprint"] != three.attrs["fingerprint"]
        assert json.loads(one.attrs["preprocess"])["decode"] == "gpu"
    found = vggfeat.search(whole, photos / "3.jpg", layers="conv1_1")
    assert found.answers[0].hits[0].score == pytest.approx(1)
    with pytest.raises(vggfeat.CacheMismatchError, match="decode"):
        vggfeat.extract(photos, whole, run_settings(decode="pillow"), update=True)


@pytest.mark.parametrize("sharding", [None, vggfeat.Sharding(shards=2)])
def test_without_cuda_it_is_refused(photos: Path, tmp_path: Path, sharding: Any) -> None:
    """A run on a CPU is refused in one line, before anything is written."""
    with pytest.raises(DeviceError) as caught:
        vggfeat.extract(photos, tmp_path / "out", run_settings(), sharding=sharding)
    assert str(caught.value) == (
        "decode gpu needs CUDA devices, and this run computes on cpu; use decode torchvision, "
        "whose pixels are nearly the same"
    )
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["photos"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"depth": 16}, "decode gpu makes 8-bit RGB by its full scale, not depth 16; use decode"),
        ({"channels": 1}, "not channels 1; use decode pillow"),
        ({"augment": "mirror"}, "not augment; use decode pillow"),
        ({"icc": "convert"}, "not icc convert; use decode pillow"),
        ({"crop": "none"}, "not crop none; use decode torchvision"),
    ],
    ids=str,
)
def test_what_it_cannot_serve_is_refused(given: dict[str, Any], said: str) -> None:
    """Settings that decoding on a device cannot serve are refused with the remedy."""
    with pytest.raises(UsageError, match=said):
        Settings(layers="conv5_3", decode="gpu", **given)


def test_without_a_device_images_are_decoded_as_by_torchvision() -> None:
    """A query, an image in memory or an item of a data set has torchvision's pixels."""
    transform = vggfeat.ImageTransform(SETTINGS.preprocess(), LIMIT)
    pixels = transform(USUAL).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(pixels, reference(USUAL))
