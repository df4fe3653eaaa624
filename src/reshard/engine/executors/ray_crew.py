"""A crew of workers on the machines of a Ray cluster. The one module that imports Ray.

A worker is an actor that nothing restarts. Its leader asks it again and again what there is to tell, and brings along
what it has for the worker: messages are those of :mod:`.messages`, and no byte of a tensor is among them.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ...errors import ReshardError, UsageError, option
from ...storage.s3_client import package_version
from ...storage.variables import carried_variables, take_variables
from .child import attend
from .cluster import Machine, check_reach
from .messages import STOP

_ANSWER_S = 0.5
"""How long a worker waits for something to tell before it answers that there is nothing."""
_SILENCE_S = 60.0
"""A worker that answers nothing for so long is taken for dead."""
_START_S = 300.0
_LOOK_S = 5.0
_CONNECT_S = 10.0
_STOP_S = 12.0  # a little longer than a worker waits for its own requests in flight
_INTERPRETER_BYTES = 256 << 20
_LARGE_BYTES = 64 << 10
_SECOND_TRY_S = 5.0


class Worker:
    """What runs on a machine of the cluster: does steps in threads of its own, and answers its leader."""

    def __init__(self) -> None:
        self._received: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._told: deque[bytes] = deque()
        self._has_news = threading.Condition()
        self._thread = threading.Thread(target=self._attend, daemon=True, name="reshard-worker")

    def begin(self, variables: Mapping[str, str]) -> str:
        """Take the variables that stores are reached by, and be ready for work; return the version of reshard here."""
        take_variables(os.environ, variables)
        self._thread.start()
        return package_version()

    def exchange(self, *messages: bytes) -> list[bytes] | None:
        """Take messages of the leader, and return those for it, after waiting for one; None if all work has ended."""
        for message in messages:
            self._received.put(message)
        with self._has_news:
            self._has_news.wait_for(lambda: self._told or not self._thread.is_alive(), _ANSWER_S)
            if not self._told and not self._thread.is_alive():
                return None
            told = list(self._told)
            self._told.clear()
        return told

    def send_bytes(self, data: bytes, /) -> None:
        """Keep a message until the leader asks."""
        with self._has_news:
            self._told.append(data)
            self._has_news.notify()

    def recv_bytes(self) -> bytes:
        """Wait for a message of the leader."""
        return self._received.get()

    def _attend(self) -> None:
        attend(self)


@dataclass(slots=True, eq=False)
class RayMember:
    """A worker, as its leader has it: what was told but is not heard yet, what is to be told, and the open question."""

    name: str
    machine: Machine
    actor: Any
    asked: Any = None
    asked_s: float = field(default_factory=time.monotonic)
    gone: str = ""
    heard: deque[bytes] = field(default_factory=deque)
    unsent: list[Any] = field(default_factory=list)

    @property
    def host(self) -> str:
        """Its machine's name and the start of its id: two may have one name, as simulated ones do."""
        return f"{self.machine.host} ({self.machine.node_id[:6]})"

    def send(self, data: bytes) -> None:
        """Have the next question bring a message; raise OSError if the worker is gone."""
        if self.gone:
            raise OSError(self.gone)
        self.unsent.append(data)

    def receive(self) -> bytes | None:
        """Return the next message that was heard, None if there is none; raise EOFError once the worker is gone."""
        if self.heard:
            return self.heard.popleft()
        if self.gone:
            raise EOFError(self.gone)
        return None

    def ask(self) -> None:
        """Ask the worker what there is to tell, unless it is asked already."""
        if self.asked is None and not self.gone:
            self.asked, self.asked_s = self.actor.exchange.remote(*self.unsent), time.monotonic()
            self.unsent.clear()

    def hear(self) -> None:
        """Take the answer that has arrived."""
        asked, self.asked = self.asked, None
        try:
            answer = ray.get(asked)
        except RayError as error:
            self.gone = _first_line(error)
            return
        if answer is None:
            self.gone = "it has ended"
        else:
            self.heard.extend(answer)


