"""`vggfeat similarity`."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vggfeat.cli.options import Config, Csv, Json, Use, among, given, settings_options
from vggfeat.cli.terminal import (
    check_one_form,
    exit_codes,
    print_csv,
    print_json,
    say,
    set_up_logging,
    table,
    tell_warning,
)
from vggfeat.core.csv_text import path_cell
from vggfeat.core.text import printable
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vggfeat.retrieval.image_similarity import SimilarityMatrix
    from vggfeat.retrieval.vector_similarity import PairMetric

_PAIR = 2
EXAMPLES = (
    "vggfeat similarity a.jpg b.jpg --layers conv5_3,fc7",
    "vggfeat similarity photos --all-pairs --csv",
    "vggfeat similarity photo.jpg --cache feats.h5 --row cats/01.jpg",
)


@settings_options(
    "layers", "layer_weights", "metric", "all_pairs", "cache", "row", "config", "model", "weights",
    "pool", "norm", "size", "crop", "device", "precision",
    instead={
        "layers": {
            "help": "Layers to compare by, comma separated, as for extract; with --cache, layers "
            "of the cache.",
            "unset": "conv5_3,fc7, or all of the cache",
            "default": None,
        },
        "weights": {
            "help": "Weights of the network: imagenet, features, a file, or random[:SEED]; with "
            "--cache, where the weights that made it are now.",
            "unset": "imagenet, or as the cache says",
            "default": None,
        },
        "model": {"unset": "vgg19, or the weights'", "default": None},
    },
)  # fmt: skip
def similarity(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Images, folders or archives; the first image is compared with all others.",
            metavar="[IMAGE...]",
        ),
    ] = None,
    *,
    layer_weights: Annotated[
        str | None,
        typer.Option(
            help="Weight of each of --layers in their combined similarity. [default: equal]",
            metavar="W,...",
        ),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            help="Similarity: cosine; l2, which is 1 / (1 + distance) of the vectors at unit "
            "length; or l2-raw, the same of the vectors as they are.",
            metavar="cosine|l2|l2-raw",
            autocompletion=among("cosine", "l2", "l2-raw"),
        ),
    ] = "cosine",
    all_pairs: Annotated[
        bool,
        typer.Option(
            "--all-pairs", help="Compare each image with each other one, not only with the first."
        ),
    ] = False,
    cache: Annotated[
        str | None,
        typer.Option(
            help="Compute the images as those of this cache were, and compare also its --row.",
            metavar="FILE.h5",
        ),
    ] = None,
    row: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare an image of the cache, by its path there, without torch. May be "
            "repeated; rows come after images.",
            metavar="NAME",
        ),
    ] = None,
    config: Config = None,
    use: Use = None,
    as_json: Json = False,
    as_csv: Csv = False,
    **flags: Any,
) -> None:
    """Show how similar images are, by each layer.

    Also show their similarity by all layers together. If there are more than two images, the
    first is compared with each of the others.
    """
    with exit_codes():
        from vggfeat.core.fusion_spec import parse_weights
        from vggfeat.retrieval.image_similarity import similarity_matrix

        set_up_logging(quiet=as_json or as_csv, verbose=False)
        check_one_form(as_json=as_json, as_csv=as_csv)
        found = similarity_matrix(
            images or (),
            rows=row or (),
            metric=cast("PairMetric", metric),
            layer_weights=parse_weights(layer_weights or ""),
            **_network(cache, config, use, given(flags)),
        )
        for failure in found.failures:
            tell_warning(f"image {failure.path}: {failure.reason}")
        if as_csv and found.warning:
            tell_warning(found.warning)
        count = len(found.images)
        pairs = list(combinations(range(count), 2)) if all_pairs else [
            (0, other) for other in range(1, count)
        ]  # fmt: skip
        if as_json:
            print_json(_plain(found, pairs))
        elif as_csv:
            print_csv(_csv_rows(found, pairs))
        else:
            say(*(_pair_lines(found) if count == _PAIR else _table_lines(found, pairs)))


def _network(
    cache: str | None, config: str | None, use: list[str] | None, flags: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments of `similarity_matrix` that say how images are computed."""
    if cache is None:
        from vggfeat.config import load_config, make_settings
        from vggfeat.retrieval.image_similarity import DEFAULT_LAYERS

        named = "layers" in flags or (config is not None and "layers" in load_config(config))
        layers = {} if named else {"layers": DEFAULT_LAYERS}
        belonging = {"use": use} if use else {}  # which is refused without a cache
        return {"settings": make_settings(config, {**flags, **layers}), **belonging}
    known = {"layers", "weights", "device"}
    foreign = sorted(flags.keys() - known) + ["config"] * (config is not None)
    if foreign:
        options = ", ".join(f"--{name}" for name in foreign)
        raise UsageError(
            f"{options} cannot be given with --cache, which says how its images were computed"
        )
    renamed = {"weights": "model_weights"}
    return {
        "cache": cache,
        "use": use or (),
        **{renamed.get(name, name): value for name, value in flags.items()},
    }


