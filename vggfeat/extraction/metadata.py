"""What a new cache records about itself before its first row: shapes, identity, provenance."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import importlib.metadata
import logging
import platform
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from vggfeat._version import __version__
from vggfeat.cache.format import CacheMetadata, Provenance
from vggfeat.cache.identity import Identity
from vggfeat.core.quantization import scales_digest
from vggfeat.errors import UsageError
from vggfeat.network.weights import find_weights, weights_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from vggfeat.core.quantization import Scales
    from vggfeat.core.settings import Settings
    from vggfeat.images.image_list import ImageList
    from vggfeat.network.multi_device import Replicas
    from vggfeat.network.weights import Weights

_LIBRARIES = ("torch", "torchvision", "pillow", "numpy", "h5py")

log = logging.getLogger("vggfeat")


@dataclass(frozen=True, slots=True)
class NewCache:
    """A cache to be made of `images`: what must be known before the networks are built.

    Attributes:
        calibrate: measures the activations for precision int8; None for others. It decodes images,
            so it is called only once the decoding of the run has begun.
    """

    settings: Settings
    images: ImageList
    weights: Weights
    batch_size: int
    calibrate: Callable[[], Mapping[str, float]] | None

    def describe(self, replicas: Replicas) -> CacheMetadata:
        """Return the metadata of the cache, which only the networks know in full.

        The networks then compute as the cache records it.
        """
        size = self.settings.preprocess().size
        scales = self._scales(replicas)
        identity = make_identity(
            self.settings, replicas.precision, self.weights, replicas.activations, scales
        )
        limit = replicas.settle(self.batch_size)
        chosen = {"batch_size": self.batch_size, "precision": replicas.precision, **limit.record()}
        provenance = Provenance(
            root=self.images.root,
            config={**self.settings.as_dict(), **chosen},
            created_utc=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
            tool_version=__version__,
            versions=versions_of(self.settings),
            warning=self.weights.warning or replicas.caution,
        )
        return CacheMetadata(identity, provenance, replicas.output_shapes(size, size), scales)

    def _scales(self, replicas: Replicas) -> dict[str, Scales]:
        """Return the scales of features stored as int8, and have the networks apply them."""
        if self.settings.dtype != "int8":
            return {}
        from vggfeat.extraction.calibration import scales_on_sample

        scales = scales_on_sample(self.settings, self.images, replicas)
        replicas.scale_to(scales)
        return scales


def versions_of(settings: Settings) -> dict[str, str]:
    """Return the versions of Python and of the libraries that compute with these settings."""
    libraries = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    if settings.decode == "gpu":
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            libraries["torchcodec"] = importlib.metadata.version("torchcodec")
    return {"python": platform.python_version(), **libraries}


def prepare_cache(settings: Settings, images: ImageList) -> NewCache:
    """Find the weights, and choose the batch size and the way of decoding of a new cache."""
    from vggfeat.network.device import choose_batch_size

    settings = without_auto_decoding(settings)
    weights = find_weights(settings.weights, settings.model)
    if weights.warning:
        log.warning(weights.warning)

    def calibrate() -> Mapping[str, float]:
        from vggfeat.extraction.calibration import calibrate_on_sample

        return calibrate_on_sample(settings, images, weights)

    return NewCache(
        settings,
        images,
        weights,
        choose_batch_size(settings, len(images)),
        calibrate if settings.precision == "int8" else None,
    )


def without_auto_decoding(settings: Settings) -> Settings:
    """Return settings with the way of decoding that `auto` stands for on their devices."""
    from vggfeat.network.device import choose_devices

    if settings.decode != "auto":
        return settings
    return choose_decoding(settings, {one.type for one in choose_devices(settings.device)})


def choose_decoding(settings: Settings, device_types: Collection[str]) -> Settings:
    """Return settings with the way of decoding that `auto` stands for on devices of these types.

    On a CPU decoding is a few percent of a run, and Pillow's pixels are the reference. On CUDA
    decoding is what a run waits for, and torchvision's way is the fastest that needs no device.
    """
    pillow = dataclasses.replace(settings, decode="exact")
    if "cuda" not in device_types:
        return pillow
    try:
        import vggfeat.images.torchvision_jpeg  # noqa: F401 whether it can be

        return dataclasses.replace(settings, decode="torchvision")
    except UsageError:  # other images than it makes are requested
        return pillow
    except Exception as error:  # noqa: BLE001 one built for another torch raises anything
        log.warning("decoding by Pillow, since torchvision cannot be imported: %s", error)
        return pillow


def check_decoding(settings: Settings) -> None:
    """Raise `DeviceError` if a run is to decode on devices that do not decode."""
    if settings.decode == "gpu":
        from vggfeat.images.device_jpeg import refuse_without_cuda
        from vggfeat.network.device import choose_devices

        refuse_without_cuda(choose_devices(settings.device))


def describe_cache(settings: Settings, images: ImageList) -> CacheMetadata:
    """Return the metadata of a cache of these images without extracting any of them."""
    from vggfeat.network.multi_device import Replicas

    check_decoding(settings)
    new = prepare_cache(settings, images)
    replicas = Replicas(new.settings, new.weights, new.calibrate() if new.calibrate else None)
    return new.describe(replicas)


def make_identity(
    settings: Settings,
    precision: str,
    weights: Weights | None,
    activations: Mapping[str, float] = MappingProxyType({}),
    scales: Mapping[str, Scales] = MappingProxyType({}),
) -> Identity:
    """Return the identity of a run with these settings; without weights their digest is empty."""
    recipe = settings.recipe
    return Identity(
        model=settings.model,
        weights=weights.name if weights else weights_name(settings.weights, settings.model),
        weights_sha256=weights.sha256 if weights else "",
        precision=precision,
        dtype=settings.dtype,
        preprocess=settings.preprocess(),
        layers=tuple(sorted(settings.stored)),
        first_layer="" if settings.first_layer == "sum" else settings.first_layer,
        activations=tuple(activations.items()),
        scales=scales_digest(scales),
        steps=(recipe.step(),) if recipe else (),
    )
