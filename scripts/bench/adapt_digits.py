"""What adapting brings on images unlike photographs: faint, noisy digits in 16-bit grey.

adapt_digits.py WEIGHTS [--layer conv3_3] [--trainable all] [--rounds 3]

scikit-learn's 8 x 8 digits, enlarged to 32 x 32, in a tenth of the 16-bit range and under as much
noise. `WEIGHTS` are VGG16's original convolutions, normalised as `--transform features` does. Each
round learns from other images. Accuracy is that of scikit-learn's logistic regression on cached
features of the layer, on images that neither the network nor the regression has seen; it is fitted
to features of the images that the network has learnt from.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import vggfeat

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE, CELL = 32, 4


@dataclass(frozen=True, slots=True)
class Result:
    """Accuracies of one round, on images that were never seen."""

    before: float
    after: float
    chance: float
    seconds: float


def main() -> None:
    """Prints a line a round and the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("--layer", default="conv3_3")
    parser.add_argument("--trainable", default="all")
    parser.add_argument("--each", type=int, default=80, help="images of a class to learn from")
    parser.add_argument("--unseen", type=int, default=40, help="images of a class to test on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--jitter", default="shift")
    parser.add_argument("--first-layer", default="sum", choices=("sum", "kaiming"))
    parser.add_argument("--contrast", type=float, default=0.1)
    parser.add_argument("--noise", type=float, default=0.1)
    given = parser.parse_args()
    results = []
    for seed in range(given.rounds):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            draw(folder, given, seed)
            results.append(measure(folder, given))
            one = results[-1]
            print(
                f"round {seed}: {one.before:.3f} before, {one.after:.3f} after, chance "
                f"{one.chance:.3f}, adapting took {one.seconds:.0f} s",
                flush=True,
            )
    before, after = ([getattr(one, name) for one in results] for name in ("before", "after"))
    print(f"mean: {np.mean(before):.3f} before, {np.mean(after):.3f} after")


def draw(folder: Path, given: argparse.Namespace, seed: int) -> None:
    """Writes `train/DIGIT/*.png`, `each` of a class, and `unseen` others as `test/DIGIT/*.png`."""
    pixels, digits = load_digits(return_X_y=True)
    chance = np.random.default_rng(seed)
    for digit in range(10):
        mine = chance.permutation(np.flatnonzero(digits == digit))
        for place, rows in (("train", mine[: given.each]), ("test", mine[-given.unseen :])):
            where = folder / place / str(digit)
            where.mkdir(parents=True)
            for row in rows.tolist():
                faint = given.contrast * (pixels[row].reshape(8, 8) / 16 - 0.5)
                image = 0.5 + np.kron(faint, np.ones((CELL, CELL)))  # (32, 32)
                image += given.noise * chance.standard_normal((SIDE, SIDE))
                values = np.clip(image * 65535, 0, 65535).astype(np.uint16)
                Image.fromarray(values).save(where / f"{row}.png")


def measure(folder: Path, given: argparse.Namespace) -> Result:
    """One round."""
    network = vggfeat.Settings(
        layers=given.layer, model="vgg16", weights=given.weights, transform="features",
        channels=1, depth=16, size=SIDE, crop="squash", first_layer=given.first_layer,
    )  # fmt: skip
    wanted = vggfeat.AdaptSettings(
        network,
        trainable=given.trainable,
        epochs=given.epochs,
        lr=given.lr,
        jitter=given.jitter,
        test_share=0,  # other images, which adapt never gets, are the test
    )
    started = time.perf_counter()
    out = folder / "adapted.safetensors"
    vggfeat.adapt(folder / "train", out, wanted)
    seconds = time.perf_counter() - started
    common: dict[str, Any] = {"layers": given.layer, "dtype": "float32", "precision": "float32"}
    adapted = vggfeat.Settings.for_weights(str(out), **common)
    plain = vggfeat.Settings(
        weights=given.weights, model="vgg16", transform="features", channels=1, depth=16,
        size=SIDE, crop="squash", **common,
    )  # fmt: skip
    before, after = (probe(folder, settings) for settings in (plain, adapted))
    classes = [path.parent.name for path in (folder / "test").rglob("*.png")]
    chance = max(map(classes.count, set(classes))) / len(classes)
    return Result(before, after, chance, seconds)


def probe(folder: Path, settings: vggfeat.Settings) -> float:
    """Accuracy on `test` of logistic regression on cached features of `train`."""
    (x, y), (unseen, truth) = (features(folder, name, settings) for name in ("train", "test"))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)).fit(x, y)
    return float(classifier.score(unseen, truth))


def features(
    folder: Path, name: str, settings: vggfeat.Settings
) -> tuple[NDArray[np.float32], list[str]]:
    """Features (n, D) of one of the two parts, and its classes."""
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "f.h5"
        vggfeat.extract(folder / name, out, settings)
        cache = vggfeat.open(out)
        rows = np.flatnonzero(cache.done)
        values = cache.values(settings.layers, rows)
        return values, [cache.name(row).split("/")[0] for row in rows.tolist()]


if __name__ == "__main__":
    main()
