"""Which of the ranks that own the same box writes it, when each box is to be stored once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...tensor import Box


def assign_writers(owners: Mapping[str, Mapping[Box, Sequence[int]]]) -> dict[tuple[str, Box], int]:
    """Deal the boxes of one pipeline stage out over its ranks, as MindSpore does to save without redundancy.

    For every set of ranks that share boxes, the tensors they share are dealt out in turn, in the
    order of their names; sizes are not looked at. A tensor of several stages is dealt out on each:
    a rank that loads asks the ranks of its own stage only.

    Parameters
    ----------
    owners
        Of each tensor, by box, the ranks that own it, ascending; at least one.

    Returns
    -------
    dict
        The one rank that writes each box of each tensor.

    Examples
    --------
    >>> whole = Box((0,), (4,))
    >>> writers = assign_writers({name: {whole: (0, 1)} for name in "abc"})
    >>> [writers[name, whole] for name in "abc"]
    [0, 1, 0]

    Source: mindspore 2.10.0, ``train/_utils.py``, ``remove_param_redundancy`` (keep_redundancy=1).
    Its groups of ranks are wrong for nested tensor maps, and empty for some optimizer shards of
    size -1; here they follow from the boxes, so that every box has a writer.
    """
    return {
        share: group[position % len(group)]
        for group, shares in _by_group(owners).items()
        for position, share in enumerate(shares)
    }


def _by_group(owners: Mapping[str, Mapping[Box, Sequence[int]]]) -> dict[tuple[int, ...], list[tuple[str, Box]]]:
    """Of each distinct set of ranks, what they all own, in the order of names."""
    groups: dict[tuple[int, ...], list[tuple[str, Box]]] = {}
    for name in sorted(owners):
        for box, ranks in owners[name].items():
            groups.setdefault(tuple(ranks), []).append((name, box))
    return groups
