"""Vectors and class trees of strangers: bombs, lying headers, and trees without end."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
import zlib
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest

from vggfeat.errors import InputError, UsageError
from vggfeat.storage import foreign_arrays
from vggfeat.zeroshot import word_vectors
from vggfeat.zeroshot.attribute_files import read_mat, read_table
from vggfeat.zeroshot.class_tree import ClassTree, read_tree, tree_distances
from vggfeat.zeroshot.word_vectors import read_words

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


BOMBS = {
    "lines": (b"a 1 2\n", b"\n", "are a bomb: [0-9]+ bytes become [0-9]+ and more"),
    "vectors": (b"a 1 2\n", b"b 1 2\n", "are a bomb: [0-9]+ bytes become [0-9]+ and more"),
    "a line": (b"a 1 2\n", b"x", "are no text: a line has no end"),
    "binary": (b"9 3\n", b"w 123456789012\n", "are a bomb"),
    "a word": (b"9 3\n", b"w", "are no word2vec binary: a word has no end"),
    "wide": (b"9 99999999999\n", b"w 1234", "claim 99999999999 dimensions, and at most 65536"),
    "digits": (b"9 " + b"9" * 5000 + b"\n", b"w 1234", "claim 99999999999999999999 dimensions"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file that unpacks to much is one line, after an allowance and not after hours."""
    start, unit, expected = BOMBS[kind]
    if "bomb" in expected:
        monkeypatch.setattr(word_vectors, "_UNPACKED_AT_MOST", (1 << 16, 100))
    path = tmp_path / "v.gz"
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = unit * (2**20 // len(unit))
    with open(path, "wb") as file:
        file.write(packer.compress(start))
        file.writelines(packer.compress(block) for _ in range(8))
        file.write(packer.flush())
    with pytest.raises((InputError, UsageError), match=expected):
        read_words(str(path), {"cat"})


def test_a_tree_is_not_read_too_deep(tmp_path: Path) -> None:
    """A chain of 20,000 classes is refused, one of 1,000 levels is read."""
    path = tmp_path / "t.csv"
    path.write_text("".join(f"n{n},n{n + 1}\n" for n in range(20_000)))
    with pytest.raises(UsageError, match=r"'n0' lies 20001 levels deep, and at most 1000 are read"):
        read_tree(path)
    path.write_text("".join(f"n{n},n{n + 1}\n" for n in range(999)))
    found = tree_distances(read_tree(path), ["n0", "n499", "n999"])
    assert found.hops.tolist() == [[0, 499, 999], [499, 0, 500], [999, 500, 0]]
    assert found.tallest == 999


def test_a_long_circle_is_told_short(tmp_path: Path) -> None:
    """Of a circle of 20,000 classes the first few are named."""
    path = tmp_path / "t.csv"
    path.write_text("".join(f"n{n},n{(n + 1) % 20_000}\n" for n in range(20_000)))
    with pytest.raises(UsageError, match=r"n0 under n1 .* under \.\.\. under n0 is") as found:
        read_tree(path)
    assert len(str(found.value)) < 300


def test_heights_of_a_forest() -> None:
    """Heights are the edges down to the deepest leaf, also above the roots of a forest."""
    tree = ClassTree({"cat": "animal", "lynx": "cat", "oak": "tree"})
    found = tree_distances(tree, ["lynx", "cat", "oak"])
    assert found.hops.tolist() == [[0, 1, 5], [1, 0, 4], [5, 4, 0]]
    assert found.height.tolist() == [[0, 1, 3], [1, 0, 3], [3, 3, 0]]


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


def npz(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return stream.getvalue()


def edited(data: bytes, at: int, value: bytes) -> bytes:
    """A zip with other bytes in the first entry of its central directory."""
    at += data.index(b"PK\1\2")
    return data[:at] + value + data[at + len(value) :]


SHAPE = "{{'descr': '{0}', 'fortran_order': False, 'shape': {1}, }}"
ONE = npz({"cat.npy": npy(SHAPE.format("<f4", "(2,)"), bytes(8))})
NPZ = {
    "no zip": (b"\x80\4K\1.", "not a zip file"),
    "32 GiB": (npz({"a.npy": npy(SHAPE.format("<f4", "(8589934592,)"))}), "is cut short"),
    "negative": (npz({"a.npy": npy(SHAPE.format("<f4", "(-1,)"))}), "is cut short"),
    "objects": (npz({"a.npy": npy(SHAPE.format("|O", "(1,)"), b"x")}), "holds Python objects"),
    "nested": (npz({"a.npy": npy("(" * 100)}), r"are no \.npz"),
    "minus": (npz({"a.npy": npy("-" * 100 + "1")}), r"are no \.npz"),
    "version": (edited(ONE, 6, b"\xff\0"), "zip file version 25.5"),
    "encrypted": (edited(ONE, 8, b"\1\0"), "encrypted"),
    "method": (edited(ONE, 10, b"\x62\0"), "compression method is not supported"),
    "deflated": (edited(ONE, 10, b"\x08\0"), r"are no \.npz"),
    "bzipped": (edited(ONE, 10, b"\x0c\0"), r"are no \.npz"),
    "lzma": (edited(ONE, 10, b"\x0e\0"), r"are no \.npz"),
    "CRC": (edited(ONE, 16, b"abcd"), "Bad CRC"),
    "place": (edited(ONE, 42, b"\5\0"), r"are no \.npz"),
}


@pytest.mark.parametrize("kind", NPZ)
def test_arrays_that_lie_are_refused(kind: str, tmp_path: Path) -> None:
    """Whatever is wrong with an `.npz`, it is one line, and memory for it is not taken."""
    data, expected = NPZ[kind]
    (tmp_path / "v.npz").write_bytes(data)
    tracemalloc.start()
    with pytest.raises((UsageError, InputError), match=expected) as found:
        read_table(str(tmp_path / "v.npz"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**25
    assert "allow_pickle" not in str(found.value)
    assert "unsafe" not in str(found.value)


def test_arrays_that_unpack_to_too_much_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bomb of zeros is refused by its directory, before a byte is unpacked."""
    monkeypatch.setattr(foreign_arrays, "MOST_ARRAY_BYTES", 2**20)
    big = npy(SHAPE.format("<f4", "(262144,)"), bytes(2**20))
    (tmp_path / "v.npz").write_bytes(npz({"a.npy": big}, zipfile.ZIP_DEFLATED))
    with pytest.raises(UsageError, match=r"its arrays have 1\.0 MB, and at most 1\.0 MB are read"):
        read_table(str(tmp_path / "v.npz"))


def lying(file: h5py.File) -> None:
    file.create_dataset("att", (2**32, 2), "f8", chunks=(2**10, 2))


def linked(file: h5py.File) -> None:
    file.create_dataset("att", (4, 2), "f8", external=[("/dev/zero", 0, 64)])


def grouped(file: h5py.File) -> None:
    file.create_group("att")


def unpointed(file: h5py.File) -> None:
    file["att"] = np.ones((1, 2))
    file.create_dataset("allclasses_names", (1,), h5py.ref_dtype)


def huge_letters(file: h5py.File) -> None:
    file["att"] = np.ones((1, 2))
    file["name"] = np.array([2**31], np.uint32)
    file.create_dataset("allclasses_names", data=[file["name"].ref], dtype=h5py.ref_dtype)


@pytest.mark.parametrize("make", [lying, linked, grouped, unpointed, huge_letters])
def test_matlab_files_that_lie_are_refused(
    make: Callable[[h5py.File], None], tmp_path: Path
) -> None:
    """MATLAB files with shapes of 64 GiB, values elsewhere and broken references are one line."""
    path = tmp_path / "v.mat"
    with h5py.File(path, "w") as file:
        make(file)
    with pytest.raises(UsageError, match=r"are no MATLAB file: "):
        read_mat(str(path))


def test_cells_within_cells_are_refused(tmp_path: Path) -> None:
    """A MATLAB file of 30,000 nested cells crashed SciPy, and with it the interpreter."""
    pytest.importorskip("scipy.io")
    cell = struct.pack("<II II II", 14, 2**31 - 1, 6, 8, 1, 0)
    cell += struct.pack("<II ii II", 5, 8, 1, 1, 1, 0)
    start = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
    (tmp_path / "v.mat").write_bytes(start + cell * 30_000)
    with pytest.raises(UsageError, match="are no MATLAB file: more than 100 cells"):
        read_mat(str(tmp_path / "v.mat"))
