"""The explorer page: its numbers against scikit-learn's, and what a browser makes of it."""

from __future__ import annotations

import base64
import json
import os
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from browser import Browser
from caches_to_search import cache_of
from command_line import SMALL, assert_one_line, vggfeat, write_images
from PIL import Image
from sklearn.metrics.pairwise import cosine_similarity

import vggfeat as package
from vggfeat.errors import InputError, UsageError
from vggfeat.visualization.compact_features import compact_layer
from vggfeat.visualization.explorer import explore
from vggfeat.visualization.sprite import make_sprite, tile_side

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

LAYERS = ("conv1_1", "conv2_1:max")
BAD = "<b>&'\"<script>.png"


def drawn(seed: int, rows: int, width: int) -> NDArray[np.float32]:
    """Features as behind a ReLU, with a few strong directions."""
    noise = np.random.default_rng(seed)
    latent = noise.standard_normal((rows, 6)) @ noise.standard_normal((6, width))
    return np.maximum(latent + 0.2 * noise.standard_normal((rows, width)), 0).astype(np.float32)


@pytest.mark.parametrize(("rows", "width"), [(300, 512), (40, 512), (300, 64), (5, 3)])
def test_cosines_are_nearly_those_of_the_features(tmp_path: Path, rows: int, width: int) -> None:
    """What the page computes is nearly scikit-learn's cosine, and how nearly is what it says."""
    x = drawn(0, rows, width)
    cache = cache_of(tmp_path / "c.h5", {"conv1_1": x}, "float32")
    found = compact_layer(cache, "conv1_1", np.arange(rows))
    exact = cosine_similarity(x)
    cosines = found.cosines(np.arange(rows))
    error = np.abs(cosines - exact)
    assert error.max() < 0.05
    assert found.codes.shape == (rows, min(128, rows - 1, width))
    queries = np.arange(min(rows, 200)) * rows // min(rows, 200)
    assert found.queries == len(queries)
    assert found.error == pytest.approx(error[:, queries].mean(), rel=1e-3, abs=1e-5)
    top = min(10, rows - 1)
    kept = []
    for query in queries:
        others = np.delete(np.arange(rows), query)
        nearest = [set(others[np.argsort(-one[others, query])[:top]]) for one in (exact, cosines)]
        kept.append(len(nearest[0] & nearest[1]) / top)
    assert found.kept == pytest.approx(np.mean(kept), abs=0.01)
    assert found.kept > 0.9
    assert found.points.min() >= 0
    assert found.points.max() <= 1 + 1e-6


def test_images_that_are_all_the_same_have_no_axes(tmp_path: Path) -> None:
    """Of equal rows, or of one alone, all cosines are 1, and nothing is lost."""
    for rows in (1, 4):
        x = np.repeat(drawn(1, 1, 8), rows, axis=0)
        cache = cache_of(tmp_path / f"{rows}.h5", {"conv1_1": x}, "float32")
        found = compact_layer(cache, "conv1_1", np.arange(rows))
        assert found.codes.shape == (rows, 0)
        assert found.kept == 1
        np.testing.assert_allclose(found.cosines(np.arange(rows)), 1, atol=1e-5)


def test_maps_are_averaged(tmp_path: Path) -> None:
    """A layer of maps is compared by the means of its channels."""
    x = drawn(2, 30, 8 * 9).reshape(30, 8, 3, 3)
    cache = cache_of(tmp_path / "c.h5", {"conv1_1:map": x}, "float32")
    found = compact_layer(cache, "conv1_1:map", np.arange(30))
    exact = cosine_similarity(x.mean(axis=(2, 3)))
    np.testing.assert_allclose(found.cosines(np.arange(30)), exact, atol=0.02)


