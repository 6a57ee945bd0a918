"""A contact sheet as one self-contained HTML file: no network, no server.

Its script only adds arrow keys and a large view; the page works without.
"""

from __future__ import annotations

import base64
import html
import io
import re
from typing import TYPE_CHECKING, Final

from vggfeat.core.text import printable
from vggfeat.visualization.thumbnails import picture_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from vggfeat.visualization.contact_sheet import SheetTexts, Tile, TileGroup

LONGEST: Final = 640
"""Pixels of the longer side of an image within the file, which its large view shows."""

_JPEG_QUALITY = 85
_AFTER_PARTS = re.compile(r"(?<=[/_-])")  # of a name, where its line may break
_BREAK = "<wbr>"
_LOSSLESS_SIDE = 128  # pixels up to which JPEG would be no smaller, and blur the image

# Nothing is fetched from anywhere, whatever the names of files say.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --fore: #1b1b1b; --soft: #5a5a5a; --line: #d0d0d0;
  --tile: #f2f2f2; --mark: #0060a8; --warn: #8a3b00; }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181a; --fore: #ececec; --soft: #a8adb2; --line: #3c4146; --tile: #24272a;
    --mark: #7cc0ff; --warn: #ffc48a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 90rem; background: var(--back);
  color: var(--fore); font: 15px/1.4 system-ui, sans-serif; }
h1 { font-size: 1.3rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 1.6rem 0 .6rem; overflow-wrap: anywhere; }
.hint, .about { color: var(--soft); margin: 0 0 1rem; }
.warning { border: 1px solid; border-radius: .4rem; padding: .5rem .8rem; font-weight: 700;
  color: var(--warn); overflow-wrap: anywhere; }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem .8rem;
  grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); }
figure { margin: 0; }
.open { display: block; width: 100%; aspect-ratio: 1; padding: .3rem; border: 1px solid var(--line);
  border-radius: .4rem; background: var(--tile); color: var(--soft); font: inherit;
  cursor: zoom-in; }
.open img { display: block; width: 100%; height: 100%; object-fit: contain; }
.open.none { cursor: default; }
.query .open { border: 3px solid var(--mark); }
.open:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px; }
figcaption { margin-top: .3rem; overflow-wrap: anywhere; font-size: .85rem; }
.heading { display: block; font-weight: 600; white-space: pre-wrap;
  font-variant-numeric: tabular-nums; }
.query .heading { color: var(--mark); }
.note { display: block; color: var(--soft); }
dialog { border: 1px solid var(--line); border-radius: .5rem; padding: 1rem; max-width: 96vw;
  max-height: 96vh; background: var(--back); color: var(--fore); }
dialog::backdrop { background: rgb(0 0 0 / .7); }
dialog img { display: block; margin: 0 auto .6rem; width: min(88vw, 64rem); height: 76vh;
  object-fit: contain; }
dialog p { margin: 0 0 .6rem; text-align: center; overflow-wrap: anywhere; white-space: pre-wrap; }
dialog form { text-align: center; }
dialog button { font: inherit; padding: .3rem 1rem; }
"""

_SCRIPT = """
'use strict';
const items = [...document.querySelectorAll('button.open')];
const dialog = document.querySelector('dialog');
const large = dialog.querySelector('img');
const words = dialog.querySelector('p');
let shown = -1;
function show(at) {
  const image = items[at] && items[at].querySelector('img');
  if (!image) return;
  shown = at;
  large.src = image.src;
  large.alt = image.alt;
  words.textContent = items[at].closest('figure').querySelector('figcaption').innerText;
  if (!dialog.open) dialog.showModal();
}
function beside(at, step) {
  let next = at + step;
  while (items[next] && !items[next].querySelector('img')) next += step;
  return next;
}
function above(at, step) {
  const from = items[at].getBoundingClientRect();
  let best = -1, least = Infinity;
  items.forEach((item, number) => {
    const box = item.getBoundingClientRect();
    const down = (box.top - from.top) * step;
    if (down < from.height / 2) return;
    const far = down * 10 + Math.abs(box.left - from.left);
    if (far < least) { least = far; best = number; }
  });
  return best;
}
function target(key, at) {
  switch (key) {
    case 'ArrowRight': return at + 1;
    case 'ArrowLeft': return at - 1;
    case 'ArrowDown': return above(at, 1);
    case 'ArrowUp': return above(at, -1);
    case 'Home': return 0;
    case 'End': return items.length - 1;
    default: return -1;
  }
}
items.forEach((item, at) => {
  item.addEventListener('click', () => show(at));
  item.addEventListener('keydown', event => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const next = items[target(event.key, at)];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
});
dialog.addEventListener('keydown', event => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  show(beside(shown, step));
});
dialog.addEventListener('click', event => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener('close', () => { if (items[shown]) items[shown].focus(); });
document.querySelector('.hint').hidden = false;
"""


def page(texts: SheetTexts, groups: Sequence[TileGroup]) -> bytes:
    """Return the file of a contact sheet, UTF-8."""
    name = _escaped(texts.title)
    above = "".join(
        f'<p class="{kind}">{_escaped(text)}</p>\n'
        for kind, text in (("about", texts.about), ("warning", texts.warning))
        if text
    )
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{name}</h1>\n{above}"
        '<p class="hint" hidden>Arrow keys move, Enter shows an image large, Esc closes it.</p>\n'
    )
    tail = (
        '</main>\n<dialog aria-label="image"><img alt=""><p></p>'
        '<form method="dialog"><button>Close</button></form></dialog>\n'
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )
    return (head + "".join(map(_section, groups)) + tail).encode()


def _section(group: TileGroup) -> str:
    head, results = group
    name = head if isinstance(head, str) or head is None else head.name
    heading = f"<h2>{_escaped(name)}</h2>\n" if name else ""
    tiles: Sequence[Tile] = results if isinstance(head, str) or head is None else [head, *results]
    items = "".join(map(_item, tiles))
    return f"<section>\n{heading}<ol>\n{items}</ol>\n</section>\n"


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def _item(tile: Tile) -> str:
    kind = ' class="query"' if tile.is_query else ""
    words = [
        f'<span class="{name}">{_AFTER_PARTS.sub(_BREAK, _escaped(text))}</span>'
        for name, text in (("heading", tile.heading), ("name", tile.name), ("note", tile.note))
        if text
    ]
    return (
        f"<li{kind}><figure>{_button(tile)}<figcaption>{' '.join(words)}</figcaption>"
        "</figure></li>\n"
    )


def _button(tile: Tile) -> str:
    with picture_of(tile.path, LONGEST, tile.preprocess) as picture:
        if isinstance(picture, str):
            words = html.escape(picture)
            return f'<button type="button" class="open none" aria-disabled="true">{words}</button>'
        alt = _escaped(tile.name)
        return (
            '<button type="button" class="open" aria-haspopup="dialog">'
            f'<img src="{_data_uri(picture)}" alt="{alt}" width="{picture.width}" '
            f'height="{picture.height}"></button>'
        )


def _data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    if max(image.size) <= _LOSSLESS_SIDE:
        image.save(file, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(file, "JPEG", quality=_JPEG_QUALITY, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
