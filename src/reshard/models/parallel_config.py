"""The parallel configuration of a job: how many ways each kind of parallelism cuts a model.

People write it as ``dp=2,mp=4``, or have it in the YAML configuration of a training job.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import FormatError, StrategyError, UsageError, option, raise_all
from ..formats.strict_json import shown
from ..formats.strict_yaml import PlainValue, parse_yaml
from ..formats.yaml_kinds import YamlKind, kind_of, refuse_other_kinds
from ..tensor import MAX_RANK_COUNT, DType

Offset = int | tuple[int, ...] | tuple[tuple[int, ...], ...]

_DEGREES = ("dp", "mp", "cp", "pp", "ep", "pp_interleave_num", "ulysses_degree_in_cp")

# No cluster has more ranks: a larger device matrix is a slip of the pen, and would cost memory for each rank.
_MAX_LENGTH = 10_000


@dataclass(frozen=True, slots=True)
class ParallelConfig:
    """The parallelism of a job, with the defaults of MindSpore Transformers.

    Parameters
    ----------
    dp, mp, cp, pp, ep
        Degrees of data, model (tensor), context, pipeline and expert parallelism.
    vocab_emb_dp
        Whether embedding and head of the older networks stay whole.
    use_seq_parallel
        Sequence parallelism; with it the older DeepSeek keeps shared experts whole.
    optimizer_shard
        Whether the parallel optimizer cuts weights over their replicas (``enable_parallel_optimizer``).
    optimizer_weight_shard_size
        Largest number of its pieces; -1 for as many as there are replicas.
    optimizer_threshold_kib
        Full weights of fewer KiB stay whole (``parallel_optimizer_threshold``).
    pipeline_interleave, pp_interleave_num
        Whether stages hold several chunks of layers, and how many; either alone has no effect.
    offset
        Layers more or fewer than the average: 0, one number a stage, or a list of those for each chunk.
    zero_bubble_v
        Whether the second chunk runs through the stages backwards.
    micro_batch_num
        Checked against ``pp`` when given.
    ulysses_degree_in_cp
        Part of ``cp`` that cuts heads as well.
    param_dtype
        Dtype in which training keeps weights, for the threshold; None for the checkpoint's.
    use_legacy
        Whether the job builds the older networks, or those of mcore; None if unknown.
    use_parallel
        Whether the job is parallel at all, whatever its degrees are; None if unknown.

    Raises
    ------
    StrategyError
        MindSpore Transformers would refuse the values; all problems are listed.

    Examples
    --------
    >>> parallel = ParallelConfig(dp=2, mp=4, pp=2)
    >>> parallel.rank_count, parallel.stage_rank_count, parallel.chunk_count
    (16, 8, 1)
    >>> ParallelConfig(dp=2, mp=0, ep=3)
    Traceback (most recent call last):
    ...
    reshard.errors.StrategyError: The parallel configuration is invalid.
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
    use_parallel: bool | None = None

    def __post_init__(self) -> None:
        problems = list(self._wrong_values()) or list(self._contradictions())
        raise_all(StrategyError, "The parallel configuration is invalid.", problems)

    @property
    def stage_rank_count(self) -> int:
        """Ranks of one pipeline stage."""
        return self.dp * self.cp * self.mp

    @property
    def rank_count(self) -> int:
        """Ranks of all stages."""
        return self.stage_rank_count * self.pp

    def check_used(self, where: str) -> None:
        """Raise StrategyError if ``use_parallel`` says that the job is not parallel, and the degrees that it is."""
        if self.use_parallel is False and self.rank_count > 1:
            degrees = ", ".join(
                f"{name} {size}" for name in ("dp", "cp", "mp", "pp") if (size := getattr(self, name)) > 1
            )
            raise StrategyError(
                f"{where}: use_parallel is False, but the sizes are those of {self.rank_count} ranks ({degrees})",
                hint="Set use_parallel: True, or give no sizes: such a job runs on one device, which holds everything.",
            )

    @property
    def chunk_count(self) -> int:
        """Chunks of layers that a stage holds."""
        return self.pp_interleave_num if self.pipeline_interleave else 1

    def _wrong_values(self) -> Iterator[str]:
        for name in _DEGREES:
            if getattr(self, name) < 1:
                yield f"{name}: expected 1 or more, found {getattr(self, name)}"
        size = self.optimizer_weight_shard_size
        if size < 1 and size != -1:
            yield f"optimizer_weight_shard_size: expected -1, or 1 or more, found {size}"
        if self.optimizer_threshold_kib < 0:
            yield f"parallel_optimizer_threshold: expected 0 or more, found {self.optimizer_threshold_kib}"

    def _contradictions(self) -> Iterator[str]:
        if self.rank_count > MAX_RANK_COUNT:
            yield f"dp * cp * mp * pp: expected at most {MAX_RANK_COUNT} ranks, found {self.rank_count}"
        if (self.dp * self.mp) % self.ep:
            yield f"ep: {self.ep} does not divide dp * mp = {self.dp * self.mp}"
        if self.cp % self.ulysses_degree_in_cp:
            yield f"ulysses_degree_in_cp: {self.ulysses_degree_in_cp} does not divide cp = {self.cp}"
        if self.micro_batch_num is not None and self.micro_batch_num < self.pp:
            yield f"micro_batch_num: expected at least pp = {self.pp}, found {self.micro_batch_num}"
        if self.zero_bubble_v and self.chunk_count != 2:
            yield f"zero_bubble_v: expected pipeline interleave with 2 chunks, found {self.chunk_count}"


