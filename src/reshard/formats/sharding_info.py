"""What ``torch.distributed.checkpoint`` adds to safetensors: which box of its tensor each stored one is.

``__metadata__`` has ``DCP_SHARDING_INFO``, JSON as text: ``{"w": {"saved_offsets": [4, 0]}}``. The shape of the whole
tensor is stored nowhere: it is where the farthest piece ends.

Source: ``hf_storage.py`` and ``_hf_utils.py`` of ``torch.distributed.checkpoint`` in torch 2.13.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..tensor import Shape
from .findings import Findings
from .safetensors import MAX_AXIS_COUNT
from .strict_json import parse_json_object, shown

SHARDING_KEY = "DCP_SHARDING_INFO"
"""The key of the metadata under which the offsets are."""

VERSION_KEY, VERSION = "DCP_VERSION", "1.0"
"""The key and the value of the version of this form."""

SHARDING_METADATA = frozenset({SHARDING_KEY, VERSION_KEY})
"""All keys of the metadata that are about pieces."""

_NAME = re.compile(r"shard-(\d{1,9})-model-(\d{1,9})-of-(\d{1,9})\.safetensors")
_MAX_COUNT = 2**63


@dataclass(frozen=True, slots=True)
class ShardName:
    """The name of an object as torch makes it: ranks and files are counted from 1.

    Examples
    --------
    >>> str(ShardName(2, 1, 3)), ShardName.parse("shard-00002-model-00001-of-00003.safetensors")
    ('shard-00002-model-00001-of-00003.safetensors', ShardName(rank=2, file=1, count=3))
    """

    rank: int
    file: int
    count: int

    def __str__(self) -> str:
        return f"shard-{self.rank:05}-model-{self.file:05}-of-{self.count:05}.safetensors"

    @classmethod
    def parse(cls, name: str) -> ShardName | None:
        """Return the parts of a name; None for other names."""
        match = _NAME.fullmatch(name)
        return cls(*map(int, match.groups())) if match else None


def parse_sharding_info(text: str, where: str) -> dict[str, Shape]:
    """Return the first element of each stored tensor within its whole tensor, by name.

    Raise FormatError that lists all entries which are not of that form.

    Examples
    --------
    >>> parse_sharding_info('{"w": {"saved_offsets": [4, 0]}}', "m.safetensors")
    {'w': (4, 0)}
    """
    findings = Findings()
    offsets: dict[str, Shape] = {}
    for name, entry in parse_json_object(text.encode("utf-8", "surrogatepass"), f"{where}: {SHARDING_KEY}").items():
        value = entry.get("saved_offsets") if isinstance(entry, dict) else None
        if isinstance(value, list) and len(value) <= MAX_AXIS_COUNT and all(map(_is_offset, value)):
            offsets[name] = tuple(value)
        else:
            findings.add(f"tensor {shown(name)}", "saved_offsets of integers >= 0", shown(entry))
    findings.raise_any(f"offsets of pieces in {SHARDING_KEY}", where=where, expected="one for each axis")
    return offsets


def encode_sharding_info(offsets: Mapping[str, Shape]) -> str:
    """Write the offsets of an object's tensors as :func:`parse_sharding_info` reads them."""
    return json.dumps({name: {"saved_offsets": list(start)} for name, start in offsets.items()})


def _is_offset(value: object) -> bool:
    return type(value) is int and 0 <= value < _MAX_COUNT
