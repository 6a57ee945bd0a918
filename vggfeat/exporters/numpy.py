"""Export to NumPy: a folder of .npy files, or one .npz."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vggfeat.exporters.registry import Options
    from vggfeat.exporters.selection import Content

_PATHS_FILE = "paths.txt"


def write_npy(content: Content, folder: str, _options: Options) -> None:
    """Write `<layer>.npy`, (n, …), for each layer, `paths.txt` and `states.txt`."""
    os.mkdir(folder)
    for layer in content.layers:
        with open(os.path.join(folder, f"{file_name(layer)}.npy"), "wb") as file:
            file.writelines(npy_blocks(content, layer))
    write_lines(content, folder)


def write_lines(content: Content, folder: str) -> None:
    """Write `paths.txt` and `states.txt`, one line a row."""
    for name, lines in (
        (_PATHS_FILE, content.paths(content.rows)),
        ("states.txt", content.states(content.rows)),
    ):
        with open(os.path.join(folder, name), "w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)


def write_npz(content: Content, path: str, _options: Options) -> None:
    """Write an array for each layer under its name, `paths` as exact bytes, and `states`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for layer in content.layers:
            with archive.open(_member(f"{layer}.npy"), "w", force_zip64=True) as member:
                for block in npy_blocks(content, layer):
                    member.write(block)
        paths = npy_bytes(np.asarray(content.cache.paths[content.rows]))
        archive.writestr(_member("paths.npy"), paths)
        archive.writestr(_member("states.npy"), npy_bytes(np.array(content.states(content.rows))))


def _member(name: str) -> zipfile.ZipInfo:
    """Return a member without the time of its writing, as of `np.savez`: equal bytes each time."""
    member = zipfile.ZipInfo(name)  # of 1980-01-01, the earliest that a zip can say
    member.external_attr = stat.S_IRUSR << 16 | stat.S_IWUSR << 16
    return member


def npy_blocks(content: Content, layer: str) -> Iterator[bytes]:
    """Yield a .npy file of one layer in blocks."""
    header = io.BytesIO()
    about = {
        "descr": np.lib.format.dtype_to_descr(content.dtype(layer)),
        "fortran_order": False,
        "shape": (len(content), *content.row_shape(layer)),
    }
    np.lib.format.write_array_header_1_0(header, about)
    yield header.getvalue()
    for values in content.of(layer):
        yield values.tobytes()


def npy_bytes(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bytes:
    """Return the .npy file of a small array."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def file_name(layer: str) -> str:
    """Return the name of a layer without characters that some file systems refuse."""
    return layer.replace(":", "-").replace("/", "-")
