from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import pytest
from archive_files import (
    CRC,
    LOCAL,
    METHOD,
    PACKED,
    SIZE,
    changed_entry,
    contents,
    lzipped,
    made,
    reason,
    renumbered_zip,
    tar_bytes,
    zip_bytes,
    zstd,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import REPOSITORY

from vggfeat.cache.reader import FeatureCache
from vggfeat.core.settings import Settings
from vggfeat.errors import InputError
from vggfeat.extraction.api import extract
from vggfeat.extraction.update import UpdatePolicy
from vggfeat.images.archive_reader import ArchiveReader, close_archives
from vggfeat.images.skipped import NOT_REGULAR, UNSAFE_NAME
from vggfeat.images.sources import discover

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


TAR = shutil.which("tar")
ZIP = shutil.which("zip")
needs_tar = pytest.mark.skipif(TAR is None, reason="no tar command")
needs_zip = pytest.mark.skipif(ZIP is None, reason="no zip command")

SMALL = {"b.jpg": b"bb", "a/c.png": b"ccc" * 1000, "a.jpg": b"", "d/e/f.gif": b"\0" * 700}


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Iterator[None]:
    yield
    close_archives()


PACK: dict[str, Callable[[Mapping[str, bytes]], bytes]] = {
    "tar": tar_bytes,
    "tar.gz": lambda members: gzip.compress(tar_bytes(members)),
    "tgz": lambda members: gzip.compress(tar_bytes(members, tarfile.PAX_FORMAT)),
    "tar.bz2": lambda members: bz2.compress(tar_bytes(members)),
    "tar.xz": lambda members: lzma.compress(tar_bytes(members)),
    "tar.zst": lambda members: zstd(tar_bytes(members)),
    "zip": zip_bytes,
    "deflated.zip": lambda members: zip_bytes(members, zipfile.ZIP_DEFLATED),
    "tar.lzma": lambda members: lzma.compress(tar_bytes(members), lzma.FORMAT_ALONE),
    "tar.lz": lambda members: lzipped(tar_bytes(members)),
    "lzma.zip": lambda members: zip_bytes(members, zipfile.ZIP_LZMA),
    "xz.zip": lambda members: renumbered_zip(members, 95, lzma.compress),
    "zstd.zip": lambda members: renumbered_zip(members, 93, zstd),
    "bzipped.zip": lambda members: zip_bytes(members, zipfile.ZIP_BZIP2),
}
KINDS = tuple(PACK)


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_rows(kind: str, tmp_path: Path) -> None:
    """Every image in an archive is a row, with its own size, the archive's time and its bytes."""
    archive = made(tmp_path / f"x.{kind}", PACK[kind](SMALL))
    os.utime(archive, ns=(5, 1_234_567_890_123_456_789))
    manifest = discover([archive])
    expected = {f"x.{kind}!{name}": data for name, data in SMALL.items()}
    assert contents(manifest) == expected
    assert list(manifest.paths) == sorted(os.fsencode(name) for name in expected)
    assert manifest.sizes.tolist() == [len(expected[os.fsdecode(name)]) for name in manifest.paths]
    assert manifest.mtimes.tolist() == [1_234_567_890_123_456_789] * 4
    assert manifest.sizes.dtype == manifest.mtimes.dtype == np.int64
    assert manifest.root == os.fsencode(tmp_path)
    assert manifest.absolute(0) == os.fsencode(archive) + b"!a.jpg"


def test_archives_beside_files_and_folders(tmp_path: Path) -> None:
    """Members, files of folders and files named stand in one order, each with its own bytes."""
    (tmp_path / "images").mkdir()
    made(tmp_path / "images/m.jpg", b"in the folder")
    made(tmp_path / "z.dat", b"named")
    one = made(tmp_path / "one.tar", tar_bytes({"2.jpg": b"one two", "1.jpg": b"one one"}))
    two = made(tmp_path / "two.zip", zip_bytes({"2.jpg": b"two two"}))
    manifest = discover([two, tmp_path / "images", one, tmp_path / "z.dat", one])
    assert contents(manifest) == {
        "images/m.jpg": b"in the folder",
        "one.tar!1.jpg": b"one one",
        "one.tar!2.jpg": b"one two",
        "two.zip!2.jpg": b"two two",
        "z.dat": b"named",
    }
    assert manifest.sizes.tolist() == [13, 7, 7, 7, 5]
    assert manifest[2].path == b"one.tar!2.jpg"
    assert manifest.mtimes[2] == one.stat().st_mtime_ns


def test_content_decides_how_a_tar_is_compressed(tmp_path: Path) -> None:
    """A tar.gz that is called .tar is read, and a bare tar that is called .tar.gz."""
    made(tmp_path / "a.tar", gzip.compress(tar_bytes({"1.jpg": b"a"})))
    made(tmp_path / "b.tar.gz", tar_bytes({"1.jpg": b"b"}))
    manifest = discover([tmp_path / "a.tar", tmp_path / "b.tar.gz"])
    assert contents(manifest) == {"a.tar!1.jpg": b"a", "b.tar.gz!1.jpg": b"b"}


def test_suffixes_may_be_capitals(tmp_path: Path) -> None:
    """PHOTOS.ZIP and x.TaR are archives."""
    made(tmp_path / "PHOTOS.ZIP", zip_bytes({"A.JPG": b"a"}))
    made(tmp_path / "x.TaR", tar_bytes({"1.jpg": b"b"}))
    manifest = discover([tmp_path / "PHOTOS.ZIP", tmp_path / "x.TaR"])
    assert contents(manifest) == {"PHOTOS.ZIP!A.JPG": b"a", "x.TaR!1.jpg": b"b"}


def test_webdataset(tmp_path: Path) -> None:
    """Of a WebDataset shard the images are taken and all else is counted."""
    members = {}
    for number in range(3):
        members[f"{number:06}.jpg"] = b"image %d" % number
        members[f"{number:06}.cls"] = b"7"
        members[f"{number:06}.json"] = b"{}"
    shard = made(tmp_path / "0.tar", tar_bytes({**members, "README": b""}))
    (tmp_path / "more").mkdir()
    made(tmp_path / "more/a.json", b"")
    manifest = discover([shard, tmp_path / "more"])
    assert [len(data) for data in contents(manifest).values()] == [7, 7, 7]
    assert manifest.skipped == {"": 1, "cls": 3, "json": 4}


@needs_tar
@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_what_the_tar_command_makes(form: str, tmp_path: Path) -> None:
    """Names and bytes of GNU tar's archives come out in each of its formats."""
    names = [b"short.jpg", b"\xff\xfe \xe4.png", b"new\nline.gif", b"d" * 60 + b"/" + b"n" * 90]
    if form not in ("v7", "ustar"):
        names += [b"/".join([b"deep" * 20] * 5) + b"/x.jpg", b"\xe4" * 240]
    if form == "v7":
        names.pop()
    folder = os.fsencode(tmp_path / "made")
    expected = {}
    for name in [name if b"." in name else name + b".jpg" for name in names]:
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as stream:
            stream.write(name * 7)
        expected["x.tar!" + os.fsdecode(name)] = name * 7
    out = tmp_path / "x.tar"
    command = ["tar", "-c", f"--format={form}", "-f", str(out), "-C", os.fsdecode(folder), "."]
    subprocess.run(command, check=True, capture_output=True)
    assert contents(discover([out])) == expected


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_tarfile_makes(form: int, tmp_path: Path) -> None:
    """Long names and names with all kinds of letters come out as Python's own module has them."""
    names = ["ä ö.jpg", "x" * 90 + "/" + "y" * 90 + ".jpg", "日本.png"]
    if form != tarfile.USTAR_FORMAT:
        names.append("z" * 300 + ".webp")
    archive = made(tmp_path / "x.tar", tar_bytes({name: name.encode() for name in names}, form))
    with tarfile.open(archive) as reference:
        assert [f"x.tar!{name}" for name in reference.getnames()] == list(
            dict.fromkeys(f"x.tar!{name}" for name in names)
        )
    assert contents(discover([archive])) == {f"x.tar!{name}": name.encode() for name in names}


def test_pax_records_come_before_the_header(tmp_path: Path) -> None:
    """A size and a name in pax records stand for those in the header; a global one is for all."""
    stream = io.BytesIO()
    globally = {"comment": "x" * 2000}
    with tarfile.open(
        fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, pax_headers=globally
    ) as archive:
        for name in ("a.jpg", "b.jpg"):
            entry = tarfile.TarInfo("other")
            entry.size = 3
            entry.pax_headers = {"path": f"pax/{name}", "size": "3", "mtime": "1.5"}
            archive.addfile(entry, io.BytesIO(name[:1].encode() * 3))
    made(tmp_path / "x.tar", stream.getvalue())
    manifest = discover([tmp_path / "x.tar"])
    assert contents(manifest) == {"x.tar!pax/a.jpg": b"aaa", "x.tar!pax/b.jpg": b"bbb"}


@needs_zip
def test_what_the_zip_command_makes(tmp_path: Path) -> None:
    """Names are the file system's own bytes, as unzip would restore them."""
    folder = os.fsencode(tmp_path / "made")
    os.mkdir(folder)
    expected = {}
    for name in ("ä.jpg".encode(), b"plain.png", b"caf\xe9.gif"):
        with open(folder + b"/" + name, "wb") as stream:
            stream.write(name * 99)
        expected["x.zip!" + os.fsdecode(name)] = name * 99
    subprocess.run(["zip", "-q", "-r", "../x.zip", "."], cwd=folder, check=True)
    assert contents(discover([tmp_path / "x.zip"])) == expected


def test_names_of_a_zip_from_windows(tmp_path: Path) -> None:
    """Unmarked names of a DOS program are in its code page; marked ones are UTF-8."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("x\x81x.jpg", "ö.png"):
            entry = zipfile.ZipInfo(name)
            entry.create_system = 0
            archive.writestr(entry, b"1")
    # The mark of the first is taken away, and its two bytes of UTF-8 are two of the code page.
    data = stream.getvalue().replace(b"x\xc2\x81x", b"x\x84\x81x")
    at = data.index(b"PK\1\2")
    data = data[: at + 8] + b"\0\0" + data[at + 10 :]
    manifest = discover([made(tmp_path / "x.zip", data)])
    assert list(manifest.paths) == ["x.zip!xäüx.jpg".encode(), "x.zip!ö.png".encode()]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_lead_out_are_counted(kind: str, tmp_path: Path) -> None:
    """Absolute and climbing names are skipped and counted; `./` and `//` are taken away."""
    members = dict.fromkeys(
        ["/etc/a.jpg", "../b.jpg", "c/../../d.jpg", "./e.jpg", "f//g.jpg"], b"1"
    )
    manifest = discover([made(tmp_path / f"x.{kind}", PACK[kind](members))])
    assert [name.partition(b"!")[2] for name in manifest.paths] == [b"e.jpg", b"f/g.jpg"]
    assert manifest.skipped == {UNSAFE_NAME: 3}


def test_names_with_nul_bytes_are_counted(tmp_path: Path) -> None:
    """A zip's name that holds a NUL byte is skipped; `zipfile` would cut it there."""
    data = zip_bytes({"a.jpg?.jpg": b"1", "b.jpg": b"2"}).replace(b"a.jpg?", b"a.jpg\0")
    manifest = discover([made(tmp_path / "x.zip", data)])
    assert manifest.paths == (b"x.zip!b.jpg",)
    assert manifest.skipped == {UNSAFE_NAME: 1}


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_hidden_members_are_passed_over(kind: str, tmp_path: Path) -> None:
    """Leading dots and macOS's own folder are left out and counted as in folders."""
    members = ["a.jpg", "._a.jpg", "b/.c/d.jpg", "b/.c/h.jpg", "b/.c/.i/j.jpg", "b/._e.jpg"]
    members += ["__MACOSX/f.jpg", "__MACOSX/x/._a.jpg", "./g.jpg", ".DS_Store", "b/.txt"]
    manifest = discover([made(tmp_path / f"x.{kind}", PACK[kind](dict.fromkeys(members, b"1")))])
    assert [name.partition(b"!")[2] for name in manifest.paths] == [b"a.jpg", b"g.jpg"]
    assert manifest.skipped == {"hidden image": 2, "hidden folder": 2}
    one = discover([f"{tmp_path}/x.{kind}!b/._e.jpg"])
    assert (one.paths, one.skipped) == ((b"x.%s!b/._e.jpg" % kind.encode(),), {})


def test_what_is_no_file_in_a_tar(tmp_path: Path) -> None:
    """Links, FIFOs and devices called like images are counted; folders are not."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for number, kind in enumerate(
            [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
        ):
            entry = tarfile.TarInfo(f"{number}.jpg")
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
        entry = tarfile.TarInfo("real.jpg")
        entry.size, entry.type = 4, tarfile.CONTTYPE
        archive.addfile(entry, io.BytesIO(b"real"))
    manifest = discover([made(tmp_path / "x.tar", stream.getvalue())])
    assert contents(manifest) == {"x.tar!real.jpg": b"real"}
    assert manifest.skipped == {NOT_REGULAR: 4}


def test_links_in_a_zip(tmp_path: Path) -> None:
    """A link in a zip is no image; its bytes are a path."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "a.jpg")
        archive.mkdir("folder.jpg") if hasattr(archive, "mkdir") else None
        archive.writestr("a.jpg", b"a")
    manifest = discover([made(tmp_path / "x.zip", stream.getvalue())])
    assert contents(manifest) == {"x.zip!a.jpg": b"a"}
    assert manifest.skipped == {NOT_REGULAR: 1}


@needs_tar
@pytest.mark.parametrize("form", ["gnu", "oldgnu", "posix"])
@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_files_with_holes(form: str, version: str, tmp_path: Path) -> None:
    """Sparse members are read with their holes as zeros, in random order too."""
    with open(tmp_path / "a.jpg", "wb") as stream:
        for block in range(60):  # more pieces than one header has room for
            stream.seek(block * 100_000)
            stream.write(b"1" * 5000)
        stream.truncate(9_000_000)
    made(tmp_path / "b.jpg", b"after")
    command = ["tar", "-cSf", "x.tar", f"--format={form}", "a.jpg", "b.jpg"]
    if form == "posix":
        command.insert(1, f"--sparse-version={version}")
    subprocess.run(command, cwd=tmp_path, check=True)
    expected = {"x.tar!a.jpg": (tmp_path / "a.jpg").read_bytes(), "x.tar!b.jpg": b"after"}
    manifest = discover([tmp_path / "x.tar"])
    assert contents(manifest, [1, 0]) == expected
    assert manifest.sizes.tolist() == [9_000_000, 5]
    assert manifest.skipped == {}
    if (tmp_path / "x.tar").stat().st_size > 9_000_000:
        pytest.skip("this file system knows no holes")
    made(tmp_path / "y.tar.gz", gzip.compress((tmp_path / "x.tar").read_bytes(), 1))
    packed = contents(discover([tmp_path / "y.tar.gz"]))
    assert list(packed.values()) == list(expected.values())


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_of_members_with_one_name_the_last_counts(kind: str, tmp_path: Path) -> None:
    """A name that occurs twice is one row, with the bytes that unpacking would leave."""
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("a.jpg", b"first")
            archive.writestr("b.jpg", b"b")
            archive.writestr("./a.jpg", b"the last")
        data = stream.getvalue()
    else:
        data = tar_bytes({"a.jpg": b"first", "b.jpg": b"b", "./a.jpg": b"the last"})
        data = gzip.compress(data) if kind == "tar.gz" else data
    manifest = discover([made(tmp_path / f"x.{kind}", data)])
    assert contents(manifest) == {f"x.{kind}!a.jpg": b"the last", f"x.{kind}!b.jpg": b"b"}
    assert manifest.sizes.tolist() == [8, 1]


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_tars_in_a_row_are_read_to_the_end(kind: str, tmp_path: Path) -> None:
    """`cat a.tar b.tar` gives the images of both; nothing behind the first end is lost."""
    one, two = tar_bytes({"a.jpg": b"a"}), tar_bytes({"b.jpg": b"b"})
    data = one + two if kind == "tar" else gzip.compress(one) + gzip.compress(two)
    manifest = discover([made(tmp_path / f"x.{kind}", data)])
    assert contents(manifest) == {f"x.{kind}!a.jpg": b"a", f"x.{kind}!b.jpg": b"b"}


def test_archives_in_folders_are_left_alone(tmp_path: Path) -> None:
    """A folder's archives are counted, not read; where there is nothing else, the error says so."""
    made(tmp_path / "0.tar", tar_bytes({"a.jpg": b"a"}))
    made(tmp_path / "1.tar.gz", b"")
    made(tmp_path / "2.tar", b"")
    with pytest.raises(InputError) as caught:
        discover([str(tmp_path)])
    assert str(caught.value) == (
        f"no images in '{tmp_path}'; 3 files skipped because of the extension "
        "(2 .tar, 1 .tar.gz); archives are read where they are named themselves "
        "(DIR/*.tar)"
    )
    made(tmp_path / "a.jpg", b"a")
    assert discover([tmp_path]).skipped == {"tar": 2, "tar.gz": 1}


def test_archive_without_images(tmp_path: Path) -> None:
    """An archive that holds no image is an error that counts what it holds."""
    archive = made(tmp_path / "x.tar", tar_bytes({"a.txt": b"", "../b.jpg": b"", "c": b""}))
    with pytest.raises(InputError) as caught:
        discover([str(archive)])
    assert str(caught.value) == (
        f"no images in '{archive}'; 3 files skipped because of the extension "
        "(1 without, 1 .txt, 1 unsafe name); name them in an @LIST to take them all the same"
    )
    empty = made(tmp_path / "empty.zip", zip_bytes({}))
    with pytest.raises(InputError, match=r"^no images in .*; expected folders"):
        discover([str(empty)])


def test_lists_name_archives_and_members(tmp_path: Path) -> None:
    """A listed archive is read whole; a listed member is that one, whatever its extension."""
    made(tmp_path / "one.tar", tar_bytes({"a.jpg": b"a", "b.txt": b"b", ".c.jpg": b"c"}))
    made(tmp_path / "two.tar.gz", gzip.compress(tar_bytes({"d.jpg": b"d", "e.dat": b"e"})))
    made(tmp_path / "x.zip", zip_bytes({"f/g!h.dat": b"g", "f/i.jpg": b"i"}))
    listed = ["one.tar", "one.tar!b.txt", "two.tar.gz!./e.dat", "x.zip!f/g!h.dat"]
    listed.append("one.tar!.c.jpg")
    stdin = io.BytesIO("".join(f"{tmp_path}/{name}\n" for name in listed).encode())
    manifest = discover(["-"], stdin=stdin)
    assert contents(manifest) == {
        "one.tar!.c.jpg": b"c",
        "one.tar!a.jpg": b"a",
        "one.tar!b.txt": b"b",
        "two.tar.gz!e.dat": b"e",
        "x.zip!f/g!h.dat": b"g",
    }
    assert manifest.skipped == {}
    assert contents(discover([f"{tmp_path}/x.zip!f/i.jpg"])) == {"x.zip!f/i.jpg": b"i"}


def test_file_called_like_a_member_comes_first(tmp_path: Path) -> None:
    """Where a file really is called `x.tar!a.jpg`, it is the image of that path, once."""
    made(tmp_path / "x.tar", tar_bytes({"a.jpg": b"member", "b.jpg": b"b"}))
    literal = made(tmp_path / "x.tar!a.jpg", b"file")
    listed = io.BytesIO(f"{literal}\n".encode())
    assert contents(discover(["-"], stdin=listed)) == {"x.tar!a.jpg": b"file"}
    both = discover([tmp_path / "x.tar", tmp_path])
    assert contents(both) == {"x.tar!a.jpg": b"file", "x.tar!b.jpg": b"b"}
    assert both.sizes.tolist() == [4, 1]


def test_listed_member_that_is_missing_stays(tmp_path: Path) -> None:
    """What a list names and the archive has not is a row that says so; so is a missing archive."""
    made(tmp_path / "x.tar", tar_bytes({"a.jpg": b"a"}))
    listed = ["x.tar!gone.jpg", "x.tar!../a.jpg", "gone.tar!a.jpg", "gone.tar"]
    manifest = discover(
        ["-"], stdin=io.BytesIO("".join(f"{tmp_path}/{name}\n" for name in listed).encode())
    )
    assert contents(manifest) == {
        "x.tar!../a.jpg": "no such file",
        "gone.tar": "no such file",
        "gone.tar!a.jpg": "no such file",
        "x.tar!gone.jpg": "no such member in the archive",
    }
    assert manifest.sizes.tolist() == [0, 0, 0, 0]
    with pytest.raises(InputError, match=r"cannot find '.*gone\.tar!a\.jpg' \(No such file"):
        discover([f"{tmp_path}/gone.tar!a.jpg"])


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "tar.bz2", "tar.zst", "zip"])
def test_archives_that_are_cut(kind: str, tmp_path: Path) -> None:
    """Wherever an archive is cut, it is an error, unless only its end of zeros is missing."""
    data = PACK[kind]({"a.jpg": random.Random(1).randbytes(900), "b.jpg": b"b" * 600})
    archive = tmp_path / f"x.{kind}"
    # Of a bare tar the second block of zeros and the filling behind it tell nothing.
    whole = len(data) if kind != "tar" else 512 + 1024 + 512 + 1024 + 512
    for length in sorted({*range(0, whole, 97), *range(0, whole, 512), whole - 1}):
        made(archive, data[:length])
        with pytest.raises(InputError, match=r"^cannot read '.*'; every|^cannot read '.*' \("):
            discover([archive])
    made(archive, data[:whole])
    assert len(discover([archive])) == 2


