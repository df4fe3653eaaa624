"""Descriptions of options, and readers of their values.

Each ``read_`` and ``parse_`` function takes text or Python's own value, and raises UsageError if it cannot read it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ..errors import UsageError, option

MOST_PROCESSES = 256
"""As many as plans may have. Help is shown without planning's rooms, so the number stands here too."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}
_MAX_RANKS_LENGTH = 1 << 20
_DURATION_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_PATIENCE_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_PAIRS = re.compile(r"\s*[A-Za-z_]\w*=[^,=/]*(?:,\s*[A-Za-z_]\w*=[^,=/]*)*")
_TRUTHS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
_NOTHING = frozenset({"", "none", "null"})


def read_text(value: object) -> str:
    """Read a text or a path."""
    if not isinstance(value, str | os.PathLike):
        raise UsageError("expected text")
    return str(os.fspath(value))


def is_nothing(value: object) -> bool:
    """Whether a value stands for an option that is not given, as in MindSpore's scripts and in YAML.

    Examples
    --------
    >>> [is_nothing(value) for value in (None, "", "None", "null", "0", 0, False)]
    [True, True, True, True, False, False, False]
    """
    return value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING)


def read_nullable(value: object) -> str | None:
    """Read a text; what :func:`is_nothing` means None."""
    return None if is_nothing(value) else read_text(value)


def read_texts(value: object) -> tuple[str, ...]:
    """Read several texts; a single one stands for itself.

    Examples
    --------
    >>> read_texts("a.*"), read_texts(["a", "b"])
    (('a.*',), ('a', 'b'))
    """
    if isinstance(value, Mapping):  # its keys alone would be taken
        raise UsageError("expected text, or a list of it")
    return (value,) if isinstance(value, str) else tuple(map(read_text, value))  # type: ignore[call-overload]


def read_truth(value: object) -> bool:
    """Read a truth value, as Python, YAML or a script has it.

    Examples
    --------
    >>> read_truth("yes"), read_truth("0"), read_truth(True)
    (True, False, True)
    """
    found = find_truth(value)
    if found is None:
        raise UsageError("expected True or False")
    return found


def find_truth(value: object) -> bool | None:
    """Return the truth value that a value is; None if it is none."""
    return _TRUTHS.get(str(value).strip().lower())


def read_integer(value: object) -> int:
    """Read an integer."""
    if isinstance(value, bool) or not re.fullmatch(r"[+-]?[0-9]{1,18}", str(value).strip()):
        raise UsageError("expected an integer")
    return int(str(value))


def read_process_count(value: object) -> int | None:
    """Read a number of processes; None for auto.

    Examples
    --------
    >>> read_process_count("4"), read_process_count("auto")
    (4, None)
    """
    if str(value).strip().lower() == "auto":
        return None
    try:
        count = read_integer(value)
    except UsageError:
        count = 0
    if not 1 <= count <= MOST_PROCESSES:
        raise UsageError(f"expected auto, or a number from 1 to {MOST_PROCESSES}")
    return count


def read_ratio(value: object) -> float:
    """Read a number, or a ratio as MindSpore Transformers documents LoRA scalings.

    Examples
    --------
    >>> read_ratio("16/8"), read_ratio(0.5)
    (2.0, 0.5)
    """
    above, slash, below = str(value).partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        raise UsageError("expected a number, or lora_alpha/lora_rank like 16/8") from None


def parse_size(value: object) -> int:
    """Read a number of bytes.

    Examples
    --------
    >>> parse_size("256MiB"), parse_size("2GB"), parse_size(17)
    (268435456, 2000000000, 17)
    """
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]+)?)\s*([KMG]?I?)B?\s*", str(value).upper())
    if not match or match[2] not in _UNITS:
        raise UsageError("expected bytes, or a number with KB, MB, GB, KiB, MiB or GiB, like 256MiB")
    nbytes = int(Decimal(match[1]) * _UNITS[match[2]])
    if not nbytes:
        raise UsageError("expected at least one byte")
    return nbytes


def parse_rate(rate: str | float) -> float:
    """Read bytes a second.

    Examples
    --------
    >>> parse_rate("1GB/s"), parse_rate("25 Gbit/s"), parse_rate("512MiB/s"), parse_rate(2e9)
    (1000000000.0, 3125000000.0, 536870912.0, 2000000000.0)
    """
    match = re.fullmatch(
        r"\s*([0-9]{1,18}(?:\.[0-9]+)?(?:e[+]?[0-9]{1,2})?)\s*([KMGT]?i?)(B|bit)?(?:/s|ps)?\s*",
        str(rate),
        re.IGNORECASE,
    )
    if not match or match[2].upper() not in _UNITS or not float(match[1]):
        raise UsageError("expected bytes or bits a second, like 1GB/s, 500MiB/s or 25Gbit/s")
    if isinstance(rate, str) and not match[3]:
        unit = match[2] or "M"
        raise UsageError("the unit is missing", hint=f"Write {match[1]}{unit}B/s or {match[1]}{unit}bit/s.")
    bits = 8 if (match[3] or "").lower() == "bit" else 1
    return float(match[1]) * _UNITS[match[2].upper()] / bits


