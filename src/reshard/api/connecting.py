"""How a statement reaches its stores: how long it waits for them, and that it tells of the wait."""

from __future__ import annotations

from contextlib import AbstractContextManager

from ..engine.events import Answered, Listener, Waiting, ignore
from ..storage import Outage, RetryPolicy, shared_connections
from .request import Request


def connecting(request: Request, on_event: Listener = ignore) -> AbstractContextManager[None]:
    """Share connections for the length of a block, and wait for stores as a request says."""

    def on_outage(outage: Outage | None) -> None:
        on_event(Waiting(outage.seconds, outage.reason) if outage else Answered())

    policy = None if request.give_up_after is None else RetryPolicy.patient_for(request.give_up_after)
    return shared_connections(policy, None if on_event is ignore else on_outage)
