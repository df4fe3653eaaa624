"""JSON of other writers, parsed so strictly that no two readers could understand it differently."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections import Counter
from functools import partial

from ..errors import FormatError

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_KINDS = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}

# Values from hostile objects go into messages: what comes out must be short, and so must the work.
_SHOWN_CHARACTERS = 120
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _SHOWN_CHARACTERS
_REPR.maxlist = _REPR.maxdict = _REPR.maxtuple = 8
_REPR.maxlevel = 2

# What parsed values take at most, in bytes, by the characters that begin or divide them: an object, an array, a member,
# one more value, half of a string. Dense text takes forty times its length.
_VALUE_BYTES = {b"{": 72, b"[": 96, b":": 128, b",": 16, b'"': 26}
_MEMORY_PER_BYTE = 10
_MEMORY_BASE_BYTES = 64 << 20


def shown(value: object) -> str:
    """Write a value of unknown size on one short line, for a message."""
    text = _REPR.repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def json_kind(value: object) -> str:
    """Name the JSON type of a parsed value, with its article: "an object", "a number"."""
    return _KINDS.get(type(value), "a number")


def parse_json_object(data: bytes, where: str, *, first_byte: int = 0) -> dict[str, object]:
    """Parse UTF-8 bytes that must be one JSON object and nothing else.

    Refused, though many parsers accept them: repeated keys at any level, NaN and infinities (spelled
    out or by overflow), unpaired surrogates, a byte order mark, integers of thousands of digits, and text so dense that
    its values could take more memory than ten times its length and 64 MiB.

    Errors name the text ``where``; their byte offsets count from the start of the object in which ``data`` begins at
    ``first_byte``. Strings of the result can be encoded, and its floats are finite.

    Examples
    --------
    >>> parse_json_object(b'{"a": 1, "a": 2}', "index")
    Traceback (most recent call last):
    ...
    reshard.errors.FormatError: index: repeated keys: expected unique keys in every object, found 1 repeated
      - 'a'
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        place, found = f"{where}, byte {first_byte + error.start}", shown(data[error.start : error.start + 4])
        raise FormatError("not text", where=place, expected="UTF-8", found=found) from error
    _check_density(data, where)
    repeated: list[str] = []
    try:
        value = _load(text, repeated)
    except json.JSONDecodeError as error:
        rest = text[error.pos : error.pos + 20]
        raise FormatError(
            f"invalid JSON ({error.msg})",
            where=f"{where}, byte {first_byte + len(text[: error.pos].encode('utf-8'))}",
            expected="one JSON object and nothing after it",
            found=shown(rest) if rest else "the end",
        ) from error
    except RecursionError as error:
        raise FormatError("nested too deeply", where=where, expected="a few levels", found="hundreds") from error
    except UnicodeEncodeError as error:
        found = shown(error.object[max(0, error.start - 20) : error.end + 20])
        raise FormatError(
            "unpaired surrogate", where=where, expected="text that UTF-8 can encode", found=found
        ) from error
    except ValueError as error:
        expected = "finite numbers of at most 4300 digits"
        raise FormatError("number out of bounds", where=where, expected=expected, found=str(error)) from error
    if repeated:
        expected, found = "unique keys in every object", f"{len(repeated)} repeated"
        raise FormatError("repeated keys", where=where, expected=expected, found=found, problems=repeated)
    if not isinstance(value, dict):
        raise FormatError("wrong top level", where=where, expected="an object", found=json_kind(value))
    return value


def _check_density(data: bytes, where: str) -> None:
    """Refuse text whose values could take too much memory, before any is made."""
    most = _MEMORY_PER_BYTE * len(data) + _MEMORY_BASE_BYTES
    if len(data) * max(_VALUE_BYTES.values()) <= most:
        return
    needed = sum(data.count(mark) * nbytes for mark, nbytes in _VALUE_BYTES.items())
    if needed > most:
        expected, found = f"values that take at most {most >> 20} MiB", f"up to {needed >> 20} MiB"
        raise FormatError(f"too many values for {len(data)} bytes", where=where, expected=expected, found=found)


def _load(text: str, repeated: list[str]) -> object:
    value: object = json.loads(
        text,
        object_pairs_hook=partial(_unique, repeated),
        parse_constant=_refuse_constant,
        parse_float=_finite,
    )
    if _SURROGATE_ESCAPE.search(text):
        # Proper pairs have become one character by now; only an unpaired surrogate fails to encode.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _unique(repeated: list[str], pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        repeated.extend(shown(key) for key, count in counts.items() if count > 1)
    return unique


def _refuse_constant(literal: str) -> object:
    raise ValueError(literal)


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(shown(literal))
    return number