def test_damage_is_told_at_once_with_its_place(tmp_path: Path) -> None:
    """All damaged archives are named in one error, each with the byte and what was read before."""
    good = tar_bytes({"a.jpg": b"a" * 600, "b.jpg": b"b", "c.jpg": b"c"})
    flipped = bytearray(good)
    flipped[1536 + 3] ^= 1
    made(tmp_path / "flipped.tar", bytes(flipped))
    made(tmp_path / "cut.tar", good[:2000])
    made(tmp_path / "good.tar", good)
    made(tmp_path / "hole.tar", good[:1536] + bytes(512) + good[2048:])
    made(tmp_path / "text.tar", b"not a tar at all, but long enough for a header" * 20)
    made(tmp_path / "x.zip", b"PK")
    sources = sorted(tmp_path.iterdir())
    with pytest.raises(InputError) as caught:
        discover(sources)
    assert str(caught.value) == (
        f"cannot read '{tmp_path}/cut.tar' (cut short: it ends at byte 2000; 1 image before), "
        f"'{tmp_path}/flipped.tar' (no tar header at byte 1536; 1 image before), "
        f"'{tmp_path}/hole.tar' (no tar header at byte 2048; 1 image before), "
        f"'{tmp_path}/text.tar' (no tar header at byte 0; 0 images before), "
        f"'{tmp_path}/x.zip' (File is not a zip file; 0 images before); every archive must be "
        "whole, or images would be missing from the file; fetch it again, or list the "
        "members you want as ARCHIVE!MEMBER"
    )


