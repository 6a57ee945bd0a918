"""What storing features as float16 and int8 costs, with real weights on photographs.

storage.py WEIGHTS PHOTOS    vgg16's convolutions, normalised as `--transform features` does

Each photograph and its altered versions are extracted in every dtype, int8 with the scales that a
run finds by itself on some of them. Printed are the cosines to float32, the nearest neighbours that
change among all images, and how many altered photographs find their own.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

import vggfeat
from vggfeat.core.preprocessing import CORRUPTIONS
from vggfeat.images.corruptions import corrupt

if TYPE_CHECKING:
    from vggfeat.core.settings import Dtype

LAYERS = "conv1_2,conv2_2,conv3_3,conv4_3,conv5_3,conv5_3:max"
DTYPES: tuple[Dtype, ...] = ("float32", "float16", "int8")


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("photos")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_versions(Path(given.photos), folder / "images")
        for dtype in DTYPES:
            settings = vggfeat.Settings(
                layers=LAYERS, model="vgg16", weights=given.weights, transform="features",
                dtype=dtype,
            )  # fmt: skip
            vggfeat.extract(folder / "images", folder / f"{dtype}.h5", settings)
        keep = vggfeat.ReduceSettings(method="keep")
        vggfeat.reduce(folder / "float32.h5", folder / "int8 kept.h5", keep, dtype="int8")
        print_table(folder)


def write_versions(photos: Path, folder: Path) -> None:
    """Every photograph as it is and in each corruption, a folder each photograph."""
    for path in sorted(photos.iterdir()):
        image = Image.open(path).convert("RGB")
        place = folder / path.stem
        place.mkdir(parents=True)
        image.save(place / "original.png")
        for name in CORRUPTIONS:
            corrupt(image, (name,)).save(place / f"{name}.png")


def print_table(folder: Path) -> None:
    """A row for each layer and dtype."""
    wide = vggfeat.open(folder / "float32.h5")
    print("| layer | stored | cosine, least | median | nearest changed | ten nearest kept | "
          "own found first |\n|---|---|---|---|---|---|---|")  # fmt: skip
    right = {layer: own_found(wide, layer) for layer in wide.layers}
    for name in ("float16", "int8", "int8 kept"):
        narrow = vggfeat.open(folder / f"{name}.h5")
        for loss in vggfeat.measure_loss(narrow, against=wide, sample=len(wide)):
            found = own_found(narrow, loss.layer)
            print(
                f"| {loss.layer} | {name} | {loss.cosine_least:.6f} | {loss.cosine_median:.7f} | "
                f"{loss.nearest_changed:.2%} | {loss.nearest_kept:.2%} | {found} of "
                f"{right[loss.layer]} in float32 |"
            )


def own_found(cache: vggfeat.FeatureCache, layer: str) -> int:
    """How many altered photographs have their original for nearest among all originals."""
    names = [cache.name(row) for row in range(len(cache))]
    originals = [row for row, name in enumerate(names) if name.endswith("original.png")]
    values = cache.values(layer)
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    nearest = (unit @ unit[originals].T).argmax(1)
    photographs = [name.split("/")[0] for name in names]
    return sum(
        photographs[row] == photographs[originals[nearest[row]]]
        for row in range(len(names))
        if row not in originals
    )


if __name__ == "__main__":
    main()
