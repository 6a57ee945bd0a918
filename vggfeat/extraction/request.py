"""What an extraction is asked for, in one piece for all who take part in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vggfeat.cache.sharding import Sharding
from vggfeat.extraction.update import UpdatePolicy

if TYPE_CHECKING:
    import os

    from vggfeat.core.settings import Settings


@dataclass(frozen=True, slots=True)
class ExtractRequest:
    """What an extraction is asked for: see `engines.extract`.

    Attributes:
        sources: folders, files, lists, addresses in an object store.
        out: the cache, a file or a folder of this machine.
        settings: which layers of which network, and how.
        fresh: begin again even if `out` is there.
        wish: what to do about images that are new to `out`, changed, gone, or failed.
        root: directory that the recorded paths are relative to.
        sharding: of a folder, how it is split and which of its shards to do.
    """

    sources: tuple[str | os.PathLike[str], ...]
    out: str
    settings: Settings
    fresh: bool = False
    wish: UpdatePolicy = field(default_factory=UpdatePolicy)
    root: str | None = None
    sharding: Sharding = field(default_factory=Sharding)
