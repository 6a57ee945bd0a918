"""Contact sheets: what is in the picture, in the page, and what a browser makes of the page."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pytest
from browser import Browser
from command_line import SMALL, assert_one_line, vggfeat, write_images
from PIL import Image

from vggfeat.errors import UsageError
from vggfeat.visualization.contact_sheet import Query, Result, contact_sheet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RED, GREEN, BLUE = (200, 30, 30), (30, 160, 30), (30, 30, 200)
NAMES = ['<b>&"it\'s".png', "gone.png", b"bad\xff\n.png".decode(errors="surrogateescape"), "d.png"]
SHOWN = ['<b>&"it\'s".png', "gone.png", "bad\\xff\\n.png", "d.png"]
VOID = {"meta", "img", "wbr"}


def plain(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (300, 200)) -> str:
    Image.new("RGB", size, colour).save(path)
    return str(path)


@pytest.fixture
def found(tmp_path: Path) -> tuple[list[Query], list[list[Result]]]:
    """One query and four results: one without a file, one whose file is no image."""
    (tmp_path / "broken.png").write_bytes(b"no image")
    query = Query(plain(tmp_path / "q.png", RED), '<query> & "more"')
    paths = [plain(tmp_path / "a.png", GREEN), None, str(tmp_path / "broken.png"),
             plain(tmp_path / "d.png", BLUE, (16, 12))]  # fmt: skip
    results = [
        Result(number + 1, 0.9876 - number / 10, path, name)
        for number, (path, name) in enumerate(zip(paths, NAMES, strict=True))
    ]
    return [query], [results]


@dataclass
class Page(HTMLParser):
    """What a page holds, as Python's own parser sees it; every tag must be closed."""

    images: list[dict[str, str]] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    text: str = ""
    _open: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.links += [found[name] for name in ("src", "href", "action", "srcset") if name in found]
        if tag == "img" and found.get("src"):
            self.images.append(found)
        if tag not in VOID:
            self._open.append((tag, found.get("class", "")))
            self.texts.setdefault(self._where(), []).append("")

    def _where(self) -> str:
        tag, kind = self._open[-1]
        return f"{tag}.{kind}" if kind else tag

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] not in ("style", "script"):
            self.text += data
            self.texts[self._where()][-1] += data

    def close(self) -> None:
        super().close()
        assert not self._open


