"""A limit of address space (`ulimit -v`) that is too small for a library: found before it crashes.

Within too little of it the import of torch ends by SIGSEGV, OpenBLAS ends the process, and HDF5
prints a page as it is unloaded, each at some limits and not at others. So where there is such a
limit, a forked child imports the library first. Nobody else pays for it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import sys
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING

from vggfeat.core.exhaustion import MEMORY, exhaustion_of, told
from vggfeat.core.text import byte_count

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_LIBRARIES = ("numpy", "scipy", "h5py", "pyarrow", "faiss", "torch")
_PLENTY = 16 << 30  # torch takes 4 GB of addresses with CUDA's libraries, and more for threads


def check_libraries_fit() -> None:
    """From here on, try the import of each large library in a child before it is made here.

    An import that does not fit raises ResourceError. Does nothing without a limit, or with plenty.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    known = any(isinstance(one, _Trial) for one in sys.meta_path)
    if sys.platform == "linux" and 0 <= limit < _PLENTY and not known:
        waiting = {name for name in _LIBRARIES if name not in sys.modules}
        sys.meta_path.insert(0, _Trial(waiting, limit))


class _Trial(MetaPathFinder):
    """Finds nothing; as a library is looked for the first time it has a child try it."""

    def __init__(self, waiting: set[str], limit: int) -> None:
        self._waiting, self._limit = waiting, limit

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in self._waiting:
            self._waiting.discard(fullname)
            if not self._fits(fullname):
                size = byte_count(self._limit)
                found = f"{fullname} does not fit into {size} of address space (ulimit -v)"
                raise told(MEMORY, MemoryError(found))
        return None

    def _fits(self, name: str) -> bool:
        child = os.fork()
        if not child:
            self._waiting.clear()
            os._exit(_try(name))
        try:
            return os.waitpid(child, 0)[1] == 0
        except BaseException:  # Ctrl-C
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            raise


def _try(name: str) -> int:
    """Import and use a library in a child; return 0 unless memory is what it lacks."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    try:
        library = importlib.import_module(name)
        if name == "torch":
            ones = library.ones(512, 512)
            ones @ ones  # which starts its threads, each with a stack
    except KeyboardInterrupt:  # OpenBLAS sends itself SIGINT where it gets no thread
        return 1
    except BaseException as error:  # noqa: BLE001 the parent meets it too, and says what it is
        return int(exhaustion_of(error) is not None)
    return 0
