"""Dates beyond an int64 of nanoseconds: files, lists, archives and their members, objects."""

from __future__ import annotations

import io
import os
import shutil
import struct
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import pytest

import vggfeat
from vggfeat.core.timestamps import EARLIEST_NS, LATEST_NS, clamp_ns
from vggfeat.images.sources import discover

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = vggfeat.Settings(
    layers="pool1", model="vgg11", size=32, weights="random:0", device="cpu", workers=0,
    precision="float32",
)  # fmt: skip


@pytest.fixture(params=["/dev/shm", None])
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder on tmpfs, which holds any date, and one where ext4 holds dates up to 2446."""
    if request.param and not os.path.isdir(request.param):
        pytest.skip("no tmpfs")
    with tempfile.TemporaryDirectory(dir=request.param) as found:
        yield Path(found)


def write_png(path: Path) -> bytes:
    from PIL import Image

    Image.linear_gradient("L").convert("RGB").resize((40, 40)).save(path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (0, 0), (-1, -1), (LATEST_NS, LATEST_NS), (LATEST_NS + 1, LATEST_NS), (10**30, LATEST_NS),
        (EARLIEST_NS, EARLIEST_NS), (EARLIEST_NS - 1, EARLIEST_NS), (-(10**30), EARLIEST_NS),
    ],
)  # fmt: skip
def test_dates_are_clamped(given: int, kept: int) -> None:
    """A date in range stays as it is; one out of range becomes the nearest in range."""
    assert clamp_ns(given) == kept


@pytest.mark.parametrize("year_seconds", [10**10, 2**40, -(10**9), -(10**11), 2**62])
def test_a_file_of_any_date_is_an_image(year_seconds: int, folder: Path) -> None:
    """Files dated after 2262 or before 1970 or 1677 get rows, in folders, lists and by name."""
    write_png(folder / "a.png")
    write_png(folder / "b.png")
    os.utime(folder / "a.png", (0, year_seconds))
    kept = clamp_ns((folder / "a.png").stat().st_mtime_ns)  # what the file system made of it
    listing = f"{folder}/a.png\n".encode()
    for manifest in (
        discover([folder]),
        discover([folder / "a.png"]),
        discover(["-"], stdin=io.BytesIO(listing)),
    ):
        assert manifest.mtimes[0] == kept


def test_a_run_keeps_the_nearest_date_and_finds_nothing_changed(folder: Path) -> None:
    """A run over a file of 2286 stores 2262-04-11; the same command again has nothing to do."""
    (folder / "images").mkdir()
    write_png(folder / "images" / "a.png")
    os.utime(folder / "images" / "a.png", (0, 10**10))
    asked = (folder / "images", folder / "out.h5", SETTINGS)
    assert vggfeat.extract(*asked).done == 1
    with h5py.File(folder / "out.h5") as file:
        assert file["images/mtime_ns"][:].tolist() == [2**63 - 1]
    again = vggfeat.extract(*asked, policy=vggfeat.UpdatePolicy(update=True))
    assert (again.new_done, again.changed) == (0, 0)
    os.utime(folder / "images" / "a.png", (0, 10**9))
    assert vggfeat.extract(*asked, policy=vggfeat.UpdatePolicy(update=True)).changed == 1


@pytest.mark.parametrize("mtime", [-5.5, 1e30, 10**20, 1234567890.123456789, "NaN", "inf", "x"])
def test_a_tar_member_of_any_date_is_an_image(mtime: float | str, tmp_path: Path) -> None:
    """Dates in pax headers, negative, huge, fractional or no number, do not matter to its image."""
    data = write_png(tmp_path / "a.png")
    member = tarfile.TarInfo("a.png")
    member.size = len(data)
    member.pax_headers = {"mtime": str(mtime)}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member, io.BytesIO(data))
    summary = vggfeat.extract(tmp_path / "a.tar", tmp_path / "out.h5", SETTINGS)
    assert (summary.done, summary.failed) == (1, 0)


def test_a_tar_header_with_a_negative_binary_date(tmp_path: Path) -> None:
    """GNU tar's binary dates, negative or of 8 bytes, do not matter either."""
    data = write_png(tmp_path / "a.png")
    for number, mtime in enumerate((-1, -(2**40), 2**60)):
        member = tarfile.TarInfo("a.png")
        member.size, member.mtime = len(data), mtime
        path = tmp_path / f"{number}.tar"
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
            archive.addfile(member, io.BytesIO(data))
        assert list(discover([path]).paths) == [b"%d.tar!a.png" % number]


@pytest.mark.parametrize("date", [0, 0xFFFFFFFF, 0x00210000])
def test_a_zip_member_of_any_date_is_an_image(date: int, tmp_path: Path) -> None:
    """A DOS date that is none, month 15 of 2107 or day 0, does not matter to a zip's image."""
    data = write_png(tmp_path / "a.png")
    stamp = struct.pack("<BHB2q", 0, 0, 0, 2**62, -(2**62))  # an extra field that lies
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        member = zipfile.ZipInfo("a.png")
        member.extra = struct.pack("<HH", 0x5455, len(stamp)) + stamp
        archive.writestr(member, data)
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    central = raw.rfind(b"PK\1\2")
    raw[central + 12 : central + 16] = struct.pack("<I", date)
    raw[10:14] = struct.pack("<I", date)
    (tmp_path / "a.zip").write_bytes(raw)
    summary = vggfeat.extract(tmp_path / "a.zip", tmp_path / "out.h5", SETTINGS)
    assert (summary.done, summary.failed) == (1, 0)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_of_any_date_is_read(kind: str, folder: Path) -> None:
    """The members of an archive that is dated after 2262 have the last date there is."""
    (folder / "images").mkdir()
    write_png(folder / "images" / "a.png")
    path = shutil.make_archive(str(folder / "a"), kind, folder / "images")
    os.utime(path, (0, 10**10))
    summary = vggfeat.extract(path, folder / "out.h5", SETTINGS)
    assert (summary.done, summary.failed) == (1, 0)
    assert discover([path]).mtimes.tolist() == [LATEST_NS]
