"""How the command that runs spells options in what it shows: errors, hints, notes and events."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from ..errors import ReshardError, write_options

Spell = Callable[[str, str | None], str]


def as_flag(name: str, value: str | None) -> str:
    """Spell an option as a flag.

    Examples
    --------
    >>> print(as_flag("dst_layout", "l.yaml"), as_flag("drop", "adam_*"))
    --dst-layout l.yaml --drop 'adam_*'
    """
    return with_value(f"--{name.replace('_', '-')}", value)


def with_value(flag: str, value: str | None) -> str:
    """Write a flag with its value, if it has one, as a shell takes it."""
    return flag if value is None else f"{flag} {shlex.quote(value)}"


class _Spelling:
    """What is used in this process; one command runs at a time."""

    spell: Spell = staticmethod(as_flag)


def spell_by(spell: Spell) -> None:
    """Spell options as a command does, from now on."""
    _Spelling.spell = staticmethod(spell)


def spelled(text: str) -> str:
    """Spell the options that a text marks."""
    return write_options(text, _Spelling.spell)


def spelled_error(error: ReshardError) -> str:
    """Write an error for people, as the command that runs spells options."""
    return error.text(_Spelling.spell)
