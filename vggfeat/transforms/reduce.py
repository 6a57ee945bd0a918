"""`vggfeat reduce`: PCA or standardization of each layer of a cache by itself."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from vggfeat.core import activity
from vggfeat.core.choices import choose
from vggfeat.core.fusion_spec import FinalNorm
from vggfeat.core.isolation import isolated
from vggfeat.core.layer_spec import Norm, region_width
from vggfeat.core.steps import Step
from vggfeat.core.text import counted
from vggfeat.errors import UsageError
from vggfeat.storage.paths import path_text
from vggfeat.transforms.base import chosen_layers, layer_blocks
from vggfeat.transforms.derive import TransformReport, derive, open_source
from vggfeat.transforms.fusion import normalise, unit_length
from vggfeat.transforms.model_check import check_names, check_part, told_as_damage
from vggfeat.transforms.model_file import (
    Fitted,
    default_model,
    model_for,
    network_record,
    pack,
    unpack,
)
from vggfeat.transforms.pca import Pca, Standardisation, fit_pca, fit_standardisation
from vggfeat.transforms.settings import ReduceSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.core.settings import Dtype
    from vggfeat.transforms.derive import Begin, OnProgress

    Values = NDArray[np.float32]

REDUCTION_KIND = "reduce"

_TAKES_A_WHILE = 10_000  # rows from which on a fit is logged

log = logging.getLogger("vggfeat")


@dataclass(frozen=True, slots=True)
class Kept:
    """A layer of some width that stays as it is."""

    width: int

    def apply(self, x: Values) -> Values:
        """Return `x` itself."""
        return x


@dataclass(frozen=True, slots=True)
class RegionPca:
    """PCA of each region of a layer with the pool `regions`, as R-MAC has it.

    After Tolias, Sicre & Jégou, "Particular Object Retrieval" (ICLR 2016): regions at unit length
    are projected, and whitened if so fitted, scaled to unit length again, and added up.
    """

    pca: Pca

    def apply(self, x: Values) -> Values:
        """Return the sum of an image's regions, float32 (n, R * C) to (n, k)."""
        width = len(self.pca.mean)
        if x.shape[1] % width:
            raise UsageError(f"regions are of {width} numbers; found rows of {x.shape[1]}")
        regions = unit_length(self.pca.apply(x.reshape(-1, width)))  # (n * R, k)
        summed: Values = regions.reshape(len(x), -1, len(self.pca.components)).sum(1)
        return summed


ReductionFit = Pca | Standardisation
LayerPart = ReductionFit | RegionPca | Kept


@dataclass(frozen=True, slots=True, eq=False)
class Reduction:
    """Makes rows of new layers from rows of layers, by what was fitted to each.

    Attributes:
        norm, final_norm: see `ReduceSettings`.
        parts: layer → what was fitted to it.
        model: digest of the model file; empty where nothing was fitted.
    """

    norm: Norm
    final_norm: FinalNorm
    parts: Mapping[str, LayerPart]
    model: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """Layers that it reads."""
        return tuple(self.parts)

    @property
    def outputs(self) -> dict[str, int]:
        """Name of each new layer, `conv5_3:pca128`, and its width."""
        return {_name(layer, part): _width(part) for layer, part in self.parts.items()}

    @property
    def step(self) -> Step:
        """What a cache records of it."""
        step = {
            "step": REDUCTION_KIND,
            "layers": list(self.parts),
            "outputs": list(self.outputs),
            "whiten": any(_whitens(part) for part in self.parts.values()),
            "norm": self.norm,
            "final_norm": self.final_norm,
        }
        return Step({**step, "model_sha256": self.model} if self.model else step)

    def __call__(self, layers: Mapping[str, Values]) -> dict[str, Values]:
        """Return new layers, float32 (n, width), of old ones, float32 (n, D)."""
        new = {}
        for layer, part in self.parts.items():
            values = part.apply(_prepared(layers[layer], self.norm, part))
            new[_name(layer, part)] = unit_length(values) if self.final_norm == "l2" else values
        return new


def _prepared(x: Values, norm: Norm, part: LayerPart) -> Values:
    """Return rows as they were fitted: normalised, but regions, which are at unit length."""
    return x if isinstance(part, RegionPca) else normalise(x, norm)


def _whitens(part: LayerPart) -> bool:
    pca = part.pca if isinstance(part, RegionPca) else part
    return isinstance(pca, Pca) and pca.whiten


def _name(layer: str, part: LayerPart) -> str:
    if isinstance(part, Kept):
        return layer
    return (
        f"{layer}:standard" if isinstance(part, Standardisation) else f"{layer}:pca{_width(part)}"
    )


def _width(part: LayerPart) -> int:
    if isinstance(part, Kept):
        return part.width
    if isinstance(part, RegionPca):
        return len(part.pca.components)
    return len(part.components) if isinstance(part, Pca) else len(part.mean)


