"""How long machines take to carry out the steps of a plan, and what limits them: a closed formula.

One machine hands out steps, one at a time, to the processes of all. A step's reads all end before its parts are sent;
the steps of a process overlap, as far as its requests in flight and its memory for parts allow. So the work is a
pipeline: the first steps, all at once, and then the others as fast as the slowest resource allows::

    seconds  = first steps + max over resources (other steps there x what a step takes of it) + commit
    line     = bytes read and written / bandwidth; of the machine with the most steps
    account  = bytes, GETs and PUTs / what the store allows an account a second; of all steps
    requests = seconds that requests are in flight / requests in flight; of the process with the most steps
    leader   = steps x what handing out one takes
    client   = GiB moved x CPU seconds a GiB / a core; of that process
    memory   = seconds that a step holds memory x the share of the process's memory that it holds; of that process
    commit   = (uploads opened and completed, HEADs and DELETEs, in rounds + requests one after the other) x latency

The first steps, one a process, share machines and accounts; each makes its reads, then its sends, in rounds of as many
requests as are in flight. Steps count as equal, of average size, but never take less than the largest does alone.
``benchmarks/simulate.py`` follows every request of every step instead, and compares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...errors import UsageError
from .cost import Cost
from .requests import RequestCounts

_GIB = 1 << 30
RETRY_WAIT_S = 0.125
"""Before a failed request is made again: on average half of the longest first wait of a store's retries."""


@dataclass(frozen=True, slots=True)
class Account:
    """What a store allows all machines of one account together, a second; None where nothing is known to limit.

    ``has_source`` and ``has_target`` tell what lies there.
    """

    bytes_s: float | None = None
    gets_s: float | None = None
    puts_s: float | None = None
    has_source: bool = True
    has_target: bool = True


@dataclass(frozen=True, slots=True)
class Speeds:
    """Speeds of line, stores and client.

    Parameters
    ----------
    bandwidth_bytes_s, is_shared
        Of the line between each machine and the stores, and whether reads and writes share it, rather than having it
        each.
    latency_s
        From a request to the first byte of its answer, besides what its bytes take.
    connection_bytes_s
        Of one connection; None where only the line limits.
    copy_bytes_s
        At which a store copies within itself, for one request: an assumption, as services do not publish it and a
        server on the same machine proves nothing about them.
    cpu_s_per_gib
        The client's, for a GiB read or written: measured as 0.85 to 1.06 for bytes that only move, over plain HTTP
        (``benchmarks/results/bench.json``).
    core_count
        Cores of each machine; None for one a process. A process keeps about one busy.
    handout_s
        What the leader needs to hand out a step and to hear of it: measured as 0.18 ms for steps of eight parts.
    accounts
        What the stores allow.
    error_rate
        Share of tries that fail and are made again, after an answer and a wait.
    """

    bandwidth_bytes_s: float = 1e9
    latency_s: float = 0.02
    is_shared: bool = True
    connection_bytes_s: float | None = None
    copy_bytes_s: float = 1e8
    cpu_s_per_gib: float = 1.0
    core_count: int | None = None
    handout_s: float = 2e-4
    accounts: tuple[Account, ...] = ()
    error_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("bandwidth_bytes_s", "connection_bytes_s", "copy_bytes_s", "core_count"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} must be more than 0, found {value}")
        for name in ("latency_s", "cpu_s_per_gib", "handout_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} must not be negative, found {getattr(self, name)}")
        if not 0 <= self.error_rate < 1:
            raise UsageError(f"error_rate must be from 0 to less than 1, found {self.error_rate}")

    def cpu_s(self, process_count: int) -> float:
        """Return the seconds for one byte, where so many processes share a machine's cores."""
        cores = self.core_count or process_count
        return self.cpu_s_per_gib / _GIB / min(1.0, cores / process_count)


@dataclass(frozen=True, slots=True)
class Machines:
    """Machines that share the steps of a plan, all alike.

    Parameters
    ----------
    count
        How many.
    process_count, concurrency
        Processes of each machine, and requests in flight of each process.
    parts_bytes
        Memory of each process for parts that are being filled or sent.
    """

    count: int
    process_count: int
    concurrency: int
    parts_bytes: int

    @property
    def worker_count(self) -> int:
        """Processes of all machines."""
        return self.count * self.process_count


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """Duration of a conversion, and its bottleneck.

    ``limited_by`` is ``bandwidth``, ``account``, ``latency``, ``connections``, ``copies``, ``cpu``, ``memory``,
    ``leader``, or ``steps``: they are too few, or too long, for so many processes. ``tail_s`` is what the last step
    takes beyond its share of the slowest resource, ``commit_s`` what the leader asks for before the first step and
    after the last.
    """

    seconds: float
    limited_by: str
    line_s: float
    account_s: float
    requests_s: float
    client_s: float
    memory_s: float
    leader_s: float
    tail_s: float
    commit_s: float


