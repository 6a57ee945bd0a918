"""Pixels to the network's input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from vggfeat.core.preprocessing import Preprocess

_WHITE: Mapping[torch.dtype, int] = {torch.uint8: 255, torch.uint16: 65535}
"""Of pixels, what becomes 1."""


class Normaliser:
    """Takes the mean from pixels and divides them by the deviation, on a device.

    Args:
        preprocess: mean and deviation, one a channel.
        device: where.
    """

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        self._mean, self._std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1)
            for values in (preprocess.mean, preprocess.std)
        )

    def __call__(self, images: Tensor) -> Tensor:
        """The network's input, (N, C, H, W) in channels-last memory.

        Args:
            images: (N, C, H, W), uint8 or uint16; floating point is taken as normalised already.
        """
        white = _WHITE.get(images.dtype)
        if white is not None:
            # Divided, not multiplied by 1/255: so does torchvision, and the bits are the same.
            images = images.float().div_(white).sub_(self._mean).div_(self._std)
        return images.contiguous(memory_format=torch.channels_last)
