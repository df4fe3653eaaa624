"""Time and money of a plan: seconds at a bandwidth and a latency, and bills by price tables.

Everything overlaps, so the time is that of the bottleneck, and of the commit after it::

    seconds = max(line, requests, client) + commit
    line     = bytes read and written / bandwidth
    requests = (requests x latency + bytes copied / speed of a copy + bytes moved / speed of a connection) / concurrency
    client   = GiB moved x CPU seconds a GiB / cores
    commit   = (uploads and deletes / concurrency, each rounded up, + requests made one after the other) x latency

Two passes are two such sums: the second begins when the first is complete.
It is an estimate: retries, a store that throttles, and values that are computed (casts, merges) are not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TypeVar

from ...errors import UsageError
from ..plan import Plan
from ..steps.buffers import process_bytes
from .cost import Cost
from .prices import Bill, Charge, Egress, Payee, bill, total_money

_GIB = 1 << 30
_Sum = TypeVar("_Sum", "Cost", "RequestCounts", "Charge")


@dataclass(frozen=True, slots=True)
class Speeds:
    """Speeds of line, stores and client.

    Parameters
    ----------
    bandwidth_bytes_s, is_shared
        Of the line between client and stores, and whether reads and writes share it, rather than having it each.
    latency_s
        From a request to the first byte of its answer, besides what its bytes take.
    connection_bytes_s
        Of one connection; None where only the line limits.
    copy_bytes_s
        At which a store copies within itself, for one request: an assumption, as services do not publish it and a
        server on the same machine proves nothing about them.
    cpu_s_per_gib
        The client's, for a GiB read or written: measured as 0.58 s (read) and 0.52 s (written) for a GB over
        plain HTTP; see ``docs/design/0001-threads.md``.
    core_count
        Cores that the client keeps busy.
    """

    bandwidth_bytes_s: float = 1e9
    latency_s: float = 0.02
    is_shared: bool = True
    connection_bytes_s: float | None = None
    copy_bytes_s: float = 1e8
    cpu_s_per_gib: float = 0.6
    core_count: int = 1

    def __post_init__(self) -> None:
        for name in ("bandwidth_bytes_s", "connection_bytes_s", "copy_bytes_s", "core_count"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name} must be more than 0, found {value}")
        for name in ("latency_s", "cpu_s_per_gib"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{name} must not be negative, found {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """Requests of one conversion, by kind, without those that were made to plan it.

    Parameters
    ----------
    get, head
        Of the source; HEADs also of the claim and an earlier manifest. A HEAD for each object proves that it is still
        the one that was planned, two that an upload was completed as it was sent.
    put, part, copy, open, complete
        Single PUTs (also of manifest, run record and journal), parts sent, parts copied, multipart uploads opened and
        completed.
    list
        Listings of the target and of the staged chunks, if they take one page each: before and after the run claims
        the target, and before the manifest is written.
    delete
        Of the run's record and journal, and of staged chunks once they have been read; no service charges for them.
    """

    get: int = 0
    head: int = 0
    put: int = 0
    part: int = 0
    copy: int = 0
    open: int = 0
    complete: int = 0
    list: int = 0
    delete: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(asdict(self).values())

    @classmethod
    def of(cls, cost: Cost, head_count: int = 0, list_count: int = 3, delete_count: int = 0) -> RequestCounts:
        """Count those of one pass."""
        return cls(
            get=cost.get_count,
            head=head_count,
            put=cost.put_count + 3 + (cost.upload_count > 0),  # record, journal, uploads in the journal, manifest
            part=cost.part_count,
            copy=cost.copy_count,
            open=cost.upload_count,
            complete=cost.upload_count,
            list=list_count,
            delete=delete_count + 2 + (cost.upload_count > 0),
        )


@dataclass(frozen=True, slots=True)
class ProofRequests:
    """What a service is asked besides, so that bytes are proven; of one behind no network nothing is.

    Parameters
    ----------
    heads_per_put, heads_per_upload
        HEADs after a PUT whose body is not checked, and before and after an upload is completed.
    question
        The upload that finds out what a service checks of which nothing is known, once a pass; how many parts it takes
        depends on the answer, mostly two.
    gets_per_object
        Reads of an object's header, to compare its checksum.
    """

    heads_per_put: int = 0
    heads_per_upload: int = 0
    question: RequestCounts = RequestCounts()
    gets_per_object: int = 0

    def of(self, cost: Cost, object_count: int) -> RequestCounts:
        """Count those of one pass."""
        head = self.heads_per_put * (cost.put_count + 1) + self.heads_per_upload * cost.upload_count  # and the manifest
        return _sum(RequestCounts(head=head, get=self.gets_per_object * object_count), self.question)


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """Duration of a conversion, and its bottleneck.

    ``limited_by`` is ``bandwidth``, ``latency``, ``copies``, ``connections`` or ``cpu``; a commit is
    nothing but latency.
    """

    seconds: float
    limited_by: str
    line_s: float
    requests_s: float
    client_s: float
    commit_s: float


@dataclass(frozen=True, slots=True)
class PassEstimate:
    """Cost and time of the first of two passes."""

    cost: Cost
    requests: RequestCounts
    time: TimeEstimate


@dataclass(frozen=True, slots=True)
class Estimate:
    """Time and money of a plan. It is no part of the plan: prices and speeds do not change what is done.

    Where some tensors are staged it is of both passes, whose memory is that of the larger; ``staged`` is the first by
    itself. ``process_bytes`` are about what the process grows by, from where its libraries are loaded.
    """

    requests: RequestCounts
    speeds: Speeds
    time: TimeEstimate
    egress: Egress
    bills: tuple[Bill, ...]
    cost: Cost
    process_bytes: int
    staged: PassEstimate | None = None

    def to_json(self) -> dict[str, object]:
        """Express it in JSON's types."""
        return {**asdict(self), "bills": [asdict(bill) for bill in self.bills], "total": dict(total_money(self.bills))}


