"""The pipeline stage of every layer, as networks distribute them."""

from __future__ import annotations

from typing import cast

from ..errors import StrategyError, raise_all
from .parallel_config import ParallelConfig
from .parallel_rules import StageRules

_Chunks = tuple[tuple[int, ...], ...]


def layer_stages(layer_count: int, parallel: ParallelConfig, rules: StageRules) -> tuple[int, ...]:
    """Return the pipeline stage of every layer, those for multi-token prediction included if the network counts them.

    Rules are ``legacy``: networks of MindSpore Transformers with ``use_legacy``; ``mcore``: its newer networks, which
    refuse empty stages in the middle; ``even``: as vLLM, unless there is an offset.

    Raises
    ------
    StrategyError
        The offset does not fit the layers, or a stage that must not is empty.

    Examples
    --------
    >>> layer_stages(7, ParallelConfig(pp=2, offset=(1, 0)), "legacy")
    (0, 0, 0, 0, 1, 1, 1)
    >>> two_chunks = ParallelConfig(pp=2, pipeline_interleave=True, pp_interleave_num=2)
    >>> layer_stages(8, two_chunks, "mcore")
    (0, 0, 1, 1, 0, 0, 1, 1)
    >>> layer_stages(6, ParallelConfig(pp=4), "even")
    (0, 1, 1, 2, 2, 3)

    Source: MindSpore Transformers 1.6.0 and 1.8.0, ``LayerSetting``; vLLM 0.9, ``get_pp_indices``.
    """
    pp = parallel.pp
    if rules == "even" and parallel.offset == 0:
        # The remainder goes to the stages before the last, from the back: vLLM spares those with embedding and head.
        row = [layer_count // pp] * pp
        for place in range(layer_count % pp):
            row[-(place + 2)] += 1
        counts: _Chunks = (tuple(row),)
    elif rules == "mcore" and pp * parallel.chunk_count == 1:
        counts = ((layer_count,),)
    else:
        counts = _offset_counts(layer_count, parallel)
    mirrored = parallel.zero_bubble_v and rules == "mcore"
    if mirrored:
        counts = (counts[0], counts[1][::-1])
    if rules == "mcore":  # the newer networks accept no empty stage but the very first and the very last
        flat = [(chunk, place, count) for chunk, row in enumerate(counts) for place, count in enumerate(row)]
        empty = [f"stage {place} of chunk {chunk} has no layer" for chunk, place, count in flat[1:-1] if count < 1]
        raise_all(StrategyError, f"Stages in the middle are empty: {_brackets(counts)} layers.", empty)
    order = [
        pp - 1 - place if mirrored and chunk == 1 else place
        for chunk, places in enumerate(counts)
        for place, count in enumerate(places)
        for _ in range(count)
    ]
    return tuple(order[:layer_count])


def _offset_counts(layer_count: int, parallel: ParallelConfig) -> _Chunks:
    """Return the number of layers of every stage, for each chunk."""
    pp, chunk_count, offset = parallel.pp, parallel.chunk_count, parallel.offset
    remainder = layer_count % (pp * chunk_count)
    if offset == 0 and remainder:
        places = f"{pp} stages" + (f" of {chunk_count} chunks" if chunk_count > 1 else "")
        lists = f" in {chunk_count} lists, one for each chunk," if chunk_count > 1 else ""
        raise StrategyError(
            f"{layer_count} layers cannot be divided by {places}: {remainder} left over",
            hint=f"Set offset, how many layers more or fewer a stage holds, to {pp} numbers{lists} with the sum "
            f"{remainder}.",
        )
    nested = isinstance(offset, tuple) and bool(offset) and isinstance(offset[0], tuple)
    rows = cast("_Chunks", ((0,) * pp,) if isinstance(offset, int) else offset if nested else (offset,))
    problems = []
    if isinstance(offset, int) and offset:
        problems.append(f"{offset} alone does not say which stages hold more layers; expected 0, or one number a stage")
    if nested and len(rows) != chunk_count:
        problems.append(f"it has {len(rows)} lists, but there are {chunk_count} chunks")
    problems += [f"{list(row)} has {len(row)} numbers, but there are {pp} stages" for row in rows if len(row) != pp]
    total = offset if isinstance(offset, int) else sum(map(sum, rows))
    if not problems and total != remainder:
        share = f"{layer_count} layers over {pp} stages of {chunk_count} chunks leave {remainder}"
        problems.append(f"its sum is {total}, but {share}")
    raise_all(StrategyError, f"The offset {_brackets(offset)} does not fit the layers.", problems)
    base = layer_count // (pp * chunk_count)
    # A single row holds for every chunk, though its sum was compared above without repeating it: so do the networks.
    rows = rows if len(rows) == chunk_count else rows * chunk_count
    counts = tuple(tuple(base + more for more in row) for row in rows)
    if any(count < 0 for row in counts for count in row):
        raise StrategyError(f"The offset {_brackets(offset)} leaves negative counts: {_brackets(counts)} layers.")
    return counts


def _brackets(value: object) -> str:
    return str(value).replace("(", "[").replace(")", "]").replace(",]", "]")