def test_members_before_the_damage_can_be_listed(tmp_path: Path) -> None:
    """Of a damaged archive, members named one by one are read as far as they are there."""
    good = tar_bytes({"a.jpg": b"a" * 600, "b.jpg": b"b" * 600, "c.jpg": b"c"})
    made(tmp_path / "x.tar", good[: 1536 + 512 + 100])
    listed = io.BytesIO("".join(f"{tmp_path}/x.tar!{name}.jpg\n" for name in "abc").encode())
    assert contents(discover(["-"], stdin=listed)) == {
        "x.tar!a.jpg": b"a" * 600,
        "x.tar!b.jpg": "damaged in the archive: 100 bytes, expected 600",
        "x.tar!c.jpg": "no such member in the archive",
    }


def test_archive_that_may_not_be_read(tmp_path: Path) -> None:
    """An archive without read permission is an error that names it."""
    archive = made(tmp_path / "x.tar", tar_bytes(SMALL))
    archive.chmod(0)
    tmp_path.chmod(0o755)
    code = (
        "import os, sys\nfrom vggfeat.images.sources import discover\n"
        "if os.geteuid() == 0:\n    os.setuid(65534)\n"
        "try:\n    discover([sys.argv[1]])\nexcept FileNotFoundError as error:\n    print(error)\n"
    )
    with tempfile.TemporaryDirectory() as open_folder:  # others may not enter pytest's own
        os.chmod(open_folder, 0o755)
        moved = shutil.copy(archive, open_folder)
        os.chmod(moved, 0)
        done = python(code, moved)
    assert done.stdout.startswith(f"cannot read '{moved}' (Permission denied); every archive")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def test_zstd_that_is_not_there(tmp_path: Path) -> None:
    """Without anything that unpacks zstd the error says what to install; other archives go on."""
    archive = made(tmp_path / "x.tar.zst", b"\x28\xb5\x2f\xfd" + bytes(20))
    code = (
        "import sys\nsys.modules['zstandard'] = sys.modules['compression.zstd'] = None\n"
        "from vggfeat.images.sources import discover\n"
        "try:\n    discover([sys.argv[1]])\nexcept FileNotFoundError as error:\n    print(error)\n"
    )
    said = python(code, str(archive)).stdout
    assert said.startswith(f"'{archive}', which is compressed by zstd, needs zstandard (")
    assert said.endswith("): pip install zstandard\n")