def _pair(found: SimilarityMatrix, first: int, second: int) -> dict[str, tuple[float, float]]:
    """Return score and similarity of two images by each layer and, of several, `combined`."""
    scores = {**found.scores}
    if len(found.layers) > 1:
        scores["combined"] = found.combined
    return {
        name: (
            float(score[first, second]),
            float(found.similarities(name if name in found.scores else None)[first, second]),
        )
        for name, score in scores.items()
    }


def _plain(found: SimilarityMatrix, pairs: Sequence[tuple[int, int]]) -> Mapping[str, Any]:
    return {
        "images": found.images,
        "layers": found.layers,
        "weights": found.weights,
        "metric": found.metric,
        "pairs": [
            {
                "first": found.images[first],
                "second": found.images[second],
                "score": float(found.combined[first, second]),
                "similarity": float(found.similarities()[first, second]),
                "layers": {
                    name: {"score": score, "similarity": similarity}
                    for name, (score, similarity) in _pair(found, first, second).items()
                    if name in found.scores
                },
            }
            for first, second in pairs
        ],
        "failures": found.failures,
        "warning": found.warning,
    }


def _csv_rows(
    found: SimilarityMatrix, pairs: Sequence[tuple[int, int]]
) -> list[tuple[object, ...]]:
    rows = [
        (path_cell(found.images[first]), path_cell(found.images[second]), name, f"{score:.7g}",
         f"{similarity:.7g}")
        for first, second in pairs
        for name, (score, similarity) in _pair(found, first, second).items()
    ]  # fmt: skip
    return [("first", "second", "layer", "score", "similarity"), *rows]


_MEANING = {
    "cosine": "cosine: 1 for equal vectors, 0 for vectors with nothing in common",
    "l2": "1 / (1 + distance): 1 for equal vectors, 0.41 for vectors with nothing in common",
    "l2-raw": "1 / (1 + distance): 1 for equal vectors; the rest depends on the layers' ranges",
}


def _pair_lines(found: SimilarityMatrix) -> list[str]:
    """Return the lines for two images: a row for each layer."""
    l2 = found.metric != "cosine"
    rows = [("layer", *(("distance", "similarity") if l2 else (found.metric,)))]
    for name, (score, similarity) in _pair(found, 0, 1).items():
        rows.append((name, *((f"{score:.4f}",) if l2 else ()), f"{similarity:.4f}"))
    first, second = map(printable, found.images)
    return [
        f"{first} and {second}",
        *(f"  {line}" for line in table(rows, "l" + "r" * (len(rows[0]) - 1))),
        _MEANING[found.metric],
    ]


def _table_lines(found: SimilarityMatrix, pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Return the lines for more images: a row for each pair, a column for each layer."""
    against_first = {first for first, _ in pairs} == {0}
    rows: list[list[str]] = []
    for first, second in pairs:
        cells = _pair(found, first, second)
        head = [*cells, "image"] if against_first else [*cells, "image", "and"]
        if not rows:
            rows.append(head)
        names = [found.images[second]] if against_first else [
            found.images[first], found.images[second]
        ]  # fmt: skip
        figures = [f"{similarity:.4f}" for _, similarity in cells.values()]
        rows.append([*figures, *map(printable, names)])
    columns = len(rows[0])
    names_at = 1 if against_first else 2
    subject = (
        f"{printable(found.images[0])} compared with"
        if against_first
        else "each compared with each"
    )
    return [
        subject,
        *(f"  {line}" for line in table(rows, "r" * (columns - names_at) + "l" * names_at)),
        _MEANING[found.metric],
    ]
