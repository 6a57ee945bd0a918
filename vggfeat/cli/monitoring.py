"""Files that an operator monitors a run by: a log file, a metrics file, a list of failures."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import logging.handlers
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import typer

from vggfeat._version import __version__
from vggfeat.cli.terminal import status_of
from vggfeat.core.text import printable
from vggfeat.errors import CacheError, LockedError, ShardsHeldError, SpaceError, UsageError
from vggfeat.extraction.monitoring import failures_csv, metrics_text, publish
from vggfeat.storage.paths import check_place, refuse_standard_output

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from vggfeat.core.records import Progress, Summary

_METRICS_EVERY_SECONDS = 15.0

log = logging.getLogger("vggfeat")


class Watch:
    """Write the monitoring files of a run while its block runs, however that ends.

    A file that cannot be created is a UsageError at the beginning. Later, a metrics file that
    cannot be written is a warning, and a list of failures an error at the end.

    Args:
        out: the cache of the run.
        failures: CSV of failed images, written at the end.
        metrics: Prometheus text, written every 15 seconds and at the end.
        share: of a sharded cache, the share that the run processes.
        work: the local file of the cache; None: `out`.
        log_file: appended to; JSON lines if its name ends in `.json` or `.jsonl`.
    """

    def __init__(
        self,
        out: str,
        *,
        failures: str | None,
        metrics: str | None,
        log_file: str | None,
        share: str = "",
        work: str | None = None,
    ) -> None:
        self.summary: Summary | None = None
        self._out, self._failures, self._metrics = out, failures, metrics
        self._share, self._work = share, work or out
        self._written = 0.0
        for name in (failures, metrics):
            _check_place(name)
        self._log = _open_log(log_file) if log_file else None

    def __enter__(self) -> Self:
        if self._log is not None:
            log.addHandler(self._log)
        self._note(logging.INFO, f"vggfeat {__version__} begins", arguments=sys.argv[1:])
        return self

    def update(self, progress: Progress) -> None:
        """Write metrics, if they are due."""
        if self._metrics and time.monotonic() - self._written >= _METRICS_EVERY_SECONDS:
            self._publish_metrics(metrics_text(self._out, progress=progress, share=self._share))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        status = 0 if error is None else status_of(error)
        try:
            self._publish_failures(error)
        except (SpaceError, UsageError) as refused:
            error, status = refused, refused.exit_code
            raise
        finally:
            if error is not None:
                self._note(logging.ERROR, " ".join(str(error).split()), exit_code=status)
            self._note(logging.INFO, "vggfeat ends", exit_code=status, **self._counts())
            if not self._is_others(error):
                text = metrics_text(
                    self._out, summary=self.summary, exit_code=status, share=self._share
                )
                self._publish_metrics(text)
            if self._log is not None:
                log.removeHandler(self._log)
                self._log.close()

    @staticmethod
    def _is_others(error: BaseException | None) -> bool:
        """Return whether the files belong to another run, which holds the lock."""
        return isinstance(error, LockedError) and not isinstance(error, ShardsHeldError)

    def _publish_failures(self, error: BaseException | None) -> None:
        if not self._failures or self._is_others(error):
            return
        try:
            with contextlib.suppress(CacheError):  # no cache, no failures
                publish(self._failures, failures_csv(self._work, self._share))
        except (SpaceError, UsageError) as refused:
            if error is None:
                raise
            log.warning(str(refused))  # the run's own error is the one to end with

    def _counts(self) -> dict[str, Any]:
        if self.summary is None:
            return {}
        names = ("rows", "done", "failed", "pending", "new_done", "new_failed", "seconds")
        counts = {name: getattr(self.summary, name) for name in names}
        return counts | ({"stopped": self.summary.stopped} if self.summary.stopped else {})

    def _note(self, level: int, message: str, **fields: Any) -> None:
        """Write a line to the log file only."""
        if self._log is not None:
            record = logging.LogRecord(log.name, level, "", 0, message, None, None)
            record.fields = fields
            self._log.handle(record)

    def _publish_metrics(self, text: bytes) -> None:
        if not self._metrics:
            return
        self._written = time.monotonic()
        try:
            publish(self._metrics, text)
        except (SpaceError, UsageError) as error:  # metrics are not worth the run
            log.warning(str(error))


def _check_place(path: str | None) -> None:
    """Refuse a path that `publish` could not write to, or would replace and should not."""
    if not path:
        return
    check_place(path, "file")
    if os.path.isdir(path):
        raise UsageError(f"file {path!r} is a folder, expected a regular file; name another place")


class _LogFile(logging.handlers.WatchedFileHandler):
    """A log file that is opened again after logrotate; a failed write is told once."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # opening it again failed
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 logging's own
        error = sys.exc_info()[1]
        reason = getattr(error, "strerror", None) or error
        _tell_once(f"vggfeat: warning: log file {self.baseFilename!r}: {reason}; lines are lost")

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what it still held cannot be written, as was told
            super().close()


@functools.cache
def _tell_once(line: str) -> None:
    typer.echo(line, err=True)


def _open_log(path: str) -> logging.Handler:
    refuse_standard_output(path, "log file")
    try:
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(
            f"log file {path!r} cannot be opened: {error.strerror}; name another place"
        ) from error
    handler.setLevel(logging.INFO)
    handler.setFormatter(_Json() if path.endswith((".json", ".jsonl")) else _Text())
    return handler


def _moment(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        words = "".join(f" {name}={value}" for name, value in fields.items())
        message = printable(" ".join(record.getMessage().split()) + words)
        return f"{_moment(record)} {record.levelname} [{os.getpid()}] {message}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": _moment(record),
            "level": record.levelname.lower(),
            "pid": os.getpid(),
            "message": record.getMessage(),
        }
        return json.dumps({**fields, **getattr(record, "fields", {})})