def test_zstd_of_several_frames(tmp_path: Path) -> None:
    """Frames in a row, as pzstd makes them with frames to skip between, are one archive."""
    data = tar_bytes({"a.jpg": random.Random(2).randbytes(5000), "b.jpg": b"b"})
    skip = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    packed = skip + zstd(data[:3000]) + skip + zstd(data[3000:])
    manifest = discover([made(tmp_path / "x.tar.zst", packed)])
    assert contents(manifest)["x.tar.zst!a.jpg"] == random.Random(2).randbytes(5000)


@needs_zip
def test_encrypted_members_fail(tmp_path: Path) -> None:
    """Members under a password are rows that fail and say so; the others are read."""
    made(tmp_path / "a.jpg", b"secret")
    made(tmp_path / "b.jpg", b"open")
    subprocess.run(["zip", "-q", "-P", "word", "x.zip", "a.jpg"], cwd=tmp_path, check=True)
    subprocess.run(["zip", "-q", "x.zip", "b.jpg"], cwd=tmp_path, check=True)
    manifest = discover([tmp_path / "x.zip"])
    assert contents(manifest) == {
        "x.zip!a.jpg": "encrypted archive member",
        "x.zip!b.jpg": b"open",
    }
    assert manifest.sizes.tolist() == [6, 4]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_zip_members_that_lie(method: int, tmp_path: Path) -> None:
    """Wrong sizes, checksums and places of a member are failed rows that say what differs."""
    data = zip_bytes({"a.jpg": b"a" * 5000}, method)

    def found(at: int, value: bytes) -> str:
        return reason(discover([made(tmp_path / "x.zip", changed_entry(data, at, value))]))

    assert found(CRC, b"1234") == "damaged in the archive: CRC differs"
    assert (
        found(SIZE, struct.pack("<I", 6000)) == "damaged in the archive: 5000 bytes, expected 6000"
    )
    assert found(SIZE, struct.pack("<I", 10)) == "damaged in the archive: more bytes, expected 10"
    assert found(PACKED, struct.pack("<I", 10**6)).startswith("damaged in the archive: ")
    assert "packed bytes, expected 1000000" in found(PACKED, struct.pack("<I", 10**6))
    assert found(PACKED, struct.pack("<I", 3)).startswith("damaged in the archive: ")
    assert found(SIZE, struct.pack("<I", 2**30 + 1)) == (
        "larger than 1073741824 bytes once unpacked: 1073741825"
    )
    assert found(LOCAL, struct.pack("<I", 5)) == "damaged in the archive: no member at byte 5"
    assert found(METHOD, b"\x62\0") == "compressed by a method that is not supported (98, PPMd)"
    assert found(METHOD, b"\x0e\0").startswith("damaged in the archive: ")
    assert found(METHOD, b"\x5f\0").startswith("damaged in the archive: ")


