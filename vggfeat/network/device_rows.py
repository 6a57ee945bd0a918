"""Rows of features on their way from the device to the host."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from vggfeat.network.device import device_errors, to_host

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """Rows of a batch or of a pass, N of them, on the device or the host.

    Attributes:
        values: canonical spec → (N, …), float32 or as stored.
        in_range: bool (N,): false where float16 overflowed on the way.
        clipped: of stored values, int64 (N,): how many exceeded the range of their dtype.
        finite: of stored values, canonical spec → bool (N,): whether all values of the row are.
    """

    values: Mapping[str, Tensor]
    in_range: Tensor
    clipped: Tensor | None = None
    finite: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Sequence[DeviceRows]) -> DeviceRows:
        """Return the rows of several passes as one."""
        return parts[0] if len(parts) == 1 else cls._by(lambda *ones: torch.cat(ones), *parts)

    def chosen(self, indices: NDArray[np.int64]) -> DeviceRows:
        """Return some of the rows, int64 (n,) ascending; themselves if these are all."""
        if len(indices) == len(self.in_range):
            return self
        on_device = torch.from_numpy(indices).to(self.in_range.device, non_blocking=True)
        return self._by(lambda one: one[on_device], self)

    def on_host(self) -> DeviceRows:
        """Return the rows in host memory; see `to_host`."""
        return self._by(to_host, self)

    def replace(self, indices: NDArray[np.int64], exact: DeviceRows) -> None:
        """Replace some of the rows, int64 (n,), by those of `exact` on the same device."""
        at = torch.from_numpy(indices).to(self.in_range.device)

        def put(mine: Tensor, other: Tensor) -> Tensor:
            return mine.index_copy_(0, at, other)

        self._by(put, self, exact)

    @classmethod
    def _by(cls, function: Callable[..., Tensor], *all_rows: DeviceRows) -> DeviceRows:
        """Apply a function of tensors to each attribute."""
        first = all_rows[0]
        return cls(
            {name: function(*(one.values[name] for one in all_rows)) for name in first.values},
            function(*(one.in_range for one in all_rows)),
            None if first.clipped is None else function(*(one.clipped for one in all_rows)),
            {name: function(*(one.finite[name] for one in all_rows)) for name in first.finite},
        )


@dataclass(frozen=True, slots=True)
class Copies:
    """Rows of one pass or several that are being copied to the host.

    Attributes:
        parts: of each pass, in host memory, which has the values once `ready` has come.
        device: that they come from.
        ready: after the copies on CUDA; None where copying waits.
    """

    parts: Sequence[DeviceRows]
    device: torch.device
    ready: torch.cuda.Event | None

    @classmethod
    def of(cls, parts: Sequence[DeviceRows], device: torch.device) -> Copies:
        """Return copies that were started on the device's current stream."""
        ready = None
        if device.type == "cuda":
            # Blocking: the main thread sleeps until it comes, where else it would take a core.
            ready = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call] # torch has no types here
            ready.record(torch.cuda.current_stream(device))
        return cls(parts, device, ready)

    def wait(self) -> DeviceRows:
        """Wait for the copies and return all rows, (n, …), in host memory."""
        if self.ready is not None:
            with device_errors(self.device):
                self.ready.synchronize()
        return DeviceRows.joined(self.parts)
