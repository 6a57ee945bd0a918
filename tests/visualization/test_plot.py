"""Pictures of maps and of caches, by what is drawn: arrays, counts, points, names."""

from __future__ import annotations

import os
import shutil
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any, cast

import h5py
import numpy as np
import pytest
import torch
from command_line import assert_one_line, vggfeat
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox
from matplotlib.patches import StepPatch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize
from torch.nn.functional import interpolate
from torchvision.models import vgg11
from torchvision.transforms import v2

from vggfeat.cache.reader import FeatureCache
from vggfeat.core.settings import Settings
from vggfeat.errors import InputError, UsageError
from vggfeat.visualization.feature_maps import (
    Channels,
    check_map_channels,
    last_convolutions,
    parse_channels,
    see,
)
from vggfeat.visualization.figure_files import FIGURE_FORMATS, to_bytes
from vggfeat.visualization.plot_cache import colour_by_folder, draw_cache
from vggfeat.visualization.plot_feature_maps import draw_maps, tile
from vggfeat.visualization.projections import BINS, plane_of, view_cache

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from numpy.typing import NDArray

    from vggfeat.visualization.feature_maps import SeenImage

SIZE = 64
NETWORK = ["--model", "vgg11", "--weights", "w.pth", "--size", str(SIZE), "--device", "cpu"]
LAYERS = {"conv1_1": 2, "conv2_1": 5, "pool3": 11}
"""Position in torchvision's `features` after which each layer is at hand."""

