"""Zero-shot learning of digits: real VGG16 features, attributes of each digit, some never seen.

zeroshot.py WEIGHTS [--images 50] [--splits 20] [--layer conv4_3]

scikit-learn's handwritten digits, enlarged, go through VGG16's convolutions. In each split three
digits, drawn at random, are unseen. Reported are means over the splits, with the standard error of
the accuracy on unseen digits; chance, and what a nearest class mean that was shown the unseen
digits too would reach (scikit-learn's, in five folds).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize

import vggfeat

# A loop above, a loop below, one loop over the whole height, upright stroke, stroke across at the
# top, at the bottom, slanted stroke, bow open to the left above, below, bow open to the right
# above, below. Then the bars of a seven-segment display, a to g.
ATTRIBUTES = {
    "zero": ("00100000000", "1111110"),
    "one": ("00010000000", "0110000"),
    "two": ("00000111000", "1101101"),
    "three": ("00000001100", "1111001"),
    "four": ("01010010000", "0110011"),
    "five": ("00001000110", "1011011"),
    "six": ("01000000011", "1011111"),
    "seven": ("00001010000", "1110000"),
    "eight": ("11000000000", "1111111"),
    "nine": ("10010001000", "1111011"),
}
SIDE = 64
UNSEEN = 3

WAYS: dict[str, dict[str, Any]] = {
    "eszsl, not centered": {"method": "eszsl", "center": False},
    "eszsl": {"method": "eszsl"},
    "eszsl, l2": {"method": "eszsl", "norm": "l2"},
    "eszsl, ssr": {"method": "eszsl", "norm": "ssr"},
    "eszsl, tree": {"method": "eszsl", "tree": "tree.csv"},
    "eszsl, 3 layers": {"method": "eszsl", "layers": None},
    "eszsl, attention": {"method": "eszsl", "layers": None, "attention": True},
    "ridge, not centered": {"method": "ridge", "center": False},
    "ridge": {"method": "ridge"},
    "nearest, not centered": {"method": "nearest", "center": False},
    "nearest": {"method": "nearest"},
    "auto": {},
    "devise, not centered": {"method": "devise", "center": False},
    "devise": {"method": "devise"},
    "devise, l2": {"method": "devise", "norm": "l2"},
    "devise, tree": {"method": "devise", "tree": "tree.csv"},
}
TREE = {
    "round": ("zero", "six", "eight", "nine"),
    "straight": ("one", "four", "seven"),
    "bows": ("two", "three", "five"),
    "digit": ("round", "straight", "bows"),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One split: accuracy on unseen among unseen, generalised figures, area, hops of answers."""

    unseen: float
    harmonic: float
    calibrated: float
    area: float
    hops: float
    hops_guessed: float


def main() -> None:
    """Makes images, features and tables, then fits and judges each way on each split."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("--images", type=int, default=50, help="of each digit")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--layer", default="conv4_3")
    parser.add_argument("--ways", default="", help="those that contain this text")
    parser.add_argument("--tables", default="shapes,segments,both")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_digits(folder / "digits", given.images)
        write_tables(folder)
        settings = vggfeat.Settings(
            layers="conv3_3,conv4_3,conv5_3", model="vgg16", weights=str(Path(given.weights)),
            transform="features", size=SIDE, device="cpu",
        )  # fmt: skip
        vggfeat.extract(folder / "digits", folder / "digits.h5", settings)
        say_reference(folder / "digits.h5", given.layer)
        ways = [name for name in WAYS if given.ways in name]
        for table in given.tables.split(","):
            report(folder, table, ways, given.splits, given.layer)


def write_digits(folder: Path, count: int) -> None:
    """So many images of each digit, dark on white, in a folder each."""
    digits = load_digits()
    for number, name in enumerate(ATTRIBUTES):
        (folder / name).mkdir(parents=True)
        for at, pixels in enumerate(digits.images[digits.target == number][:count]):
            image = Image.fromarray((255 - pixels * 15.9).astype(np.uint8))
            large = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
            large.save(folder / name / f"{at:03}.png")


def write_tables(folder: Path) -> None:
    """Attributes of each digit, and the tree."""
    for table, choose in {"shapes": (0,), "segments": (1,), "both": (0, 1)}.items():
        lines = (
            ",".join([name, *"".join(bits[i] for i in choose)]) for name, bits in ATTRIBUTES.items()
        )
        (folder / f"{table}.csv").write_text("\n".join(lines) + "\n")
    pairs = (f"{child},{parent}" for parent, children in TREE.items() for child in children)
    (folder / "tree.csv").write_text("\n".join(["child,parent", *pairs]) + "\n")


def say_reference(path: Path, layer: str) -> None:
    """What the features could reach if the unseen digits had been shown."""
    cache = vggfeat.open(path)
    labels = [cache.name(row).split("/")[0] for row in range(len(cache))]
    x = normalize(cache.values(layer))
    reached = cross_val_score(NearestCentroid(), x, labels, cv=5).mean()
    print(f"{len(cache)} images; nearest class mean, shown all ten digits: {reached:.3f} of ten")


def report(folder: Path, table: str, ways: list[str], splits: int, layer: str) -> None:
    """A table of all ways for one table of attributes."""
    print(f"\n{table}: {UNSEEN} of {len(ATTRIBUTES)} digits unseen, {splits} splits\n")
    print("| way | unseen | H | H calibrated | area | hops (guessed) |\n|---|---|---|---|---|---|")
    for way in ways:
        found = [run(folder, table, {"layers": layer, **WAYS[way]}, seed) for seed in range(splits)]
        unseen = [one.unseen for one in found]
        spread = statistics.stdev(unseen) / len(unseen) ** 0.5
        mean = {
            name: statistics.mean(getattr(one, name) for one in found)
            for name in ("harmonic", "calibrated", "area", "hops", "hops_guessed")
        }
        print(
            f"| {way} | {statistics.mean(unseen):.3f} ± {spread:.3f} | {mean['harmonic']:.3f} | "
            f"{mean['calibrated']:.3f} | {mean['area']:.3f} | {mean['hops']:.2f} "
            f"({mean['hops_guessed']:.2f}) |",
            flush=True,
        )


def run(folder: Path, table: str, way: dict[str, Any], seed: int) -> Outcome:
    """Fits and judges once; the seed draws the unseen digits."""
    unseen = np.random.default_rng(seed).choice(list(ATTRIBUTES), UNSEEN, replace=False).tolist()
    if "tree" in way:
        way = {**way, "tree": str(folder / way["tree"])}
    settings = vggfeat.ZeroShotSettings(unseen=",".join(unseen), seed=seed, device="cpu", **way)
    model = folder / "model.h5"
    vggfeat.fit_zeroshot(folder / "digits.h5", folder / f"{table}.csv", model, settings, fresh=True)
    found = vggfeat.evaluate_zeroshot(
        model, folder / "digits.h5", tree=folder / "tree.csv", calibrate="auto"
    )
    (first,) = [one for one in found.figures if (one.among, one.top) == ("unseen", 1)]
    assert found.generalised is not None
    assert found.calibrated is not None
    assert found.area is not None
    both = [one for one in found.mistakes if (one.of, one.among) == ("unseen", "all")]
    return Outcome(
        first.accuracy,
        found.generalised.harmonic,
        found.calibrated.harmonic,
        found.area,
        both[0].hops,
        both[0].hops_guessed,
    )


if __name__ == "__main__":
    main()
