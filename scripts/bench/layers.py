"""What each layer finds again: altered photographs as queries, by every layer and pool.

layers.py WEIGHTS PHOTOS [--gallery FOLDER]...

vgg16's convolutions, normalised as `--transform features` does. Altered photographs are queries for
their originals, among the photographs alone and with all images of the gallery's folders.

Prints the tables of docs/LAYERS.md: mean average precision, and the share of altered photographs
whose nearest neighbour is their own; how far a layer's similarity goes along with that of colours
and of textures; what fusing and reducing bring, with bootstrap intervals over the photographs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from ranking import Way, class_precisions, own_precisions, shown

import vggfeat
from vggfeat.core.preprocessing import CORRUPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from ranking import Scores
    from ranking import Values as Rows

    Values = NDArray[np.float64]
    Represent = Callable[[Path], Rows]  # a cache to one unit vector an image

BLOCKS = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")
DEVIATIONS = tuple(f"{layer}:std" for layer in BLOCKS)
POOLS = ("avg", "max", "std", "gem", "rmac")
DEEP = tuple(
    f"{layer}:{pool}".removesuffix(":avg") for layer in ("conv4_3", "conv5_3") for pool in POOLS
)
EASY = ("mirror", "crop", "grey", "darken", "jpeg")
HARD = ("zoom", "rotate", "recolour", "invert", "blur", "noise", "shuffle", "occlude")
SPECS = ",".join(dict.fromkeys((*BLOCKS, *DEVIATIONS, *DEEP)))
CHANGES = ("original", "recolour", "invert", "blur", "noise", "shuffle")
THREE = BLOCKS[2:]
STYLE = tuple(one for layer in BLOCKS[:4] for one in (layer, f"{layer}:std"))
PAIRS = (
    ("same-picture", "best single layer"),
    ("same-picture", "joined by l2"),
    ("same-picture", "conv5_3, ssr"),
    ("joined by l2", "best single layer"),
    ("same-picture", "similar-style"),
)
"""Ways whose difference is shown, each with its interval."""


def main() -> None:
    """Extracts every corruption once, then prints table after table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--gallery", type=Path, action="append", default=[])
    parser.add_argument("--keep", help="folder to keep the caches in")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given.keep or temporary)
        folder.mkdir(exist_ok=True)
        for name in ("original", *CORRUPTIONS):
            extract(given.weights, given.photos, folder / f"{name}.h5", name)
        others = [folder / f"{source.name}.h5" for source in given.gallery]
        for source, cache in zip(given.gallery, others, strict=True):
            extract(given.weights, source, cache, "original")
        (folder / "gallery.h5").unlink(missing_ok=True)
        vggfeat.merge([folder / "original.h5", *others], folder / "gallery.h5", keep_paths=True)
        check_against_compare(folder)
        print_corruptions(folder, BLOCKS)
        print_corruptions(folder, DEEP)
        print_correlations(folder, given.photos)
        print_ways(folder)
        print_changes(folder)


def extract(weights: str, images: Path, out: Path, name: str) -> None:
    """The cache of a folder under one corruption."""
    settings = vggfeat.Settings(
        layers=SPECS, model="vgg16", weights=weights, transform="features", dtype="float32",
        augment="" if name == "original" else name,
    )  # fmt: skip
    vggfeat.extract(images, out, settings)


def single(way: Way) -> Represent:
    """The vectors of a way that needs nothing fitted."""
    return lambda cache: way.rows([vggfeat.open(cache)])


def precisions(folder: Path, database: str, name: str, represent: Represent) -> Scores:
    """The average precision of each altered photograph for its original in `<database>.h5`."""
    paths = [folder / f"{one}.h5" for one in (name, database)]
    altered, searched = (vggfeat.open(path) for path in paths)
    at = {searched.name(row): row for row in range(len(searched))}
    own = np.array([at[altered.name(row)] for row in range(len(altered))])
    queries, gallery = (represent(path) for path in paths)
    return own_precisions(queries, gallery, own)


def check_against_compare(folder: Path) -> None:
    """`vggfeat compare` finds the same means."""
    gallery, queries = folder / "gallery.h5", folder / "zoom.h5"
    for one in vggfeat.compare([gallery], queries=[queries], fusions="none").candidates:
        found = precisions(folder, "gallery", "zoom", single(Way((one.name,))))
        assert abs(one.mean_average_precision - found.mean()) < 1e-6, one.name


