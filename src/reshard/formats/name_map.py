"""A name map: a JSON object that gives tensors new names, ``{"old": "new"}``."""

from __future__ import annotations

from .findings import Findings
from .strict_json import json_kind, parse_json_object, shown


def parse_name_map(data: bytes, where: str) -> dict[str, str]:
    """Parse a map from old tensor names to new ones.

    The conversion checks that the old names exist and the new ones differ: it knows the tensors. Raise FormatError
    for anything but strict JSON, and for entries that are not two names (all are listed).

    Source: MindSpore 2.10 ``ckpt_to_safetensors`` takes its ``name_map`` in this direction;
    ``load_distributed_checkpoint`` takes the opposite one, new name first.

    Examples
    --------
    >>> parse_name_map(b'{"embedding_weight": "model.embed_tokens.weight"}', "name_map.json")
    {'embedding_weight': 'model.embed_tokens.weight'}
    """
    names: dict[str, str] = {}
    findings = Findings()
    for old, new in parse_json_object(data, where).items():
        if old and isinstance(new, str) and new:
            names[old] = new
        elif not old:
            findings.add(f"new name {shown(new)}", "an old name", "an empty one")
        else:
            findings.add(f"tensor {shown(old)}", "a new name", "an empty one" if new == "" else json_kind(new))
    findings.raise_any("not a map of names", where=where, expected='{"old name": "new name", ...}')
    return names
