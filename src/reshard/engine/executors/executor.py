"""Executors move the bytes of steps; sinks take the parts that these fill."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from ...planning.plan import Plan
from ...planning.steps.steps import CopiedPart, StreamedPart

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)
StepId = tuple[int, int]
"""A group of a plan and the number of a step in it."""


class PartSink(Protocol[Result_co]):
    """Takes the parts of a plan's outputs: sends them to a store, or compares them with an object there.

    Methods may be called from any thread, and for any part alone.
    """

    def keys(self, output: int) -> Sequence[str]:
        """Return the keys of an output that take its parts; each takes every part once."""

    def stream(self, key: str, part: StreamedPart, data: memoryview, scratch: memoryview) -> Result_co:
        """Take one part as bytes, valid until this returns; ``scratch`` is a read's length of memory to use."""

    def copy(self, key: str, part: CopiedPart) -> Result_co:
        """Take one part whose bytes the target's store copies."""


class Executor(Protocol):
    """Turns steps into results, in whatever order, process or machine. It knows of steps and parts, not of a run."""

    def run(self, plan: Plan, sink: PartSink[Result], steps: Iterable[StepId]) -> Iterator[Result]:
        """Hand every part of some steps to the sink, and yield the results as they come.

        Steps are any of the plan's, started in this order. Raise the first failure; other steps may be half done.
        """
