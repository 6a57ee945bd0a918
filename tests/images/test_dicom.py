"""DICOM files as images: pydicom's own test files, against pydicom's own reading of them."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pydicom
import pytest
from command_line import vggfeat
from dicom_files import VALUES, file_of, made, pixels
from PIL import Image
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array

import vggfeat as library
from vggfeat.core.settings import Settings
from vggfeat.errors import DecodeError
from vggfeat.extraction.trace import trace
from vggfeat.images.decode import decode
from vggfeat.images.sources import discover
from vggfeat.visualization.thumbnails import load_picture

if TYPE_CHECKING:
    from pathlib import Path

FAST = ("--model", "vgg11", "--weights", "random:0", "--layers", "conv1_1:max", "--size", "32")

CT = file_of("CT_small.dcm")
MR = file_of("MR_small.dcm")


def test_a_window_in_hounsfield_units() -> None:
    """A window cuts a CT's values as rescaled by its slope and intercept."""
    dataset = pydicom.dcmread(CT)
    units = np.asarray(apply_modality_lut(pixel_array(dataset), dataset), np.float64)
    expected = np.rint((units.clip(-160, 241) + 160) / 401 * 65535)
    found = pixels(CT.read_bytes(), channels=1, depth=16, window="40.5,401", size=128)
    np.testing.assert_array_equal(found[..., 0], expected)


def test_the_files_own_window() -> None:
    """Where no window is given the file's own is taken, as pydicom applies it."""
    dataset = pydicom.dcmread(MR)
    shown = np.asarray(apply_voi_lut(pixel_array(dataset), dataset), np.float64)
    low, high = -32768, 32767  # of its signed words
    expected = (shown - low) / (high - low) * 255
    found = pixels(MR.read_bytes(), channels=1, size=64)
    assert np.abs(found[..., 0] - expected).max() <= 0.51


def test_without_a_window_the_range_is_taken() -> None:
    """A file that names no window goes from its least to its largest value."""
    expected = np.rint((VALUES - VALUES.min()) * (255 / (int(VALUES.max()) - VALUES.min())))
    found = pixels(made(VALUES), channels=1, size=36)
    np.testing.assert_array_equal(found[..., 0], expected)


@pytest.mark.parametrize(("function", "low", "high"), [("LINEAR", 0, 99), ("LINEAR_EXACT", 0, 100)])
def test_linear_and_exact_windows(function: str, low: float, high: float) -> None:
    """The two ends of a window of 100 about 50 are those of PS3.3 C.11.2.1.2 and C.11.2.1.3.2."""
    data = made(VALUES, WindowCenter=["50", "7"], WindowWidth=["100", "3"], VOILUTFunction=function)
    expected = np.rint((VALUES.clip(low, high) - low) * (65535 / (high - low)))
    found = pixels(data, channels=1, depth=16, size=36)
    np.testing.assert_array_equal(found[..., 0], expected)


def test_small_values_of_monochrome1_are_bright() -> None:
    """MONOCHROME1 is the negative of MONOCHROME2, whatever cuts the values."""
    for how in ({}, {"window": "100,900"}, {"clip": "2,98"}):
        usual = pixels(made(VALUES), channels=1, depth=16, size=36, **how)
        other = made(VALUES, PhotometricInterpretation="MONOCHROME1")
        np.testing.assert_array_equal(pixels(other, channels=1, depth=16, size=36, **how),
                                      65535 - usual)  # fmt: skip


def test_colours_and_palettes() -> None:
    """Colours arrive as pydicom has them, and those of a palette as it looks them up."""
    name = file_of("SC_rgb_rle.dcm")
    expected = pixel_array(pydicom.dcmread(name))
    np.testing.assert_array_equal(pixels(name.read_bytes(), size=100), expected)
    name = file_of("examples_palette.dcm")
    dataset = pydicom.dcmread(name)
    expected = np.asarray(apply_color_lut(pixel_array(dataset), dataset), np.float64) / 257
    found = pixels(name.read_bytes(), size=min(expected.shape[:2]))
    np.testing.assert_array_equal(found, np.rint(expected))


