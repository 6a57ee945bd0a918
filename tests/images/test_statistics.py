"""`vggfeat stats`: exact means and deviations of what extract would read, and the files' values."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import assert_one_line, cpu_seconds, vggfeat
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from PIL import Image

import vggfeat as library
from vggfeat.config import make_settings
from vggfeat.core.settings import Settings
from vggfeat.errors import InputError
from vggfeat.images.decode import decode_file
from vggfeat.images.statistics import PERCENTILES, ValueHistogram, as_config, count_values

COUNT = 13


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colours of 8 bits, greys of 16, and one file that is no image."""
    place = tmp_path_factory.mktemp("stats")
    images = place / "images"
    images.mkdir()
    for number in range(COUNT):
        own = np.random.default_rng(number)
        colours = own.integers(0, 40 + 17 * number, (48, 40 + number, 3), np.uint8)
        Image.fromarray(colours).save(images / f"{number:02}.png")
    for number in range(4):
        grey = np.random.default_rng(number).integers(0, 4096, (50, 41), np.uint16)
        Image.fromarray(grey).save(images / f"deep{number}.tif")
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return place


SETTINGS: list[dict[str, Any]] = [
    {},
    {"channels": 1},
    {"depth": 16, "clip": "1,99"},
    {"channels": 1, "depth": 16, "clahe": "2,4", "crop": "squash"},
    {"window": "100,150", "crop": "none"},
]


@pytest.mark.parametrize("how", SETTINGS, ids=str)
@pytest.mark.parametrize("workers", [0, 2])
def test_as_numpy_over_all_pixels(folder: Path, how: dict[str, Any], workers: int) -> None:
    """Mean, deviation, least and most are NumPy's over all pixels that extract would read."""
    settings = Settings(layers="fc7", **{"size": 32, **how}, workers=workers)
    preprocess = settings.preprocess()
    images = sorted(path for path in (folder / "images").iterdir() if path.stem != "broken")
    decoded = [decode_file(bytes(path), preprocess, 10**7) for path in images]
    pixels = np.concatenate([one.reshape(-1, preprocess.channels) for one in decoded])
    found = library.stats(folder / "images", settings)
    assert (found.images, found.failed, found.pixels) == (COUNT + 4, 1, len(pixels))
    for name, values in (
        ("mean", pixels.mean(axis=0)),
        ("std", pixels.std(axis=0)),
        ("minimum", pixels.min(axis=0)),
        ("maximum", pixels.max(axis=0)),
    ):
        measured = [getattr(channel, name) for channel in found.channels]
        np.testing.assert_allclose(measured, values / preprocess.white, rtol=1e-12)
    assert found.failures[0].path == "broken.jpg"


def test_values_in_the_files(folder: Path) -> None:
    """Range and percentiles are NumPy's over the values of all files; kinds are counted."""
    settings = Settings(layers="fc7", size=32, channels=1, workers=0)
    arrays = []
    for path in sorted((folder / "images").glob("*.[pt][ni][gf]")):
        image = Image.open(path)
        arrays.append(np.asarray(image if image.mode != "RGB" else image.convert("L")).ravel())
    values = np.concatenate(arrays)
    found = library.stats([folder / "images"], settings).values
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    assert found.exact
    np.testing.assert_allclose(list(found.percentiles.values()), np.percentile(values, PERCENTILES))
    assert found.kinds == {"PNG RGB": COUNT, "TIFF I;16": 4}
    assert found.bits == {"8": COUNT, "16": 4}


@effort(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(-32768, 65535), min_size=1, max_size=30), min_size=1, max_size=6)
)
def test_percentiles_of_whole_numbers_are_exact(images: list[list[int]]) -> None:
    """However whole numbers are dealt to images, and in whatever type, NumPy finds the same."""
    histogram = ValueHistogram()
    for number, image in enumerate(images):
        histogram.add(count_values(np.array(image, np.float64 if number % 2 else np.int32)))
    together = np.concatenate(images)
    np.testing.assert_allclose(
        histogram.percentiles([0, 10, 50, 99.5, 100]),
        np.percentile(together, [0, 10, 50, 99.5, 100]),
        atol=1e-9,
    )
    assert histogram.exact
    assert (histogram.lowest, histogram.highest) == (together.min(), together.max())


def test_percentiles_of_floats_are_near() -> None:
    """Of many floats a sample is kept, which is near, says so, and does not grow for ever."""
    histogram = ValueHistogram()
    own = np.random.default_rng(0)
    everything = []
    for _ in range(300):
        values = own.normal(0.3, 2.0, 20_000)
        histogram.add(count_values(values))
        everything.append(values)
    assert not histogram.exact
    found = histogram.percentiles([1, 50, 99])
    np.testing.assert_allclose(found, np.percentile(everything, [1, 50, 99]), atol=0.03)
    assert histogram._kept <= 1 << 20
    assert histogram.lowest == np.min(everything)


