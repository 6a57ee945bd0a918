"""DICOM as it comes without a preamble, and pixels that are padding."""

from __future__ import annotations

import io
import shutil
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
import pytest
from dicom_files import VALUES, file_of, made, pixels
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

import vggfeat as library
from vggfeat.core.settings import Settings
from vggfeat.errors import DecodeError
from vggfeat.images.dicom import is_dicom
from vggfeat.images.sources import discover

if TYPE_CHECKING:
    from pathlib import Path

WITHOUT = ["ExplVR_LitEndNoMeta.dcm", "ExplVR_BigEndNoMeta.dcm"]
SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]


def bare(values: np.ndarray[Any, Any], syntax: Any, *, meta: bool = False) -> bytes:
    """The elements of a file of ours alone, or with group 0002 in front of them."""
    dataset = pydicom.dcmread(io.BytesIO(made(values)))
    dataset.preamble = None
    little = syntax != ExplicitVRBigEndian
    if not little:
        dataset.PixelData = values.byteswap().tobytes()
    stream = io.BytesIO()
    if meta:
        dataset.file_meta.TransferSyntaxUID = syntax
    else:
        del dataset.file_meta
    pydicom.dcmwrite(
        stream, dataset, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=little,
        force_encoding=True,
    )  # fmt: skip
    return stream.getvalue()


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_elements_alone_are_dicom(syntax: Any, meta: bool) -> None:
    """Without a preamble every order and form is read, to the values of the file with one."""
    data = bare(VALUES, syntax, meta=meta)
    assert data[128:132] != b"DICM"
    assert is_dicom(io.BytesIO(data))
    how: dict[str, Any] = {"channels": 1, "depth": 16, "window": "0,2000", "size": 36}
    np.testing.assert_array_equal(pixels(data, **how), pixels(made(VALUES), **how))


@pytest.mark.parametrize("name", WITHOUT)
def test_files_of_pydicom_without_a_preamble_are_recognised(name: str) -> None:
    """Those of pydicom's own files are DICOM; one without pixels says what it is and fails."""
    data = file_of(name).read_bytes()
    assert is_dicom(io.BytesIO(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    if "PixelData" in dataset:
        assert pixels(data, size=64).shape[2] == 3
    else:
        with pytest.raises(DecodeError, match="DICOM without an image"):
            pixels(data)


def test_they_are_found_in_folders_with_and_without_an_extension(tmp_path: Path) -> None:
    """A folder's files are found by their content where no extension says what they are."""
    for name in ("IM0001", "1.2.840.7", "a.dcm"):
        (tmp_path / name).write_bytes(bare(VALUES, ImplicitVRLittleEndian))
    (tmp_path / "README").write_bytes(b"\x08\0 and more text")
    (tmp_path / "DATA").write_bytes(b"\2\0\0\0" + bytes(200))
    assert list(discover([tmp_path]).paths) == [b"1.2.840.7", b"IM0001", b"a.dcm"]
    settings = Settings(layers="pool1", model="vgg11", weights="random:0", device="cpu", workers=0)
    summary = library.extract(tmp_path, tmp_path / "a.h5", settings)
    assert (summary.done, summary.failed) == (3, 0)


def test_compressed_pixels_without_a_syntax_fail() -> None:
    """Where nothing says how pixels are compressed, the row says so."""
    dataset = pydicom.dcmread(file_of("MR_small_RLE.dcm"))
    dataset.preamble = None
    del dataset.file_meta
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, implicit_vr=False, little_endian=True, force_encoding=True)
    with pytest.raises(DecodeError, match="compressed, without its transfer syntax"):
        pixels(stream.getvalue())


def padded(value: int, *, signed: bool = True) -> np.ndarray[Any, Any]:
    """Ten rows of padding above the rows of an image, (50, 36)."""
    values = VALUES if signed else (VALUES + 1000).astype(np.uint16)
    return np.concatenate([np.full((10, 36), value, values.dtype), values])


@pytest.mark.parametrize(
    ("value", "signed", "elements"),
    [
        (-2000, True, {"PixelPaddingValue": -2000}),
        (-2000, True, {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}),
        (-1995, True, {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}),
        (-1995, True, {"PixelPaddingValue": -1990, "PixelPaddingRangeLimit": -2000}),
        (30000, True, {"PixelPaddingValue": 30000}),
        (65535, False, {"PixelPaddingValue": 65535}),
        (0, False, {"PixelPaddingValue": 0}),
    ],
)
@pytest.mark.parametrize("how", [{}, {"clip": "1,99"}, {"window": "100,1500"}])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_in_no_window_and_black(
    value: int, signed: bool, elements: dict[str, int], how: dict[str, str], kind: str
) -> None:
    """The other pixels are those of the image without its padding; padding is black."""
    values = padded(value, signed=signed)
    common: dict[str, Any] = {"channels": 1, "depth": 16, "size": 36, "crop": "none"}
    slope = {"RescaleSlope": 2, "RescaleIntercept": -7, "PhotometricInterpretation": kind}
    found = pixels(made(values, **elements, **slope), **common, **how)
    assert not found[:10].any()
    rest = np.ascontiguousarray(values[10:])
    expected = pixels(made(rest, **slope), **common, **how)
    np.testing.assert_array_equal(found[10:], expected)


def test_padding_written_unsigned_is_that_of_signed_pixels() -> None:
    """-2000 written as the unsigned 63536, as many scanners do, is found."""
    dataset = pydicom.dcmread(io.BytesIO(made(padded(-2000))))
    dataset.add_new(0x00280120, "US", 63536)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset)
    data = made(padded(-2000), PixelPaddingValue=-2000)
    how: dict[str, Any] = {"channels": 1, "depth": 16, "size": 36}
    np.testing.assert_array_equal(pixels(stream.getvalue(), **how), pixels(data, **how))


def test_padding_counts_in_no_statistics(tmp_path: Path) -> None:
    """`stats` gives the values of the image, as NumPy has them of what is not padding."""
    (tmp_path / "a.dcm").write_bytes(made(padded(-2000), PixelPaddingValue=-2000))
    shutil.copy(tmp_path / "a.dcm", tmp_path / "b.dcm")
    found = library.stats(tmp_path, Settings(layers="fc7", channels=1, workers=0)).values
    shown = VALUES
    assert (found.minimum, found.maximum) == (shown.min(), shown.max())
    both = np.concatenate([shown, shown]).ravel()
    assert found.percentiles["5"] == pytest.approx(np.percentile(both, 5))


def test_nothing_but_padding_is_black() -> None:
    """An image of padding alone is black and no error."""
    values = np.full((40, 40), -2000, np.int16)
    for how in ({}, {"clip": "1,99"}):
        assert not pixels(made(values, PixelPaddingValue=-2000), size=40, **how).any()