@isolated()
def reduce(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: ReduceSettings | None = None,
    *,
    use: str | os.PathLike[str] | None = None,
    save: str | os.PathLike[str] | None = None,
    dtype: Dtype = "float16",
    begin: Begin = "resume",
    on_progress: OnProgress | None = None,
) -> TransformReport:
    """Reduce or standardize each layer of a cache into a new cache, or resume that.

    The fit streams over all rows that are done; the cache may be larger than memory.

    Args:
        source: the cache with the layers.
        out: the new cache.
        settings: by default PCA of every vector to 128 dimensions.
        use: a model file of an earlier reduction, applied as it is; settings are then its own.
        save: where to keep what is fitted; by default beside `out`, as `<out>.model.h5`. An
            existing file is used again if it was fitted to the same.
        dtype: of the stored features: `float16`, `float32`, or `int8`.
        begin: what to do if `out` exists: `resume` it; `update`, also add images that are new in
            the source and remove those that are gone; `fresh`, fit and begin again.
        on_progress: called after every block of rows.

    Raises:
        UsageError: settings that do not go together, layers that the cache does not have, or more
            dimensions than it has.
        InputError: too few rows to fit to.
        CacheError: a file is not ours, or damaged.
        CacheMismatchError: `out` or the model was made from something else.
        LockedError: another run writes to `out`.
        SpaceError: the disk is full; rows written before are kept.
        InterruptedRunError: SIGINT or SIGTERM; call again to resume.
    """
    started = time.perf_counter()
    out = path_text(out)
    cache = open_source(source, out, begin=begin, settings=settings, use=use)
    chosen = settings or ReduceSettings()
    chosen.check()
    if use is None and chosen.method == "keep":
        parts = {
            layer: Kept(cache.header.shapes[layer][0])
            for layer in chosen_layers(cache, chosen.layers)
        }
        kept = Reduction(chosen.norm, chosen.final, parts, "")
        return derive(cache, out, kept, dtype=dtype, begin=begin, on_progress=on_progress)
    path = os.fspath(use if use is not None else save or default_model(out))
    requested = _requested(cache, chosen) if use is None else None
    fit = partial(_fit, cache, chosen)
    fitted = model_for(cache, path, REDUCTION_KIND, requested, fit, fresh=begin == "fresh")
    reduction = reduction_from(fitted)
    report = derive(cache, out, reduction, dtype=dtype, begin=begin, on_progress=on_progress)
    notes, seconds = tuple(fitted.parameters.get("notes", ())), time.perf_counter() - started
    return dataclasses.replace(report, model=path, notes=notes, seconds=seconds)


def _requested(cache: FeatureCache, settings: ReduceSettings) -> dict[str, Any]:
    """Return what a model must have been fitted to, to be used again."""
    return {
        **dataclasses.asdict(settings),
        "layers": list(chosen_layers(cache, settings.layers)),
        "final_norm": settings.final,
        "source": cache.header.identity.fingerprint(),
    }


def _fit(cache: FeatureCache, settings: ReduceSettings) -> Fitted:
    layers = chosen_layers(cache, settings.layers)
    parts: dict[str, ReductionFit] = {}
    regional: list[str] = []
    done = np.flatnonzero(cache.done)
    for layer in layers:
        if len(done) > _TAKES_A_WHILE:
            log.info("fitting %s to %d rows of %s", settings.method, len(done), layer)
        activity.begins(f"fitting {settings.method} to {layer}")
        prepare = partial(normalise, norm=settings.norm)
        region = region_width(layer, cache.model) if settings.method == "pca" else None
        if region is not None:
            regional.append(layer)
            prepare = partial(_each_region, width=region)
        blocks = partial(layer_blocks, cache, layer, done, prepare)
        if settings.method == "pca":
            parts[layer] = fit_pca(blocks, settings.dims, whiten=settings.whiten)
        else:
            parts[layer] = fit_standardisation(blocks)
    arrays: dict[str, NDArray[Any]] = {}
    for layer, part in parts.items():
        arrays |= pack(layer, part)
    parameters = {
        "method": settings.method,
        "layers": list(layers),
        "norm": settings.norm,
        "final_norm": settings.final,
        "notes": [
            _note(layer, part, "region" if layer in regional else "row")
            for layer, part in parts.items()
        ],
        **({"regions": regional} if regional else {}),
        "asked": _requested(cache, settings),
        "network": network_record(cache, layers),
    }
    return Fitted(REDUCTION_KIND, parameters, arrays)


def _each_region(x: Values, width: int) -> Values:
    """Return the regions of rows one by one, (n, R * C) to (n * R, C)."""
    return x.reshape(-1, width)


def _note(layer: str, part: ReductionFit, unit: str) -> str:
    if isinstance(part, Standardisation):
        return f"{layer}: mean and deviation of {counted(_width(part), 'dimension')}"
    return (
        f"{layer}: {len(part.mean)} -> {counted(_width(part), 'dimension')}, "
        f"{part.share:.2%} of the variance, fitted to {counted(part.rows, unit)}"
    )


def reduction_from(fitted: Fitted) -> Reduction:
    """Return the reduction that a model file keeps; raise CacheError if a part is missing."""
    known = fitted.parameters
    with told_as_damage("the model of a reduction"):
        kind: type[ReductionFit] = Pca if known["method"] == "pca" else Standardisation
        check_names(known["layers"], "layers")
        fits = {layer: unpack(kind, layer, fitted.arrays) for layer in known["layers"]}
        for layer, part in fits.items():
            check_part(part, layer)
        regional = known.get("regions", [])
        parts: dict[str, LayerPart] = {
            layer: RegionPca(part) if layer in regional and isinstance(part, Pca) else part
            for layer, part in fits.items()
        }
        norm, final_norm = known["norm"], known["final_norm"]
        choose("norm", get_args(Norm), norm)
        choose("final_norm", get_args(FinalNorm), final_norm)
    return Reduction(norm, final_norm, parts, fitted.sha256)
