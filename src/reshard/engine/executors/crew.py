"""Crews: the processes that a leader has move the bytes of a run, on this machine or on others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol, TypeVar


class Member(Protocol):
    """One process that moves bytes, as its leader has it: messages go there and come from there."""

    @property
    def name(self) -> str:
        """What sets it apart from all others, for messages."""

    @property
    def host(self) -> str:
        """The machine that it is on."""

    def send(self, data: bytes) -> None:
        """Tell it something; raise OSError if it is gone."""

    def receive(self) -> bytes | None:
        """Return the next message that has arrived, None if there is none; raise EOFError once it is gone."""


AnyMember = TypeVar("AnyMember", bound=Member)


class Crew(Protocol[AnyMember]):
    """Processes that do the steps of runs, one run after another. Others may join while a run is under way."""

    @property
    def members(self) -> Sequence[AnyMember]:
        """Those that are at work."""

    @property
    def is_here(self) -> bool:
        """Whether its processes are on this machine, so that this one could do the work of a single one."""

    @property
    def second_try_s(self) -> float | None:
        """How long a step is under way before an idle member tries it too, at the least; None for never."""

    @property
    def grows(self) -> bool:
        """Whether another member may still join."""

    def ready(self, members: Collection[AnyMember], wait_s: float) -> Sequence[AnyMember]:
        """Return those members that have something to tell, or are gone; wait for one at most ``wait_s``."""

    def lose(self, member: AnyMember) -> str:
        """Give up a member that is gone; return in words how it ended."""

    def break_off(self, members: Collection[AnyMember]) -> None:
        """Have members break off what they do and end, and wait for that: nothing of theirs must arrive afterwards."""


AnyCrew = Crew[Any]
