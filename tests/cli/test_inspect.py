"""`vggfeat inspect`: rows by pattern, nearest images, narrow and coloured terminals."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from command_line import assert_one_line, vggfeat, write_images
from sklearn.metrics.pairwise import cosine_similarity

if TYPE_CHECKING:
    from pathlib import Path

SMALL = ["--model", "vgg11", "--size", "32", "--weights", "random:0", "--device", "cpu",
         "--workers", "0", "--precision", "float32", "-q"]  # fmt: skip
LAYERS = ("conv1_1", "conv2_1:gem(p=2.5):l2", "conv2_1:map")
VECTORS = LAYERS[:2]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of images, one image broken, and a cache in halves and one in int8."""
    folder = tmp_path_factory.mktemp("inspect")
    write_images(folder / "all", 17)
    for number, path in enumerate(sorted((folder / "all").iterdir())):
        place = folder / "images" / ("cats" if number < 9 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        path.rename(place / path.name)
    (folder / "images" / "cats" / "broken.png").write_bytes(b"no image")
    for dtype in ("float16", "int8"):
        done = vggfeat("extract", "images", *SMALL, "--layers", ",".join(LAYERS), "--dtype", dtype,
                       "--out", f"{dtype}.h5", cwd=folder)  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder


def on_terminal(
    folder: Path, columns: int, *words: str, command: str = "inspect", no_colour: bool = False
) -> str:
    """What the command shows on a terminal that wide."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    hidden = ("COLUMNS", "LINES", "NO_COLOR")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    process = subprocess.Popen(
        [sys.executable, "-m", "vggfeat", command, *words],
        cwd=folder, stdin=follower, stdout=follower, stderr=subprocess.PIPE,
        env={**env, "TERM": "xterm", **({"NO_COLOR": "1"} if no_colour else {})},
    )  # fmt: skip
    os.close(follower)
    shown = b""
    try:
        while block := os.read(leader, 4096):
            shown += block
    except OSError:
        pass  # the other side is closed
    os.close(leader)
    _, complaint = process.communicate()
    assert process.returncode == 0, complaint
    return shown.decode().replace("\r\n", "\n")


def without_colour(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_rows_that_match(workplace: Path) -> None:
    """The rows of a pattern are those of the file, with number, state and reason."""
    done = vggfeat("inspect", "float16.h5", "--rows", "cats/*", cwd=workplace)
    assert done.returncode == 0, done.stderr
    with h5py.File(workplace / "float16.h5") as file:
        paths = [path.decode() for path in file["images/path"][()]]
    lines = done.stdout.splitlines()
    assert lines[0] == "10 images match cats/*"
    assert lines[1].split() == ["row", "path", "state", "reason"]
    shown = [line.split(maxsplit=3) for line in lines[2:]]
    assert [(int(number), path) for number, path, *_ in shown] == [
        (number, path) for number, path in enumerate(paths) if path.startswith("cats/")
    ]
    assert ["9", "cats/broken.png", "failed", "not an image Pillow can read"] in shown
    assert {state for _, _, state, *_ in shown} == {"done", "failed"}


def test_most_rows(workplace: Path) -> None:
    """So many rows are shown at most, and how many there are beside them; JSON has all."""
    words = ["inspect", "float16.h5", "--rows", "*", "--most", "4"]
    done = vggfeat(*words, cwd=workplace)
    assert len(done.stdout.splitlines()) == 2 + 4 + 1
    assert done.stdout.endswith("and 14 more: --most 18\n")
    shown = json.loads(vggfeat(*words, "--json", cwd=workplace).stdout)
    assert [row["row"] for row in shown["matching"]] == list(range(18))
    assert [row["reason"] for row in shown["matching"] if row["reason"]] == [
        "not an image Pillow can read"
    ]


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_nearest(workplace: Path, dtype: str) -> None:
    """The ten nearest in each layer of vectors, and their cosines, are scikit-learn's."""
    words = ["inspect", f"{dtype}.h5", "--nearest", "dogs/12.png"]
    shown = json.loads(vggfeat(*words, "--json", cwd=workplace).stdout)["nearest"]
    assert [one["layer"] for one in shown] == list(VECTORS)
    with h5py.File(workplace / f"{dtype}.h5") as file:
        paths = [path.decode() for path in file["images/path"][()]]
        done = np.flatnonzero(file["images/state"][()] == 1)
        for one in shown:
            values = file[f"features/{one['layer']}"][()].astype(np.float64)
            if dtype == "int8":
                scale, offset = (file[f"{k}/{one['layer']}"][()] for k in ("scales", "offsets"))
                values = values * scale + offset
            own = paths.index("dogs/12.png")
            others = done[done != own]
            cosines = cosine_similarity(values[[own]], values[others])[0]
            order = np.argsort(-cosines)[:10]
            assert [near["path"] for near in one["neighbours"]] == [
                paths[row] for row in others[order]
            ]
            found = [near["cosine"] for near in one["neighbours"]]
            np.testing.assert_allclose(found, cosines[order], atol=1e-6)
    text = vggfeat(*words, cwd=workplace).stdout
    for one in shown:
        assert f"nearest to dogs/12.png by {one['layer']}\n" in text
        first = one["neighbours"][0]
        assert f"{first['cosine']:.4f}  {first['row']:>3}  {first['path']}" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rows", "birds/*"], "no image of cache 'float16.h5' matches 'birds/*'; paths look"),
        (["--rows", "*", "--most", "0"], "most is 0; expected 1"),
        (["--nearest", "cats/99.png"], "image 'cats/99.png' is not in cache"),
        (["--nearest", "cats/broken.png"], "is failed, not done, and has no features"),
    ],
)
def test_usage(workplace: Path, words: list[str], said: str) -> None:
    """What is not there is said in one line, with what paths look like."""
    assert_one_line(vggfeat("inspect", "float16.h5", *words, cwd=workplace), 2, said)


def test_a_cache_of_maps_has_no_nearest(workplace: Path) -> None:
    """Where no layer is a vector, there is nothing to compare, and it is said."""
    words = ["extract", "images", *SMALL, "--layers", "conv2_1:map", "--out", "map.h5"]
    assert vggfeat(*words, cwd=workplace).returncode == 0
    done = vggfeat("inspect", "map.h5", "--nearest", "cats/00.png", cwd=workplace)
    assert_one_line(done, 2, "holds maps only")


@pytest.mark.parametrize("columns", [60, 80])
def test_a_narrow_terminal(workplace: Path, columns: int) -> None:
    """No line is wider than the terminal, and layer, shape and dtype are still there."""
    for words in ([], ["--failures"], ["--rows", "*"], ["--nearest", "cats/00.png"]):
        text = without_colour(on_terminal(workplace, columns, "float16.h5", *words))
        assert max(map(len, text.splitlines())) <= columns, text
    text = without_colour(on_terminal(workplace, columns, "float16.h5"))
    head = next(line for line in text.splitlines() if line.startswith("  layer "))
    assert head.split()[:3] == ["layer", "shape", "dtype"]
    assert ("std" in head) == (columns > 80)
    for layer in LAYERS:
        assert layer in text
    assert "fingerprint" in text


@pytest.mark.parametrize(
    ("command", "words"),
    [("layers", ["--model", "vgg19_bn"]), ("trace", ["--size", "1600", "--batch", "16"])],
)
def test_tables_of_layers_fit_a_terminal(workplace: Path, command: str, words: list[str]) -> None:
    """On 80 columns names and shapes are there, and no line is wrapped; in a file all columns."""
    text = without_colour(on_terminal(workplace, 80, *words, command=command))
    assert max(map(len, text.splitlines())) <= 80, text
    row = next(line for line in text.splitlines() if line.lstrip().startswith("conv5_1"))
    assert "512 x " in row
    assert "stride" in vggfeat(command, *words, cwd=workplace).stdout


def test_a_wide_terminal_leaves_nothing_out(workplace: Path) -> None:
    """On a wide terminal the text is what goes into a file, but for the colours."""
    plain = vggfeat("inspect", "float16.h5", cwd=workplace).stdout
    shown = on_terminal(workplace, 300, "float16.h5")
    assert without_colour(shown) == plain
    assert shown != plain
    assert "\x1b" not in plain


def test_colours(workplace: Path) -> None:
    """States and the warning are coloured on a terminal, unless NO_COLOR is set."""
    shown = on_terminal(workplace, 120, "float16.h5")
    assert "\x1b[32m17 done\x1b[0m" in shown
    assert "\x1b[31m1 failed\x1b[0m" in shown
    assert re.search(r"\x1b\[33m\x1b\[1m  WARNING: RANDOM WEIGHTS", shown)
    rows = on_terminal(workplace, 120, "float16.h5", "--rows", "cats/*")
    assert rows.count("\x1b[32mdone\x1b[0m") == 9
    assert rows.count("\x1b[31mfailed\x1b[0m") == 1
    assert "\x1b" not in on_terminal(workplace, 120, "float16.h5", no_colour=True)


def test_no_torch(workplace: Path) -> None:
    """Neither rows nor neighbours load torch."""
    for words in (["--rows", "*"], ["--nearest", "cats/00.png"]):
        done = vggfeat("inspect", "float16.h5", *words, cwd=workplace,
                       env={"PYTHONPROFILEIMPORTTIME": "1"})  # fmt: skip
        assert done.returncode == 0
        assert "vggfeat.cache.rows" in done.stderr
        assert "| torch" not in done.stderr
