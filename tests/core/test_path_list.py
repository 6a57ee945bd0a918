"""Lists of paths: encodings, separators, and what is no list."""

from __future__ import annotations

import codecs
import io
import os
import shutil
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from PIL import Image

from vggfeat.core.path_list import read_paths
from vggfeat.errors import UsageError
from vggfeat.images.sources import discover

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAMES = ["größe.jpg", "sub/猫.png", "a b.jpg"]
TEXT = "\n".join(NAMES) + "\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the current one, that holds files of the names, and others."""
    for name in [*NAMES, "other.jpg", "a", "b"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths_of(data: bytes, exists: Callable[[bytes], bool] = os.path.lexists) -> list[bytes]:
    return list(read_paths(data, "list 'x'", exists))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "big endian"])
def test_lists_are_decoded_by_their_mark(encoding: str, end: str, here: Path) -> None:
    """UTF-8 with or without a mark and UTF-16 of either order give the same images."""
    text = TEXT.replace("\n", end)
    big = encoding == "big endian"
    data = codecs.BOM_UTF16_BE + text.encode("utf-16-be") if big else text.encode(encoding)
    (here / "list.txt").write_bytes(data)
    expected = sorted(map(os.fsencode, NAMES))
    assert list(discover(["@list.txt"]).paths) == expected
    assert list(discover(["-"], stdin=io.BytesIO(data)).paths) == expected


def test_a_list_by_powershell_names_only_its_images(here: Path) -> None:
    """A UTF-16 list ends a real run with its own images, and not with all below the folder."""
    Image.new("RGB", (40, 40)).save(here / "photo.png")
    (here / "list.txt").write_bytes(".\\photo.png\r\n".replace("\\", "/").encode("utf-16"))
    words = ["extract", "@list.txt", "--model", "vgg11", "--weights", "random:0", "--layers"]
    words += ["pool1", "--device", "cpu", "--workers", "0", "--out", "out.h5"]
    command = [sys.executable, "-m", "vggfeat", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with h5py.File("out.h5") as file:
        assert file["images/path"][:].tolist() == [b"photo.png"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "text", [TEXT, "a", "ab\ncd\n", "./图/1.jpg\r\n", "/data/数据集/图像/1.jpg\n"]
)
def test_utf16_without_a_mark_is_refused(text: str, encoding: str, here: Path) -> None:
    """Without a mark UTF-16 is recognised, and refused by name."""
    (here / "a").unlink()
    (here / "b").unlink()
    with pytest.raises(UsageError, match=r"list 'x' is UTF-16 without a byte order mark; save it"):
        paths_of(text.encode(encoding))


def test_single_letters_that_exist_are_paths(here: Path) -> None:
    """Folders or files named by one letter may stand in a list with NULs between them."""
    del here
    assert paths_of(b"a\0b\0") == [b"a", b"b"]
    assert paths_of(b"a\0q\0b\0") == [b"a", b"q", b"b"]


def test_bytes_stay_bytes(here: Path) -> None:
    """Paths that are no UTF-8 come through a list of lines and one of `find -print0`."""
    odd = [b"\xe4.jpg", b"\xff\xfe.jpg", b"\x81\x5c\x93.png"]
    for name in odd:
        with open(os.path.join(os.fsencode(here), name), "wb"):
            pass
    command = ["find", ".", "-type", "f", "-print0"]
    found = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    for data in (b"\n".join(b"./" + name for name in odd), found.stdout):
        assert {*odd} <= {os.path.normpath(path) for path in paths_of(data)}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"one\r\ntwo\r\n", [b"one", b"two"]),
        (b"one\r\ntwo\n", [b"one", b"two"]),
        (b"only\r\ntwo\r\nboth\r\n", [b"only\r", b"two", b"both"]),
        (b"only\r\0one\0", [b"only\r", b"one"]),
        (b"one\rtwo\rboth\r", [b"one", b"two", b"both"]),
        (b"one\r\rtwo\n", [b"one", b"two"]),
        (b"in\rside\n", [b"in\rside"]),
        (b"in\rside\r\none", [b"in\rside", b"one"]),
        (b"only\r", [b"only\r"]),
    ],
)
def test_a_carriage_return_belongs_to_a_path_that_exists_only_with_it(
    data: bytes, expected: list[bytes]
) -> None:
    """Line ends of Windows are removed, real carriage returns are kept."""
    existing = {b"one", b"two", b"only\r", b"both", b"both\r", b"in\rside"}
    assert paths_of(data, existing.__contains__) == expected


