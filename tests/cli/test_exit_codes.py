"""One exit code for one fault in every command: a missing cache, an unknown layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from caches_to_search import cache_of, noise
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from vggfeat.cli import app

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

GONE = [
    "inspect GONE",
    "inspect CACHE --loss --against GONE",
    "verify GONE",
    "merge GONE --out OUT.h5",
    "merge GONE --virtual --out OUT.h5",
    "search GONE IMAGE",
    "search GONE --row x",
    "similarity IMAGE --cache GONE",
    "duplicates GONE",
    "compare GONE",
    "compare CACHE --queries GONE",
    "plot GONE --out OUT.svg",
    "sheet GONE --out OUT.html",
    "explore GONE --out OUT.html",
    "fuse GONE --out OUT.h5",
    "fuse CACHE --method weighted --pairs GONE --out OUT.h5",
    "fuse CACHE --use GONE --out OUT.h5",
    "reduce GONE --out OUT.h5",
    "export GONE --to npz --out OUT.npz",
    "zeroshot fit GONE --vectors VECTORS --out OUT.h5",
    "zeroshot predict GONE CACHE",
    "zeroshot evaluate GONE CACHE",
    "extract GONE --layers fc7 --out OUT.h5",
    "stats GONE",
    "trace GONE",
    "adapt GONE --out OUT.safetensors",
    "bench GONE",
]
OF_CACHES = [
    "search CACHE --row 000001.png --layers LAYER",
    "similarity --row 000001.png --row 000002.png --cache CACHE --layers LAYER",
    "duplicates CACHE --layers LAYER",
    "plot CACHE --layers LAYER --out OUT.svg",
    "explore CACHE --layers LAYER --out OUT.html",
    "fuse CACHE --layers LAYER,conv1_1 --out OUT.h5",
    "reduce CACHE --layers LAYER --out OUT.h5",
    "export CACHE --to npz --layers LAYER --out OUT.npz",
    "zeroshot fit CACHE --vectors VECTORS --layers LAYER --out OUT.h5",
]
OF_NETWORKS = [
    "extract IMAGE --layers LAYER --weights random --out OUT.h5",
    "similarity IMAGE IMAGE --layers LAYER --weights random",
    "plot IMAGE --layers LAYER --weights random --out OUT.svg",
    "adapt IMAGE --layers LAYER --weights random --out OUT.safetensors",
    "bench --layers LAYER",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache of two layers, an image, and vectors of classes."""
    folder = tmp_path_factory.mktemp("codes")
    cache_of(folder / "CACHE", {"conv1_1": noise(12, 6), "conv2_1": noise(12, 9, seed=1)})
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "IMAGE", format="png")
    (folder / "VECTORS").write_text("a 1 0\nb 0 1\n")
    return folder


def run(place: Path, words: str, layer: str = "") -> Any:
    """What a command in this process did; words in capitals are files of `place`."""
    parts = [word.replace("LAYER", layer) for word in words.split()]
    named = [str(place / word) if word[:3].isupper() else word for word in parts]
    return CliRunner().invoke(app, named, prog_name="vggfeat")


def taking(option: str, commands: Iterable[tuple[str, Any]]) -> set[str]:
    """The commands that have an option or, like FILE.h5, an argument."""
    return {
        name for name, command in commands
        for under in getattr(command, "commands", {"": command}).values()
        for one in under.params if option in (*one.opts, one.metavar)
    }  # fmt: skip


def test_every_command_is_tried() -> None:
    """Whatever reads a cache, and whatever takes layers, is in the lists."""
    commands = get_command(app).commands.items()  # type: ignore[attr-defined] # a group, as app
    assert {words.split()[0] for words in GONE} >= taking("FILE.h5", commands)
    assert {words.split()[0] for words in OF_CACHES + OF_NETWORKS} == taking("--layers", commands)


@pytest.mark.parametrize("words", GONE)
def test_a_missing_file_is_exit_3(place: Path, words: str) -> None:
    """A cache, model or source that does not exist is a missing input; nothing is written."""
    done = run(place, words)
    assert done.exit_code == 3, done.output
    assert done.stderr.splitlines()[-1].startswith("vggfeat: ")
    assert {file.name for file in place.iterdir()} == {"CACHE", "IMAGE", "VECTORS"}


@pytest.mark.parametrize(
    ("words", "layer"),
    [(words, layer) for words in OF_CACHES for layer in ("conv9_9", "fc7")]
    + [(words, "conv9_9") for words in OF_NETWORKS],
)
def test_an_unknown_layer_is_exit_2(place: Path, words: str, layer: str) -> None:
    """A name that no network has, or a layer that the cache lacks: the message has it."""
    done = run(place, words, layer)
    assert done.exit_code == 2, done.output
    assert layer in done.stderr.splitlines()[-1]
    assert {file.name for file in place.iterdir()} == {"CACHE", "IMAGE", "VECTORS"}
