"""Images of anything that torch can index: a data set's items as rows with names and bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from vggfeat.core.exhaustion import exhaustion_of
from vggfeat.core.text import counted, first_few
from vggfeat.errors import DecodeError, UsageError, VggfeatError
from vggfeat.images.decode import REASON_LENGTH
from vggfeat.images.image_list import ImageList
from vggfeat.images.pillow import unread_file
from vggfeat.images.streams import open_file
from vggfeat.images.transform import as_array

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

ROOT = b"dataset:"
"""The root of names that are no paths."""

_DIGITS = 6
_THERE = 1  # nanoseconds since 1970: an item has no time, and 0 stands for a file that is missing
_ORIENTATION = 0x0112
_SAVED_AS_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # all others are TIFFs, without loss


def is_dataset(sources: Any) -> bool:
    """Return whether these are images themselves, or a data set of them, and no paths."""
    if isinstance(sources, (str, bytes, os.PathLike)):
        return False
    if not (hasattr(sources, "__getitem__") and hasattr(sources, "__len__")):
        return False
    if isinstance(sources, (list, tuple)):
        return any(not isinstance(one, (str, os.PathLike)) for one in sources)
    if isinstance(sources, np.ndarray) or hasattr(sources, "iloc"):
        return bool(len(sources)) and not isinstance(next(iter(sources)), (str, os.PathLike))
    return True


def files_of(dataset: Any) -> tuple[tuple[Path, ...], str | None] | None:
    """Return the files of a data set of torchvision's that gives images as they are, and its root.

    None for one that transforms its images, or is not made of files.
    """
    samples = _samples(dataset)
    loader = getattr(getattr(dataset, "loader", None), "__name__", "")
    transforms = (getattr(dataset, name, None) for name in ("transform", "transforms"))
    if not samples or loader != "default_loader" or any(one is not None for one in transforms):
        return None
    root = os.path.abspath(os.fspath(getattr(dataset, "root", "")))
    inside = all(os.path.abspath(path).startswith(root + os.sep) for path in samples)
    return tuple(map(Path, samples)), root if inside else None


def items_of(dataset: Any, names: str | Sequence[str] | None = None) -> ItemList:
    """Return the items of a map-style data set as a list of images.

    Args:
        dataset: items are images, or tuples, lists or mappings that hold one: see `ItemList`.
        names: of the items, unique; or the column of the data set that has them. By default the
            paths of its `samples` or `imgs`, or the index, `000000`.
    """
    column = _image_column(dataset)
    given = _names(dataset, names)
    if len(given) != len(dataset):
        raise UsageError(
            f"{counted(len(given), 'name')} for {counted(len(dataset), 'item')}; give one each"
        )
    texts = [os.fsencode(name) for name in given]
    wrong = sorted({repr(name) for name in given if not name or "\0" in name})
    twice = sorted({repr(name) for name in given}) if len(set(texts)) < len(texts) else []
    if wrong or twice:
        repeated = [name for name in twice if [repr(one) for one in given].count(name) > 1][:3]
        raise UsageError(f"names must be unique and not empty: {first_few(wrong or repeated)}")
    order = np.array(sorted(range(len(texts)), key=texts.__getitem__), dtype=np.int64)
    count = len(texts)
    return ItemList(
        ROOT,
        tuple(texts[at] for at in order.tolist()),
        np.zeros(count, np.int64),
        np.full(count, _THERE, np.int64),
        {},
        dataset=_undecoded(dataset, column),
        column=column,
        order=order,
    )


@dataclass(frozen=True, slots=True, eq=False)
class ItemList(ImageList):
    """Items of a data set in the order of their names, read like files.

    An item's bytes are those of its file where there is one, else those that save the image without
    loss. An item may be a PIL image, an array (H, W) or (H, W, C), a tensor (C, H, W) of pixels,
    the bytes of an image file, a path; or a tuple, list or mapping with one of these, as data sets
    of torchvision and Hugging Face have them.

    Attributes:
        dataset: with `dataset[index]`.
        column: of an item that is a mapping, what the image stands under; empty to look for it.
        order: int64 (N,), the index in the data set of each row.
    """

    dataset: Any = None
    column: str = ""
    order: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def on_disk(self) -> bool:
        """False: nothing can be unmounted, and only one thread at a time may ask for an item."""
        return False

    def part(self, rows: NDArray[np.int64]) -> ItemList:
        """Return some of the items, as a list by itself."""
        return dataclasses.replace(
            self,
            paths=tuple(self.paths[row] for row in rows.tolist()),
            sizes=self.sizes[rows],
            mtimes=self.mtimes[rows],
            order=self.order[rows],
        )

    @contextlib.contextmanager
    def open(self, row: int) -> Iterator[BinaryIO]:
        """Yield the bytes of an item as a stream; an error of the data set is a `DecodeError`."""
        try:
            content = _content(self.dataset[int(self.order[row])], self.column)
        except DecodeError:
            raise
        except Exception as error:  # data sets raise anything
            exhausted = exhaustion_of(error)
            if exhausted is not None:
                raise exhausted from error
            kind = "" if isinstance(error, VggfeatError) else f"{type(error).__name__}: "
            reason = " ".join(f"{kind}{error}".split())
            raise DecodeError(reason[:REASON_LENGTH]) from error
        yield io.BytesIO(content)


def _samples(dataset: Any) -> list[str]:
    """Return the paths of a data set like torchvision's ImageFolder; empty for any other."""
    for name in ("samples", "imgs"):
        pairs = getattr(dataset, name, None)
        if isinstance(pairs, list) and pairs and len(pairs) == len(dataset):
            paths = [pair[0] if isinstance(pair, (tuple, list)) else pair for pair in pairs]
            if all(isinstance(path, (str, os.PathLike)) for path in paths):
                return [os.fspath(path) for path in paths]
    return []