def test_a_sprite_has_the_square_of_each_image(tmp_path: Path) -> None:
    """Tiles stand row by row; what has no picture is named with its reason."""
    colours = [(200, 30, 30), (30, 160, 30), (30, 30, 200)]
    paths: list[str | None] = [str(tmp_path / f"{number}.png") for number in range(3)]
    for path, colour, size in zip(paths, colours, [(300, 100), (90, 200), (5, 5)], strict=True):
        Image.new("RGB", size, colour).save(str(path))
    found = make_sprite(
        [*paths, None, str(tmp_path / "none.png")], package.Settings(layers="fc7").preprocess()
    )
    assert (found.across, found.down, found.side) == (3, 2, 160)
    assert found.missing == {3: "file not found", 4: "file not found"}
    (tmp_path / "sprite.jpg").write_bytes(found.jpeg)
    with Image.open(tmp_path / "sprite.jpg") as image:
        for at, colour in enumerate(colours):
            for x, y in ((4, 4), (80, 80), (155, 155)):
                pixel = image.getpixel((at * 160 + x, y))
                np.testing.assert_allclose(pixel, colour, atol=12)
    assert [tile_side(count) for count in (1, 1310, 5000, 20000, 10**6)] == [160, 160, 81, 40, 32]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 14 images in two classes, one broken, one with a name that HTML would read."""
    folder = tmp_path_factory.mktemp("explorer")
    write_images(folder / "images" / "cat", 8)
    write_images(folder / "images" / "dog", 4)
    (folder / "images" / "dog" / "01.png").write_bytes(b"no image")
    for number in range(4):  # other pixels than those of the cats
        path = folder / "images" / "dog" / f"0{number}.png"
        if number != 1:
            with Image.open(path) as image:
                image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).rotate(90).save(path)
    twin = folder / "images" / "dog" / "twin.png"
    twin.write_bytes((folder / "images" / "cat" / "03.png").read_bytes())
    with Image.open(folder / "images" / "cat" / "05.png") as image:
        image.rotate(180).save(folder / "images" / "dog" / BAD)
    done = vggfeat("extract", "images", "--out", "feats.h5", *SMALL, cwd=folder)
    assert done.returncode == 0, done.stderr
    done = vggfeat("explore", "feats.h5", "--out", "explore.html", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


class Page(HTMLParser):
    """Scripts of a page by their id, and all addresses that it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: dict[str, str] = {}
        self.links: list[str] = []
        self.text = ""
        self._script: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self._script = found.get("id", "") if tag == "script" else None
        self.links += [found[name] for name in ("src", "href") if name in found]

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 the parser's name
        self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        else:
            self.text += data


def test_a_page_holds_all_and_names_nothing_outside(folder: Path) -> None:
    """Names are data and never markup; the only addresses are places of the page itself."""
    page = Page((folder / "explore.html").read_text(encoding="utf-8"))
    assert set(page.scripts) == {"data", "sprite", "layer-0", "layer-1", ""}
    assert all(link.startswith("#") for link in page.links)
    data = json.loads(page.scripts["data"])
    assert data["names"] == [
        *(f"cat/0{number}.png" for number in range(8)),
        *(f"dog/{name}" for name in sorted(["00.png", "02.png", "03.png", BAD, "twin.png"])),
    ]
    assert data["labels"] == ["cat", "dog"]
    files = dict(zip(data["names"], data["files"], strict=True))
    assert files["cat/03.png"] == files["dog/twin.png"] != 0
    assert sum(number != 0 for number in data["files"]) == 2
    assert "RANDOM WEIGHTS (seed 0)" in page.text
    assert "1 failed image" in page.text
    assert "dog/01.png" in page.text
    assert base64.b64decode(page.scripts["sprite"])[:2] == b"\xff\xd8"
    codes = base64.b64decode(page.scripts["layer-0"])
    components = data["layers"][0]["components"]
    assert len(codes) == 4 * components + 13 * (4 + 8 + components)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def opened(browser: Browser, folder: Path) -> Browser:
    """A browser that shows the page."""
    browser.open("about:blank")
    browser.open((folder / "explore.html").as_uri())
    browser.wait("document.querySelectorAll('.column li').length > 0")
    return browser


def column(browser: Browser, number: int) -> list[tuple[str, float]]:
    """Names and cosines that a column shows, from the top."""
    found = browser.value(
        f"JSON.stringify([...document.querySelectorAll('[data-layer=\"{number}\"] button')]"
        ".map(one => [one.title, +one.querySelector('b').textContent]))"
    )
    return [(name, score) for name, score in json.loads(found)]


def exact(folder: Path, layer: str) -> tuple[list[str], NDArray[Any]]:
    """Names of the done rows, and their cosines by scikit-learn."""
    with package.open(folder / "feats.h5") as cache:
        rows = np.flatnonzero(cache.done)
        names = [cache.name(row) for row in rows.tolist()]
        return names, cosine_similarity(cache.values(layer, rows))


def expect(
    shown: list[tuple[str, float]], names: list[str], cosines: NDArray[Any], asked: str
) -> None:
    """All others than `asked` that a column has room for, with their cosines, best first."""
    at = names.index(asked)
    assert len(shown) == 10
    assert asked not in dict(shown)
    for name, score in shown:
        assert score == pytest.approx(cosines[at, names.index(name)], abs=2e-3)
    scores = [score for _, score in shown]
    assert scores == sorted(scores, reverse=True)
    left_out = set(names) - set(dict(shown)) - {asked}
    assert max(cosines[at, names.index(name)] for name in left_out) <= scores[-1] + 2e-3


def click(browser: Browser, selector: str) -> None:
    browser.value(f"document.querySelector({json.dumps(selector)}).click()")


