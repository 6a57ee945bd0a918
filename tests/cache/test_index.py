"""The index of version 2: opening without HDF5, and a checksum over every byte of the file."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from written_caches import batch, create, random_features

import vggfeat
from vggfeat.cache.column_records import ColumnRecords
from vggfeat.cache.format import CacheMetadata, Header, RowState
from vggfeat.cache.hdf5_header import read_hdf5_header
from vggfeat.cache.header import read_header
from vggfeat.cache.index import metadata_checksum, read_cache_index
from vggfeat.cache.index_header import read_index_header
from vggfeat.cache.verify import verify
from vggfeat.cache.writer import CacheWriter, create_cache
from vggfeat.core.quantization import Scales, scales_digest
from vggfeat.core.records import Failure, Images
from vggfeat.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vggfeat.cache.index import Index

ROWS = 6
ONE = Images(np.array([b"a"]), np.zeros(1, np.int64), np.zeros(1, np.int64))


def fill(out: str) -> None:
    """A cache of rows done, failed and removed, and a size that has changed."""
    writer = CacheWriter(out, create(out, ROWS))
    failures = Failure(3, "broken", b"\7" * 32), Failure(5, "gone")
    writer.write(batch([0, 1, 2, 4], random_features(ROWS), *failures))
    writer.checkpoint()
    writer.set_states(np.array([4, 5]), RowState.REMOVED)
    writer.sync()
    writer.update_files(np.array([1]), np.array([1234]), np.array([5678]))
    writer.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("index") / "whole.h5")
    fill(out)
    return out


@pytest.fixture
def copy(whole: str, tmp_path: Path) -> str:
    return shutil.copy(whole, str(tmp_path / "copy.h5"))


def index_of(path: str) -> Index:
    with open(path, "rb") as file:
        found = read_cache_index(file.fileno())
    assert found is not None
    return found


def flip(path: str, at: int, mask: int = 0x55) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ mask]))


def rewrite_index(path: str, change: Callable[[dict[str, Any]], None], *, honest: bool) -> None:
    """Change the index, as its documentation says it is written; `honest` keeps its checksum."""
    data = bytearray(Path(path).read_bytes())
    user_block, length = struct.unpack_from("<QQ", data, 16)
    content = json.loads(data[32 : 32 + length])
    change(content)
    text = json.dumps(content).encode()
    end = user_block - 8192
    data[16:32] = struct.pack("<QQ", user_block, len(text))
    data[32:end] = text.ljust(end - 32, b"\0")
    data[12:16] = bytes(4)
    if honest:
        data[12:16] = struct.pack("<I", zlib.crc32(data[:end]))
    Path(path).write_bytes(data)


def test_the_index_is_as_documented(whole: str) -> None:
    """A stranger's few lines read the index, and find what h5py finds, and the checksums."""
    data = Path(whole).read_bytes()
    magic, version, checksum, user_block, length = struct.unpack_from("<8sIIQQ", data)
    assert (magic, version, user_block) == (b"\x89VGG\r\n\x1a\n", 2, 16384)
    front = data[:12] + bytes(4) + data[16 : user_block - 8192]
    assert zlib.crc32(front) == checksum
    content = json.loads(data[32 : 32 + length])
    assert not any(front[32 + length :])
    assert content["file_bytes"] == len(data)
    outside = bytearray(data)
    outside[user_block + 11] = 0
    outside[user_block + 44 : user_block + 48] = bytes(4)
    with h5py.File(whole) as file:
        assert file.userblock_size == user_block
        for name, one in sorted(content["datasets"].items(), key=lambda item: -item[1]["offset"]):
            found = file[name]
            assert (found.dtype.str, list(found.shape)) == (one["dtype"], one["shape"])
            assert found.id.get_chunk_info(0).byte_offset == one["offset"]
            rows = data[one["offset"] :][: found.nbytes]
            assert rows == found[()].tobytes()
            del outside[one["offset"] : one["offset"] + one["bytes"]]
        for name, value in file.attrs.items():
            text = value.decode("utf-8", "surrogateescape") if name != "format_version" else value
            assert content["attributes"].pop(name) == text
    assert content["attributes"] == {}
    assert zlib.crc32(outside[user_block:]) == content["metadata_crc32"]


