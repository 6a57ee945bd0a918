"""Records of every dialect: where each of torchvision's tensors lies, and how it is laid out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorSource:
    """The source of one of torchvision's tensors."""

    name: str  # in the file
    shape: Shape  # torchvision's
    convert: Callable[[Tensor], Tensor] | None = None  # from the file's layout to torchvision's


@dataclass(frozen=True, slots=True)
class Dialect:
    """The names of one library.

    Attributes:
        name: for people.
        translate: shapes by the file's names → sources by torchvision's; None for another dialect.
            Names that the dialect does not know are kept.
        transform: the weights' preprocessing, a name in `core.preprocessing`; '' if it varies.
        note: for users of such files.
    """

    name: str
    translate: Callable[[Mapping[str, Shape]], dict[str, TensorSource] | None]
    transform: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file is read: the sources by torchvision's names.

    `dialect` is empty for names that no dialect knows, which are kept; `transform` is its
    dialect's; `notes` are for users of the file.
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
    """Return sources that keep the file's names and layouts."""
    return {name: TensorSource(name, shape) for name, shape in shapes.items()}
