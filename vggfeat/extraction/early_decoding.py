"""Decode the first images while torch is imported, by what the run will probably be.

The batch size, the decoder and the number of workers depend on the devices, which only
torch knows. They are guessed; if a guess was wrong, the workers end, and others begin.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.core.accelerators import likely_devices
from vggfeat.extraction.metadata import choose_decoding
from vggfeat.images.batch_plan import EMPTY
from vggfeat.images.decoding import choose_workers, decode_early
from vggfeat.images.image_reader import ImageReader
from vggfeat.network.batch_size import (
    GPU_BATCH,
    fixed_batch_size,
    is_batch_size_fixed,
    largest_cpu_batch,
    spread_batches,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from vggfeat.core.settings import Settings
    from vggfeat.images.image_list import ImageList


@dataclass(slots=True)
class EarlyDecoding:
    """Batches that are being decoded, and what they were begun by."""

    settings: Settings
    plan: NDArray[np.int64]
    devices: Sequence[str]
    batches: Any  # an iterator of `DecodedImages`, and a generator

    def taken_if(
        self, settings: Settings, plan: NDArray[np.int64], devices: Sequence[str]
    ) -> Any | None:
        """Return the batches if the run is as was guessed; else end the workers."""
        same = settings == self.settings and devices == self.devices
        if same and np.array_equal(plan, self.plan):
            return self.batches
        self.close()
        return None

    def close(self) -> None:
        """End the workers, whoever has taken the batches."""
        self.batches.close()


@contextlib.contextmanager
def decoding_early(
    settings: Settings,
    images: ImageList,
    positions: NDArray[np.int64] | None,
    plan_for: Callable[[int], NDArray[np.int64]],
    goes_on: Callable[[], bool],
) -> Iterator[EarlyDecoding | None]:
    """Decode early, if a guess can be made, and end the workers behind the block.

    Args:
        settings: of the run; `decode` and `batch_size` may be `auto`.
        images: the images of the run.
        positions: as for `ImageReader`.
        plan_for: returns the plan for a batch size.
        goes_on: as for `decode_batches`.
    """
    early = _begin(settings, images, positions, plan_for, goes_on)
    if early is None:
        yield None
        return
    with contextlib.closing(early):
        yield early


def _begin(
    settings: Settings,
    images: ImageList,
    positions: NDArray[np.int64] | None,
    plan_for: Callable[[int], NDArray[np.int64]],
    goes_on: Callable[[], bool],
) -> EarlyDecoding | None:
    devices = likely_devices(settings.device)
    kinds = set(devices)
    if settings.decode == "gpu" or len(kinds) > 1:
        return None
    if settings.decode == "auto":
        settings = choose_decoding(settings, kinds)  # imports torch if torchvision is to decode
    plan = plan_for(_likely_batch_size(settings, len(images), devices))
    workers = min(int((plan != EMPTY).sum()), choose_workers(settings, kinds))
    if not workers:
        return None
    batches = decode_early(
        ImageReader(images, settings, positions),
        plan,
        settings,
        workers=workers,
        devices=devices,
        goes_on=goes_on,
    )
    return EarlyDecoding(settings, plan, devices, batches)


def _likely_batch_size(settings: Settings, images: int, devices: list[str]) -> int:
    if is_batch_size_fixed(settings):
        return fixed_batch_size(settings)
    most = largest_cpu_batch(settings) if devices[0] == "cpu" else GPU_BATCH
    return spread_batches(images, most, len(devices))