def test_the_header_is_that_of_hdf5(whole: str, tmp_path: Path) -> None:
    """What the index says is what HDF5's metadata says, int8 and its scales, and bytes that are no
    UTF-8 in texts included."""
    assert read_index_header(whole) == read_hdf5_header(whole) == read_header(whole)
    header = read_header(whole)
    scales = {"fc7": Scales(np.arange(6, dtype=np.float32), np.ones(6, np.float32))}
    identity = dataclasses.replace(
        header.identity, dtype="int8", layers=("fc7",), scales=scales_digest(scales)
    )
    provenance = dataclasses.replace(header.provenance, root=b"/\xff\xc3", warning="ü\udcff")
    out = str(tmp_path / "int8.h5")
    made = CacheMetadata(identity, provenance, {"fc7": (6,)}, scales)
    create_cache(out, ONE, made)
    one, other = read_index_header(out), read_hdf5_header(out)
    assert one is not None
    for found in (one, other):
        assert (found.identity, found.provenance) == (identity, provenance)
        assert found.scales["fc7"].scale.tolist() == list(range(6))
        assert found.runs == one.runs
    assert b"GCOL" not in Path(out).read_bytes()
    offset = index_of(out).datasets["scales/fc7"].start
    flip(out, offset)
    with pytest.raises(CacheError, match="fingerprint does not belong"):
        read_header(out)


def test_long_attributes(tmp_path: Path) -> None:
    """Attributes of more than 64 KiB are in the index and in HDF5, and there is no global heap."""
    header = create(str(tmp_path / "f.h5"), 3)
    config = {**header.provenance.config, "note": "x" * 300_000}
    provenance = dataclasses.replace(header.provenance, config=config)
    out = str(tmp_path / "long.h5")
    create_cache(out, ONE, dataclasses.replace(header, provenance=provenance))
    assert read_index_header(out) == read_hdf5_header(out)
    assert read_header(out).provenance == provenance
    assert b"GCOL" not in Path(out).read_bytes()
    with h5py.File(out) as file:
        assert json.loads(file.attrs["config"]) == config


NO_HDF5 = """
import sys
import vggfeat
cache = vggfeat.open(sys.argv[1])
assert cache["fc7"].shape == (6, 6) and cache.names and cache.failures() is not None
assert "h5py" not in sys.modules
from vggfeat.cli import app
try:
    app(["inspect", sys.argv[1]], standalone_mode=False)
except SystemExit as end:
    assert not end.code, end.code
assert "h5py" not in sys.modules
"""