def test_zip_member_whose_bytes_changed(tmp_path: Path) -> None:
    """A flipped bit is caught by the CRC-32, or by zlib before."""
    data = bytearray(zip_bytes({"a.jpg": b"a" * 5000}))
    data[1000] ^= 1
    assert reason(discover([made(tmp_path / "x.zip", bytes(data))])) == (
        "damaged in the archive: CRC differs"
    )
    noise = random.Random(3).randbytes(5000) + bytes(5000)
    for at in range(60, 5000, 311):
        data = bytearray(zip_bytes({"a.jpg": noise}, zipfile.ZIP_DEFLATED))
        data[at] ^= 4
        found = reason(discover([made(tmp_path / "x.zip", bytes(data))]))
        assert found.startswith("damaged in the archive: ")


def test_zip_forms(tmp_path: Path) -> None:
    """Streamed, 64-bit, commented and self-extracting zips are read."""

    class Pipe(io.RawIOBase):
        """A stream that cannot seek, so that sizes come behind the data."""

        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a.jpg", "w", force_zip64=True) as member:
            member.write(b"a" * 3000)
        archive.writestr("b.jpg", b"b")
        archive.comment = b"a comment"
    shell = b"#!/bin/sh\necho unpacking\n"
    made(tmp_path / "streamed.zip", pipe.data)
    made(tmp_path / "program.zip", shell + pipe.data)
    manifest = discover([tmp_path / "streamed.zip", tmp_path / "program.zip"])
    assert list(contents(manifest).values()) == [b"a" * 3000, b"b"] * 2


