"""`vggfeat search`."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vggfeat.cli.terminal import exit_codes, output_width, print_json, set_up_logging, table
from vggfeat.core.text import counted, printable

if TYPE_CHECKING:
    from vggfeat.retrieval.search import Answer, SearchResult
    from vggfeat.retrieval.similarity import Metric

_LEAST_PATH = 16
_INDENT = 2


def search(
    cache: Annotated[
        str,
        typer.Argument(
            help="The cache to search, a file or a folder of shards.", metavar="FILE.h5"
        ),
    ],
    queries: Annotated[
        list[str] | None,
        typer.Argument(help="Images, folders or archives to search with.", metavar="[QUERY...]"),
    ] = None,
    *,
    row: Annotated[
        list[str] | None,
        typer.Option(
            help="An image of the cache itself as query, by its path there; it does not find "
            "itself, and torch is not needed. May be given several times.",
            metavar="NAME",
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="Layer to search by; may be left out where the cache has one only. Given several "
            "times, their scores are averaged.",
            metavar="LAYER",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="A weight for each --layer; equal by default.", metavar="W,..."),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="cosine, l2 (distance) or dot (inner product).", metavar="NAME")
    ] = "cosine",
    top: Annotated[int, typer.Option(help="Images to find for each query.", metavar="K")] = 10,
    device: Annotated[
        str,
        typer.Option(help="Where the network runs, as for extract; CUDA searches too."),
    ] = "auto",
    model_weights: Annotated[
        str | None,
        typer.Option(
            help="The network's weights, where they are not found as the cache names them; they "
            "must be the same.",
            metavar="FILE",
        ),
    ] = None,
    use: Annotated[
        list[str] | None,
        typer.Option(
            help="What fuse or reduce fitted when they made the cache; by default the file beside "
            "it, FILE.model.h5. Several times for a cache made in several steps.",
            metavar="MODEL.h5",
        ),
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(
            help="Search by an index of --layer in this file, which is built the first time and "
            "again when the cache has other rows: for very many images. It may miss some; its "
            "recall is said. Needs vggfeat[faiss].",
            metavar="FILE",
        ),
    ] = None,
    exclude_self: Annotated[
        bool,
        typer.Option(
            "--exclude-self",
            help="Leave out hits that are the query itself, which are marked otherwise: its own "
            "path, or where the cache has none of that path, the same bytes.",
        ),
    ] = False,
    sheet: Annotated[
        str | None,
        typer.Option(
            help="Also write queries and what they found as a picture or a page for a browser.",
            metavar="FILE.png|html",
        ),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(
            help="For --sheet: where the images are now. [default: where the cache found them]",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The results as JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="The results as CSV.")] = False,
) -> None:
    """Find the images of a cache that are nearest to others.

    A query goes through the network, weights and preprocessing that the cache was made with.
    The search is exact, every row is looked at, unless there is an --index.
    """
    with exit_codes():
        from vggfeat.core.fusion_spec import parse_weights
        from vggfeat.errors import UsageError
        from vggfeat.retrieval.search import search as search_cache

        set_up_logging(quiet=as_json or as_csv, verbose=False)
        if as_json and as_csv:
            raise UsageError("--json and --csv are two forms of the same; give one of them")
        if sheet is not None:
            from vggfeat.visualization.contact_sheet import check_sheet, sheet_of_findings

            check_sheet(sheet)  # before the work
        found = search_cache(
            cache,
            queries or (),
            rows=row or (),
            layers=layer or (),
            weights=parse_weights(weights or ""),
            metric=cast("Metric", metric),
            top=top,
            device=device,
            model_weights=model_weights,
            use=use or (),
            index=index,
            exclude_self=exclude_self,
        )
        if sheet is not None:
            sheet_of_findings(found, sheet, root=root)
        for failure in found.failures:
            typer.echo(
                f"vggfeat: warning: query {printable(failure.path)}: {failure.reason}", err=True
            )
        if as_csv and found.warning:
            typer.echo(f"vggfeat: warning: cache {found.cache!r}: {found.warning}", err=True)
        if as_json:
            print_json(_plain(found))
        else:
            typer.echo(_csv(found) if as_csv else "\n".join(_lines(found)), nl=not as_csv)


def _plain(found: SearchResult) -> dict[str, Any]:
    """The findings for JSON, where `is_self` of a hit is `self`."""
    plain = asdict(found)
    for answer in plain["answers"]:
        for hit in answer["hits"]:
            hit["self"] = hit.pop("is_self")
    return plain


def _csv(found: SearchResult) -> str:
    r"""One line a hit (RFC 4180); bytes of a path that are no UTF-8 as `\xNN`."""
    text = io.StringIO(newline="")
    lines = csv.writer(text)
    lines.writerow(("query", "rank", "path", "score", "similarity", "self", "identical"))
    lines.writerows(
        (
            answer.query,
            hit.rank,
            hit.path,
            f"{hit.score:.7g}",
            f"{hit.similarity:.7g}",
            str(hit.is_self).lower(),
            str(hit.identical).lower(),
        )
        for answer in found.answers
        for hit in answer.hits
    )
    plain = text.getvalue().encode("utf-8", "surrogateescape")
    return plain.decode("utf-8", "backslashreplace")


def _lines(found: SearchResult) -> list[str]:
    by = ", ".join(
        layer if len(found.layers) == 1 else f"{layer} {weight:.2g}"
        for layer, weight in zip(found.layers, found.weights, strict=True)
    )
    lines = [
        f"{counted(found.images, 'image')} searched by {printable(by)}, {_METRICS[found.metric]}"
    ]
    if found.index is not None:
        lines.append(
            f"by an index: recall at {found.index.at} is {found.index.recall:.2f}, measured on "
            f"{found.index.sample} images"
        )
    for answer in found.answers:
        lines += ["", printable(answer.query), *_rows(answer, found.metric)]
    return lines


_METRICS = {"cosine": "cosine", "l2": "L2 distance", "dot": "inner product"}


def _rows(answer: Answer, metric: str) -> list[str]:
    if not answer.hits:
        return ["  no other image is done"]
    distance = metric == "l2"
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
            f"{_cut(printable(hit.path), room - len(mark))}{mark}"
            for hit, mark in zip(answer.hits, marks, strict=True)
        ),
    ]
    return [f"  {line}" for line in table(list(zip(figures, paths, strict=True)), "ll")]


def _cut(path: str, width: int) -> str:
    """A path without its beginning where it does not fit: its end tells images apart."""
    width = max(width, _LEAST_PATH)
    return path if len(path) <= width else f"...{path[3 - width :]}"
