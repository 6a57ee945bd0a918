"""Export to WebDataset: tar files in which the files of one image are adjacent and share a key."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from typing import TYPE_CHECKING, Final

from vggfeat.exporters.numpy import file_name, npy_bytes

if TYPE_CHECKING:
    from vggfeat.exporters.registry import Options
    from vggfeat.exporters.selection import Content, ExportPart

SHARD_BYTES: Final = 1 << 28
"""After so many bytes of features the next shard begins; of the size that loaders like."""

_BLOCK = 512
_PER_FILE = 2 * _BLOCK  # header and padding of a tar


def write_webdataset(content: Content, folder: str, _options: Options) -> None:
    """Write `shard-000000.tar` and so on, with `<row>.<layer>.npy` and `<row>.json`."""
    os.mkdir(folder)
    row_bytes = sum(
        content.width(layer) * content.dtype(layer).itemsize + _PER_FILE for layer in content.layers
    )
    a_shard = max(1, SHARD_BYTES // row_bytes)
    with contextlib.ExitStack() as stack:
        shard: tarfile.TarFile | None = None
        for part in content.parts():
            for at in range(len(part.rows)):
                number, begins = divmod(part.start + at, a_shard)
                if begins == 0 or shard is None:
                    stack.close()
                    name = os.path.join(folder, f"shard-{number:06}.tar")
                    shard = stack.enter_context(
                        tarfile.open(name, "w", format=tarfile.USTAR_FORMAT)
                    )
                _add_image(shard, part, at)


def _add_image(shard: tarfile.TarFile, part: ExportPart, at: int) -> None:
    row = part.rows[at]
    about = {"path": part.paths[at], "row": row, "state": part.states[at]}
    files = {f"{file_name(layer)}.npy": npy_bytes(one[at]) for layer, one in part.values.items()}
    files["json"] = json.dumps(about).encode()
    for ending, data in files.items():
        member = tarfile.TarInfo(f"{row:010}.{ending}")
        member.size = len(data)
        shard.addfile(member, io.BytesIO(data))
