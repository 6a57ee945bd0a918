"""Compute query images with the network, weights and preprocessing that made a cache."""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from vggfeat.core import activity
from vggfeat.core.held_weights import names_held_weights
from vggfeat.core.records import FailedImage
from vggfeat.core.sequences import as_tuple
from vggfeat.core.settings import SETTING_NAMES, Settings
from vggfeat.core.text import counted
from vggfeat.errors import CacheMismatchError, DecodeError, WeightsError
from vggfeat.images.decode import read_digest
from vggfeat.images.sources import discover
from vggfeat.images.transform import file_name_of, is_one_image
from vggfeat.network.weights import find_weights
from vggfeat.network.weights_in_memory import held_from_file
from vggfeat.transforms.replay import replay_to

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.extraction.extractor import Extractor, ImagesLike
    from vggfeat.images.image_list import ImageList
    from vggfeat.network.weights import Weights

    Values = NDArray[np.float32]

log = logging.getLogger("vggfeat")

NO_DIGEST = bytes(32)
"""The digest of a query that is no file."""


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """Query images and their features; `failures` are those that could not be decoded."""

    paths: tuple[str, ...] = ()  # of files, sorted, then in memory: their file, or `images[N]`
    vectors: Mapping[str, Values] = field(default_factory=dict)  # layer → (q, D)
    failures: tuple[FailedImage, ...] = ()
    places: tuple[bytes, ...] = ()  # absolute paths or addresses; empty in memory
    digests: tuple[bytes, ...] = ()  # SHA-256 of the files; zeros in memory

    def joined(self, others: Queries) -> Queries:
        """Return these queries and, behind them, others by the same layers."""
        if not others.paths:
            return self
        if not self.paths:
            return dataclasses.replace(others, failures=self.failures)
        vectors = {
            layer: np.concatenate([rows, others.vectors[layer]])
            for layer, rows in self.vectors.items()
        }
        return Queries(
            self.paths + others.paths,
            vectors,
            self.failures + others.failures,
            self.places + others.places,
            self.digests + others.digests,
        )


class QueryImageOptions(TypedDict, total=False):
    """How `query_images` computes, for functions that pass it on."""

    device: str
    model_weights: str | os.PathLike[str] | Mapping[str, Tensor] | None
    use: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def query_images(
    cache: FeatureCache,
    images: ImagesLike,
    layers: Sequence[str],
    *,
    in_order: bool = False,
    device: str = "auto",
    model_weights: str | os.PathLike[str] | Mapping[str, Tensor] | None = None,
    use: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
) -> Queries:
    """Compute the features of query images with the network and preprocessing of a cache.

    A cache of corrupted images (`--augment`) is searched with images as they are.

    Args:
        cache: what is to be searched; it records how its features were made.
        images: paths of images, folders, archives (see `discover`), PIL images, arrays (H, W) or
            (H, W, C), tensors (C, H, W) of pixels, or the bytes of image files; one or several, of
            any kinds.
        layers: of the cache, canonical.
        in_order: see `listed_queries`.
        device: for the network: see `Settings.device`.
        model_weights: the weights' file, where it is not where the cache says, or their state
            dict; for a cache made with weights in memory, a file of the same tensors will do.
        use: for a cache made by `fuse` or `reduce`, the files with what was fitted; by default
            those beside the caches that they made, `<cache>.model.h5`.
    """
    queries = listed_queries(images, in_order=in_order)
    replay = replay_to(cache, as_tuple(use))
    extractor = _extractor(cache, replay.specs or tuple(layers), device, model_weights)
    preprocess = dataclasses.replace(cache.header.identity.preprocess, augment=())
    if extractor.preprocess != preprocess:
        raise CacheMismatchError(
            f"cache {cache.path!r} was preprocessed in a way that its settings do not repeat: "
            f"{preprocess} is recorded, they give {extractor.preprocess}; query with --row"
        )
    found = compute_queries(queries, extractor)
    vectors = replay(found.vectors) if found.paths else {}
    kept = {layer: vectors[layer] for layer in layers if found.paths}
    return dataclasses.replace(found, vectors=kept)


