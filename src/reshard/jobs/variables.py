"""Variables in job files: ``${NAME}``, ``${NAME:-default}``, ``${job}``, ``${matrix.KEY}``, and ``$$``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError

_VARIABLE = re.compile(r"\$(?:\$|\{([^{}]*)\})")
_REFERENCE = re.compile(r"(matrix\.)?([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Variables:
    """What the variables of one job stand for; ``used`` collects the keys of the matrix that were asked for."""

    job: str
    matrix: Mapping[str, Any]
    environment: Mapping[str, str]
    used: set[str] = field(default_factory=set)

    def replaced_in(self, value: Any) -> Any:
        """Replace variables in a text, or in all texts of a list or a mapping; raise UsageError for unknown ones.

        Examples
        --------
        >>> Variables("a", {}, {"HOME": "/root"}).replaced_in(["${HOME}/${job}", "${NAME:-x}", "$$", 3])
        ['/root/a', 'x', '$', 3]
        """
        if isinstance(value, list):
            return [self.replaced_in(each) for each in value]
        if isinstance(value, dict):
            return {key: self.replaced_in(each) for key, each in value.items()}
        return _VARIABLE.sub(self._value, value) if isinstance(value, str) else value

    def _value(self, match: re.Match[str]) -> str:
        if match[1] is None:
            return "$"
        reference = _REFERENCE.fullmatch(match[1])
        if reference is None:
            raise UsageError(f"{match[0]}: expected ${{NAME}}, ${{NAME:-default}} or ${{matrix.KEY}}")
        is_matrix, name, default = reference.groups()
        self.used.update([name] if is_matrix else [])
        known = self.matrix if is_matrix else {"job": self.job} if name == "job" else self.environment
        if name in known:
            return str(known[name])
        if default is None:
            what = "the matrix has no such key" if is_matrix else "this variable is not in the environment"
            raise UsageError(f"{match[0]}: {what}")
        return str(default)
