"""A name map: a JSON object that gives tensors new names, ``{"old": "new"}``."""

from __future__ import annotations

from ..errors import FormatError
from .strict_json import json_kind, parse_json_object, shown


def parse_name_map(data: bytes, where: str) -> dict[str, str]:
    """Parse a map from old tensor names to new ones.

    The conversion checks that the old names exist and the new ones differ: it knows the tensors.

    Source: MindSpore 2.10 ``ckpt_to_safetensors`` takes its ``name_map`` in this direction;
    ``load_distributed_checkpoint`` takes the opposite one, new name first.

    Raises
    ------
    FormatError
        Not strict JSON, or entries that are not two names (all are listed).

    Examples
    --------
    >>> parse_name_map(b'{"embedding_weight": "model.embed_tokens.weight"}', "name_map.json")
    {'embedding_weight': 'model.embed_tokens.weight'}
    """
    document = parse_json_object(data, where)
    names = {old: new for old, new in document.items() if isinstance(new, str) and old and new}
    problems = [_problem(old, new) for old, new in document.items() if old not in names]
    if problems:
        expected, found = '{"old name": "new name", ...}', f"{len(problems)} other entries"
        raise FormatError("not a map of names", where=where, expected=expected, found=found, problems=problems)
    return names


def _problem(old: str, new: object) -> str:
    if not old:
        return f"new name {shown(new)}: expected an old name, found an empty one"
    found = json_kind(new) if not isinstance(new, str) else "an empty one"
    return f"tensor {shown(old)}: expected a new name, found {found}"
