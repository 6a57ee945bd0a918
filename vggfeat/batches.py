"""Files to batches of pixels: decoding workers behind a DataLoader, one batch an item."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vggfeat.decode import decode, read_digest
from vggfeat.errors import DecodeError
from vggfeat.machine import free_shared_memory, usable_cores
from vggfeat.plan import EMPTY
from vggfeat.records import DecodedBatch, Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from vggfeat.config import Settings
    from vggfeat.preprocess import Preprocess

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h: a signal for when the parent dies

OpenImage = Callable[[int], AbstractContextManager[BinaryIO]]

PREFETCH = 2
"""Batches each worker keeps ready."""

CPU_WORKERS = 2
"""Decoding is a few percent of a CPU run; more workers would take cores from the network."""


class BatchDataset(Dataset[DecodedBatch]):
    """Item k is the k-th batch of a plan, decoded.

    Args:
        open_image: a cache row's image as a stream; raises DecodeError.
        plan: int64 (batches, B), rows or `EMPTY`.
        preprocess: what becomes of each image.
        max_pixels: larger images fail.
    """

    def __init__(
        self,
        open_image: OpenImage,
        plan: NDArray[np.int64],
        preprocess: Preprocess,
        *,
        max_pixels: int,
    ) -> None:
        self._open_image = open_image
        self._plan = plan
        self._preprocess = preprocess
        self._max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> DecodedBatch:
        started = time.perf_counter()
        decoded: list[tuple[int, int, NDArray[np.uint8]]] = []
        digests: list[bytes] = []
        failures: list[Failure] = []
        for slot, row in enumerate(self._plan[index].tolist()):
            if row == EMPTY:
                continue
            digest = b""
            try:
                with self._open_image(row) as file:
                    digest, stream = read_digest(file)
                    pixels = decode(stream, self._preprocess, self._max_pixels)
            except DecodeError as error:
                failures.append(Failure(row, str(error), digest))
            else:
                decoded.append((slot, row, pixels))
                digests.append(digest)
        return DecodedBatch(
            images=self._stack([(slot, pixels) for slot, _, pixels in decoded]),
            rows=np.array([row for _, row, _ in decoded], dtype=np.int64),
            slots=np.array([slot for slot, _, _ in decoded], dtype=np.int64),
            digests=np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32),
            failures=tuple(failures),
            seconds=time.perf_counter() - started,
        )

    def _stack(self, images: list[tuple[int, NDArray[np.uint8]]]) -> torch.Tensor:
        size = self._preprocess.size
        shape = images[0][1].shape if images else (size, size, 3)
        batch = torch.zeros((self._plan.shape[1], *shape), dtype=torch.uint8)  # (B, H, W, 3)
        pixels = batch.numpy()
        for slot, image in images:
            pixels[slot] = image
        return batch


def load_batches(dataset: BatchDataset, workers: int, *, pin: bool) -> Iterator[DecodedBatch]:
    """Starts the workers and yields the batches in order.

    The workers are forked at the call and not at the first batch, so that they decode while the
    caller brings up the network.

    Args:
        dataset: the plan to decode.
        workers: processes; 0 decodes in this one.
        pin: whether batches come in page-locked memory, for copies that overlap.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=functools.partial(_begin_worker, os.getpid()),
        multiprocessing_context="fork" if workers else None,
    )
    with warnings.catch_warnings():
        # Python 3.12 warns of forking with threads about; these children only read and decode.
        warnings.filterwarnings("ignore", "(?s).*use of fork.*", DeprecationWarning)
        return iter(loader)


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin_worker(parent: int, _worker: int) -> None:
    """Leaves signals to the main process, and goes when it goes.

    torch's own watch on the parent begins only later and misses one that was killed in between:
    such a worker would wait for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux only
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def choose_workers(settings: Settings, batch_size: int, device_type: str) -> int:
    """Decoding processes: as asked, or from the cores and shared memory this process may use."""
    if settings.workers != "auto":
        return settings.workers
    cores = usable_cores()
    wanted = min(cores, CPU_WORKERS) if device_type == "cpu" else cores
    size = settings.preprocess().size
    in_flight = (PREFETCH + 1) * 3 * size * size * batch_size  # bytes, for each worker
    free = free_shared_memory()
    # Half of it, because others use it too; containers have little.
    return wanted if free is None else min(wanted, free // 2 // in_flight)