def test_compressed_bomb_is_an_error(tmp_path: Path) -> None:
    """A small archive that unpacks without end is stopped after its allowance."""
    header = tarfile.TarInfo("a.jpg")
    header.size = 2**33
    start = header.tobuf(tarfile.GNU_FORMAT)
    zeros = zstd(bytes(2**26))
    bomb = made(tmp_path / "x.tar.zst", zstd(start) + zeros * 40)
    with pytest.raises(InputError, match=r"a bomb: \d+ bytes become 10\d{8} and more"):
        discover([bomb])


def test_members_beyond_the_bound_fail_unread(tmp_path: Path) -> None:
    """A member of more than 1 GiB is a failed row, and the one behind it is read."""
    header = tarfile.TarInfo("big.jpg")
    header.size = 2**30 + 512
    with open(tmp_path / "x.tar", "wb") as stream:
        stream.write(header.tobuf(tarfile.GNU_FORMAT))
        stream.seek(header.size, os.SEEK_CUR)  # a hole
        stream.write(tar_bytes({"small.jpg": b"small"}))
    tracemalloc.start()
    try:
        manifest = discover([tmp_path / "x.tar"])
        found = contents(manifest)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == {
        "x.tar!big.jpg": "larger than 1073741824 bytes once unpacked: 1073742336",
        "x.tar!small.jpg": b"small",
    }
    assert peak < 2**24


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (tarfile.REGTYPE, 2**40),
        (tarfile.REGTYPE, 2**61),
        (tarfile.REGTYPE, 2**80),
        (tarfile.XHDTYPE, 2**40),
        (tarfile.XGLTYPE, 2**31),
        (tarfile.GNUTYPE_LONGNAME, 2**35),
        (tarfile.GNUTYPE_SPARSE, 2**62),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_headers_that_lie_about_sizes(kind: bytes, size: int, packed: bool, tmp_path: Path) -> None:
    """A header that claims a huge size is damage, and allocates nothing of that size."""
    header = tarfile.TarInfo("a.jpg")
    header.type, header.size = kind, size
    data = header.tobuf(tarfile.GNU_FORMAT) + tar_bytes({"b.jpg": b"b"})
    made(tmp_path / "x.tar", gzip.compress(data) if packed else data)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"\(cut short|\(header of|\(invalid size"):
            discover([tmp_path / "x.tar"])
        listed = io.BytesIO(f"{tmp_path}/x.tar!a.jpg\n".encode())
        assert isinstance(reason(discover(["-"], stdin=listed)), str)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize(
    "records",
    [
        b"5 a=\n",
        b"99 path=x\n",
        b"x path=y\n",
        b"0 path=\n",
        b"11 path",
        b"9 path\nx\n",
        b"-5 a=b\n",
    ],
)
def test_pax_records_that_make_no_sense(records: bytes, tmp_path: Path) -> None:
    """Broken pax records are damage or nothing, never a hang or another error."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(records)
    start = header.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0")
    made(tmp_path / "x.tar", start + tar_bytes({"a.jpg": b"a"}))
    with contextlib.suppress(InputError):
        assert contents(discover([tmp_path / "x.tar"])) == {"x.tar!a.jpg": b"a"}


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_archive_that_changes_after_listing(kind: str, tmp_path: Path) -> None:
    """An archive replaced, written to or removed since is no longer read at the old places."""
    archive = made(tmp_path / f"x.{kind}", PACK[kind](SMALL))
    manifest = discover([archive])
    assert contents(manifest, [0]) == {f"x.{kind}!a.jpg": b""}
    with open(archive, "ab") as stream:
        stream.write(bytes(512))
    why = "archive gone or changed since it was listed"
    assert contents(manifest, [1]) == {f"x.{kind}!a/c.png": why}
    archive.unlink()
    assert contents(manifest, [1]) == {f"x.{kind}!a/c.png": why}
    made(tmp_path / "new", PACK[kind]({"a.jpg": b"another"})).replace(archive)
    assert contents(manifest, [0]) == {f"x.{kind}!a.jpg": why}
    assert contents(discover([archive])) == {f"x.{kind}!a.jpg": b"another"}
    archive.unlink()
    archive.mkdir()
    assert contents(manifest, [0]) == {f"x.{kind}!a.jpg": "not a regular file"}


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc")
def test_few_archives_are_open_at_once(tmp_path: Path) -> None:
    """However many archives are read in turn, a handful stay open, and closing closes all."""
    close_archives()
    kinds = ("tar", "tar.gz", "zip")
    archives = [
        made(tmp_path / f"{number}.{kinds[number % 3]}", PACK[kinds[number % 3]](SMALL))
        for number in range(30)
    ]
    before = open_files()
    manifest = discover(archives)
    assert open_files() == before
    order = list(range(len(manifest)))
    random.Random(4).shuffle(order)
    found = contents(manifest, order)
    assert open_files() - before == 8
    assert all(found[name] == SMALL[name.partition("!")[2]] for name in found)
    assert len(found) == 120
    close_archives()
    assert open_files() == before


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_forked_processes_read_for_themselves(kind: str, tmp_path: Path) -> None:
    """Processes forked while an archive is open do not disturb one another's place in it."""
    noise = random.Random(5)
    members = {f"{number:03}.jpg": noise.randbytes(3000) for number in range(60)}
    expected = {f"x.{kind}!{name}": data for name, data in members.items()}
    manifest = discover([made(tmp_path / f"x.{kind}", PACK[kind](members))])
    found = contents(manifest, range(10))
    children = []
    for first in (10, 30, 0):
        child = os.fork()
        if not child:
            rows = range(first, 60)
            right = all(expected[name] == data for name, data in contents(manifest, rows).items())
            os._exit(0 if right else 1)
        children.append(child)
        found |= contents(manifest, range(len(found), len(found) + 10))
    found |= contents(manifest, range(len(found), 60))
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert found == expected


