"""Sources that vanish during a run leave their rows pending; one image that does is a failure."""

from __future__ import annotations

import shutil
import zipfile
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from killing import SETTINGS
from PIL import Image

import vggfeat
from vggfeat.cache.sharding import Sharding
from vggfeat.errors import InputError, TooManyFailuresError
from vggfeat.extraction.vanishing import SourceGuard
from vggfeat.images.sources import discover

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vggfeat.core.records import Progress

COUNT = 40


def make_images(folder: Path, count: int = COUNT) -> Path:
    folder.mkdir(parents=True)
    noise = np.random.default_rng(1)
    for number in range(count):
        pixels = noise.integers(0, 256, (40, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


def after_two_batches(act: Callable[[], object]) -> Callable[[Progress], None]:
    """What is told of a run's progress, and acts once."""
    seen: list[int] = []

    def told(_: Progress) -> None:
        seen.append(1)
        if len(seen) == 2:
            act()

    return told


def extract(sources: Any, out: Path, **more: Any) -> vggfeat.Summary:
    settings = vggfeat.Settings(**{**SETTINGS, **more.pop("settings", {})})
    return vggfeat.extract(sources, out, settings, **more)


def states(out: Path) -> list[int]:
    files = [out] if out.is_file() else sorted(out.glob("shard-*.h5"))
    found = []
    for path in files:
        with h5py.File(path, "r", locking=False) as file:
            found.append(file["images/state"][()])
    return [int(count) for count in np.bincount(np.concatenate(found), minlength=4)]


@pytest.mark.parametrize("kind", ["moved", "emptied", "list", "single"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_that_vanishes(tmp_path: Path, kind: str, workers: int) -> None:
    """Its images are no failures: the run ends as one that begins without them, and goes on."""
    images, away, out = make_images(tmp_path / "images"), tmp_path / "away", tmp_path / "out.h5"
    sources: Any = images
    if kind == "list":
        listed = tmp_path / "list.txt"
        listed.write_text("\n".join(map(str, images.iterdir())))
        sources = f"@{listed}"
    elif kind == "single":
        sources = sorted(images.iterdir())

    def vanish() -> None:
        if kind == "emptied":
            shutil.copytree(images, away, copy_function=shutil.copy2)
            for path in images.iterdir():
                path.unlink()
        else:
            images.rename(away)

    with pytest.raises(InputError, match=rf"source '{images}' has gone .*no longer mounted\?"):
        extract(sources, out, on_progress=after_two_batches(vanish), settings={"workers": workers})
    pending, done, failed, _ = states(out)
    assert (failed, done + pending) == (0, COUNT)
    assert done >= 8
    assert pending >= 8
    if images.exists():
        images.rmdir()
    away.rename(images)
    assert extract(sources, out).done == COUNT


def test_a_folder_of_shards_that_vanishes(tmp_path: Path) -> None:
    """The same for the shard that is under way, and none is begun after it."""
    images, away, out = make_images(tmp_path / "images"), tmp_path / "away", tmp_path / "out"
    with pytest.raises(InputError, match="has gone since the run began"):
        extract(
            images, out, sharding=Sharding(shards=2),
            on_progress=after_two_batches(lambda: images.rename(away)),
        )  # fmt: skip
    pending, done, failed, _ = states(out)
    assert (failed, done + pending) == (0, COUNT)
    assert 8 <= done < 20
    away.rename(images)
    assert extract(images, out).done == COUNT


def test_an_archive_that_vanishes(tmp_path: Path) -> None:
    """An archive is a source as a folder is; images beside it that are there do not hide it."""
    images, out = make_images(tmp_path / "images", 6), tmp_path / "out.h5"
    archive, away = tmp_path / "a.zip", tmp_path / "away"
    with zipfile.ZipFile(archive, "w") as file:
        for path in make_images(tmp_path / "members", COUNT).iterdir():
            file.write(path, path.name)

    def vanish() -> None:
        """What an unmounted disk does to a file that is open, too: it cannot be read on."""
        shutil.copy2(archive, away)
        with archive.open("ab") as opened:
            opened.truncate(0)
        archive.unlink()

    with pytest.raises(InputError, match=rf"source '{archive}' has gone"):
        extract([images, archive], out, root=str(tmp_path), on_progress=after_two_batches(vanish))
    assert states(out)[2] == 0
    away.rename(archive)
    assert extract([images, archive], out, root=str(tmp_path)).done == COUNT + 6


def test_one_source_of_two_vanishes(tmp_path: Path) -> None:
    """A folder that is gone is found beside another that is there."""
    first, second = make_images(tmp_path / "a"), make_images(tmp_path / "b")
    out = tmp_path / "out.h5"
    with pytest.raises(InputError, match=rf"source '{first}' has gone"):
        extract(
            [first, second], out,
            on_progress=after_two_batches(lambda: first.rename(tmp_path / "away")),
        )  # fmt: skip
    assert states(out)[2] == 0


@pytest.mark.parametrize("gone", ["one", "folder"])
def test_images_that_are_deleted_are_failures(tmp_path: Path, gone: str) -> None:
    """Where others of their source are there, deleted images fail, and the run goes on."""
    images, out = make_images(tmp_path / "images"), tmp_path / "out.h5"
    inner = make_images(images / "inner", 3)

    def delete() -> None:
        (images / "030.png").unlink()
        if gone == "folder":
            shutil.rmtree(inner)

    summary = extract(images, out, on_progress=after_two_batches(delete))
    failed = {"030.png"} | (
        {f"inner/{number:03}.png" for number in range(3)} if gone == "folder" else set()
    )
    assert {failure.path for failure in summary.failures} == failed
    assert (summary.failed, summary.pending) == (len(failed), 0)
    assert "gone since it was listed" in summary.failures[0].reason


def test_stopping_at_a_deleted_image(tmp_path: Path) -> None:
    """--on-error stop ends at it, as at any that fails, once its folder is known to be there."""
    images, out = make_images(tmp_path / "images"), tmp_path / "out.h5"
    with pytest.raises(TooManyFailuresError, match=r"'030\.png' failed: no such file"):
        extract(
            images, out, settings={"on_error": "stop"},
            on_progress=after_two_batches((images / "030.png").unlink),
        )  # fmt: skip
    assert states(out)[2] == 0


def test_a_list_that_names_nothing_real(tmp_path: Path) -> None:
    """Images that were not there when they were listed are failures, as they always were."""
    listed = tmp_path / "list.txt"
    images = make_images(tmp_path / "images", 4)
    names = [*map(str, images.iterdir()), *(str(tmp_path / f"no/{n}.png") for n in range(8))]
    listed.write_text("\n".join(names))
    summary = extract(f"@{listed}", tmp_path / "out.h5")
    assert (summary.done, summary.failed) == (4, 8)


def test_few_images_are_looked_for(tmp_path: Path) -> None:
    """However large a source is, some of its images stand for all."""
    images = make_images(tmp_path / "images", 100)
    guard = SourceGuard(discover([images]), [images], lambda row: row)
    assert len(guard._some_of(str(images).encode() + b"/")) <= 32
