"""What a new cache says of itself, before its first row: shapes, identity, provenance, scales."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggfeat.extraction.resume import make_identity, make_provenance
from vggfeat.network.weights import find_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vggfeat.cache.format import Provenance
    from vggfeat.cache.identity import Identity
    from vggfeat.core.quantization import Scales
    from vggfeat.core.settings import Settings
    from vggfeat.images.sources import ImageList
    from vggfeat.network.multi_device import Replicas
    from vggfeat.network.weights import Weights

log = logging.getLogger("vggfeat")


@dataclass(frozen=True, slots=True)
class Description:
    """What a new cache says of itself.

    Attributes:
        shapes: canonical spec → shape of one row.
        identity: what another run must agree in.
        provenance: how it is made.
        scales: of each layer, for int8; else empty.
    """

    shapes: Mapping[str, tuple[int, ...]]
    identity: Identity
    provenance: Provenance
    scales: Mapping[str, Scales]


def describe_cache(settings: Settings, manifest: ImageList) -> Description:
    """What a cache of these images is to say of itself, found without doing one of them.

    Raises:
        WeightsError: the weights cannot be had.
        DeviceError: the device is missing.
    """
    from vggfeat.network.device import choose_batch_size
    from vggfeat.network.multi_device import Replicas

    weights = find_weights(settings.weights, settings.model)
    if weights.warning:
        log.warning(weights.warning)
    batch_size = choose_batch_size(settings, len(manifest))
    calibrate = calibrating(settings, manifest, weights)
    replicas = Replicas(settings, weights, calibrate() if calibrate is not None else None)
    return describe_with(settings, manifest, weights, replicas, batch_size)


def describe_with(
    settings: Settings, manifest: ImageList, weights: Weights, replicas: Replicas, batch_size: int
) -> Description:
    """The same where the weights are found and the networks are up."""
    size = settings.preprocess().size
    scales = _scales(settings, manifest, replicas)
    return Description(
        shapes=replicas.output_shapes(size, size),
        identity=make_identity(settings, replicas.precision, weights, replicas.activations, scales),
        provenance=make_provenance(
            settings, manifest, weights, batch_size=batch_size, precision=replicas.precision
        ),
        scales=scales,
    )


def _scales(settings: Settings, manifest: ImageList, replicas: Replicas) -> dict[str, Scales]:
    """Scales for features stored as int8, which the networks then know; else none."""
    if settings.dtype != "int8":
        return {}
    from vggfeat.extraction.calibration import scales_on_sample

    scales = scales_on_sample(settings, manifest, replicas)
    replicas.scale_to(scales)
    return scales


def calibrating(
    settings: Settings, manifest: ImageList, weights: Weights
) -> Callable[[], Mapping[str, float]] | None:
    """What finds out, once decoding is under way, how large activations get; None if not needed."""
    if settings.precision != "int8":
        return None

    def calibrate() -> Mapping[str, float]:
        from vggfeat.extraction.calibration import calibrate_on_sample

        return calibrate_on_sample(settings, manifest, weights)

    return calibrate
