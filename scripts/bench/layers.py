"""What each layer finds again: altered photographs as queries, by every layer and pool.

layers.py WEIGHTS PHOTOS    vgg16's convolutions, normalised as `--transform features` does

Prints the tables of docs/LAYERS.md: mean average precision, and the share of altered photographs
whose nearest neighbour among all photographs is their own; how far a layer's similarity goes along
with that of colours and of textures; what fusing and reducing bring.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import vggfeat
from vggfeat.core.preprocessing import CORRUPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vggfeat.retrieval.compare import Candidate

    Make = Callable[[Path, Path, Path | None], int]
    Values = NDArray[np.float64]

BLOCKS = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")
POOLS = ("avg", "max", "gem", "rmac")
DEEP = tuple(f"{layer}:{pool}" for layer in ("conv4_3", "conv5_3") for pool in POOLS)
EASY = ("mirror", "crop", "grey", "darken", "jpeg")
HARD = ("zoom", "rotate", "recolour", "invert", "blur", "noise", "shuffle", "occlude")
SPECS = ",".join((*BLOCKS, *(spec.replace(":avg", "") for spec in DEEP)))


def main() -> None:
    """Extracts every corruption once, then prints table after table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("photos")
    parser.add_argument("--keep", help="folder to keep the caches in")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given.keep or temporary)
        folder.mkdir(exist_ok=True)
        for name in ("original", *CORRUPTIONS):
            extract(given.weights, given.photos, folder, name)
        print_corruptions(folder, BLOCKS)
        print_corruptions(folder, tuple(spec.replace(":avg", "") for spec in DEEP))
        print_correlations(folder, Path(given.photos))
        print_ways(folder)


def extract(weights: str, photos: str, folder: Path, name: str) -> None:
    """The cache of one corruption, `<name>.h5`."""
    settings = vggfeat.Settings(
        layers=SPECS, model="vgg16", weights=weights, transform="features", dtype="float32",
        augment="" if name == "original" else name,
    )  # fmt: skip
    vggfeat.extract(photos, folder / f"{name}.h5", settings)


def print_corruptions(folder: Path, layers: tuple[str, ...]) -> None:
    """Mean average precision of each layer for each corruption; queries are the altered ones."""
    print(f"\n| corruption | {' | '.join(layers)} |\n|{'---|' * (len(layers) + 1)}")
    for name in CORRUPTIONS:
        found = found_again(folder / "original.h5", folder / f"{name}.h5")
        cells = [
            f"{found[layer].mean_average_precision:.2f} ({found[layer].nearest_neighbour:.0%})"
            for layer in layers
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def found_again(database: Path, queries: Path) -> dict[str, Candidate]:
    """Layer → how well altered photographs find their own."""
    result = vggfeat.compare([database], queries=[queries], fusions="none")
    return {one.name: one for one in result.candidates}


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
    for layer in BLOCKS:
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
    print(f"\n| method | width | {' | '.join(HARD)} | mean |\n|{'---|' * (len(HARD) + 3)}")
    single = [found_again(folder / "original.h5", folder / f"{name}.h5") for name in HARD]
    for layer in sorted(single[0]):
        print_way(layer, single[0][layer].width, [found[layer] for found in single])
    for name, make in ways(folder).items():
        with tempfile.TemporaryDirectory() as temporary:
            database = Path(temporary) / "database.h5"
            width = make(folder / "original.h5", database, None)
            found: list[Candidate] = []
            for corruption in HARD:
                queries = Path(temporary) / f"{corruption}.h5"
                make(folder / f"{corruption}.h5", queries, Path(temporary) / "database.model.h5")
                found += found_again(database, queries).values()
            print_way(name, width, found)


def print_way(name: str, width: int, found: list[Candidate]) -> None:
    """One row of the table."""
    scores = [one.mean_average_precision for one in found]
    cells = " | ".join(f"{score:.2f}" for score in scores)
    print(f"| {name} | {width} | {cells} | {np.mean(scores):.3f} |")


def fusing(layers: str, **more: Any) -> Make:
    """Makes a cache of fused layers, with a model that is there where one is needed."""
    settings = vggfeat.FuseSettings(layers=layers, **more)

    def make(source: Path, out: Path, model: Path | None) -> int:
        if model is not None and settings.fits:
            made = vggfeat.fuse(source, out, use=model, dtype="float32")
        else:
            made = vggfeat.fuse(source, out, settings, dtype="float32")
        return sum(made.layers.values())

    return make


def reducing(layer: str, dims: int, *, whiten: bool) -> Make:
    """Makes a cache of a layer reduced by PCA, with the model that is there."""
    settings = vggfeat.ReduceSettings(layers=layer, dims=dims, whiten=whiten)

    def make(source: Path, out: Path, model: Path | None) -> int:
        chosen = None if model is not None else settings
        made = vggfeat.reduce(source, out, chosen, use=model, dtype="float32")
        return sum(made.layers.values())

    return make


def ways(folder: Path) -> dict[str, Make]:
    """What is compared; weights are learnt from corruptions that are not among those judged by."""
    three = ",".join(BLOCKS[2:])
    pairs = tuple(str(folder / f"{name}.h5") for name in EASY)
    return {
        "concat of conv3_3, conv4_3, conv5_3": fusing(three),
        "the same, norm none": fusing(three, norm="none"),
        "the same, norm standard": fusing(three, norm="standard"),
        "the same, norm ssr": fusing(three, norm="ssr"),
        "the same, weighted 1,2,1": fusing(three, method="weighted", weights=(1.0, 2.0, 1.0)),
        "the same, weights learned": fusing(three, method="weighted", pairs=pairs),
        "the same, attention": fusing(three, method="attention", pairs=pairs),
        "the same, sum, 32 wide": fusing(three, method="sum", width=32),
        "concat of all five": fusing(",".join(BLOCKS)),
        "all five, weights learned": fusing(",".join(BLOCKS), method="weighted", pairs=pairs),
        "concat of conv4_3:max, conv5_3:max": fusing("conv4_3:max,conv5_3:max"),
        "conv5_3 by PCA to 32": reducing("conv5_3", 32, whiten=False),
        "conv5_3 whitened to 32": reducing("conv5_3", 32, whiten=True),
    }


if __name__ == "__main__":
    main()
