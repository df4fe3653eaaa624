"""The numbers of a parallel job: how many ways each kind of parallelism cuts a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import StrategyError, raise_all
from ..tensor import DType

Offset = int | tuple[int, ...] | tuple[tuple[int, ...], ...]

_COUNTS = ("dp", "mp", "cp", "pp", "ep", "pp_interleave_num", "ulysses_degree_in_cp")

# A device matrix of more ranks than this stands for no cluster that exists, only for a slip of the pen.
_LARGEST_RANK_COUNT = 2**20


@dataclass(frozen=True, slots=True)
class Parallel:
    """What a job says about parallelism, with the defaults of MindSpore Transformers.

    Parameters
    ----------
    dp, mp, cp, pp, ep
        Data, model (tensor), context, pipeline and expert parallel.
    vocab_emb_dp
        Whether embedding and head of the older networks stay whole.
    use_seq_parallel
        Sequence parallel; the older DeepSeek keeps shared experts whole with it.
    optimizer_shard
        Whether the parallel optimizer cuts weights over their replicas (``enable_parallel_optimizer``).
    optimizer_weight_shard_size
        Largest number of its pieces; -1 for as many as there are replicas.
    optimizer_threshold_kib
        Weights of fewer KiB stay whole (``parallel_optimizer_threshold``); compared with the full weight.
    pipeline_interleave, pp_interleave_num
        Whether stages hold several chunks of layers, and how many; one without the other counts for nothing.
    offset
        Layers more or fewer than the average: 0, one number a stage, or a list of those for each chunk.
    zero_bubble_v
        Whether the second chunk runs through the stages backwards.
    micro_batch_num
        Checked against ``pp`` when given.
    ulysses_degree_in_cp
        Part of ``cp`` that cuts heads as well.
    param_dtype
        Element type in which training keeps weights, for the threshold; None: that of the checkpoint.
    use_legacy
        Whose networks the job builds: the older ones, or those of mcore; None when not said.

    Raises
    ------
    StrategyError
        Numbers that MindSpore Transformers refuses together; all of them are listed.

    Examples
    --------
    >>> parallel = Parallel(dp=2, mp=4, pp=2)
    >>> parallel.rank_count, parallel.stage_rank_count, parallel.chunk_count
    (16, 8, 1)
    >>> Parallel(dp=2, mp=0, ep=3)
    Traceback (most recent call last):
    ...
    reshard.errors.StrategyError: these numbers make no parallel job
      - mp: expected 1 or more, found 0

    Source: MindSpore Transformers 1.6.0 to 1.8.0, ``TransformerOpParallelConfig`` and its checks.
    """

    dp: int = 1
    mp: int = 1
    cp: int = 1
    pp: int = 1
    ep: int = 1
    vocab_emb_dp: bool = True
    use_seq_parallel: bool = False
    optimizer_shard: bool = False
    optimizer_weight_shard_size: int = -1
    optimizer_threshold_kib: int = 64
    pipeline_interleave: bool = False
    pp_interleave_num: int = 1
    offset: Offset = 0
    zero_bubble_v: bool = False
    micro_batch_num: int | None = None
    ulysses_degree_in_cp: int = 1
    param_dtype: DType | None = None
    use_legacy: bool | None = None

    def __post_init__(self) -> None:
        problems = list(self._wrong_counts()) or list(self._contradictions())
        raise_all(StrategyError, "these numbers make no parallel job", problems)

    @property
    def stage_rank_count(self) -> int:
        """Ranks of one pipeline stage."""
        return self.dp * self.cp * self.mp

    @property
    def rank_count(self) -> int:
        """Ranks over all stages."""
        return self.stage_rank_count * self.pp

    @property
    def chunk_count(self) -> int:
        """Chunks of layers a stage holds."""
        return self.pp_interleave_num if self.pipeline_interleave else 1

    def _wrong_counts(self) -> Iterator[str]:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                yield f"{name}: expected 1 or more, found {getattr(self, name)}"
        size = self.optimizer_weight_shard_size
        if size < 1 and size != -1:
            yield f"optimizer_weight_shard_size: expected -1, or 1 or more, found {size}"
        if self.optimizer_threshold_kib < 0:
            yield f"parallel_optimizer_threshold: expected 0 or more, found {self.optimizer_threshold_kib}"

    def _contradictions(self) -> Iterator[str]:
        if self.rank_count > _LARGEST_RANK_COUNT:
            yield f"dp * cp * mp * pp: expected at most {_LARGEST_RANK_COUNT} ranks, found {self.rank_count}"
        if (self.dp * self.mp) % self.ep:
            yield f"ep: {self.ep} does not divide dp * mp = {self.dp * self.mp}"
        if self.cp % self.ulysses_degree_in_cp:
            yield f"ulysses_degree_in_cp: {self.ulysses_degree_in_cp} does not divide cp = {self.cp}"
        if self.micro_batch_num is not None and self.micro_batch_num < self.pp:
            yield f"micro_batch_num: expected at least pp = {self.pp}, found {self.micro_batch_num}"
        if self.zero_bubble_v and self.chunk_count != 2:
            yield f"zero_bubble_v: needs pipeline interleave of 2 chunks, found {self.chunk_count}"
