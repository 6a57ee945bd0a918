"""The known dialects, recognized by names and shapes; a new one is a file here and a line below.

Names may have prefixes: models inside models, and what training tools add. DataParallel adds
`module.`, torch.compile `_orig_mod.`, Lightning the attribute's name, in any order and depth, and
also to parts of a network: `features.module.0.weight`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vggfeat.core.vgg_layers import VGG
from vggfeat.errors import WeightsError
from vggfeat.network.dialects.johnson import JOHNSON
from vggfeat.network.dialects.keras import KERAS
from vggfeat.network.dialects.records import Reading, kept
from vggfeat.network.dialects.sequential import FIRST_NUMBERED, SEQUENTIAL, is_first_kernel
from vggfeat.network.dialects.timm import TIMM
from vggfeat.network.dialects.torchvision import TORCHVISION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggfeat.network.dialects.records import Dialect, Shape

DIALECTS: tuple[Dialect, ...] = (
    TIMM,
    JOHNSON,
    TORCHVISION,
    SEQUENTIAL,
    KERAS,
)
"""The first that recognizes a file reads it; the first three share torchvision's convolutions."""

_WRAPPERS = frozenset({"module", "_orig_mod"})  # without meaning wherever they stand in a name


def translate(shapes: Mapping[str, Shape]) -> Reading:
    """Recognize the dialect of a file from the shapes of its tensors; else keep its names."""
    names = {_without_wrappers(name): name for name in shapes}
    plain = {short: shapes[name] for short, name in names.items()}
    reading = _read(plain)
    if reading is not None:
        return _with_names(reading, names)
    prefix = _prefix(plain, VGG.first_weight) or _prefix(plain, FIRST_NUMBERED)
    if prefix:
        bare = {short.removeprefix(prefix): name for short, name in names.items()}
        reading = _read({short: shapes[name] for short, name in bare.items()})
        if reading is not None:
            note = f"the prefix {prefix!r} of its names is left out"
            return replace(_with_names(reading, bare), notes=(note, *reading.notes))
    return _with_names(Reading("", kept(plain)), names)


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _read(shapes: Mapping[str, Shape]) -> Reading | None:
    for dialect in DIALECTS:
        sources = dialect.translate(shapes)
        if sources is not None:
            notes = (dialect.note,) if dialect.note else ()
            return Reading(dialect.name, sources, dialect.transform, notes)
    return None


def _with_names(reading: Reading, names: Mapping[str, str]) -> Reading:
    """Rename the sources of a reading by `names`, to the names in the file."""
    sources = {own: replace(one, name=names[one.name]) for own, one in reading.sources.items()}
    return replace(reading, sources=sources)


def _prefix(shapes: Mapping[str, Shape], first: str) -> str:
    """Return the prefix of the one name that ends with `first`, the first kernel's; else ''."""
    found = [
        name.removesuffix(first) for name, shape in shapes.items()
        if name.endswith(f".{first}") and is_first_kernel(shape)
    ]  # fmt: skip
    if len(found) > 1:
        listed = ", ".join(repr(name.rstrip(".")) for name in found)
        raise WeightsError(
            f"the file holds several VGG networks, under {listed}; save the state_dict of one"
        )
    return found[0] if found else ""
