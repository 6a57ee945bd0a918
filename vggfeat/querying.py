"""Images as queries to a cache: through the network, weights and preprocessing it was made with."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.config import SETTING_NAMES, Settings
from vggfeat.decode import decode
from vggfeat.errors import CacheMismatchError, DecodeError, UsageError, WeightsError
from vggfeat.fitted import load_fitted
from vggfeat.fusing import default_model, from_fitted
from vggfeat.fusion import Fusion
from vggfeat.recipes import recipe_from, recipe_of
from vggfeat.reducing import Kept, Reduction, reduction_from
from vggfeat.sources import discover
from vggfeat.weights import find_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from vggfeat.extractor import Extractor
    from vggfeat.reader import FeatureCache
    from vggfeat.transforms import Transform
    from vggfeat.weights import Weights

    Values = NDArray[np.float32]

log = logging.getLogger("vggfeat")

_AT_ONCE = 16  # images a pass


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A query that gives no image.

    Attributes:
        path: as far as possible relative to the current directory.
        reason: one line.
    """

    path: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """Images ready to be searched with.

    Attributes:
        paths: of those that could be decoded, q of them, sorted.
        vectors: layer of the cache → float32 (q, D).
        failures: the others.
    """

    paths: tuple[str, ...]
    vectors: Mapping[str, Values]
    failures: tuple[Undecodable, ...]


def query_images(
    cache: FeatureCache,
    sources: Sequence[str | os.PathLike[str]],
    layers: Sequence[str],
    *,
    device: str = "auto",
    model_weights: str | os.PathLike[str] | None = None,
    use: str | os.PathLike[str] | None = None,
) -> Queries:
    """Vectors of images, made as the cache's own were, but that they are never altered.

    A cache of altered images (`--augment`) is searched with images as they are.

    Args:
        cache: what is to be searched; it says how its features came about.
        sources: images, folders, archives: see `sources.discover`.
        layers: of the cache, canonical.
        device: for the network: see `Settings.device`.
        model_weights: the weights' file, where it is not found as the cache names it.
        use: for a cache made by `fuse` or `reduce`, the file with what was fitted; by default the
            one beside the cache, `<cache>.model.h5`.

    Raises:
        InputError: a source is missing, or there is no image.
        UsageError: the cache was made in more steps than can be repeated here.
        WeightsError: the weights cannot be had.
        CacheMismatchError: the weights or the fitted model are not those of the cache.
        DeviceError: no such device.
    """
    manifest = discover(sources)
    way = _way(cache, use)
    extractor = _extractor(cache, way.specs or tuple(layers), device, model_weights)
    preprocess = dataclasses.replace(cache.header.identity.preprocess, augment=())
    if extractor.preprocess != preprocess:
        raise CacheMismatchError(
            f"cache {cache.path!r} was preprocessed in a way that its settings do not repeat: "
            f"{preprocess} is recorded, they give {extractor.preprocess}; query with --row"
        )
    names, images, failures = [], [], []
    for position in range(len(manifest)):
        name = _shown(manifest.absolute(position))
        try:
            with manifest.open(position) as stream:
                images.append(decode(stream, preprocess, extractor.settings.max_pixels))
        except DecodeError as error:
            failures.append(Undecodable(name, str(error)))
        else:
            names.append(name)
    vectors = _vectors(extractor, images)
    if way.transform is not None and names:
        vectors = dict(way.transform(vectors))
    return Queries(tuple(names), {layer: vectors[layer] for layer in layers} if names else {},
                   tuple(failures))  # fmt: skip


def _shown(path: bytes) -> str:
    here = os.path.join(os.getcwdb(), b"")
    return os.fsdecode(path.removeprefix(here))


def _vectors(extractor: Extractor, images: Sequence[NDArray[Any]]) -> dict[str, Values]:
    """Features, float32 (q, D), of images (H, W, C), some at a time where they are alike."""
    import torch

    step = 1 if extractor.preprocess.crop == "none" else _AT_ONCE
    parts = []
    for start in range(0, len(images), step):
        batch = torch.from_numpy(np.stack(images[start : start + step])).permute(0, 3, 1, 2)
        parts.append({name: one.cpu().numpy() for name, one in extractor(batch).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts or [{}])[0]}


@dataclass(frozen=True, slots=True, eq=False)
class _Way:
    """How the features of a cache come from the network's.

    Attributes:
        specs: layers that the network has to give; empty for the cache's own.
        transform: what is made of them afterwards.
    """

    specs: tuple[str, ...] = ()
    transform: Transform | None = None


def _way(cache: FeatureCache, use: str | os.PathLike[str] | None) -> _Way:
    steps = [json.loads(step) for step in cache.header.identity.steps]
    if not steps:
        return _Way()
    recipe = recipe_of(cache.header.identity.steps)
    if recipe is not None:
        return _Way(recipe.layers)
    if len(steps) > 1:
        names = " then ".join(str(step["step"]) for step in steps)
        raise UsageError(
            f"cache {cache.path!r} was made in {len(steps)} steps, {names}; an image can be taken "
            "through one: query with --row NAME, an image of the cache"
        )
    (step,) = steps
    return _Way(tuple(step["layers"]), _transform(cache, step, use))


def _transform(
    cache: FeatureCache, step: Mapping[str, Any], use: str | os.PathLike[str] | None
) -> Transform:
    """The step that made the cache, from its record or from the file with what was fitted."""
    if "model_sha256" in step:
        path = os.fspath(use) if use is not None else default_model(cache.path)
        fitted = load_fitted(path, step["step"])
        if fitted.sha256 != step["model_sha256"]:
            raise CacheMismatchError(
                f"model {path!r} is not the one that cache {cache.path!r} was made with: SHA-256 "
                f"{fitted.sha256[:8]}, expected {step['model_sha256'][:8]}; name it with --use"
            )
        return from_fitted(fitted) if step["step"] == "fuse" else reduction_from(fitted)
    if step["step"] == "fuse":
        return Fusion(recipe_from(step), {}, cache.layers[0])
    parts = {layer: Kept(cache.header.shapes[layer][0]) for layer in step["layers"]}
    return Reduction(step["norm"], step["final_norm"], parts, "")


def _extractor(
    cache: FeatureCache,
    specs: Sequence[str],
    device: str,
    model_weights: str | os.PathLike[str] | None,
) -> Extractor:
    """The network that made the cache, on this machine."""
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
    from vggfeat.extractor import Extractor

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
