"""Small chance changes of images while a network learns; none is the default.

Which change an image gets follows from seed, epoch and image alone, so that a run that was cut off
goes on as it would have gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

Change = Literal["mirror", "flip", "shift", "contrast"]
CHANGES: tuple[Change, ...] = get_args(Change)

_FARTHEST = 1 / 16  # of the side
_SPREAD = 0.2


def check_jitter(text: str) -> tuple[Change, ...]:
    """The changes that `text` names, separated by commas, each once.

    Raises:
        UsageError: names every one that is not known.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in CHANGES]
    if unknown:
        raise UsageError(
            f"jitter {', '.join(map(repr, unknown))} is not known; expected any of "
            f"{', '.join(CHANGES)}"
        )
    return tuple(change for change in CHANGES if change in words)


def jitter(images: Tensor, changes: Sequence[Change], seeds: Sequence[tuple[int, ...]]) -> Tensor:
    """Images, each changed a little.

    `mirror` swaps left and right, `flip` top and bottom, of every other image; `shift` moves it by
    up to a sixteenth of its sides, and what comes in is the mean; `contrast` scales it by 0.8 to
    1.2 and makes it lighter or darker by up to 0.2 deviations.

    Args:
        images: (n, C, H, W), normalised.
        changes: which.
        seeds: of each image.

    Returns:
        (n, C, H, W); `images` itself where there are no changes.
    """
    if not changes:
        return images
    import torch

    pairs = zip(images, seeds, strict=True)
    return torch.stack([_change(x, changes, np.random.default_rng(seed)) for x, seed in pairs])


def _change(x: Tensor, changes: Sequence[Change], noise: np.random.Generator) -> Tensor:
    """One image, (C, H, W). The same numbers are drawn whichever changes are asked for."""
    mirrored, flipped = (noise.random(2) < 1 / 2).tolist()
    across, down = noise.uniform(-_FARTHEST, _FARTHEST, 2).tolist()
    gain, lift = noise.uniform(-_SPREAD, _SPREAD, 2).tolist()
    if "mirror" in changes and mirrored:
        x = x.flip(2)
    if "flip" in changes and flipped:
        x = x.flip(1)
    if "shift" in changes:
        x = _shifted(x, round(down * x.shape[1]), round(across * x.shape[2]))
    return x * (1 + gain) + lift if "contrast" in changes else x


def _shifted(x: Tensor, down: int, across: int) -> Tensor:
    """Moved by so many pixels, zeros behind it."""
    height, width = x.shape[1:]
    moved = x.new_zeros(x.shape)
    rows, from_rows = _spans(down, height)
    columns, from_columns = _spans(across, width)
    moved[:, rows, columns] = x[:, from_rows, from_columns]
    return moved


def _spans(by: int, length: int) -> tuple[slice, slice]:
    return slice(max(by, 0), length + min(by, 0)), slice(max(-by, 0), length - max(by, 0))
