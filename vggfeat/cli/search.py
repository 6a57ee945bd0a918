"""`vggfeat search`."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vggfeat.cli.options import (
    Cache,
    Csv,
    Device,
    ImagesNow,
    Json,
    ModelWeights,
    Use,
    among,
)
from vggfeat.cli.terminal import (
    check_one_form,
    exit_codes,
    output_width,
    print_csv,
    print_json,
    say,
    set_up_logging,
    table,
    tell_warning,
    written,
)
from vggfeat.core.csv_text import path_cell
from vggfeat.core.option import REPORTING
from vggfeat.core.text import counted, printable

if TYPE_CHECKING:
    from vggfeat.retrieval.search import Answer, SearchResult
    from vggfeat.retrieval.similarity import Metric

_LEAST_PATH = 16
EXAMPLES = (
    "vggfeat search feats.h5 photo.jpg --layers fc7",
    "vggfeat search feats.h5 --row cats/01.jpg --layers conv5_3,fc7 --layer-weights 1,2",
    "vggfeat search feats.h5 photo.jpg --layers fc7 --sheet found.html",
)
_INDENT = 2


def search(
    cache: Cache,
    queries: Annotated[
        list[str] | None,
        typer.Argument(help="Images, folders or archives to search with.", metavar="[QUERY...]"),
    ] = None,
    *,
    row: Annotated[
        list[str] | None,
        typer.Option(
            help="Search with an image of the cache, by its path there, without torch; it does "
            "not find itself. May be repeated.",
            metavar="NAME",
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layers",
            "--layer",
            help="Layers to search by, comma separated; the scores of several are averaged. "
            "[default: the only one of the cache]",
            metavar="NAME,...",
        ),
    ] = None,
    layer_weights: Annotated[
        str | None, typer.Option(help="Weight of each layer. [default: equal]", metavar="W,...")
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            help="Similarity: cosine, l2 (distance at unit length), l2-raw (distance of vectors as "
            "stored) or dot (inner product).",
            metavar="cosine|l2|l2-raw|dot",
            autocompletion=among("cosine", "l2", "l2-raw", "dot"),
        ),
    ] = "cosine",
    top: Annotated[int, typer.Option(help="Results for each query.", metavar="K")] = 10,
    device: Device = "auto",
    weights: ModelWeights = None,
    use: Use = None,
    index: Annotated[
        str | None,
        typer.Option(
            help="Search by an approximate index of one layer in this file, for very many images; "
            "its recall is shown. It is built the first time, and again when the rows of the "
            "cache change. Needs vggfeat[faiss].",
            metavar="FILE",
        ),
    ] = None,
    exclude_self: Annotated[
        bool,
        typer.Option(
            "--exclude-self",
            help="Leave out the query itself instead of marking it: the image of its path or, if "
            "the cache has none, of its content.",
        ),
    ] = False,
    sheet: Annotated[
        str | None,
        typer.Option(
            help="Also write a contact sheet of queries and results, as a picture or a web page.",
            metavar="FILE.png|html",
            rich_help_panel=REPORTING,
        ),
    ] = None,
    root: ImagesNow = None,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Find the images most similar to query images.

    A query goes through the network, weights and preprocessing that the cache was made with.
    Without --index the search is exact: it compares the query with every row.
    """
    with exit_codes():
        from vggfeat.core.fusion_spec import parse_weights
        from vggfeat.core.layer_spec import split_specs
        from vggfeat.retrieval.search import search as search_cache

        set_up_logging(quiet=as_json or as_csv, verbose=False)
        check_one_form(as_json=as_json, as_csv=as_csv)
        if sheet is not None:
            from vggfeat.visualization.contact_sheet import check_sheet, sheet_of_findings

            check_sheet(sheet)  # before the work
        if layer_weights is None and _are_of_layers(weights):
            layer_weights, weights = weights, None
        found = search_cache(
            cache,
            queries or (),
            rows=row or (),
            layers=[name for text in layers or () for name in split_specs(text)],
            layer_weights=parse_weights(layer_weights or ""),
            metric=cast("Metric", metric),
            top=top,
            device=device,
            weights=weights,
            use=use or (),
            index=index,
            exclude_self=exclude_self,
        )
        if sheet is not None:
            sheet_of_findings(found, sheet, root=root)
        for failure in found.failures:
            tell_warning(f"query {failure.path}: {failure.reason}")
        if as_csv and found.warning:
            tell_warning(f"cache {found.cache!r}: {found.warning}")
        if as_json:
            print_json(_plain(found))
        elif as_csv:
            print_csv(_csv_rows(found))
        else:
            say(*_lines(found), *written("contact sheet", sheet))


