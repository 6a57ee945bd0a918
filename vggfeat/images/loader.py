"""Load batches of images through a DataLoader whose worker processes are supervised."""

from __future__ import annotations

import dataclasses
import functools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from vggfeat.core.records import DecodedBatch, EncodedImage, Failure
from vggfeat.images.batch_plan import EMPTY
from vggfeat.images.dataset import EncodedImages
from vggfeat.images.decode import pixel_type
from vggfeat.images.decoding import pixel_shape
from vggfeat.images.page_locks import PageLocks
from vggfeat.images.pillow_state import own_plugins
from vggfeat.images.worker_pool import decode_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from numpy.typing import NDArray

    from vggfeat.core.settings import Settings
    from vggfeat.images.worker_pool import DecodedImage, DecodedImages

T = TypeVar("T")

ENCODED_ROOM = 1 << 19
"""Bytes of shared memory for each image that may stay encoded; larger files are sent as messages.

Only what is touched of it takes memory."""


class Decodable(Protocol):
    """A map-style data set as the supervised workers read it, such as `ImageDataset`."""

    def __len__(self) -> int:
        raise NotImplementedError

    def decode(self, index: int) -> tuple[bytes, Any]:
        """Return the digest and the pixels of item `index`; raise `DecodeError` if it has none."""
        raise NotImplementedError


class PlannedBatches(Sampler[list[int]]):
    """A batch sampler: the rows of each batch of a plan, in the order of their slots.

    Args:
        plan: int64 (batches, B), the row in each slot, or `EMPTY`; see `batch_plan.plan_batches`.
    """

    def __init__(self, plan: NDArray[np.int64]) -> None:
        self.plan = plan

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[int]]:
        return (batch[batch != EMPTY].tolist() for batch in self.plan)


class SupervisedLoader(DataLoader[T]):
    """A DataLoader of torch with the worker processes of `worker_pool.py` in place of torch's own.

    In torch's, a worker that dies ends the iteration, or keeps the lock of the queue that all
    workers share; one that hangs ends it too, once a timeout has passed; and pixels need room in
    /dev/shm. Here an image that crashes or hangs costs itself, and batches are whole and in order.

    Args:
        dataset: of the images.
        batches: the rows and slots of each.
        collate_fn: makes a batch of `DecodedImage`s, whose pixels it must copy.
        num_workers: processes; 0 decodes in this one, without a time limit.
        timeout: seconds that one image may take, not a batch.
        pin_memory: whether `collate_fn` puts batches in page-locked memory.
        shape: of every image, (H, W, C); None if shapes differ.
        dtype: of the pixels, where they have a shape.
        room: bytes of shared memory for each image at least, for those that stay encoded.
        goes_on: called while waiting for a batch; if it returns False, no more batches come.
        decoded: the batches, if decoding has begun already, for the first iteration.
    """

    def __init__(
        self,
        dataset: Decodable,
        batches: PlannedBatches,
        collate_fn: Callable[[DecodedImages], T],
        *,
        num_workers: int,
        timeout: float,
        pin_memory: bool = False,
        shape: tuple[int, ...] | None = None,
        dtype: type[np.generic] = np.uint8,
        room: int = 0,
        goes_on: Callable[[], bool] = lambda: True,
        decoded: Iterator[DecodedImages] | None = None,
    ) -> None:
        untyped: Any = dataset  # what is read as a data set need not descend from torch's
        collate: Any = collate_fn
        super().__init__(
            untyped,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=num_workers,
            timeout=timeout,
            pin_memory=pin_memory,
        )
        self._decode, self._plan = dataset.decode, batches.plan
        self._shape, self._dtype, self._room, self._goes_on = shape, dtype, room, goes_on
        self._decoded = decoded

    def __iter__(self) -> Generator[T, None, None]:  # type: ignore[override] # torch's own class of iterators is private
        """Fork the workers now, and not at the first batch: they decode while the caller goes on.

        Closing or dropping the iterator ends them.
        """
        decoded, self._decoded = self._decoded, None
        if decoded is None:
            own_plugins()  # cached before the fork, and not computed by every process
            decoded = decode_batches(
                self._plan,
                self._shape,
                self._decode,
                workers=self.num_workers,
                timeout=self.timeout,
                goes_on=self._goes_on,
                dtype=self._dtype,
                room=self._room,
            )
        return (self.collate_fn(images) for images in decoded)

    def check_worker_number_rationality(self) -> None:
        """Take any number of workers without torch's warning: the user asked for it."""


