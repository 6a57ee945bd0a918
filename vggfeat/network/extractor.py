"""Run the network on its device: precision, memory, and batches in flight."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from vggfeat.core import activity
from vggfeat.core.forked import note_computing, refuse_broken_threads
from vggfeat.core.isolation import isolated
from vggfeat.core.records import DecodedBatch, Failure, FeatureBatch
from vggfeat.core.vgg_layers import ADAPTER, VGG
from vggfeat.errors import UsageError
from vggfeat.network.device import (
    Compute,
    choose_device,
    choose_precision,
    device_errors,
)
from vggfeat.network.device_rows import Copies, DeviceRows
from vggfeat.network.fused_epilogue import WORTHWHILE, log_choice, tried_epilogue
from vggfeat.network.input_checks import check_images
from vggfeat.network.int8 import Int8Vgg
from vggfeat.network.memory_estimate import bytes_per_image
from vggfeat.network.pass_size import Passes
from vggfeat.network.pooling import fuse_vectors
from vggfeat.network.storage_dtype import quantise
from vggfeat.network.vgg import Normaliser, TappedVgg, needed_layers, network_of
from vggfeat.network.weight_metadata import check_carried, check_held
from vggfeat.network.weights import Weights, find_weights, load_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from vggfeat.core.preprocessing import Preprocess
    from vggfeat.core.quantization import Scales
    from vggfeat.core.settings import Settings
    from vggfeat.core.vgg_layers import Layer

log = logging.getLogger("vggfeat")

_TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_EXACT_IMAGES = 16
_SPARE_BYTES = 256 << 20


class TensorExtractor:
    """Tensors in, named features out; `vggfeat.Extractor` takes images of other kinds too.

    Args:
        settings: layers, model, weights, precision, device, preprocessing.
        weights: weights already found; None looks for `settings.weights`.
        activations: for precision int8, what `calibrate` found.

    Raises:
        UsageError: precision int8 without activations, or several devices.
        WeightsError: the weights are not found, could not be downloaded, or do not fit.
        DeviceError: the device does not exist, or does not support the precision.
    """

    @isolated()
    def __init__(
        self,
        settings: Settings,
        weights: Weights | None = None,
        activations: Mapping[str, float] | None = None,
    ) -> None:
        refuse_broken_threads()
        self.settings = settings
        self.weights = weights or find_weights(settings.weights, settings.model)
        self.caution = ""
        """A warning of pixels that are not what the weights were trained with; empty for none."""
        if self.weights.path is not None:
            self.caution = check_carried(self.weights.path, settings, self.weights.digest)
        if self.weights.held is not None:
            self.caution = check_held(self.weights.held, settings)
        self.device = choose_device(settings.device)
        self.precision: Compute = choose_precision(settings.precision, self.device)
        self.preprocess: Preprocess = settings.preprocess()
        self.redone = 0
        self.passes = Passes(self.device)
        self.classes = 0
        """Outputs of fc8, 0 if the network ends before it."""
        self._activations = activations
        self._recipe = settings.recipe
        self._scales: dict[str, Scales] = {}
        self._uploaded: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self._network = self._build(self.precision)
        self._exact: TappedVgg | Int8Vgg | None = None
        self._normalise = Normaliser(self.preprocess, self.device)
        self._images = 0  # computed or expected, until it is clear what pays

    def _build(self, precision: Compute) -> TappedVgg | Int8Vgg:
        layers = needed_layers(self.settings.specs, self.settings.model)
        self._shortest = 2 ** sum(layer.kind == "pool" for layer in layers)
        entry = self.settings.entry
        tensors = load_tensors(self.weights, self.settings.model, layers, entry)
        self.classes = VGG.classes(tensors)
        if precision == "int8":
            return self._build_int8(layers, tensors)
        # On a CPU not in other precisions: rows of caches that were begun would change their bits.
        fold = precision == "float16" or self.device.type == "cuda"
        network = network_of(tensors, layers, self.settings.specs, fold=fold)
        # mypy: torch's stubs know no overload of `to` with a memory format beside a dtype.
        moved: Any = network.to(device=self.device, dtype=_TORCH_DTYPES[precision])
        return cast("TappedVgg", moved.to(memory_format=torch.channels_last))

    def expect(self, images: int) -> None:
        """Prepare for so many images to come, besides those that were computed or expected before.

        For 10,000 and more on CUDA in half precision, the kernel that replaces PyTorch's operators
        behind convolutions is compiled and tried, which takes a second or two. Without this call
        that is done once so many were computed. Features are the same bytes with and without it.
        """
        before, self._images = self._images, self._images + images
        network, dtype = self._network, _TORCH_DTYPES.get(self.precision)
        if not before < WORTHWHILE <= self._images or self.device.type != "cuda":
            return
        if isinstance(network, TappedVgg) and dtype in (torch.float16, torch.bfloat16):
            channels = {layer.channels for layer in network.layers if layer.kind == "conv"}
            epilogue = tried_epilogue(self.device, dtype, frozenset(channels))
            log_choice(epilogue)
            network.epilogue = None if epilogue.problem else epilogue

    def _build_int8(self, layers: tuple[Layer, ...], tensors: dict[str, Tensor]) -> Int8Vgg:
        if ADAPTER in tensors:
            raise UsageError(
                f"precision int8 does not know the adapter that weights {self.weights.name} have; "
                "use another --precision"
            )
        if self._activations is None:
            raise UsageError(
                "precision int8 needs activations: vggfeat.calibrate(settings, images) finds them, "
                "and extract does so by itself"
            )
        return Int8Vgg(layers, self.settings.specs, tensors, self._activations, self.preprocess)

    def output_shapes(self, height: int, width: int) -> dict[str, tuple[int, ...]]:
        """Return the row shape of each layer, or of the fused vector, for inputs of that size.

        Raises:
            UsageError: layers to be added have unequal widths.
        """
        shapes = {
            str(spec): spec.output_shape(height, width, self.classes)
            for spec in self.settings.specs
        }
        if self._recipe is None:
            return shapes
        widths = {name: shape[0] for name, shape in shapes.items()}
        return {self._recipe.method: (self._recipe.width(widths),)}

    def scale_to(self, scales: Mapping[str, Scales]) -> None:
        """Set the scales for storing features as int8."""
        self._scales = dict(scales)
        self._uploaded.clear()

    @isolated()
    def stored(self, name: str, feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Convert float32 rows of a layer to the storage dtype: see `quantise`.

        Raises:
            UsageError: int8, and `scale_to` was not called before.
        """
        if self.settings.dtype != "int8":
            return quantise(feature, self.settings.dtype)
        if name not in self._scales:
            raise UsageError(f"dtype int8 needs the scales of {name}: Extractor.scale_to sets them")
        key = name, feature.dim()
        if key not in self._uploaded:  # once, since an upload from pageable memory waits
            scale, offset = map(torch.from_numpy, self._scales[name].along(feature.dim()))
            self._uploaded[key] = scale.to(self.device), offset.to(self.device)
        return quantise(feature, "int8", self._uploaded[key])

    @isolated()
    def __call__(self, images: Tensor, *, normalized: bool = False) -> dict[str, Tensor]:
        """Return the features of a batch.

        Args:
            images: (N, C, H, W) with C = `settings.channels`, as a rule RGB. Pixels, uint8 or
                uint16, of the size that the settings' preprocessing gives; they are normalised as
                the weights want it. Or floating point of any size, (pixel - mean) / std already
                (not with int8). Any device.
            normalized: floating-point images are normalised even though none of their values is
                negative. Without it those that look like plain pixels, of 0 to 1 or 0 to 255, are
                refused: their features would be wrong, and look right. Zeros alone are taken.

        Returns:
            canonical spec, or with `settings.fuse` its method → float32 (N, …) on this
            extractor's device. No images have no rows, of the right shape.

        Raises:
            UsageError: a sparse tensor or one without values, not four axes with so many
                channels, pixels of another size, another type, NaN or infinite values, or
                floating-point images that look like pixels.
            DeviceError: the device has not enough memory for one image.
        """
        check_images(images, self.preprocess, self.precision, self._shortest, normalized=normalized)
        if not len(images):
            return {
                name: torch.zeros((0, *shape), device=self.device)
                for name, shape in self.output_shapes(*images.shape[2:]).items()
            }
        return self.compute(images)

    @isolated()
    def compute(self, images: Tensor) -> dict[str, Tensor]:
        """Compute features of images that are known to be right, of whatever height and width.

        Args:
            images: (N, C, H, W), as in a call of the extractor.

        Raises:
            DeviceError: the device has no memory for even one image.
        """
        every = np.arange(len(images))
        found = self.passes.run(
            images.shape,
            lambda size: DeviceRows.joined(list(self._computed(images, every, size))),
        )
        bad = self.overflowed(found)
        if bad is not None:
            self.passes.run(images.shape, lambda size: self._mend(found, images, bad, size))
        return dict(found.values)

    def _mend(self, found: DeviceRows, images: Tensor, bad: NDArray[np.int64], size: int) -> None:
        """Replace rows that have left float16 by those of float32, in place."""
        start = 0
        for exact in self._computed(images, bad, size, exactly=True):
            stop = start + len(exact.in_range)
            found.replace(bad[start:stop], exact)
            start = stop

    @isolated()
    def launch(self, batch: DecodedBatch) -> Pending:
        """Start a batch on the device without waiting for it; `Pending.collect` waits.

        Args:
            batch: images uint8 or uint16 (B, H, W, C) in memory or on the device.

        Raises:
            DeviceError: the device fails or has too little memory.
        """
        return Pending(self, batch, self._start(batch, batch.slots))

    def relaunch(self, batch: DecodedBatch, slots: NDArray[np.int64]) -> Copies:
        """Start some slots of a batch, which have left the range of float16, again in float32."""
        return self._start(batch, slots, exactly=True)

    @isolated()
    def largest_pass(self, size: int, height: int, width: int) -> int:
        """Return the largest pass that the device has memory for: `size`, or half and half again.

        It is found by computing, which also chooses cuDNN's kernels. With float32 a GPU computes
        overflowed rows again in smaller passes, which need less.

        Raises:
            DeviceError: there is no memory for one image.
        """
        images = torch.zeros(
            (size, height, width, self.preprocess.channels),
            dtype=torch.uint16 if self.preprocess.depth == 16 else torch.uint8,  # noqa: PLR2004 bits
        ).permute(0, 3, 1, 2)

        def compute(size: int) -> None:
            some = np.arange(size > 1, size)  # which are gathered first, as in a last batch
            with device_errors(self.device), self._without_epilogue():
                spare = self._spare_memory(size)
                list(self._computed(images[:size], some, size, on_host=True))
                del spare

        found = self.passes.settle(images.shape, compute)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
        return found

    @contextlib.contextmanager
    def _without_epilogue(self) -> Iterator[None]:
        """Compute without the fused kernel: a later run may, which takes more memory."""
        network = self._network
        if not isinstance(network, TappedVgg):
            yield
            return
        epilogue, network.epilogue = network.epilogue, None
        try:
            yield
        finally:
            if vars(network)["epilogue"] is None:  # else it was chosen meanwhile
                network.epilogue = epilogue

    def _spare_memory(self, size: int) -> Tensor | None:
        """Take the memory that a run needs beside its passes of `size`: to compute in float32."""
        if self.device.type != "cuda":
            return None
        spare = _SPARE_BYTES  # decoded images, fragments
        if self.precision == "float16":
            half, exact = (
                bytes_per_image(self.settings, width, on_cpu=False).device for width in (2, 4)
            )
            spare += 4 * sum(one.numel() for one in self._network.parameters())
            spare += max(0, min(_EXACT_IMAGES, size) * exact - size * half)
        return torch.empty(spare, dtype=torch.uint8, device=self.device)

    @isolated()
    def _start(
        self, batch: DecodedBatch, slots: NDArray[np.int64], *, exactly: bool = False
    ) -> Copies:
        """Start the passes of a batch that hold some slots, and the copies of their rows."""
        images = batch.images.permute(0, 3, 1, 2)

        def compute(size: int) -> list[DeviceRows]:
            return list(self._computed(images, slots, size, exactly=exactly, on_host=True))

        with device_errors(self.device):
            return Copies.of(self.passes.run(images.shape, compute), self.device)

    def _computed(
        self,
        images: Tensor,
        slots: NDArray[np.int64],
        size: int,
        *,
        exactly: bool = False,
        on_host: bool = False,
    ) -> Iterator[DeviceRows]:
        """Compute images in passes, and yield the rows of each pass that holds some of the slots.

        A pass is computed with all its slots, so that a row depends on its own image, its slot and
        the shape of the pass alone.

        Args:
            images: (N, C, H, W) in memory or on the device.
            slots: int64 (n,), ascending; n of 0 gives no rows, of the right shapes.
            size: images of a pass.
            exactly: compute in float32, what has left float16.
            on_host: convert rows to the storage dtype and start their copies to the host.
        """
        network = self._network
        if exactly:
            network, size = self._exact_network(), self._exact_size(size, len(images))
        for start in range(0, len(images), size):
            chosen = slots[(slots >= start) & (slots < start + size)] - start
            if not len(chosen) and (len(slots) or start):
                continue
            part = images[start : start + size].to(self.device, non_blocking=True)
            # A CPU computes while the call lasts; elsewhere only launches would be seen.
            if activity.is_watched() and self.device.type == "cpu":
                network.on_layer = partial(_note_layer, start, len(part))
            features, in_range = self._pass(network, part)
            rows = (
                self._quantised(features, in_range) if on_host else DeviceRows(features, in_range)
            )
            del part, features, in_range
            yield rows.chosen(chosen).on_host() if on_host else rows.chosen(chosen)

    def _exact_network(self) -> TappedVgg | Int8Vgg:
        if self._exact is None:
            log.info("activations exceed float16: such images are computed again in float32")
            self._exact = self._build("float32")
        return self._exact

    def _exact_size(self, size: int, count: int) -> int:
        """Return the images of a pass in float32, for passes of `size` of `count` in float16.

        On a GPU as few as keep it busy, since most often one of them is wanted; and half of those
        in float16 where these are few for lack of memory. On a CPU batches are small anyway.
        """
        if self.device.type == "cpu":
            return size
        return min(_EXACT_IMAGES, size if size == count else (size + 1) // 2)

    def overflowed(self, found: DeviceRows) -> NDArray[np.int64] | None:
        """Return the rows that left the range of float16, ascending; None if none did."""
        if self.precision != "float16" or bool(found.in_range.all()):
            return None
        self.redone += 1
        return np.flatnonzero(~found.in_range.cpu().numpy())

    def _quantised(self, features: Mapping[str, Tensor], in_range: Tensor) -> DeviceRows:
        """Convert rows to the storage dtype, and count for each what was clipped."""
        stored = {name: self.stored(name, feature) for name, feature in features.items()}
        return DeviceRows(
            {name: values for name, (values, _, _) in stored.items()},
            in_range,
            sum((clipped for _, clipped, _ in stored.values()), torch.zeros_like(in_range).long()),
            {name: finite for name, (_, _, finite) in stored.items()},
        )

    def _pass(
        self, network: TappedVgg | Int8Vgg, images: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        if self.device.type == "cpu":
            refuse_broken_threads()
            note_computing()
        self.expect(len(images))
        with torch.no_grad():
            if isinstance(network, TappedVgg):
                images = self._normalise(images).to(next(network.parameters()).dtype)
            features, finite = network(images)
            if self._recipe is not None:
                features = {self._recipe.method: fuse_vectors(features, self._recipe)}
        return cast("dict[str, Tensor]", features), cast("Tensor", finite)


def _note_layer(start: int, images: int, share: float) -> None:
    """Say that a share of the layers of a pass, of so many images from `start` on, is computed."""
    activity.computed(start + images * share)


@dataclass(frozen=True, slots=True)
class Pending:
    """A batch in flight on the device."""

    extractor: TensorExtractor
    batch: DecodedBatch
    copies: Copies

    @isolated()
    def collect(self) -> FeatureBatch:
        """Wait for the batch and return its features, in the order of its rows."""
        found = self.copies.wait()
        bad = self.extractor.overflowed(found)
        if bad is not None:
            found.replace(bad, self.extractor.relaunch(self.batch, self.batch.slots[bad]).wait())
        return self._feature_batch(found)

    def _feature_batch(self, found: DeviceRows) -> FeatureBatch:
        rows = self.batch.rows
        bad = {name: set(rows[~finite.numpy()].tolist()) for name, finite in found.finite.items()}
        failures = [
            Failure(row, f"the network gave values that are not finite in {', '.join(names)}")
            for row in sorted(set().union(*bad.values()))
            for names in [[name for name, rows_of in bad.items() if row in rows_of]]
        ]
        failed = [failure.row for failure in failures]
        keep = [index for index, row in enumerate(rows.tolist()) if row not in failed]
        values = {name: value.numpy() for name, value in found.values.items()}
        if failed:
            values = {name: value[keep] for name, value in values.items()}
        return FeatureBatch(
            rows=rows[keep] if failed else rows,
            digests=self.batch.digests[keep] if failed else self.batch.digests,
            features=values,
            failures=(*self.batch.failures, *failures),
            clamped=0 if found.clipped is None else int(found.clipped.sum()),
        )
