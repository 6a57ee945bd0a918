"""torch's zip archives: a pickle that describes the tensors, and their values beside it.

`torch.save` writes them since 1.6; `torch.jit.save` adds the modules' code, which is not read.
"""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING

from vggfeat.core.text import first_few
from vggfeat.network.containers.records import Contents, RefusedError
from vggfeat.network.containers.tensor_pickle import load_noted, named_tensors

if TYPE_CHECKING:
    from vggfeat.storage.checked_file import CheckedFile

ZIP_HEAD = b"PK\x03\x04"
_PICKLE = "data.pkl"
_MOST_UNPACKED = 1 << 20  # bytes of a member that someone has compressed
_LOCAL_HEADER = 30  # bytes, with the lengths of name and extra field in the last four


def is_torch_archive(_file: CheckedFile, head: bytes) -> bool:
    """Return whether a file begins like a zip archive."""
    return head.startswith(ZIP_HEAD)


def read_torch_archive(file: CheckedFile) -> Contents:
    """Locate the tensors by the pickle in the archive."""
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        pickles = [name for name in members if name.split("/")[1:] == [_PICKLE]]
        if not pickles:
            raise RefusedError(
                f"it is a zip archive without {_PICKLE}, as torch.save writes it; it holds "
                f"{first_few(sorted(members))}"
            )
        root = pickles[0].removesuffix(_PICKLE)
        order = f"{root}byteorder"
        for name in (pickles[0], order):
            _check_member(members.get(name))
        if order in members and archive.read(order) != b"little":
            raise RefusedError(
                "its values are big-endian; save it again on a little-endian machine"
            )
        script = f"{root}constants.pkl" in members
        noted, _ = load_noted(io.BytesIO(archive.read(pickles[0])), script=script)
    tensors = named_tensors(noted)
    if script and not tensors:
        raise RefusedError(
            "its tensors have no names, as torch.jit.freeze leaves them; save the module before "
            "it is frozen, or its state_dict"
        )

    def locate(key: str) -> tuple[int, int]:
        return member_place(file, members[f"{root}data/{key}"])

    return Contents(tensors, locate)


def _check_member(member: zipfile.ZipInfo | None) -> None:
    """Refuse a compressed member that unpacks to much; torch compresses none."""
    packed = member is not None and member.compress_type != zipfile.ZIP_STORED
    if member is not None and packed and member.file_size > _MOST_UNPACKED:
        raise RefusedError(
            f"its member {member.filename} is compressed and has {member.file_size} bytes "
            "unpacked; pack it without compression (zip -0)"
        )


def member_place(file: CheckedFile, member: zipfile.ZipInfo) -> tuple[int, int]:
    """Return first byte and length of an archive member that is not compressed."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise RefusedError(
            f"its member {member.filename} is compressed; pack it without compression (zip -0)"
        )
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER) or b""
    if len(header) < _LOCAL_HEADER or not header.startswith(ZIP_HEAD):
        raise ValueError(f"no {member.filename} at byte {member.header_offset}")
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return member.header_offset + _LOCAL_HEADER + name + extra, member.file_size