def test_columns_show_the_nearest_by_each_layer(opened: Browser, folder: Path) -> None:
    """Each layer's column has scikit-learn's neighbours; so has what is clicked in one."""
    for asked in ("cat/00.png", "dog/twin.png"):
        if asked != "cat/00.png":
            click(opened, f'#grid [title="{asked}"]')
        for number, layer in enumerate(LAYERS):
            expect(column(opened, number), *exact(folder, layer), asked)
    twin = opened.value(
        "document.querySelector('[data-layer=\"0\"] button').getAttribute('aria-label')"
    )
    assert twin == "1: cat/03.png, cosine 1.000, identical file"
    click(opened, '[data-layer="1"] button')
    assert (
        opened.value("document.querySelector('#near-head').textContent") == "Nearest to cat/03.png"
    )
    assert opened.value("document.activeElement.id") == "near"


def test_weights_work_at_once(opened: Browser, folder: Path) -> None:
    """The fused column has the weighted mean of the cosines, and follows the sliders."""
    names, first = exact(folder, LAYERS[0])
    _, second = exact(folder, LAYERS[1])
    expect(column(opened, -1), names, (first + second) / 2, "cat/00.png")
    for number, weight in ((0, 0.25), (1, 0.5)):
        opened.value(
            f"(() => {{ const one = document.querySelector('[data-weight=\"{number}\"]');"
            f"one.value = {weight}; one.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
        )
    expect(column(opened, -1), names, (first + 2 * second) / 3, "cat/00.png")
    opened.wait("location.hash.includes('w=0.25%2C0.5')")
    opened.value(
        "for (const one of document.querySelectorAll('[data-weight]')) {"
        "one.value = 0; one.dispatchEvent(new Event('input', {bubbles: true})); }"
    )
    assert column(opened, -1) == []


def test_an_address_brings_its_state_back(opened: Browser, folder: Path) -> None:
    """Image, filter, label, weights and map stand in the address; going back goes back."""
    click(opened, '#grid [title="dog/00.png"]')
    click(opened, '#grid [title="cat/04.png"]')
    opened.value("history.back()")
    opened.wait("document.querySelector('#near-head').textContent === 'Nearest to dog/00.png'")
    words = "#i=cat%2F06.png&map=conv1_1&q=PNG&label=cat&w=0.5,1&v=0.4,0.6,3"
    opened.open("about:blank")
    opened.open((folder / "explore.html").as_uri() + words)
    assert (
        opened.value("document.querySelector('#near-head').textContent") == "Nearest to cat/06.png"
    )
    assert opened.value("document.querySelector('#found').textContent") == "8 of 13 match"
    assert opened.value("document.querySelector('#map-layer').selectedOptions[0].text") == "conv1_1"
    names, first = exact(folder, LAYERS[0])
    _, second = exact(folder, LAYERS[1])
    expect(column(opened, -1), names, (first / 2 + second) / 1.5, "cat/06.png")
    for nonsense in ("#i=none&map=x&w=a,b&v=1", "#w=9,9&v=NaN,0,2", "#%"):
        opened.open("about:blank")
        opened.open((folder / "explore.html").as_uri() + nonsense)
        assert len(column(opened, 0)) == 10


def test_filters_by_name_and_label(opened: Browser) -> None:
    """The grid shows what matches, and says how many."""
    titles = "[...document.querySelectorAll('#grid button')].map(one => one.title).join()"
    for query, label, expected in (
        ("03", "", "cat/03.png,dog/03.png"), ("03", "dog", "dog/03.png"),
        ("<SCRIPT", "", f"dog/{BAD}"), ("nothing", "", ""),
    ):  # fmt: skip
        opened.value(
            f"document.querySelector('#query').value = {json.dumps(query)};"
            f"document.querySelector('#label').value = {json.dumps(label)};"
            "for (const [id, event] of [['query', 'input'], ['label', 'change']])"
            "document.getElementById(id).dispatchEvent(new Event(event))"
        )
        assert opened.value(titles) == expected
        count = len(expected.split(",")) if expected else 0
        assert (
            opened.value("document.querySelector('#found').textContent") == f"{count} of 13 match"
        )


