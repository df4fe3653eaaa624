"""What a plan's figures come to: seconds at a bandwidth and a latency, and money by a price table.

The time is that of the narrowest place, as everything overlaps, and what must come after it::

    seconds = max(line, requests, client) + commit
    line     = bytes read and written / bandwidth
    requests = (requests x latency + bytes copied / speed of a copy + bytes moved / speed of a connection) / concurrency
    client   = GiB moved x CPU seconds a GiB / cores
    commit   = (uploads and deletes / concurrency, each rounded up, + requests made one after the other) x latency

Two passes are two such sums: the second begins when the first is complete.
It is an estimate: retries, a store that throttles, and values that are computed (casts, merges) are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from ...errors import UsageError
from .cost import Cost
from .prices import PriceTable

Egress = Literal["region", "internet"]
"""Where the machine that converts stands, seen from the source: in its region, or outside."""

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Speeds:
    """How fast line, stores and client are.

    Parameters
    ----------
    bandwidth_bytes_s
        Of the line between client and stores.
    latency_s
        From a request to the first byte of its answer, besides what its bytes take.
    is_shared
        Whether what is read and what is written share the bandwidth, rather than having it each.
    connection_bytes_s
        Of one connection; None where it is only the line that limits.
    copy_bytes_s
        At which a store copies within itself, for one request: an assumption, as services do not tell and a
        server on the same machine says nothing about them.
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
    """Requests of one conversion, by kind; those that were made to plan it are not among them.

    Parameters
    ----------
    get, head
        Of the source. A HEAD for each object tells that it is still the one that was planned.
    put, part, copy
        Single PUTs (the manifest's too), parts sent, parts copied.
    open, complete
        Of multipart uploads.
    list
        Listings of the target and of the staged chunks, if they take one page each.
    delete
        Of staged chunks, once they have been read; no service asks money for them.
    """

    get: int
    head: int
    put: int
    part: int
    copy: int
    open: int
    complete: int
    list: int
    delete: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(asdict(self).values())

    def plus(self, other: RequestCounts) -> RequestCounts:
        """Those of both."""
        theirs = asdict(other)
        return RequestCounts(**{kind: count + theirs[kind] for kind, count in asdict(self).items()})