class RayCrew:
    """Workers on the machines of a cluster; see :class:`~.crew.Crew`.

    Each machine has ``most`` workers at once, so that all together keep to its memory. For one that is lost another is
    started where there is room, now or once a machine joins.
    """

    is_here = False
    second_try_s = _SECOND_TRY_S

    def __init__(self, count: int, member_bytes: int, most: int) -> None:
        self.members: list[RayMember] = []
        self._starting: list[RayMember] = []
        self._count = count
        self._most = most
        self._memory_bytes = member_bytes + _INTERPRETER_BYTES
        self._starts_left = 4 * count  # a step may kill every worker that tries it
        self._numbers = itertools.count(1)
        self._looked_s = self._waiting_since_s = time.monotonic()
        self._put: tuple[bytes, Any] | None = None
        self.fill()

    @property
    def grows(self) -> bool:
        """Whether another worker is about to start, or may be."""
        return bool(self._starting) or self._starts_left > 0

    def fill(self) -> None:
        """Start workers where there is room, the fewest on each machine, until there are as many as there should be."""
        self._looked_s = time.monotonic()
        present = [*self.members, *self._starting]
        taken = Counter(member.machine.node_id for member in present)
        found = {machine.node_id: machine for machine in machines(self._memory_bytes)}
        for _ in range(min(self._count - len(present), self._starts_left)):
            room = [
                (taken[node_id], node_id)
                for node_id, machine in found.items()
                if taken[node_id] < min(self._most, machine.core_count)
            ]
            if not room:
                return
            node_id = min(room)[1]
            taken[node_id] += 1
            self._start(found[node_id])

    def _start(self, machine: Machine) -> None:
        self._starts_left -= 1
        actor = _WORKER.options(
            num_cpus=1,
            memory=self._memory_bytes,
            scheduling_strategy=NodeAffinitySchedulingStrategy(machine.node_id, soft=False),
        ).remote()
        member = RayMember(f"worker {next(self._numbers)} on {machine.address}", machine, actor)
        # As an argument of a method: what an actor is made of, and its environment, Ray writes down and shows.
        member.asked = actor.begin.remote(carried_variables(os.environ))
        self._starting.append(member)

    def ready(self, members: Collection[RayMember], wait_s: float) -> Sequence[RayMember]:
        """Return those members that have something to tell, or are gone; wait for one at most ``wait_s``."""
        self._grow()
        if not any(member.heard or member.gone for member in members):
            for member in members:
                self._put_large(member)
                member.ask()
            asked = {member.asked: member for member in (*members, *self._starting) if member.asked is not None}
            if asked:
                ray.wait(list(asked), num_returns=1, timeout=wait_s)
                found, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0)
                for each in found:
                    self._take(asked[each])
            else:
                time.sleep(wait_s)
            silent_since_s = time.monotonic() - _SILENCE_S
            for member in members:
                if member.asked is not None and member.asked_s < silent_since_s:
                    member.gone = f"it has not answered for {_SILENCE_S:.0f} s"
        return [member for member in members if member.heard or member.gone]

    def _take(self, member: RayMember) -> None:
        """Take the answer of a member, or that a new one has begun."""
        if member not in self._starting:
            member.hear()
            return
        self._starting.remove(member)
        try:
            version = ray.get(member.asked)
        except RayError as error:
            if "No module named" in str(error):
                raise ReshardError(
                    f"{member.name} cannot import reshard: {_first_line(error)}", hint=_INSTALL
                ) from error
            return  # the machine is gone, or has become too small: another may take its place
        finally:
            member.asked = None
        if version != (expected := package_version()):
            raise ReshardError(f"{member.name}: expected reshard {expected}, found {version}", hint=_INSTALL)
        self.members.append(member)

    def _grow(self) -> None:
        """Now and then, look for room for workers that are missing; raise ReshardError if not one has started."""
        now_s = time.monotonic()
        if self.members:
            self._waiting_since_s = now_s
        if len(self.members) + len(self._starting) < self._count and now_s - self._looked_s > _LOOK_S:
            self.fill()
        has_waited_long = now_s - self._waiting_since_s > _START_S
        if not self.members and (has_waited_long or not self.grows):
            raise ReshardError(
                f"no machine of the Ray cluster has room for a worker, of 1 CPU and {self._memory_bytes} bytes",
                hint=f"`ray status` shows what is in use. Lower {option('memory')}, or free machines.",
            )

    def _put_large(self, member: RayMember) -> None:
        """Have Ray carry a large message to each machine once, not to each worker."""
        for at, data in enumerate(member.unsent):
            if isinstance(data, bytes) and len(data) > _LARGE_BYTES:
                if self._put is None or self._put[0] is not data:
                    self._put = data, ray.put(data)
                member.unsent[at] = self._put[1]

    def lose(self, member: RayMember) -> str:
        """Give up a worker that is gone, and start another where there is room; return in words how it ended."""
        self.members.remove(member)
        ray.kill(member.actor)
        self.fill()
        return f"{member.name} is gone ({member.gone.rstrip('.')})"

    def break_off(self, members: Collection[RayMember]) -> None:
        """Have workers break off what they do and end, and wait for that."""
        members, deadline_s = list(members), time.monotonic() + _STOP_S
        for member in members:
            member.unsent = [STOP]
        while time.monotonic() < deadline_s and (left := [member for member in members if not member.gone]):
            for member in left:
                member.ask()
            found, _ = ray.wait([member.asked for member in left], num_returns=1, timeout=_ANSWER_S)
            for member in left:
                if member.asked in found:
                    member.hear()
        for member in members:
            ray.kill(member.actor)
            self.members.remove(member)

    def close(self) -> None:
        """End workers that have nothing to do."""
        for member in (*self.members, *self._starting):
            ray.kill(member.actor)
        self.members.clear()
        self._starting.clear()


