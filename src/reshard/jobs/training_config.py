"""The configuration of a MindSpore Transformers job: its YAML file and hyper-parameters, as typed values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from ..api.option_field import find_truth, is_nothing
from ..errors import FormatError, StrategyError, UsageError, option
from ..formats.strict_json import shown
from ..formats.strict_yaml import PlainValue, parse_yaml
from ..formats.yaml_kinds import YamlKind, refuse_other_kinds
from ..models.parallel_config import ParallelConfig, parse_parallel
from ..storage import open_location, read_object, shared_connections
from .training_keys import CALLBACKS, KeyUse, find_known, flatten, sort_keys

_NO_FILE = "hyper-parameters"
_MONITOR = "CheckpointMonitor"
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
# The text of a size: a number, a word, or a list of numbers. What else there is could pass for another size.
_SIZE = re.compile(r"[A-Za-z0-9_.+-]*|\[[\[\]0-9,\s-]*\]")
_LARGEST_DEPTH = 32
_FORMATS = ("ckpt", "safetensors")
_HINTS = {
    YamlKind.LAYOUT_FILE: "It says how a checkpoint is cut: "
    f"give it as {option('dst_layout')} or {option('src_layout')}.",
    YamlKind.JOB_FILE: "Give it to reshard run by itself.",
}
# Where a conversion's arguments are: a section a model.
_ARGUMENTS = {"input_path", "output_path"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """What a conversion needs to know of a training, fine-tuning or serving job.

    Parameters
    ----------
    url
        Of the YAML file; None if hyper-parameters are all there is.
    keys
        Every key, sorted by what it is for.
    load_checkpoint, pretrained_model_dir, src_strategy_path_or_dir
        URLs; empty if not given.
    load_ckpt_format, checkpoint_format
        ``ckpt`` or ``safetensors``: what the job loads, and what it saves; None if not given.
    use_parallel
        None if not given: the sizes tell.
    parallel
        The parallel sizes as text, as the option of a request takes them.
    sizes
        The same as a value.
    resume_training
        Whether training goes on from a checkpoint, or the name of the file that it goes on from.
    use_legacy
        Whether the job builds the older networks, or those of mcore; None if not given.
    is_iteration
        Whether the job loads and saves iterations (``iteration_N/`` with ``metadata.json``).
    iteration_prefix
        Prefix of an iteration's objects.
    model_sizes
        Sizes of the model that take precedence over ``config.json``, by the names that it has for them.
    values
        Every key that has a value, as it stands in the file.
    conversions
        Arguments of conversions by model, if the file is one of those and no job's.
    """

    url: str | None = None
    keys: tuple[KeyUse, ...] = ()
    load_checkpoint: str = ""
    pretrained_model_dir: str = ""
    src_strategy_path_or_dir: str = ""
    load_ckpt_format: str | None = None
    checkpoint_format: str | None = None
    auto_trans_ckpt: bool = False
    use_parallel: bool | None = None
    parallel: str = ""
    sizes: ParallelConfig = field(default_factory=ParallelConfig)
    remove_redundancy: bool = False
    transform_process_num: int | None = None
    npu_num_per_node: int | None = None
    resume_training: bool | str = False
    only_save_strategy: bool = False
    use_legacy: bool | None = None
    output_dir: str = "./output"
    run_mode: str | None = None
    is_iteration: bool = False
    iteration_prefix: str | None = None
    has_eager_engine: bool = False
    model_sizes: Mapping[str, PlainValue] = field(default_factory=dict)
    values: Mapping[str, PlainValue] = field(default_factory=dict)
    conversions: Mapping[str, Mapping[str, PlainValue]] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The file in messages."""
        return self.url or _NO_FILE

    @property
    def rank_count(self) -> int:
        """Ranks of the job: the product of the sizes, 1 if it does not run in parallel."""
        return self.sizes.rank_count if self.is_parallel else 1

    @property
    def is_parallel(self) -> bool:
        """Whether the job runs on several cards; where ``use_parallel`` is not given, the sizes tell."""
        return self.sizes.rank_count > 1 if self.use_parallel is None else self.use_parallel

    def keys_of(self, use: str) -> tuple[KeyUse, ...]:
        """Return the keys of one use: ``used``, ``training``, ``no effect`` or ``unknown``."""
        return tuple(key for key in self.keys if key.use == use)


