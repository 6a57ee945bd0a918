"""`vggfeat fuse`: fit what a fusion needs, keep it in a model file, apply it to a cache."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.cache.labels import UNLABELLED, labels_of
from vggfeat.cache.rows import match_paths
from vggfeat.cache.sharded import open_cache
from vggfeat.core.arrays import spread
from vggfeat.core.fusion_spec import Recipe, recipe_from
from vggfeat.core.isolation import isolated
from vggfeat.core.text import counted
from vggfeat.errors import InputError
from vggfeat.storage.foreign_files import MOST_BYTES, read_foreign
from vggfeat.storage.paths import path_text
from vggfeat.transforms.base import blocks_of, chosen_layers
from vggfeat.transforms.derive import TransformReport, derive, open_source
from vggfeat.transforms.fusion import (
    Fusion,
    fit_fusion,
    fusion_arrays,
    unpack_attention,
    unpack_layers,
)
from vggfeat.transforms.model_check import (
    check_attention,
    check_names,
    check_part,
    check_widths,
    told_as_damage,
)
from vggfeat.transforms.model_file import (
    Fitted,
    check_network,
    default_model,
    model_for,
    network_record,
)
from vggfeat.transforms.pca import Pca, Standardisation
from vggfeat.transforms.settings import FuseSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.core.settings import Dtype
    from vggfeat.transforms.derive import Begin, OnProgress
    from vggfeat.transforms.layer_weights import Examples, LearnedWeights

FUSION_KIND = "fuse"
FOLDERS = "folders"
"""Stands for a file of labels: the folder that an image lies in is its label."""

_MOST_ROWS = 20_000  # to learn from, spread evenly
_MOST_BYTES = 1 << 30  # of them, as float32

log = logging.getLogger("vggfeat")


@isolated()
def fuse(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: FuseSettings | None = None,
    *,
    use: str | os.PathLike[str] | None = None,
    save: str | os.PathLike[str] | None = None,
    dtype: Dtype = "float16",
    begin: Begin = "resume",
    on_progress: OnProgress | None = None,
) -> TransformReport:
    """Fuse the layers of a cache into one vector an image in a new cache, or resume that.

    Args:
        source: the cache with the layers.
        out: the new cache.
        settings: by default all vectors are concatenated, each of unit length.
        use: a model file of an earlier fusion, applied as it is; settings are then its own.
        save: where to keep what is fitted; by default beside `out`, as `<out>.model.h5`. An
            existing file is used again if it was fitted to the same.
        dtype: of the stored features: `float16`, `float32`, or `int8`.
        begin: what to do if `out` exists: `resume` it; `update`, also add images that are new in
            the source and remove those that are gone; `fresh`, fit and begin again.
        on_progress: called after every block of rows.

    Raises:
        UsageError: settings that do not go together, or layers that the cache does not have.
        InputError: too little to fit or learn from.
        CacheError: a file is not ours, or damaged.
        CacheMismatchError: `out` or the model was made from something else.
        LockedError: another run writes to `out`.
        SpaceError: the disk is full; rows written before are kept.
        InterruptedRunError: SIGINT or SIGTERM; call again to resume.
    """
    started = time.perf_counter()
    out = path_text(out)
    cache = open_source(source, out, begin=begin, settings=settings, use=use)
    settings = settings or FuseSettings()
    settings.check()
    if use is None and not settings.fits:
        fusion = fit_fusion(cache, _recipe(cache, settings), name=settings.name)
        return derive(cache, out, fusion, dtype=dtype, begin=begin, on_progress=on_progress)
    path = os.fspath(use if use is not None else save or default_model(out))
    requested = _requested(cache, settings) if use is None else None
    fit = partial(_fit, cache, settings)
    fitted = model_for(cache, path, FUSION_KIND, requested, fit, fresh=begin == "fresh")
    fusion = from_fitted(fitted)
    report = derive(cache, out, fusion, dtype=dtype, begin=begin, on_progress=on_progress)
    notes, seconds = tuple(fitted.parameters.get("notes", ())), time.perf_counter() - started
    return dataclasses.replace(report, model=path, notes=notes, seconds=seconds)


def _recipe(cache: FeatureCache, settings: FuseSettings) -> Recipe:
    layers = chosen_layers(cache, settings.layers)
    return Recipe(settings.method, layers, settings.norm, settings.final_norm, settings.weights)


def _requested(cache: FeatureCache, settings: FuseSettings) -> dict[str, Any]:
    """Return what a model must have been fitted to, to be used again."""
    labels = settings.labels
    if labels is not None and labels != FOLDERS:
        try:
            # No pipe: the labels are read once more.
            labels = hashlib.sha256(read_foreign(labels, MOST_BYTES["labels"])).hexdigest()
        except OSError as error:
            raise InputError(
                f"labels {labels!r} cannot be read: {error.strerror}; expected a CSV file of "
                f"path,label, or the word {FOLDERS}"
            ) from error
    return {
        **_recipe(cache, settings).step().record,
        "width": settings.width,
        "name": settings.name,
        "labels": labels,
        "pairs": [open_cache(pair).header.identity.fingerprint() for pair in settings.pairs],
        "source": cache.header.identity.fingerprint(),
    }


def _fit(cache: FeatureCache, settings: FuseSettings) -> Fitted:
    fusion = fit_fusion(cache, _recipe(cache, settings), width=settings.width, name=settings.name)
    notes = [
        f"{layer}: {pca.share:.1%} of the variance in {counted(len(pca.components), 'dimension')}"
        for layer, pca in fusion.projections.items()
    ]
    if settings.learns:
        from vggfeat.transforms.layer_weights import learn

        examples = (
            _from_pairs(cache, fusion, settings.pairs)
            if settings.pairs
            else _from_labels(cache, fusion, settings.labels, notes)
        )
        log.info("learning weights from %s", counted(len(examples.groups), "image"))
        learnt = learn(fusion, examples, by_group=bool(settings.pairs), device=settings.device)
        fusion, notes = learnt.fusion, [*notes, *_notes_of(learnt)]
    parameters = {
        "recipe": dict(fusion.recipe.step().record),
        "widths": dict(fusion.widths),
        "name": fusion.name,
        "notes": notes,
        "asked": _requested(cache, settings),
        "network": network_record(cache, fusion.inputs),
    }
    arrays = fusion_arrays(fusion.standard, fusion.projections, fusion.attention)
    return Fitted(FUSION_KIND, parameters, arrays)


def _notes_of(learnt: LearnedWeights) -> list[str]:
    weights = ", ".join(f"{layer} {weight:.3f}" for layer, weight in learnt.mean_weights.items())
    kind = "mean weights" if learnt.fusion.attention else "weights"
    judged = (
        f"learnt from {counted(learnt.images, 'image')}; on {learnt.held_out} held out, mean "
        f"average precision {learnt.before:.4f} with equal weights, {learnt.after:.4f} with those "
        "learnt"
    )
    return [judged, f"{kind}: {weights}"]


def _most_rows(fusion: Fusion) -> int:
    return min(_MOST_ROWS, _MOST_BYTES // (4 * sum(fusion.widths.values())))


def _from_labels(
    cache: FeatureCache, fusion: Fusion, labels: str | None, notes: list[str]
) -> Examples:
    from vggfeat.transforms.layer_weights import Examples

    known = labels_of(cache, None if labels == FOLDERS else labels)
    notes.extend(known.notes)
    classes = known.classes
    rows = spread(np.flatnonzero(cache.done & (classes != UNLABELLED)), _most_rows(fusion))
    return Examples(_gathered([(cache, rows)], fusion), classes[rows])


def _from_pairs(cache: FeatureCache, fusion: Fusion, pairs: Sequence[str]) -> Examples:
    from vggfeat.transforms.layer_weights import Examples

    parts, groups = [], []
    originals = spread(np.flatnonzero(cache.done), _most_rows(fusion) // (1 + len(pairs)))
    for path in pairs:
        other = open_cache(path)
        check_network(other, network_record(cache, fusion.inputs), cache.path)
        match = match_paths(other.paths, cache.paths[originals])
        done = other.done[match.rows]
        parts.append((other, match.rows[done]))
        groups.append(originals[match.listed[done]])
    gathered = _gathered([*parts, (cache, originals)], fusion)
    return Examples(gathered, np.concatenate([*groups, originals]))


def _gathered(
    parts: Sequence[tuple[FeatureCache, NDArray[np.int64]]], fusion: Fusion
) -> dict[str, NDArray[np.float32]]:
    """Return rows of several caches, concatenated, as they go into the fusion."""
    blocks = [
        fusion.normalised(layers)
        for cache, rows in parts
        for _, layers in blocks_of(cache, fusion.inputs, rows)
    ]
    if not blocks:
        raise InputError(
            f"no row that is done and has company in {parts[0][0].path!r}; nothing can be learnt"
        )
    return {name: np.concatenate([block[name] for block in blocks]) for name in fusion.inputs}


def from_fitted(fitted: Fitted) -> Fusion:
    """Return the fusion that a model file keeps; raise CacheError if a part is missing."""
    known, arrays = fitted.parameters, fitted.arrays
    with told_as_damage("the model of a fusion"):
        recipe = recipe_from(known["recipe"])
        layers, widths = recipe.layers, known["widths"]
        check_names(layers, "layers")
        check_widths(widths, layers)
        name = str(known["name"])
        FuseSettings(name=name).check()
        fusion = Fusion(
            recipe,
            widths,
            name,
            unpack_layers(Standardisation, "standard", layers, arrays),
            unpack_layers(Pca, "projection", layers, arrays),
            unpack_attention(layers, arrays),
            fitted.sha256,
        )
        _check_fit(fusion)
    return fusion


def _check_fit(fusion: Fusion) -> None:
    """Raise ValueError unless all that a fusion was fitted to goes together."""
    layers, widths = fusion.recipe.layers, fusion.widths
    parts: list[tuple[str, Pca | Standardisation]] = [*fusion.standard.items()]
    parts += fusion.projections.items()
    for layer, part in parts:
        check_part(part, layer)
        if len(part.mean) != widths[layer]:
            raise ValueError(f"{layer} has width {widths[layer]}, fitted were {len(part.mean)}")
    if fusion.recipe.norm == "standard" and set(fusion.standard) != set(layers):
        raise ValueError("norm standard has not been fitted to each layer")
    if (fusion.recipe.method == "attention") != (fusion.attention is not None):
        raise ValueError("method and attention do not go together")
    projected = {layer: len(one.components) for layer, one in fusion.projections.items()}
    check_attention(fusion.attention, layers, {**widths, **projected})
    _ = fusion.outputs  # refuses widths that do not fit
