from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from small_disks import with_mount

from vggfeat.cache.format import CacheMetadata, Provenance
from vggfeat.cache.header import read_header
from vggfeat.cache.identity import Identity
from vggfeat.cache.layout import lay_out
from vggfeat.cache.writer import create_cache
from vggfeat.core.preprocessing import Preprocess
from vggfeat.errors import CacheError
from vggfeat.images.image_list import ImageList

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = 300
PATHS = (b"a/\xff\xfe.jpg", *(b"b/%03d.jpg" % row for row in range(1, ROWS)))
# Chunks of up to 1 MiB: 128 rows of fc7, a round number of pages; 167 of conv5_3, which is none.
SHAPES: dict[str, tuple[int, ...]] = {"conv5_3:map": (64, 7, 7), "fc7": (4096,)}
IDENTITY = Identity(
    model="vgg16",
    weights="imagenet",
    weights_sha256="ab" * 32,
    precision="bfloat16",
    dtype="float16",
    preprocess=Preprocess(),
    layers=("conv5_3:map", "fc7"),
)
PROVENANCE = Provenance(
    root=b"/data/\xff",
    config={"batch_size": 8, "layers": "fc7"},
    created_utc="2026-01-02T03:04:05+00:00",
    tool_version="9.9",
    versions={"torch": "2.6"},
    warning="beware: ü",
)
PREPROCESS = {
    "size": 224,
    "resize": 256,
    "crop": "center",
    "exif": "apply",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bilinear",
    "background": "white",
}


def manifest(paths: tuple[bytes, ...] = PATHS) -> ImageList:
    numbers = np.arange(len(paths), dtype=np.int64)
    return ImageList(b"/data", paths, numbers + 1000, numbers * 10**15, {})


def create(folder: Path) -> str:
    out = str(folder / "f.h5")
    create_cache(out, manifest(), CacheMetadata(IDENTITY, PROVENANCE, SHAPES))
    return out


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> str:
    return create(tmp_path_factory.mktemp("golden"))


@pytest.fixture
def copy(golden: str, tmp_path: Path) -> str:
    return shutil.copy(golden, str(tmp_path / "copy.h5"))


def datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}
    file.visititems(
        lambda name, item: found.__setitem__(name, item) if isinstance(item, h5py.Dataset) else None
    )
    return found


def test_datasets_of_the_format(golden: str) -> None:
    """A new cache holds exactly the documented datasets, with their types and shapes."""
    with h5py.File(golden) as file:
        found = {name: (item.dtype.str, item.shape) for name, item in datasets(file).items()}
        strings = {
            name: h5py.check_string_dtype(item.dtype).encoding
            for name, item in datasets(file).items()
            if item.dtype.kind == "S"
        }
    assert found == {
        "features/conv5_3:map": ("<f2", (ROWS, 64, 7, 7)),
        "features/fc7": ("<f2", (ROWS, 4096)),
        "images/checksum": ("<u4", (ROWS,)),
        "images/digest": ("|u1", (ROWS, 32)),
        "images/error": ("|S160", (ROWS,)),
        "images/mtime_ns": ("<i8", (ROWS,)),
        "images/path": ("|S9", (ROWS,)),
        "images/size": ("<i8", (ROWS,)),
        "images/state": ("|u1", (ROWS,)),
    }
    assert strings == {"images/error": "ascii", "images/path": "ascii"}


def test_texts_are_read_into_plain_c_strings(golden: str) -> None:
    """HDF5 converts paths and reasons to its default string type, and every byte arrives.

    That is what programs without an idea of UTF-8 ask for; from a dataset that is declared UTF-8
    HDF5 refuses it, even for letters of ASCII.
    """
    plain = h5py.h5t.C_S1.copy()
    plain.set_size(12)
    with h5py.File(golden) as file:
        for name, expected in (("path", PATHS), ("error", (b"",) * ROWS)):
            read = np.empty(ROWS, "S12")
            file[f"images/{name}"].id.read(h5py.h5s.ALL, h5py.h5s.ALL, read, mtype=plain)
            assert tuple(read.tolist()) == expected


