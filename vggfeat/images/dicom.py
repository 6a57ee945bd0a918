"""Read the first frame of DICOM files in the file's units, with the range of grey it displays.

DICOM PS3.3, C.7.6.3 (pixels), C.11.1 (rescaling) and C.11.2 (windows). pydicom handles compression,
byte order and colour spaces.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from vggfeat.core.dicom_head import HEAD_BYTES, is_dicom_head
from vggfeat.core.optional import require
from vggfeat.errors import DecodeError
from vggfeat.images.intensity import Range, Raster
from vggfeat.images.resize import too_large

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vggfeat.core.preprocessing import Preprocess

_LONGEST = 150  # characters of a reason


def is_dicom(stream: BinaryIO) -> bool:
    """Return whether a seekable stream begins as DICOM files do; see `core.dicom_head`."""
    stream.seek(0)
    return is_dicom_head(stream.read(HEAD_BYTES))


def read_dicom(stream: BinaryIO, preprocess: Preprocess, max_pixels: int) -> Raster:
    """Read the first frame of a DICOM file: grey in the file's units, such as Hounsfield, or RGB.

    Without `preprocess.window` and `preprocess.clip`, black and white are those of the file's
    window or table of grey levels, else its smallest and largest value.
    """
    require("pydicom", "dicom", "DICOM", error=DecodeError)
    import pydicom
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

    stream.seek(0)
    dataset = pydicom.dcmread(stream, force=True)  # the preamble may be missing: see `is_dicom`
    _complete_syntax(dataset)
    if "PixelData" not in dataset or "Rows" not in dataset:
        raise DecodeError(f"DICOM without an image, {_class_name(dataset)}")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns > max_pixels:
        raise DecodeError(too_large("DICOM", f"{columns} x {rows}", max_pixels))
    values = _first_frame(dataset)
    kind = str(dataset.PhotometricInterpretation)
    bits = int(dataset.BitsStored)
    if kind == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
        bits = 8 * values.dtype.itemsize
    if values.ndim == 3:  # noqa: PLR2004 (H, W, 3)
        return Raster(values, Range(0, 2**bits - 1), f"DICOM {kind}", bits)
    padding = _padding(dataset, values)
    values = apply_modality_lut(values, dataset)
    scale = None
    if preprocess.window is None and preprocess.clip is None:
        values, scale = _by_file(dataset, values, padding)
    inverted = kind == "MONOCHROME1"
    return Raster(values[..., None], scale, f"DICOM {kind}", bits, inverted, padding)


def _complete_syntax(dataset: Any) -> None:
    """Infer the transfer syntax of a file without one, such as a file without a preamble."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if "TransferSyntaxUID" in getattr(dataset, "file_meta", ()):
        return
    if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        raise DecodeError("DICOM whose pixels are compressed, without its transfer syntax")
    implicit, little = dataset.original_encoding
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _padding(dataset: Any, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return a mask of the stored values, (H, W), that are padding (C.7.5.1.1.2); None if none."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return None
    last = dataset.get("PixelPaddingRangeLimit")
    edges = [_as_stored(int(edge), stored) for edge in (first, first if last is None else last)]
    padded = (stored >= min(edges)) & (stored <= max(edges))
    return padded if padded.any() else None


def _as_stored(value: int, stored: NDArray[Any]) -> int:
    """Convert a value to the sign of the pixels: many files write -2000 as 63536."""
    size = 1 << (8 * stored.dtype.itemsize)
    if stored.dtype.kind == "i" and value >= size // 2:
        return value - size
    return value + size if stored.dtype.kind == "u" and value < 0 else value


def _first_frame(dataset: Any) -> NDArray[Any]:
    """Return the stored values, (H, W) or RGB (H, W, 3)."""
    from pydicom.pixels.utils import pixel_array

    try:
        return np.asarray(pixel_array(dataset, index=0))
    except RuntimeError as error:
        packed = str(dataset.file_meta.TransferSyntaxUID.name).partition(" (")[0]
        if "missing dependencies" in str(error):
            raise DecodeError(
                f"DICOM in {packed}, which pydicom needs more for: pip install pylibjpeg "
                "pylibjpeg-libjpeg"
            ) from error
        _, _, why = str(error).rpartition("plugins:")
        raise DecodeError(f"DICOM in {packed}: {' '.join(why.split())}"[:_LONGEST]) from error


def _class_name(dataset: Any) -> str:
    with contextlib.suppress(AttributeError):
        return str(dataset.file_meta.MediaStorageSOPClassUID.name)
    return "of an unknown kind"


def _by_file(
    dataset: Any, values: NDArray[Any], padding: NDArray[np.bool_] | None
) -> tuple[NDArray[Any], Range]:
    """Return values with their black and white, as the file specifies its display."""
    from pydicom.pixels.processing import apply_voi

    window = _window(dataset)
    if window is not None:
        return values, window
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return apply_voi(values, dataset), Range(0, 2**bits - 1)
    shown = values if padding is None else values[~padding]
    finite = shown[np.isfinite(shown)]
    return values, Range(float(finite.min(initial=0)), float(finite.max(initial=0)))


def _window(dataset: Any) -> Range | None:
    """Return the first window (C.11.2.1.2, C.11.2.1.3); a sigmoid's as if it were linear exact."""
    centre, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None or width <= 0:
        return None
    if str(dataset.get("VOILUTFunction", "LINEAR")) == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return Range(centre - width / 2, centre + width / 2)


def _first(value: Any) -> float | None:
    try:
        return float(value)
    except TypeError:  # several
        return float(value[0]) if value else None
