"""What a contact sheet shows: images that were found, each with what there is to say of it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggfeat.core.preprocessing import AS_FILES_SAY, Tones
from vggfeat.core.text import counted, printable
from vggfeat.errors import DecodeError
from vggfeat.visualization.thumbnails import load_picture

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL import Image

_LARGE = 10  # scores from which on four decimals say no more


@dataclass(frozen=True, slots=True)
class Query:
    """An image that others were searched for.

    Attributes:
        path: its file.
        label: what it is called.
        tones: what becomes black and white in it.
    """

    path: str
    label: str
    tones: Tones = AS_FILES_SAY


@dataclass(frozen=True, slots=True)
class Result:
    """One image of a sheet.

    Attributes:
        rank: its place, from 1 on.
        score: how near it is; None where nothing was searched for.
        path: its file; None where it cannot be found.
        name: what it is called; undecodable bytes as surrogate escapes.
        note: more to say of it, such as its state.
        tones: what becomes black and white in it.
    """

    rank: int
    score: float | None
    path: str | None
    name: str
    note: str = ""
    tones: Tones = AS_FILES_SAY

    @property
    def heading(self) -> str:
        """Rank and score in few characters, `3   0.9713`; empty without a score."""
        if self.score is None:
            return ""
        digits = f"{self.score:.4f}" if abs(self.score) < _LARGE else f"{self.score:.6g}"
        return f"{self.rank}   {digits}"


@dataclass(frozen=True, slots=True)
class Tile:
    """One image with its texts, all of them printable.

    Attributes:
        path: its file, or None.
        heading: rank and score, or what sets it apart; may be empty.
        name: of the image.
        note: may be empty.
        is_query: whether it is what was searched for.
        tones: what becomes black and white in it.
    """

    path: str | None
    heading: str
    name: str
    note: str = ""
    is_query: bool = False
    tones: Tones = AS_FILES_SAY


@dataclass(frozen=True, slots=True)
class TileGroup:
    """A query and its results; without a query, images alone."""

    query: Tile | None
    results: tuple[Tile, ...]

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """All, the query first."""
        return (self.query, *self.results) if self.query is not None else self.results


def groups_of(
    queries: Sequence[Query], results: Sequence[Sequence[Result]]
) -> tuple[TileGroup, ...]:
    """Queries with their results, as tiles.

    Args:
        queries: none, or as many as there are lists of results.
        results: for each query, best first; without queries each list stands by itself.

    Raises:
        ValueError: another number of lists than of queries.
    """
    if queries and len(queries) != len(results):
        raise ValueError(f"{counted(len(queries), 'query')} and {len(results)} lists of results")
    heads: list[Tile | None] = [_query_tile(query) for query in queries]
    heads = heads or [None] * len(results)
    return tuple(
        TileGroup(head, tuple(map(_result_tile, found)))
        for head, found in zip(heads, results, strict=True)
    )


def _query_tile(query: Query) -> Tile:
    return Tile(query.path, "query", printable(query.label), is_query=True, tones=query.tones)


def _result_tile(result: Result) -> Tile:
    name, note = printable(result.name), printable(result.note)
    return Tile(result.path, result.heading, name, note, tones=result.tones)


@contextlib.contextmanager
def picture_of(tile: Tile, longest: int) -> Iterator[Image.Image | str]:
    """The image of a tile, or in a few words why there is none.

    Args:
        tile: it.
        longest: pixels of its longer side at most.
    """
    if tile.path is None or not os.path.isfile(tile.path):
        yield "file not found"
        return
    try:
        image = load_picture(tile.path, longest, tile.tones)
    except DecodeError as error:
        yield printable(str(error))
        return
    with image:
        yield image
