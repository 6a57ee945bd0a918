"""What a dialect returns: where each of torchvision's tensors lies, and how it is laid out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorSource:
    """One of torchvision's tensors in a file of another make.

    Attributes:
        name: in the file.
        shape: after conversion, as torchvision has it.
        convert: from the file's layout to torchvision's; None for those that have it.
    """

    name: str
    shape: Shape
    convert: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Dialect:
    """One make of weight files.

    Attributes:
        name: for people.
        translate: shapes by the file's names → sources by torchvision's; None if it is not this
            dialect. Names that mean nothing in it are kept as they are.
        transform: name of the preprocessing of these weights in `core.preprocessing`; empty where
            files of this make come with any.
        note: what a user should know of it.
    """

    name: str
    translate: Callable[[Mapping[str, Shape]], dict[str, TensorSource] | None]
    transform: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file is read.

    Attributes:
        dialect: name of it; empty for names that none knows, which are kept.
        sources: by torchvision's names.
        transform: see `Dialect`.
        notes: what a user should know.
    """

    dialect: str
    sources: Mapping[str, TensorSource]
    transform: str = ""
    notes: tuple[str, ...] = ()
    shapes: Mapping[str, Shape] = field(init=False)

    def __post_init__(self) -> None:
        shapes = {name: source.shape for name, source in self.sources.items()}
        object.__setattr__(self, "shapes", shapes)


def kept(shapes: Mapping[str, Shape]) -> dict[str, TensorSource]:
    """Return sources that are just what the file has."""
    return {name: TensorSource(name, shape) for name, shape in shapes.items()}