def _names(dataset: Any, names: str | Sequence[str] | None) -> list[str]:
    if isinstance(names, str):
        return [str(one) for one in _column(dataset, names)]
    if names is not None:
        return [str(one) for one in names]
    samples = _samples(dataset)
    if samples:
        root = os.path.abspath(os.fspath(getattr(dataset, "root", "") or os.curdir))
        return [os.path.relpath(os.path.abspath(path), root) for path in samples]
    digits = max(_DIGITS, len(str(len(dataset) - 1)))
    return [f"{number:0{digits}}" for number in range(len(dataset))]


def _column(dataset: Any, name: str) -> Any:
    """Return a column of names: of a Hugging Face data set, or an attribute of another."""
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list):
        if name in columns:
            return dataset[name]
        raise UsageError(f"the data set has no column {name!r}; it has {', '.join(columns)}")
    if hasattr(dataset, name):
        return getattr(dataset, name)
    raise UsageError(f"the data set has no column or attribute {name!r}; give the names themselves")


def _image_column(dataset: Any) -> str:
    """Return the column of images of a Hugging Face data set; empty for any other."""
    features = _features(dataset)
    columns = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    if features and len(columns) != 1:
        found = ", ".join(columns) or "none"
        raise UsageError(
            f"the data set has columns {', '.join(features)}, of images {found}; expected one of "
            "images: select_columns, or cast_column"
        )
    return columns[0] if columns else ""


def _features(dataset: Any) -> Mapping[str, Any]:
    has_both = hasattr(dataset, "cast_column") and hasattr(dataset, "features")
    return dict(dataset.features or {}) if has_both else {}


def _undecoded(dataset: Any, column: str) -> Any:
    """Return a Hugging Face data set that gives the bytes of its image files, and no pixels."""
    if not column:
        return dataset
    return dataset.cast_column(column, type(_features(dataset)[column])(decode=False))


def _content(item: Any, column: str) -> bytes:
    """Return the bytes of an item."""
    if hasattr(item, "keys"):
        return _content_of_mapping(item, column)
    if isinstance(item, (tuple, list)):
        if not len(item):
            raise DecodeError("the item is empty; expected an image first in it")
        return _content(item[0], column)
    if isinstance(item, (bytes, bytearray)):
        return bytes(item)
    if isinstance(item, (str, os.PathLike)):
        with open_file(os.fsencode(item)) as stream:
            return stream.read()
    if isinstance(item, Image.Image):
        return _picture(item)
    return _array(as_array(item))


def _content_of_mapping(item: Mapping[str, Any], column: str) -> bytes:
    if column:
        return _content(item[column], "")
    if item.get("bytes") is not None:
        return bytes(item["bytes"])
    for name in ("path", "image", "img"):
        if item.get(name) is not None:
            return _content(item[name], "")
    raise DecodeError(f"the item has {', '.join(map(str, item)) or 'nothing'}; expected an image")


def _picture(image: Image.Image) -> bytes:
    """Return the file of an image, or a file that saves all that its pixels mean."""
    content = unread_file(image)
    if content is not None:
        return content
    exif = image.getexif()
    is_plain = image.mode in ("L", "RGB") and "transparency" not in image.info
    if is_plain and exif.get(_ORIENTATION, 1) == 1 and not image.info.get("icc_profile"):
        return _array(np.asarray(image))
    stream = io.BytesIO()
    if image.mode in _SAVED_AS_PNG and not is_plain:  # a plain TIFF takes no time to compress
        image.save(stream, "PNG", compress_level=1, exif=exif)
    else:
        image.save(stream, "TIFF", exif=exif)
    return stream.getvalue()


def _array(values: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()
