"""One mark for all tests of this folder; see `tests/accelerator.py` for the device they run on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from accelerator import ON_CUDA, missing

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip without the device, and on a stand-in what it cannot show."""
    reason = missing()
    for item in items:
        if not item.path.is_relative_to(Path(__file__).parent):
            continue
        item.add_marker("gpu")
        if reason or (item.get_closest_marker("cuda_only") and not ON_CUDA):
            item.add_marker(pytest.mark.skip(reason=reason or "only a CUDA device can show it"))


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> None:
    """Let warnings pass that libraries give only where there is a GPU; pytest shows them."""


@pytest.fixture(scope="module", autouse=True)
def _give_memory_back() -> Iterator[None]:
    yield
    if ON_CUDA and not missing():
        import torch

        torch.cuda.empty_cache()
