"""The attributes of a cache, from a file's own to `Identity` and `Provenance`, every lie refused.

They come from HDF5, whose texts are `str` or bytes by how a file declares them, or from the index.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.cache.format import FEATURES, REQUIRED_ATTRIBUTES, Provenance
from vggfeat.cache.identity import Identity
from vggfeat.cache.identity_checks import untrue_attributes
from vggfeat.core.preprocessing import preprocess_from
from vggfeat.core.quantization import scales_digest
from vggfeat.core.steps import Step
from vggfeat.core.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggfeat.cache.format import DatasetExtent
    from vggfeat.core.quantization import Scales


def attribute_text(value: object) -> str | None:
    """Return the text that an attribute holds, of fixed or variable length; None if it is none."""
    if isinstance(value, np.void):  # bytes of no declared kind
        value = value.tobytes()
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return value if isinstance(value, str) else None


def read_attributes(
    attributes: Mapping[str, object],
    runs: Mapping[str, DatasetExtent],
    scales: Mapping[str, Scales],
    wrong: list[str],
) -> tuple[Identity, Provenance] | None:
    """Return what the attributes of `/` say, or append to `wrong` why it cannot be told.

    Args:
        attributes: by name, as HDF5 or the index has them.
        runs: the datasets of the cache by name.
        scales: of each layer of int8.
        wrong: receives a line for each attribute that is missing, and what else does not fit.
    """
    wrong += [f"attribute {name} is missing" for name in REQUIRED_ATTRIBUTES
              if name not in attributes]  # fmt: skip
    try:
        found = _Texts(attributes)
        identity, provenance = _identity(found, runs, scales), _provenance(found)
        untrue = list(untrue_attributes(identity, provenance))
        fits = identity.fingerprint() == found.text("fingerprint", "")
    # A lie of any kind: a list for an object, a number of any size, nesting of any depth.
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        wrong.append(f"attributes cannot be read: {printable(str(error))}")
    except RecursionError:
        wrong.append("attributes cannot be read: JSON of too many levels")
    else:
        if not fits:
            wrong.append("attribute fingerprint does not belong to the other attributes")
            return None
        wrong += untrue
        return identity, provenance
    return None


def stated_identity(
    attributes: Mapping[str, object],
    runs: Mapping[str, DatasetExtent],
    scales: Mapping[str, Scales],
) -> Identity:
    """Return the identity that attributes state, their fingerprint unchecked; see above."""
    return _identity(_Texts(attributes), runs, scales)


class _Texts:
    """Attributes as texts and JSON."""

    def __init__(self, attributes: Mapping[str, object]) -> None:
        self._attributes = attributes

    def text(self, name: str, default: str | None = None) -> str:
        if default is not None and name not in self._attributes:
            return default
        value = attribute_text(self._attributes[name])
        if value is None:
            raise ValueError(f"{name} is {self._attributes[name]!r:.40}, expected text")
        value.encode("utf-8", "surrogateescape")  # else no bytes of HDF5 are this text
        return value

    def json(self, name: str, kind: type, default: str | None = None) -> Any:
        value = json.loads(self.text(name, default))
        if not isinstance(value, kind):
            expected = "an object" if kind is dict else "a list"
            raise ValueError(f"{name} is {value!r:.40}, expected {expected}")  # noqa: TRY004 not the caller's type
        return value


def _identity(
    attributes: _Texts, runs: Mapping[str, DatasetExtent], scales: Mapping[str, Scales]
) -> Identity:
    specs = sorted(name.partition("/")[2] for name in runs if name.startswith(FEATURES))
    dtypes = {np.dtype(runs[f"{FEATURES}/{spec}"].dtype).name for spec in specs}
    return Identity(
        model=attributes.text("model"),
        weights=attributes.text("weights"),
        weights_sha256=attributes.text("weights_sha256"),
        precision=attributes.text("precision"),
        dtype="+".join(sorted(dtypes)),
        preprocess=preprocess_from(attributes.json("preprocess", dict)),
        layers=tuple(specs),
        first_layer=attributes.text("first_layer", ""),
        activations=tuple(attributes.json("activations", dict, "{}").items()),
        scales=scales_digest(scales),
        steps=tuple(map(Step, attributes.json("derived", list, "[]"))),
    )


def _provenance(attributes: _Texts) -> Provenance:
    config = attributes.json("config", dict)
    if type(config.get("batch_size")) is not int:
        raise ValueError("config has no batch_size, which a run that resumes needs")
    return Provenance(
        root=attributes.text("root").encode("utf-8", "surrogateescape"),
        config=config,
        created_utc=attributes.text("created_utc"),
        tool_version=attributes.text("tool_version"),
        versions=attributes.json("versions", dict),
        warning=attributes.text("warning"),
        sources=tuple(attributes.json("sources", list, "[]")),
    )
