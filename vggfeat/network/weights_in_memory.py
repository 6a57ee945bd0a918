"""Read the tensors of a state dict in memory as those of a weight file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.core.held_weights import HeldWeights, digest_of
from vggfeat.errors import WeightsError
from vggfeat.network.checkpoint_reader import read_tensors
from vggfeat.network.dialects.registry import translate
from vggfeat.storage.digests import file_digests

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch
    from numpy.typing import NDArray

    from vggfeat.network.dialects.records import Reading


@dataclass(frozen=True, slots=True)
class StateDict:
    """Tensors in memory, read like an open `WeightFile`.

    Attributes:
        reading: whose names they have.
        metadata: none, which only files have.
    """

    _tensors: Mapping[str, torch.Tensor]
    reading: Reading
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor by torchvision's name."""
        return self.reading.shapes

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return copies of tensors by torchvision's names."""
        return {name: self._value(name) for name in names}

    def array(self, name: str) -> NDArray[np.float32] | None:
        """Return a tensor as float32; None if it is missing or of another layout."""
        source = self.reading.sources.get(name)
        if source is None or source.convert is not None:
            return None
        return np.asarray(self._value(name).float().numpy())

    def _value(self, name: str) -> Any:
        source = self.reading.sources[name]
        value = self._tensors[source.name].detach().cpu().clone()
        return value if source.convert is None else source.convert(value)


def open_state(held: HeldWeights, *, check: bool = True) -> StateDict:
    """Return a state dict for reading; with `check` its tensors must have the digest.

    Raises:
        WeightsError: they have changed since, or their names are of no VGG.
    """
    if check and digest_of(held.tensors) != held.sha256:
        raise WeightsError(
            f"weights {held} changed since the settings were made; make the settings again"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in held.tensors.items()}
    try:
        return StateDict(held.tensors, translate(shapes))
    except WeightsError as error:
        raise WeightsError(f"weights {held}: {error}") from error


def held_from_file(path: str) -> HeldWeights:
    """Return the tensors of a weight file as weights in memory, by the names of the file."""
    return HeldWeights(read_tensors(path, file_digests(path)))