def read_page(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    return page


def decoded(image: dict[str, str]) -> Image.Image:
    head, _, data = image["src"].partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def test_a_page_holds_all_it_shows(
    found: tuple[list[Query], list[list[Result]]], tmp_path: Path
) -> None:
    """Images decode from the page itself in their sizes, and nothing is fetched from elsewhere."""
    contact_sheet("t", *found, str(tmp_path / "s.html"))
    page = read_page(tmp_path / "s.html")
    images = [decoded(image) for image in page.images]
    assert [image.size for image in images] == [(300, 200), (300, 200), (16, 12)]
    for image, colour in zip(images, (RED, GREEN, BLUE), strict=True):
        mean = np.asarray(image.convert("RGB"), dtype=float).mean(axis=(0, 1))
        assert np.abs(mean - colour).max() < 3
    for image, attributes in zip(images, page.images, strict=True):
        assert (attributes["width"], attributes["height"]) == tuple(map(str, image.size))
    text = (tmp_path / "s.html").read_text()
    assert all(link.startswith("data:image/") for link in page.links if link)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert "default-src 'none'" in text


def test_a_page_says_names_as_they_are(
    found: tuple[list[Query], list[list[Result]]], tmp_path: Path
) -> None:
    """Names, scores and reasons are text, whatever is in them; images have them as alt texts."""
    contact_sheet('<i>"title"', *found, str(tmp_path / "s.html"))
    page = read_page(tmp_path / "s.html")
    query = '<query> & "more"'
    assert page.texts["title"] == page.texts["h1"] == ['<i>"title"']
    assert page.texts["h2"] == [query]
    assert page.texts["span.name"] == [query, *SHOWN]
    assert page.texts["span.heading"] == [
        "query", "1   0.9876", "2   0.8876", "3   0.7876", "4   0.6876"
    ]  # fmt: skip
    assert [image["alt"] for image in page.images] == [query, SHOWN[0], SHOWN[3]]
    assert page.texts["button.open none"] == ["file not found", "not an image Pillow can read"]


def test_a_large_image_is_made_smaller_and_upright(tmp_path: Path) -> None:
    """A page holds images of 640 pixels at most, turned as their EXIF says."""
    image = Image.new("RGB", (1600, 800), RED)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    results = [Result(1, 1234.56789, str(tmp_path / "turned.jpg"), "t.jpg", "a note")]
    contact_sheet("t", [], [results], str(tmp_path / "s.html"))
    page = read_page(tmp_path / "s.html")
    assert decoded(page.images[0]).size == (320, 640)
    assert page.texts["span.heading"] == ["1   1234.57"]
    assert page.texts["span.note"] == ["a note"]
    assert "h2" not in page.texts


def test_a_picture_has_the_query_on_the_left(
    found: tuple[list[Query], list[list[Result]]], tmp_path: Path
) -> None:
    """In a PNG each image is in its place, a small one larger by whole pixels, no image grey."""
    contact_sheet("title", *found, str(tmp_path / "s.png"))
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.size == (18 + 194 + 18 + 4 * 194, 54 + 176 + 3 * 18 + 18)
        pixels = np.asarray(sheet.convert("RGB"), dtype=int)
    middle = 54 + 88
    lefts = [18, *(230 + 194 * place for place in range(4))]
    colours = (RED, GREEN, (242, 242, 242), (242, 242, 242), BLUE)
    for left, colour in zip(lefts, colours, strict=True):
        assert np.abs(pixels[middle, left + 88] - colour).max() < 3, left
    blue = np.abs(pixels - BLUE).max(axis=2) < 3
    assert (blue.sum(axis=0).max(), blue.sum(axis=1).max()) == (11 * 12, 11 * 16)
    for left in lefts:  # something is written under each
        assert (pixels[54 + 180 :, left : left + 176].min(axis=2) < 128).any()


def test_a_small_image_is_shown_by_its_pixels(tmp_path: Path) -> None:
    """In a PNG an image of few pixels is enlarged without mixing them."""
    Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).save(tmp_path / "two.png")
    results = [Result(1, None, str(tmp_path / "two.png"), "")]
    contact_sheet("t", [], [results], str(tmp_path / "s.png"))
    with Image.open(tmp_path / "s.png") as sheet:
        line = np.asarray(sheet.convert("L"))[54 + 88, 18 : 18 + 176]
    assert line.tolist() == [0] * 88 + [255] * 88


def test_long_names_stay_within_their_tile(tmp_path: Path) -> None:
    """In a PNG no text runs into what is beside it, however long the name."""
    path = plain(tmp_path / "a.png", GREEN)
    names = ["i" * 500, "W" * 500, "folder/" * 80 + "end.jpg", "\u5b57" * 300, ""]
    results = [Result(place, None, path, name, "n" * 300) for place, name in enumerate(names * 2)]
    contact_sheet("long " * 200, [], [results], str(tmp_path / "s.png"))
    with Image.open(tmp_path / "s.png") as sheet:
        pixels = np.asarray(sheet.convert("L"))
    for place in range(len(names)):
        right = 18 + 194 * place + 176
        assert (pixels[54:, right + 2 : right + 16] == 255).all(), names[place][:8]
    assert (pixels[:54, -16:] == 255).all()
    assert (pixels[54 + 176 + 4 + 3 * 18 + 2 : 54 + 176 + 4 * 18, :] == 255).all()  # of two lines