def test_the_first_frame() -> None:
    """Of several frames the first is the image."""
    name = file_of("SC_rgb_rle_2frame.dcm")
    frames = pixel_array(pydicom.dcmread(name))
    assert (frames[0] != frames[1]).any()
    np.testing.assert_array_equal(pixels(name.read_bytes(), size=100), frames[0])
    two = np.stack([VALUES, VALUES[::-1]])
    data = made(two, NumberOfFrames=2)
    np.testing.assert_array_equal(pixels(data, size=36), pixels(made(VALUES), size=36))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (file_of("rtplan.dcm").read_bytes(), "DICOM without an image, RT Plan Storage"),
        (file_of("MR_truncated.dcm").read_bytes(), "pixel data is less than expected"),
        (CT.read_bytes()[:300], "DICOM without an image"),
    ],
)
def test_what_is_no_image_fails(data: bytes, message: str) -> None:
    """Plans, reports and what is cut short fail with a reason of one line."""
    with pytest.raises(DecodeError) as caught:
        pixels(data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_pixels_than_allowed() -> None:
    """Sides beyond the limit fail before anything is unpacked."""
    preprocess = Settings(layers="fc7").preprocess()
    with pytest.raises(DecodeError, match="DICOM: 128 x 128 pixels, at most 1000 allowed"):
        decode(io.BytesIO(CT.read_bytes()), preprocess, 1000)


def test_without_pydicom(tmp_path: Path) -> None:
    """Without the package the image fails, and says what to install."""
    code = (
        "import sys; sys.modules['pydicom'] = None\n"
        "from vggfeat.images.decode import decode_file\n"
        "from vggfeat.core.preprocessing import Preprocess\n"
        f"decode_file({str(CT).encode()!r}, Preprocess(), 10**7)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    said = done.stderr.splitlines()[-1]
    assert "DICOM needs pydicom" in said
    assert "pip install '" in said
    assert said.endswith("[dicom]'")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as scanners write them: names with and without an extension, a plan beside them."""
    place = tmp_path_factory.mktemp("dicom")
    folder = place / "study"
    (folder / "IMG").mkdir(parents=True)
    for name in ("CT.dcm", "ct.DICOM", "IMG/1.2.840.113619.2", "IMG/IM0001"):
        shutil.copy(CT, folder / name)
    shutil.copy(MR, folder / "MR.dcm")
    shutil.copy(file_of("rtplan.dcm"), folder / "plan.dcm")
    for name in ("README", "notes.1", "long"):
        (folder / name).write_text("x" * (300 if name == "long" else 3))
    (folder / "IMG" / "CT.txt").write_bytes(CT.read_bytes())
    return place


def test_files_are_found_by_name_or_mark(study: Path) -> None:
    """Both suffixes, and files without one or with a number that begin as DICOM does."""
    manifest = discover([study / "study"])
    assert [path.decode() for path in manifest.paths] == [
        "CT.dcm", "IMG/1.2.840.113619.2", "IMG/IM0001", "MR.dcm", "ct.DICOM", "plan.dcm",
    ]  # fmt: skip
    assert manifest.skipped == {"": 2, "1": 1, "txt": 1}


def test_a_folder_of_scans(study: Path) -> None:
    """From the command line: scans have features, and a plan is a failed row that says why."""
    words = ["extract", "study", *FAST, "--window", "40,400", "-o", "s.h5"]
    done = vggfeat(*words, cwd=study)
    assert done.returncode == 0, done.stderr
    cache = library.open(study / "s.h5")
    assert cache.done.sum() == 5
    assert [failure.reason for failure in cache.failures()] == [
        "DICOM without an image, RT Plan Storage"
    ]
    rows = cache.values("conv1_1:max", np.flatnonzero(cache.done))
    np.testing.assert_array_equal(rows[0], rows[1])  # the same scan twice
    shown = vggfeat("stats", "study", "--channels", "1", "--json", cwd=study)
    assert '"DICOM MONOCHROME2": 5' in shown.stdout


def test_traced_and_looked_at() -> None:
    """A scan has its sides in a trace, and a thumbnail."""
    stages = trace(str(CT), model="vgg11").stages
    assert stages[0].by == "DICOM MONOCHROME2"
    assert stages[1].shape == (128, 128, 3)
    picture = load_picture(str(CT), 50)
    assert isinstance(picture, Image.Image)
    assert picture.size == (50, 50)