def test_nothing_but_nan() -> None:
    """An image without a finite value adds nothing."""
    histogram = ValueHistogram()
    histogram.add(count_values(np.array([np.nan, np.inf])))
    assert np.isnan(histogram.percentiles([50])).all()
    histogram.add(count_values(np.array([3.0, np.nan])))
    assert histogram.percentiles([50]) == [3.0]


def test_a_sample(folder: Path) -> None:
    """Of a sample only so many images are read."""
    settings = Settings(layers="fc7", size=32, workers=0)
    assert library.stats([folder / "images"], settings, sample=3).images <= 3


def test_nothing_can_be_read(folder: Path) -> None:
    """If no image can be read, that is an error which names the first and why."""
    with pytest.raises(InputError, match=r"none of 1 image can be read; the first is 'broken.jpg'"):
        library.stats([folder / "images" / "broken.jpg"], Settings(layers="fc7", workers=0))


def test_the_config_it_writes_reads_images_alike(folder: Path) -> None:
    """From the command line: the file written is taken by --config, with the mean it measured."""
    words = ["stats", "images", "--size", "32", "--channels", "1", "--depth", "16"]
    words += ["--window", "900,1800", "--out", "s.toml"]
    done = vggfeat(*words, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "broken.jpg: " in done.stdout
    assert "PNG RGB 13" in done.stdout
    found = library.stats(
        [folder / "images"],
        Settings(layers="fc7", size=32, channels=1, depth=16, window="900,1800", workers=0),
    )
    mean, std = (f"{getattr(found.channels[0], name):.6g}" for name in ("mean", "std"))
    assert f"--mean {mean} --std {std}" in done.stdout
    assert (folder / "s.toml").read_text() == as_config(found)
    settings = make_settings(str(folder / "s.toml"), {"layers": "conv1_1"})
    preprocess = settings.preprocess()
    assert preprocess.mean == (float(mean),)
    assert (preprocess.channels, preprocess.depth, preprocess.size) == (1, 16, 32)
    assert preprocess.window == (900.0, 1800.0)


def test_as_json(folder: Path) -> None:
    """The figures are JSON on standard output, and nothing else is."""
    done = vggfeat("stats", "images", "--size", "32", "--json", cwd=folder)
    told = json.loads(done.stdout)
    assert told["images"] == COUNT + 4
    assert len(told["channels"]) == 3
    assert told["settings"]["mean"] == pytest.approx(
        [one["mean"] for one in told["channels"]], 1e-4
    )


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(folder: Path, tmp_path: Path, signum: int) -> None:
    """A signal ends it at once with one line and the shell's status, and no file is written."""
    place = tmp_path / "many"
    place.mkdir()
    for number in range(3000):
        (place / f"{number}.png").symlink_to(folder / "images" / "12.png")
    words = [
        "stats",
        str(place),
        "--size",
        "1024",
        "--clahe",
        "2",
        "--workers",
        "1",
        "-o",
        str(tmp_path / "s.toml"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "vggfeat", *words], stderr=subprocess.PIPE, text=True
    )
    # Past the forks, within which Python passes over what a handler raises: a worker has worked.
    while not any(cpu_seconds(int(worker)) > 0.3 for worker in workers(process.pid)):
        time.sleep(0.05)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 128 + signum
    assert errors == "vggfeat: stopped; nothing was measured\n"
    assert not (tmp_path / "s.toml").exists()


def workers(pid: int) -> list[str]:
    """Children that run the same program; libraries start others, such as uname, on import."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = Path(f"/proc/{pid}/cmdline").read_bytes()
    found = []
    for child in children:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/cmdline").read_bytes() == own:
                found.append(child)
    return found


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nowhere"], 3, "nowhere"),
        (["images", "--out", "s.txt"], 2, "out is 's.txt'; expected a name that ends in .toml"),
        (["images", "--sample", "0"], 2, "sample is 0; expected 1 image or more"),
        (["images", "--clip", "9"], 2, "clip is '9'; expected two percentiles"),
        (["images/broken.jpg"], 3, "none of 1 image can be read"),
    ],
)
def test_wrong_usage(folder: Path, words: list[str], code: int, message: str) -> None:
    """Wrong options and missing images are one line and the exit code of their kind."""
    assert_one_line(vggfeat("stats", *words, cwd=folder), code, message)
