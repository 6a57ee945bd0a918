"""Contact sheets: images with captions and scores, as a PNG or as an HTML page."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from PIL import Image, ImageDraw, ImageFont

from vggfeat.cache.rows import matching, matching_rows
from vggfeat.cache.sharded import open_cache
from vggfeat.core.preprocessing import AS_FILES_SAY, Preprocess
from vggfeat.core.text import counted, printable
from vggfeat.errors import UsageError
from vggfeat.extraction.monitoring import output_format, publish
from vggfeat.visualization.contact_sheet_html import page
from vggfeat.visualization.thumbnails import image_file, picture_of

if TYPE_CHECKING:
    from vggfeat.cache.reader import FeatureCache
    from vggfeat.retrieval.duplicates import Duplicates
    from vggfeat.retrieval.search import Hit, SearchResult

SHEET_FORMATS: Final = ("png", "html")

_SIDE = 176  # pixels of an image's longer side
_GAP = 18
_LINE = 18
_NAME_LINES = 2
_ACROSS = 8
_MOST_PIXELS = 1 << 27  # of a picture; viewers give up on more
_FONT_SIZE = 13
_TITLE_SIZE = 18
_LARGE = 10  # scores from which on four decimals say no more

_WHITE = (255, 255, 255)
_BACK = (242, 242, 242)
_TEXT = (27, 27, 27)
_SOFT = (90, 90, 90)
_MARK = (0, 96, 168)
_WARNING = (176, 64, 0)


@dataclass(frozen=True, slots=True)
class Query:
    """A query image of a sheet.

    Attributes:
        path: its file.
        label: its caption; undecodable bytes as surrogate escapes.
        preprocess: whose window, clip and clahe say what becomes black and white.
    """

    path: str
    label: str
    preprocess: Preprocess = AS_FILES_SAY

    is_query: ClassVar[bool] = True
    heading: ClassVar[str] = "query"
    note: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """The caption, under the name that it has in a result."""
        return self.label


@dataclass(frozen=True, slots=True)
class Result:
    """A result image of a sheet.

    Attributes:
        rank: its place in the list, from 1.
        score: its similarity to the query; None without a query.
        path: its file; None if the file does not exist.
        name: its caption; undecodable bytes as surrogate escapes.
        note: a further caption, such as its state.
        preprocess: whose window, clip and clahe say what becomes black and white.
    """

    rank: int
    score: float | None
    path: str | None
    name: str
    note: str = ""
    preprocess: Preprocess = AS_FILES_SAY

    is_query: ClassVar[bool] = False

    @property
    def heading(self) -> str:
        """Rank and score, as `3   0.9713`; empty without a score."""
        if self.score is None:
            return ""
        digits = f"{self.score:.4f}" if abs(self.score) < _LARGE else f"{self.score:.6g}"
        return f"{self.rank}   {digits}"


Tile = Query | Result
"""One image of a sheet with its captions."""

TileGroup = tuple[Query | str | None, Sequence[Result]]
"""A query and its results; or images alone, with a heading or without."""


@dataclass(frozen=True, slots=True)
class SheetTexts:
    """What stands above the images.

    Attributes:
        title: what is shown.
        about: how to read the scores; empty for nothing.
        warning: what to know of the features, such as that their weights are random.
    """

    title: str
    about: str = ""
    warning: str = ""


_ABOUT: Final = {
    "cosine": "Scores are cosines: 1 is the same direction, and more is nearer.",
    "l2": "Scores are distances at unit length: 0 is the same direction, and less is nearer.",
    "l2-raw": "Scores are distances: 0 is the same, and less is nearer.",
    "dot": "Scores are inner products: more is nearer.",
}


def check_sheet(out: str) -> str:
    """Return the one of `SHEET_FORMATS` that the name of a sheet ends in; see `output_format`."""
    return output_format(out, "sheet", SHEET_FORMATS)


def contact_sheet(
    title: str | SheetTexts,
    queries: Sequence[Query | str],
    results: Sequence[Sequence[Result]],
    out: str,
) -> None:
    """Write queries and the results of each as a contact sheet.

        contact_sheet(
            "nearest by conv5_3",
            [Query("query.jpg", "query.jpg")],
            [[Result(1, 0.97, "images/cats/tom.jpg", "cats/tom.jpg")]],
            "sheet.html",
        )

    An image whose file is missing or unreadable is replaced by a remark.

    Args:
        title: of the sheet, or all texts above its images.
        queries: query images, or headings; empty for a sheet of images alone.
        results: for each query, best first; without queries, lists of images.
        out: a name that ends in `.png` or `.html`.

    Raises:
        UsageError: another ending, no such folder, or the picture would be too large.
        ValueError: the numbers of lists and queries differ.
        SpaceError: the file cannot be written; an existing one is kept.
    """
    form = check_sheet(out)
    if queries and len(queries) != len(results):
        raise ValueError(f"{counted(len(queries), 'query')} and {len(results)} lists of results")
    heads: Sequence[Query | str | None] = queries or [None] * len(results)
    groups = list(zip(heads, results, strict=True))
    texts = SheetTexts(title) if isinstance(title, str) else title
    publish(out, page(texts, groups) if form == "html" else _png(texts, groups))


def results_of_rows(
    cache: FeatureCache, pattern: str, *, most: int = 100, root: str | None = None
) -> list[Result]:
    """Return images of a cache whose paths match, `most` at most; of those not done the state too.

    `root` is the folder of the images now; by default that of the extraction.
    """
    if most < 1:
        raise UsageError(f"most is {most}; expected 1 or more")
    preprocess = cache.header.identity.preprocess
    return [
        Result(
            rank=place + 1,
            score=None,
            path=image_file(cache, one.row, root),
            name=one.path,
            note=f"{one.state}: {one.reason}" if one.reason else one.state * (one.state != "done"),
            preprocess=preprocess,
        )
        for place, one in enumerate(matching_rows(cache, matching(cache, pattern)[:most]))
    ]


def sheet_of_findings(found: SearchResult, out: str, *, root: str | None = None) -> None:
    """Write the result of a search as a contact sheet: see `contact_sheet`, `results_of_rows`.

    Results that are the same file as one before them say so.
    """
    cache = open_cache(found.cache)
    preprocess = cache.header.identity.preprocess
    queries = [
        Query(
            answer.query if answer.row is None else image_file(cache, answer.row, root) or "",
            answer.query,
            preprocess,
        )
        for answer in found.answers
    ]
    results = [
        [
            Result(
                hit.rank, hit.score, image_file(cache, hit.row, root), hit.path,
                hit.mark or same, preprocess,
            )
            for hit, same in zip(answer.hits, _same_files(cache, answer.hits), strict=True)
        ]
        for answer in found.answers
    ]  # fmt: skip
    title = f"Nearest by {' and '.join(found.layers)} of {counted(found.images, 'image')}"
    contact_sheet(SheetTexts(title, _ABOUT[found.metric], found.warning), queries, results, out)


def sheet_of_duplicates(found: Duplicates, out: str, *, root: str | None = None) -> None:
    """Write groups of near-duplicates as a contact sheet: see `contact_sheet`."""
    cache = open_cache(found.cache)
    preprocess = cache.header.identity.preprocess
    groups = [
        [
            Result(
                place, member.score, image_file(cache, member.row, root), member.path,
                "identical file" if member.identical else "", preprocess,
            )
            for place, member in enumerate(group.members, 1)
        ]
        for group in found.groups
    ]  # fmt: skip
    heads = [f"group {number}" for number in range(1, len(groups) + 1)]
    bound = f"{'at least' if found.metric == 'cosine' else 'at most'} {found.threshold:g}"
    title = (
        f"Near-duplicates by {found.layer}, {found.metric} {bound}: "
        f"{counted(len(groups), 'group')} among {counted(found.images, 'image')}"
    )
    about = f"{_ABOUT[found.metric]} Each is that with the nearest other image of the group."
    contact_sheet(SheetTexts(title, about, found.warning), heads, groups, out)


def _same_files(cache: FeatureCache, hits: Sequence[Hit]) -> list[str]:
    """Return for each hit which one before it has the same file; empty for none."""
    first: dict[bytes, int] = {}
    remarks = []
    for hit in hits:
        digest = cache.digests[hit.row].tobytes()
        rank = first.setdefault(digest, hit.rank)
        remarks.append(f"same file as {rank}" if rank != hit.rank and any(digest) else "")
    return remarks


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font with more scripts than Latin if it is installed, else Pillow's own."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)


_STEP: Final = _SIDE + _GAP


@dataclass(frozen=True, slots=True)
class _Layout:
    """Tiles and headings, each with its left and upper edge, and the size of a sheet, in pixels."""

    tiles: list[tuple[Tile, int, int]]
    heads: list[tuple[str, int, int]]
    size: tuple[int, int]


def _placed(groups: Sequence[TileGroup], top: int) -> _Layout:
    """Place the tiles of a sheet whose first begins at `top`."""
    across = max(1, min(_ACROSS, max((len(results) for _, results in groups), default=1)))
    has_queries = any(isinstance(head, Query) for head, _ in groups)
    every = [result for _, results in groups for result in results]
    indent = _GAP + (_STEP + _GAP if has_queries else 0)  # left of the results, for the query
    headed = has_queries or any(result.heading for result in every)
    lines = _NAME_LINES + headed + any(result.note for result in every)
    down = _SIDE + lines * _LINE + _GAP
    tiles: list[tuple[Tile, int, int]] = []
    heads: list[tuple[str, int, int]] = []
    for head, results in groups:
        if isinstance(head, Query):
            tiles.append((head, _GAP, top))
        elif head:
            heads.append((head, _GAP, top))
            top += _LINE + _GAP // 2
        tiles += [
            (result, indent + place % across * _STEP, top + place // across * down)
            for place, result in enumerate(results)
        ]
        top += max(1, math.ceil(len(results) / across)) * down
    return _Layout(tiles, heads, (max(indent + across * _STEP, 2 * _STEP), top))


def _png(texts: SheetTexts, groups: Sequence[TileGroup]) -> bytes:
    above = [(texts.title, _TEXT, _TITLE_SIZE), (texts.about, _SOFT, _FONT_SIZE),
             (texts.warning, _WARNING, _TITLE_SIZE)]  # fmt: skip
    lines = [line for line in above if line[0]]
    tops = [_GAP + sum(size + 8 for _, _, size in lines[:at]) for at in range(len(lines) + 1)]
    layout = _placed(groups, tops[-1] - 8 + _GAP)
    tiles, (width, height) = layout.tiles, layout.size
    if width * height > _MOST_PIXELS:
        raise UsageError(
            f"a PNG of {counted(len(tiles), 'image')} would have {width} x {height} pixels; show "
            "fewer, or write .html"
        )
    sheet = Image.new("RGB", (width, height), _WHITE)
    draw = ImageDraw.Draw(sheet)
    for (text, colour, size), top in zip(lines, tops, strict=False):
        font = _font(size)
        line = _cut(printable(text), font, width - 2 * _GAP)
        draw.text((_GAP, top), line, font=font, fill=colour)
    for text, left, top in layout.heads:
        draw.text((left, top), printable(text), font=_font(_FONT_SIZE + 2), fill=_TEXT)
    for tile, left, top in tiles:
        _draw_tile(sheet, draw, tile, left, top)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _draw_tile(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int
) -> None:
    draw.rectangle((left, top, left + _SIDE - 1, top + _SIDE - 1), fill=_BACK)
    with picture_of(tile.path, _SIDE, tile.preprocess) as picture:
        if isinstance(picture, str):
            for number, line in enumerate(_wrapped(picture, _font(_FONT_SIZE), _SIDE - 16, 4)):
                draw.text((left + 8, top + 8 + number * _LINE), line, font=_font(_FONT_SIZE),
                          fill=_SOFT)  # fmt: skip
        else:
            # A small image is enlarged by the largest whole factor that fits, to be seen.
            factor = max(1, _SIDE // max(picture.size))
            size = (picture.width * factor, picture.height * factor)
            whole = picture.resize(size, Image.Resampling.NEAREST) if factor > 1 else picture
            sheet.paste(
                whole, (left + (_SIDE - whole.width) // 2, top + (_SIDE - whole.height) // 2)
            )
    if tile.is_query:
        draw.rectangle((left - 3, top - 3, left + _SIDE + 2, top + _SIDE + 2), outline=_MARK,
                       width=3)  # fmt: skip
    _draw_texts(draw, tile, left, top + _SIDE + 4)


def _draw_texts(draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    font = _font(_FONT_SIZE)
    mark = _MARK if tile.is_query else _TEXT
    lines = [(tile.heading, mark)] if tile.heading else []
    lines += [(line, _TEXT) for line in _wrapped(printable(tile.name), font, _SIDE, _NAME_LINES)]
    lines += [(line, _SOFT) for line in _wrapped(printable(tile.note), font, _SIDE, 1)]
    for number, (line, colour) in enumerate(lines):
        draw.text((left, top + number * _LINE), line, font=font, fill=colour)


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _wrapped(text: str, font: _Font, width: int, most: int) -> list[str]:
    """Wrap text into at most `most` lines of that width; shorten a longer one in the middle."""
    if not text:
        return []
    lines = _lines(text, font, width)
    if len(lines) <= most:
        return lines
    if most == 1:
        return [_cut(text, font, width)]
    end = text
    while font.getlength(f"...{end}") > width:
        end = end[1:]
    return [*lines[: most - 1], f"...{end}"]


def _lines(text: str, font: _Font, width: int) -> list[str]:
    """Break text into lines of that width, preferably between parts of a name."""
    lines, rest = [], text
    while rest:
        length = _fitting(rest, font, width)
        if length < len(rest):
            at = max(rest.rfind(mark, 0, length) for mark in " /_-")
            length = at + 1 if at >= length // 3 else length
        lines.append(rest[:length].rstrip())
        rest = rest[length:]
    return lines


def _fitting(text: str, font: _Font, width: int) -> int:
    """Return how many characters of a text fit into that width, at least one."""
    length = len(text)
    while length > 1 and font.getlength(text[:length]) > width:
        length -= 1
    return length


def _cut(text: str, font: _Font, width: int) -> str:
    """Shorten a text at its end to one line of that width."""
    if font.getlength(text) <= width:
        return text
    return f"{text[: _fitting(text, font, width - int(font.getlength('...')))]}..."