# fmt: off
_NAMES = {
    "data_parallel": "dp", "model_parallel": "mp", "tp": "mp", "context_parallel": "cp", "pipeline_stage": "pp",
    "expert_parallel": "ep", "sp": "use_seq_parallel", "po": "optimizer_shard",
    "enable_parallel_optimizer": "optimizer_shard", "po_size": "optimizer_weight_shard_size",
    "po_threshold": "optimizer_threshold_kib", "parallel_optimizer_threshold": "optimizer_threshold_kib",
    "zbv": "zero_bubble_v", "param_init_type": "param_dtype", "params_dtype": "param_dtype",
}
_YAML_KEYS: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("parallel_config",): (
        "data_parallel", "model_parallel", "context_parallel", "pipeline_stage", "expert_parallel", "vocab_emb_dp",
        "use_seq_parallel", "micro_batch_num", "ulysses_degree_in_cp",
    ),
    ("parallel",): ("enable_parallel_optimizer",),
    ("parallel", "parallel_optimizer_config"): ("parallel_optimizer_threshold", "optimizer_weight_shard_size"),
    ("parallel", "pipeline_config"): ("pipeline_interleave",),
    ("model", "model_config"): ("offset", "pp_interleave_num", "param_init_type", "params_dtype"),
    (): ("use_legacy", "use_parallel"),
}
_DTYPES = {
    "float32": DType.F32, "fp32": DType.F32, "float16": DType.F16, "fp16": DType.F16, "bfloat16": DType.BF16,
    "bf16": DType.BF16,
}
# fmt: on
_FIELDS = {field.name: str(field.type) for field in fields(ParallelConfig)}
_UNKNOWN_KEY = "unknown key"
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_INTEGER = re.compile(r"-?[0-9]{1,9}")
# An item: a key, and what follows the equals sign up to a comma outside brackets.
_ITEM = re.compile(r"\s*([a-z_]+)\s*=\s*(\[[\[\]0-9,\s-]*\]|[^,\[\]]*?)\s*(?:,|$)")


def parse_parallel(text: str, name: str = "parallel") -> ParallelConfig:
    """Parse ``key=value`` pairs with commas between them.

    Parameters
    ----------
    text
        Keys are short (``dp``, ``mp`` or ``tp``, ``cp``, ``pp``, ``ep``, ``sp``, ``po``, ``vpp``, ``zbv``) or
        those of MindSpore Transformers. ``vpp=2`` switches interleave on and sets its chunks; offsets are lists.
    name
        Of the option that has the text, for errors.

    Raises
    ------
    UsageError
        Keys are unknown or repeated, or values do not fit them; all problems are listed.
    StrategyError
        The values contradict each other.

    Examples
    --------
    >>> parallel = parse_parallel("dp=2,model_parallel=4,pp=2,po=true,offset=[1,0]")
    >>> parallel.mp, parallel.optimizer_shard, parallel.offset
    (4, True, (1, 0))
    >>> parse_parallel("dp=two,xp=1")
    Traceback (most recent call last):
    ...
    reshard.errors.UsageError: parallel='dp=two,xp=1' cannot be parsed.
      - dp: expected a whole number, found 'two'
      - xp: unknown key
    Known: dp, mp, cp, pp, ep, sp, po, offset, vpp and more; see docs/howto/strategy.md.
    """
    if len(text) > _MAX_LENGTH:
        raise UsageError(f"{option(name, text[:80])} cannot be parsed: it has {len(text)} characters")
    values: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in _items(text, problems):
        for field, item in _fields_of(key, value):
            if field in values:
                problems.append(f"{key}: repeated")
            _set(values, problems, key, field, item)
    hint = "Known: dp, mp, cp, pp, ep, sp, po, offset, vpp and more; see docs/howto/strategy.md."
    is_unknown = any(problem.endswith(_UNKNOWN_KEY) for problem in problems)
    raise_all(UsageError, f"{option(name, text)} cannot be parsed.", problems, hint if is_unknown else "")
    return ParallelConfig(**values)


def _fields_of(key: str, value: object) -> list[tuple[str, object]]:
    """Return the fields that a key sets, and their values."""
    if key == "vpp":
        return [("pp_interleave_num", value), ("pipeline_interleave", True)]
    return [(_NAMES.get(key, key), value)]


def _items(text: str, problems: list[str]) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(text):
        match = _ITEM.match(text, position)
        if match is None:
            problems.append(f"{text[position:]!r}: expected KEY=VALUE, like dp=2")
            return
        yield match[1], match[2]
        position = match.end()


