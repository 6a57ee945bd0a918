"""One network on each of several devices; batches are assigned to them in turn."""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from typing import TYPE_CHECKING

from vggfeat.errors import DeviceError
from vggfeat.network.device import choose_devices, device_kind
from vggfeat.network.extractor import TensorExtractor
from vggfeat.network.pass_size import PassLimit
from vggfeat.network.weights import find_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from vggfeat.core.quantization import Scales
    from vggfeat.core.records import DecodedBatch
    from vggfeat.core.settings import Settings
    from vggfeat.network.device import Compute
    from vggfeat.network.extractor import Pending
    from vggfeat.network.weights import Weights

log = logging.getLogger("vggfeat")


class Replicas:
    """An extractor on every device that the settings name; all have the same bits of weights.

    Batches are launched one after the other and collected in that order, so rows stay in order.
    CUDA devices compute at the same time; a CPU is done with a batch before the next is launched.

    Args:
        settings: as for `TensorExtractor`; `device` may name several, separated by commas, or
            `all`.
        weights: weights already found; None looks for `settings.weights`.
        activations: see `TensorExtractor`.

    Raises:
        WeightsError: the weights are not found, could not be downloaded, or do not fit.
        DeviceError: a device does not exist, or devices would compute in different precisions.
    """

    def __init__(
        self,
        settings: Settings,
        weights: Weights | None = None,
        activations: Mapping[str, float] | None = None,
    ) -> None:
        weights = weights or find_weights(settings.weights, settings.model)
        self.settings = settings
        self.activations = dict(activations or {})
        self._extractors = [
            TensorExtractor(dataclasses.replace(settings, device=str(device)), weights, activations)
            for device in choose_devices(settings.device)
        ]
        self._turns = deque(self._extractors)
        self._check_alike()

    def _check_alike(self) -> None:
        """Refuse devices whose rows would differ: a row must not depend on whose turn it was."""
        found = {str(one.device): one.precision for one in self._extractors}
        if len(set(found.values())) > 1:
            each = ", ".join(f"{device} {precision}" for device, precision in found.items())
            raise DeviceError(
                f"devices would compute in different precisions ({each}), but one file takes one; "
                "set --precision, or name devices of one kind"
            )
        kinds = [(str(one.device), device_kind(one.device)) for one in self._extractors]
        if len({kind for _, kind in kinds}) > 1:
            each = ", ".join(f"{device} is {kind}" for device, kind in kinds)
            raise DeviceError(
                f"devices of different kinds compute different bits, but one file takes one kind: "
                f"{each}; name devices of one kind"
            )

    def settle(self, batch_size: int) -> PassLimit:
        """Find the passes that the memory of every device suffices for, and keep to them.

        It is done before a cache is made, which records the limit: see `keep_to`. A CPU is not
        tried: a system without memory ends the process and tells nobody before.

        Raises:
            DeviceError: a device has no memory for one image.
        """
        if all(one.device.type == "cpu" for one in self._extractors):
            limit = PassLimit(batch_size)
        else:
            limit = self.largest_passes(batch_size)
        self.keep_to(limit)
        return limit

    def largest_passes(self, batch_size: int) -> PassLimit:
        """Return the largest passes, at most of a batch, that every device has the memory for.

        Images of unequal shapes are counted by their pixels: a pass of any shape then takes no
        more memory than the one that was tried.
        """
        height = width = self.settings.preprocess().size
        unequal = self.settings.crop == "none" and batch_size > 1
        width *= 1 + unequal
        images = batch_size
        while True:
            found = min(one.largest_pass(images, height, width) for one in self._extractors)
            if found == images:
                break
            images = found
        if images < batch_size:
            log.warning(
                "%s: too little memory for batches of %d images; computing in passes of %d, which "
                "the cache records and every later run on it keeps to",
                self.devices, batch_size, images,
            )  # fmt: skip
        return PassLimit(images, images * height * width if unequal else None)

    def keep_to(self, limit: PassLimit | None) -> None:
        """Compute in passes of that size, or raise DeviceError; None: find a size by trying."""
        for one in self._extractors:
            one.passes.limit = limit

    @property
    def devices(self) -> str:
        """Names of all devices, separated by commas."""
        return ",".join(str(one.device) for one in self._extractors)

    @property
    def next_device(self) -> torch.device:
        """The device that the next batch is launched on."""
        return self._turns[0].device

    @property
    def precision(self) -> Compute:
        """Precision of all devices."""
        return self._extractors[0].precision

    @property
    def overlap(self) -> int:
        """Batches that may be in flight while one more is launched."""
        return sum(one.device.type == "cuda" for one in self._extractors)

    @property
    def redone(self) -> int:
        """Batches computed again in float32 so far."""
        return sum(one.redone for one in self._extractors)

    def output_shapes(self, height: int, width: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of one row of each spec for inputs of that size."""
        return self._extractors[0].output_shapes(height, width)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Return the float32 features of a batch, computed on the first device."""
        return self._extractors[0](images)

    def scale_to(self, scales: Mapping[str, Scales]) -> None:
        """Set the scales for storing features as int8."""
        for one in self._extractors:
            one.scale_to(scales)

    @property
    def caution(self) -> str:
        """A warning of pixels that are not what the weights were trained with; empty for none."""
        return self._extractors[0].caution

    def expect(self, images: int) -> None:
        """Prepare for so many images, of which each device gets its share."""
        for one in self._extractors:
            one.expect(images // len(self._extractors))

    def launch(self, batch: DecodedBatch) -> Pending:
        """Start a batch on the device whose turn it is."""
        pending = self._turns[0].launch(batch)
        self._turns.rotate(-1)
        return pending
