"""Zero-shot learning of photographs, some classes never seen: every method on random splits.

zeroshot_photos.py CACHE.h5 VECTORS [--splits 10] [--share 0.25] [--layer conv5_3] [--wordnet DICT]

CACHE.h5 has a folder for each class, also of one photograph; VECTORS are word or sentence vectors.
Each split draws the unseen classes anew. Reported are top-1 and top-5 accuracy of their photographs
among unseen classes, means over splits with a 95 % bootstrap interval over the splits, and the
difference to `auto` on the same splits. With --wordnet, the folder of WordNet's `data.noun`, ESZSL
is fitted with the tree of hypernyms too.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import vggfeat

if TYPE_CHECKING:
    from collections.abc import Iterator

TOPS = (1, 5)
WAYS: dict[str, dict[str, Any]] = {
    "eszsl, not centered": {"method": "eszsl", "center": False},
    "eszsl": {"method": "eszsl"},
    "eszsl, tree, not centered": {"method": "eszsl", "center": False, "tree": "tree.csv"},
    "eszsl, tree": {"method": "eszsl", "tree": "tree.csv"},
    "ridge, not centered": {"method": "ridge", "center": False},
    "ridge": {"method": "ridge"},
    "nearest, k 1": {"method": "nearest", "neighbors": 1},
    "nearest, k 5": {"method": "nearest", "neighbors": 5},
    "nearest": {"method": "nearest"},
    "devise, not centered": {"method": "devise", "center": False},
    "devise": {"method": "devise"},
    "auto": {},
}


def main() -> None:
    """Fit and judge every way on every split."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache")
    parser.add_argument("vectors")
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--share", type=float, default=0.25, help="of classes that are unseen")
    parser.add_argument("--layer", default="conv5_3")
    parser.add_argument("--wordnet")
    parser.add_argument("--ways", default="", help="those that contain this text")
    parser.add_argument("--without", default="-", help="not those that contain this text")
    given = parser.parse_args()
    cache = vggfeat.open(given.cache)
    with tempfile.TemporaryDirectory() as name:
        folder, ways = Path(name), dict(_ways(given))
        classes = classes_with_vectors(cache, given.vectors, folder / "labels.csv")
        if given.wordnet:
            write_tree(folder / "tree.csv", classes, Path(given.wordnet))
        else:
            ways = {n: way for n, way in ways.items() if "tree" not in way}
        found: dict[str, list[list[float]]] = {}
        for seed in range(given.splits):
            for way, settings in ways.items():
                if "tree" in settings:
                    settings = {**settings, "tree": str(folder / settings["tree"])}  # noqa: PLW2901
                found.setdefault(way, []).append(run(folder, given, classes, settings, seed))
        report(found, len(classes), given)


def _ways(given: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, way in WAYS.items():
        if given.ways in name and given.without not in name:
            yield name, way


def classes_with_vectors(cache: vggfeat.FeatureCache, vectors: str, labels: Path) -> list[str]:
    """Return the classes that have a vector; write the labels of their images."""
    folders = [cache.name(row).split("/")[0] for row in range(len(cache))]
    classes = []
    for name in sorted(set(folders)):
        with contextlib.suppress(vggfeat.UsageError):
            vggfeat.class_vectors(vectors, [name])
            classes.append(name)
    kept = set(classes)
    lines = [f'"{cache.name(row)}","{name}"\n' for row, name in enumerate(folders) if name in kept]
    labels.write_text("".join(["path,label\n", *lines]))
    return classes


def run(
    folder: Path, given: Any, classes: list[str], way: dict[str, Any], seed: int
) -> list[float]:
    """Fit and judge once; return the accuracies, then how far probabilities are from them."""
    drawn = np.random.default_rng(seed).permutation(classes)
    unseen = drawn[: round(given.share * len(classes))].tolist()
    (folder / "unseen.txt").write_text("\n".join(unseen) + "\n")
    settings = vggfeat.ZeroShotSettings(
        layers=given.layer, unseen=str(folder / "unseen.txt"), seed=seed, device="cpu", held_out=0,
        labels=str(folder / "labels.csv"), **way,
    )  # fmt: skip
    model = folder / "model.h5"
    vggfeat.fit_zeroshot(given.cache, given.vectors, model, settings, fresh=True)
    labels = folder / "labels.csv"
    found = vggfeat.evaluate_zeroshot(model, given.cache, labels=labels, top=TOPS)
    accuracies = [one.accuracy for one in found.figures if one.among == "unseen"]
    told = vggfeat.predict_zeroshot(model, given.cache, classes="unseen", top=1)
    mine = [at for at, path in enumerate(told.paths) if path.split("/")[0] in set(unseen)]
    assert told.probabilities is not None
    right = [told.names[told.classes[at, 0]] == told.paths[at].split("/")[0] for at in mine]
    return [*accuracies, float(told.probabilities[mine, 0].mean() - np.mean(right))]


def report(found: dict[str, list[list[float]]], classes: int, given: Any) -> None:
    """Print a table."""
    unseen = round(given.share * classes)
    print(f"\n{given.cache}, {given.layer}, {given.vectors}: {classes} classes, {unseen} unseen")
    print(f"in each of {given.splits} splits; chance {1 / unseen:.3f}, top 5 {5 / unseen:.3f}")
    print("\n| way | top 1 | top 5 | top 5 less that of auto | confidence less accuracy |")
    print("|---|---|---|---|---|")
    auto = np.array(found["auto"]) if "auto" in found else None
    for way, values in found.items():
        x = np.array(values)
        less = "" if auto is None or way == "auto" else spread(x[:, 1] - auto[:, 1], sign="+")
        print(f"| {way} | {spread(x[:, 0])} | {spread(x[:, 1])} | {less} | {x[:, 2].mean():+.3f} |")


def spread(values: Any, sign: str = "") -> str:
    """Return the mean, and a 95 % interval of it by bootstrap."""
    drawn = np.random.default_rng(0).integers(0, len(values), (10_000, len(values)))
    low, high = np.percentile(values[drawn].mean(1), [2.5, 97.5])
    return f"{values.mean():{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def write_tree(path: Path, classes: list[str], wordnet: Path) -> None:
    """Write the first hypernyms of the first sense of each class that WordNet knows."""
    parents: dict[str, str | None] = {}
    first: dict[str, str] = {}
    for line in (wordnet / "data.noun").read_text().splitlines():
        if line.startswith("  "):
            continue
        fields = line.split(" | ")[0].split()
        above = [fields[at + 1] for at, mark in enumerate(fields) if mark in ("@", "@i")]
        parents[fields[0]] = above[0] if above else None
    for line in (wordnet / "index.noun").read_text().splitlines():
        if not line.startswith("  "):
            fields = line.split()
            first[fields[0]] = fields[-int(fields[2])]
    pairs: dict[str, str] = {}
    for name in classes:
        words = name.lower().replace("-", " ").replace("_", " ").split()
        tails = ("_".join(words[at:]) for at in range(len(words)))
        child, sense = name, next((first[tail] for tail in tails if tail in first), None)
        while sense:
            pairs[child], child, sense = sense, sense, parents[sense]
        pairs[child] = "root"
    path.write_text("child,parent\n" + "".join(f"{a},{b}\n" for a, b in pairs.items()))


if __name__ == "__main__":
    main()