CHANNELS = (64, 128, 256)
SIDES = (64, 32, 8)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph-like image, weights of torchvision's own, and a cache of 24 images."""
    folder = tmp_path_factory.mktemp("plot")
    torch.manual_seed(0)
    torch.save(vgg11(weights=None).state_dict(), folder / "w.pth")
    noise = np.random.default_rng(0)
    coarse = noise.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((150, 100), Image.Resampling.BICUBIC).save(folder / "a.png")
    for number in range(24):
        place = folder / "images" / f"class{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 40)).save(place / f"{number:02}.png")
    (folder / "images" / "class0" / "broken.png").write_bytes(b"no image")
    for out, *more in (["f.h5"], ["i.h5", "--dtype", "int8"]):
        words = ["--model", "vgg11", "--weights", "w.pth", "--size", "32", "--device", "cpu",
                 "--workers", "0", "--precision", "float32", "-q", *more]  # fmt: skip
        layers = "conv1_1.pre,conv3_2,conv4_1:map"
        done = vggfeat("extract", "images", *words, "--layers", layers, "-o", out, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def settings(folder: Path, **more: Any) -> Settings:
    given = {"layers": ",".join(LAYERS), "model": "vgg11", "weights": str(folder / "w.pth"),
             "size": SIZE, "device": "cpu", **more}  # fmt: skip
    return Settings(**given)


@pytest.fixture(scope="module")
def seen(workplace: Path) -> SeenImage:
    return see(str(workplace / "a.png"), settings(workplace))


@pytest.fixture(scope="module")
def reference(workplace: Path) -> dict[str, NDArray[np.float32]]:
    """The maps of torchvision's network on the image as torchvision prepares it."""
    network = vgg11(weights=None).eval()
    network.load_state_dict(torch.load(workplace / "w.pth", weights_only=True))
    prepare = v2.Compose([
        v2.Resize(73), v2.CenterCrop(SIZE), v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    with Image.open(workplace / "a.png") as image, torch.no_grad():
        inputs = prepare(image.convert("RGB"))[None]
        return {
            name: network.features[:end](inputs)[0].numpy().copy() for name, end in LAYERS.items()
        }


def panels(figure: Figure) -> list[Axes]:
    """All axes that show images, in their order; scales belong to them and are no panels."""
    return [axes for axes in figure.axes if axes.images and axes.get_title()]


def drawn(axes: Axes) -> NDArray[np.float32]:
    """The topmost array of a panel."""
    array = axes.images[-1].get_array()
    assert array is not None
    return np.asarray(np.ma.filled(array, np.nan), dtype=np.float32)


def test_maps_are_those_of_torchvision(
    seen: SeenImage, reference: dict[str, NDArray[np.float32]]
) -> None:
    """Every map is what torchvision's network gives for the same image."""
    assert [one.layer for one in seen.maps] == list(LAYERS)
    for one in seen.maps:
        np.testing.assert_allclose(one.values, reference[one.layer], rtol=1e-4, atol=1e-5)


def test_a_panel_shows_the_mean(seen: SeenImage, reference: dict[str, NDArray[np.float32]]) -> None:
    """The input is drawn as it is, and each layer as the mean of its channels, on its own scale."""
    figure = draw_maps(seen, Channels())
    first, *others = panels(figure)
    assert np.array_equal(first.images[0].get_array(), seen.pixels)  # type: ignore[arg-type] # an array
    assert first.get_title() == "input   3 x 64 x 64"
    for axes, (name, values), channels, side in zip(
        others, reference.items(), CHANNELS, SIDES, strict=True
    ):
        mean = values.mean(axis=0)
        np.testing.assert_allclose(drawn(axes), mean, rtol=1e-4, atol=1e-5)
        assert axes.get_title() == f"{name}   {channels} x {side} x {side}, mean"
        assert axes.images[-1].get_clim() == pytest.approx((mean.min(), mean.max()), rel=1e-4)
        assert axes.images[-1].get_cmap().name == "viridis"
        scale = axes.child_axes[0]
        assert scale.get_ylim() == pytest.approx(axes.images[-1].get_clim())


def test_an_overlay_is_the_map_at_the_size_of_the_image(
    seen: SeenImage, reference: dict[str, NDArray[np.float32]]
) -> None:
    """Over the image in grey lies each map, resized as torch resizes it, the clearer the lower."""
    for axes, values in zip(
        panels(draw_maps(seen, Channels(), overlay=True))[1:], reference.values(), strict=True
    ):
        mean = torch.from_numpy(values.mean(axis=0))[None, None]
        expected = interpolate(mean, (SIZE, SIZE), mode="bilinear", align_corners=False)
        np.testing.assert_allclose(drawn(axes), expected[0, 0], rtol=1e-4, atol=1e-5)
        grey = np.asarray(Image.fromarray(seen.pixels).convert("L"))
        assert np.array_equal(axes.images[0].get_array(), grey)  # type: ignore[arg-type] # an array
        alpha = np.asarray(axes.images[-1].get_alpha())
        shown = np.asarray(drawn(axes), dtype=float)
        share = (shown - shown.min()) / (shown.max() - shown.min())
        np.testing.assert_allclose(alpha, share * alpha.max(), atol=1e-5)
        assert 0.7 < alpha.max() < 1
        assert axes.child_axes[0].get_ylabel() == "mean activation"


@pytest.mark.parametrize("text", ["top:16", "3,17,60", "63"])
def test_channels_are_drawn_with_their_numbers(
    seen: SeenImage, reference: dict[str, NDArray[np.float32]], text: str
) -> None:
    """The channels with the largest means, largest first, or those asked for, each numbered."""
    figure = draw_maps(seen, parse_channels(text))
    for axes, (name, values) in zip(panels(figure)[1:], reference.items(), strict=True):
        means = values.mean(axis=(1, 2))
        numbers = (
            sorted(range(len(means)), key=lambda one: -means[one])[:16]
            if text == "top:16"
            else [int(word) for word in text.split(",")]
        )
        shown = [word.get_text().removeprefix("channel ") for word in axes.texts]
        assert shown == list(map(str, numbers)), name
        array = drawn(axes)
        parts = tile(values[numbers])
        height, width = parts.shape
        found = [array[top : top + height, left : left + width] for top, left in parts.corners]
        np.testing.assert_allclose(found, values[numbers], rtol=1e-4, atol=1e-5)
        assert np.isfinite(array).sum() == height * width * len(numbers)


def test_layers_by_default(workplace: Path) -> None:
    """Without layers the last convolution of each block is drawn."""
    assert last_convolutions("vgg16") == "conv1_2,conv2_2,conv3_3,conv4_3,conv5_3"
    words = ["plot", "a.png", *NETWORK, "-o", "default.svg"]
    done = vggfeat(*words, cwd=workplace)
    assert (done.returncode, done.stdout) == (0, "default.svg: a.png\n"), done.stderr
    svg = (workplace / "default.svg").read_text()
    for name in ("conv1_1", "conv2_1", "conv3_2", "conv4_2", "conv5_2"):
        assert f"<!-- {name} " in svg


def test_pictures_of_maps(workplace: Path, tmp_path: Path) -> None:
    """The command writes png, svg and pdf by the name, of their size, with every name in them."""
    for form in ("png", "svg", "pdf"):
        out = str(tmp_path / f"m.{form}")
        words = ["--layers", ",".join(LAYERS), "--overlay", "-o", out]
        done = vggfeat("plot", "a.png", *NETWORK, *words, cwd=workplace)
        assert (done.returncode, done.stderr) == (0, "")
    assert sorted(os.listdir(tmp_path)) == ["m.pdf", "m.png", "m.svg"]
    with Image.open(tmp_path / "m.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (2130, 600))
    svg = (tmp_path / "m.svg").read_text()
    assert ET.fromstring(svg).tag.endswith("}svg")
    for text in ("input   3 x 64 x 64", "conv1_1   64 x 64 x 64, mean", "pool3   256 x 8 x 8, mean",
                 "a.png  (vgg11, w.pth)"):  # fmt: skip
        assert f"<!-- {text} -->" in svg
    assert (tmp_path / "m.pdf").read_bytes().startswith(b"%PDF-")


@pytest.mark.parametrize("form", FIGURE_FORMATS)
def test_equal_figures_are_equal_files(form: str) -> None:
    """A figure written twice is the same file: no time, no names drawn at random."""
    figure = Figure()
    figure.subplots().hist([1, 2, 2], clip_on=True)
    first = to_bytes(figure, form)
    assert first == to_bytes(figure, form)
    assert b"dc:date" not in first
    assert b"CreationDate" not in first


def test_a_whole_image_keeps_its_shape(workplace: Path) -> None:
    """With crop none the maps are as wide as the image, and so are the panels."""
    found = see(str(workplace / "a.png"), settings(workplace, crop="none", layers="pool3"))
    assert found.pixels.shape == (64, 96, 3)
    assert found.maps[0].values.shape == (256, 8, 12)
    figure = draw_maps(found, Channels())
    width, height = figure.get_size_inches()
    assert width > 2 * height


def test_random_weights_are_told(workplace: Path, tmp_path: Path) -> None:
    """Maps of random weights come with the warning that they mean nothing."""
    words = ["--weights", "random:0", "--model", "vgg11", "--size", "32", "--layers", "conv1_1"]
    done = vggfeat("plot", "a.png", *words, "-o", tmp_path / "m.png", cwd=workplace)
    assert done.returncode == 0
    assert "vggfeat: warning: RANDOM WEIGHTS (seed 0)" in done.stderr
    found = see(str(workplace / "a.png"), settings(workplace, weights="random:3"))
    title = draw_maps(found, Channels()).get_suptitle().replace("\n", " ")
    assert title.startswith("RANDOM WEIGHTS (seed 3): these features carry no learnt meaning a.png")


def done_rows(path: Path, layer: str) -> NDArray[np.float32]:
    """Values of the rows that are done, by h5py alone."""
    with h5py.File(path) as file:
        rows = np.flatnonzero(file["images/state"][:] == 1)
        assert len(rows) == 24
        values = file["features"][layer][:][rows].astype(np.float32)
        if "scales" in file:
            shape = (-1, *[1] * (values.ndim - 2))
            scale, offset = (file[f"{kind}/{layer}"][:].reshape(shape)
                             for kind in ("scales", "offsets"))  # fmt: skip
            values = values * scale + offset
    return np.asarray(values, dtype=np.float32)


def planes(figure: Figure) -> list[Axes]:
    """Those that have the layers' names, in their order."""
    return [axes for axes in figure.axes if axes.get_title()]


def histograms(figure: Figure) -> list[Axes]:
    """Those below the planes."""
    return [axes for axes in figure.axes if not axes.get_title()]


@pytest.mark.parametrize("name", ["f.h5", "i.h5"])
def test_histograms_count_every_value(workplace: Path, name: str) -> None:
    """Bars are numpy.histogram's counts of the values that h5py reads, with zeros and range."""
    cache = FeatureCache(workplace / name)
    figure = draw_cache(view_cache(cache))
    for axes, layer in zip(histograms(figure), cache.layers, strict=True):
        values = done_rows(workplace / name, layer)
        counts, edges = np.histogram(values, bins=BINS)
        (bars,) = (patch for patch in axes.patches if isinstance(patch, StepPatch))
        found = cast("Any", bars.get_data())  # a named tuple, which the stubs do not know
        assert np.array_equal(found.values, counts)
        np.testing.assert_allclose(found.edges, edges, rtol=1e-6)
        assert axes.get_yscale() == "log"
        zeros = f"{(values == 0).mean():.1%} zeros"
        span = f"{values.min():.4g} to {values.max():.4g}, {zeros}"
        assert axes.get_xlabel() == f"value, of 24 images: {span}"


def test_planes_are_principal_components(workplace: Path) -> None:
    """Points are, but for signs, scikit-learn's PCA of unit vectors, of maps of their means."""
    cache = FeatureCache(workplace / "f.h5")
    figure = draw_cache(view_cache(cache), marks="folders")
    for axes, layer in zip(planes(figure), cache.layers, strict=True):
        assert axes.get_title().startswith(f"{layer}   ")
        values = done_rows(workplace / "f.h5", layer)
        vectors = normalize(values.reshape(*values.shape[:2], -1).mean(axis=2).astype(float))
        model = PCA(2).fit(vectors)
        expected = model.transform(vectors)
        found = np.asarray(axes.collections[0].get_offsets())
        signs = np.sign((found * expected).sum(axis=0))
        np.testing.assert_allclose(found * signs, expected, atol=1e-5)
        share = model.explained_variance_ratio_
        first, second = (
            f"principal component {k + 1} ({share[k]:.0%} of the variance)" for k in (0, 1)
        )
        assert axes.get_xlabel() == f"{first}: similar images are near one another"
        assert axes.get_ylabel() == second


def test_a_sample_is_spread_over_the_cache(workplace: Path) -> None:
    """Of a large cache as many images are in a plane as asked for, and the title says so."""
    view = view_cache(FeatureCache(workplace / "f.h5"), layers="conv3_2", sample=6)
    assert view.rows.tolist() == [0, 4, 9, 13, 17, 21]  # every fourth without row 8, the broken one
    figure = draw_cache(view, marks="folders")
    (axes,) = planes(figure)
    assert len(np.asarray(axes.collections[0].get_offsets())) == 6
    assert figure.get_suptitle() == "f.h5  (vgg11, w.pth), 6 of 25 images in the planes"
    assert len(figure.axes) == 2


def boxes(axes: Axes) -> list[AnnotationBbox]:
    return [artist for artist in axes.artists if isinstance(artist, AnnotationBbox)]


def test_images_are_shown_where_they_are_found(workplace: Path, tmp_path: Path) -> None:
    """Each thumbnail is the image of its point; an image whose file is gone is a dot."""
    shutil.copytree(workplace / "images", tmp_path / "images")
    for name in ("class0/00.png", "class1/01.png"):
        (tmp_path / "images" / name).unlink()
    (tmp_path / "images" / "class2" / "02.png").write_bytes(b"no image any more")
    cache = FeatureCache(workplace / "f.h5")
    view = view_cache(cache, layers="conv3_2")
    (axes,) = planes(draw_cache(view, root=str(tmp_path / "images")))
    offsets = np.asarray(axes.collections[0].get_offsets())
    names = [cache.name(row) for row in view.rows.tolist()]
    sizes = cast("PathCollection", axes.collections[0]).get_sizes()
    assert len(boxes(axes)) > 12
    thumbnails = set()
    for box in boxes(axes):
        (at,) = np.flatnonzero(np.isclose(offsets, box.xy).all(axis=1))
        thumbnails.add(names[at])
        with Image.open(tmp_path / "images" / names[at]) as image:
            assert np.array_equal(np.asarray(image), box.offsetbox.get_data())  # type: ignore[attr-defined] # an OffsetImage
    assert not thumbnails & {"class0/00.png", "class1/01.png", "class2/02.png"}
    dots = {name for name, size in zip(names, sizes, strict=True) if size > 0}
    assert dots == set(names) - thumbnails
    assert not boxes(planes(draw_cache(view, marks="folders"))[0])


def test_colours_tell_folders() -> None:
    """The folders with most images have colours of their own, however many folders there are."""
    few = colour_by_folder(["a/1", "b/2", "a/3", "4"])
    assert list(few.legend) == ["(no folder)", "a", "b"]
    assert few.colours == tuple(few.legend[name] for name in ("a", "b", "a", "(no folder)"))
    assert len(set(few.legend.values())) == 3
    assert colour_by_folder(["a/1", "a/2"]).legend == {}
    many = colour_by_folder(
        [f"{number:02}/{copy}" for number in range(20) for copy in range(20 - number)]
    )
    assert list(many.legend) == [*(f"{number:02}" for number in range(7)), "other folders"]
    assert len(set(many.legend.values())) == 8
    assert set(many.colours[-20:]) == {many.legend["other folders"]}


def test_a_legend_names_the_folders(workplace: Path) -> None:
    """What a colour stands for is written below, in the colours of the points."""
    figure = draw_cache(view_cache(FeatureCache(workplace / "f.h5"), layers="conv3_2"))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["class0", "class1", "class2"]


def test_pictures_of_caches(workplace: Path, tmp_path: Path) -> None:
    """The command writes png, svg and pdf by the name, with layers, folders and the file's name."""
    for form in ("png", "svg", "pdf"):
        out = tmp_path / f"c.{form}"
        done = vggfeat("plot", "f.h5", "--layers", "conv3_2,conv4_1:map", "-o", out, cwd=workplace)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{out}: f.h5\n", "")
    assert sorted(os.listdir(tmp_path)) == ["c.pdf", "c.png", "c.svg"]
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.size == (1980, 1215)
    svg = (tmp_path / "c.svg").read_text()
    for text in ("conv3_2   256, float16", "conv4_1:map   512 x 4 x 4, float16", "class2",
                 "similar images are near one another"):  # fmt: skip
        assert text in svg


def test_names_are_no_formulas(workplace: Path, tmp_path: Path) -> None:
    """Dollars, undecodable bytes and great length in names are drawn as they are, or shortened."""
    name = b"$\\frac$_\xff_" + b"x" * 200 + b".png"
    folder = tmp_path / "images" / "$a_{"
    folder.mkdir(parents=True)
    for number in range(4):
        shutil.copy(workplace / "images" / "class0" / f"{3 * number:02}.png", folder)
    shutil.copy(workplace / "a.png", tmp_path / os.fsdecode(name))
    shutil.copy(workplace / "a.png", tmp_path / "images" / "b.png")
    words = ["--model", "vgg11", "--weights", "random:0", "--size", "32", "--device", "cpu"]
    done = vggfeat("plot", os.fsdecode(name), *words, "-o", "m.svg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "<!-- $\\frac$_\\xff_xxxxxxxxx...xxxxxxxxxxx.png" in (tmp_path / "m.svg").read_text()
    done = vggfeat("extract", "images", *words, "--layers", "conv1_1", "-o", "f.h5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = vggfeat("plot", "f.h5", "-o", "c.svg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "<!-- $a_{ -->" in (tmp_path / "c.svg").read_text()


def test_too_few_images_for_a_plane(workplace: Path, tmp_path: Path) -> None:
    """Of few images, of none, or of equal ones the rest is drawn, and why there is no plane."""
    layer = "conv3_2"
    for name, states, words in (
        ("two.h5", [1, 1], "no plane: 2 images of 256 values; 3 are needed"),
        ("none.h5", [], "no plane: 0 images of 256 values; 3 are needed"),
        ("same.h5", [1, 1, 1, 1], "no plane: all 4 rows are the same"),
    ):
        shutil.copy(workplace / "f.h5", tmp_path / name)
        with h5py.File(tmp_path / name, "r+") as file:
            file["images/state"][:] = states + [0] * (25 - len(states))
            file["features"][layer][:] = 0.5
        view = view_cache(FeatureCache(tmp_path / name), layers=layer)
        assert view.layers[0].plane.note.startswith(words)
        assert (view.layers[0].histogram is None) == (not states)
        done = vggfeat("plot", name, "--layers", layer, "-o", f"{name}.svg", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert words in (tmp_path / f"{name}.svg").read_text()


def test_umap_keeps_neighbours_together() -> None:
    """By UMAP, where it is installed, two far heaps stay two heaps, and twice alike."""
    pytest.importorskip("umap")
    heaps = np.random.default_rng(0).normal(0, 0.05, (40, 8)).astype(np.float32)
    heaps[:20, 0] += 1
    heaps[20:, 1] += 1
    points = plane_of(heaps, "umap").points
    assert points.shape == (40, 2)
    apart = np.linalg.norm(points[:20].mean(axis=0) - points[20:].mean(axis=0))
    wide = max(np.linalg.norm(part - part.mean(axis=0), axis=1).max()
               for part in (points[:20], points[20:]))  # fmt: skip
    assert apart > wide
    assert np.array_equal(points, plane_of(heaps, "umap").points)


def test_channels_that_cannot_be(workplace: Path) -> None:
    """Text that names no channels, or ones that a layer has not, is refused with the reason."""
    for text, words in (
        ("", "channels '': expected mean, top:16, or numbers"),
        ("top", "channels 'top': expected"),
        ("top:0", "expected one number from 1 on"),
        ("top:1,2", "expected one number from 1 on"),
        ("top:145", "are 145; at most 144 can be drawn"),
        ("-1", "channels '-1': expected"),
    ):
        with pytest.raises(UsageError, match=words):
            parse_channels(text)
    with pytest.raises(UsageError, match=r"channel 64 is not in every layer: conv1_1 has 0 to 63$"):
        check_map_channels(parse_channels("3,64"), settings(workplace))
    with pytest.raises(UsageError, match=r"conv1_1:gem, fc7 has no map to draw"):
        see("a.png", settings(workplace, layers="conv1_1:gem,conv2_1,fc7"))
    with pytest.raises(InputError, match=r"'no\.png' cannot be plotted: .*; expected an image or"):
        see("no.png", settings(workplace))


def test_exit_codes(workplace: Path, tmp_path: Path) -> None:
    """Errors are one line and the exit code of their kind, and leave nothing behind."""
    (tmp_path / "dir.png").mkdir()
    (tmp_path / "without" / "matplotlib").mkdir(parents=True)
    (tmp_path / "without" / "matplotlib" / "__init__.py").write_text("raise ImportError('gone')")
    (tmp_path / "without" / "umap.py").write_text("raise ImportError('gone')")
    before = sorted(os.listdir(tmp_path))
    path = os.pathsep.join([str(tmp_path / "without"), os.environ.get("PYTHONPATH", "")])
    out = str(tmp_path / "p.png")
    for code, words, message in (
        (2, ["a.png", "-o", "p.gif"], "has no known format; end it in .png or .svg or .pdf"),
        (2, ["a.png", "-o", "none/p.png"], "does not exist; create it first"),
        (2, ["a.png", "-o", out, "--marks", "folders", "--sample", "0"],
         "--marks, --sample is for caches, and 'a.png' is not one"),
        (2, ["f.h5", "-o", out, "--overlay", "--model", "vgg11"],
         "--overlay, --model is for images, and 'f.h5' is not one"),
        (2, ["f.h5", "-o", out, "--projection", "tsne"], "expected one of pca, umap"),
        (2, ["f.h5", "-o", out, "--marks", "x"], "expected one of thumbnails, folders"),
        (2, ["f.h5", "-o", out, "--sample", "0"], "sample is 0; expected 1 or more"),
        (2, ["f.h5", "-o", out, "--layers", ","], "no layers requested"),
        (3, ["images/class0/broken.png", *NETWORK, "-o", out], "cannot be plotted: not an image"),
        (3, ["gone.jpg", *NETWORK, "-o", out], "'gone.jpg' cannot be plotted"),
        (3, ["gone.h5", "-o", out], "cache 'gone.h5' does not exist"),
        (2, ["f.h5", "-o", out, "--layers", "fc7"], "has no layer"),
        (2, ["f.h5", "-o", str(tmp_path / "dir.png")], "dir.png' is a folder, expected"),
    ):  # fmt: skip
        assert_one_line(vggfeat("plot", *words, cwd=workplace), code, message)
    for words, message in (
        (["a.png"], "[plot]'"),
        (["f.h5", "--projection", "umap"], "[plot]'"),
    ):
        done = vggfeat("plot", *words, "-o", out, cwd=workplace, env={"PYTHONPATH": path})
        assert_one_line(done, 2, "(gone): pip install '", message)
    shutil.rmtree(tmp_path / "without" / "matplotlib")
    words = ["f.h5", "--projection", "umap", "-o", out]
    done = vggfeat("plot", *words, cwd=workplace, env={"PYTHONPATH": path})
    assert_one_line(done, 2, "projection umap needs umap-learn (gone): pip install '", "[umap]'")
    assert sorted(os.listdir(tmp_path)) == before
