"""Marks of tests that need a CUDA device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = dict[str, Tensor]


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
