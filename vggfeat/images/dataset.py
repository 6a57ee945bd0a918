"""Images as a map-style torch Dataset: the pixels that the network gets, or why there are none."""

from __future__ import annotations

import dataclasses
import operator
import os
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from vggfeat.core.isolation import isolated
from vggfeat.errors import DecodeError
from vggfeat.images.decode import decode, pixel_type
from vggfeat.images.image_list import ImageList
from vggfeat.images.image_reader import ImageReader
from vggfeat.images.jpeg_header import encoded_jpeg
from vggfeat.images.sources import discover, log_skipped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vggfeat.core.preprocessing import Preprocess
    from vggfeat.core.records import EncodedImage
    from vggfeat.core.settings import Settings


class ImageItem(NamedTuple):
    """An item of `ImageDataset`. torch's default collate function makes one `ImageItem` of many.

    Attributes:
        pixels: (H, W, C) C-contiguous, uint8, or uint16 for `depth=16`; zeros if decoding failed.
        ok: whether it was decoded.
        row: its index in the data set, and its row in a cache of the same sources.
        digest: SHA-256 of the image's bytes (32 bytes); empty if they could not be read.
        reason: why decoding failed, one line; empty if it did not.
    """

    pixels: NDArray[Any]
    ok: bool
    row: int
    digest: bytes
    reason: str


class ImageDataset(ImageReader, Dataset[ImageItem]):
    """The images that `sources` name, decoded, resized and cropped as `extract` does it.

    A map-style Dataset for `torch.utils.data.DataLoader`, with any number of workers and any start
    method; it pickles as its list of files. Item i is an `ImageItem`; an image that cannot be
    decoded is an item too, with `ok=False` and its reason, and raises nothing.

    Unlike `extract`, which supervises its processes, a DataLoader of torch ends with a RuntimeError
    when an image crashes its worker, and waits for one that hangs unless it has a `timeout`. Do not
    index from several threads at once: decoding changes settings of Pillow while it runs. With
    `decode="gpu"` pixels are those of `decode="torchvision"`: items are decoded without a device.

    Args:
        sources: a path or several: folders, files, archives, `@list.txt`; see docs/IMAGES.md. Or an
            `ImageList`.
        settings: how images are read: size, crop, channels, depth, window and the like. `crop` must
            not be "none" for batches of more than one image: shapes would differ.
        positions: int64 (N,), the position of each item's image in the list; by default its index.

    Raises:
        InputError: a source is missing or there is no image; also on access, if the package or the
            object store that an image needs is not there.
    """

    def __init__(
        self,
        sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | ImageList,
        settings: Settings,
        positions: NDArray[np.int64] | None = None,
    ) -> None:
        images = sources if isinstance(sources, ImageList) else _listed(sources)
        super().__init__(images, settings, positions)

    @isolated()
    def __getitem__(self, index: int) -> ImageItem:
        position = operator.index(index)
        position += len(self) if position < 0 else 0
        if not 0 <= position < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        try:
            digest, pixels = self.decode(position)
        except DecodeError as error:
            return ImageItem(self._zeros(), False, position, error.digest, str(error))
        writable = np.require(pixels, requirements=["C", "W"])
        return ImageItem(writable, True, position, digest, "")

    def _zeros(self) -> NDArray[Any]:
        size = self._preprocess.size
        return np.zeros((size, size, self._preprocess.channels), pixel_type(self._preprocess))


class EncodedImages(ImageDataset):
    """The images of a run with `decode="gpu"`: JPEGs that the device decodes stay encoded.

    All others, by their own headers, are pixels as Pillow decodes them.
    """

    def __init__(
        self, images: ImageList, settings: Settings, positions: NDArray[np.int64] | None = None
    ) -> None:
        super().__init__(images, dataclasses.replace(settings, decode="pillow"), positions)

    def decode(self, index: int) -> tuple[bytes, Any]:
        """Return the digest of an image, and its `EncodedImage` or its pixels."""
        return self._read(index, _encoded_or_pixels)

    def decode_by_pillow(self, index: int) -> tuple[bytes, NDArray[Any]]:
        """Return the digest and the pixels of an image that the device does not decode."""
        return self._read(index, decode)


def _encoded_or_pixels(
    stream: BinaryIO, preprocess: Preprocess, max_pixels: int
) -> EncodedImage | NDArray[Any]:
    encoded = encoded_jpeg(stream, preprocess, max_pixels)
    return decode(stream, preprocess, max_pixels) if encoded is None else encoded


def _listed(sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> ImageList:
    images = discover([sources] if isinstance(sources, str | os.PathLike) else list(sources))
    log_skipped(images)
    return images
