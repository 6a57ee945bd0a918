"""`vggfeat verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vggfeat.cli.options import Cache, Json
from vggfeat.cli.terminal import exit_codes, show
from vggfeat.core import activity
from vggfeat.core.text import agree, byte_count, counted, duration, first_few
from vggfeat.errors import CacheError

if TYPE_CHECKING:
    from vggfeat.cache.verify import VerifyReport

_SHOWN = 20


def verify(
    cache: Cache,
    *,
    repair: Annotated[
        bool, typer.Option("--repair", help="Set bad rows to pending; the next run redoes them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check every row of a cache against its checksum.

    Also check the file around the rows.
    End with exit code 5 if rows are bad and were not repaired, or the file is damaged.
    """
    with exit_codes():
        activity.begins(f"checking {cache}")
        from vggfeat.cache.verify import verify as verify_cache

        found = verify_cache(cache, repair=repair)
        show(found, _lines, as_json=as_json)
        if found.missing:
            raise CacheError(
                f"cache {cache!r}: {counted(len(found.missing), 'shard')} "
                f"{agree(len(found.missing), 'is')} missing: "
                f"{first_few(found.missing)}; restore them from a backup, or `vggfeat "
                "extract --update` takes their images into the shards beside"
            )
        if len(found.bad) > found.repaired:
            raise CacheError(
                f"cache {cache!r}: {len(found.bad)} of {counted(found.rows, 'row')} "
                f"{agree(len(found.bad), 'is')} bad; `vggfeat verify "
                f"--repair {cache}` sets them to pending, and the next extract does them again"
            )
        if found.problems:
            raise CacheError(
                f"cache {cache!r} is not as it was written: {first_few(found.problems, '; ')}; "
                f"take it from a backup, or, if the paths are right, `vggfeat merge {cache} --out "
                "NEW` writes its rows into a new file"
            )


def _lines(found: VerifyReport) -> list[str]:
    lines = [f"  bad      row {bad.row}, {bad.path}: {bad.problem}" for bad in found.bad[:_SHOWN]]
    if len(found.bad) > _SHOWN:
        lines.append(f"           and {len(found.bad) - _SHOWN} more; --json names all")
    lines += [f"  damaged  {problem}" for problem in found.problems]
    lines += [f"  note     {note}" for note in found.notes[:_SHOWN]]
    if len(found.notes) > _SHOWN:
        lines.append(f"           and {len(found.notes) - _SHOWN} more; --json has all")
    counts = f"{found.done} done, {found.failed} failed, {found.pending} pending"
    if found.removed:
        counts += f", {found.removed} removed"
    what = f"{len(found.bad)} bad" if found.bad else "all as they were written"
    if found.repaired:
        what += f", {found.repaired} set to pending: run the same extract again"
    size = byte_count(found.bytes)
    head = (
        f"{found.path}: {counted(found.rows, 'row')} ({counts}), {what}; {size} in "
        f"{duration(found.seconds)}"
    )
    return [head, *lines]
