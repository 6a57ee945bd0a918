"""JPEGs that a device decodes and others that it must not, and what their pixels are."""

from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

from vggfeat.core.preprocessing import Preprocess
from vggfeat.core.settings import Settings
from vggfeat.images.batch_plan import plan_batches
from vggfeat.images.dataset import EncodedImages
from vggfeat.images.decode import decode
from vggfeat.images.device_jpeg import DeviceJpegs
from vggfeat.images.jpeg_header import encoded_jpeg
from vggfeat.images.loader import load_batches
from vggfeat.images.sources import discover

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from vggfeat.core.records import DecodedBatch

CPU = torch.device("cpu")
LIMIT = 2**26
SETTINGS = Settings(layers="fc7", decode="gpu")


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth colours, as JPEG has them."""
    bands = {"L": 1, "CMYK": 4}.get(mode, 3)
    rough = np.random.default_rng(width * height).integers(0, 256, (9, 9, bands), np.uint8)
    image = Image.fromarray(rough[..., 0] if bands == 1 else rough, mode if bands == 4 else None)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return saved(Image.fromarray(pixels), quality=98)


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x112] = orientation
    return made


def cropped(image: torch.Tensor) -> NDArray[np.uint8]:
    """torchvision's resize and crop of a decoded tensor."""
    fitted = functional.center_crop(functional.resize(image, [256], antialias=True), [224])
    pixels: NDArray[np.uint8] = fitted.permute(1, 2, 0).cpu().numpy()
    return pixels


def reference(data: bytes) -> NDArray[np.uint8]:
    """torchvision's transform of the tensor that it decodes and turns."""
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return cropped(decode_jpeg(raw, mode=ImageReadMode.RGB, apply_exif_orientation=True))


def pillows(data: bytes) -> NDArray[np.uint8]:
    return decode(io.BytesIO(data), Preprocess(), LIMIT)


def encoded(data: bytes, **more: Any) -> Any:
    return encoded_jpeg(io.BytesIO(data), dataclasses.replace(Preprocess(), **more), LIMIT)


def batches(
    folder: Path,
    files: Sequence[bytes],
    *,
    device: torch.device = CPU,
    workers: int = 0,
    batch_size: int = 4,
) -> list[DecodedBatch]:
    """Write files, and load them as a run does."""
    for number, data in enumerate(files):
        (folder / f"{number:03}.jpg").write_bytes(data)
    settings = dataclasses.replace(SETTINGS, workers=workers)
    dataset = EncodedImages(discover([str(folder)]), settings)
    plan = plan_batches(np.arange(len(files)), batch_size)
    loader = load_batches(dataset, plan, settings, workers=workers, pin=device.type == "cuda")
    decoder = DeviceJpegs(dataset, settings, [device], workers=workers, goes_on=lambda: True)
    return list(decoder.batches(loader, lambda: device))


def by_row(found: Sequence[DecodedBatch]) -> dict[int, NDArray[np.uint8]]:
    return {
        row: batch.images[slot].cpu().numpy()
        for batch in found
        for row, slot in zip(batch.rows.tolist(), batch.slots.tolist(), strict=True)
    }


FOR_THE_DEVICE = {
    "usual": saved(picture(500, 375)),
    "full-colour": saved(picture(301, 997), quality=40, subsampling=0),
    "half-colour": saved(picture(333, 259), subsampling=1),
    "no-resize": saved(picture(256, 256)),
    "enlarged": saved(picture(90, 60)),
    "grey": saved(picture(400, 300, "L")),
    "segments": saved(picture(400, 300), comment=b"\xff\xc0 is no marker", icc_profile=bytes(3000)),
    "restarts": saved(picture(400, 300), restart_marker_blocks=7),
    "behind": saved(picture(400, 300)) + b"more \xff\xd8\xff",
    "large": noise(900, 800),
    **{f"turn{turn}": saved(picture(320, 280), exif=exif(turn)) for turn in range(1, 9)},
}

USUAL = saved(picture(400, 300))
SCAN = USUAL.index(b"\xff\xda")
FRAME = USUAL.index(b"\xff\xc0")


def patched(at: int, new: bytes) -> bytes:
    return USUAL[:at] + new + USUAL[at + len(new) :]


NOT_FOR_THE_DEVICE = {
    "progressive": saved(picture(333, 259), progressive=True),
    "cmyk": saved(picture(300, 260, "CMYK")),
    "rgb": saved(picture(300, 260), keep_rgb=True),
    "adobe-says-rgb": USUAL[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0" + USUAL[2:],
    "named-rgb": patched(FRAME + 10, b"R")[:2] + patched(FRAME + 10, b"R")[20:],
    "png": saved(picture(300, 260), "PNG"),
    "webp": saved(picture(300, 260), "WEBP"),
    "truncated": USUAL[:-1000],
    "no-end": USUAL[:-2],
    "header-alone": USUAL[:SCAN],
    "two-scans": USUAL[:-2] + USUAL[SCAN:],
    "arithmetic": patched(FRAME + 1, b"\xc9"),
    "extended": patched(FRAME + 1, b"\xc1"),
    "twelve-bits": patched(FRAME + 4, b"\x0c"),
    "no-height": patched(FRAME + 5, b"\0\0"),
    "four-across": patched(FRAME + 11, b"\x41"),
    "two-frames": USUAL[:FRAME] + USUAL[FRAME : FRAME + 19] + USUAL[FRAME:],
    "empty": b"",
    "start-alone": b"\xff\xd8",
}


def run_settings(**more: object) -> Settings:
    return Settings(
        **{  # type: ignore[arg-type] # of every type
            "layers": "conv1_1",
            "model": "vgg11",
            "weights": "random:0",
            "device": "cpu",
            "decode": "gpu",
            "size": 32,
            "workers": 1,
            "batch_size": 2,
            "precision": "float32",
            **more,
        }
    )


def write_photos(folder: Path) -> Path:
    """Write five JPEGs, each turned another way."""
    folder.mkdir()
    for number in range(5):
        data = saved(picture(90 + 10 * number, 120), exif=exif(1 + number))
        (folder / f"{number}.jpg").write_bytes(data)
    return folder
