"""Tensors to a safetensors file, which appears whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vggfeat.errors import SpaceError
from vggfeat.storage.atomic import atomic_file
from vggfeat.storage.safetensors import TensorEntry, header_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAMES: Mapping[torch.dtype, str] = {torch.float32: "F32"}


def write_tensors(
    path: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write float32 tensors as a file that appears whole, synced, or not at all.

    Args:
        path: where to; what was there is replaced.
        tensors: by name, on any device.
        metadata: texts by name.

    Raises:
        SpaceError: it cannot be written; what was there stays.
    """
    entries = [
        TensorEntry(name, _NAMES[tensor.dtype], tuple(tensor.shape))
        for name, tensor in tensors.items()
    ]
    try:
        with atomic_file(path) as file:
            file.write(header_bytes(entries, metadata))
            file.writelines(
                tensor.detach().cpu().contiguous().numpy().data for tensor in tensors.values()
            )
    except OSError as error:
        raise SpaceError(
            error.errno,
            f"{path!r} cannot be written: {error.strerror}; what was there before is whole, run "
            "again once the disk has room",
        ) from error
