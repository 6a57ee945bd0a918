"""HEIC, AVIF and JPEG XL: Pillow's own plugin decides what their pixels are."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401  # registers with Pillow
import pytest
from command_line import SMALL, vggfeat
from PIL import Image, features
from torchvision.transforms import functional as reference

from vggfeat.core.preprocessing import Preprocess
from vggfeat.errors import DecodeError
from vggfeat.images.decode import decode
from vggfeat.images.optional_formats import check_jpeg_xl_size

if TYPE_CHECKING:
    from pathlib import Path

pillow_heif.register_heif_opener()

WIDTH, HEIGHT = 61, 40
ORIENTATION, TURN_LEFT = 0x0112, 6
FORMATS = {"heic": "HEIF", "jxl": "JXL", **({"avif": "AVIF"} if features.check("avif") else {})}
PLAIN = Preprocess(size=32, resize=40)


def picture(*, turned: bool = False, **options: Any) -> tuple[Image.Image, dict[str, Any]]:
    """Smooth colours, which survive compression."""
    across = np.linspace(0, 255, WIDTH)
    down = np.linspace(0, 255, HEIGHT)[:, None]
    channels = (across + 0 * down, down + 0 * across, (across + down) / 2)
    image = Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))
    if turned:
        exif = Image.Exif()
        exif[ORIENTATION] = TURN_LEFT
        options["exif"] = exif.tobytes()
    return image, options


def saved(ending: str, *, turned: bool = False, **options: Any) -> io.BytesIO:
    stream = io.BytesIO()
    image, more = picture(turned=turned, **options)
    image.save(stream, FORMATS[ending], **more)
    stream.seek(0)
    return stream


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("turned", [False, True])
def test_pixels_are_those_of_the_plugin(ending: str, turned: bool) -> None:
    stream = saved(ending, turned=turned)
    image = Image.open(stream).convert("RGB")
    if turned and ending != "heic":  # its plugin turns the image itself
        image = image.transpose(Image.Transpose.ROTATE_270)
    assert image.size == ((HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT))
    expected = reference.center_crop(reference.resize(image, [40], antialias=True), [32])
    np.testing.assert_array_equal(decode(stream, PLAIN, 10_000), np.asarray(expected))


@pytest.mark.parametrize("ending", FORMATS)
def test_limit_of_pixels(ending: str) -> None:
    count = WIDTH * HEIGHT
    decode(saved(ending), PLAIN, count)
    with pytest.raises(DecodeError, match=rf"^decompression bomb: {count} pixels, at most"):
        decode(saved(ending), PLAIN, count - 1)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("kept", [14, 0.5, 0.9])
def test_truncated_files_fail_with_a_reason(ending: str, kept: float) -> None:
    data = saved(ending).getvalue()
    with pytest.raises(DecodeError, match=r"\S"):
        decode(io.BytesIO(data[: int(kept if kept > 1 else kept * len(data))]), PLAIN, 10_000)


@pytest.mark.parametrize(
    "size",
    [
        *((8, 8), (1, 1), (256, 256), (1200, 1000), (400, 300), (300, 200), (1920, 1080)),
        *((500, 400), (200, 100), (513, 7), (9000, 20), (333, 500), (264, 8)),
    ],
)
@pytest.mark.parametrize("boxed", [False, True])
def test_jpeg_xl_sizes(size: tuple[int, int], boxed: bool) -> None:
    """The size is found in either form of header, with each of the aspects that have a code."""
    stream = io.BytesIO()
    _, options = picture(turned=boxed)  # with EXIF it is a container
    Image.new("RGB", size).save(stream, "JXL", **options)
    assert stream.getvalue().startswith(b"\0\0\0\x0cJXL ") == boxed
    count = size[0] * size[1]
    check_jpeg_xl_size(stream, count)
    with pytest.raises(Image.DecompressionBombError, match=f"^{count} pixels$"):
        check_jpeg_xl_size(stream, count - 1)


@pytest.mark.parametrize("data", [b"\xff\x0a", b"\xff\x0a\x04", b"\0\0\0\x0cJXL \r\n\x87\n"])
def test_jpeg_xl_without_a_size(data: bytes) -> None:
    with pytest.raises(DecodeError, match=r"^truncated: JPEG XL without a"):
        check_jpeg_xl_size(io.BytesIO(data), 1)


def test_from_the_command_line(tmp_path: Path) -> None:
    """Folders list these files, and each becomes a row."""
    (tmp_path / "images").mkdir()
    for ending in FORMATS:
        (tmp_path / "images" / f"a.{ending.upper()}").write_bytes(saved(ending).getvalue())
    done = vggfeat("extract", "images", *SMALL, "--out", "f.h5", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f'"done": {len(FORMATS)}' in done.stdout


WITHOUT = """
import io, sys
for name in ("pillow_heif", "pillow_heif.as_plugin", "pillow_jxl"):
    sys.modules[name] = None
from vggfeat.core.preprocessing import Preprocess
from vggfeat.errors import DecodeError
from vggfeat.images.decode import decode
from vggfeat.images.pillow_state import own_plugins
for name in sys.argv[1:]:
    try:
        decode(open(name, "rb"), Preprocess(), 10_000)
    except DecodeError as error:
        print(error)
"""


def test_without_its_package_the_reason_names_the_extra(tmp_path: Path) -> None:
    names = ["a.heic", "a.jxl", "boxed.jxl"]
    for name, turned in zip(names, (False, False, True), strict=True):
        data = saved(name.rpartition(".")[2], turned=turned).getvalue()
        (tmp_path / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *names],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    # `vggfeat[jxl]`, or where vggfeat was installed from a checkout its folder.
    jpeg_xl = r"JPEG XL, which needs pillow-jxl-plugin: pip install '\S+\[jxl\]'"
    heic = r"HEIC, which needs pillow-heif: pip install '\S+\[heif\]'"
    for line, expected in zip(done.stdout.splitlines(), [heic, jpeg_xl, jpeg_xl], strict=True):
        assert re.fullmatch(expected, line)
