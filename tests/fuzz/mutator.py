"""Changes bytes at random: bytes, numbers, tokens of text formats, and parts of other inputs."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import yaml

_TOKEN = re.compile(rb'"(?:[^"\\\n]|\\.)*"|-?[0-9]+(?:\.[0-9]+)?|[A-Za-z_]+|[^\sA-Za-z0-9_]')
_DIGITS = re.compile(rb"[0-9]+")
_NUMBERS = (
    *(b"0", b"1", b"-1", b"2", b"3", b"7", b"8", b"64", b"65", b"255", b"256", b"4096", b"131072", b"1000000"),
    *(b"2147483647", b"4294967296", b"9223372036854775807", b"9223372036854775808", b"18446744073709551616"),
    *(b"1" + b"0" * 400, b"9" * 5000, b"1e309", b"1e-400", b"-0", b"0.5", b"NaN", b"Infinity", b"0x10", b"1_0"),
)
_TEXTS = (
    *(b"null", b"true", b"false", b"[]", b"{}", b'""', b'"*"', b"~", b"[[]]", b'{"":{}}', b'"\\ud800"', b'"\\u0000"'),
    *(
        b'"../x"',
        b'"/etc/passwd"',
        b'"a/../b"',
        b'".hidden"',
        b'"s3://other/x"',
        b'"\\u001b[31m"',
        b'"' + b"n" * 5000 + b'"',
    ),
    *(b"&a", b"*a", b"<<: *a", b"!!python/object:os.system", b"- ", b"\n", b"\t", b"#", b"|", b"${HOME}", b"$$"),
    *(b"\xff", b"\xc3\x28", b"\xef\xbb\xbf", b"\x80" * 12, b"\x00", b"\x1b]0;x\x07", b"[" * 200, b"{" * 50, b"(" * 60),
)
_BYTES = (0, 1, 0x7F, 0x80, 0xFF, 8, 10, 16, 18, 26, 32)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 8, 65, 2**31, 2**53, 2**63 - 1, 2**63, 10**30, 0.5, 1e300, "", "*", "F32"),
    *(
        "../x",
        "/x",
        ".hidden",
        "a/b",
        "s3://other/x",
        "\x1b[31m",
        "n" * 5000,
        "\u202e",
        [],
        {},
        [[]],
        [0] * 100,
        {"": {}},
    ),
)
_LARGEST = 1 << 16


class Mutator:
    """Makes inputs from seeds; equal seeds of randomness give equal inputs."""

    def __init__(self, seeds: Sequence[bytes], seed: int) -> None:
        self.seeds = list(seeds) or [b""]
        self.pool = list(self.seeds)
        self._as_json = {data: text for data in self.seeds if (text := _json_of(data))}
        self._random = random.Random(seed)
        self._changes: tuple[Callable[[bytes], bytes], ...] = (
            self._flip,
            self._bytes,
            self._erase,
            self._repeat,
            self._number,
            self._token,
            self._token,
            self._token,
            self._swap,
            self._splice,
            self._length,
        )

    def make(self) -> bytes:
        """Make one input."""
        data = self._random.choice(self.pool if self._random.random() < 0.4 else self.seeds)
        # Most inputs should get past the syntax, to where values are read.
        if self._random.random() < 0.5 and (changed := self._json(data)) is not None:
            return changed[:_LARGEST]
        for _ in range(1 + min(7, int(self._random.expovariate(1.0)))):
            data = self._random.choice(self._changes)(data)
        return data[:_LARGEST]

    def _json(self, data: bytes) -> bytes | None:
        """Change values of a JSON document, also of one behind the length of a binary header."""
        data = self._as_json.get(data, data)
        start = 0 if data[:1] in (b"{", b"[") else 8
        length = int.from_bytes(data[:8], "little") if start else len(data)
        try:
            document = json.loads(data[start : start + length])
        except (ValueError, RecursionError):
            return None
        if not isinstance(document, dict | list):
            return None
        for _ in range(1 + int(self._random.expovariate(1.0))):
            self._change(document)
        text = json.dumps(document).encode()
        return (len(text).to_bytes(8, "little") + text if start else text) + data[start + length :]

    def _change(self, document: Any) -> None:
        """Walk down a document at random, and change what is there."""
        inner = document
        while True:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not keys:
                return
            key = self._random.choice(keys)
            if isinstance(inner[key], dict | list) and inner[key] and self._random.random() < 0.8:
                inner = inner[key]
                continue
            break
        how = self._random.randrange(6)
        if how == 0:
            del inner[key]
        elif how == 1 and isinstance(inner, dict):
            inner[self._random.choice(("", "x", "../x", str(key) + "2", "a" * 5000))] = copy.deepcopy(inner[key])
        elif how == 1:
            inner.insert(key, copy.deepcopy(inner[key]))
        elif how == 2:
            other = self._random.choice(keys)
            inner[key], inner[other] = inner[other], inner[key]
        elif how == 3 and type(inner[key]) is int:
            inner[key] += self._random.choice((-1, 1, 8, -8))
        else:
            inner[key] = copy.deepcopy(self._random.choice(_VALUES))

    def _place(self, data: bytes) -> int:
        return self._random.randrange(len(data) + 1)

    def _flip(self, data: bytes) -> bytes:
        if not data:
            return b"\0"
        changed, place = bytearray(data), self._random.randrange(len(data))
        changed[place] ^= 1 << self._random.randrange(8)
        return bytes(changed)

    def _bytes(self, data: bytes) -> bytes:
        place, count = self._place(data), self._random.randrange(1, 5)
        new = bytes(self._random.choice(_BYTES) for _ in range(count))
        return data[:place] + new + data[place + self._random.choice((0, count)) :]

    def _erase(self, data: bytes) -> bytes:
        start = self._place(data)
        return data[:start] + data[start + self._random.randrange(1, max(2, len(data) // 4)) :]

    def _repeat(self, data: bytes) -> bytes:
        start = self._place(data)
        piece = data[start : start + self._random.randrange(1, 64)]
        return data[:start] + piece * self._random.choice((2, 2, 3, 50)) + data[start:]

    def _found(self, pattern: re.Pattern[bytes], data: bytes) -> re.Match[bytes] | None:
        """Find a match at random, without looking for all of them; tokens begin where words do, mostly."""
        start = data.find(b" ", self._place(data)) if self._random.random() < 0.2 else self._place(data)
        return pattern.search(data, max(0, start)) or pattern.search(data)

    def _number(self, data: bytes) -> bytes:
        chosen = self._found(_DIGITS, data)
        if chosen is None:
            return self._token(data)
        return data[: chosen.start()] + self._random.choice(_NUMBERS) + data[chosen.end() :]

    def _token(self, data: bytes) -> bytes:
        chosen, other = self._found(_TOKEN, data), self._found(_TOKEN, data)
        if chosen is None or other is None:
            return data + self._random.choice(_TEXTS)
        new = self._random.choice((other[0], b"", self._random.choice(_TEXTS), self._random.choice(_NUMBERS)))
        return data[: chosen.start()] + new + data[chosen.end() :]

    def _swap(self, data: bytes) -> bytes:
        first, second, third = sorted(self._place(data) for _ in range(3))
        return data[:first] + data[second:third] + data[first:second] + data[third:]

    def _splice(self, data: bytes) -> bytes:
        other = self._random.choice(self.pool)
        return data[: self._place(data)] + other[self._place(other) :]

    def _length(self, data: bytes) -> bytes:
        """Change a little-endian number or a length byte near the start, as binary headers have them."""
        if len(data) < 8:
            return data + bytes(8)
        value = self._random.choice((0, 1, len(data), len(data) - 8, 2**31, 2**63, 2**64 - 1))
        return value.to_bytes(8, "little") + data[8:]


def _json_of(data: bytes) -> bytes | None:
    """Return a YAML mapping as JSON, which is YAML too."""
    try:
        document = yaml.safe_load(data)
        return json.dumps(document).encode() if isinstance(document, dict) else None
    except (yaml.YAMLError, TypeError, UnicodeError):
        return None