def load_batches(
    dataset: Decodable,
    plan: NDArray[np.int64],
    settings: Settings,
    *,
    workers: int,
    pin: bool,
    goes_on: Callable[[], bool] = lambda: True,
    decoded: Iterator[DecodedImages] | None = None,
) -> Generator[DecodedBatch, None, None]:
    """Start the decoding processes, and yield batches in the order of the plan.

    Under crop none a batch of the plan becomes one for each shape in it. All have B slots, and each
    image keeps its own, so what a row's value depends on does not change with its company.

    Args:
        dataset: whose index is the cache row.
        plan: int64 (batches, B), rows or `EMPTY`.
        settings: how images are preprocessed and how long decoding one may take.
        workers: processes; 0 decodes in this one.
        pin: whether batches come in page-locked memory, for copies that overlap.
        goes_on: called while waiting for a batch; if it returns False, no more batches come.
        decoded: the batches of the plan, if decoding has begun already; see `decode_early`. Their
            memory is then that of the batches here, which are valid no longer than they are.
    """
    preprocess = settings.preprocess()
    usual = (preprocess.size, preprocess.size, preprocess.channels)
    dtype = pixel_type(preprocess)
    in_place = decoded is not None
    empty = _Empty((plan.shape[1], *usual), getattr(torch, dtype.__name__), pin, in_place)
    loader = SupervisedLoader(
        dataset,
        PlannedBatches(plan),
        functools.partial(_as_batches, empty=empty),
        num_workers=workers,
        timeout=settings.decode_timeout,
        pin_memory=pin,
        shape=pixel_shape(preprocess),
        dtype=dtype,
        room=ENCODED_ROOM if isinstance(dataset, EncodedImages) else 0,
        goes_on=goes_on,
        decoded=decoded,
    )
    return (batch for batches in loader for batch in batches)


@dataclass(frozen=True, slots=True)
class _Empty:
    """A batch before there is anything in it: its usual shape (B, H, W, C), and its memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pin: bool
    in_place: bool
    locks: PageLocks = field(default_factory=PageLocks)

    def may_be(self, images: DecodedImages) -> bool:
        """Return whether the memory that images were decoded into may be that of the batch."""
        if images.whole is None or not self.in_place:
            return False
        return not self.pin or (images.returns and self.locks.lock(images.whole))


def _as_batches(images: DecodedImages, empty: _Empty) -> list[DecodedBatch]:
    """Make one batch for each shape among the images; the first has the failures too."""
    by_shape: dict[tuple[int, ...], list[DecodedImage]] = {}
    for image in images:
        if image.pixels is not None:
            by_shape.setdefault(_shape_of(image.pixels, empty), []).append(image)
    first, *others = by_shape.values() or [[]]
    failed = [image for image in images if image.pixels is None]
    if images.whole is not None and first:
        return [_as_batch(first, failed, functools.partial(_whole_of, images, empty))]
    return [
        _as_batch(first, failed, functools.partial(_copied, first, empty)),
        *(_as_batch(alike, [], functools.partial(_copied, alike, empty)) for alike in others),
    ]


def _shape_of(pixels: Any, empty: _Empty) -> tuple[int, ...]:
    """Return (H, W, C) of an image; what is still encoded will have the usual one."""
    return empty.shape[1:] if isinstance(pixels, EncodedImage) else pixels.shape


def _as_batch(
    good: list[DecodedImage], failed: list[DecodedImage], pixels_of: Callable[[], torch.Tensor]
) -> DecodedBatch:
    """Make a batch of images of one shape."""
    started = time.perf_counter()
    encoded = {
        image.slot: dataclasses.replace(image.pixels, data=image.pixels.data.copy())
        for image in good
        if isinstance(image.pixels, EncodedImage)
    }
    digests = b"".join(image.digest for image in good)
    pixels = pixels_of()
    return DecodedBatch(
        images=pixels,
        rows=np.array([image.row for image in good], dtype=np.int64),
        slots=np.array([image.slot for image in good], dtype=np.int64),
        digests=np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32),
        failures=tuple(Failure(image.row, image.reason, image.digest) for image in failed),
        seconds=sum(image.seconds for image in (*good, *failed)),
        encoded=encoded,
        collated=time.perf_counter() - started,
    )


def _whole_of(images: DecodedImages, empty: _Empty) -> torch.Tensor:
    """Return a tensor (B, H, W, C) of the memory that images were decoded into, or a copy."""
    whole: NDArray[Any] = images.whole  # type: ignore[assignment] # the caller has looked
    filled = {image.slot for image in images if image.pixels is not None}
    for slot in range(len(whole)):
        if slot not in filled:
            whole[slot] = 0  # of an earlier batch
    if empty.may_be(images):
        return torch.from_numpy(whole)
    batch = torch.empty(whole.shape, dtype=empty.dtype, pin_memory=empty.pin)
    np.copyto(batch.numpy(), whole)
    return batch


def _copied(images: list[DecodedImage], empty: _Empty) -> torch.Tensor:
    """Return a tensor (B, H, W, C) with images of one shape in their slots; others are zero."""
    images = [image for image in images if not isinstance(image.pixels, EncodedImage)]
    if not images:
        return torch.zeros((), dtype=empty.dtype).expand(empty.shape)
    batch = torch.empty(
        (empty.shape[0], *images[0].pixels.shape), dtype=empty.dtype, pin_memory=empty.pin
    )
    pixels = batch.numpy()
    if len(images) < len(batch):
        pixels[:] = 0
    for image in images:
        pixels[image.slot] = image.pixels
    return batch