def compute_queries(queries: Sequence[QueryImage], extractor: Extractor) -> Queries:
    """Compute features of images, by what the extractor calls them; failures are recorded."""
    good, tensors, digests, failures = [], [], [], []
    for query in queries:
        try:
            digest, tensor = query.read(extractor)
        except DecodeError as error:
            failures.append(FailedImage(query.name, str(error)))
        else:
            good.append(query)
            digests.append(digest)
            tensors.append(tensor)
    if not good:
        return Queries(failures=tuple(failures))
    activity.begins(f"computing features of {counted(len(tensors), 'query image')}")
    features = extractor(tensors)
    return Queries(
        tuple(query.name for query in good),
        {name: rows.cpu().numpy() for name, rows in features.items()},
        tuple(failures),
        tuple(query.place for query in good),
        tuple(digests),
    )


@dataclass(frozen=True, slots=True, eq=False)
class QueryImage:
    """One image to search with.

    Attributes:
        name: see `Queries.paths`.
        place: see `Queries.places`.
        image: in memory; None of a file that `listed` has at `position`.
    """

    name: str
    place: bytes
    image: Any = None
    listed: ImageList | None = None
    position: int = 0

    def read(self, extractor: Extractor) -> tuple[bytes, Tensor]:
        """Return the SHA-256 of the file, and the pixels (C, H, W); raise DecodeError."""
        if self.listed is None:
            return NO_DIGEST, extractor.transform(self.image)
        with self.listed.open(self.position) as stream:
            digest, content = read_digest(stream)
            return digest, extractor.transform(content)


def listed_images(images: ImagesLike) -> list[Any]:
    """Return one image or several as a list; a path is one, and so is an array (H, W, C)."""
    several: Any = images
    return [several] if is_one_image(several) else list(several)


def listed_queries(images: ImagesLike, *, in_order: bool = False) -> list[QueryImage]:
    """Return the images that files give, each once and sorted, and behind them those in memory.

    If `in_order`, return them in the order in which they are given, and as often.
    """
    given = listed_images(images)
    paths = [one for one in given if isinstance(one, (str, os.PathLike))]
    if in_order:
        parts = [
            _of_files([one]) if isinstance(one, (str, os.PathLike)) else [_in_memory(number, one)]
            for number, one in enumerate(given)
        ]
        return [query for part in parts for query in part]
    held = [
        _in_memory(number, one)
        for number, one in enumerate(given)
        if not isinstance(one, (str, os.PathLike))
    ]
    return (_of_files(paths) if paths else []) + held


def _of_files(paths: Sequence[str | os.PathLike[str]]) -> list[QueryImage]:
    listed = discover(paths)
    places = [listed.absolute(position) for position in range(len(listed))]
    return [
        QueryImage(_shown(place), place, listed=listed, position=position)
        for position, place in enumerate(places)
    ]


def _in_memory(number: int, image: Any) -> QueryImage:
    file = file_name_of(image)
    place = os.path.abspath(os.fsencode(file)) if file else b""
    return QueryImage(_shown(place) if file else f"images[{number}]", place, image)


def _shown(path: bytes) -> str:
    here = os.path.join(os.getcwdb(), b"")
    return os.fsdecode(path.removeprefix(here))


def _extractor(
    cache: FeatureCache,
    specs: Sequence[str],
    device: str,
    model_weights: str | os.PathLike[str] | Mapping[str, Tensor] | None,
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
            "weights": known.get("weights", identity.weights)
            if model_weights is None
            else model_weights,
            "precision": identity.precision,
            "dtype": "float32",
            "augment": "",
            "batch_size": "auto",  # few queries, which need no batch of the cache's size
            "device": "cpu" if device == "auto" and identity.precision == "int8" else device,
        }
    )
    weights = _weights(cache, settings, given=model_weights is not None)
    from vggfeat.extraction.extractor import Extractor

    return Extractor(settings, weights, dict(identity.activations))


def _weights(cache: FeatureCache, settings: Settings, *, given: bool) -> Weights:
    identity = cache.header.identity
    try:
        weights = find_weights(settings.weights, settings.model)
    except WeightsError as error:
        if given:
            raise
        raise WeightsError(
            f"{error}: cache {cache.path!r} was made with them; --weights FILE says where "
            "they are now"
        ) from error
    if names_held_weights(identity.weights) and weights.path is not None:
        weights = find_weights(held_from_file(weights.path), settings.model)
    if weights.sha256 != identity.weights_sha256:
        raise CacheMismatchError(
            f"weights {settings.weights!r} are not those that cache {cache.path!r} was made with: "
            f"SHA-256 {weights.sha256[:8]}, expected {identity.weights_sha256[:8]} "
            f"({identity.weights}); --weights FILE names others"
        )
    return weights