def estimate_time(
    cost: Cost, requests: RequestCounts, speeds: Speeds, machines: Machines, serial_count: int = 1
) -> TimeEstimate:
    """Estimate the time of one pass, by the formula at the top of this module.

    ``serial_count`` requests are made one after the other at the end.

    Examples
    --------
    200 GB read, 200 GB written, in requests of 8 and 16 MiB, eight in flight:

    >>> cost = Cost(needed_bytes=200 * 10**9, read_bytes=200 * 10**9, written_bytes=200 * 10**9, copied_bytes=0,
    ...             get_count=23842, put_count=0, part_count=11921, copy_count=0, upload_count=8, step_count=1491,
    ...             streamed_step_count=1491, filled_bytes=200 * 10**9, largest_step_bytes=128 << 20,
    ...             peak_bytes=400 << 20)
    >>> requests = RequestCounts.of(cost)
    >>> one, many = (Machines(count, 1, 8, 400 << 20) for count in (1, 64))
    >>> found = estimate_time(cost, requests, Speeds(), one)
    >>> round(found.line_s), round(found.requests_s), round(found.client_s), found.limited_by
    (400, 139, 373, 'bandwidth')
    >>> estimate_time(cost, requests, Speeds(latency_s=0.2), one).limited_by
    'latency'
    >>> found = estimate_time(cost, requests, Speeds(accounts=(Account(bytes_s=2e9),)), many)
    >>> round(found.seconds), found.limited_by
    (200, 'account')
    """
    model = _Model(cost, speeds, machines)
    waits = model.waits()
    in_flight = sum(waits.values()) / (machines.worker_count * machines.concurrency)
    used = model.step_use()
    # Resources of a process, of a machine and of all: what the average one of them has to do.
    shares = {"cpu": machines.worker_count, "bandwidth": machines.count, "account": 1}
    bounds = {name: cost.streamed_step_count * used[name] / count for name, count in shares.items()}
    bounds["leader"] = cost.step_count * speeds.handout_s
    # The first step of a process never waits for memory.
    bounds["memory"] = max(0.0, cost.streamed_step_count / machines.worker_count - 1) * used["memory"]
    line_s, longest_wait = bounds["bandwidth"], max(waits, key=waits.__getitem__)
    bounds[longest_wait] = max(in_flight, bounds.get(longest_wait, 0.0))
    slowest = max(bounds, key=bounds.__getitem__)
    moving_s = max(model.moving_s(), bounds[slowest])
    tail_s = moving_s - bounds[slowest]
    rounds = (requests.complete, requests.delete, requests.open + requests.head)
    commit_s = (sum(-(-count // machines.concurrency) for count in rounds) + serial_count) * speeds.latency_s
    by = "latency" if commit_s > moving_s else "steps" if tail_s > bounds[slowest] else slowest
    return TimeEstimate(
        seconds=moving_s + commit_s,
        limited_by=by,
        line_s=line_s,
        account_s=bounds["account"],
        requests_s=in_flight,
        client_s=bounds["cpu"],
        memory_s=bounds["memory"],
        leader_s=bounds["leader"],
        tail_s=tail_s,
        commit_s=commit_s,
    )


@dataclass(frozen=True, slots=True)
class _Batch:
    """Requests of one kind in an average step: how many, and their bytes in all."""

    count: float
    nbytes: float


_NONE = _Batch(0, 0)


class _Model:
    """The average step of a plan on some machines.

    At first as many steps begin as there are processes, and share machines and accounts; all others follow as one ends.
    """

    def __init__(self, cost: Cost, speeds: Speeds, machines: Machines) -> None:
        self._cost, self._speeds, self._machines = cost, speeds, machines
        self._step_count = cost.streamed_step_count
        steps, sent_count = max(1, self._step_count), cost.part_count + cost.put_count
        self._reads = _Batch(cost.get_count / steps, cost.read_bytes / steps)
        self._sends = _Batch(sent_count / steps, cost.written_bytes / steps)
        self._cpu_s = speeds.cpu_s(machines.process_count)
        self._line_s = 1 / speeds.bandwidth_bytes_s
        connection_s = 1 / speeds.connection_bytes_s if speeds.connection_bytes_s else 0.0
        self._byte_s = max(connection_s, self._line_s, self._cpu_s)  # in a request that nothing else disturbs
        self._failure_s = speeds.latency_s + RETRY_WAIT_S
        self._latency_s = speeds.latency_s + speeds.error_rate / (1 - speeds.error_rate) * self._failure_s
        self._at_once = min(steps, machines.worker_count)
        self._at_once_here = min(machines.process_count, math.ceil(steps / machines.count))

    def waits(self) -> dict[str, float]:
        """Return the seconds that all requests of all steps together are in flight, by what they wait for."""
        cost, speeds = self._cost, self._speeds
        moving_s = self._byte_s * (cost.read_bytes + cost.written_bytes)
        return {
            "latency": (cost.get_count + cost.part_count + cost.put_count + cost.copy_count) * self._latency_s,
            "copies": cost.copied_bytes / speeds.copy_bytes_s,
            "connections" if speeds.connection_bytes_s else "bandwidth": moving_s,
        }

    def step_use(self) -> dict[str, float]:
        """Return the seconds that an average step takes of each resource, ``requests`` among them."""
        reads, sends, machines = self._reads, self._sends, self._machines
        moved = reads.nbytes + sends.nbytes
        filled = self._cost.filled_bytes / max(1, self._step_count)
        held_count = max(1, machines.parts_bytes // max(1, math.ceil(filled)))
        # Buffers of tiles are given back before parts are sent, and each part as it is sent.
        sent_share = min(filled, sends.nbytes) / max(1, machines.parts_bytes)
        line = moved if self._speeds.is_shared else max(reads.nbytes, sends.nbytes)
        return {
            "cpu": moved * self._cpu_s,
            "memory": self._batch_s(reads) / held_count + self._batch_s(sends) * sent_share,
            "bandwidth": line * self._line_s,
            "account": self._account_s(reads, sends),
            "requests": ((reads.count + sends.count) * self._latency_s + moved * self._byte_s) / machines.concurrency,
        }

    def _account_s(self, reads: _Batch, sends: _Batch) -> float:
        """Return the seconds that the narrowest account needs for reads and sends."""
        longest = 0.0
        for account in self._speeds.accounts:
            taken, given = reads if account.has_source else _NONE, sends if account.has_target else _NONE
            bytes_s = (taken.nbytes + given.nbytes) / (account.bytes_s or math.inf)
            longest = max(
                longest, bytes_s, taken.count / (account.gets_s or math.inf), given.count / (account.puts_s or math.inf)
            )
        return longest

    def _batch_s(self, batch: _Batch) -> float:
        """Return how long the reads of a step take if nothing else is under way, or its sends."""
        if not batch.count:
            return 0.0
        rounds = math.ceil(batch.count / self._machines.concurrency)
        in_rounds_s = rounds * (self._latency_s + batch.nbytes / batch.count * self._byte_s)
        return max(in_rounds_s, self._latency_s + batch.nbytes * max(self._cpu_s, self._line_s))

    def _first_s(self) -> float:
        """Return how long the first steps take, all at once."""
        reads, sends, here = self._reads, self._sends, self._at_once_here
        alone_s, shared_s, failing = [], [], 0.0
        for each, account_s in ((reads, self._account_s(reads, _NONE)), (sends, self._account_s(_NONE, sends))):
            alone_s.append(self._batch_s(each))
            shared_s.append(max(alone_s[-1], each.nbytes * self._line_s * here, account_s * self._at_once))
            failing += 1 - (1 - self._speeds.error_rate) ** (each.count * self._at_once)
        used = self.step_use()
        together_s = max(sum(alone_s), *shared_s, used["bandwidth"] * here, used["account"] * self._at_once)
        # All read and then all send, or some send while others read: it is in between.
        return (sum(shared_s) + together_s) / 2 + failing * self._failure_s

    def moving_s(self) -> float:
        """Return the seconds from the first request of a step to the last."""
        cost, machines = self._cost, self._machines
        slots = machines.worker_count * machines.concurrency
        copying_s = (cost.copy_count * self._latency_s + cost.copied_bytes / self._speeds.copy_bytes_s) / slots
        one_copy_s = copying_s * slots / max(1, cost.copy_count)
        if not self._step_count:
            return max(copying_s, one_copy_s)
        later = dict.fromkeys(("cpu", "memory", "requests"), math.ceil(self._step_count / machines.worker_count) - 1)
        later["bandwidth"] = math.ceil(self._step_count / machines.count) - self._at_once_here
        later["account"] = self._step_count - self._at_once
        before = [use * later[name] + copying_s * (name == "requests") for name, use in self.step_use().items()]
        before.append(cost.step_count * self._speeds.handout_s)
        alone_s = self._batch_s(self._reads) + self._batch_s(self._sends)
        longer = max(1.0, cost.largest_step_bytes * self._step_count / max(1, cost.filled_bytes))
        return max(max(before) + self._first_s(), alone_s * longer, one_copy_s)