def test_by_keyboard(opened: Browser) -> None:
    """Arrows go within a list, Enter chooses; the map moves, zooms and chooses its middle."""
    focused = "document.activeElement.title"
    metrics = {"height": 800, "deviceScaleFactor": 1, "mobile": False}
    opened.send("Emulation.setDeviceMetricsOverride", width=500, **metrics)  # the grid has two rows
    opened.value("document.querySelector('#grid button').focus()")
    opened.press("ArrowRight")
    assert opened.value(focused) == "cat/01.png"
    opened.press("ArrowDown")
    below = opened.value(focused)
    assert below not in ("cat/00.png", "cat/01.png")
    opened.press("ArrowUp")
    assert opened.value(focused) == "cat/01.png"
    opened.send("Emulation.setDeviceMetricsOverride", width=1000, **metrics)
    opened.press("End")
    assert opened.value(focused) == "dog/twin.png"
    opened.press("Enter")
    assert (
        opened.value("document.querySelector('#near-head').textContent")
        == "Nearest to dog/twin.png"
    )
    opened.value("document.querySelector('[data-layer=\"-1\"] button').focus()")
    opened.press("ArrowRight")
    assert opened.value("+document.activeElement.closest('.column').dataset.layer") == 0
    said = opened.value("document.querySelector('[aria-live]').textContent")
    assert said.startswith("Nearest to dog/twin.png: by Together cat/03.png, by conv1_1 cat/03.png")
    opened.value("document.querySelector('#plane').focus()")
    opened.press("ArrowLeft")
    opened.press("Enter")
    opened.wait("location.hash.includes('v=')")
    assert opened.value("document.querySelector('#near-head').textContent").startswith(
        "Nearest to "
    )


def test_a_click_on_the_map_chooses(opened: Browser) -> None:
    """The image at the place that is clicked; a drag moves the map and chooses nothing."""
    place = (
        "(() => { const box = canvas.getBoundingClientRect(); const [x, y] = placeOf(7, frame());"
        "return JSON.stringify([box.left + x, box.top + y]); })()"
    )
    opened.value("canvas.scrollIntoView()")
    x, y = json.loads(opened.value(place))
    for kind in ("mousePressed", "mouseReleased"):
        opened.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    assert (
        opened.value("document.querySelector('#near-head').textContent") == "Nearest to cat/07.png"
    )
    opened.send("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left")
    opened.send("Input.dispatchMouseEvent", type="mouseMoved", x=x + 60, y=y, button="left")
    opened.send("Input.dispatchMouseEvent", type="mouseReleased", x=x + 60, y=y, button="left")
    moved, _ = json.loads(opened.value(place))
    assert moved == pytest.approx(x + 60, abs=1)
    assert (
        opened.value("document.querySelector('#near-head').textContent") == "Nearest to cat/07.png"
    )


def test_light_dark_and_narrow(opened: Browser) -> None:
    """Readable in both schemes, and no wider than a telephone; nothing is fetched."""
    opened.check_schemes_and_width()
    assert {url.split(":")[0] for url in opened.requests} <= {"file", "blob"}


def test_labels_most_and_layers(folder: Path, tmp_path: Path) -> None:
    """Labels from a file, some of the images, one layer, no fused column; images that are gone."""
    (tmp_path / "labels.csv").write_text("path,label\ncat/00.png,first\ndog/twin.png,last\n")
    report = explore(
        folder / "feats.h5", tmp_path / "e.html", layers="conv1_1", most=5,
        labels=tmp_path / "labels.csv", root=tmp_path,
    )  # fmt: skip
    assert (report.images, report.of, report.failed, report.pictures) == (5, 13, 1, 0)
    assert report.bytes == (tmp_path / "e.html").stat().st_size
    page = Page((tmp_path / "e.html").read_text(encoding="utf-8"))
    data = json.loads(page.scripts["data"])
    assert len(data["names"]) == 5
    assert data["labels"] == ["first"]
    assert len(data["missing"]) == 5
    assert "Together" not in page.text


def test_refusals(folder: Path, tmp_path: Path) -> None:
    """One line each, before any work, and no page."""
    for words, code, expected in (
        (["--out", "e.png"], 2, "end it in .html"),
        (["--out", "e.html", "--layers", "conv5_1"], 2, "no layer 'conv5_1'"),
        (["--out", "e.html", "--projection", "tsne"], 2, "projection"),
        (["--out", "e.html", "--most", "0"], 2, "most is 0"),
    ):  # fmt: skip
        done = vggfeat("explore", folder / "feats.h5", *words, cwd=tmp_path)
        assert_one_line(done, code, expected)
    assert os.listdir(tmp_path) == []
    cache = cache_of(tmp_path / "none.h5", {"conv1_1": drawn(3, 3, 4)}, states=[0, 0, 2])
    with pytest.raises(InputError, match="features of 0 images"):
        explore(cache, tmp_path / "e.html")
    cache = cache_of(tmp_path / "few.h5", {"conv1_1": drawn(3, 3, 4)})
    with pytest.raises((InputError, UsageError), match=r"5 or more|umap-learn"):
        explore(cache, tmp_path / "e.html", projection="umap")