def test_sheets_that_cannot_be(
    found: tuple[list[Query], list[list[Result]]], tmp_path: Path
) -> None:
    """Wrong names, places and sizes are refused; a failed write leaves what was there."""
    (tmp_path / "s.png").mkdir()
    before = sorted(os.listdir(tmp_path))
    for out, kind, words in (
        ("s.gif", UsageError, r"'.*s\.gif' has no known format; end it in \.png or \.html"),
        ("none/s.png", UsageError, "does not exist; create it first"),
        ("s.png", UsageError, "is a folder, expected a regular file"),
    ):
        with pytest.raises(kind, match=words):
            contact_sheet("t", *found, str(tmp_path / out))
    many = [Result(1, None, None, "x")] * 4000
    with pytest.raises(UsageError, match=r"a PNG of 4000 images would have .* or write \.html"):
        contact_sheet("t", [], [many], str(tmp_path / "m.png"))
    with pytest.raises(ValueError, match="1 query and 2 lists"):
        contact_sheet("t", found[0], [[], []], str(tmp_path / "m.png"))
    assert sorted(os.listdir(tmp_path)) == before


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of images in two folders, one of them broken, one with an undecodable name."""
    folder = tmp_path_factory.mktemp("sheets")
    write_images(folder / "images" / "cats", 4)
    write_images(folder / "images" / "dogs", 3)
    (folder / "images" / "dogs" / "broken.png").write_bytes(b"no image")
    undecodable = os.fsdecode(b"\xfe.png")
    shutil.copy(folder / "images" / "cats" / "00.png", folder / "images" / "dogs" / undecodable)
    done = vggfeat("extract", "images", *SMALL, "--out", "f.h5", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_images_of_a_cache(workplace: Path, tmp_path: Path) -> None:
    """The images that match a pattern, with their names, and states if not done; what was asked."""
    out = tmp_path / "s.html"
    done = vggfeat("sheet", "f.h5", "--rows", "dogs/*", "--out", out, cwd=workplace)
    assert (done.returncode, done.stdout) == (0, f"{out}: 5 images of 9\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith("vggfeat: warning: cache 'f.h5': RANDOM WEIGHTS (seed 0)")
    page = read_page(out)
    names = ["dogs/00.png", "dogs/01.png", "dogs/02.png", "dogs/broken.png", "dogs/\\xfe.png"]
    assert page.texts["span.name"] == names
    failed = "failed: not an image Pillow can read"
    assert page.texts["span.note"] == [failed]
    assert page.texts["h1"] == ["f.h5: 5 of 9 images, names matching dogs/*"]
    (warning,) = page.texts["p.warning"]
    assert "RANDOM WEIGHTS (seed 0)" in warning
    with Image.open(workplace / "images" / "dogs" / "01.png") as original:
        assert np.array_equal(np.asarray(original), np.asarray(decoded(page.images[1])))
    done = vggfeat("sheet", "f.h5", "-o", tmp_path / "s.png", "--most", "2", cwd=workplace)
    assert done.stdout == f"{tmp_path / 's.png'}: 2 images of 9\n"
    assert sorted(os.listdir(tmp_path)) == ["s.html", "s.png"]


def test_a_sheet_of_duplicates(workplace: Path, tmp_path: Path) -> None:
    """Each group has a heading, its images their cosines; above is how to read them."""
    out = tmp_path / "d.html"
    words = ["duplicates", "f.h5", "--layer", "conv1_1", "--threshold", "0.9999"]
    done = vggfeat(*words, "--sheet", out, cwd=workplace)
    assert done.returncode == 0, done.stderr
    page = read_page(out)
    assert page.texts["h2"] == ["group 1", "group 2", "group 3"]
    assert page.texts["span.name"] == [
        "cats/00.png", "dogs/00.png", "dogs/\\xfe.png", "cats/01.png", "dogs/01.png", "cats/02.png",
        "dogs/02.png",
    ]  # fmt: skip
    assert page.texts["span.note"] == ["identical file"] * 7
    assert page.texts["h1"] == [
        "Near-duplicates by conv1_1, cosine at least 0.9999: 3 groups among 8 images"
    ]
    assert page.texts["p.about"][0].startswith("Scores are cosines: 1 is the same direction")
    assert "RANDOM" in page.texts["p.warning"][0]
    done = vggfeat(*words, "--sheet", tmp_path / "d.png", cwd=workplace)
    with Image.open(tmp_path / "d.png") as picture:
        assert picture.height > 3 * 176
    assert_one_line(vggfeat(*words, "--sheet", "d.jpg", cwd=workplace), 2, "no known format")


def test_a_sheet_of_results(workplace: Path, tmp_path: Path) -> None:
    """It says what was searched and how to read scores, and which results are the same file."""
    out = tmp_path / "s.html"
    words = ["search", "f.h5", "--row", "cats/03.png", "--layer", "conv1_1", "--metric", "l2"]
    done = vggfeat(*words, "--top", "8", "--sheet", out, cwd=workplace)
    assert done.returncode == 0, done.stderr
    page = read_page(out)
    assert page.texts["h1"] == ["Nearest by conv1_1 of 8 images"]
    assert page.texts["p.about"] == [
        "Scores are distances at unit length: 0 is the same direction, and less is nearer."
    ]
    shown = dict(zip(page.texts["span.name"][1:], page.texts["span.heading"][1:], strict=True))
    ranks = {name: int(heading.split()[0]) for name, heading in shown.items()}
    same = [
        min(ranks[f"{kind}/{number}.png"] for kind in ("cats", "dogs")) for number in ("01", "02")
    ]
    notes = page.texts["span.note"]
    assert all(notes.count(f"same file as {rank}") == 1 for rank in same)
    assert len([note for note in notes if note.startswith("same file")]) == 4


def test_images_that_have_moved(workplace: Path, tmp_path: Path) -> None:
    """Where files are gone the sheet says so, and --root says where they are."""
    shutil.copy(workplace / "f.h5", tmp_path / "f.h5")
    (tmp_path / "moved" / "cats").mkdir(parents=True)
    for name in ("00.png", "01.png"):
        shutil.copy(workplace / "images" / "cats" / name, tmp_path / "moved" / "cats")
    words = ["sheet", "f.h5", "--rows", "cats/*", "-o", "s.html", "--root", "moved"]
    done = vggfeat(*words, cwd=tmp_path)
    assert done.returncode == 0
    assert "warning: 2 of 4 images not found below moved; --root says where" in done.stderr
    page = read_page(tmp_path / "s.html")
    assert len(page.images) == 2
    assert page.texts["button.open none"] == ["file not found"] * 2


def test_exit_codes(workplace: Path, tmp_path: Path) -> None:
    """Errors are one line and the exit code of their kind, and leave nothing behind."""
    out = str(tmp_path / "s.png")
    for code, words, message in (
        (2, ["f.h5", "-o", str(tmp_path / "s.jpg")], "has no known format"),
        (2, ["f.h5", "-o", out, "--most", "0"], "most is 0; expected 1 or more"),
        (2, ["f.h5", "-o", out, "--rows", "birds/*"], "matches 'birds/*'"),
        (3, ["gone.h5", "-o", out], "cache 'gone.h5' does not exist"),
        (5, ["images/cats/00.png", "-o", out], "images/cats/00.png"),
    ):
        assert_one_line(vggfeat("sheet", *words, cwd=workplace), code, message)
    assert not os.listdir(tmp_path)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


@pytest.fixture
def opened(
    browser: Browser, found: tuple[list[Query], list[list[Result]]], tmp_path: Path
) -> Browser:
    """A browser that shows a query with four results, and eight images more."""
    path = plain(tmp_path / "e.png", BLUE)
    more = [Result(place, 0.5, path, f"more {place}") for place in range(8)]
    contact_sheet("t", found[0] * 2, [found[1][0], more], str(tmp_path / "s.html"))
    browser.open((tmp_path / "s.html").as_uri())
    return browser


_FOCUSED = "document.activeElement.closest('li')?.querySelector('.name').textContent ?? ''"
_LARGE = "document.querySelector('dialog').open && document.querySelector('dialog img').alt"


def test_a_page_by_keyboard(opened: Browser) -> None:
    """Tab and arrows go from image to image, Enter shows one large, arrows another, Esc closes."""
    query = '<query> & "more"'
    opened.press("Tab")
    assert opened.value(_FOCUSED) == query
    for key, name in (
        ("ArrowRight", SHOWN[0]), ("ArrowLeft", query), ("ArrowLeft", query), ("Tab", SHOWN[0]),
        ("End", "more 7"), ("ArrowRight", "more 7"), ("ArrowLeft", "more 6"), ("Home", query),
        ("ArrowRight", SHOWN[0]),
    ):  # fmt: skip
        opened.press(key)
        assert opened.value(_FOCUSED) == name, key
    assert opened.value(_LARGE) is False
    opened.press("Enter")
    assert opened.value(_LARGE) == SHOWN[0]
    opened.press("ArrowRight")  # over the two that have no image
    assert opened.value(_LARGE) == SHOWN[3]
    opened.wait("document.querySelector('dialog img').naturalWidth === 16")
    opened.press("Escape")
    # The event that gives the focus back comes some time after the dialog is closed.
    opened.wait(f"({_FOCUSED}) === {json.dumps(SHOWN[3])}")
    assert opened.value(_LARGE) is False
    opened.press("ArrowLeft")
    opened.press("Enter")  # no image, nothing to show
    assert opened.value(_LARGE) is False


def test_arrows_go_up_and_down_in_a_page(opened: Browser) -> None:
    """Down goes to the image below, in the next line or section, and up back again."""
    opened.press("Tab")
    place = "JSON.stringify(document.activeElement.getBoundingClientRect().toJSON())"
    left = opened.value(f"JSON.parse({place}).left")
    tops = [opened.value(f"JSON.parse({place}).top")]
    for _ in range(2):
        opened.press("ArrowDown")
        assert opened.value(f"JSON.parse({place}).left") == left
        tops.append(opened.value(f"JSON.parse({place}).top + scrollY"))
    assert tops == sorted(set(tops))
    opened.press("ArrowUp")
    opened.press("ArrowUp")
    assert opened.value(_FOCUSED) == '<query> & "more"'


def test_a_page_in_a_browser_asks_for_nothing(opened: Browser) -> None:
    """The page itself and the images in it are all that a browser asks for, and all are shown."""
    assert {url.split(":")[0] for url in opened.requests} <= {"file", "data"}
    assert len([url for url in opened.requests if url.startswith("file")]) == 1
    sizes = (
        "[...document.querySelectorAll('li img')].every(one => one.complete && one.naturalWidth)"
    )
    assert opened.value(sizes) is True
    assert opened.value("document.querySelectorAll('li img').length") == 3 + 1 + 8
    assert opened.value("document.documentElement.scrollWidth <= innerWidth") is True


def test_a_page_is_light_and_dark_and_narrow(opened: Browser) -> None:
    """It follows the reader's colours with enough contrast, and fits a telephone's width."""
    opened.check_schemes_and_width()


def test_a_page_is_read_without_scripts(
    browser: Browser, found: tuple[list[Query], list[list[Result]]], tmp_path: Path
) -> None:
    """Where scripts are off, images and texts are there, and no word of keys that do nothing."""
    contact_sheet("t", *found, str(tmp_path / "s.html"))
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    browser.open((tmp_path / "s.html").as_uri())
    shown = browser.value("document.body.innerText")
    images = browser.value("[...document.querySelectorAll('li img')].map(one => one.naturalWidth)")
    browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert images == [300, 300, 16]
    assert all(name in shown for name in SHOWN)
    assert "Arrow keys" not in shown
    assert "Close" not in shown
