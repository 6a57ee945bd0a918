"""`file:` addresses (RFC 8089) wherever a path may stand."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from command_line import SMALL, assert_one_line, vggfeat, write_images

import vggfeat as package
from vggfeat.errors import UsageError
from vggfeat.images.sources import discover
from vggfeat.storage.paths import absolute_place, local_path, path_text


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("file:///a%20b/c.jpg", "/a b/c.jpg"),
        ("file://localhost/a", "/a"),
        ("FILE://LocalHost/a", "/a"),
        ("file:/a/b", "/a/b"),
        ("file:///a%23b%3Fc%25", "/a#b?c%"),
        ("file:///100%/ü", "/100%/ü"),
        ("file:///", "/"),
        ("file:a.jpg", "file:a.jpg"),
        ("./file:/a", "./file:/a"),
        ("s3://bucket/a%20b", "s3://bucket/a%20b"),
        ("/a%20b", "/a%20b"),
    ],
)
def test_addresses_become_paths(address: str, path: str) -> None:
    """Escapes are decoded, as text and as bytes; everything else stays as it is."""
    assert local_path(address) == path
    assert local_path(os.fsencode(address)) == os.fsencode(path)
    assert path_text(address) == path
    assert path_text(Path(address)) == os.fspath(Path(address))


def test_escaped_bytes_are_the_file_systems_own() -> None:
    """An escape may stand for a byte that is no UTF-8."""
    assert local_path(b"file:///%ff.jpg") == b"/\xff.jpg"
    assert absolute_place("file:///a/../%ff.jpg") == os.fsdecode(b"/\xff.jpg")


@pytest.mark.parametrize(
    "address", ["file://server/share/a", "file://", "file:///%00", "file://C:/"]
)
def test_other_hosts_are_refused(address: str) -> None:
    """Another host, no path or a NUL is refused with what is expected."""
    with pytest.raises(
        UsageError, match=r"^'file:.*' names no file of this machine; expected file:"
    ):
        discover([address])


def test_sources_and_lists_may_hold_addresses(tmp_path: Path) -> None:
    """A folder, a file, a list and the lines of a list may be addresses, the root too."""
    images = write_images(tmp_path / "a b", 2)
    one = (images / "00.png").as_uri()
    (tmp_path / "my list.txt").write_text(f"{one}\n{images}/01.png\n")
    names = [b"00.png", b"01.png"]
    assert list(discover([images.as_uri()]).paths) == names
    assert list(discover([one, str(images / "01.png")]).paths) == names
    assert list(discover([f"@{(tmp_path / 'my list.txt').as_uri()}"]).paths) == names
    data = f"{one}\0{images.as_uri()}/01.png\0".encode()
    assert list(discover(["-"], stdin=io.BytesIO(data)).paths) == names
    rooted = discover([one], root=tmp_path.as_uri())
    assert (rooted.root, rooted.paths) == (os.fsencode(tmp_path), (b"a b/00.png",))


def test_outputs_and_caches_may_be_addresses(tmp_path: Path) -> None:
    """A run and the commands on its cache take addresses, and make what the paths would."""
    images = write_images(tmp_path / "a b", 3)
    out = (tmp_path / "out put.h5").as_uri()
    done = vggfeat("extract", images.as_uri(), *SMALL, "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = vggfeat("extract", images, *SMALL, "--out", "out put.h5", cwd=tmp_path)
    assert "nothing left to do" in again.stdout
    assert len(package.open(out)) == 3
    assert not package.verify(out).bad
    assert package.search(out, rows=["00.png"], layers=["conv1_1"], top=1).answers
    for words in (
        ["inspect", out],
        ["merge", out, out, "--out", (tmp_path / "merged.h5").as_uri()],
        ["reduce", out, "--dims", "2", "--out", f"file:{tmp_path}/reduced.h5"],
        ["export", out, "--to", "csv", "--out", f"file://localhost{tmp_path}/rows.csv"],
    ):  # fmt: skip
        done = vggfeat(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    expected = ["a b", "merged.h5", "out put.h5", "reduced.h5", "rows.csv"]
    made = sorted(
        name for name in os.listdir(tmp_path) if not name.endswith((".lock", ".model.h5"))
    )
    assert made == expected
    refused = vggfeat("inspect", "file://server/x.h5", cwd=tmp_path)
    assert_one_line(refused, 2, "'file://server/x.h5' names no file of this machine")


def test_a_sharded_cache_may_be_an_address(tmp_path: Path) -> None:
    """A folder of shards is planned from addresses as from paths, and resumes from either."""
    images = write_images(tmp_path / "images", 3)
    out = (tmp_path / "feats").as_uri() + "/"
    words = [*SMALL, "--shards", "2"]
    done = vggfeat("extract", images.as_uri(), *words, "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = vggfeat("extract", "images", *words, "--out", "feats/", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "nothing left to do" in again.stdout
    assert len(package.open(out)) == 3
