"""Compute query images with the network, weights and preprocessing that made a cache."""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.core.records import FailedImage
from vggfeat.core.settings import SETTING_NAMES, Settings
from vggfeat.errors import CacheMismatchError, DecodeError, WeightsError
from vggfeat.images.decode import decode, read_digest
from vggfeat.images.sources import discover
from vggfeat.network.weights import find_weights
from vggfeat.transforms.replay import replay_to

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.network.extractor import Extractor
    from vggfeat.network.weights import Weights

    Values = NDArray[np.float32]

log = logging.getLogger("vggfeat")

_BATCH_SIZE = 16


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """Query images and their features; `failures` are those that could not be decoded."""

    paths: tuple[str, ...] = ()  # relative to the current directory where possible
    vectors: Mapping[str, Values] = field(default_factory=dict)  # layer → (q, D)
    failures: tuple[FailedImage, ...] = ()
    places: tuple[bytes, ...] = ()  # absolute paths or addresses
    digests: tuple[bytes, ...] = ()  # SHA-256 of the images' bytes


def query_images(
    cache: FeatureCache,
    sources: Sequence[str | os.PathLike[str]],
    layers: Sequence[str],
    *,
    device: str = "auto",
    model_weights: str | os.PathLike[str] | None = None,
    use: Sequence[str | os.PathLike[str]] = (),
) -> Queries:
    """Compute the features of query images with the network and preprocessing of a cache.

    A cache of corrupted images (`--augment`) is searched with images as they are.

    Args:
        cache: to be searched; it records how its features were made.
        sources: images, folders, archives: see `discover`.
        layers: of the cache, canonical.
        device: for the network: see `Settings.device`.
        model_weights: the weights' file, where it is not where the cache says.
        use: for a cache made by `fuse` or `reduce`, the files with what was fitted; by default
            those beside the caches that they made, `<cache>.model.h5`.
    """
    listed = discover(sources)
    replay = replay_to(cache, use)
    extractor = _extractor(cache, replay.specs or tuple(layers), device, model_weights)
    preprocess = dataclasses.replace(cache.header.identity.preprocess, augment=())
    if extractor.preprocess != preprocess:
        raise CacheMismatchError(
            f"cache {cache.path!r} was preprocessed in a way that its settings do not repeat: "
            f"{preprocess} is recorded, they give {extractor.preprocess}; query with --row"
        )
    names, images, failures = [], [], []
    places, digests = [], []
    here = os.path.join(os.getcwdb(), b"")
    for position in range(len(listed)):
        place = listed.absolute(position)
        name = os.fsdecode(place.removeprefix(here))
        try:
            with listed.open(position) as stream:
                digest, content = read_digest(stream)
                images.append(decode(content, preprocess, extractor.settings.max_pixels))
        except DecodeError as error:
            failures.append(FailedImage(name, str(error)))
        else:
            names.append(name)
            places.append(place)
            digests.append(digest)
    if not names:
        return Queries(failures=tuple(failures))
    vectors = replay(_vectors(extractor, images))
    return Queries(
        tuple(names),
        {layer: vectors[layer] for layer in layers},
        tuple(failures),
        tuple(places),
        tuple(digests),
    )


def _vectors(extractor: Extractor, images: Sequence[NDArray[Any]]) -> dict[str, Values]:
    """Return features, float32 (q, D), of images (H, W, C), in batches where sizes are equal."""
    import torch

    step = 1 if extractor.preprocess.crop == "none" else _BATCH_SIZE
    parts = []
    for start in range(0, len(images), step):
        batch = torch.from_numpy(np.stack(images[start : start + step])).permute(0, 3, 1, 2)
        parts.append({name: one.cpu().numpy() for name, one in extractor(batch).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts or [{}])[0]}


def _extractor(
    cache: FeatureCache,
    specs: Sequence[str],
    device: str,
    model_weights: str | os.PathLike[str] | None,
) -> Extractor:
    """Return the network that made the cache, on this machine."""
    identity = cache.header.identity
    config = cache.header.provenance.config
    known = {name: config[name] for name in SETTING_NAMES if name in config}
    settings = Settings(
        **{
            **known,
            "layers": ",".join(specs),
            "pool": "avg",  # canonical names leave this default out
            "norm": "none",
            "weights": os.fspath(model_weights) if model_weights is not None else config["weights"],
            "precision": identity.precision,
            "dtype": "float32",
            "augment": "",
            "device": "cpu" if device == "auto" and identity.precision == "int8" else device,
        }
    )
    weights = _weights(cache, settings, given=model_weights is not None)
    from vggfeat.network.extractor import Extractor

    return Extractor(settings, weights, dict(identity.activations))


def _weights(cache: FeatureCache, settings: Settings, *, given: bool) -> Weights:
    identity = cache.header.identity
    try:
        weights = find_weights(settings.weights, settings.model)
    except WeightsError as error:
        if given:
            raise
        raise WeightsError(
            f"{error}: cache {cache.path!r} was made with them; --model-weights FILE says where "
            "they are now"
        ) from error
    if weights.sha256 != identity.weights_sha256:
        raise CacheMismatchError(
            f"weights {settings.weights!r} are not those that cache {cache.path!r} was made with: "
            f"SHA-256 {weights.sha256[:8]}, expected {identity.weights_sha256[:8]} "
            f"({identity.weights}); --model-weights FILE names others"
        )
    return weights