def _set(values: dict[str, Any], problems: list[str], key: str, name: str, value: object) -> None:
    if name not in _FIELDS:
        problems.append(f"{key}: {_UNKNOWN_KEY}")
        return
    try:
        values[name] = _converted(name, value)
    except ValueError as error:
        problems.append(f"{key}: expected {error}, found {value!r}")


def _converted(name: str, value: object) -> object:
    """Convert a value to the type of its field; ValueError says what was expected."""
    word = str(value).lower()
    if _FIELDS[name].startswith("bool"):
        if word in _BOOLEANS:
            return _BOOLEANS[word]
        raise ValueError("true or false")
    if name == "param_dtype":
        if (word := word.rpartition(".")[2]) in _DTYPES:
            return _DTYPES[word]
        raise ValueError("float32, float16 or bfloat16")
    if name == "offset":
        return _offset(value)
    if type(value) is int or (isinstance(value, str) and _INTEGER.fullmatch(value)):
        return int(value)
    raise ValueError("a whole number")


def _offset(value: object) -> Offset:
    """Convert a number, a list of numbers, or a list of such lists."""
    expected = "a number, or lists like [1,0]"
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(expected) from None
    if type(value) is int:
        return value
    if isinstance(value, list) and all(type(item) is int for item in value):
        return tuple(value)
    if isinstance(value, list) and all(isinstance(row, list) and all(type(i) is int for i in row) for row in value):
        return tuple(tuple(row) for row in value)
    raise ValueError(expected)


def parse_parallel_yaml(data: bytes, where: str) -> ParallelConfig:
    """Parse the YAML configuration of a MindSpore Transformers training job.

    Parameters
    ----------
    data
        Read are ``parallel_config``, ``parallel`` (``enable_parallel_optimizer``, ``parallel_optimizer_config``,
        ``pipeline_config``), from ``model.model_config`` the ``offset``, ``pp_interleave_num`` and the dtype
        of weights, and ``use_legacy`` and ``use_parallel``. A text that has none of a job's keys holds sizes alone,
        with the keys that :func:`parse_parallel` knows.

    Raises
    ------
    FormatError
        The text is not YAML, is a layout file or something else, or values do not fit their keys; all problems are
        listed.
    StrategyError
        The values contradict each other.

    Examples
    --------
    >>> text = b"parallel_config: {data_parallel: 2, model_parallel: 4}\\nmodel: {model_config: {eps: 1.e-6}}"
    >>> parse_parallel_yaml(text, "train.yaml").rank_count
    8

    Source: MindSpore Transformers 1.6.0 and 1.8.0, ``configs/`` and ``core/parallel_config.py``.
    """
    document = parse_yaml(data, where, foreign=True)
    takers = f"{option('src_layout')} and {option('dst_layout')}"
    hints = {
        YamlKind.LAYOUT_FILE: f"{takers} take it: the one for the source's shards, the other for the target's.",
        YamlKind.JOB_FILE: "reshard run takes it.",
    }
    refuse_other_kinds(document, YamlKind.TRAINING, where, hints)
    problems: list[str] = []
    values = _values_of_job(document, problems) if kind_of(document) else _values_alone(document, where, problems)
    if problems:
        raise FormatError("the parallel configuration cannot be parsed", where=where, problems=problems)
    try:
        return ParallelConfig(**values)
    except StrategyError as error:
        raise StrategyError(
            f"{where}: {error.marked_message}", hint=error.marked_hint, problems=error.marked_problems
        ) from error


def _values_of_job(document: PlainValue, problems: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for path, keys in _YAML_KEYS.items():
        section = _section(document, path, problems)
        for key in keys:
            if section.get(key) is not None:
                _set(values, problems, ".".join((*path, key)), _NAMES.get(key, key), section[key])
    pipeline = _section(document, ("parallel", "pipeline_config"), [])
    values["zero_bubble_v"] = pipeline.get("pipeline_scheduler") == "zero_bubble_v"
    return values


def _values_alone(document: PlainValue, where: str, problems: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    given = document if isinstance(document, dict) else {}
    fields = [(key, name, item) for key, value in given.items() for name, item in _fields_of(key, value)]
    for each in fields:
        _set(values, problems, *each)
    if not any(name in _FIELDS for _, name, _ in fields):
        found = ", ".join(map(shown, list(given)[:5])) or "no key"
        expected = f"{YamlKind.TRAINING} (parallel_config, model, ...), or sizes such as data_parallel: 2"
        raise FormatError("no parallel configuration", where=where, expected=expected, found=found)
    return values


def _section(document: PlainValue, path: tuple[str, ...], problems: list[str]) -> dict[str, PlainValue]:
    value = document
    for depth, key in enumerate(path):
        value = value.get(key) if isinstance(value, dict) else None
        if value is not None and not isinstance(value, dict):
            problems.append(f"{'.'.join(path[: depth + 1])}: expected a mapping")
            return {}
    return value if isinstance(value, dict) else {}
