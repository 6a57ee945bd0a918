"""The steps by which a derived cache's features came from those of the network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Step:
    """One step, such as a fusion or a reduction.

    Attributes:
        record: what a cache records of it, ready for JSON, sorted by name: `step`, what it is;
            `layers`, what it read; its parameters; `source`, the fingerprint of the cache that it
            read, unless extract itself made the step; `model_sha256`, where something was fitted.
    """

    record: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "record", dict(sorted(dict(self.record).items())))

    @property
    def name(self) -> str:
        """`fuse` or `reduce`."""
        return str(self.record["step"])

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that the step read."""
        return tuple(self.record["layers"])

    @property
    def model_sha256(self) -> str | None:
        """Digest of what was fitted for it, if anything was."""
        return self.record.get("model_sha256")

    def anywhere(self) -> Step:
        """Return the step without the cache it read, to compare steps of different caches."""
        return Step({name: value for name, value in self.record.items() if name != "source"})

    def text(self) -> str:
        """Return the step as fingerprints and model files hold it: JSON."""
        return json.dumps(dict(self.record))
