"""How much a command shows, and in which colours: what its flags, the environment and the terminal say."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TextIO

Style = Literal["error", "note", "title", "name", "good"]

_CODES: dict[Style, str] = {"error": "1;31", "note": "33", "title": "1", "name": "36", "good": "1;32"}

_LOG_REQUESTS = "RESHARD_LOG_REQUESTS"
"""As :mod:`reshard.storage.request_log` reads it; the module itself takes long to import."""


class _Appearance:
    """What the command that runs was told; one runs at a time."""

    verbosity = 0
    color = "auto"


@contextmanager
def appearing(verbosity: int, color: str) -> Iterator[None]:
    """Show as much, and colours, as the flags of a command say; log requests for the length of a block."""
    _Appearance.verbosity, _Appearance.color = verbosity, color
    before = os.environ.get(_LOG_REQUESTS)
    if verbosity:
        os.environ[_LOG_REQUESTS] = str(min(verbosity, 2))  # for all processes of a run
    try:
        yield
    finally:
        if verbosity:
            os.environ.pop(_LOG_REQUESTS)
            os.environ.update({_LOG_REQUESTS: before} if before else {})


def verbosity() -> int:
    """Return how much more is to be shown than usual: 0, 1 or 2."""
    return _Appearance.verbosity


def is_colored(stream: TextIO) -> bool:
    """Whether a stream takes colours: by the flag, by NO_COLOR and FORCE_COLOR, or because it is a terminal."""
    if _Appearance.color != "auto":
        return _Appearance.color == "always"
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (stream.isatty() and os.environ.get("TERM") != "dumb")


def styled(text: str, style: Style, stream: TextIO | None = None) -> str:
    """Return a text in the colour of its style, where the stream, standard output unless told, takes colours."""
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if text and is_colored(stream or sys.stdout) else text
