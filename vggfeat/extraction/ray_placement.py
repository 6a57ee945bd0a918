"""How many actors a cluster holds, and what each of them gets. Pure, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggfeat.core.text import counted
from vggfeat.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of a cluster: what it offers to actors."""

    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Slots:
    """Actors, and what each one gets.

    Attributes:
        actors: how many.
        cpus: cores of each; Ray has torch use as many threads.
        gpus: 1 or 0.
    """

    actors: int
    cpus: float
    gpus: int

    @property
    def device(self) -> str:
        """What the setting `device` is in an actor: the GPU that Ray shows it, or its cores."""
        return "cuda" if self.gpus else "cpu"

    @property
    def free(self) -> str:
        """What must be free for the first actor to have a place."""
        return f"{self.cpus:g} CPUs" + (" and a GPU" if self.gpus else "")


def plan_slots(nodes: Sequence[Node], device: str, actors: int | None = None) -> Slots:
    """Deals a cluster out: an actor a GPU, or where there is none, or none is wanted, a node.

    Args:
        nodes: of the cluster.
        device: as asked for; its number, if it has one, means nothing here.
        actors: how many; None: one a GPU, else one a node with all its cores.

    Raises:
        DeviceError: a GPU is asked for and there is none, or no node has a core.
        UsageError: more actors than GPUs, or than cores.
    """
    gpus = sum(int(node.gpus) for node in nodes)
    on_gpu = device.startswith("cuda") or (device in ("auto", "all") and gpus > 0)
    if on_gpu:
        return _on_gpus(nodes, gpus, actors)
    cores = sum(int(node.cpus) for node in nodes)
    if not cores:
        raise DeviceError(f"none of the {counted(len(nodes), 'node')} of the cluster offers a CPU")
    wanted = actors or sum(node.cpus >= 1 for node in nodes)
    if wanted > cores:
        raise UsageError(f"--actors is {wanted}, the cluster offers {cores} CPUs; ask for fewer")
    most = max(int(node.cpus) for node in nodes)
    # As many cores each as let all of them have a place.
    fits = (n for n in range(most, 0, -1) if sum(int(node.cpus // n) for node in nodes) >= wanted)
    return Slots(wanted, float(next(fits)), 0)


def _on_gpus(nodes: Sequence[Node], gpus: int, actors: int | None) -> Slots:
    if not gpus:
        raise DeviceError(
            f"none of the {counted(len(nodes), 'node')} of the cluster offers a GPU; leave "
            "--device out"
        )
    if actors is not None and actors > gpus:
        raise UsageError(f"--actors is {actors}, the cluster offers {gpus} GPUs; ask for fewer")
    share = min(node.cpus / int(node.gpus) for node in nodes if node.gpus >= 1)
    return Slots(actors or gpus, float(int(share)) if share >= 1 else share, 1)
