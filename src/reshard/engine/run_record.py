"""The record that a run keeps at its target while it writes, and whose process it belongs to."""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from ..errors import FormatError
from ..formats.strict_json import parse_json_object
from ..planning.conversion import Conversion
from ..planning.plan_json import conversion_ids

_FORMAT = "reshard-run/3"
MAX_RECORD_BYTES = 64 << 10
_MAX_LEFT = 100  # runs in a row that have all ended right after their claim


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Who writes what, and whether it still does.

    Parameters
    ----------
    conversion_id, whole_id
        The ids of the conversion and of what it is a share of.
    run_id
        Of this run; its journal is found by it.
    source_url
        For people.
    host, process
        Where it runs, in words; and an identity of the process that is comparable on the same machine only, or empty.
    started
        When it began, by the clock of that machine: for people.
    beat
        A number that grows while the run is alive; -1 once it has ended without finishing, -2 once a run
        with another record has pushed it out.
    left
        The runs before this one, as ``run_id/conversion_id`` with spaces between, the last one first. Until this run
        has begun its journal, that of the first of them that has begun one counts.
    """

    conversion_id: str
    whole_id: str
    run_id: str
    source_url: str
    host: str
    process: str
    started: str
    beat: int = 0
    left: str = ""

    @classmethod
    def of(cls, conversion: Conversion) -> RunRecord:
        """Make the record of a run that starts now, here."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        host = f"{socket.gethostname()}, process {os.getpid()}"
        return cls(
            *conversion_ids(conversion), secrets.token_hex(8), conversion.catalog.url, host, _identity(os.getpid()), now
        )

    @property
    def has_ended(self) -> bool:
        """Whether its run is known to have ended, by its own word or because its process is gone."""
        if self.beat < 0:
            return True
        machine, _, pid = self.process.partition(" ")
        here = _identity(os.getpid()).partition(" ")[0]
        if not machine or machine != here:
            return False
        number = pid.partition(" ")[0]
        return not (number.isdecimal() and len(number) < 20) or _identity(int(number)) != self.process

    def after(self, earlier: RunRecord, *, has_begun: bool) -> RunRecord:
        """Return this record for a run that follows a dead one, which may have ended before its journal began."""
        before = [] if has_begun else earlier.left.split(" ")[:_MAX_LEFT]
        return replace(self, left=" ".join([f"{earlier.run_id}/{earlier.conversion_id}", *filter(None, before)]))

    @property
    def runs(self) -> tuple[tuple[str, str], ...]:
        """This run and those before it, whose journals count in this order, each with the id of its conversion."""
        before = [each.partition("/")[::2] for each in self.left.split(" ") if each]
        return ((self.run_id, self.conversion_id), *before)

    def ended(self) -> RunRecord:
        """Return the record of a run that has ended without finishing."""
        return replace(self, beat=-1)

    def pushed_out(self) -> RunRecord:
        """Return the record of a run that seems to be dead, at whose target a run with another record begins."""
        return replace(self, beat=-2)

    @property
    def is_pushed_out(self) -> bool:
        """Whether another run has begun where this one was at work."""
        return self.beat == -2


def _identity(pid: int) -> str:
    """Identify a process: the machine since its start, and the namespace; number; when it began. Empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = Path("/proc/self/ns/pid").readlink()
        begun = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
    return f"{boot}/{space} {pid} {begun}"


def encode_record(record: RunRecord) -> bytes:
    """Write a record for :func:`decode_record`."""
    return json.dumps({"format": _FORMAT, **asdict(record)}).encode()


def decode_record(data: bytes, where: str) -> RunRecord | None:
    """Read a record; None for anything else."""
    try:
        body = parse_json_object(data, where)
    except FormatError:
        return None
    values = {each.name: body.get(each.name) for each in fields(RunRecord)}
    texts = all(isinstance(value, str) for name, value in values.items() if name != "beat")
    if body.get("format") != _FORMAT or not texts or type(values["beat"]) is not int:
        return None
    return RunRecord(**values)  # type: ignore[arg-type]
