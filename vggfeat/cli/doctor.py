"""`vggfeat doctor`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from vggfeat.cli.terminal import exit_codes, print_json
from vggfeat.errors import UsageError


def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
) -> None:
    """Say what this machine has for a run, and what is wrong with it and how to mend it.

    Versions, devices, weights at hand, HDF5, room on the disk. Ends with
    exit code 2 if something would keep `extract` from working.
    """
    with exit_codes():
        from vggfeat.cli.diagnosis import examine

        findings = examine()
        if as_json:
            print_json([dataclasses.asdict(finding) for finding in findings])
        else:
            width = max(len(finding.subject) for finding in findings)
            for finding in findings:
                mark = "ok     " if finding.remedy is None else "PROBLEM"
                typer.echo(f"{mark} {finding.subject:{width}}  {finding.found}")
                if finding.remedy is not None:
                    typer.echo(f"        {'':{width}}  {finding.remedy}")
        problems = [finding.subject for finding in findings if finding.remedy is not None]
        if problems:
            raise UsageError(f"doctor found problems with {', '.join(problems)}")