def test_octave_reads_a_cache(golden: str) -> None:
    """Octave's `load` gives the features and the images, paths included."""
    octave = shutil.which("octave-cli")
    if octave is None:
        pytest.skip("octave-cli is not installed")
    code = f"s = load('{golden}'); printf('%s|%d', s.images.path(2, :), s.images.size(2))"
    done = subprocess.run(
        [octave, "--no-gui", "--quiet", "--norc", "--eval", code],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.stdout.startswith("b/001.jpg|1001"), done.stderr


def test_values_of_a_new_cache(golden: str) -> None:
    """A new cache has its paths, sizes and times, every row pending and every error empty."""
    with h5py.File(golden) as file:
        images = file["images"]
        assert tuple(images["path"][:].tolist()) == PATHS
        assert images["size"][:].tolist() == list(range(1000, 1000 + ROWS))
        assert images["mtime_ns"][:].tolist() == [row * 10**15 for row in range(ROWS)]
        assert set(images["state"][:].tolist()) == {0}
        assert set(images["error"][:].tolist()) == {b""}


def test_attributes_of_the_format(golden: str) -> None:
    """A new cache has exactly the documented attributes, their types and what was passed in."""
    with h5py.File(golden) as file:
        found = dict(file.attrs)
        raw = dict(found)
        types = {name: file.attrs.get_id(name).dtype for name in file.attrs}
    for name, value in found.items():
        if isinstance(value, np.bytes_) and name != "root":
            found[name] = value.decode()
    for name in ("preprocess", "config", "versions"):
        found[name] = json.loads(found[name])
    digested = {
        "dtype": "float16",
        "layers": ["conv5_3:map", "fc7"],
        "model": "vgg16",
        "precision": "bfloat16",
        "preprocess": dict(sorted(PREPROCESS.items())),
        "weights_sha256": "ab" * 32,
    }
    text = json.dumps(digested, separators=(",", ":"))
    assert found == {
        "format": "vggfeat",
        "format_version": 2,
        "created_utc": "2026-01-02T03:04:05+00:00",
        "tool_version": "9.9",
        "model": "vgg16",
        "weights": "imagenet",
        "weights_sha256": "ab" * 32,
        "preprocess": PREPROCESS,
        "precision": "bfloat16",
        "config": {"batch_size": 8, "layers": "fc7"},
        "fingerprint": hashlib.sha256(text.encode()).hexdigest(),
        "versions": {"torch": "2.6"},
        "root": b"/data/\xff",
        "warning": "beware: ü",
    }
    assert types.pop("format_version") == np.dtype("<i8")
    assert types.pop("root") == np.dtype("S7")
    for name, dtype in types.items():
        information = h5py.check_string_dtype(dtype)
        assert information is not None, name
        assert information.encoding == ("utf-8" if name == "warning" else "ascii"), name
        assert information.length == max(1, len(raw[name])), name


def test_layout_of_the_format(golden: str) -> None:
    """Each dataset is one aligned, unfiltered run of full-row chunks that can never grow."""
    with h5py.File(golden) as file:
        for name, item in datasets(file).items():
            layout = item.id.get_create_plist()
            assert layout.get_layout() == h5py.h5d.CHUNKED, name
            assert layout.get_nfilters() == 0, name
            assert layout.get_alloc_time() == h5py.h5d.ALLOC_TIME_EARLY, name
            assert layout.get_fill_time() == h5py.h5d.FILL_TIME_NEVER, name
            assert item.maxshape == item.shape, name
            assert item.chunks[1:] == item.shape[1:], name
            chunk_bytes = int(np.prod(item.chunks)) * item.dtype.itemsize
            chunks = [item.id.get_chunk_info(at) for at in range(item.id.get_num_chunks())]
            first = chunks[0].byte_offset
            if item.nbytes >= 4096:  # HDF5 packs smaller ones together
                assert first % 4096 == 0, name
            assert [chunk.byte_offset for chunk in chunks] == [
                first + at * chunk_bytes for at in range(len(chunks))
            ], name
            assert [chunk.chunk_offset[0] for chunk in chunks] == [
                at * item.chunks[0] for at in range(len(chunks))
            ], name
        assert file["features/conv5_3:map"].chunks == (167, 64, 7, 7)
        assert file["features/conv5_3:map"].id.get_num_chunks() == 2
        assert file["features/fc7"].chunks == (128, 4096)
        assert file["features/fc7"].id.get_num_chunks() == 3
        assert file["images/state"].chunks == (ROWS,)


def test_rows_larger_than_a_chunk(tmp_path: Path) -> None:
    """A row of more than 1 MiB is a chunk of its own."""
    out = str(tmp_path / "f.h5")
    shape = (64, 112, 112)  # 1.5 MiB of float16
    lay_out(out, 3, 5, shapes={"conv2_2:map": shape}, identity=IDENTITY, provenance=PROVENANCE)
    with h5py.File(out) as file:
        assert file["features/conv2_2:map"].chunks == (1, *shape)


def test_layout_is_sparse(tmp_path: Path) -> None:
    """Laying out a gigabyte of rows writes metadata only."""
    out = str(tmp_path / "f.h5")
    lay_out(out, 131072, 9, shapes={"fc7": (4096,)}, identity=IDENTITY, provenance=PROVENANCE)
    status = os.stat(out)
    assert status.st_size > 2**30
    assert status.st_blocks * 512 < 2**20


def test_room_is_reserved(golden: str, tmp_path: Path) -> None:
    """A created cache has all its disk blocks, where the file system can reserve them."""
    tool = shutil.which("fallocate")
    if tool is None or subprocess.run([tool, "-l", "1M", tmp_path / "x"], check=False).returncode:
        pytest.skip("this file system reserves nothing")
    status = os.stat(golden)
    assert status.st_blocks * 512 >= status.st_size


def test_offsets_of_the_header(golden: str) -> None:
    """The header's rows, types and offsets are those of h5py."""
    header = read_header(golden)
    with h5py.File(golden) as file:
        expected = {
            name: (item.dtype, item.shape, item.id.get_chunk_info(0).byte_offset)
            for name, item in datasets(file).items()
        }
    assert header.rows == ROWS
    assert {
        name: (np.dtype(run.dtype), run.shape, run.offset) for name, run in header.runs.items()
    } == expected
    assert header.identity == IDENTITY
    assert header.provenance == PROVENANCE
    assert header.feature("conv5_3:map").row_bytes == 64 * 7 * 7 * 2


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    """A cache has the permissions any new file has, and nothing lies beside it."""
    before = os.umask(0o027)
    try:
        out = create(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(out).st_mode) == 0o640
    assert os.listdir(tmp_path) == ["f.h5"]


def test_an_old_file_is_replaced_whole(tmp_path: Path) -> None:
    """Creating over an older file and a killed run's temporary leaves the new file alone."""
    (tmp_path / "f.h5").write_bytes(b"old")
    (tmp_path / "f.h5.vggfeat.tmp").write_bytes(b"left behind")
    assert read_header(create(tmp_path)).rows == ROWS
    assert os.listdir(tmp_path) == ["f.h5"]


CREATE = """
import os, resource, sys
import numpy as np
sys.path[:0] = {path!r}
import test_format
from vggfeat.errors import SpaceError
{before}
try:
    test_format.create_cache(
        "f.h5", test_format.manifest(),
        test_format.CacheMetadata(test_format.IDENTITY, test_format.PROVENANCE, test_format.SHAPES),
    )
except SpaceError as error:
    print(error)
    print(sorted(os.listdir(".")))
"""


def fail_to_create(folder: Path, before: str, *wrapper: str) -> list[str]:
    code = CREATE.format(path=[os.path.dirname(__file__), *sys.path], before=before)
    command = [*wrapper, sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True
    ).stdout.splitlines()


@pytest.mark.parametrize("limit", [100, 20_000, 1_000_000])
def test_creation_beyond_the_size_limit_leaves_nothing(tmp_path: Path, limit: int) -> None:
    """Where the file may not grow to its size, creation is a SpaceError and leaves nothing."""
    before = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    message, listing = fail_to_create(tmp_path, before)
    assert message.startswith("cache 'f.h5' cannot be made: ")
    assert "ile too large" in message
    assert listing == "[]"


def test_creation_on_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """On a disk that is too small, creation says what is needed and free, and leaves nothing."""
    mount = 'mount -t tmpfs -o size=1m tmpfs "$PWD" && cd "$PWD"'
    wrapper = with_mount(mount, tmp_path)
    message, listing = fail_to_create(tmp_path, "", *wrapper)
    assert message == (
        "cache 'f.h5' needs 5.3 MB, the disk has 1.0 MB free; make room, ask for fewer or "
        "smaller layers, or choose another --out"
    )
    assert listing == "[]"


def test_creation_in_a_read_only_folder_leaves_nothing(tmp_path: Path) -> None:
    """Where no file may be made, creation is a SpaceError that names the output."""
    before = "os.chmod('.', 0o555)\nif os.geteuid() == 0: os.setgid(65534); os.setuid(65534)"
    message, listing = fail_to_create(tmp_path, before)
    assert message.startswith("cache 'f.h5' cannot be made: ")
    assert "ermission denied" in message
    assert listing == "[]"


def test_missing_file(tmp_path: Path) -> None:
    """A cache that is not there is said to be so."""
    with pytest.raises(CacheError, match=r"'.*gone\.h5' does not exist"):
        read_header(str(tmp_path / "gone.h5"))


def test_folder(tmp_path: Path) -> None:
    """A folder is no cache."""
    with pytest.raises(CacheError, match=r"cannot be read|not an HDF5 file"):
        read_header(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x89HDF\r\n\x1a\n", b"\0" * 5000])
def test_no_hdf5(tmp_path: Path, content: bytes) -> None:
    """A file of anything else is no HDF5 file."""
    (tmp_path / "text.h5").write_bytes(content)
    with pytest.raises(CacheError, match=r"'.*text\.h5' is not an HDF5 file, or was cut short"):
        read_header(str(tmp_path / "text.h5"))


def test_truncated(copy: str) -> None:
    """A cache cut short anywhere, by one byte or to one, is refused."""
    size = os.path.getsize(copy)
    for cut in [size - 1, size - 4096, *np.linspace(1, size - 2, 60, dtype=int)[::-1].tolist()]:
        os.truncate(copy, cut)
        with pytest.raises(CacheError, match="not an HDF5 file, or was cut short"):
            read_header(copy)


def test_damaged_metadata(copy: str) -> None:
    """A flipped byte in any object header is a CacheError, not one of HDF5's own."""
    data = Path(copy).read_bytes()
    headers = [found.start() for found in re.finditer(b"OHDR", data)]
    assert len(headers) >= 11  # the root, two groups, eight datasets
    for at in headers:
        with open(copy, "r+b") as file:
            file.seek(at + 20)
            file.write(bytes([data[at + 20] ^ 0x55]))
        with pytest.raises(CacheError, match=r"copy\.h5"):
            read_header(copy)
        Path(copy).write_bytes(data)


def replace(name: str, data: Any, **options: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=data, **options)

    return change


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        if value is None:
            del file.attrs[name]
        else:
            file.attrs[name] = value

    return change


def remove(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


def empty_features(file: h5py.File) -> None:
    del file["features"]
    file.create_group("features")


ZEROS = np.zeros((ROWS, 16), np.float16)
LIES: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "format": (attribute("format", "other"), "no cache of ours: attribute format is 'other'"),
    "no format": (attribute("format", None), "no cache of ours: attribute format is None"),
    "format array": (attribute("format", [1, 2]), "no cache of ours"),
    "newer": (attribute("format_version", 3), "version 3, this vggfeat reads 1 and 2; upgrade it"),
    "version 0": (attribute("format_version", 0), "version 0, .* reads 1 and 2; it is damaged"),
    "no version": (attribute("format_version", None), "reads 1 and 2; it is damaged"),
    "version text": (attribute("format_version", "one"), "reads 1 and 2; it is damaged"),
    "model": (attribute("model", None), "attribute model is missing"),
    "preprocess": (attribute("preprocess", "{"), "attributes cannot be read: "),
    "preprocess list": (attribute("preprocess", "[]"), "attributes cannot be read: "),
    "preprocess field": (attribute("preprocess", '{"sizes": 1}'), "attributes cannot be read: "),
    "config": (attribute("config", "["), "attributes cannot be read: "),
    "config without batch size": (attribute("config", "{}"), "config has no batch_size"),
    "tampered": (attribute("model", "vgg19"), "fingerprint does not belong"),
    "fingerprint": (attribute("fingerprint", "00"), "fingerprint does not belong"),
    "no fingerprint": (attribute("fingerprint", None), "attribute fingerprint is missing"),
    "no state": (remove("images/state"), "/images/state is missing or not one value a row"),
    "state type": (
        replace("images/state", np.zeros(ROWS, np.int16)),
        "/images/state has type int16, expected uint8",
    ),
    "path type": (
        replace("images/path", np.zeros(ROWS, np.int64)),
        r"/images/path has type int64, expected \|S1",
    ),
    "variable paths": (
        replace("images/path", [b"x"] * ROWS, dtype=h5py.string_dtype()),
        r"/images/path has type texts of variable length, expected \|S1",
    ),
    "2-D": (
        replace("images/size", np.zeros((ROWS, 2), np.int64)),
        "/images/size is missing or not one value a row",
    ),
    "rows": (replace("features/fc7", ZEROS[:7]), "/features/fc7 has 7 rows, /images/state 300"),
    "1-D": (replace("features/fc7", ZEROS[:, 0]), "/features/fc7 is no array of rows"),
    "float64": (
        replace("features/fc7", ZEROS.astype(np.float64)),
        "/features/fc7 has type float64, expected float16 or float32",
    ),
    "no features": (remove("features"), "/features holds no layer"),
    "empty features": (empty_features, "/features holds no layer"),
    "missing layer": (remove("features/fc7"), "fingerprint does not belong"),
    "gzip": (
        replace("features/fc7", ZEROS, compression="gzip"),
        "/features/fc7 does not lie in one run .*h5repack",
    ),
    "column chunks": (
        replace("features/fc7", ZEROS, chunks=(10, 8)),
        "/features/fc7 does not lie in one run",
    ),
    "big-endian": (
        replace("features/fc7", ZEROS.astype(">f2")),
        "/features/fc7 has type big-endian float16, expected float16",
    ),
    "never written": (
        replace("features/fc7", None, shape=(ROWS, 4096), dtype="<f2"),
        "/features/fc7 does not lie in one run",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_files_that_lie(copy: str, lie: str) -> None:
    """What is not as the format says is refused, by the name of the offender."""
    change, message = LIES[lie]
    with h5py.File(copy, "r+") as file:
        change(file)
    with pytest.raises(CacheError, match=message):
        read_header(copy)


def test_scattered_chunks(copy: str) -> None:
    """Full-row chunks that lie in another order than their rows are refused."""
    with h5py.File(copy, "r+") as file:
        del file["features/fc7"]
        item = file.create_dataset("features/fc7", (ROWS, 16), "<f2", chunks=(100, 16))
        for start in (200, 0, 100):
            item[start : start + 100] = 1
            file.flush()
    with pytest.raises(CacheError, match="/features/fc7 does not lie in one run"):
        read_header(copy)


def test_all_offenders_are_named(copy: str) -> None:
    """Every offence is in the one message."""
    with h5py.File(copy, "r+") as file:
        for lie in ("no state", "path type", "gzip", "model"):
            LIES[lie][0](file)
    with pytest.raises(CacheError) as caught:
        read_header(copy)
    for lie in ("no state", "path type", "gzip", "model"):
        caught.match(LIES[lie][1])


def test_foreign_hdf5(tmp_path: Path) -> None:
    """An HDF5 file of somebody else's is named as that."""
    path = str(tmp_path / "other.h5")
    with h5py.File(path, "w") as file:
        file["x"] = [1, 2]
    with pytest.raises(CacheError, match="is an HDF5 file but no cache of ours"):
        read_header(path)


def test_h5dump_reads_it(golden: str) -> None:
    """HDF5's own command-line tool reads the file."""
    tool = shutil.which("h5dump")
    if tool is None:
        pytest.skip("h5dump is not installed")
    command = [tool, "-d", "/images/size", "-s", "7", "-c", "1", golden]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "(7): 1007" in shown
