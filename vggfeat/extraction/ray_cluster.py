"""A Ray cluster, an existing one or one for this run alone, and how many workers it holds."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO, cast

from vggfeat.core.optional import require
from vggfeat.core.text import counted
from vggfeat.errors import DeviceError, UsageError

_CONNECT_SECONDS = 10.0

log = logging.getLogger("vggfeat")

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class RayCluster:
    """Where shards are extracted.

    Attributes:
        address: of an existing cluster, as `ray.init` takes it: `auto`, `host:6379`,
            `ray://host:10001`. None: start one on this machine, for this run.
        actors: how many; None: one a GPU, or where there is none one a node.
    """

    address: str | None = None
    actors: int | None = None

    def __post_init__(self) -> None:
        if self.actors is not None and self.actors < 1:
            raise UsageError(f"--actors is {self.actors}; expected 1 or more")


@dataclass(frozen=True, slots=True)
class Node:
    """What a machine of a cluster offers to workers."""

    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Slots:
    """Number of workers, and what each one gets: cores, which torch uses all, and 1 or no GPU."""

    actors: int
    cpus: float
    gpus: int

    @property
    def device(self) -> str:
        """The setting `device` in a worker: the GPU that Ray shows it, or its cores."""
        return "cuda" if self.gpus else "cpu"

    @property
    def free(self) -> str:
        """What must be free for the first worker to start."""
        return f"{self.cpus:g} CPUs" + (" and a GPU" if self.gpus else "")


def plan_slots(nodes: Sequence[Node], device: str, actors: int | None = None) -> Slots:
    """Plan so many workers, by default one a GPU, or one a node without GPUs or for `device` cpu.

    The number of a device such as cuda:1 is ignored.
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
    # The most cores a worker with which all of them fit on the nodes.
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


@contextlib.contextmanager
def connected(cluster: RayCluster) -> Iterator[list[Node]]:
    """Connect to a cluster, or start one that ends with the block, and yield its nodes."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = import_ray()
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster.address is None:
        options["include_dashboard"] = False
    _check_listens(cluster.address)
    with contextlib.redirect_stdout(cast("TextIO", _WithoutRay(sys.stdout))):
        yield from _connected(ray, cluster, options)


def _connected(ray: Any, cluster: RayCluster, options: Mapping[str, Any]) -> Iterator[list[Node]]:
    try:
        with contextlib.redirect_stdout(sys.stderr), _signals_kept():
            ray.init(address=cluster.address or "local", **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        where = cluster.address or "this machine"
        raise DeviceError(
            f"no Ray cluster at {where}: {first_line(error)}; is it up (`ray status`), are its "
            "Ray, Python and RAY_AUTH_MODE this one's?"
        ) from error
    try:
        yield [
            Node(float(node["Resources"].get("CPU", 0)), float(node["Resources"].get("GPU", 0)))
            for node in ray.nodes()
            if node["Alive"]
        ]
    finally:
        said = io.StringIO()  # what Ray's threads had kept back is printed by this one
        with contextlib.redirect_stdout(said):
            ray.shutdown()
        if said.getvalue().strip():
            log.debug("Ray: %s", said.getvalue().strip())


class _WithoutRay:
    """Standard output without what Ray's threads print there.

    When a node dies, a thread of Ray prints the last lines of its log to standard output, whatever
    `log_to_driver` says. They go to our log instead, at level DEBUG.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text of any thread but Ray's."""
        if not threading.current_thread().name.startswith("ray_"):
            return self._stream.write(text)
        if text.strip():
            log.debug("Ray: %s", text.strip())
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _check_listens(address: str | None) -> None:
    """Fail within seconds where no head listens: Ray itself would try for many minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not (colon and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise DeviceError(
            f"no Ray cluster at {address}: {error}; is its head up (`ray status` there)?"
        ) from error


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Restore the handler of SIGTERM after the block, in which Ray installs its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its class where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def last_line(error: BaseException) -> str:
    """Return the last line of an error's text that is not blank."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [""])[-1]


def import_ray() -> Any:
    """Return the package, which is an extra."""
    return require("ray", "ray", "the engine ray")
