"""The automatic batch size fits the memory, whatever layers are requested."""

from __future__ import annotations

from typing import Any

import pytest

from vggfeat import Settings
from vggfeat.network.batch_size import largest_cuda_batch
from vggfeat.network.device import choose_batch_size
from vggfeat.network.memory_estimate import ImageBytes, bytes_per_image

MAP = 64 * 224 * 224
"""Values of conv1_1's map."""


@pytest.mark.parametrize(
    ("layers", "dtype", "cpu", "gpu"),
    [
        ("conv5_3", "float16", 16 * MAP + (4 + 10 + 12) * 512, 8 * MAP + (4 + 10 + 4) * 512),
        ("conv1_1:map", "float16", (16 + 4 + 10 + 12) * MAP, (8 + 4 + 10 + 4) * MAP),
        ("conv1_1:map", "float32", (16 + 4 + 10 + 24) * MAP, (8 + 4 + 10 + 8) * MAP),
        ("conv1_1:map", "int8", (16 + 4 + 10 + 6) * MAP, (8 + 4 + 10 + 2) * MAP),
        ("conv1_1:map:l2", "float16", (16 + 4 + 12 + 12) * MAP, (8 + 4 + 12 + 4) * MAP),
        ("conv1_1:gem", "float16", (16 + 12) * MAP + 16 * 64, (8 + 12) * MAP + 8 * 64),
        ("conv1_1:map,conv1_2:map", "float16", (16 + 8 + 10 + 24) * MAP, (8 + 8 + 10 + 8) * MAP),
    ],
)
def test_what_an_image_takes(layers: str, dtype: Any, cpu: int, gpu: int) -> None:
    """Four maps of the network; float32 rows; conversion; and stored rows until they are written.

    Half precision computes in 2 bytes, where stored rows wait in another memory, the host's.
    """
    settings = Settings(layers=layers, dtype=dtype)
    assert bytes_per_image(settings, 4, on_cpu=True) == ImageBytes(cpu, cpu)
    assert bytes_per_image(settings, 2, on_cpu=False).device == gpu


@pytest.mark.parametrize(
    ("layers", "gigabytes", "expected"),
    [
        ("fc7", None, 16),
        ("conv5_3", None, 4),
        ("fc7", 1.7, 16),  # 16 images take 0.82 GB, half of 1.7
        ("fc7", 0.9, 8),
        ("conv5_3", 0.9, 4),
        ("conv1_1:map", 1.7, 4),
        ("conv1_1:map", 0.9, 3),
        ("conv1_1:map,conv1_2:map,conv2_1:map", 0.9, 2),
        ("fc7,conv1_1:map", 1.7, 6),
        ("fc7", 0.01, 1),
    ],
)
def test_batches_fit_the_memory(
    monkeypatch: pytest.MonkeyPatch, layers: str, gigabytes: float | None, expected: int
) -> None:
    """A CPU's batch takes at most half of what is available, and no more than is of use."""
    available = None if gigabytes is None else int(gigabytes * 1e9)
    monkeypatch.setattr("vggfeat.network.batch_size.memory_available", lambda: available)
    assert choose_batch_size(Settings(layers=layers, device="cpu"), 10**6) == expected


def test_page_cache_is_available_to_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 MB that are free beside gigabytes of page cache make no batches of 3."""
    from vggfeat.core import cgroups

    monkeypatch.setattr(cgroups, "memory_left", lambda _root: None)
    monkeypatch.setattr(
        cgroups,
        "_read",
        lambda *_: "MemTotal: 16000000 kB\nMemFree: 300000 kB\nMemAvailable: 9000000 kB\n",
    )
    assert choose_batch_size(Settings(layers="fc7", device="cpu"), 10**6) == 16


@pytest.mark.parametrize(
    ("layers", "free", "available", "expected"),
    [
        ("conv5_3,fc7", 140e9, 100e9, 256),
        ("conv5_3,fc7", 8e9, 100e9, 155),
        ("conv1_1:map", 140e9, 100e9, 256),
        ("conv1_1:map", 24e9, 100e9, 143),
        ("conv1_1:map", 140e9, 4e9, 51),
        ("conv1_1:map", 140e9, None, 256),
        ("conv1_1:map", 0.01e9, 4e9, 1),
    ],
)
def test_batches_fit_a_gpu_and_its_host(
    monkeypatch: pytest.MonkeyPatch,
    layers: str,
    free: float,
    available: float | None,
    expected: int,
) -> None:
    """Half of a GPU's free memory is planned for, and half of the host's for rows that wait."""
    memory = available and int(available)
    monkeypatch.setattr("vggfeat.network.batch_size.memory_available", lambda: memory)
    assert largest_cuda_batch(Settings(layers=layers, device="cuda"), int(free)) == expected