@dataclass(frozen=True, slots=True)
class Work:
    """What is estimated: a plan's figures, and what they leave out.

    Parameters
    ----------
    cost
        The plan's.
    concurrency
        Requests in flight at once.
    object_count
        Objects of the source.
    serial_count
        Requests that are made one after the other at the end: indices, companions, the manifest.
    output_bytes
        Of all objects that are made and stay.
    list_count
        Listings of what lies where it writes.
    delete_count
        Objects that are removed in the end.
    """

    cost: Cost
    concurrency: int
    object_count: int = 0
    serial_count: int = 1
    output_bytes: int = 0
    list_count: int = 1
    delete_count: int = 0

    @property
    def requests(self) -> RequestCounts:
        """All requests that the conversion makes."""
        cost = self.cost
        looks = 2 if cost.copied_bytes else 1  # after copying, the source is looked at again
        return RequestCounts(
            get=cost.get_count,
            head=looks * self.object_count,
            put=cost.put_count + 1,
            part=cost.part_count,
            copy=cost.copy_count,
            open=cost.upload_count,
            complete=cost.upload_count,
            list=self.list_count,
            delete=self.delete_count,
        )


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """How long, and what it is that takes so long.

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
class Bill:
    """What one store asks for a conversion, in its table's currency.

    Parameters
    ----------
    side
        ``source``, ``target`` or ``staging``, where chunks lie between two passes.
    provider
        The service.
    table, title, currency, as_of
        The prices that were taken; the table is empty and all amounts 0 where none are known.
    requests
        For all requests.
    egress
        For what leaves the store, to where the machine was said to be.
    egress_outside
        The same if it is outside the region.
    storage_month
        For keeping what is written, a month; None where the table does not say.
    """

    side: str
    provider: str
    table: str
    title: str
    currency: str
    as_of: str
    requests: float
    egress: float
    egress_outside: float
    storage_month: float | None

    @property
    def is_known(self) -> bool:
        """Whether there are prices."""
        return bool(self.table)

    @property
    def total(self) -> float:
        """Requests and egress."""
        return self.requests + self.egress


@dataclass(frozen=True, slots=True)
class PassEstimate:
    """What the first of two passes comes to by itself."""

    cost: Cost
    requests: RequestCounts
    time: TimeEstimate


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a plan comes to. It is no part of the plan: prices and speeds do not change what is done.

    Parameters
    ----------
    requests, time, bills, cost
        Of all that is done: of both passes, where some tensors are staged. Their memory is that of the larger.
    process_bytes
        About what the process grows by, from where its libraries are loaded.
    staged
        What of it the first pass is; None where there is one pass only.
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


def estimate_time(work: Work, speeds: Speeds) -> TimeEstimate:
    """How long a conversion takes, by the formula at the top of this module.

    Examples
    --------
    200 GB read, 200 GB written, in requests of 8 and 16 MiB, eight in flight:

    >>> cost = Cost(needed_bytes=200 * 10**9, read_bytes=200 * 10**9, written_bytes=200 * 10**9, copied_bytes=0,
    ...             get_count=23842, put_count=0, part_count=11921, copy_count=0, upload_count=8, step_count=11921,
    ...             peak_bytes=400 << 20)
    >>> found = estimate_time(Work(cost, concurrency=8), Speeds(bandwidth_bytes_s=1e9, latency_s=0.02))
    >>> round(found.line_s), round(found.requests_s), round(found.client_s), found.limited_by
    (400, 89, 224, 'bandwidth')
    >>> estimate_time(Work(cost, concurrency=8), Speeds(latency_s=0.2)).limited_by
    'latency'
    """
    cost, requests = work.cost, work.requests
    moved = cost.read_bytes + cost.written_bytes
    line = (moved if speeds.is_shared else max(cost.read_bytes, cost.written_bytes)) / speeds.bandwidth_bytes_s
    waits = {
        "latency": (requests.total - requests.complete - requests.list - requests.delete) * speeds.latency_s,
        "copies": cost.copied_bytes / speeds.copy_bytes_s,
        "connections": moved / speeds.connection_bytes_s if speeds.connection_bytes_s else 0.0,
    }
    in_flight = sum(waits.values()) / work.concurrency
    client = moved / _GIB * speeds.cpu_s_per_gib / speeds.core_count
    rounds = -(-requests.complete // work.concurrency) + -(-requests.delete // work.concurrency)
    commit = (rounds + work.serial_count) * speeds.latency_s
    bounds = {"bandwidth": line, max(waits, key=waits.__getitem__): in_flight, "cpu": client}
    slowest = max(bounds, key=bounds.__getitem__)
    by = "latency" if commit > bounds[slowest] else slowest
    return TimeEstimate(bounds[slowest] + commit, by, line, in_flight, client, commit)


def estimate_money(
    work: Work,
    providers: tuple[str, str],
    tables: tuple[PriceTable | None, PriceTable | None],
    egress: Egress = "region",
) -> tuple[Bill, Bill]:
    """What source and target ask for a conversion.

    Bytes that are sent to a store cost nothing anywhere; those that it copies by itself are requests only.

    Parameters
    ----------
    providers, tables
        Of the source and of the target; None where no prices are known.
    egress
        Where the machine stands, seen from the source.
    """
    requests, (source, target) = work.requests, tables
    reads = {"get": requests.get + requests.head}
    writes = {
        "put": requests.put + requests.part + requests.open + requests.complete,
        "copy": requests.copy,
        "list": requests.list,
    }
    return (
        _bill("source", providers[0], source, reads, work.cost.read_bytes, 0, egress),
        _bill("target", providers[1], target, writes, 0, work.output_bytes, egress),
    )


def _bill(
    side: str,
    provider: str,
    table: PriceTable | None,
    counts: Mapping[str, int],
    sent_bytes: int,
    kept_bytes: int,
    egress: Egress,
) -> Bill:
    if table is None:
        return Bill(side, provider, "", "", "", "", 0.0, 0.0, 0.0, None)
    asked = sum(count / 1000 * getattr(table, kind).price for kind, count in counts.items())
    sent = sent_bytes / _GIB
    outside, here = sent * table.internet.price, sent * (table.internet if egress == "internet" else table.region).price
    kept = kept_bytes / _GIB * table.storage.price if table.storage else None
    return Bill(side, provider, table.name, table.title, table.currency, table.as_of, asked, here, outside, kept)


def total_money(bills: Sequence[Bill]) -> Mapping[str, float]:
    """Requests and egress of several bills, by currency.

    Examples
    --------
    >>> total_money([Bill("source", "", "t", "", "USD", "", 0.25, 0.5, 0.5, None)])
    {'USD': 0.75}
    """
    total: dict[str, float] = {}
    for bill in bills:
        if bill.is_known:
            total[bill.currency] = total.get(bill.currency, 0.0) + bill.total
    return total
