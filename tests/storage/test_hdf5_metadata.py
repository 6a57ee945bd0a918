"""HDF5 metadata without libhdf5: the same as h5py says, and a clear error for all that lies."""

from __future__ import annotations

import io
import itertools
import subprocess
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t

from vggfeat.storage.hdf5_metadata.blocks import MetadataError, lookup3
from vggfeat.storage.hdf5_metadata.reader import (
    Attribute,
    Dataset,
    Group,
    Hdf5File,
    has_signature,
    open_metadata,
)

if TYPE_CHECKING:
    from pathlib import Path

VERSIONS: tuple[Any, ...] = (("earliest", "latest"), ("v108", "v108"), ("v110", "v110"), "latest")
LAYOUTS = {h5d.CONTIGUOUS: "contiguous", h5d.CHUNKED: "chunked", h5d.COMPACT: "compact"}


def fill(file: h5py.File, many: int) -> None:
    """Everything that is read, and much that is not."""
    for number in range(many):
        file.attrs[f"text {number}"] = f"ü {number}" * number
        file.attrs[f"bytes {number}"] = np.bytes_(b"x" * number + b"\xff")
        file.attrs[f"number {number}"] = np.int16(-number)
    if many:
        file.attrs["large"] = np.bytes_(b"z" * 5000)  # by itself in the file, beside a heap
    file.attrs["numbers"] = np.arange(3)
    file.attrs["nothing"] = h5py.Empty("f4")
    group = file.create_group("group")
    for number in range(many):
        group[f"one {number}"] = np.arange(number, dtype="f4")
    file["group/inner/scalar"] = 1.5
    file["soft"], file["external"] = h5py.SoftLink("/group"), h5py.ExternalLink("o.h5", "/g")
    for name, values in {
        "bool": np.array([True, False]), "texts": np.array([b"abc", b"d\0\0e"]),
        "half": np.ones(2, "f2"), "codes": np.ones((2, 1), "i1"), "big": np.arange(3, dtype=">f4"),
        "unsigned": np.arange(3, dtype="u8"), "double": np.ones((2, 3, 4)),
        "empty": np.ones((0, 4)), "compound": np.zeros(3, [("a", "i4")]),
        "complex": np.zeros(3, complex),
    }.items():  # fmt: skip
        file[name] = values
    file["null"], file["variable"] = h5py.Empty("f8"), ["a", "bb"]
    fill_chunks(file)


def fill_chunks(file: h5py.File) -> None:
    """Chunks in one run, by every index of them, and such as are not in one."""
    rows = np.arange(200 * 8).reshape(200, 8)
    for name, most in {"fixed": (200, 8), "more": (None, None)}.items():
        plan = h5p.create(h5p.DATASET_CREATE)
        plan.set_chunk((10, 8))
        plan.set_alloc_time(h5d.ALLOC_TIME_EARLY)
        space = h5s.create_simple((200, 8), tuple(one or h5s.UNLIMITED for one in most))
        h5d.create(file.id, name.encode(), h5t.NATIVE_INT64, space, dcpl=plan)
        file[name][:] = rows
    file.create_dataset("one chunk", data=rows, chunks=rows.shape)
    file.create_dataset("pages", data=np.arange(1100), chunks=(1,))
    file.create_dataset("columns", data=rows, chunks=(10, 4))
    file.create_dataset("packed", data=rows, chunks=(10, 8), compression="gzip")
    plan = h5p.create(h5p.DATASET_CREATE)
    plan.set_layout(h5d.COMPACT)
    h5d.create(file.id, b"compact", h5t.NATIVE_INT32, h5s.create_simple((5,)), dcpl=plan)
    file["compact"][:] = range(5)


@pytest.mark.parametrize("many", [0, 3, 60])
@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_two_readers_agree(tmp_path: Path, version: Any, many: int) -> None:
    """Groups, links, attributes, types, shapes, places and values are those that h5py gives."""
    path = tmp_path / "f.h5"
    with h5py.File(path, "w", libver=version, track_order=many == 3) as file:
        fill(file, many)
    with h5py.File(path) as file, open_metadata(str(path)) as mine:
        compare_groups(file, mine.root)
        assert {name for name, _ in mine.root.datasets()} >= {"group/inner/scalar", "fixed"}
        fixed = mine.root.get("fixed")
        assert isinstance(fixed, Dataset)
        assert (fixed.offset() is not None) == (version in (("v110", "v110"), "latest"))


def compare_groups(theirs: h5py.Group, mine: Group) -> None:
    assert set(theirs) == set(mine.links)
    assert set(theirs.attrs) == set(mine.attributes)
    for name, attribute in mine.attributes.items():
        compare_attributes(theirs.attrs[name], attribute)
    for name in theirs:
        found = mine.get(name)
        if not isinstance(theirs.get(name, getlink=True), h5py.HardLink):
            assert found is None
            assert "link to '/g" in mine.links[name].words
        elif isinstance(found, Group):
            compare_groups(theirs[name], found)
        else:
            assert isinstance(found, Dataset)
            compare_datasets(theirs[name], found)


