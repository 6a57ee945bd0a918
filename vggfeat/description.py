"""What a new cache says of itself, before its first row: shapes, identity, provenance, scales."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggfeat.job import make_identity, make_provenance
from vggfeat.weights import find_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vggfeat.config import Settings
    from vggfeat.identity import Identity
    from vggfeat.quantisation import Scales
    from vggfeat.replicas import Replicas
    from vggfeat.schema import Provenance
    from vggfeat.sources import Manifest
    from vggfeat.weights import Weights

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


def describe(settings: Settings, manifest: Manifest) -> Description:
    """What a cache of these images is to say of itself, found without doing one of them.

    Raises:
        WeightsError: the weights cannot be had.
        DeviceError: the device is missing.
    """
    from vggfeat.device import choose_batch_size
    from vggfeat.replicas import Replicas

    weights = find_weights(settings.weights, settings.model)
    if weights.warning:
        log.warning(weights.warning)
    batch_size = choose_batch_size(settings, len(manifest))
    calibrate = calibrating(settings, manifest, weights)
    replicas = Replicas(settings, weights, calibrate() if calibrate is not None else None)
    return describe_with(settings, manifest, weights, replicas, batch_size)


def describe_with(
    settings: Settings, manifest: Manifest, weights: Weights, replicas: Replicas, batch_size: int
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


def _scales(settings: Settings, manifest: Manifest, replicas: Replicas) -> dict[str, Scales]:
    """Scales for features stored as int8, which the networks then know; else none."""
    if settings.dtype != "int8":
        return {}
    from vggfeat.calibration import scales_on_sample

    scales = scales_on_sample(settings, manifest, replicas)
    replicas.scale_to(scales)
    return scales


def calibrating(
    settings: Settings, manifest: Manifest, weights: Weights
) -> Callable[[], Mapping[str, float]] | None:
    """What finds out, once decoding is under way, how large activations get; None if not needed."""
    if settings.precision != "int8":
        return None

    def calibrate() -> Mapping[str, float]:
        from vggfeat.calibration import calibrate_on_sample

        return calibrate_on_sample(settings, manifest, weights)

    return calibrate
