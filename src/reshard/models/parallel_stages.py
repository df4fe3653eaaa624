"""Which pipeline stage holds which layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ..errors import StrategyError, raise_all
from .parallel import Parallel

StageRules = Literal["legacy", "mcore", "even"]

_Chunks = tuple[tuple[int, ...], ...]


def layer_stages(layer_count: int, parallel: Parallel, rules: StageRules) -> tuple[int, ...]:
    """The pipeline stage of every layer.

    Parameters
    ----------
    layer_count
        All layers, those for multi-token prediction too where the network counts them.
    parallel
        ``pp``, chunks, ``offset`` and ``zero_bubble_v`` count here.
    rules
        ``legacy``: networks of MindSpore Transformers with ``use_legacy``. ``mcore``: its newer ones,
        that refuse empty stages in the middle. ``even``: as vLLM deals layers out, unless an offset says otherwise.

    Raises
    ------
    StrategyError
        The offset does not fit the layers, or stages stay empty that must not.

    Examples
    --------
    >>> layer_stages(7, Parallel(pp=2, offset=(1, 0)), "legacy")
    (0, 0, 0, 0, 1, 1, 1)
    >>> two_chunks = Parallel(pp=2, pipeline_interleave=True, pp_interleave_num=2)
    >>> layer_stages(8, two_chunks, "mcore")
    (0, 0, 1, 1, 0, 0, 1, 1)
    >>> layer_stages(6, Parallel(pp=4), "even")
    (0, 1, 1, 2, 2, 3)

    Source: MindSpore Transformers 1.6.0 and 1.8.0, ``LayerSetting``; vLLM 0.9, ``get_pp_indices``.
    """
    if rules == "even" and parallel.offset == 0:
        counts: _Chunks = (_even_counts(layer_count, parallel.pp),)
    elif rules == "mcore" and parallel.pp * parallel.chunk_count == 1:
        counts = ((layer_count,),)
    else:
        counts = _offset_counts(layer_count, parallel)
    mirrored = parallel.zero_bubble_v and rules == "mcore"
    if mirrored:
        counts = (counts[0], counts[1][::-1])
    if rules == "mcore":
        _check_middle(counts)
    order = [
        parallel.pp - 1 - place if mirrored and chunk == 1 else place
        for chunk, places in enumerate(counts)
        for place, count in enumerate(places)
        for _ in range(count)
    ]
    return tuple(order[:layer_count])


def _even_counts(layer_count: int, pp: int) -> tuple[int, ...]:
    """Remaining layers go to the stages before the last, from the back: vLLM spares those with embedding and head."""
    counts = [layer_count // pp] * pp
    for place in range(layer_count % pp):
        counts[-(place + 2)] += 1
    return tuple(counts)


def _offset_counts(layer_count: int, parallel: Parallel) -> _Chunks:
    pp, chunk_count, offset = parallel.pp, parallel.chunk_count, parallel.offset
    remainder = layer_count % (pp * chunk_count)
    if offset == 0 and remainder:
        places = f"{pp} stages" + (f" of {chunk_count} chunks" if chunk_count > 1 else "")
        lists = f", in {chunk_count} lists, one for each chunk," if chunk_count > 1 else ""
        raise StrategyError(
            f"{layer_count} layers do not divide by {places}: left over {remainder}",
            hint=f"offset says which stages hold more or fewer layers: {pp} numbers{lists} with the sum {remainder}.",
        )
    rows = _rows(offset, pp)
    problems = list(_wrong_shape(rows, offset, pp, chunk_count))
    total = offset if isinstance(offset, int) else sum(map(sum, rows))
    if not problems and total != remainder:
        problems.append(
            f"the sum of the offset is {total}; {layer_count} layers over {pp} stages of {chunk_count} chunks "
            f"leave {remainder}"
        )
    raise_all(StrategyError, f"offset {_shown(offset)} does not fit the layers", problems)
    base = layer_count // (pp * chunk_count)
    # A single row is meant for every chunk, though its sum was compared before: so do the networks.
    rows = rows if len(rows) == chunk_count else rows * chunk_count
    counts = tuple(tuple(base + more for more in row) for row in rows)
    if any(count < 0 for row in counts for count in row):
        raise StrategyError(f"offset {_shown(offset)} leaves fewer than 0 layers: {_shown(counts)} of {layer_count}")
    return counts


def _rows(offset: object, pp: int) -> _Chunks:
    if isinstance(offset, int):
        return ((0,) * pp,)
    assert isinstance(offset, tuple)
    return offset if offset and isinstance(offset[0], tuple) else (offset,)


def _wrong_shape(rows: _Chunks, offset: object, pp: int, chunk_count: int) -> Iterator[str]:
    if isinstance(offset, int) and offset:
        yield f"{offset} alone does not say which stages hold more layers: expected 0, or a number for each stage"
    nested = isinstance(offset, tuple) and bool(offset) and isinstance(offset[0], tuple)
    if nested and len(rows) != chunk_count:
        yield f"it has {len(rows)} lists, there are {chunk_count} chunks"
    for row in rows:
        if len(row) != pp:
            yield f"{list(row)} has {len(row)} numbers, there are {pp} stages"


def _check_middle(counts: _Chunks) -> None:
    """The newer networks accept no empty stage but the very first and the very last."""
    flat = [(chunk, place, count) for chunk, row in enumerate(counts) for place, count in enumerate(row)]
    empty = [f"stage {place} of chunk {chunk} has no layer" for chunk, place, count in flat[1:-1] if count < 1]
    raise_all(StrategyError, f"stages in the middle stay empty: {_shown(counts)} layers", empty)


def _shown(value: object) -> str:
    return str(value).replace("(", "[").replace(")", "]").replace(",]", "]")


def last_stage(parallel: Parallel, rules: StageRules) -> int:
    """The stage of final norm and head: the last, or the first when chunks come back to it.

    Examples
    --------
    >>> last_stage(Parallel(pp=4), "mcore")
    3
    """
    return 0 if parallel.zero_bubble_v and rules == "mcore" else parallel.pp - 1
