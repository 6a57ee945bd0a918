"""The explorer: a web page on which the choice of layers is something one sees.

It is one file without a server or a network: thumbnails as one JPEG, features of each layer reduced
as `compact_features` says, template, style and script from the folder `explorer_page`.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.resources
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vggfeat._version import __version__
from vggfeat.cache.labels import UNLABELLED, labels_of_paths
from vggfeat.cache.sharded import open_cache
from vggfeat.core.arrays import spread
from vggfeat.core.layer_spec import parse_specs
from vggfeat.core.optional import require
from vggfeat.core.text import counted, printable
from vggfeat.errors import InputError, UsageError, VggfeatError
from vggfeat.extraction.monitoring import output_format, publish
from vggfeat.visualization.compact_features import (
    COMPONENTS,
    NEAREST,
    CompactLayer,
    compact_layer,
)
from vggfeat.visualization.projections import Projection, check_projection, named_layers
from vggfeat.visualization.sprite import Sprite, make_sprite, tile_side
from vggfeat.visualization.thumbnails import image_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.labels import Labels
    from vggfeat.cache.reader import FeatureCache

MOST_IMAGES: Final = 5000
"""Images on a page by default."""

_MOST_FAILED = 1000  # that the page names
_UMAP_IMAGES = 5
_SAID_PIXELS = 0.3  # bytes of JPEG a pixel of a thumbnail, about, for the size that is said before
_SAID_NAME = 60
_PACKAGE = "vggfeat.visualization.explorer_page"


@dataclass(frozen=True, slots=True)
class LayerFidelity:
    """How near the page's cosines by one layer are to the cache's.

    Attributes:
        layer: canonical spec.
        components: principal components that the page has of it.
        kept: share of the ten nearest by the cache that are the page's too.
        error: mean deviation of a cosine.
        queries: images that both were measured with.
    """

    layer: str
    components: int
    kept: float
    error: float
    queries: int


@dataclass(frozen=True, slots=True)
class ExplorerReport:
    """What an explorer page shows.

    Attributes:
        out: the file.
        images: on it.
        of: done images of the cache.
        failed: failed ones, which it lists with their reasons.
        pictures: images whose file was found.
        bytes: its size.
        layers: how exact it is, by layer.
    """

    out: str
    images: int
    of: int
    failed: int
    pictures: int
    bytes: int
    layers: tuple[LayerFidelity, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ExplorerPlan:
    """What an explorer page will show, known before the work.

    Attributes:
        cache: whose images it shows.
        rows: int64 (n,), the images.
        done: rows of the cache with features.
        layers: canonical specs.
        projection: of its maps.
    """

    cache: FeatureCache
    rows: NDArray[np.int64]
    done: int
    layers: tuple[str, ...]
    projection: Projection

    @property
    def expected_bytes(self) -> int:
        """Size of the page, about."""
        count = len(self.rows)
        side = tile_side(count)
        each = sum(min(COMPONENTS, self.cache[name].shape[1], count) + 8 for name in self.layers)
        return round(count * (4 / 3 * (side * side * _SAID_PIXELS + each) + _SAID_NAME))


def plan_explorer(
    cache: FeatureCache | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    layers: str | Sequence[str] | None = None,
    projection: Projection = "pca",
    most: int = MOST_IMAGES,
) -> ExplorerPlan:
    """Check what `explore` is asked for, and return what it will do; see there."""
    output_format(os.fspath(out), "explorer page", ("html",))
    require("jinja2", "explore", "an explorer page")
    check_projection(projection)
    if most < 1:
        raise UsageError(f"most is {most}; expected 1 or more")
    opened = open_cache(os.fspath(cache)) if isinstance(cache, str | os.PathLike) else cache
    names = named_layers(opened, layers)
    done = np.flatnonzero(opened.done)
    fewest = _UMAP_IMAGES if projection == "umap" else 1
    if len(done) < fewest:
        raise InputError(
            f"cache {opened.path!r} has features of {counted(len(done), 'image')}; expected "
            f"{fewest} or more for an explorer page"
        )
    opened.warn()
    return ExplorerPlan(opened, spread(done, most), len(done), names, projection)


def explore(
    cache: FeatureCache | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    layers: str | Sequence[str] | None = None,
    projection: Projection = "pca",
    most: int = MOST_IMAGES,
    labels: str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ExplorerReport:
    """Write a self-contained web page to explore a cache: neighbours by layer, and a map of images.

    Each layer is reduced to at most 128 principal components in 8 bits, so that the page computes
    cosines by itself; how many of the ten nearest neighbours that keeps is measured, reported, and
    shown on the page. Layers of maps are averaged over their positions.

    Args:
        cache: a cache, opened or its path; a folder of shards too.
        out: the page, a name that ends in `.html`.
        layers: of the cache; None for all.
        projection: of the map of all images, `pca` or `umap` (`vggfeat[umap]`).
        most: images at most, spread over the cache if it has more.
        labels: a CSV file of paths and labels; None takes the folders of the images.
        root: where the images are now; None for where they were.
        on_progress: called with units of work done and of all.

    Raises:
        UsageError: another ending, an unknown projection, or a library is missing.
        CacheError: the file is no cache of ours, is damaged, or lacks a layer.
        InputError: no image has features.
        SpaceError: the page cannot be written; an existing one is kept.
    """
    plan = plan_explorer(cache, out, layers=layers, projection=projection, most=most)
    return write_explorer(plan, out, labels=labels, root=root, on_progress=on_progress)


def write_explorer(
    plan: ExplorerPlan,
    out: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ExplorerReport:
    """Write the page of a plan: see `explore`."""
    opened, images = plan.cache, plan.rows.tolist()
    paths = [bytes(path) for path in np.asarray(opened.paths)[plan.rows]]
    named = labels_of_paths(paths, repr(opened.path), labels, opened.header.provenance.root)
    # A layer counts as much as some hundred images: it takes about as long.
    weight = 200
    total = len(images) + weight * len(plan.layers)

    def tell(done: int) -> None:
        if on_progress is not None:
            on_progress(done, total)

    tell(0)
    folder = None if root is None else os.fspath(root)
    files = [image_file(opened, row, folder) for row in images]
    sprite = make_sprite(files, opened.header.identity.preprocess, lambda done, _: tell(done))
    compact = []
    for number, layer in enumerate(plan.layers, 1):
        compact.append(compact_layer(opened, layer, plan.rows, plan.projection))
        tell(len(images) + weight * number)
    page = _render(plan, sprite, compact, named)
    publish(os.fspath(out), page)
    return ExplorerReport(
        os.fspath(out),
        len(images),
        plan.done,
        len(opened.failures()),
        len(images) - len(sprite.missing),
        len(page),
        tuple(
            LayerFidelity(one.layer, one.codes.shape[1], one.kept, one.error, one.queries)
            for one in compact
        ),
    )


def _render(
    plan: ExplorerPlan, sprite: Sprite, compact: Sequence[CompactLayer], labels: Labels
) -> bytes:
    jinja2: Any = require("jinja2", "explore", "an explorer page")
    files = importlib.resources.files(_PACKAGE)
    texts = {
        name: (files / f"explorer.{name}").read_text(encoding="utf-8") for name in ("css", "js")
    }
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((files / "page.html.jinja").read_text(encoding="utf-8"))
    identity = plan.cache.header.identity
    title = printable(os.path.basename(os.path.normpath(plan.cache.path)))
    failures = plan.cache.failures()
    text: str = template.render(
        **texts,
        title=title,
        version=__version__,
        model=identity.model,
        weights=printable(identity.weights),
        warning=printable(plan.cache.header.provenance.warning),
        shown=len(plan.rows),
        done=plan.done,
        all=len(plan.cache),
        nearest=NEAREST,
        layers=[_layer_facts(plan.cache, one) for one in compact],
        failures=[
            (printable(plan.cache.name(one.row)), printable(one.reason))
            for one in failures[:_MOST_FAILED]
        ],
        failed=len(failures),
        data=_data(plan, sprite, compact, labels),
        blocks=[_base64(_block(one)) for one in compact],
        sprite=_base64(sprite.jpeg),
    )
    return text.encode()


def _layer_facts(cache: FeatureCache, layer: CompactLayer) -> dict[str, Any]:
    carries = ""
    if not cache.header.identity.steps:
        with contextlib.suppress(VggfeatError):  # a layer that this version does not know
            carries = parse_specs(layer.layer, cache.header.identity.model)[0].layer.carries
    return {
        "name": layer.layer,
        "width": layer.width,
        "maps": len(cache[layer.layer].shape) > 2,  # noqa: PLR2004 (N, D)
        "components": layer.codes.shape[1],
        "carries": carries,
        "kept": f"{layer.kept:.1%}",
        "error": f"{layer.error:.4f}",
        "queries": layer.queries,
    }


def _data(
    plan: ExplorerPlan, sprite: Sprite, compact: Sequence[CompactLayer], labels: Labels
) -> dict[str, Any]:
    """Return what the script reads as JSON."""
    umap = plan.projection == "umap"
    return {
        "names": [printable(plan.cache.name(row)) for row in plan.rows.tolist()],
        "classes": labels.classes.tolist(),
        "labels": [printable(name) for name in labels.names],
        "unlabelled": UNLABELLED,
        "files": _same_files(plan.cache, plan.rows),
        "missing": {str(at): why for at, why in sprite.missing.items()},
        "tile": {"side": sprite.side, "across": sprite.across, "down": sprite.down},
        "nearest": NEAREST,
        "layers": [
            {
                "name": one.layer,
                "components": one.codes.shape[1],
                "meanSquare": one.mean_square,
                "axes": [
                    f"component {number}, {share:.0%} of the variance"
                    for number, share in enumerate(one.explained, 1)
                ]
                if not umap
                else ["UMAP 1", "UMAP 2"],
            }
            for one in compact
        ],
    }


def _same_files(cache: FeatureCache, rows: NDArray[np.int64]) -> list[int]:
    """Return a number for each image: of identical files the same, 0 for a file of its own."""
    digests = np.asarray(cache.digests)[rows]
    _, which, counts = np.unique(digests, axis=0, return_inverse=True, return_counts=True)
    which = which.reshape(-1)  # NumPy 2.0 alone keeps an axis
    several = (counts[which] > 1) & digests.any(axis=1)
    numbers: list[int] = np.where(several, which + 1, 0).tolist()
    return numbers


def _block(layer: CompactLayer) -> bytes:
    """Return the numbers of a layer, little-endian: scales, m·x, places, codes."""
    floats = (layer.scales, layer.along_mean, layer.points)
    return b"".join(one.astype("<f4").tobytes() for one in floats) + layer.codes.tobytes()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