def test_no_hdf5_to_read(whole: str) -> None:
    """Opening and inspecting a cache loads no HDF5."""
    done = subprocess.run(
        [sys.executable, "-c", NO_HDF5, whole], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_byte_belongs_to_one_checksum(whole: str) -> None:
    """Datasets and what is between them, index and column records are all of the file."""
    index = index_of(whole)
    ranges = [(0, index.user_block), *index.gaps()]
    ranges += [(one.start, one.stop) for one in index.datasets.values()]
    ends = sorted(ranges)
    assert [start for start, _ in ends[1:]] == [stop for _, stop in ends[:-1]]
    assert ends[-1][1] == os.path.getsize(whole)


def told(path: str) -> bool:
    try:
        found = verify(path)
    except CacheError:
        return True
    return bool(found.bad or found.problems or found.notes)


def test_any_flipped_byte_is_found(whole: str, tmp_path: Path) -> None:
    """Whatever byte of the file changes, to whatever, `verify` says so.

    Of the ranges that have one checksum it is every so many bytes, and both ends.
    """
    assert not told(whole)
    data = Path(whole).read_bytes()
    path = str(tmp_path / "flipped.h5")
    index = index_of(whole)
    block = index.user_block
    places = {0, 12, 16, 31, 32, block - 8193, block - 8192, block - 4096, block - 1, len(data) - 1}
    places |= {*range(block, block + 48), *range(block - 8192, block - 8150, 5)}
    places |= {at for one in index.datasets.values() for at in (one.start, one.stop - 1)}
    places |= {*range(50, len(data), 211)}
    chance = np.random.default_rng(19)
    missed = []
    for at in sorted(places):
        changed = bytearray(data)
        changed[at] ^= int(chance.integers(1, 256))
        Path(path).write_bytes(changed)
        if not told(path):
            missed.append(at)
    assert missed == []


@pytest.mark.parametrize("row", [0, 3, 4, 5])
def test_any_other_state_is_found(copy: str, row: int) -> None:
    """A state that becomes another is a bad row, or a note where the next run mends it."""
    data = Path(copy).read_bytes()
    at = index_of(copy).datasets["images/state"].start + row
    for state in {0, 1, 2, 3, 7, 255} - {data[at]}:
        changed = bytearray(data)
        changed[at] = state
        Path(copy).write_bytes(changed)
        found = verify(copy)
        assert [bad.row for bad in found.bad] == [row] * (not found.notes), state
        assert len(found.notes) == (state == 0 or (state == 3 and row in (0, 3))), state


def test_padding_of_the_last_chunk_is_checked(tmp_path: Path) -> None:
    """Bytes that HDF5 has allocated behind the last row are zeros, or a problem."""
    out = str(tmp_path / "f.h5")
    create(out, 7, {"fc7": (200_000,)})  # two rows a chunk
    assert not told(out)
    one = index_of(out).datasets["features/fc7"]
    assert one.allocated == 8 * 400_000
    flip(out, one.stop - 1)
    assert verify(out).problems == ("bytes behind the last row of /features/fc7 are not zeros",)


def test_rows_of_infinity_are_bad(tmp_path: Path) -> None:
    """A done row of infinity or NaN is bad, whatever its checksum; a failed row holds NaN."""
    out = str(tmp_path / "f.h5")
    writer = CacheWriter(out, create(out, 5))
    features = random_features(5)
    features["fc7"][1, 2], features["conv5_3:map"][2, 1, 2, 3] = np.inf, np.nan
    features["fc7"][3, 0] = -np.inf
    writer.write(batch([0, 1, 2, 3], features, Failure(4, "broken")))
    writer.checkpoint()
    writer.close()
    found = verify(out, repair=True)
    assert [(bad.row, bad.problem) for bad in found.bad] == [
        (row, "done, but it holds infinity or NaN") for row in (1, 2, 3)
    ]
    assert verify(out).pending == 3
    assert not told(out)


def test_a_repacked_file(copy: str) -> None:
    """`h5repack` copies the index and moves the datasets: it opens by HDF5, and is whole."""
    tool = shutil.which("h5repack")
    if tool is None:
        pytest.skip("h5repack is not installed")
    for options in (["-f", "NONE", "-l", "CONTI"], []):
        repacked = f"{copy}.repacked"
        subprocess.run([tool, *options, copy, repacked], check=True)
        assert read_index_header(repacked) is None
        found = verify(repacked)
        assert (found.bad, found.problems, len(found.notes)) == ((), (), 1)
        one, other = vggfeat.open(copy), vggfeat.open(repacked)
        assert one.header.identity == other.header.identity
        assert np.array_equal(one["fc7"], other["fc7"], equal_nan=True)
        assert one.names == other.names


def test_an_extended_file(copy: str) -> None:
    """What other programs add stays, is told, and hinders neither reading nor writing."""
    before = read_header(copy)
    with h5py.File(copy, "r+") as file:
        file.attrs["note"] = "mine"
        file["labels"] = np.arange(ROWS)
    assert read_index_header(copy) is None
    assert read_header(copy) == before
    found = verify(copy)
    assert (found.bad, found.problems) == ((), ())
    assert "attribute note" in found.notes[0]
    writer = CacheWriter(copy, read_header(copy))
    writer.update_files(np.array([2]), np.array([9]), np.array([9]))
    writer.close()
    assert verify(copy).problems == ()
    with h5py.File(copy) as file:
        assert file.attrs["note"] == "mine"


def test_a_copy_without_the_user_block(copy: str, tmp_path: Path) -> None:
    """A copy object by object has no index; it is read and written all the same."""
    other = str(tmp_path / "other.h5")
    with h5py.File(copy) as file, h5py.File(other, "w") as new:
        new.attrs.update(file.attrs)
        for name in file:
            file.copy(name, new)
    header = read_header(other)
    assert (header.version, header.user_block) == (2, 0)
    found = verify(other)
    assert (found.bad, found.problems, len(found.notes)) == ((), (), 1)
    writer = CacheWriter(other, header)
    writer.update_files(np.array([2]), np.array([9]), np.array([9]))
    writer.set_states(np.array([0]), RowState.REMOVED)
    writer.sync()
    writer.close()
    assert verify(other).bad == ()


def test_hdf5_tools_read_it(copy: str) -> None:
    """h5dump and h5ls show attributes and rows."""
    for tool, words in (("h5dump", ["-d", "/images/size"]), ("h5ls", ["-r"])):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
        shown = subprocess.run([tool, *words, copy], check=True, capture_output=True, text=True)
        assert "1234" in shown.stdout or "/features/fc7" in shown.stdout


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["datasets"].__delitem__(name)


def drop_features(content: dict[str, Any]) -> None:
    for name in ("features/fc7", "features/conv5_3:map"):
        del content["datasets"][name]


def put(name: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["datasets"][name].__setitem__(key, value)


def put_top(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.__setitem__(key, value)


def put_attribute(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["attributes"].__setitem__(name, value)


LIES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no datasets": (put_top("datasets", {}), "/images/path is missing"),
    "datasets list": (put_top("datasets", []), "not of the form"),
    "no file bytes": (lambda content: content.__delitem__("file_bytes"), "not of the form"),
    "negative": (put("features/fc7", "offset", -8), "-8 is no number"),
    "float": (put("features/fc7", "offset", 2e4), "20000.0 is no number"),
    "huge": (put("features/fc7", "shape", [ROWS, 10**15]), "does not fit"),
    "digits": (put("features/fc7", "offset", 10**400), "is no number"),
    "true": (put("features/fc7", "shape", [True, 6]), "True is no number"),
    "behind the end": (put("features/fc7", "offset", 10**6), "/features/fc7 does not fit"),
    "in the user block": (put("features/fc7", "offset", 64), "begins inside HDF5's superblock"),
    "in the superblock": (put("features/fc7", "offset", 16384 + 40), "HDF5's superblock"),
    "allocated less": (put("features/fc7", "bytes", 5), "does not fit"),
    "allocated more": (put("images/state", "bytes", 500), "begins inside /images/state"),
    "empty": (put("features/fc7", "shape", [ROWS, 0]), "shape"),
    "rows": (put("features/fc7", "shape", [5, 6]), r"type <f2 and shape \(5, 6\)"),
    "scalar": (put("images/state", "shape", []), r"/images/state has type \|u1 and shape \(\)"),
    "objects": (put("features/fc7", "dtype", "|O"), r"type \|O"),
    "records": (put("images/size", "dtype", "<i4,<i4"), "type <i4,<i4"),
    "text": (put("images/path", "dtype", "|S0"), r"type \|S0"),
    "long text": (put("images/path", "dtype", "|S" + "9" * 3000), "type"),
    "mixed": (put("features/fc7", "dtype", "|i1"), "2 types of features"),
    "no digest": (drop("images/digest"), "/images/digest is missing"),
    "no features": (drop_features, "0 types of features"),
    "unknown": (
        lambda content: content["datasets"].__setitem__("a/b", content["datasets"]["images/size"]),
        "/a/b has type",
    ),
    "attributes list": (put_top("attributes", []), "not of the form"),
    "attribute list": (put_attribute("model", ["vgg16"]), "neither text nor an integer"),
    "version": (put_attribute("format_version", 1), "attributes format and format_version"),
    "model": (put_attribute("model", "vgg19"), "fingerprint does not belong"),
    "nested": (put_attribute("config", "[" * 4000), "JSON of too many levels"),
    "config list": (put_attribute("config", "[]"), "config is"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_lies(copy: str, lie: str) -> None:
    """An index whose checksum is right is refused all the same if it cannot be true."""
    change, message = LIES[lie]
    rewrite_index(copy, change, honest=True)
    seal_metadata(copy)
    with pytest.raises(CacheError, match=message):
        read_header(copy)


def seal_metadata(path: str) -> None:
    """Give a lying index the right checksum of what it says is metadata, where there is one."""
    try:
        index = index_of(path)
        with open(path, "rb") as file:
            value = metadata_checksum(file.fileno(), index)
    except ValueError:
        return
    rewrite_index(path, put_top("metadata_crc32", value), honest=True)


def test_a_damaged_index_is_not_read(copy: str) -> None:
    """An index whose checksum is wrong counts as none: HDF5 tells, and verify says so."""
    rewrite_index(copy, put("features/fc7", "offset", 30_000), honest=False)
    assert read_index_header(copy) is None
    assert read_header(copy).runs == read_hdf5_header(copy).runs
    (problem,) = verify(copy).problems
    assert "its index is not as it was written" in problem


def test_an_index_of_something_else_is_told(copy: str) -> None:
    """Where index and HDF5's metadata differ, and the checksums hold, verify says in what."""
    rewrite_index(copy, put_attribute("warning", "all is well"), honest=True)
    assert read_header(copy).provenance.warning == "all is well"
    assert verify(copy).problems == (
        "attributes are not the same in its index and in HDF5's metadata",
    )


def records_of(path: str, header: Header) -> ColumnRecords:
    with open(path, "rb") as file:
        return ColumnRecords(file.fileno(), header)


def crc_of(path: str, name: str) -> int:
    with h5py.File(path) as file:
        return zlib.crc32(file[f"images/{name}"][()].tobytes())


@pytest.mark.parametrize("killed", range(8))
def test_an_interrupted_update_is_finished(
    copy: str, killed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update of sizes and times that ends before any of its calls is finished by the next."""
    header = read_header(copy)
    calls = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            if calls == killed:
                raise KeyboardInterrupt
            calls += 1
            return real(*arguments)

        return call

    writer = CacheWriter(copy, header)
    rows = np.array([0, 2])  # two writes for each column
    with monkeypatch.context() as patch:
        for name in ("pwrite", "fdatasync"):
            patch.setattr(os, name, counted(getattr(os, name)))
        with pytest.raises(KeyboardInterrupt):
            writer.update_files(rows, np.array([77, 88]), np.array([99, 111]))
    writer.close()
    found = verify(copy)
    assert (found.bad, found.problems) == ((), ())
    assert bool(found.notes) == (killed > 0)
    CacheWriter(copy, header).close()
    assert not told(copy)
    current = records_of(copy, header).current
    assert current is not None
    assert current.sums == tuple(crc_of(copy, name) for name in ("path", "size", "mtime_ns"))


def test_an_update_survives_power_cuts(copy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever unsynced sectors a cut loses, no row is bad, and the next writer finishes it."""
    base = Path(copy).read_bytes()
    calls: list[tuple[int, bytes]] = []  # a sync is an empty write
    pwrite, writer = os.pwrite, CacheWriter(copy, read_header(copy))

    def noted(handle: int, data: memoryview, offset: int) -> int:
        calls.append((offset, bytes(data)))
        return pwrite(handle, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", lambda _: calls.append((0, b"")))
        patch.setattr(os, "pwrite", noted)
        writer.set_states(np.array([0, 3]), RowState.PENDING)
        writer.set_states(np.array([1]), RowState.REMOVED)
        writer.sync()
        writer.update_files(np.array([0, 3]), np.array([77, 88]), np.array([99, 111]))
        writer.sync()
    writer.close()
    assert not told(copy)
    chance = np.random.default_rng(3)
    for state in range(30):
        at, keep = int(chance.integers(1, len(calls) + 1)), (0.0, 0.5, 1.0)[state % 3]
        synced = max((i for i in range(at) if not calls[i][1]), default=0)
        image = bytearray(base)
        for number, (offset, data) in enumerate(calls[:at]):
            if number < synced or chance.random() < keep:
                image[offset : offset + len(data)] = data
        Path(copy).write_bytes(image)
        found = verify(copy)
        assert (found.bad, found.problems) == ((), ()), state
        CacheWriter(copy, read_header(copy)).close()
        assert all("pending" in note for note in verify(copy).notes), state


@pytest.mark.parametrize(
    ("column", "repaired"), [("size", True), ("mtime_ns", True), ("path", False)]
)
def test_a_changed_column(copy: str, column: str, repaired: bool) -> None:
    """A changed size, time or path is told; sizes and times are then taken as they are."""
    flip(copy, index_of(copy).datasets[f"images/{column}"].stop - 3, 1)
    (problem,) = verify(copy).problems
    assert f"/images/{column} has checksum" in problem
    assert len(verify(copy, repair=True).problems) == (not repaired)
    assert told(copy) == (not repaired)


@pytest.mark.parametrize("page", [0, 1])
def test_a_torn_record_is_written_again(copy: str, page: int) -> None:
    """One of two records that is not whole is told, and written again by the next writer."""
    header = read_header(copy)
    flip(copy, header.user_block - 8192 + 4096 * page + 10)
    assert len(verify(copy).problems) == 1
    CacheWriter(copy, header).close()
    assert not told(copy)
