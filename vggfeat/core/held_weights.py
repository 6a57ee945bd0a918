"""Weights in memory, as the value of a setting: a name that stands for tensors."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

_NAME = re.compile(r"memory:[0-9a-f]{16}")


class HeldWeights(str):  # noqa: SLOT000 it has attributes
    """The name of weights in memory, `memory:` and the first digits of their digest.

    It is recorded as any text, and keeps the tensors for those that compute.

    Args:
        tensors: a state dict, by the names of torchvision, timm or Keras's converters.

    Attributes:
        tensors: as given, not copied.
        sha256: over the names, types, shapes and values of all tensors.

    Raises:
        UsageError: something among them is no tensor.
    """

    tensors: Mapping[str, Any]
    sha256: str

    def __new__(cls, tensors: Mapping[str, Any]) -> Self:
        """Take the digest of all tensors."""
        digest = digest_of(tensors)
        held = super().__new__(cls, f"memory:{digest[:16]}")
        held.tensors, held.sha256 = tensors, digest
        return held

    def __reduce__(self) -> tuple[type[HeldWeights], tuple[dict[str, Any]]]:
        return HeldWeights, (dict(self.tensors),)

    def __deepcopy__(self, _memo: object) -> HeldWeights:
        return self


def names_held_weights(name: str) -> bool:
    """Return whether this is the name that weights in memory have."""
    return _NAME.fullmatch(name) is not None


def digest_of(tensors: Mapping[str, Any]) -> str:
    """Return the SHA-256 over names, types, shapes and values of tensors, in the order of names."""
    import torch

    digest = hashlib.sha256(b"vggfeat weights in memory 1\n")
    wrong = [name for name, one in tensors.items() if not isinstance(one, torch.Tensor)]
    if wrong or not tensors:
        found = f"{wrong[0]!r} is a {type(tensors[wrong[0]]).__name__}" if wrong else "it is empty"
        raise UsageError(f"weights are no state dict of tensors: {found}; give model.state_dict()")
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
