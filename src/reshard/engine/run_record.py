"""The record that a run keeps at its target while it writes: what it finds of a run before it is told apart by it."""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from ..errors import FormatError
from ..formats.strict_json import parse_json_object
from ..planning.conversion import Conversion
from ..planning.plan_json import conversion_ids

_FORMAT = "reshard-run/1"
MAX_RECORD_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Who writes what: ``whole_id`` is the id of the conversion that this one is a share of, or its own."""

    conversion_id: str
    whole_id: str
    run_id: str
    host: str
    pid: int
    started: str

    @classmethod
    def of(cls, conversion: Conversion) -> RunRecord:
        """Make the record of a run that starts now, here."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(*conversion_ids(conversion), secrets.token_hex(8), socket.gethostname(), os.getpid(), now)


def encode_record(record: RunRecord) -> bytes:
    """Write a record for :func:`decode_record`."""
    return json.dumps({"format": _FORMAT, **asdict(record)}).encode()


def decode_record(data: bytes, where: str) -> RunRecord | None:
    """Read a record; None for anything else."""
    try:
        body = parse_json_object(data, where)
        values = {name: body.get(name) for name in RunRecord.__slots__}
    except FormatError:
        return None
    texts = all(isinstance(value, str) for name, value in values.items() if name != "pid")
    if body.get("format") != _FORMAT or not texts or type(values["pid"]) is not int:
        return None
    return RunRecord(**values)  # type: ignore[arg-type]