@shared_connections()
def read_training_config(url: str | None, overrides: Mapping[str, object] | None = None) -> TrainingConfig:
    """Read a job's YAML file, and hyper-parameters that take precedence over it.

    Parameters
    ----------
    url
        Path or URL of the YAML file; None for hyper-parameters alone.
    overrides
        Hyper-parameters by key, with dots between sections (``parallel_config.model_parallel``); values may be text,
        as a command line has them.

    Raises
    ------
    FormatError
        The file is not YAML, is of another kind, or values do not fit their keys; all problems are listed.
    StrategyError
        The parallel sizes contradict each other.
    NotFound
        There is no such file.

    Examples
    --------
    >>> given = {"parallel_config.model_parallel": "4", "auto_trans_ckpt": "True", "load_checkpoint": "s3://b/llama"}
    >>> config = read_training_config(None, given)
    >>> config.rank_count, config.auto_trans_ckpt, [key.use for key in config.keys]
    (4, True, ['used', 'used', 'used'])
    """
    document: dict[str, PlainValue] = {}
    if url is not None:
        place = open_location(url)
        read = parse_yaml(read_object(place), place.url, foreign=True)
        if not isinstance(read, dict):
            hint = "A training configuration is a mapping, with keys like load_checkpoint and parallel_config."
            raise FormatError("not a training configuration", where=place.url, expected="a mapping", hint=hint)
        document, url = read, place.url
    for name, value in (overrides or {}).items():
        path = name.split(".")
        if len(path) > _LARGEST_DEPTH:
            raise UsageError(f"{name[:80]}...: a hyper-parameter with {len(path)} sections", hint="Check its dots.")
        _override(document, path, plain_value(value))
    return config_of(document, url)


def config_of(document: Mapping[str, PlainValue], url: str | None = None) -> TrainingConfig:
    """Read the values of a parsed configuration; errors are those of :func:`read_training_config`."""
    conversions = _conversions(document)
    keys = sort_keys(document, is_conversion=bool(conversions))
    if conversions:
        return TrainingConfig(url=url, keys=keys, conversions=conversions)
    refuse_other_kinds(dict(document), YamlKind.TRAINING, url or _NO_FILE, _HINTS)
    values = dict(flatten(dict(document)))
    reader = _ConfigValues(values)
    config = TrainingConfig(
        url=url,
        keys=keys,
        load_checkpoint=reader.text("checkpoint.load_path") or reader.text("load_checkpoint") or "",
        pretrained_model_dir=reader.text("pretrained_model_dir") or "",
        src_strategy_path_or_dir=reader.text("src_strategy_path_or_dir") or "",
        load_ckpt_format=reader.text("load_ckpt_format", _FORMATS),
        checkpoint_format=reader.text(f"{CALLBACKS}.{_MONITOR}.checkpoint_format", _FORMATS),
        auto_trans_ckpt=reader.truth("auto_trans_ckpt") or False,
        use_parallel=reader.truth("use_parallel"),
        parallel=reader.parallel(),
        remove_redundancy=reader.truth("remove_redundancy") or False,
        transform_process_num=reader.count("transform_process_num"),
        npu_num_per_node=reader.count("npu_num_per_node"),
        resume_training=reader.resume(),
        only_save_strategy=reader.truth("only_save_strategy") or False,
        use_legacy=reader.truth("use_legacy"),
        output_dir=reader.text("output_dir") or "./output",
        run_mode=reader.text("run_mode"),
        is_iteration="checkpoint" in document or reader.truth("use_legacy_format") is False,
        iteration_prefix=reader.text("checkpoint.prefix"),
        has_eager_engine="parallelism" in document,
        model_sizes=_model_sizes(values),
        values={path: value for path, value in values.items() if not _is_unread(value)},
    )
    if reader.problems:
        raise FormatError("values do not fit their keys", where=config.where, problems=reader.problems)
    return _with_sizes(config)


def plain_value(value: object) -> PlainValue:
    """Read a hyper-parameter, which may be text.

    Examples
    --------
    >>> [plain_value(text) for text in ("True", "4", "[1,0]", "s3://b/a: b", "1_10")]
    [True, 4, [1, 0], 's3://b/a: b', '1_10']
    """
    if not isinstance(value, str):
        return cast("PlainValue", value)
    text = value.strip()
    if _INTEGER.fullmatch(text):
        return int(text)
    if text.lower() in ("true", "false"):  # other words may be texts, such as a name
        return find_truth(text)
    if text.startswith(("[", "{")):
        try:
            return parse_yaml(text.encode("utf-8", "surrogateescape"), value, foreign=True)
        except FormatError:
            return value
    return None if text and is_nothing(text) else value


