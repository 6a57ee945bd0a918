"""Check what a model file of someone else holds, before anything is computed with it."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.errors import CacheError
from vggfeat.transforms.pca import Pca, Standardisation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vggfeat.transforms.fusion import Attention


@contextlib.contextmanager
def told_as_damage(what: str) -> Iterator[None]:
    """Raise CacheError for what goes wrong while `what` is restored from its file."""
    try:
        yield
    except CacheError:
        raise
    except KeyError as error:
        raise CacheError(f"{what} is damaged: {error} is missing") from error
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
        words = " ".join(str(error).split())
        raise CacheError(f"{what} is damaged: {words[:200]}") from error


def check_array(array: Any, name: str, shape: tuple[int | None, ...], kinds: str = "f") -> None:
    """Raise ValueError unless an array has a shape, a kind of type, and only finite values.

    Args:
        array: of a file, so anything.
        name: for errors.
        shape: None stands for any size.
        kinds: of types, as in `numpy.dtype.kind`.
    """
    found = getattr(array, "shape", None)
    fits = isinstance(array, np.ndarray) and array.dtype.kind in kinds and len(shape) == array.ndim
    if not fits or any(
        size not in (None, side) for size, side in zip(shape, array.shape, strict=True)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name} has shape {found} of {getattr(array, 'dtype', type(array).__name__)}, "
            f"expected ({wanted})"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite")


def check_part(part: Pca | Standardisation, name: str) -> None:
    """Raise ValueError unless what was fitted to a layer fits together."""
    check_array(part.mean, f"{name}.mean", (None,))
    width = len(part.mean)
    if isinstance(part, Standardisation):
        check_array(part.scale, f"{name}.scale", (width,))
        return
    check_array(part.components, f"{name}.components", (None, width))
    check_array(part.variances, f"{name}.variances", (len(part.components),))
    for field in ("total_variance", "rows", "whiten"):
        if not math.isfinite(getattr(part, field)):
            raise ValueError(f"{name}.{field} is not finite")


def check_attention(
    attention: Attention | None, layers: Sequence[str], widths: Mapping[str, int]
) -> None:
    """Raise ValueError unless the weights that images decide themselves fit their layers."""
    if attention is None:
        return
    check_array(attention.bias, "bias", (len(layers),))
    for layer in layers:
        check_array(attention.gates[layer], f"gate {layer}", (widths[layer],))


def check_names(names: Any, what: str) -> None:
    """Raise ValueError unless names are a list of texts, each once."""
    texts = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if not texts or len(set(names)) < len(names) or not names:
        raise ValueError(f"{what} is no list of names, each once")


def check_widths(widths: Any, layers: Sequence[str]) -> None:
    """Raise ValueError unless each layer has a width."""
    if not isinstance(widths, dict) or not all(
        type(widths.get(layer)) is int and widths[layer] > 0 for layer in layers
    ):
        raise ValueError("widths has no positive whole number for each layer")