def _are_of_layers(weights: str | None) -> bool:
    """Return whether --weights has numbers, as it had when it meant the weights of layers."""
    is_numbers = re.fullmatch(r"\s*[\d.]+(\s*,\s*[\d.]+)*\s*", weights or "")
    return is_numbers is not None and not os.path.exists(weights or "")


def _plain(found: SearchResult) -> dict[str, Any]:
    """Return the result for JSON, where `is_self` of a hit is `self`."""
    plain = asdict(found)
    for answer in plain["answers"]:
        for hit in answer["hits"]:
            hit["self"] = hit.pop("is_self")
    return plain


def _csv_rows(found: SearchResult) -> list[tuple[object, ...]]:
    hits = [
        (
            path_cell(answer.query),
            hit.rank,
            path_cell(hit.path),
            f"{hit.score:.7g}",
            f"{hit.similarity:.7g}",
            str(hit.is_self).lower(),
            str(hit.identical).lower(),
        )
        for answer in found.answers
        for hit in answer.hits
    ]
    head = ("query", "rank", "path", "score", "similarity", "self", "identical")
    return [head, *hits]


def _lines(found: SearchResult) -> list[str]:
    by = ", ".join(
        layer if len(found.layers) == 1 else f"{layer} {weight:.2g}"
        for layer, weight in zip(found.layers, found.weights, strict=True)
    )
    lines = [f"{counted(found.images, 'image')} searched by {by}, {_METRICS[found.metric]}"]
    if found.index is not None:
        lines.append(
            f"by an index: recall at {found.index.at} is {found.index.recall:.2f}, measured on "
            f"{counted(found.index.sample, 'image')}"
        )
    for answer in found.answers:
        lines += ["", answer.query, *_rows(answer, found.metric)]
    return lines


_METRICS = {
    "cosine": "cosine",
    "l2": "L2 distance at unit length",
    "l2-raw": "L2 distance of vectors as stored",
    "dot": "inner product",
}


def _rows(answer: Answer, metric: str) -> list[str]:
    if not answer.hits:
        return ["  no other image is done"]
    distance = metric.startswith("l2")
    head = ("rank", "distance" if distance else metric, *(["similarity"] if distance else []))
    cells = [
        (str(hit.rank), f"{hit.score:.4f}", *([f"{hit.similarity:.4f}"] if distance else []))
        for hit in answer.hits
    ]
    figures = table([head, *cells], "r" * len(head))
    room = output_width() - len(figures[0]) - _INDENT - 3
    marks = [f"  ({hit.mark})" if hit.mark else "" for hit in answer.hits]
    paths = [
        "path",
        *(
            f"{_shortened(printable(hit.path), room - len(mark))}{mark}"
            for hit, mark in zip(answer.hits, marks, strict=True)
        ),
    ]
    return [f"  {line}" for line in table(list(zip(figures, paths, strict=True)), "ll")]


def _shortened(path: str, width: int) -> str:
    """Cut off the beginning of a path that does not fit: its end tells images apart."""
    width = max(width, _LEAST_PATH)
    return path if len(path) <= width else f"...{path[3 - width :]}"
