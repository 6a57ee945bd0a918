"""Run the network on its device: precision, memory, and batches in flight."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from vggfeat.core.forked import note_computing, refuse_broken_threads
from vggfeat.core.isolation import isolated
from vggfeat.core.records import DecodedBatch, Failure, FeatureBatch
from vggfeat.core.text import counted
from vggfeat.core.vgg_layers import ADAPTER, VGG
from vggfeat.errors import DeviceError, UsageError
from vggfeat.network.device import (
    Compute,
    choose_device,
    choose_precision,
    device_errors,
    is_out_of_memory,
    to_host,
)
from vggfeat.network.fused_epilogue import WORTHWHILE, log_choice, tried_epilogue
from vggfeat.network.input_checks import check_images
from vggfeat.network.int8 import Int8Vgg
from vggfeat.network.pooling import fuse_vectors
from vggfeat.network.storage_dtype import quantise
from vggfeat.network.vgg import Normaliser, TappedVgg, needed_layers, network_of
from vggfeat.network.weight_metadata import check_carried, check_held
from vggfeat.network.weights import Weights, find_weights, load_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        if self.weights.path is not None:
            check_carried(self.weights.path, settings, self.weights.digest)
        if self.weights.held is not None:
            check_held(self.weights.held, settings)
        self.device = choose_device(settings.device)
        self.precision: Compute = choose_precision(settings.precision, self.device)
        self.preprocess: Preprocess = settings.preprocess()
        self.redone = 0
        self._limit: int | None = None  # images a pass, once memory has run out
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
        """Count images to come: for many, the fused kernel is tried, which takes 1 or 2 seconds."""
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
        found = self._within_memory(self._network, images, DeviceRows)
        if self.precision == "float16" and not bool(found.in_range.all()):
            found = found.completed(self._exactly(images, DeviceRows))
        return dict(found.values)

    @isolated()
    def launch(self, batch: DecodedBatch) -> Pending:
        """Start a batch on the device without waiting for it; `Pending.collect` waits.

        Args:
            batch: images uint8 or uint16 (B, H, W, C) in memory.
        """
        images = batch.images.permute(0, 3, 1, 2)
        with device_errors(self.device):
            return Pending.start(
                self, batch, self._within_memory(self._network, images, self._quantised)
            )

    def relaunch(self, batch: DecodedBatch) -> Pending:
        """Start a batch, some of which has left the range of float16, again in float32."""
        images = batch.images.permute(0, 3, 1, 2)
        with device_errors(self.device):
            return Pending.start(self, batch, self._exactly(images, self._quantised))

    def _exactly(self, images: Tensor, finish: Finish) -> DeviceRows:
        """Compute a whole batch again in float32, so that a row depends on its slot alone."""
        if self._exact is None:
            log.info("activations exceed float16: such images are computed again in float32")
            self._exact = self._build("float32")
        self.redone += 1
        return self._within_memory(self._exact, images, finish)

    def _quantised(self, features: Mapping[str, Tensor], in_range: Tensor) -> DeviceRows:
        """Convert rows to the storage dtype, and count for each what was clipped."""
        stored = {name: self.stored(name, feature) for name, feature in features.items()}
        return DeviceRows(
            {name: values for name, (values, _, _) in stored.items()},
            in_range,
            sum((clipped for _, clipped, _ in stored.values()), torch.zeros_like(in_range).long()),
            {name: finite for name, (_, _, finite) in stored.items()},
        )

    def _within_memory(
        self, network: TappedVgg | Int8Vgg, images: Tensor, finish: Finish
    ) -> DeviceRows:
        """Run one pass, or several over parts of the batch when the device's memory runs out."""
        count = len(images)
        while True:
            size = min(self._limit or count, count)
            try:
                on_device = images.to(self.device, non_blocking=True)
                return DeviceRows.joined(
                    [finish(*self._pass(network, part)) for part in torch.split(on_device, size)]
                )
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise DeviceError(
                        f"{self.device} has no memory for one image of "
                        f"{images.shape[2]} x {images.shape[3]}: {str(error).splitlines()[0]}"
                    ) from error
            # Out here, where no traceback holds the tensors of the failed pass any more.
            torch.cuda.empty_cache()
            self._limit = (size + 1) // 2
            log.warning(
                "out of memory with %s a pass; continuing with half", counted(size, "image")
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


Finish = Callable[[Mapping[str, Tensor], Tensor], "DeviceRows"]
"""What becomes of the features of a pass, and of its mask of rows within the range of float16."""


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """Rows of a batch, N of them, on the device or the host.

    Attributes:
        values: canonical spec → (N, …), float32 or as stored.
        in_range: bool (N,): false where float16 overflowed on the way.
        clipped: of stored values, int64 (N,): how many exceeded the range of their dtype.
        finite: of stored values, canonical spec → bool (N,): whether all values of the row are.
    """

    values: Mapping[str, Tensor]
    in_range: Tensor
    clipped: Tensor | None = None
    finite: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Sequence[DeviceRows]) -> DeviceRows:
        """Return the rows of several passes as one."""
        return parts[0] if len(parts) == 1 else cls._by(lambda *ones: torch.cat(ones), *parts)

    def on_host(self, slots: Tensor) -> DeviceRows:
        """Return the rows of some slots, int64 (n,), in host memory; see `to_host`."""
        return self._by(lambda one: to_host(one[slots]), self)

    def completed(self, exact: DeviceRows) -> DeviceRows:
        """Return these rows, with those that are not in range from `exact`."""

        def choose(one: Tensor, other: Tensor) -> Tensor:
            return torch.where(self.in_range.view(-1, *[1] * (one.dim() - 1)), one, other)

        return self._by(choose, self, exact)

    @classmethod
    def _by(cls, function: Callable[..., Tensor], *all_rows: DeviceRows) -> DeviceRows:
        """Apply a function of tensors to each attribute."""
        first = all_rows[0]
        return cls(
            {name: function(*(one.values[name] for one in all_rows)) for name in first.values},
            function(*(one.in_range for one in all_rows)),
            None if first.clipped is None else function(*(one.clipped for one in all_rows)),
            {name: function(*(one.finite[name] for one in all_rows)) for name in first.finite},
        )


@dataclass(frozen=True, slots=True)
class Pending:
    """A batch in flight on the device."""

    extractor: TensorExtractor
    batch: DecodedBatch
    found: DeviceRows
    ready: torch.cuda.Event | None

    @classmethod
    def start(cls, extractor: TensorExtractor, batch: DecodedBatch, found: DeviceRows) -> Pending:
        """Start the copies of a batch's rows to the host."""
        slots = torch.from_numpy(batch.slots).to(extractor.device, non_blocking=True)
        found, ready = found.on_host(slots), None
        if extractor.device.type == "cuda":
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call] # torch has no types here
            ready.record(torch.cuda.current_stream(extractor.device))
        return cls(extractor, batch, found, ready)

    @isolated()
    def collect(self) -> FeatureBatch:
        """Wait for the batch and return its features, in the order of its rows."""
        found = self._waited()
        if self.extractor.precision == "float16" and not bool(found.in_range.all()):
            # Of the whole batch in float32 only the rows that overflowed are taken: what the other
            # images of a batch are must not change a row.
            found = found.completed(self.extractor.relaunch(self.batch)._waited())  # noqa: SLF001
        return self._feature_batch(found)

    def _waited(self) -> DeviceRows:
        if self.ready is not None:
            with device_errors(self.extractor.device):
                self.ready.synchronize()
        return self.found

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
