"""Sparse files, lzip and lzma, and kinds of archives that are refused by name at listing."""

from __future__ import annotations

import io
import logging
import lzma
import shutil
import subprocess
import tarfile
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from archive_files import (
    METHOD,
    changed_entry,
    contents,
    lzipped,
    made,
    reason,
    tar_bytes,
    zip_bytes,
)

from vggfeat.errors import InputError
from vggfeat.images.archive_reader import close_archives
from vggfeat.images.sources import discover

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LZIP = shutil.which("lzip")


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Iterator[None]:
    yield
    close_archives()


def pax(records: list[tuple[str, str]]) -> bytes:
    """A pax header, in which a key may occur several times."""
    text = b""
    for key, value in records:
        line = f" {key}={value}\n".encode()
        length = len(line)
        while len(str(length)) + len(line) != length:
            length = len(str(length)) + len(line)
        text += str(length).encode() + line
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(text)
    return header.tobuf(tarfile.USTAR_FORMAT) + text.ljust(-(-len(text) // 512) * 512, b"\0")


def member(name: str, data: bytes) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    return header.tobuf(tarfile.USTAR_FORMAT) + data.ljust(-(-len(data) // 512) * 512, b"\0")


def sparse_tar(form: str, numbers: list[int], size: int, data: bytes) -> bytes:
    """A tar of a sparse file `a.jpg` with this map of pieces, and of a file `b.jpg`."""
    if form == "0.0":
        names = ["offset", "numbytes"] * (len(numbers) // 2)
        pairs = [(f"GNU.sparse.{name}", str(n)) for name, n in zip(names, numbers, strict=False)]
        start = pax([("GNU.sparse.size", str(size)), *pairs]) + member("a.jpg", data)
    elif form == "0.1":
        start = pax([("GNU.sparse.size", str(size)), ("GNU.sparse.name", "a.jpg"),
                     ("GNU.sparse.map", ",".join(map(str, numbers)))])  # fmt: skip
        start += member("GNUSparseFile.7/a.jpg", data)
    else:
        lines = "".join(f"{number}\n" for number in [len(numbers) // 2, *numbers]).encode()
        lines = lines.ljust(-(-len(lines) // 512) * 512, b"\0")
        start = pax([("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"),
                     ("GNU.sparse.name", "a.jpg"), ("GNU.sparse.realsize", str(size))])  # fmt: skip
        start += member("GNUSparseFile.7/a.jpg", lines + data)
    return start + member("b.jpg", b"after") + bytes(1024)


FORMS = ["0.0", "0.1", "1.0"]


@pytest.mark.parametrize("form", FORMS)
def test_maps_of_holes_are_read(form: str, tmp_path: Path) -> None:
    """Pieces lie where the map says, and a hole may end the file; the name is the file's own."""
    data = sparse_tar(form, [3, 2, 9, 4, 20, 0], 20, b"aabbbb")
    found = contents(discover([made(tmp_path / "x.tar", data)]))
    assert found == {"x.tar!a.jpg": b"\0\0\0aa\0\0\0\0bbbb" + bytes(7), "x.tar!b.jpg": b"after"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("numbers", "size"),
    [
        ([3, 4, 5, 2], 20),  # they overlap
        ([9, 4, 3, 2], 20),  # in the wrong order
        ([16, 6], 20),  # beyond the end
        ([3, 5], 20),  # not all that is stored
        ([3, 60], 80),  # more than is stored
        ([3], 20),
        ([10**30, 6], 20),
        ([], 20),
    ],
)
def test_maps_of_holes_that_lie_fail(
    form: str, numbers: list[int], size: int, tmp_path: Path
) -> None:
    """A file whose map makes no sense is a failed row; the one behind it is read."""
    data = sparse_tar(form, numbers, size, b"aabbbb")
    found = contents(discover([made(tmp_path / "x.tar", data)]))
    assert str(found["x.tar!a.jpg"]).startswith("damaged in the archive: ")
    assert found["x.tar!b.jpg"] == b"after"


@pytest.mark.parametrize("form", FORMS)
def test_sparse_files_of_a_terabyte_take_no_memory(form: str, tmp_path: Path) -> None:
    """A hole larger than the largest member is refused unread."""
    tracemalloc.start()
    data = sparse_tar(form, [0, 6], 2**40, b"aabbbb")
    found = contents(discover([made(tmp_path / "x.tar", data)]))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert found["x.tar!a.jpg"] == f"larger than 1073741824 bytes once unpacked: {2**40}"


def test_lzip_of_several_members(tmp_path: Path) -> None:
    """Members in a row are one archive, and what follows the last is ignored, as by lzip."""
    data = tar_bytes({"a.jpg": b"a" * 9000, "b.jpg": b"b"})
    packed = lzipped(data[:3000]) + lzipped(data[3000:]) + b"garbage"
    found = contents(discover([made(tmp_path / "x.tar.lz", packed)]))
    assert found == {"x.tar.lz!a.jpg": b"a" * 9000, "x.tar.lz!b.jpg": b"b"}


@pytest.mark.skipif(LZIP is None, reason="no lzip command")
def test_what_the_lzip_command_makes(tmp_path: Path) -> None:
    """Its output, in members of 100 kB, is read as it was written."""
    data = tar_bytes({"a.jpg": bytes(range(256)) * 2000, "b.jpg": b"b"})
    packed = subprocess.run(
        ["lzip", "-b", "100000"], input=data, stdout=subprocess.PIPE, check=True
    ).stdout
    found = contents(discover([made(tmp_path / "x.tar.lz", packed)]))
    assert found["x.tar.lz!a.jpg"] == bytes(range(256)) * 2000


def test_damaged_lzip_is_told(tmp_path: Path) -> None:
    """A wrong CRC, size, dictionary or version, and a file cut short anywhere, are damage."""
    good = lzipped(tar_bytes({"a.jpg": b"a" * 9000}))
    damaged = [good[:cut] for cut in (5, 6, 30, len(good) - 25, len(good) - 1)]
    damaged += [good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :] for at in (4, 8)]
    damaged.append(good[:5] + b"\x1f" + good[6:])
    damaged += [good[:-20] + b"abcd" + good[-16:], good[:-16] + b"abcdefgh" + good[-8:]]
    for data in damaged:
        with pytest.raises(InputError, match=r"cannot read '.*/x\.tar\.lz' \("):
            discover([made(tmp_path / "x.tar.lz", data)])


def test_a_bomb_in_lzma_is_told(tmp_path: Path) -> None:
    """A .lzma file that unpacks without end is stopped after its allowance."""
    header = tarfile.TarInfo("a.jpg")
    header.size = 2**33
    data = header.tobuf(tarfile.GNU_FORMAT) + bytes(2**20)
    packed = bytearray(lzma.compress(data, lzma.FORMAT_ALONE, preset=0))
    assert packed[5:13] == b"\xff" * 8
    made(tmp_path / "x.tar.lzma", bytes(packed))
    with pytest.raises(InputError, match=r"cut short|a bomb"):
        discover([tmp_path / "x.tar.lzma"])


KINDS = {
    "x.tar.Z": (b"\x1f\x9d\x90", "compressed by compress"),
    "x.tar.lz4": (b"\x04\x22\x4d\x18", "compressed by lz4"),
    "x.tar.lzo": (b"\x89LZO\0\r\n", "compressed by lzop"),
    "x.tar.lrz": (b"LRZI\0\6", "compressed by lrzip"),
    "x.tar": (b"7z\xbc\xaf\x27\x1c\0\4", "a 7-Zip archive"),
    "x.zip": (b"Rar!\x1a\x07\1\0", "a RAR archive"),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_that_are_not_read_are_named(name: str, tmp_path: Path) -> None:
    """What is not supported is said once, before the run, by the name of what it is."""
    beginning, what = KINDS[name]
    made(tmp_path / name, beginning.ljust(100, b"\0"))
    expected = rf"^'.*/{name}' is {what}[^;]*, which is not supported; unpack it, or pack it as zip"
    with pytest.raises(InputError, match=expected):
        discover([tmp_path / name])


def test_a_method_that_is_not_supported_is_told_at_listing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Members of a zip that will fail are counted in one warning, and their rows say why."""
    data = changed_entry(zip_bytes({"a.jpg": b"a" * 100}), METHOD, b"\x62\0")
    with caplog.at_level(logging.WARNING, "vggfeat"):
        found = discover([made(tmp_path / "x.zip", data)])
    (message,) = [record.getMessage() for record in caplog.records]
    assert "1 member compressed by a method that is not supported (98, PPMd) will fail" in message
    assert reason(found) == "compressed by a method that is not supported (98, PPMd)"


def test_a_tar_of_any_bytes_is_no_lzma(tmp_path: Path) -> None:
    """A name that begins as a .lzma file does is the name of a tar's member."""
    for name in ("]\x01\x02.jpg", "].jpg", "LZI.jpg"):
        stream = io.BytesIO(tar_bytes({name: b"a"}))
        found = contents(discover([made(tmp_path / "x.tar", stream.getvalue())]))
        assert found == {f"x.tar!{name}": b"a"}
