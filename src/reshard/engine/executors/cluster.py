"""A Ray cluster as a request names it. Ray itself is imported when the cluster is asked for something."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import UsageError, option, raise_all
from ...storage import opens_anywhere, provider_name

if TYPE_CHECKING:
    from .ray_crew import RayCrew

_LOCAL = "local"
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Machine:
    """One node of a cluster that can take workers; the memory is what Ray gives out, in bytes."""

    node_id: str
    address: str
    host: str
    core_count: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray cluster, and the memory in bytes that buffers may take on each of its machines."""

    address: str
    machine_bytes: int

    def machines(self, urls: Sequence[str]) -> Sequence[Machine]:
        """Return the machines that can move bytes between places.

        Raise UsageError if Ray is not installed here, if there is no cluster, and if its machines do not reach a place.
        """
        ray = _ray_crew()
        with ray.connected(self.address):
            found: Sequence[Machine] = ray.machines()
        check_reach(urls, found)
        if not found:
            raise UsageError("no machine of the Ray cluster has a CPU for a worker", hint="Look at `ray status`.")
        return found

    def wait_for(self, count: int, wait_s: float) -> int:
        """Wait until a cluster that is being started has so many machines for workers; return how many there are."""
        ray, deadline_s, found = _ray_crew(), time.monotonic() + wait_s, 0
        while found < count and time.monotonic() < deadline_s:
            time.sleep(_LOOK_S)
            with suppress(UsageError), ray.connected(self.address):
                while (found := len(ray.machines())) < count and time.monotonic() < deadline_s:
                    time.sleep(_LOOK_S)
        return found

    def crew(self, urls: Sequence[str], count: int, member_bytes: int) -> AbstractContextManager[RayCrew]:
        """Start so many workers, each of which has buffers of ``member_bytes``, for the length of a block.

        Errors are those of :meth:`machines`.
        """
        most = max(1, self.machine_bytes // member_bytes)
        crew: AbstractContextManager[RayCrew] = _ray_crew().started(self.address, urls, count, member_bytes, most)
        return crew


def check_reach(urls: Sequence[str], machines: Sequence[Machine]) -> None:
    """Refuse places that not every machine reaches."""
    is_one_machine = {machine.host for machine in machines} <= {socket.gethostname()}
    raise_all(
        UsageError,
        f"{option('engine', 'ray')} needs places that every machine of the cluster reaches",
        list(_unreached(urls, is_one_machine)),
        "Put the objects into a store, s3://... or obs://..., or convert on this machine alone.",
    )


def _unreached(urls: Sequence[str], is_one_machine: bool) -> Iterator[str]:
    for url in urls:
        if not opens_anywhere(url):
            yield f"{url} is in the memory of one process"
        elif not is_one_machine and provider_name(url) == _LOCAL:
            yield f"{url} is a path of this machine"


def _ray_crew() -> Any:
    try:
        from . import ray_crew
    except ImportError as error:
        if error.name != "ray":
            raise
        raise UsageError(
            f"{option('engine', 'ray')} needs Ray, which is not installed here",
            hint="Install it on every machine: pip install 'reshard[ray]'.",
        ) from error
    return ray_crew