@pytest.mark.parametrize(
    "entry",
    [".", "/", "..", "./", "//", "../..", "/.", "../", "./.", "img/..", "/a/b/../", "a/.././"],
)
@pytest.mark.parametrize("separator", ["\n", "\0", "\r\n", "\r"])
def test_an_entry_for_a_whole_folder_is_refused(entry: str, separator: str) -> None:
    """The current folder, those above it and the root are refused with the number of the line."""
    data = separator.join(["first.jpg", "", entry, "last.jpg"]).encode()
    where = "entry" if separator == "\0" else "line"
    with pytest.raises(UsageError, match=rf"list 'x', {where} 3: '.*' would take in everything"):
        paths_of(data)


def test_folders_with_dots_are_no_such_entries() -> None:
    """Full paths, `...` and names that begin with dots are paths."""
    names = [b"...", b".hidden", b"../up.jpg", b"/data", b"./a", b"..a", b"s3://bucket"]
    names += [b"a/...", b"a/../b", b"img/.", b"img/"]
    assert paths_of(b"\n".join(names)) == names


def test_the_root_as_an_address_is_refused() -> None:
    """A `file:` address of the root is what it stands for."""
    with pytest.raises(UsageError, match=r"line 1: '/' would take in everything"):
        discover(["-"], stdin=io.BytesIO(b"file:///\n"))


def test_comments_are_skipped_and_said(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A line that begins with `#` is an image that exists, or else a comment, said once."""
    (here / "#1.jpg").write_bytes(b"x")
    (here / "#list.txt").write_text("# photos of May\n#1.jpg\n./#2.jpg\n#3.jpg\nother.jpg\n")
    with caplog.at_level("WARNING"):
        assert list(discover(["@#list.txt"]).paths) == [b"#1.jpg", b"#2.jpg", b"other.jpg"]
    notice = (
        "list '#list.txt': lines skipped as comments, because they begin with '#' and no such file "
        "exists: 2 (line 1: '# photos of May'); write ./ before the # of a path"
    )
    assert [record.getMessage() for record in caplog.records] == [notice]


def test_lists_by_nul_have_no_comments() -> None:
    """What `find -print0` and other programs write is paths alone."""
    assert paths_of(b"# a\0b.jpg\0") == [b"# a", b"b.jpg"]


def _write_binaries(folder: Path) -> None:
    picture = Image.effect_noise((64, 64), 50).convert("RGB")
    for kind in ("jpg", "png", "gif", "bmp", "tif", "webp", "ppm"):
        picture.save(folder / f"photo.{kind}")
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.write(folder / "photo.jpg", "photo.jpg")
    (folder / "inner").mkdir()
    picture.save(folder / "inner" / "photo.jpg")
    for kind in ("tar", "gztar", "bztar", "xztar"):
        shutil.make_archive(str(folder / "archive"), kind, folder / "inner")
    shutil.rmtree(folder / "inner")
    with h5py.File(folder / "cache.h5", "w") as file:
        file["x"] = np.arange(100.0)
    noise = np.random.default_rng(0)
    np.save(folder / "array.npy", noise.normal(size=(30, 30)))
    (folder / "floats.bin").write_bytes(noise.normal(size=900).astype("<f4").tobytes())
    (folder / "bytes.bin").write_bytes(noise.integers(1, 256, 2000, dtype=np.uint8).tobytes())
    (folder / "line.txt").write_bytes(b"x" * 10_000)


def test_what_is_no_list_is_refused(here: Path) -> None:
    """Images, archives, arrays, HDF5 files and other data given as a list are refused by name."""
    _write_binaries(here)
    names = sorted(set(os.listdir()) - {*NAMES, "other.jpg", "a", "b", "sub"})
    assert len(names) == 17
    for name in names:
        with pytest.raises(UsageError, match=rf"^list '{name}' is .*leave the @ out$"):
            discover([f"@{name}"])
        data = (here / name).read_bytes()
        with pytest.raises(UsageError, match=r"^the list on standard input is "):
            discover(["-"], stdin=io.BytesIO(data))


def test_broken_or_wider_unicode_is_refused() -> None:
    """Half a character behind a mark of UTF-16, and UTF-32, are refused."""
    with pytest.raises(UsageError, match=r"byte order mark of UTF-16, and is not UTF-16"):
        paths_of(b"\xff\xfea")
    with pytest.raises(UsageError, match="is in UTF-32"):
        paths_of("a.jpg\n".encode("utf-32"))


def test_an_odd_name_that_exists_makes_a_list() -> None:
    """A first path that begins like a program or archive, and exists, is believed."""
    first = b"PK\3\4.jpg"
    assert paths_of(first + b"\nb.jpg\n", {first}.__contains__) == [first, b"b.jpg"]
