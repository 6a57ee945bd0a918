"""Features of any images, kept in caches of one folder: each image is computed once.

A call extracts the images that no cache of the folder has into a cache of their own, by
`vggfeat.extract`: so a killed call resumes, and two processes wait for one another or compute other
images. Caches are not changed once they are complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.cache.format import RowState
from vggfeat.cache.reader import FeatureCache
from vggfeat.core.text import counted
from vggfeat.errors import (
    CacheError,
    DecodeError,
    InputError,
    LockedError,
    SpaceError,
    TooManyFailuresError,
    UsageError,
)
from vggfeat.extraction.api import extract
from vggfeat.images.sources import discover
from vggfeat.images.transform import ImageTransform, is_one_image
from vggfeat.network.weights import find_weights

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from numpy.typing import NDArray

    from vggfeat.core.preprocessing import Preprocess
    from vggfeat.core.settings import Settings

    Values = NDArray[np.float32]

_WAIT_SECONDS = 0.2
_TRIES = 4  # a file that changes while it is read is read again
_DIGITS = 16
_MODE, _SUFFIX = 0o700, ".h5"


@dataclass(frozen=True, slots=True, eq=False)
class StoredImage:
    """An image of a call.

    Attributes:
        name: as its cache calls it: the absolute path without the leading slash, or a digest.
        stamp: size and time of a file as it is now; (0, 1) of an image in memory.
        source: the path, or the image in memory.
        shown: for messages.
    """

    name: bytes
    stamp: tuple[int, int]
    source: Any
    shown: str

    @property
    def key(self) -> Hashable:
        """What makes it the same image."""
        return self.name, self.stamp

    @property
    def is_file(self) -> bool:
        """Whether it is a file, rather than an image in memory."""
        return isinstance(self.source, str)


@dataclass(frozen=True, slots=True)
class _Row:
    """Where features of an image are, or why there are none."""

    cache: FeatureCache
    row: int
    reason: str = ""


def images_to_store(images: Any, preprocess: Preprocess, max_pixels: int) -> list[StoredImage]:
    """Return images in the order given: a folder's sorted, else one for each item.

    Raises:
        UsageError: an item is no image, or a folder among others.
        InputError: a file is missing, or the folder has no image.
        DecodeError: an image in memory that cannot be preprocessed.
    """
    if isinstance(images, (str, os.PathLike)):
        found = discover([images])
        return [
            _file(found.absolute(row), os.fsdecode(found.paths[row])) for row in range(len(found))
        ]
    if (is_one_image(images) and not isinstance(images, np.ndarray)) or _is_colour_image(images):
        raise UsageError("one image alone; expected a sequence of images, or a folder")
    if not isinstance(images, Iterable):
        raise UsageError(f"X is of type {type(images).__name__}; expected a sequence of images")
    transform = ImageTransform(preprocess, max_pixels)
    return [_image(one, place, transform) for place, one in enumerate(images)]


def _is_colour_image(images: Any) -> bool:
    """Return whether this is an array (H, W, 3 or 4), and no stack of grey images."""
    return isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[-1] in (3, 4)  # noqa: PLR2004 axes


def _image(image: Any, place: int, transform: ImageTransform) -> StoredImage:
    if isinstance(image, np.ndarray) and image.dtype.kind in "US" and image.size == 1:
        image = image.item()  # a column of paths, (N, 1)
    if isinstance(image, (str, os.PathLike)):
        return _file(os.path.abspath(os.fsencode(image)), os.fspath(image))
    if not is_one_image(image):
        raise UsageError(
            f"X[{place}] is of type {type(image).__name__}; expected a path, a PIL image or an "
            "array (H, W, C)"
        )
    try:
        pixels = np.ascontiguousarray(transform.pixels(image))
    except DecodeError as error:
        raise DecodeError(f"X[{place}]: {error}") from error
    digest = hashlib.sha256(repr((pixels.shape, pixels.dtype.str)).encode())
    digest.update(pixels.data)
    name = f"memory-{digest.hexdigest()}"
    return StoredImage(name.encode(), (0, 1), image, f"X[{place}]")


def _file(path: bytes, shown: Any) -> StoredImage:
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"image {shown!r} cannot be read: {error.strerror}") from error
    if os.path.isdir(path):
        raise UsageError(f"{shown!r} is a folder among images; give a folder by itself")
    stamp = (status.st_size, status.st_mtime_ns)
    return StoredImage(path.lstrip(b"/"), stamp, os.fsdecode(path), str(shown))


class FeatureStore:
    """The caches of one folder that were made with the same settings.

    Args:
        folder: in which these settings get a folder of their own, named by a digest of all that
            determines a value: layers, network, digest of the weights, precision, stored type,
            preprocessing.
        settings: of the extraction.

    Raises:
        UsageError: the precision is int8, which depends on the images that calibrate it.
        WeightsError: the weights are not found.
        DeviceError: no such device.
    """

    def __init__(self, folder: str, settings: Settings) -> None:
        from vggfeat.network.device import choose_device, choose_precision

        if "int8" in (settings.precision, settings.dtype):
            raise UsageError(
                "int8 is calibrated on images of a run; take another precision or dtype"
            )
        self.settings = settings
        weights = find_weights(settings.weights, settings.model)
        device = choose_device(settings.device.split(",")[0])
        identity = {
            "model": settings.model,
            "weights": weights.sha256,
            "layers": settings.stored,
            "fuse": settings.fuse,
            "precision": choose_precision(settings.precision, device),
            "dtype": settings.dtype,
            "preprocess": asdict(settings.preprocess()),
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=repr).encode())
        self.folder = os.path.join(folder, f"{settings.model}-{digest.hexdigest()[:_DIGITS]}")

    def features(
        self, images: Sequence[StoredImage], *, progress: bool = False
    ) -> tuple[dict[str, Values], list[tuple[StoredImage, str]]]:
        """Return float32 (N, …) of each layer, NaN where an image failed, and the failures.

        Raises what `vggfeat.extract` does, but for images that fail.
        """
        wanted = {image.key: image for image in images}
        rows: dict[Hashable, _Row] = {}
        for _ in range(_TRIES):
            rows = self._known(wanted)
            missing = [image for key, image in wanted.items() if key not in rows]
            if not missing:
                break
            if self._resume(missing, progress=progress):
                continue
            for some in (
                [image for image in missing if image.is_file],
                [image for image in missing if not image.is_file],
            ):
                if some:
                    self._extract(some, progress=progress)
            now = {image.key: image for image in map(_as_it_is, images)}
            if now.keys() != wanted.keys():
                images = [_as_it_is(image) for image in images]
                wanted = now
        else:
            rows = self._known(wanted)
            for key, image in wanted.items():
                if key not in rows:
                    raise InputError(f"image {image.shown!r} changes while it is read")
        failed = [(one, rows[one.key].reason) for one in images if rows[one.key].reason]
        return self._values([rows[image.key] for image in images]), failed

    def _known(self, wanted: dict[Hashable, StoredImage]) -> dict[Hashable, _Row]:
        """Return where the images are that are done or have failed."""
        found: dict[Hashable, _Row] = {}
        for cache in self._caches():
            states = np.array(cache.state)
            reasons = {failure.row: failure.reason for failure in cache.failures()}
            keys = zip(
                cache.paths[:].tolist(), cache.sizes.tolist(), cache.mtimes.tolist(), strict=True
            )
            for row, (name, size, time_ns) in enumerate(keys):
                stamp = (0, 1) if name.startswith(b"memory-") else (size, time_ns)
                key = (name, stamp)
                if key in wanted and states[row] in (RowState.DONE, RowState.FAILED):
                    found.setdefault(key, _Row(cache, row, reasons.get(row, "")))
        return found

    def _resume(self, missing: Sequence[StoredImage], *, progress: bool) -> bool:
        """Resume runs that were to compute some of these files, or wait for them."""
        wanted = {image.name for image in missing if image.is_file}
        resumed = False
        for cache in self._caches():
            pending = cache.paths[np.array(cache.state) == RowState.PENDING].tolist()
            if not wanted.isdisjoint(pending):
                with contextlib.suppress(CacheError, InputError):  # its files are others by now
                    files = [f"/{name}" for name in cache.names]
                    self._run(files, cache.path, progress=progress, root="/")
                    resumed = True
        return resumed

    def _caches(self) -> Iterator[FeatureCache]:
        try:
            names = sorted(os.listdir(self.folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in names:
            if name.endswith(_SUFFIX) and not name.startswith("."):
                yield FeatureCache(os.path.join(self.folder, name))

    def _extract(self, images: Sequence[StoredImage], *, progress: bool) -> None:
        """Extract images into a cache named by what they are; wait for a run that does the same."""
        try:
            os.makedirs(self.folder, mode=_MODE, exist_ok=True)
        except OSError as error:
            raise SpaceError(
                f"cache folder {self.folder!r} cannot be made: {error.strerror}; give cache_dir"
            ) from error
        listing = sorted((image.name, *image.stamp) for image in images)
        digest = hashlib.sha256(repr(listing).encode()).hexdigest()[:_DIGITS]
        out = os.path.join(self.folder, digest + _SUFFIX)
        sources: Any = [image.source for image in images]
        options: dict[str, Any] = {"root": "/"}
        if not images[0].is_file:
            names = [image.name.decode() for image in images]
            options = {"names": names, "fingerprint": "name"}
        self._run(sources, out, progress=progress, **options)

    def _run(self, sources: Any, out: str, **options: Any) -> None:
        """Extract into a cache, once no other run holds it."""
        while True:
            try:
                extract(sources, out, self.settings, **options)
            except TooManyFailuresError:
                return  # the cache says why
            except LockedError:
                time.sleep(_WAIT_SECONDS)
            else:
                return

    def _values(self, rows: Sequence[_Row]) -> dict[str, Values]:
        caches = {id(row.cache): row.cache for row in rows}
        layers: dict[str, Values] = {}
        for layer in self.settings.stored:
            shape = next(iter(caches.values())).header.shapes[layer]
            values = np.empty((len(rows), *shape), np.float32)
            for number, cache in caches.items():
                places = [at for at, row in enumerate(rows) if id(row.cache) == number]
                values[places] = cache.values(layer, np.array([rows[at].row for at in places]))
            failed = [at for at, row in enumerate(rows) if row.reason]
            values[failed] = np.nan
            layers[layer] = values
        return layers


def _as_it_is(image: StoredImage) -> StoredImage:
    """Return a file with its present size and time."""
    return _file(os.fsencode(image.source), image.shown) if image.is_file else image


def failures_text(failures: Sequence[tuple[StoredImage, str]], count: int) -> str:
    """Return one line about images that failed."""
    first, reason = failures[0]
    return (
        f"{len(failures)} of {counted(count, 'image')} cannot be decoded; the first, "
        f"{first.shown!r}: {reason}"
    )