def test_reading_order(tmp_path: Path) -> None:
    """In reading order each archive is read forward, files keep their place, and no row is lost."""
    members = {f"{number:02}.jpg": b"%d" % number for number in range(20)}
    names = list(members)
    random.Random(6).shuffle(names)
    shuffled = {name: members[name] for name in names}
    made(tmp_path / "x.tar.gz", gzip.compress(tar_bytes(shuffled)))
    made(tmp_path / "y.zip", zip_bytes(shuffled))
    made(tmp_path / "file.jpg", b"")
    manifest = discover([tmp_path / "x.tar.gz", tmp_path / "y.zip", tmp_path])
    ranks = manifest.reading_ranks()
    assert ranks is not None
    assert ranks.dtype == np.int64
    assert sorted(ranks.tolist()) == list(range(41))
    read = [name.partition("!")[2] for name in contents(manifest, np.argsort(ranks).tolist())]
    assert read == ["", *names, *names]
    assert discover([tmp_path / "y.zip", tmp_path]).reading_ranks() is None
    assert discover([tmp_path]).reading_ranks() is None


def test_a_compressed_tar_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members that do not lie in the order of their names are read in one go all the same."""
    members = {}
    for number in range(40):
        pixels = np.full((8, 8, 3), number, dtype=np.uint8)
        stream = io.BytesIO()
        PIL.Image.fromarray(pixels).save(stream, "png")
        members[f"{number * 17 % 40:02}.png"] = stream.getvalue()
    made(tmp_path / "x.tar.gz", gzip.compress(tar_bytes(members)))
    made(tmp_path / "x.tar", tar_bytes(members))
    begun = []
    unpacking = ArchiveReader._unpacking

    def counted(source: ArchiveReader) -> Any:
        begun.append(source)
        return unpacking(source)

    monkeypatch.setattr(ArchiveReader, "_unpacking", counted)
    settings = Settings(
        layers="conv1_1", model="vgg11", weights="random:0", size=32, batch_size=4, workers=0,
        device="cpu", precision="float32",
    )  # fmt: skip
    for policy in (UpdatePolicy(), UpdatePolicy(update=True, by_digest=True)):
        begun.clear()
        extract(tmp_path / "x.tar.gz", tmp_path / "packed.h5", settings, policy=policy)
        assert len(begun) == 2  # once to list it, once to read it
    extract(tmp_path / "x.tar", tmp_path / "plain.h5", settings)
    packed, plain = FeatureCache(tmp_path / "packed.h5"), FeatureCache(tmp_path / "plain.h5")
    assert [plain.name(row) for row in range(40)] == [
        packed.name(row).replace(".gz", "") for row in range(40)
    ]
    np.testing.assert_array_equal(packed["conv1_1"], plain["conv1_1"])


names_in_archives = st.lists(
    st.text("abcÄ. /!", min_size=1, max_size=120).map(lambda stem: f"x{stem}y.jpg"),
    min_size=1, max_size=6, unique_by=lambda name: "/".join(filter(None, name.split("/"))),
).filter(lambda names: not any("/." in name for name in names))  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(names=names_in_archives, data=st.data(), order=st.randoms())
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip", "deflated.zip"])
def test_what_is_put_in_comes_out(
    kind: str, names: list[str], data: st.DataObject, order: random.Random
) -> None:
    """Whatever the names, sizes and order of reading, each row has the bytes that were put in."""
    members = {name: data.draw(st.binary(max_size=1500)) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        manifest = discover([made(Path(folder) / f"x.{kind}", PACK[kind](members))])
        rows = list(range(len(manifest)))
        order.shuffle(rows)
        found = contents(manifest, rows)
        close_archives()
    plain = {"/".join(filter(None, name.split("/"))): value for name, value in members.items()}
    assert found == {f"x.{kind}!{name}": value for name, value in plain.items()}


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=5)
)
@pytest.mark.parametrize("kind", ["tar", "tgz", "zip", "deflated.zip"])
def test_no_damage_is_a_surprise(kind: str, changes: list[tuple[int, int]]) -> None:
    """An archive with any bytes changed is an error of ours, or its rows are bytes or reasons."""
    archive = bytearray(PACK[kind](SMALL))
    for at, value in changes:
        archive[at % len(archive)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = made(Path(folder) / f"x.{kind}", bytes(archive))
        with contextlib.suppress(InputError):
            assert contents(discover([path]))
        close_archives()
