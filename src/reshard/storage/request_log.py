"""Requests to S3 services, logged with the ids that their answers bear, for whoever runs the service; never secrets.

The logger ``reshard.requests`` gets a line for each request (INFO), and its headers (DEBUG). Nothing is written unless
someone listens: a program by Python's logging, the command line by the variable, which its other processes see too.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import redacted

VARIABLE = "RESHARD_LOG_REQUESTS"
"""1 for a line for each request, 2 for its headers too."""

LOGGER = logging.getLogger("reshard.requests")

_IDS = ("x-amz-request-id", "x-obs-request-id", "x-oss-request-id", "x-cos-request-id", "x-amz-id-2", "x-obs-id-2")
_SECRET = ("authorization", "token", "cookie", "-key", "signature", "credential")


class Exchange:
    """One request and its answer."""

    def __init__(self, method: str, url: str, headers: Mapping[str, Any]) -> None:
        self._method, self._url, self._sent = method, url, headers
        self._begun_s = time.monotonic()

    def answered(self, status: int, headers: Mapping[str, Any]) -> None:
        """Log the answer."""
        found = {str(name).lower(): str(value) for name, value in headers.items()}
        ids = "".join(f" {name}={found[name]}" for name in _IDS if name in found)
        self._log(f"{status}{ids or ' without an id'}", found)

    def failed(self, error: BaseException) -> None:
        """Log that there was no answer."""
        self._log(f"no answer: {type(error).__name__}: {error}", {})

    def _log(self, outcome: str, received: Mapping[str, str]) -> None:
        took_ms = 1e3 * (time.monotonic() - self._begun_s)
        ranged = next((f" {_shown(n, value)}" for n, value in self._sent.items() if n.lower() == "range"), "")
        LOGGER.info("%s", redacted(f"{self._method} {self._url}{ranged} -> {outcome}, {took_ms:.1f} ms"))
        for arrow, headers in ((">", self._sent), ("<", received)):
            for name, value in headers.items():
                LOGGER.debug("%s", redacted(f"  {arrow} {name}: {_shown(str(name), value)}"))


def _shown(name: str, value: object) -> str:
    if any(part in name.lower() for part in _SECRET):
        return "***"
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


@contextmanager
def logged(method: str, url: str, headers: Mapping[str, Any]) -> Iterator[Exchange | None]:
    """Follow a request in a block, if anyone wants to know; an error that leaves the block is the outcome."""
    if not LOGGER.isEnabledFor(logging.INFO):
        yield None
        return
    exchange = Exchange(method, url, headers)
    try:
        yield exchange
    except Exception as error:
        exchange.failed(error)
        raise


def log_client(client: Any) -> None:
    """Have a boto3 client's requests logged, if anyone wants to know."""
    if not LOGGER.isEnabledFor(logging.INFO):
        return
    here = threading.local()

    def begin(request: Any, **_: Any) -> None:
        here.exchange = Exchange(request.method, request.url, request.headers)

    def end(response_dict: Mapping[str, Any] | None, exception: BaseException | None, **_: Any) -> None:
        exchange, here.exchange = getattr(here, "exchange", None), None
        if exchange is not None and response_dict is not None:
            exchange.answered(response_dict["status_code"], response_dict["headers"])
        elif exchange is not None and exception is not None:
            exchange.failed(exception)

    client.meta.events.register("before-send.s3", begin)
    client.meta.events.register("response-received.s3", end)


class _OnStderr(logging.Handler):
    """Writes lines to whatever stderr is now; on a terminal they wipe a live line first."""

    def emit(self, record: logging.LogRecord) -> None:
        wipe = "\r\x1b[2K" if sys.stderr.isatty() else ""
        text = record.getMessage().encode("ascii", "backslashreplace").decode().replace("\x1b", "\\x1b")
        sys.stderr.write(f"{wipe}{text}\n")


_ON_STDERR = _OnStderr()


def log_as_told(environ: Mapping[str, str] = os.environ) -> None:
    """Write requests to stderr as the variable says, or no longer."""
    level = {"1": logging.INFO, "2": logging.DEBUG}.get(environ.get(VARIABLE, ""))
    LOGGER.removeHandler(_ON_STDERR)
    LOGGER.setLevel(logging.NOTSET if level is None else level)
    LOGGER.propagate = level is None
    if level is not None:
        LOGGER.addHandler(_ON_STDERR)
