"""Fetching a weight file once: into a temporary beside its place, digest checked, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import tempfile
import urllib.request
from typing import IO

from vggfeat.errors import WeightsError

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 20.0

log = logging.getLogger("vggfeat")


def download(url: str, path: str, digest_prefix: str) -> str:
    """Fetches `url` into the new file `path` and returns the SHA-256 of its bytes.

    Args:
        url: http, https or file address.
        path: where the file goes; folders are made.
        digest_prefix: first hexadecimal digits that the SHA-256 must have.

    Raises:
        WeightsError: out of reach, cut short, or not the bytes published. Nothing is left behind.
    """
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=os.path.basename(path), dir=folder)
    except OSError as error:
        raise WeightsError(f"weights cannot be kept in {folder}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            digest = _fetch(url, file)
        _check_digest(url, digest, digest_prefix)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return digest


def _check_digest(url: str, digest: str, prefix: str) -> None:
    if not digest.startswith(prefix):
        raise WeightsError(
            f"what {url} sends has SHA-256 {digest[:8]}…, expected {prefix}…; it was not kept"
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fetch(url: str, file: IO[bytes]) -> str:
    log.info("fetching %s", url)
    digest = hashlib.sha256()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "vggfeat"})  # noqa: S310 ours
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as reply:  # noqa: S310 same
            expected = int(reply.headers.get("Content-Length") or -1)
            received = 0
            while block := reply.read(_CHUNK):
                file.write(block)
                digest.update(block)
                received += len(block)
    except (OSError, http.client.HTTPException, ValueError) as error:
        # An address that is none is a ValueError; a broken chunk an HTTPException and no OSError.
        reason = getattr(error, "reason", None) or error
        raise WeightsError(f"{url} cannot be fetched: {reason}") from error
    if expected not in (-1, received):
        raise WeightsError(f"{url} broke off after {received} of {expected} bytes; try again")
    file.flush()
    os.fsync(file.fileno())
    return digest.hexdigest()
