"""Memory that workers decode into, page-locked for CUDA: copied without waiting, and let go."""

from __future__ import annotations

import gc
import mmap

import numpy as np
import pytest
import torch
from accelerator import ON_CUDA

from vggfeat.images.page_locks import PageLocks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not ON_CUDA, reason="pages are locked for CUDA"),
]
SHAPE = (8, 224, 224, 3)


def test_locked_memory_is_copied_without_waiting() -> None:
    """Torch sees it as pinned, a device gets its bytes, and it is locked no longer than mapped."""
    memory = np.frombuffer(mmap.mmap(-1, 2 * int(np.prod(SHAPE))), dtype=np.uint8)
    both = memory.reshape(2, *SHAPE)
    both[:] = np.random.default_rng(0).integers(0, 256, both.shape, dtype=np.uint8)
    locks, address = PageLocks(), memory.ctypes.data
    for one in both:
        expected = one.copy()
        assert locks.lock(one)
        assert locks.lock(one)
        tensor = torch.from_numpy(one)
        assert tensor.is_pinned()
        torch.cuda.set_sync_debug_mode("error")
        try:
            on_device = tensor.permute(0, 3, 1, 2).to("cuda", non_blocking=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        one[:] = 0
        assert (on_device.permute(0, 2, 3, 1).cpu().numpy() == expected).all()
    del memory, both, one, tensor
    gc.collect()
    # Not locked any more: unlocking it once more is an error, 713 or 1, which the next call clears.
    assert int(torch.cuda.cudart().cudaHostUnregister(address))  # type: ignore[no-untyped-call] # torch has no types here
    with pytest.raises(RuntimeError):
        torch.ones(1, device="cuda")
    assert torch.ones(1, device="cuda").item() == 1


def test_a_refused_lock_leaves_no_error_behind() -> None:
    """Memory that is locked already cannot be locked again; launches after that are as ever."""
    memory = np.frombuffer(mmap.mmap(-1, 1 << 20), dtype=np.uint8)
    assert PageLocks().lock(memory[:4096])
    assert not PageLocks().lock(memory[:4096])
    assert torch.ones(1, device="cuda").item() == 1
