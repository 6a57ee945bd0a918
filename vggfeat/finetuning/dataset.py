"""Images and classes that a network is trained and validated on, and batches of them as input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vggfeat.images.loader import choose_workers, load_batches
from vggfeat.network.vgg import Normaliser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from vggfeat.core.records import DecodedBatch
    from vggfeat.core.settings import Settings
    from vggfeat.finetuning.split import Split
    from vggfeat.images.image_list import ImageList


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """Images, their classes, and features of the untouched network.

    Attributes:
        manifest: the images.
        classes: int64 (N,), of its rows.
        class_count: how many classes there are.
        split: rows for training and for validation.
        train_features: float32 (t, D), of the untouched network, of the training rows.
        validation_features: float32 (v, D), likewise, of the validation rows.
    """

    manifest: ImageList
    classes: NDArray[np.int64]
    class_count: int
    split: Split
    train_features: NDArray[np.float32]
    validation_features: NDArray[np.float32]


class BatchLoader:
    """Decodes batches of images and makes them the network's input.

    Args:
        manifest: the images.
        network: preprocessing, workers.
        device: of the network.
    """

    def __init__(self, manifest: ImageList, network: Settings, device: torch.device) -> None:
        self._manifest, self._network, self._device = manifest, network, device
        self._normalise = Normaliser(network.preprocess(), device)

    def load(
        self, batches: NDArray[np.int64], goes_on: Callable[[], bool]
    ) -> Iterator[DecodedBatch]:
        """Decoded images of the batches, int64 (batches, B), as long as `goes_on` says so."""
        return load_batches(
            self._manifest.open,
            batches,
            self._network,
            workers=min(batches.size, choose_workers(self._network, {self._device.type})),
            pin=self._device.type == "cuda",
            goes_on=goes_on,
        )

    def prepare(self, batch: DecodedBatch) -> Tensor:
        """The n images of a batch, normalised, (n, C, H, W) on the device."""
        slots = torch.from_numpy(batch.slots).to(self._device)
        images = batch.images.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        # Taken from floats: not every device picks uint16 by index.
        chosen = self._normalise(images)[slots]  # (n, C, H, W)
        return chosen.contiguous(memory_format=torch.channels_last)
