"""How well layers, pools and their joins find images of one class: meaning, style, texture.

labelled.py WEIGHTS FOLDER [--labels FILE.csv]

vgg16's convolutions, normalised as `--transform features` does. Each image searches for the others
of its class among all images of the folder; without --labels, its class is the folder that it lies
in. Prints the mean average precision and the share of images whose nearest is of their class, and
the difference of the first to conv5_3, with bootstrap intervals over the images.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
from layers import BLOCKS, DEEP, DEVIATIONS, STYLE, THREE, extract
from ranking import Way, class_precisions, shown

import vggfeat

REFERENCE = Way(("conv5_3",))


def main() -> None:
    """Extracts the folder once, then prints a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("images", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--keep", help="folder to keep the cache in")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(given.keep or temporary) / f"{given.images.name}.h5"
        extract(given.weights, given.images, out, "original")
        print_classes(vggfeat.open(out), given.labels)


def print_classes(cache: vggfeat.FeatureCache, labels: Path | None) -> None:
    """The table of all ways."""
    names = [cache.name(row) for row in range(len(cache))]
    if labels is None:
        known = {name: str(Path(name).parent) for name in names}
    else:
        known = {row["path"]: row["label"] for row in csv.DictReader(labels.open())}
    classes = np.array([known[name] for name in names])
    right, _ = class_precisions(REFERENCE.rows([cache]), classes)
    counted = len({name for name in classes if name and (classes == name).sum() > 1})
    print(f"{len(names)} images, {len(right)} queries, {counted} classes")
    header = "| layers | width | mean average precision | nearest | less conv5_3 |"
    print(header, "|---|---|---|---|---|", sep="\n")
    for way in ways():
        rows = way.rows([cache])
        found, nearest = class_precisions(rows, classes)
        less = shown(found - right, signed=True)
        print(f"| {way} | {rows.shape[1]} | {shown(found)} | {nearest.mean():.0%} | {less} |")


def ways() -> list[Way]:
    """What is compared: each layer and pool by itself, then joins."""
    alone = [(layer,) for layer in dict.fromkeys((*BLOCKS, *DEEP, *DEVIATIONS))]
    joined = [BLOCKS[2:4], BLOCKS[3:], THREE, BLOCKS, DEVIATIONS[:4], STYLE,
              ("conv4_3:gem", "conv5_3:gem")]  # fmt: skip
    return [Way(layers, norm) for layers in (*alone, *joined) for norm in ("l2", "ssr")]


if __name__ == "__main__":
    main()
