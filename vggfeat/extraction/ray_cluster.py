"""A Ray cluster: one that is there, or a quiet one of our own for one run."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO, cast

from vggfeat.errors import DeviceError, UsageError
from vggfeat.extraction.ray_placement import Node

_CONNECT_SECONDS = 10.0

log = logging.getLogger("vggfeat")

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, slots=True)
class RayCluster:
    """Where the shards are done.

    Attributes:
        address: of a cluster that is there, as `ray.init` takes it: `auto`, `host:6379`,
            `ray://host:10001`. None: one on this machine alone, for this run.
        actors: how many; None: one a GPU, or where there is none one a node.
    """

    address: str | None = None
    actors: int | None = None

    def __post_init__(self) -> None:
        if self.actors is not None and self.actors < 1:
            raise UsageError(f"--actors is {self.actors}; expected 1 or more")


@contextlib.contextmanager
def connected(cluster: RayCluster) -> Iterator[list[Node]]:
    """The nodes of a cluster, while connected to it; one of our own ends with the block.

    Raises:
        DeviceError: there is no such cluster, or nothing listens at its address.
        UsageError: the package `ray` is not installed.
    """
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
            f"no Ray cluster at {where}: {_first_line(error)}; is it up (`ray status`), are its "
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
    """Ray itself tries for many minutes to reach a head that is not there."""
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
    """Ray catches SIGTERM for itself; what caught it before has it again behind the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def import_ray() -> Any:
    """The package, which is an extra.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UsageError(
            'the engine ray needs the package ray: pip install "vggfeat[ray]"'
        ) from error