def print_corruptions(folder: Path, layers: tuple[str, ...]) -> None:
    """Mean average precision of each layer for each corruption; queries are the altered ones."""
    images = len(vggfeat.open(folder / "gallery.h5"))
    print(f"\namong {images} images")
    print(f"| corruption | {' | '.join(layers)} |\n|{'---|' * (len(layers) + 1)}")
    for name in CORRUPTIONS:
        cells = []
        for layer in layers:
            found = precisions(folder, "gallery", name, single(Way((layer,))))
            cells.append(f"{found.mean():.2f} ({np.mean(found == 1):.0%})")
        print(f"| {name} | {' | '.join(cells)} |")


def print_correlations(folder: Path, photos: Path) -> None:
    """Spearman's rank correlation over all pairs of photographs with plain image statistics."""
    cache = vggfeat.open(folder / "original.h5")
    images = [Image.open(os.path.join(photos, cache.name(row))).convert("RGB") for row in
              range(len(cache))]  # fmt: skip
    statistics = {
        "colours": similarities([colours(image) for image in images]),
        "edge directions": similarities([directions(image) for image in images]),
        "layout": similarities([layout(image) for image in images]),
    }
    print(f"\n| layer | {' | '.join(statistics)} |\n|{'---|' * (len(statistics) + 1)}")
    upper = np.triu_indices(len(images), 1)
    for layer in (*BLOCKS, *DEVIATIONS):
        own = similarities(list(cache.values(layer).astype(np.float64)))[upper]
        cells = [f"{spearman(own, other[upper]):.2f}" for other in statistics.values()]
        print(f"| {layer} | {' | '.join(cells)} |")


def similarities(rows: list[Values]) -> Values:
    """Cosines of all pairs, (n, n), of rows around their mean."""
    centred = np.stack(rows) - np.mean(rows, 0)
    unit: Values = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    product: Values = unit @ unit.T
    return product


def colours(image: Image.Image) -> Values:
    """Roots of a histogram of 8 x 8 x 8 colours."""
    pixels = np.asarray(image.resize((64, 64))).reshape(-1, 3) // 32
    counts = np.bincount(pixels @ np.array([64, 8, 1]), minlength=512)
    roots: Values = np.sqrt(counts / counts.sum())
    return roots


def directions(image: Image.Image) -> Values:
    """Roots of a histogram of gradient directions, weighted by their strength."""
    grey = np.asarray(image.convert("L").resize((224, 224)), dtype=np.float64)
    down, across = np.gradient(grey)
    angle = (np.arctan2(down, across) % np.pi) / np.pi * 18
    weight = np.hypot(down, across)
    counts = np.bincount(angle.astype(int).ravel() % 18, weight.ravel(), minlength=18)
    roots: Values = np.sqrt(counts / counts.sum())
    return roots


def layout(image: Image.Image) -> Values:
    """Brightness at 8 x 8 places."""
    return np.asarray(image.convert("L").resize((8, 8)), dtype=np.float64).ravel()


def spearman(a: Values, b: Values) -> float:
    """Rank correlation."""
    one, other = (np.argsort(np.argsort(values)).astype(np.float64) for values in (a, b))
    return float(np.corrcoef(one, other)[0, 1])


def print_ways(folder: Path) -> None:
    """Mean average precision of single layers, fusions and reductions where it is not easy."""
    print(
        f"\n| method | width | {' | '.join(HARD)} | mean, few | mean |\n|{'---|' * (len(HARD) + 4)}"
    )
    means: dict[str, Scores] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, represent in ways(folder, Path(temporary)).items():
            few = [precisions(folder, "original", one, represent) for one in HARD]
            many = [precisions(folder, "gallery", one, represent) for one in HARD]
            means[name] = np.mean(many, 0)  # of each photograph
            width = represent(folder / "original.h5").shape[1]
            cells = " | ".join(f"{found.mean():.2f}" for found in many)
            print(f"| {name} | {width} | {cells} | {np.mean(few):.3f} | {shown(means[name])} |")
    means["best single layer"] = max((means[one] for one in (*BLOCKS, *DEEP)), key=np.mean)
    for one, other in PAIRS:
        print(f"{one} less {other}: {shown(means[one] - means[other], signed=True)}")


