"""Extracts images until half of them are done, and is then killed: `killed.py IMAGES OUT.h5`.

With the same options `vggfeat extract` does the rest. A file without any row done would prove
little, so the kill waits for the first checkpoint; there is one after every batch.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, NoReturn

import vggfeat
from vggfeat.core.settings import Settings

if TYPE_CHECKING:
    from vggfeat.core.records import Progress

PATIENCE = 60.0
"""Seconds to wait for a checkpoint."""


def main() -> None:
    """Extract; this never returns if all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images")
    parser.add_argument("out")
    for name in ("device", "layers", "model", "weights"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--size", type=int, required=True)
    given = parser.parse_args()
    settings = Settings(
        layers=given.layers, model=given.model, weights=given.weights, size=given.size,
        device=given.device, checkpoint_seconds=0,
    )  # fmt: skip

    def watch(progress: Progress) -> None:
        if 2 * progress.done >= progress.total:
            end(given.out)

    vggfeat.extract(given.images, given.out, settings, on_progress=watch)
    sys.exit("not killed: it was done at once")


def end(out: str) -> NoReturn:
    """End this process as the system would, as soon as some rows are done."""
    until = time.monotonic() + PATIENCE
    while not vggfeat.open(out).done.any():
        if time.monotonic() > until:
            sys.exit("no row is done in the file after a minute")
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


if __name__ == "__main__":
    main()
