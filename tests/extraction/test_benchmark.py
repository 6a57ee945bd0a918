"""`vggfeat bench`: what it recommends follows from what it measured, and `extract` takes it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from command_line import assert_one_line, vggfeat, write_images

from vggfeat.core.resources import usable_cores
from vggfeat.core.settings import Settings
from vggfeat.errors import InputError, SpaceError
from vggfeat.extraction.benchmark import Forward, _limit, _smallest_good, bench

if TYPE_CHECKING:
    from pathlib import Path

QUICK = ["--layers", "conv1_1", "--model", "vgg11", "--size", "32", "--seconds", "0.05"]
SETTINGS = Settings(layers="conv1_1", model="vgg11", weights="random:0", size=32, device="cpu")


def test_the_recommendation_is_taken_by_extract(tmp_path: Path) -> None:
    """The line of options it ends with works as it stands."""
    write_images(tmp_path / "images", 3)
    done = vggfeat("bench", "images", *QUICK, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    subjects = [line.split(" ")[0] for line in done.stdout.splitlines()]
    assert subjects == ["machine", "decoding", "network", "", "disk", "limit", "use"]
    assert "(3 of the images, " in done.stdout
    options = done.stdout.splitlines()[-1].split()[1:]
    words = ["extract", "images", *QUICK[:6], "--weights", "random:0", "--out", "feats.h5"]
    assert vggfeat(*words, *options, cwd=tmp_path).returncode == 0


def test_figures_as_json(tmp_path: Path) -> None:
    """Every figure is a rate above nothing; the choice is one of what was tried."""
    done = vggfeat("bench", *QUICK, "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert (found["sample"], found["cores"]) == (0, usable_cores())
    assert found["row_bytes"] == 128
    assert min(found["decode"], found["write"], found["images_per_second"]) > 0
    tried = {(one["precision"], one["batch_size"]) for one in found["forward"]}
    assert len(tried) == len(found["forward"]) >= 4
    assert (found["precision"], found["batch_size"]) in tried
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rates", "device", "expected"),
    [
        ((400.0, 2, 10.0, 1e6), "cuda", ("network", 10.0)),
        ((400.0, 2, 9000.0, 1e6), "cuda", ("decoding", 800.0)),
        ((400.0, 2, 9000.0, 50.0), "cuda", ("disk", 50.0)),
        ((400.0, 2, 800.0, 1e6), "cpu", ("decoding", 400.0)),
        ((400.0, 1, 300.0, 20.0), "cpu", ("disk", 20.0)),
    ],
)
def test_the_slowest_limits(
    monkeypatch: pytest.MonkeyPatch,
    rates: tuple[float, int, float, float],
    device: str,
    expected: tuple[str, float],
) -> None:
    """The slowest stage is named; on a CPU network and decoding share two cores."""
    monkeypatch.setattr("vggfeat.extraction.benchmark.usable_cores", lambda: 2)
    assert _limit(*rates, device) == expected


def test_the_smallest_batch_that_is_fast_enough() -> None:
    """A larger batch must be worth it."""
    tried = [Forward("float32", size, rate) for size, rate in ((32, 102.0), (16, 100.0), (4, 90.0))]
    assert _smallest_good(tried).batch_size == 16


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    """No image to decode and no place to write are errors of their kinds."""
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="none of the images sampled can be decoded"):
        bench(SETTINGS, [str(tmp_path)], seconds=0.01)
    with pytest.raises(SpaceError, match=r"nowhere' cannot be written to: No such file"):
        bench(SETTINGS, folder=tmp_path / "nowhere", seconds=0.01)
    done = vggfeat("bench", "gone", *QUICK, cwd=tmp_path)
    assert_one_line(done, 3, "cannot find 'gone'")