def _override(document: dict[str, PlainValue], path: list[str], value: PlainValue) -> None:
    """Set a key, making the sections on the way; a key of ``callbacks`` is one of the callback that saves."""
    if path[0] == CALLBACKS and len(path) > 1:
        items = document.get(CALLBACKS)
        items = document[CALLBACKS] = list(items) if isinstance(items, list) else []
        kind = path[1] if len(path) > 2 else _MONITOR
        item = next((item for item in items if isinstance(item, dict) and item.get("type") == kind), None)
        if item is None:
            item = {"type": kind}
            items.append(item)
        _override(item, path[2:] or path[1:], value)
        return
    section = document
    for name in path[:-1]:
        inner = section.get(name)
        if not isinstance(inner, dict):
            inner = section[name] = {}
        section = inner
    section[path[-1]] = value


def _conversions(document: Mapping[str, PlainValue]) -> dict[str, Mapping[str, PlainValue]]:
    """Return the arguments of conversions by model; empty if the document is something else."""
    sections = {name: value for name, value in document.items() if isinstance(value, dict)}
    return dict(sections) if all(section.keys() >= _ARGUMENTS for section in sections.values()) else {}


def _with_sizes(config: TrainingConfig) -> TrainingConfig:
    try:
        return replace(config, sizes=parse_parallel(config.parallel))
    except UsageError as error:
        what = "the parallel sizes cannot be read"
        raise FormatError(what, where=config.where, problems=error.marked_problems) from error
    except StrategyError as error:
        message = f"{config.where}: {error.marked_message}"
        raise StrategyError(message, hint=error.marked_hint, problems=error.marked_problems) from error


def _model_sizes(values: Mapping[str, PlainValue]) -> dict[str, PlainValue]:
    found: dict[str, PlainValue] = {}
    for rank in (0, 1, 2):  # a name of its own takes precedence over a substitute
        for path, value in values.items():
            known = find_known(path)
            if known is not None and known.section == "config" and not _is_unread(value):
                for name in known.config_names[rank : rank + 1]:
                    found.setdefault(name, value)
    return found


def _is_unread(value: PlainValue) -> bool:
    """Whether a key has no value."""
    return is_nothing(value) or value in ({}, [])


class _ConfigValues:
    """Reads values of the right type by key, and collects what is wrong with the others."""

    def __init__(self, values: Mapping[str, PlainValue]) -> None:
        self._values = values
        self.problems: list[str] = []

    def text(self, key: str, choices: tuple[str, ...] = ()) -> str | None:
        value = self._values.get(key)
        if is_nothing(value):
            return None
        if isinstance(value, dict | list) or (choices and value not in choices):
            self._refuse(key, " or ".join(choices) or "text", value)
            return None
        return str(value)

    def truth(self, key: str) -> bool | None:
        value = self._values.get(key)
        if is_nothing(value):
            return None
        found = find_truth(value)
        if found is None:
            self._refuse(key, "True or False", value)
        return found

    def count(self, key: str) -> int | None:
        value = self._values.get(key)
        if is_nothing(value):
            return None
        if not isinstance(value, bool) and _INTEGER.fullmatch(str(value)) and int(str(value)) > 0:
            return int(str(value))
        self._refuse(key, "a number, 1 or more", value)
        return None

    def resume(self) -> bool | str:
        """Read ``resume_training``, which is also the reverse of a newer key."""
        value = self._values.get("resume_training")
        if isinstance(value, str) and not is_nothing(value) and find_truth(value) is None:
            return value
        given = self.truth("resume_training")
        return self.truth("checkpoint.no_load_optim") is False if given is None else given

    def parallel(self) -> str:
        """Write the parallel sizes as the option of a request takes them."""
        given: dict[str, str] = {}
        for path, value in self._values.items():
            known = find_known(path)
            if known is None or known.section != "sizes" or _is_unread(value):
                continue
            text = str(value).replace(" ", "")
            if _SIZE.fullmatch(text):
                given[path.rpartition(".")[2]] = text
            else:
                self._refuse(path, "a size", value)
        if "params_dtype" in given:
            given.pop("param_init_type", None)  # two names of one size
        if self._values.get("parallel.pipeline_config.pipeline_scheduler") == "zero_bubble_v":
            given["zero_bubble_v"] = "true"
        return ",".join(f"{name}={value}" for name, value in given.items())

    def _refuse(self, key: str, expected: str, value: PlainValue) -> None:
        self.problems.append(f"{key}: expected {expected}, found {shown(value)}")
