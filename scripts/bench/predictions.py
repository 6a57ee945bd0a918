"""Holds what `gpu.sh` measured against what docs/BENCHMARKS.md predicts: `predictions.py OUT`.

OUT is the folder of its logs and JSON. What a step that failed would have given stays empty.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

MANY = 100_000
"""Images of the run that the predictions are of."""


def main() -> None:
    """Print the table."""
    folder = Path(sys.argv[1])
    print("| what | predicted | measured |\n|---|---|---|")
    for what, predicted, found in lines(folder):
        print(f"| {what} | {predicted} | {found} |")


def lines(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield what, predicted, measured."""
    for way, predicted in (
        ("pillow", "3,400 to 5,250"),
        ("torchvision", "8,000"),
        ("gpu", "more than 11,000"),
    ):
        yield f"decoding, {way}, images/s", predicted, fastest(decoding(folder, way))
    ways = (
        ("operators, `isfinite` of all", "6,900 to 8,500"),
        ("operators, largest and least", "4 % more"),
        ("operators", "4 % more"),
        ("one kernel", "11,500 to 13,000"),
        ("neither bias, ReLU nor check", "the bound of `one kernel`"),
    )
    for way, predicted in ways:
        yield f"network, {way}, images/s", predicted, fastest(network(folder, way))
    yield "bfloat16 matrices, TFLOP/s", "790", matmul(folder)
    for name, predicted in (("auto", "8,000"), ("decode-gpu", "11,000"), ("decode-pillow", "")):
        yield f"run, {name}, images/s", predicted, of(summary(folder, name), "images_per_second")
    yield from whole_runs(folder)


def whole_runs(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield start, time for all images and the price of checkpoints."""
    auto, gpu, never = (
        summary(folder, name) for name in ("auto", "decode-gpu", "no-checkpoint")
    )  # fmt: skip
    prepare = f"{auto['stages']['prepare']:.1f}" if auto else ""
    yield "start until the first batch, s", "1.5 to 3", prepare
    for name, told, predicted in (("auto", auto, "12.5"), ("gpu", gpu, "9")):
        seconds = f"{MANY / told['images_per_second']:.1f}" if told else ""
        yield f"{MANY:,} images once under way, decode {name}, s", predicted, seconds
    ratio = (
        f"{auto['images_per_second'] / never['images_per_second']:.3f}" if auto and never else ""
    )
    yield "checkpoints every 5 s against none, ratio of speeds", "1 (0.7 to 0.95 before)", ratio


def summary(folder: Path, name: str) -> dict[str, Any]:
    """Return the summary of an extract; nothing if there is none."""
    try:
        told: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    except (OSError, ValueError):
        return {}
    return told


def of(told: dict[str, Any], name: str) -> str:
    """Return a number of a summary as text."""
    return f"{told[name]:,.0f}" if told else ""


def fastest(rates: list[float]) -> str:
    """Return the largest rate as text."""
    return f"{max(rates):,.0f}" if rates else ""


def text_of(folder: Path, name: str) -> str:
    """Return the log of a step."""
    return "\n".join(path.read_text() for path in folder.glob(f"*-{name}.log"))


def rows(text: str, label: str) -> list[list[str]]:
    """Return the other cells of all rows of Markdown tables that begin with a label."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return [row[1:] for row in cells if row and row[0] == label]


def decoding(folder: Path, way: str) -> list[float]:
    """Return images a second by a decoder, with each number of processes."""
    return [float(row[1]) for row in rows(text_of(folder, "Decoding-by-decoder"), way)]


def network(folder: Path, way: str) -> list[float]:
    """Return images a second of the bare network in one way, in each batch size."""
    return [float(cell) for row in rows(text_of(folder, "The-bare-network"), way) for cell in row]


def matmul(folder: Path) -> str:
    """Return the measured rate of a product of matrices."""
    found = re.search(r"runs at (\d+) TFLOP/s", text_of(folder, "The-bare-network"))
    return found.group(1) if found else ""


if __name__ == "__main__":
    main()
