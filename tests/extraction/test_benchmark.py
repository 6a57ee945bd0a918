"""`vggfeat bench`: what it recommends follows from what it measured, and `extract` takes it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from command_line import assert_one_line, vggfeat, write_images

from vggfeat.cli.bench import Told
from vggfeat.core.records import as_plain
from vggfeat.core.resources import usable_cores
from vggfeat.core.settings import Settings
from vggfeat.errors import InputError, SpaceError, UsageError
from vggfeat.extraction.benchmark import (
    Decoding,
    Disk,
    Forward,
    Machine,
    Measured,
    advise,
    bench,
    find_limit,
    smallest_good,
)

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
    others = ["limit", "faster", "use"]
    assert subjects[:5] == ["measuring", "machine", "decoding", "disk", "network"]
    assert [subject for subject in subjects[5:] if subject] == others
    assert "(3 of the images, " in done.stdout
    options = done.stdout.splitlines()[-1].split()[1:]
    words = ["extract", "images", *QUICK[:6], "--weights", "random:0", "--out", "feats.h5"]
    assert vggfeat(*words, *options, cwd=tmp_path).returncode == 0


def test_figures_as_json(tmp_path: Path) -> None:
    """Every figure is a rate above nothing; what is slowest limits; one object is printed."""
    done = vggfeat("bench", *QUICK, "--json", "--decode", "torchvision", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert (found["sample"], found["cores"]) == (0, usable_cores())
    assert (found["row_bytes"], found["decoder"]) == (128, "torchvision")
    assert min(found["decode"], found["decode_together"], found["write"]) > 0
    assert list(found["walls"]) == ["decoding", "network", "disk", "main thread"]
    assert found["walls"][found["limit"]] == min(found["walls"].values())
    assert 0 < found["images_per_second"] <= found["walls"][found["limit"]]
    tried = {(one["precision"], one["batch_size"]) for one in found["forward"]}
    assert len(tried) == len(found["forward"]) >= 1
    assert found["precision"] in {precision for precision, _ in tried}
    assert list(tmp_path.iterdir()) == []


def test_figures_come_while_it_measures_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    """Through a pipe each line is there at once; the end leaves what was measured by then."""
    words = [sys.executable, "-m", "vggfeat", "bench", *QUICK[:6], "--seconds", "3600"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("measuring for about 1 h 00 min")
        assert process.stdout.readline().startswith("machine ")
        process.send_signal(signal.SIGINT)
        others, errors = process.communicate(timeout=600)
    assert process.returncode == 130, errors
    assert errors == "vggfeat: stopped; what is printed was measured by then\n"
    assert "limit" not in others
    assert list(tmp_path.iterdir()) == []  # the synthetic photographs are gone


def test_what_is_measured_is_told_by_its_names_in_the_result() -> None:
    """An early end in JSON has the names of the whole, with the figures that were told by then."""
    told = Told("conv1_1", as_json=True)
    figures: list[Measured] = []

    def tell(figure: Measured) -> None:
        told(figure)
        figures.append(figure)

    found = as_plain(bench(SETTINGS, seconds=0.05, on_figure=tell))
    kinds = [type(figure) for figure in figures]
    assert kinds[:4] == [Machine, Decoding, Disk, Forward]
    early = told.as_plain()
    assert early.pop("stopped") is True
    early.pop("main_thread")
    assert early == {name: found[name] for name in early} | {"forward": list(found["forward"])}
    assert early["decode"] > 0


MACHINE = Machine("cuda", 2, 2)
ON_CPU = Machine("cpu", 2, 2)


@pytest.mark.parametrize(
    ("rates", "machine", "expected"),
    [
        ((800.0, 10.0, 1e6, 1e5), MACHINE, ("network", 10.0)),
        ((800.0, 9000.0, 1e6, 1e5), MACHINE, ("decoding", 800.0)),
        ((800.0, 9000.0, 50.0, 1e5), MACHINE, ("disk", 50.0)),
        ((8e4, 9000.0, 1e6, 7e3), MACHINE, ("main thread", 7e3)),
        ((800.0, 800.0, 1e6, 1e5), ON_CPU, ("decoding", 400.0)),
        ((400.0, 300.0, 20.0, 1e5), Machine("cpu", 2, 1), ("disk", 20.0)),
        # Two of 32 cores decode, and take little of the others' time: they are the wall themselves.
        ((400.0, 1600.0, 1e6, 1e5), Machine("cpu", 32, 2), ("decoding", 400.0)),
    ],
)
def test_the_slowest_limits(
    rates: tuple[float, ...], machine: Machine, expected: tuple[str, float]
) -> None:
    """The slowest stage is named; on a CPU network and decoding share the cores."""
    walls = dict(zip(("decoding", "network", "disk", "main thread"), rates, strict=True))
    assert find_limit(walls, machine) == expected


@pytest.mark.parametrize(
    ("limit", "machine", "decode", "expected"),
    [
        ("decoding", MACHINE, "torchvision", "--decode gpu decodes on the device; more cores"),
        ("decoding", MACHINE, "gpu", "more cores; smaller images"),
        ("decoding", ON_CPU, "exact", "--decode torchvision, whose pixels differ slightly"),
        ("network", MACHINE, "exact", "further GPUs (--device all); layers nearer to the input"),
        ("network", ON_CPU, "exact", "a GPU; "),
        ("disk", ON_CPU, "exact", "name a folder on a faster disk"),
        ("main thread", MACHINE, "exact", "start a process for each part of the images"),
    ],
)
def test_the_advice_is_about_the_limit(
    limit: str, machine: Machine, decode: Any, expected: str
) -> None:
    """What to do about a wall depends on where the network runs, and on how it decodes."""
    settings = dataclasses.replace(SETTINGS, decode=decode)
    assert advise(limit, settings, machine).startswith(expected)


def test_the_smallest_batch_that_is_fast_enough() -> None:
    """A larger batch must be worth it."""
    tried = [Forward("float32", size, rate) for size, rate in ((32, 102.0), (16, 100.0), (4, 90.0))]
    assert smallest_good(tried).batch_size == 16


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    """No image to decode, no place to write and no such time are errors of their kinds."""
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(
        InputError, match=r"none of the images sampled can be decoded; .*\(the last"
    ):
        bench(SETTINGS, [str(tmp_path)], seconds=0.01)
    with pytest.raises(SpaceError, match=r"nowhere' cannot be written to: No such file"):
        bench(SETTINGS, folder=tmp_path / "nowhere", seconds=0.01)
    for seconds in (-1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=rf"seconds is {seconds:g}; expected 0 to 3600"):
            bench(SETTINGS, seconds=seconds)
    done = vggfeat("bench", "gone", *QUICK, cwd=tmp_path)
    assert_one_line(done, 3, "cannot find 'gone'")
