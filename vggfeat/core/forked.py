"""A forked child of a process whose threads have computed: there torch would wait for ever.

A forked child has one thread. The threads that OpenMP computes with are gone, but its records list
them, so the first parallel loop waits for threads that do not exist.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from vggfeat.errors import UsageError

_state = {"computed": False, "broken": False}


def note_computing() -> None:
    """Remember that this process has computed, which its forked children then cannot."""
    _state["computed"] = True


def refuse_broken_threads() -> None:
    """Refuse to compute in a fork of a process that computed in several threads: it never ends."""
    torch: Any = sys.modules.get("torch")
    if _state["broken"] and torch is not None and torch.get_num_threads() > 1:
        raise UsageError(
            "this process was forked from one that had computed with torch, whose threads do not "
            "live on in a forked child, so computing would wait for ever; start processes with "
            "multiprocessing.get_context('spawn'), or call torch.set_num_threads(1) in the child"
        )


def _in_child() -> None:
    torch: Any = sys.modules.get("torch")
    if _state["computed"] and torch is not None:
        _state["broken"] = True


os.register_at_fork(after_in_child=_in_child)