_WORKER = ray.remote(max_restarts=0, max_task_retries=0)(Worker)
_INSTALL = "Install the same version on every machine: pip install 'reshard[ray]'."


@contextmanager
def started(address: str, urls: Sequence[str], count: int, member_bytes: int, most: int) -> Iterator[RayCrew]:
    """Provide a crew for the length of a block; see :class:`~.cluster.Cluster`."""
    with connected(address):
        check_reach(urls, machines())
        crew = RayCrew(count, member_bytes, most)
        try:
            yield crew
        finally:
            crew.close()


@dataclass(slots=True)
class _Connection:
    """That of this program, which several jobs of a batch may use at once; one that the caller has made stays."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    user_count: int = 0
    is_ours: bool = False


_CONNECTION = _Connection()


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect with a cluster for the length of a block, unless the program is connected already."""
    with _CONNECTION.lock:
        if not _CONNECTION.user_count:
            _CONNECTION.is_ours = not ray.is_initialized()
            if _CONNECTION.is_ours:
                _connect(address)
        _CONNECTION.user_count += 1
    try:
        yield
    finally:
        with _CONNECTION.lock:
            _CONNECTION.user_count -= 1
            if not _CONNECTION.user_count and _CONNECTION.is_ours:
                ray.shutdown()


def _connect(address: str) -> None:
    if address.startswith("ray://"):
        raise UsageError(
            f"{option('ray_address', address)} is for Ray Client, which is not supported",
            hint="Start the command on a machine of the cluster, by `ray job submit` for example.",
        )
    at_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _look_at(address)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, OSError, RuntimeError, ValueError, RayError) as error:
        raise UsageError(
            f"no Ray cluster at {option('ray_address', address)}: {_first_line(error)}",
            hint="Start one with `ray start --head`, and this command on one of its machines.",
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, at_sigterm)  # Ray takes it over


def _look_at(address: str) -> None:
    """Raise OSError if nothing answers at an address: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()


def machines(memory_bytes: int = 0) -> Sequence[Machine]:
    """Return the machines of the cluster that is connected with, those that have a CPU and so much memory."""
    found = []
    for node in ray.nodes():
        resources = node["Resources"]
        cores, memory = int(resources.get("CPU", 0)), int(resources.get("memory", 0))
        if node["Alive"] and cores and memory >= memory_bytes:
            host = node["NodeManagerHostname"]
            found.append(Machine(node["NodeID"], node["NodeManagerAddress"], host, cores, memory))
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