def estimate_plan(
    plan: Plan,
    speeds: Speeds,
    payees: Sequence[Payee],
    egress: Egress = "region",
    proofs: ProofRequests = ProofRequests(),
) -> Estimate:
    """Estimate time and money of a plan, its first pass included.

    ``payees`` are source, target and, where some tensors are staged, the store that chunks go to. Reads of chunks are
    charged to that one; ``egress`` is where the machine is as seen from there too.
    """
    cost, (requests, time) = plan.cost, _pass(plan, speeds, proofs)
    charges = {"source": reading(cost, requests), "target": writing(requests, cost.written_bytes + cost.copied_bytes)}
    staged = None
    if plan.staging is not None:
        # Before it the target is looked at too, and whether chunks are there; after all they are removed.
        delete_count = len(plan.staging.conversion.keys) + 1
        staged = PassEstimate(
            plan.staging.cost,
            *_pass(plan.staging, speeds, proofs, is_first=True, list_count=5, delete_count=delete_count),
        )
        chunks, taken = _chunk_reads(plan), reading(staged.cost, staged.requests)
        charges["source"] = _sum(_sum(taken, charges["source"]), chunks, sign=-1)
        charges["staging"] = _sum(writing(staged.requests, 0), chunks)
        cost = replace(_sum(staged.cost, cost), peak_bytes=max(staged.cost.peak_bytes, cost.peak_bytes))
        requests, time = _sum(staged.requests, requests), _in_turn(staged.time, time)
    bills = [bill(side, payee, charges[side], egress) for side, payee in zip(charges, payees, strict=True)]
    growth = process_bytes(cost.peak_bytes, _item_count(plan) + (_item_count(plan.staging) if plan.staging else 0))
    return Estimate(requests, speeds, time, egress, tuple(bills), cost, growth, staged)


def _sum(one: _Sum, other: _Sum, *, sign: int = 1) -> _Sum:
    """Add two values of one kind field by field."""
    return type(one)(**{each.name: getattr(one, each.name) + sign * getattr(other, each.name) for each in fields(one)})


def _in_turn(first: TimeEstimate, second: TimeEstimate) -> TimeEstimate:
    """Return the time of two passes, the second of which begins when the first is complete."""
    longer = max(first, second, key=lambda time: time.seconds)
    names = [each.name for each in fields(TimeEstimate) if each.name != "limited_by"]
    return TimeEstimate(limited_by=longer.limited_by, **{n: getattr(first, n) + getattr(second, n) for n in names})


def _item_count(plan: Plan) -> int:
    return len(plan.catalog.entries) + len(plan.catalog.objects) + len(plan.conversion.keys)


