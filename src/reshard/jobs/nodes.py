"""A job of several nodes, as a job service starts it: each node does its share of one conversion, and waits for all."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..api.option_field import read_integer
from ..errors import Transient, UsageError, counted, option
from ..planning.share_documents import written_ranks
from .hyper_parameters import NPUS_PER_NODE

_POLL_S, _NEXT_LINE_S = 5.0, 30.0

STAGED = re.compile(r"/home/ma-user/modelarts/(?:inputs|outputs)/|/cache/")
"""Where job services copy inputs to before a job, and outputs from after it."""


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of a job: which of how many, and the ranks that each runs.

    Examples
    --------
    >>> node = Node(1, 2, 8)
    >>> print(node, node.share(16), node.share(12), node.share(8))
    node 1/2 range(8, 16) range(8, 12) range(8, 8)
    """

    index: int = 0
    count: int = 1
    npu_count: int = NPUS_PER_NODE

    def __str__(self) -> str:
        return f"node {self.index}/{self.count}"

    def share(self, rank_count: int) -> range:
        """Return the ranks that this node writes; a single node writes all, whatever it has.

        Raise UsageError if all nodes together have fewer NPUs than the target has ranks.
        """
        if self.count == 1:
            return range(rank_count)
        if self.count * self.npu_count < rank_count:
            least = -(-rank_count // self.count)
            raise UsageError(
                f"{self.count} nodes of {counted(self.npu_count, 'NPU')} are for {self.count * self.npu_count} ranks, "
                f"but the target has {rank_count}",
                hint=f"Give {option('npu_num_per_node', least)}, or start the job on more nodes.",
            )
        return range(*(min(rank_count, edge * self.npu_count) for edge in (self.index, self.index + 1)))

    def owner(self, rank: int) -> int:
        """Return the number of the node that writes a rank."""
        return rank // self.npu_count


def find_node(environ: Mapping[str, str], npu_num_per_node: str | int | None = None) -> Node:
    """Find a node's place in the variables that ModelArts sets; without them there is one node.

    Raises
    ------
    UsageError
        Variables that contradict each other or are no numbers; all are listed.

    Examples
    --------
    >>> find_node({"MA_NUM_HOSTS": "2", "VC_TASK_INDEX": "1"}, "16")
    Node(index=1, count=2, npu_count=16)
    >>> find_node({"VC_WORKER_HOSTS": "a-worker-0.a,a-worker-1.a", "VC_TASK_INDEX": "0"})
    Node(index=0, count=2, npu_count=8)
    """
    npu_count = _count(option("npu_num_per_node"), NPUS_PER_NODE if npu_num_per_node is None else npu_num_per_node)
    hosts = [host for host in environ.get("VC_WORKER_HOSTS", "").split(",") if host.strip()]
    counts = {name: _count(name, environ[name]) for name in ("MA_NUM_HOSTS", "VC_WORKER_NUM") if environ.get(name)}
    counts |= {"VC_WORKER_HOSTS": len(hosts)} if hosts else {}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise UsageError(f"it is not clear how many nodes there are: {found}")
    count = next(iter(counts.values()), 1)
    if not environ.get("VC_TASK_INDEX"):
        if count > 1:
            raise UsageError(f"there are {count} nodes, but VC_TASK_INDEX does not say which of them this is")
        return Node(npu_count=npu_count)
    index = _count("VC_TASK_INDEX", environ["VC_TASK_INDEX"], least=0)
    if index >= count:
        variable = next(iter(counts), "MA_NUM_HOSTS")
        raise UsageError(
            f"VC_TASK_INDEX: expected a number below {count}, that of the nodes ({variable}), found {index}"
        )
    return Node(index, count, npu_count)


def npu_warnings(environ: Mapping[str, str], node: Node) -> list[str]:
    """Return what is odd about the number of NPUs: MA_NUM_GPUS counts those that the node really has."""
    found = environ.get("MA_NUM_GPUS", "")
    if node.count == 1 or not found.isdecimal() or int(found) in (0, node.npu_count):
        return []
    return [
        f"this node has {counted(int(found), 'NPU')} (MA_NUM_GPUS), "
        f"but each node writes {counted(node.npu_count, 'rank')}; "
        f"if that is not wanted, give {option('npu_num_per_node', found)}"
    ]


def _count(name: str, value: str | int, least: int = 1) -> int:
    try:
        found = read_integer(value)
    except UsageError:
        found = least - 1
    if found < least:
        raise UsageError(f"{name}: expected a whole number of at least {least}, found {str(value)[:40]!r}")
    return found


def staged_warnings(places: Mapping[str, str | None]) -> list[str]:
    """Return a warning for each place, given by the name of its hyper-parameter, that is a staged copy."""
    return [
        f"{name}={place} is a copy inside the container: the job service moves every byte through it once more. "
        "Pass the bucket's own URL, obs://..., as an ordinary hyper-parameter."
        for name, place in places.items()
        if place and STAGED.match(place)
    ]


def check_destination(url: str, node: Node) -> None:
    """Refuse a destination that every node has for itself: the shares would never meet."""
    is_relative = bool(url) and "://" not in url and not url.startswith("/")
    if node.count > 1 and (STAGED.match(url) or is_relative):
        raise UsageError(
            f"{url} is inside each node's own container: {node.count} nodes cannot write one checkpoint there",
            hint="Name the bucket itself, obs://....",
        )


def local_warnings(url: str, node: Node) -> list[str]:
    """Return what is odd about a destination of several nodes that is a path: it may be mounted on all of them."""
    if node.count == 1 or not url or "://" in url:
        return []
    consequence = "or every node waits until its time limit"
    return [f"{url} is a path: it must be one folder that all {node.count} nodes share, {consequence}"]


Missing = Callable[[], Sequence[int] | None]
"""Looks which ranks no node has finished yet; None once the whole is there."""


def wait_for_shares(
    missing: Missing,
    node: Node,
    limit_s: float,
    show: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until every node's share is in the destination, and show now and then which is not.

    Raises
    ------
    Transient
        The time limit ended first; the error names the ranks and their nodes.
    """
    begun_s = clock()
    shown_s = -_NEXT_LINE_S
    while True:
        try:
            left = missing()
        except Transient as error:  # the store is busy: looked at again until the time limit
            show(error.message)
            left = ()
        if left is None:
            return
        waited_s = clock() - begun_s
        what = _left(left, node)
        if waited_s >= limit_s:
            raise Transient(
                f"after {limit_s:g} s the destination is not complete: {what}",
                hint="Look at the log of that node. Started again, the job leaves what is there already; "
                f"to wait longer, give {option('wait')} in seconds.",
            )
        if waited_s - shown_s >= _NEXT_LINE_S:
            shown_s = waited_s
            show(f"waiting for the other nodes, {waited_s:.0f} of {limit_s:g} s: {what}")
        sleep(min(_POLL_S, max(0.1, limit_s - waited_s)))


def _left(ranks: Sequence[int], node: Node) -> str:
    if not ranks:
        return "its manifest is not there yet"
    owners = {node.owner(rank) for rank in ranks}
    nodes = f"node{'s' * (len(owners) > 1)} {written_ranks(owners)}"
    return f"rank{'s' * (len(ranks) > 1)} {written_ranks(ranks)} of {nodes} {'are' if len(ranks) > 1 else 'is'} missing"
