"""Tensors to a safetensors file, which appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import torch

from vggfeat.errors import SpaceError
from vggfeat.storage.descriptors import open_descriptor
from vggfeat.tensorheader import TensorEntry, header_bytes
from vggfeat.writer import sync_directory

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAMES: Mapping[torch.dtype, str] = {torch.float32: "F32"}


def write_tensors(
    path: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes float32 tensors beside their place, syncs them, and renames.

    Args:
        path: where to; what was there is replaced.
        tensors: by name, on any device.
        metadata: texts by name.

    Raises:
        SpaceError: it cannot be written; what was there stays.
    """
    temporary = f"{path}.tmp"  # always the same: the output is locked, and a killed run leaves one
    entries = [
        TensorEntry(name, _NAMES[tensor.dtype], tuple(tensor.shape))
        for name, tensor in tensors.items()
    ]
    try:
        with open(temporary, "wb", opener=open_descriptor) as file:
            file.write(header_bytes(entries, metadata))
            file.writelines(
                tensor.detach().cpu().contiguous().numpy().data for tensor in tensors.values()
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(os.path.dirname(os.path.abspath(path)))
    except OSError as error:
        raise SpaceError(
            error.errno,
            f"{path!r} cannot be written: {error.strerror}; what was there before is whole, run "
            "again once the disk has room",
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