def compare_attributes(value: Any, mine: Attribute) -> None:
    if isinstance(value, str):
        assert mine.text() == value
    elif isinstance(value, bytes):
        assert mine.bytes() == value
    elif isinstance(value, np.integer):
        assert mine.integer() == value
    else:
        assert isinstance(mine.value(), MetadataError)


def compare_datasets(theirs: h5py.Dataset, mine: Dataset) -> None:
    assert mine.shape == theirs.shape
    if theirs.dtype.kind in "OVc" or theirs.size == 0:
        assert (mine.datatype.numpy is None) == (theirs.dtype.kind in "OVc")
        return
    assert mine.datatype.numpy == theirs.dtype
    kind = LAYOUTS[theirs.id.get_create_plist().get_layout()]
    if kind == "contiguous" and mine.shape:
        assert mine.offset() == theirs.id.get_offset()
    elif kind == "chunked":
        assert mine.offset() == run_of_chunks(theirs)
    if mine.shape is not None and (kind == "compact" or mine.offset() is not None):
        np.testing.assert_array_equal(mine.read(), theirs[()], strict=bool(theirs.shape))


def run_of_chunks(theirs: h5py.Dataset) -> int | None:
    if theirs.chunks[1:] != theirs.shape[1:] or theirs.id.get_create_plist().get_nfilters():
        return None
    rest = (0,) * (theirs.ndim - 1)
    starts = range(0, theirs.shape[0], theirs.chunks[0])
    if theirs.id.get_num_chunks() > 99:
        starts = range(0, theirs.shape[0], theirs.chunks[0] * 73)
    places = [theirs.id.get_chunk_info_by_coord((at, *rest)).byte_offset for at in starts]
    step = starts.step * theirs.dtype.itemsize * int(np.prod(theirs.shape[1:]))
    return places[0] if all(b - a == step for a, b in itertools.pairwise(places)) else None


def test_an_extensible_array_is_refused_by_name(tmp_path: Path) -> None:
    """The one index of chunks that is not read says what helps."""
    path = tmp_path / "f.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("x", data=np.ones((9, 2)), chunks=(2, 2), maxshape=(None, 2))
    with open_metadata(str(path)) as mine, pytest.raises(MetadataError, match="h5repack -f NONE"):
        mine.root.get("x").offset()  # type: ignore[union-attr] # a dataset


def test_user_blocks_and_other_people_s_tools(tmp_path: Path) -> None:
    """A user block of any size is skipped, and what h5repack writes is read."""
    path = tmp_path / "f.h5"
    with h5py.File(path, "w", userblock_size=2048) as file:
        fill(file, 3)
    assert has_signature(str(path))
    with h5py.File(path) as file, open_metadata(str(path)) as mine:
        double = mine.root.get("double")
        assert isinstance(double, Dataset)
        assert double.offset() == file["double"].id.get_offset()
        np.testing.assert_array_equal(double.read(), file["double"])
    again = tmp_path / "again.h5"
    subprocess.run(["h5repack", "-f", "NONE", "-l", "CONTI", path, again], check=True)
    with h5py.File(again) as file, open_metadata(str(again)) as mine:
        compare_groups(file, mine.root)


def test_the_checksum_is_bob_jenkins_s() -> None:
    """Values that lookup3.c itself prints, and one of every length of the last part."""
    assert lookup3(b"Four score and seven years ago") == 0x17770551
    assert lookup3(b"") == 0xDEADBEEF
    assert len({lookup3(bytes(size)) for size in range(30)}) == 30


def look_everywhere(data: bytes) -> None:
    """Read all that a file says, its values included."""

    def read_into(offset: int, view: memoryview) -> int:
        return io.BytesIO(data[offset:]).readinto(view)

    file = Hdf5File(read_into, len(data))
    todo: list[Group | Dataset] = [file.root]
    for one in todo:
        for attribute in one.attributes.values():
            attribute.value()
        if isinstance(one, Dataset):
            one.read()
        else:
            todo += [member for name in one.links if (member := one.get(name)) is not None]
        if len(todo) > 1000:
            raise MetadataError("a group is below itself")


@pytest.mark.parametrize("version", [("earliest", "v110"), ("v110", "v110")], ids=str)
def test_every_flipped_byte_ends_in_one_kind_of_error(tmp_path: Path, version: Any) -> None:
    """Whatever byte is wrong, and however, the file is read or a `MetadataError` says why not."""
    path = tmp_path / "f.h5"
    with h5py.File(path, "w", libver=version) as file:
        file["group/values"], file["links"] = np.arange(3), h5py.SoftLink("/group")
        for number in range(10 if version[0] == "v110" else 2):
            file.attrs[f"text {number}"] = "some text"
    whole = path.read_bytes()
    look_everywhere(whole)
    used = [at for at, byte in enumerate(whole) if byte]
    places = [at for at in range(len(whole)) if at in used or at - 1 in used]
    refused = 0
    for at in places:
        for flip in (1, 0x80, 0xFF):
            damaged = bytearray(whole)
            damaged[at] ^= flip
            try:
                look_everywhere(bytes(damaged))
            except MetadataError:
                refused += 1
    assert refused > len(places)
    for size in range(0, len(whole), 61):
        with pytest.raises(MetadataError):
            look_everywhere(whole[:size])
