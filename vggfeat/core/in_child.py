"""Call a function in a forked child: for libraries that crash or hang on damaged files."""

from __future__ import annotations

import os
import pickle
import resource
from typing import TYPE_CHECKING, TypeVar

from vggfeat.core.child_processes import detach, end, fork
from vggfeat.errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def in_child(function: Callable[[], T], seconds: int = 60) -> T:
    """Return what a function returns in a forked child, or raise what it raises there.

    Args:
        function: what it returns or raises can be pickled. It computes in no threads.
        seconds: of processor time that it may take.

    Raises:
        ValueError: the child ended before that; says how.
        ResourceError: there is no room for one more process.
    """
    reading, writing = os.pipe()
    parent = os.getpid()
    try:
        child = fork()
    except ResourceError:
        os.close(reading)
        os.close(writing)
        raise
    if not child:
        _answer(function, seconds, writing, parent)
    os.close(writing)
    try:
        with open(reading, "rb") as answer:
            data = answer.read()
    finally:
        how = end(child)
    if not data:
        raise ValueError(f"the process that read it {how}")
    returned, value = pickle.loads(data)  # noqa: S301 of our own child
    if not returned:
        raise value
    result: T = value
    return result


def _answer(function: Callable[[], object], seconds: int, writing: int, parent: int) -> None:
    """Be the child: call the function, send what came of it, and end."""
    try:
        detach(parent)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            data = pickle.dumps((True, function()))
        except Exception as error:  # noqa: BLE001 the parent raises it
            data = pickle.dumps((False, error))
        with open(writing, "wb") as answer:
            answer.write(data)
    finally:
        os._exit(0)
