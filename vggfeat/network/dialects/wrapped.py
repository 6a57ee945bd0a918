"""Names with something in front: models inside models, and what training tools put there.

DataParallel adds `module.`, torch.compile `_orig_mod.`, Lightning the attribute's name, in any
order and depth, and to parts of a network too: `features.module.0.weight`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vggfeat.core.vgg_layers import VGG
from vggfeat.errors import WeightsError
from vggfeat.network.dialects.records import Reading, TensorSource
from vggfeat.network.dialects.sequential import FIRST_NUMBERED as FIRST_OF_SEQUENTIAL
from vggfeat.network.dialects.sequential import is_first_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from vggfeat.network.dialects.records import Shape

_TRANSPARENT = frozenset({"module", "_orig_mod"})


def without_wrappers(name: str) -> str:
    """Return a name without the parts that mean nothing wherever they stand."""
    return ".".join(part for part in name.split(".") if part not in _TRANSPARENT)


def unwrap(
    shapes: Mapping[str, Shape], read: Callable[[Mapping[str, Shape]], Reading | None]
) -> Reading | None:
    """Read a file's names without what stands in front of them.

    Args:
        shapes: by the file's names.
        read: finds the dialect of names that nothing stands in front of.
    """
    names = {without_wrappers(name): name for name in shapes}
    plain = {short: shapes[name] for short, name in names.items()}
    reading = read(plain)
    prefix = ""
    if reading is None:
        prefix = _prefix(plain, VGG.first_weight) or _prefix(plain, FIRST_OF_SEQUENTIAL)
        names = {short.removeprefix(prefix): name for short, name in names.items()}
        reading = read({short: shapes[name] for short, name in names.items()}) if prefix else None
    if reading is None:
        return None
    sources = {own: replace(one, name=names[one.name]) for own, one in reading.sources.items()}
    note = (f"what stands in front of its names, {prefix!r}, is left out",) if prefix else ()
    return replace(reading, sources=sources, notes=(*note, *reading.notes))


def _prefix(shapes: Mapping[str, Shape], first: str) -> str:
    """Return what stands in front of `first`; empty if there is none."""
    found = [
        name.removesuffix(first) for name, shape in shapes.items()
        if name.endswith(f".{first}") and is_first_kernel(shape)
    ]  # fmt: skip
    if len(found) > 1:
        raise WeightsError(
            f"several VGG networks lie in one file, under {_listed(found)}; save the state_dict of "
            "the one that is meant"
        )
    return found[0] if found else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name.rstrip(".")) for name in names)


def kept_plain(shapes: Mapping[str, Shape]) -> Reading:
    """Read names that no dialect knows as they are, but for the parts that mean nothing."""
    return Reading(
        "", {without_wrappers(name): TensorSource(name, s) for name, s in shapes.items()}
    )
