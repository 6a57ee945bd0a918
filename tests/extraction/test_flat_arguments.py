"""`extract` takes what `UpdatePolicy` holds as arguments, and shows a bar if so asked."""

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import vggfeat
from vggfeat import errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SETTINGS = vggfeat.Settings(
    layers="conv1_1", model="vgg11", weights="random:0", size=32, device="cpu", workers=0
)


def save(folder: Path, number: int, seed: int = 0) -> None:
    pixels = np.random.default_rng(100 * seed + number).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{number}.png", compress_level=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images and one that is none, extracted to `f.h5` beside them."""
    folder = tmp_path / "images"
    folder.mkdir()
    save(folder, 0)
    save(folder, 1)
    (folder / "2.png").write_bytes(b"no image")
    vggfeat.extract(folder, tmp_path / "f.h5", SETTINGS)
    return folder


def add(folder: Path) -> None:
    save(folder, 3)


def mend(folder: Path) -> None:
    save(folder, 2)


def change_unseen(folder: Path) -> None:
    """Other pixels, in a file of the same size and time."""
    before = (folder / "1.png").stat()
    save(folder, 1, seed=1)
    assert (folder / "1.png").stat().st_size == before.st_size
    os.utime(folder / "1.png", ns=(before.st_atime_ns, before.st_mtime_ns))


CASES: dict[str, tuple[Callable[[Path], None], dict[str, Any], list[int]]] = {
    "update": (add, {"update": True}, [1, 1, 2, 1]),
    "retry_failed": (mend, {"retry_failed": True}, [1, 1, 1]),
    "by_digest": (change_unseen, {"update": True, "by_digest": True}, [1, 1, 2]),
}


@pytest.mark.parametrize("case", CASES)
def test_arguments_are_those_of_the_policy(case: str, folder: Path, tmp_path: Path) -> None:
    """Alone, as a policy and as both, the rows come out the same; without them nothing is done."""
    change, flat, states = CASES[case]
    out = tmp_path / "f.h5"
    before = out.read_bytes()
    change(folder)
    if case != "update":  # which a plain run refuses, for the images differ
        vggfeat.extract(folder, out, SETTINGS)
        assert np.asarray(vggfeat.open(out).state).tolist() == [1, 1, 2]
        assert out.read_bytes() == before
    policy = vggfeat.UpdatePolicy(**flat)
    results = []
    first, *_ = flat
    for arguments in (flat, {"policy": policy}, {first: True, "policy": policy}):
        out.write_bytes(before)
        vggfeat.extract(folder, out, SETTINGS, **arguments)
        with vggfeat.open(out) as cache:
            assert np.asarray(cache.state).tolist() == states
            results.append(np.array(cache["conv1_1"][cache.done]))
    for found in results[1:]:
        np.testing.assert_array_equal(found, results[0])
    right = vggfeat.extract(folder, tmp_path / "right.h5", SETTINGS)
    with vggfeat.open(tmp_path / "right.h5") as cache:
        assert right.done == len(results[0])
        np.testing.assert_array_equal(results[0], cache["conv1_1"][cache.done])


def test_a_bar_is_shown_if_so_asked(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """On standard error, up to the last image, beside the caller's own callback."""
    seen: list[vggfeat.Progress] = []
    vggfeat.extract(folder, tmp_path / "g.h5", SETTINGS, on_progress=seen.append)
    assert "images" not in capfd.readouterr().err
    shown = list(seen)
    vggfeat.extract(folder, tmp_path / "h.h5", SETTINGS, on_progress=seen.append, progress=True)
    assert seen == shown * 2
    captured = capfd.readouterr()
    assert "3/3" in captured.err
    assert "1 failed" in captured.err
    assert not captured.out
    vggfeat.extract(folder, tmp_path / "h.h5", SETTINGS, progress=True)  # nothing is left to do
    assert "images" not in capfd.readouterr().err


def test_all_errors_are_public() -> None:
    """Whatever a caller would catch is a name of the package."""
    own = {name for name, one in vars(errors).items() if inspect.isclass(one)}
    own = {name for name in own if issubclass(getattr(errors, name), errors.VggfeatError)}
    assert len(own) >= 14
    assert own <= set(vggfeat.__all__)
    assert all(getattr(vggfeat, name) is getattr(errors, name) for name in own)