def print_changes(folder: Path) -> None:
    """How well photographs find others under the same change, among all under all changes."""
    caches = [vggfeat.open(folder / f"{name}.h5") for name in CHANGES]
    labels = np.repeat(np.array(CHANGES), len(caches[0]))
    print(f"\n{len(labels)} images under {len(CHANGES)} changes")
    plain = [Way((layer,)) for layer in BLOCKS]
    joined = [Way(BLOCKS[2:4]), Way(THREE, "ssr"), Way(BLOCKS[:4], "ssr"),
              Way(DEVIATIONS[:4], "ssr"), Way(STYLE, "ssr")]  # fmt: skip
    for way in (*plain, *joined):
        print(f"| {way} | {shown(class_precisions(way.rows(caches), labels)[0])} |")


def fused(folder: Path, at: Path, layers: tuple[str, ...], **more: Any) -> Represent:
    """The vectors of a fusion: its weights are fitted to pairs, its norms to the gallery."""
    settings = vggfeat.FuseSettings(layers=",".join(layers), **more)
    make = partial(vggfeat.fuse, dtype="float32")
    return derived(
        make, settings, folder / f"{'original' if settings.learns else 'gallery'}.h5", at
    )


def reduced(folder: Path, at: Path, layer: str, dims: int, *, whiten: bool) -> Represent:
    """The vectors of a layer reduced by PCA, which is fitted to the gallery."""
    settings = vggfeat.ReduceSettings(layers=layer, dims=dims, whiten=whiten)
    make = partial(vggfeat.reduce, dtype="float32")
    return derived(make, settings, folder / "gallery.h5", at)


def derived(make: Callable[..., Any], settings: Any, fitted_to: Path, at: Path) -> Represent:
    """Fits a model once, if there is something to fit, and makes caches by it below `at`."""
    at.mkdir()
    make(fitted_to, at / "fitted.h5", settings)
    model = at / "fitted.model.h5"

    def represent(cache: Path) -> Rows:
        out = at / cache.name
        if not out.exists():
            if model.exists():
                make(cache, out, use=model)
            else:
                make(cache, out, settings)
        made = vggfeat.open(out)
        return Way(made.layers).rows([made])

    return represent


def ways(folder: Path, at: Path) -> dict[str, Represent]:
    """What is compared; weights are learnt from corruptions that are not among those judged by."""
    pairs = tuple(str(folder / f"{name}.h5") for name in EASY)
    plain = {
        "joined by l2": Way(THREE),
        "same-picture": Way(THREE, "ssr"),
        "all five by l2": Way(BLOCKS),
        "all five by ssr": Way(BLOCKS, "ssr"),
        "conv4_3, conv5_3 by ssr": Way(BLOCKS[3:], "ssr"),
        "conv4_3:gem, conv5_3:gem by l2": Way(("conv4_3:gem", "conv5_3:gem")),
        "conv4_3:max, conv5_3:max by l2": Way(("conv4_3:max", "conv5_3:max")),
        "similar-style": Way(STYLE, "ssr"),
        "conv4_3, ssr": Way(("conv4_3",), "ssr"),
        "conv5_3, ssr": Way(("conv5_3",), "ssr"),
    }
    layers = {layer: single(Way((layer,))) for layer in dict.fromkeys((*BLOCKS, *DEEP))}
    return {
        **layers,
        **{name: single(way) for name, way in plain.items()},
        "joined, norm none": fused(folder, at / "fuse-none", THREE, norm="none"),
        "joined, norm standard": fused(folder, at / "fuse-standard", THREE, norm="standard"),
        "joined by l2, weights 1,2,1": fused(
            folder, at / "fuse-weights", THREE, method="weighted", weights=(1.0, 2.0, 1.0)
        ),
        "joined by l2, weights learned": fused(
            folder, at / "fuse-pairs", THREE, method="weighted", pairs=pairs
        ),
        "joined by l2, attention": fused(
            folder, at / "fuse-attention-pairs", THREE, method="attention", pairs=pairs
        ),
        "joined by l2, sum, 32 wide": fused(folder, at / "fuse-sum", THREE, method="sum", width=32),
        "all five by l2, weights learned": fused(
            folder, at / "fuse-five-pairs", BLOCKS, method="weighted", pairs=pairs
        ),
        "conv5_3 by PCA to 32": reduced(folder, at / "pca", "conv5_3", 32, whiten=False),
        "conv5_3 whitened to 32": reduced(folder, at / "whitened", "conv5_3", 32, whiten=True),
    }


if __name__ == "__main__":
    main()
