"""Which keys reshard writes below a target: what a manifest names besides was not written by it."""

from __future__ import annotations

import re

from ...formats.weight_index import relative_key_problem
from . import is_checkpoint_object

_COMPANIONS = ("config.json", "generation_config.json", "preprocessor_config.json", "chat_template.jinja")
_TOKENIZER = ("tokenizer", "special_tokens_map", "vocab", "merges", "added_tokens", "spiece", "chat_template")
_ENDS = (".json", ".txt", ".model", ".jinja")
_DOCUMENTS = re.compile(r"(iteration_\d+/)?(metadata|common)\.json|rank_\d+/meta\.json|[^/]+\.ckpt")
_CHUNK = re.compile(r"(.+/)?c(/\d+)*")


def is_companion(name: str) -> bool:
    """Return whether a small object beside a model's weights belongs to it: its config, and those of its tokenizer.

    Examples
    --------
    >>> is_companion("tokenizer_config.json"), is_companion("train.py"), is_companion("tokenizer/../x.json")
    (True, False, False)
    """
    return "/" not in name and (name in _COMPANIONS or (name.startswith(_TOKENIZER) and name.endswith(_ENDS)))


def has_hidden_step(key: str) -> bool:
    """Return whether a step of a key begins with a dot: tools and people do not see such objects.

    Examples
    --------
    >>> has_hidden_step("rank_0/.ssh/a"), has_hidden_step("rank_0/a.ckpt")
    (True, False)
    """
    return any(step.startswith(".") for step in key.split("/"))


def is_written_key(key: str) -> bool:
    """Return whether a target of any kind writes objects of such keys, relative to it.

    Examples
    --------
    >>> [is_written_key(key) for key in ("rank_3/a.ckpt", "w/c/0/1", "config.json", "train.py", "../a.safetensors")]
    [True, True, True, False, False]
    """
    if relative_key_problem(key) or has_hidden_step(key):
        return False
    return is_checkpoint_object(key) or is_companion(key) or bool(_DOCUMENTS.fullmatch(key) or _CHUNK.fullmatch(key))
