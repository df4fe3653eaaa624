"""Everything that is wrong with one document, gathered so that one error reports it all."""

from __future__ import annotations

from ..errors import FormatError

_KEPT_COUNT = 10_000


class Findings:
    """The problems of one document: all are counted, the first 10 000 are kept.

    A hostile document can hold millions of problems; the bound keeps what they cost in memory small.
    """

    def __init__(self) -> None:
        self.count = 0
        self.kept: list[str] = []

    def add(self, place: str, expected: str, found: str) -> None:
        """Record one problem."""
        self.count += 1
        if self.count <= _KEPT_COUNT:
            self.kept.append(f"{place}: expected {expected}, found {found}")

    def raise_any(self, what: str, *, where: str = "", expected: str, hint: str = "") -> None:
        """Raise one FormatError that lists the problems, if there are any."""
        if self.count:
            found = f"{self.count} problem{'s' * (self.count > 1)}"
            raise FormatError(what, where=where, expected=expected, found=found, hint=hint, problems=self.kept)
