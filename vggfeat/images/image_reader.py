"""The images of a list by index, read and decoded. Loads without torch, unlike `dataset.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from vggfeat.errors import DecodeError
from vggfeat.images.decode import load_decoder, read_digest, read_pixels

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from vggfeat.core.preprocessing import Preprocess
    from vggfeat.core.settings import Settings
    from vggfeat.images.image_list import ImageList

Read = TypeVar("Read")


class ImageReader:
    """The images of a list, decoded, resized and cropped as `extract` does it.

    Args:
        images: the list.
        settings: how images are read.
        positions: int64 (N,), the position of each item's image in the list; by default its index.
    """

    def __init__(
        self, images: ImageList, settings: Settings, positions: NDArray[np.int64] | None = None
    ) -> None:
        self._images, self._positions = images, positions
        self._preprocess, self._max_pixels = settings.preprocess(), settings.max_pixels
        load_decoder(self._preprocess)

    def __len__(self) -> int:
        return len(self._images if self._positions is None else self._positions)

    def decode(self, index: int) -> tuple[bytes, NDArray[Any]]:
        """Return the digest and the pixels of an image; raise `DecodeError` if it has none.

        The pixels may be read-only.
        """
        return self._read(index, read_pixels)

    def _read(
        self, index: int, read: Callable[[BinaryIO, Preprocess, int], Read]
    ) -> tuple[bytes, Read]:
        digest = b""
        try:
            with self._images.open(self._position(index)) as file:
                digest, stream = read_digest(file)
                return digest, read(stream, self._preprocess, self._max_pixels)
        except DecodeError as error:
            error.digest = digest
            raise

    def name(self, index: int) -> str:
        """Return the path of an image relative to the sources' common root, `ARCHIVE!MEMBER`."""
        return self._images[self._position(index)].name

    def _position(self, index: int) -> int:
        return index if self._positions is None else int(self._positions[index])
