"""Download a weight file once: to a temporary file beside it, digest checked, then renamed."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import socket
import threading
import urllib.parse
import urllib.request
from typing import BinaryIO

from vggfeat.core import activity
from vggfeat.core.text import byte_count, counted
from vggfeat.errors import WeightsError
from vggfeat.storage.atomic import atomic_file
from vggfeat.storage.locks import wait_for_lock

OFFLINE_VARIABLE = "VGGFEAT_OFFLINE"
"""Environment variable that forbids downloads if set to anything but 0."""

_CHUNK = 1 << 20
_SHOWN_EVERY = 4 << 20
_CONNECT_SECONDS = 5.0  # a silent name server or firewall means no network
_SILENT_SECONDS = 20.0
_PORTS = {"http": 80, "https": 443}

log = logging.getLogger("vggfeat")


def download_weights(url: str, path: str, digest_prefix: str) -> str | None:
    """Download an http, https or file address into the new file `path`; return its SHA-256.

    Of several runs that need the same file, one fetches it and the others wait and return None.
    Folders are created. The SHA-256 must begin with `digest_prefix`.
    """
    _check_reachable(url)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with wait_for_lock(path, lambda: log.info("another run is fetching %s: waiting", path)):
            if os.path.exists(path):
                return None
            with atomic_file(path) as file:
                digest = _fetch(url, file)
                if not digest.startswith(digest_prefix):
                    raise WeightsError(
                        f"{url} has SHA-256 {digest[:8]}…, expected {digest_prefix}…; it was not "
                        "kept"
                    )
            return digest
    except OSError as error:
        reason = error.strerror or error
        raise WeightsError(
            f"weights cannot be kept in {os.path.dirname(path)}: {reason}"
        ) from error


def _check_reachable(url: str) -> None:
    """Fail within seconds without a network, where resolving a name may take minutes."""
    if os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0"):
        raise WeightsError(f"{url} is not fetched: {OFFLINE_VARIABLE} is set")
    address = _first_stop(url)
    if address is None:
        return
    found: list[OSError | None] = []
    thread = threading.Thread(target=_connect, args=(address, found), daemon=True)
    thread.start()
    thread.join(_CONNECT_SECONDS)
    problem = found[0] if found else f"no answer within {_CONNECT_SECONDS:g} s"
    if problem is not None:
        raise WeightsError(f"{url} cannot be fetched: {address[0]}: {problem}")


def _connect(address: tuple[str, int], found: list[OSError | None]) -> None:
    try:
        socket.create_connection(address, timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        found.append(error)
    else:
        found.append(None)


def _first_stop(url: str) -> tuple[str, int] | None:
    """Return the host and port that a request for `url` connects to; None if it has none."""
    try:
        parts = urllib.parse.urlsplit(url)
        proxy = urllib.request.getproxies().get(parts.scheme)
        if proxy and parts.hostname and not urllib.request.proxy_bypass(parts.hostname):
            parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None  # the request will fail with the reason
    return (parts.hostname, port) if parts.hostname and port else None


def _how_far(url: str, received: int, expected: int) -> str:
    whole = f" of {byte_count(expected)}" if expected > 0 else ""
    return f"fetching {url.rpartition('/')[2]}: {byte_count(received)}{whole}"


def _fetch(url: str, file: BinaryIO) -> str:
    log.info("fetching %s", url)
    digest = hashlib.sha256()
    received, shown = 0, 0
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "vggfeat"})  # noqa: S310 ours
        with urllib.request.urlopen(request, timeout=_SILENT_SECONDS) as reply:  # noqa: S310 same
            expected = int(reply.headers.get("Content-Length") or -1)
            while block := reply.read(_CHUNK):
                file.write(block)
                digest.update(block)
                received += len(block)
                if received >= shown:
                    activity.begins(_how_far(url, received, expected))
                    shown = received + _SHOWN_EVERY
    except (OSError, http.client.HTTPException, ValueError) as error:
        # An invalid address is a ValueError; a broken chunk an HTTPException and no OSError.
        reason = getattr(error, "reason", None) or error
        raise WeightsError(f"{url} cannot be fetched: {reason}") from error
    if expected not in (-1, received):
        raise WeightsError(
            f"{url} broke off after {received} of {counted(expected, 'byte')}; try again"
        )
    return digest.hexdigest()
