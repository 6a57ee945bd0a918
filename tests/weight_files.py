"""Weight files as the tests read them: all tensors at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggfeat.network.checkpoint_reader import open_checkpoint

if TYPE_CHECKING:
    from torch import Tensor


def read_checkpoint(path: str) -> dict[str, Tensor]:
    """All tensors of a file by torchvision's names, or its own if it is no VGG."""
    with open_checkpoint(path) as file:
        return file.read(file.shapes)