def _pass(
    plan: Plan,
    speeds: Speeds,
    proofs: ProofRequests,
    *,
    is_first: bool = False,
    list_count: int = 3,
    delete_count: int = 0,
) -> tuple[RequestCounts, TimeEstimate]:
    chunk_base = len(plan.catalog.others) if plan.staging else None  # chunks have been written just before
    object_count = sum(item.base != chunk_base for item in plan.catalog.objects)
    # After copying, the source is looked at again. The earlier manifest is that of the last pass, and for a share that
    # of the whole as well.
    head_count = object_count * (2 if plan.cost.copied_bytes else 1)
    is_share = plan.conversion.whole is not plan.conversion
    head_count += 11 if is_first else 8 + is_share  # claims are looked at again and again
    if len(plan.conversion.keys) == 1:  # which is looked at by itself, instead of in a listing
        head_count, list_count = head_count + 1, list_count - 1
    list_count += is_share  # the manifests of other shares
    requests = RequestCounts.of(plan.cost, head_count, list_count, delete_count)
    requests = _sum(requests, proofs.of(plan.cost, object_count))
    if is_first:  # chunks are claimed for both passes
        requests = replace(requests, put=requests.put + 1, delete=requests.delete + 1)
    # The run's record, indices, companions and the manifest are written one after the other.
    serial_count = len(plan.conversion.documents) + 2 * len(plan.conversion.attachments) + 2
    return requests, estimate_time(plan.cost, requests, speeds, plan.limits.request_count, serial_count)


def _chunk_reads(plan: Plan) -> Charge:
    """Count what the second pass reads of chunks, and nothing else."""
    assert plan.staging is not None
    names = {entry.spec.name for entry in plan.staging.catalog.entries}
    nbytes = count = 0
    for group in plan.groups:
        for source, ranges in plan.reader.scores.ranges(group.outputs):
            if plan.catalog.entries[source].spec.name in names:
                nbytes += sum(one.nbytes for one in ranges)
                count += sum(-(-one.nbytes // plan.limits.read_bytes) for one in ranges)
    # Neighbours are read together, and counted here apart: never charge more than the pass reads.
    return Charge(get=min(count, plan.cost.get_count), sent_bytes=min(nbytes, plan.cost.read_bytes))


def estimate_time(
    cost: Cost, requests: RequestCounts, speeds: Speeds, concurrency: int, serial_count: int = 1
) -> TimeEstimate:
    """Estimate the time of one pass, by the formula at the top of this module.

    ``serial_count`` requests are made one after the other at the end.

    Examples
    --------
    200 GB read, 200 GB written, in requests of 8 and 16 MiB, eight in flight:

    >>> cost = Cost(needed_bytes=200 * 10**9, read_bytes=200 * 10**9, written_bytes=200 * 10**9, copied_bytes=0,
    ...             get_count=23842, put_count=0, part_count=11921, copy_count=0, upload_count=8, step_count=11921,
    ...             peak_bytes=400 << 20)
    >>> requests = RequestCounts.of(cost)
    >>> found = estimate_time(cost, requests, Speeds(bandwidth_bytes_s=1e9, latency_s=0.02), concurrency=8)
    >>> round(found.line_s), round(found.requests_s), round(found.client_s), found.limited_by
    (400, 89, 224, 'bandwidth')
    >>> estimate_time(cost, requests, Speeds(latency_s=0.2), concurrency=8).limited_by
    'latency'
    """
    moved = cost.read_bytes + cost.written_bytes
    line = (moved if speeds.is_shared else max(cost.read_bytes, cost.written_bytes)) / speeds.bandwidth_bytes_s
    waits = {
        "latency": (requests.total - requests.complete - requests.list - requests.delete) * speeds.latency_s,
        "copies": cost.copied_bytes / speeds.copy_bytes_s,
        "connections": moved / speeds.connection_bytes_s if speeds.connection_bytes_s else 0.0,
    }
    in_flight = sum(waits.values()) / concurrency
    client = moved / _GIB * speeds.cpu_s_per_gib / speeds.core_count
    rounds = -(-requests.complete // concurrency) + -(-requests.delete // concurrency)
    commit = (rounds + serial_count) * speeds.latency_s
    bounds = {"bandwidth": line, max(waits, key=waits.__getitem__): in_flight, "cpu": client}
    slowest = max(bounds, key=bounds.__getitem__)
    by = "latency" if commit > bounds[slowest] else slowest
    return TimeEstimate(bounds[slowest] + commit, by, line, in_flight, client, commit)


def reading(cost: Cost, requests: RequestCounts) -> Charge:
    """Return what the source's store charges for."""
    return Charge(get=requests.get + requests.head, sent_bytes=cost.read_bytes)


def writing(requests: RequestCounts, kept_bytes: int) -> Charge:
    """Return what the target's store charges for: bytes sent to it cost nothing, copied ones are requests only."""
    put = requests.put + requests.part + requests.open + requests.complete
    return Charge(put=put, copy=requests.copy, list=requests.list, kept_bytes=kept_bytes)
