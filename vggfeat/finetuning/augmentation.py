"""Random data augmentation during training; none by default.

What is applied to an image follows from seed, epoch and image alone, so that a resumed run
continues exactly as the interrupted one would have. torchvision's `v2` transforms draw from one
global generator instead, whose state depends on every image before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from vggfeat.core.choices import unknown_value
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

Augmentation = Literal["mirror", "flip", "shift", "contrast"]
AUGMENTATIONS: tuple[Augmentation, ...] = get_args(Augmentation)

_MAX_SHIFT = 1 / 16  # of the side
_MAX_CONTRAST = 0.2


def parse_jitter(text: str) -> tuple[Augmentation, ...]:
    """Return the augmentations in a list separated by commas, each once."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in AUGMENTATIONS]
    if unknown:
        raise UsageError(unknown_value("jitter", AUGMENTATIONS, *unknown))
    return tuple(name for name in AUGMENTATIONS if name in words)


def augment(
    images: Tensor, augmentations: Sequence[Augmentation], seeds: Sequence[tuple[int, ...]]
) -> Tensor:
    """Augment each image at random.

    `mirror` flips horizontally and `flip` vertically, each with probability 1/2. `shift` translates
    by up to 1/16 of height and width and fills with the mean. `contrast` multiplies by 0.8 to 1.2
    and adds up to 0.2 standard deviations.

    Args:
        images: (n, C, H, W), normalised.
        augmentations: to apply.
        seeds: of each image.

    Returns:
        (n, C, H, W); `images` itself if there are no augmentations.
    """
    if not augmentations:
        return images
    import torch
    from numpy.random import default_rng

    pairs = zip(images, seeds, strict=True)
    return torch.stack([_augment_one(x, augmentations, default_rng(seed)) for x, seed in pairs])


def _augment_one(
    x: Tensor, augmentations: Sequence[Augmentation], rng: np.random.Generator
) -> Tensor:
    """Augment one image, (C, H, W)."""
    # The same numbers are drawn whichever augmentations are chosen, so that each keeps its own.
    mirrored, flipped = (rng.random(2) < 1 / 2).tolist()
    across, down = rng.uniform(-_MAX_SHIFT, _MAX_SHIFT, 2).tolist()
    gain, lift = rng.uniform(-_MAX_CONTRAST, _MAX_CONTRAST, 2).tolist()
    if "mirror" in augmentations and mirrored:
        x = x.flip(2)
    if "flip" in augmentations and flipped:
        x = x.flip(1)
    if "shift" in augmentations:
        x = _shifted(x, round(down * x.shape[1]), round(across * x.shape[2]))
    return x * (1 + gain) + lift if "contrast" in augmentations else x


def _shifted(x: Tensor, down: int, across: int) -> Tensor:
    """Translate by that many pixels and fill with zeros."""
    height, width = x.shape[1:]
    moved = x.new_zeros(x.shape)
    rows, from_rows = _spans(down, height)
    columns, from_columns = _spans(across, width)
    moved[:, rows, columns] = x[:, from_rows, from_columns]
    return moved


def _spans(by: int, length: int) -> tuple[slice, slice]:
    return slice(max(by, 0), length + min(by, 0)), slice(max(-by, 0), length - max(by, 0))