def parse_duration(duration: str | float) -> float:
    """Read seconds.

    Examples
    --------
    >>> parse_duration("20ms"), parse_duration("0.5 s"), parse_duration(0)
    (0.02, 0.5, 0.0)
    """
    match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]+)?)\s*(us|ms|s)?\s*", str(duration))
    if not match:
        raise UsageError("expected a number with us, ms or s, like 20ms")
    if isinstance(duration, str) and not match[2] and float(match[1]):
        raise UsageError("the unit is missing", hint=f"Write {match[1]}ms or {match[1]}s.")
    return float(match[1]) * _DURATION_UNITS[match[2] or "s"]


def parse_patience(duration: object) -> float:
    """Read seconds, minutes or hours.

    Examples
    --------
    >>> parse_patience("15min"), parse_patience("1.5 h"), parse_patience("0s"), parse_patience(30)
    (900.0, 5400.0, 0.0, 30.0)
    """
    match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]+)?)\s*(s|min|h)?\s*", str(duration))
    if not match:
        raise UsageError("expected a number with s, min or h, like 15min")
    if isinstance(duration, str) and not match[2] and float(match[1]):
        raise UsageError("the unit is missing", hint=f"Write {match[1]}s or {match[1]}min.")
    return float(match[1]) * _PATIENCE_UNITS[match[2] or "s"]


def read_ranks(value: object) -> tuple[range, ...]:
    """Read ranks, as text or as numbers; how many ranks there are is not known yet.

    Examples
    --------
    >>> read_ranks("0-7,16"), read_ranks([3])
    ((range(0, 8), range(16, 17)), (range(3, 4),))
    """
    if isinstance(value, str) and len(value) > _MAX_RANKS_LENGTH:
        raise UsageError(f"expected at most {_MAX_RANKS_LENGTH} characters")
    spans = []
    for item in value.split(",") if isinstance(value, str) else map(str, value):  # type: ignore[call-overload]
        match = re.fullmatch(r"\s*([0-9]{1,9})(?:-([0-9]{1,9}))?\s*", item)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise UsageError("expected ranks and spans of ranks, like 0-7,16")
        spans.append(range(int(match[1]), int(match[2] or match[1]) + 1))
    if not spans:
        raise UsageError("expected at least one rank, like 0-7,16")
    return tuple(spans)


def read_pairs(value: object) -> dict[str, int | str]:
    """Read options of a family: a mapping, or texts ``NAME=VALUE``.

    Examples
    --------
    >>> read_pairs(["qkv_concat=true", "n=3"])
    {'qkv_concat': 'true', 'n': 3}
    """
    if isinstance(value, Mapping):
        return dict(value)
    found: dict[str, int | str] = {}
    for item in read_texts(value):
        name, equals, text = item.partition("=")
        if not name or not equals:
            raise UsageError("expected NAME=VALUE")
        found[name] = int(text) if text.isdecimal() and len(text) < 10 else text
    return found


def read_serving(value: object) -> dict[str, int]:
    """Read how many ranks serve a model: a mapping, or text.

    Examples
    --------
    >>> read_serving("tp=4,ep=4"), read_serving({"tp": 2})
    ({'tp': 4, 'ep': 4}, {'tp': 2})
    """
    pairs = read_pairs([item.strip() for item in value.split(",")] if isinstance(value, str) else value)
    wrong = [name for name, count in pairs.items() if name not in ("tp", "ep") or type(count) is not int or count < 1]
    if wrong or "tp" not in pairs:
        raise UsageError("expected tp=N or tp=N,ep=N, numbers of ranks")
    return {name: int(count) for name, count in pairs.items()}


def read_document(value: object) -> Any:
    """Read a mapping, or the URL of a JSON object that holds it."""
    return dict(value) if isinstance(value, Mapping) else read_text(value)


def read_config(value: object) -> Any:
    """Read the content of config.json: its URL, a mapping, or keys and values like ``num_attention_heads=32``.

    Examples
    --------
    >>> read_config("num_attention_heads=32,tie_word_embeddings=true"), read_config("s3://a/config.json")
    ({'num_attention_heads': 32, 'tie_word_embeddings': True}, 's3://a/config.json')
    """
    if not isinstance(value, str) or not _PAIRS.fullmatch(value):
        return read_document(value)
    pairs = read_pairs([item.strip() for item in value.split(",")])
    truths = {"true": True, "false": False}  # as JSON has them: other words are texts there
    return {name: truths.get(text, text) if isinstance(text, str) else text for name, text in pairs.items()}


@dataclass(frozen=True, slots=True)
class OptionField:
    """Description of one option, and the reader of its values.

    The help is one sentence, which may mark other options with :func:`reshard.errors.option`; ``group`` is its heading
    there. ``default`` says in words what applies when the option is not given. An option that is no integer has no
    ``least``. ``flags`` are spellings on the command line, by default that of the name.
    """

    help: str
    metavar: str = ""
    group: str = ""
    default: str = ""
    read: Callable[[Any], Any] = read_text
    choices: tuple[str, ...] = ()
    least: int | None = None
    flags: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return repr(self.help)  # signatures show it

    def parse(self, name: str, value: object) -> Any:
        """Return what a value means; UsageError if it means nothing here."""
        try:
            found = self.read(value) if self.least is None else read_integer(value)
            if found is not None and self.choices and found not in self.choices:
                raise UsageError(f"expected {', '.join(self.choices[:-1])} or {self.choices[-1]}")
            if self.least is not None and found < self.least:
                raise UsageError(f"expected at least {self.least}")
        except UsageError as error:
            raise UsageError(f"{option(name, value)}: {error.marked_message}", hint=error.marked_hint) from None
        except TypeError:
            raise UsageError(f"{option(name, value)}: expected text, or a list of it") from None
        return found
