"""Split rows into shards, and shards among processes. Pure, no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from vggfeat.core.text import counted
from vggfeat.errors import UsageError

ROWS_A_SHARD = 100_000
"""Of a sharded cache that is not told how many shards to have; about 1 GB of conv5_3 and fc7."""

MOST_SHARDS = 65_536


@dataclass(frozen=True, slots=True)
class Share:
    """The shards of one of several processes: those whose number modulo `count` is `index`.

    Attributes:
        index: from 0 to `count` - 1.
        count: of processes.
    """

    index: int
    count: int

    def has(self, shard: int) -> bool:
        """Return whether this share includes a shard, by its number."""
        return shard % self.count == self.index


def parse_share(text: str) -> Share | None:
    """Parse a share such as `3/64`; return None for an empty text."""
    if not text:
        return None
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, flags=re.ASCII)
    if found is None:
        raise UsageError(f"shard is {text!r}; expected I/N such as 0/64, the first of 64 shares")
    index, count = map(int, found.groups())
    if index >= count:
        last = f"from 0/{count} to {count - 1}/{count}" if count else "0/1 alone, where N is 1"
        raise UsageError(
            f"shard is {text!r}; shares count from 0, here {last}. A Slurm array of 1-{count} has "
            f"its number in $((SLURM_ARRAY_TASK_ID - 1)), or is better an array of "
            f"0-{max(count - 1, 0)}"
        )
    return Share(index, count)


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a sharded output is split, and which shards this process computes.

    Attributes:
        shards: how many files; None: as the plan has it, else as many as `share` counts, else one
            for each `ROWS_A_SHARD` rows.
        share: `3/64`: only shards whose number mod 64 is 3. Empty: all.
        plan_only: list the images, lay out the shards, and do none.
        part: `share`, parsed; None for all.
    """

    shards: int | None = None
    share: str = ""
    plan_only: bool = False
    part: Share | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "part", parse_share(self.share))
        count: object = self.shards
        if count is not None and not (type(count) is int and 1 <= count <= MOST_SHARDS):
            raise UsageError(
                f"shards is {count!r}; expected a whole number from 1 to {MOST_SHARDS}"
            )
        if self.plan_only and self.share:
            raise UsageError("--plan-only does no shard; give it without --shard")

    def check_count(self, out: str, existing: int) -> None:
        """Refuse a number of shards that differs from the plan's, which is chosen once."""
        if self.shards not in (None, existing):
            raise UsageError(
                f"sharded cache {out!r} has {counted(existing, 'shard')}, requested {self.shards}; "
                "leave --shards out, or --fresh to begin again"
            )

    def count_for(self, rows: int) -> int:
        """Return the number of shards of a new plan of that many rows."""
        return self.shards or (self.part.count if self.part else -(-rows // ROWS_A_SHARD))


def split_rows(rows: int, batch_size: int, shards: int) -> list[int]:
    """Return `shards` + 1 row numbers from 0 to `rows`; a shard is from one to the next.

    Each has whole batches, as equally many as can be; shards behind the last batch are empty. A row
    has the same slot of a batch (row mod `batch_size`) in its shard as in the one file of all rows,
    so that both get the same bits.
    """
    batches = -(-rows // batch_size)
    return [min(rows, number * batches // shards * batch_size) for number in range(shards + 1)]
