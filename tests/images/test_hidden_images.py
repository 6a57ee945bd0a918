"""Hidden images and folders, as a user is told of them."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from command_line import SMALL, assert_one_line, vggfeat, write_images

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images in sight, two hidden ones, and a hidden folder of two more."""
    folder = write_images(tmp_path / "images", 2)
    shutil.copy(folder / "00.png", folder / ".photo.png")
    (folder / "._00.png").write_bytes(b"\0\5\26\7")
    write_images(folder / ".thumbnails", 2)
    return folder


@pytest.mark.parametrize("archive", [False, True])
def test_a_run_says_what_is_hidden(images: Path, archive: bool, tmp_path: Path) -> None:
    """Counts stand in the notice at the start, once, in the summary and in its JSON."""
    source = shutil.make_archive(str(tmp_path / "a"), "tar", images) if archive else str(images)
    done = vggfeat("extract", source, *SMALL, "--out", "a.h5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = "2 hidden images and 1 hidden folder (names that begin with a dot); name them as sources"
    assert done.stderr.count(f"vggfeat: skipped {told}") == 1
    assert f"  hidden   {told}" in done.stdout
    found = vggfeat("extract", source, *SMALL, "--out", "b.h5", "--json", cwd=tmp_path)
    assert json.loads(found.stdout)["skipped"] == {"hidden folder": 1, "hidden image": 2}


def test_shards_say_it_too(images: Path, tmp_path: Path) -> None:
    """A sharded run tells it where it lists the images."""
    words = ["extract", str(images), *SMALL, "--out", "feats/", "--json"]
    found = json.loads(vggfeat(*words, cwd=tmp_path).stdout)
    assert found["skipped"] == {"hidden folder": 1, "hidden image": 2}
    assert json.loads(vggfeat(*words, cwd=tmp_path).stdout)["skipped"] == {}


def test_what_is_named_itself_is_taken(images: Path, tmp_path: Path) -> None:
    """A hidden file and a hidden folder that are named are sources like others."""
    words = ["extract", f"{images}/.photo.png", f"{images}/.thumbnails", *SMALL, "--out", "a.h5"]
    found = json.loads(vggfeat(*words, "--json", cwd=tmp_path).stdout)
    assert (found["done"], found["skipped"]) == (3, {})


def test_nothing_but_hidden_images_is_told(images: Path, tmp_path: Path) -> None:
    """A folder whose images are all hidden is no empty folder."""
    for name in ("00.png", "01.png"):
        (images / name).unlink()
    done = vggfeat("extract", "images", *SMALL, "--out", "a.h5", cwd=tmp_path)
    assert_one_line(done, 3, "no images in 'images' but 2 hidden images and 1 hidden folder (names")
    (images / "notes.txt").write_text("x")
    done = vggfeat("extract", "images", *SMALL, "--out", "a.h5", cwd=tmp_path)
    assert_one_line(done, 3, "1 file skipped", "2 hidden images and 1 hidden folder")
