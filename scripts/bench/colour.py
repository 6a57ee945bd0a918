"""How alike in colour the nearest images are by the first layers, against histograms of colours.

colour.py WEIGHTS FOLDER...

vgg16's convolutions, normalised as `--transform features` does. The likeness in colour of two
images is the Bhattacharyya coefficient of their histograms of 512 colours. Prints its mean over the
five nearest of each image, with bootstrap intervals over the images, and the difference to conv1_2.
Of images named ..._0 to ..._3, the quarters of one image, none is an answer for another.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from layers import colours
from PIL import Image
from ranking import Way, shown

import vggfeat

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from ranking import Scores

LAYERS = ("conv1_1", "conv1_1:std", "conv1_2", "conv1_2:std", "conv2_2")
REFERENCE = Way(("conv1_2",))
NEAREST = 5


def main() -> None:
    """Extracts each folder and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("folders", type=Path, nargs="+")
    given = parser.parse_args()
    for folder in given.folders:
        with tempfile.TemporaryDirectory() as temporary:
            out = Path(temporary) / "colour.h5"
            settings = vggfeat.Settings(
                layers=",".join(LAYERS), model="vgg16", weights=given.weights,
                transform="features", dtype="float32",
            )  # fmt: skip
            vggfeat.extract(folder, out, settings)
            print_folder(folder, vggfeat.open(out))


def print_folder(folder: Path, cache: vggfeat.FeatureCache) -> None:
    """The table of one folder."""
    names = [cache.name(row) for row in range(len(cache))]
    roots = np.stack([colours(Image.open(folder / name).convert("RGB")) for name in names])
    likeness = roots @ roots.T  # (n, n)
    wholes = np.array([re.sub(r"_[0-3]\.\w+$", "", name) for name in names])
    own = wholes[:, np.newaxis] == wholes
    right = of_nearest(REFERENCE.rows([cache]), likeness, own)
    print(f"\n{folder.name}: {len(names)} images; any {likeness[~own].mean():.3f}, nearest by "
          f"histogram {shown(of_nearest(roots, likeness, own))}")  # fmt: skip
    ways = [Way((layer,), norm) for layer in LAYERS for norm in ("l2", "ssr")]
    ways += [Way((layer, f"{layer}:std"), "ssr") for layer in ("conv1_1", "conv1_2")]
    for way in ways:
        found = of_nearest(way.rows([cache]), likeness, own)
        print(f"| {way} | {shown(found)} | {shown(found - right, signed=True)} |")


def of_nearest(rows: NDArray[np.floating], likeness: Scores, own: NDArray[np.bool_]) -> Scores:
    """Mean likeness of the nearest to each image, (n,)."""
    scores = np.where(own, -np.inf, rows @ rows.T)
    nearest = np.argsort(-scores, 1)[:, :NEAREST]
    means: Scores = np.take_along_axis(likeness, nearest, 1).mean(1)
    return means


if __name__ == "__main__":
    main()
