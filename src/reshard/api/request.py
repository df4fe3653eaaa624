"""Requests: one frozen value holds what a person asks, and its fields describe themselves.

The command line's options, the documentation of keyword arguments and the reference page are made from the fields:
a new option is one field of :class:`Request`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from ..errors import UsageError, write_options
from ..errors import option as named
from .option_field import (
    OptionField,
    parse_patience,
    parse_size,
    read_config,
    read_document,
    read_pairs,
    read_process_count,
    read_ranks,
    read_ratio,
    read_serving,
    read_texts,
    read_truth,
)

OBJECT_SUFFIXES = (".safetensors", ".ckpt")
_FORMS_OF_RANKS = ("iteration", "dcp", "vllm")
"""Ends of URLs that name a single object."""

SOURCE, CHANGES, TARGET, RUN = "Source", "Names and values", "Target", "Run"


def _field(help: str, metavar: str, group: str, otherwise: Any = None, **more: Any) -> Any:  # noqa: A002
    """Make a field of :class:`Request`."""
    return field(default=otherwise, metadata={"option": OptionField(help, metavar, group, **more)})


def _switch(help: str, group: str) -> Any:  # noqa: A002
    return _field(help, "", group, False, read=read_truth)


def _several(help: str, metavar: str, group: str) -> Any:  # noqa: A002
    return _field(help, metavar, group, (), read=read_texts)


def _choice(help: str, group: str, *choices: str, **more: Any) -> Any:  # noqa: A002
    return _field(help, "|".join(choices), group, choices=choices, **more)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a person asks of a conversion."""

    src: str = _field("URL or path of the source checkpoint.", "SRC", "", "")
    dst: str = _field("URL or path of the target.", "DST", "", "")

    src_strategy: str | None = _field(
        "MindSpore strategy file of the source's shards, or a prefix with those of all stages.",
        "URL",
        SOURCE,
        flags=("--src-strategy", "--src-strategy-path-or-dir"),
    )
    src_layout: str | None = _field(
        "Layout file of the source's shards, instead of a strategy file.", "URL.yaml", SOURCE
    )
    src_parallel: str | None = _field(
        "Parallel sizes that cut the source's shards, or the YAML of the job that trained them.",
        "dp=2,mp=4,...|URL.yaml",
        SOURCE,
    )
    file_suffix: str | None = _field(
        "Suffix that selects one object per rank, without its format, like 1_10.",
        "E_S",
        SOURCE,
        default="the last that all ranks have",
    )
    load_ckpt_format: str | None = _choice(
        "Format of the objects to read where both lie, as after a conversion in place.",
        SOURCE,
        "ckpt",
        "safetensors",
        default="the only one there",
    )
    check_crc: bool = _switch("Compare .ckpt objects with their checksums before converting.", SOURCE)
    keep: tuple[str, ...] = _several(
        "Take only tensors whose names match: a glob, prefix:TEXT or regex:EXPR.", "PATTERN", SOURCE
    )
    drop: tuple[str, ...] = _several("Leave out tensors whose names match.", "PATTERN", SOURCE)
    network_only: bool = _switch(
        "Leave out optimizer states and training counters, as save_network_params does.", SOURCE
    )
    keep_rank: int | None = _field(
        "For tensors outside the strategy that differ between ranks, use rank R's copy.", "R", SOURCE, least=0
    )

    to: str | None = _choice(
        "Convert to MindSpore Transformers' names and layouts (ms), or to Hugging Face's (hf).", CHANGES, "ms", "hf"
    )
    family: str | None = _field(
        "Model family whose rules apply, or the URL of a family file of your own.",
        "NAME|URL.yaml",
        CHANGES,
        default="from config.json and the names",
    )
    naming: str | None = _field(
        "Naming scheme of the family, legacy or mcore.", "NAME", CHANGES, default="the family's own"
    )
    option: Mapping[str, int | str | bool] | None = _field(
        "Option of the family's rules, like qkv_concat=true.", "NAME=VALUE", CHANGES, read=read_pairs
    )
    config: Mapping[str, object] | str | None = _field(
        "URL of the model's config.json, or what it would say, like num_attention_heads=32.",
        "URL|KEY=N,...",
        CHANGES,
        default="beside the source, and what the tensors tell",
        read=read_config,
    )
    dtype: str | None = _choice(
        "Data type of floating-point tensors in the target; FP8 is dequantised first.", CHANGES, "fp32", "fp16", "bf16"
    )
    keep_dtype: tuple[str, ...] = _several("Tensors of the target that keep their data type.", "PATTERN", CHANGES)
    on_overflow: str | None = _choice(
        "What becomes of values that the new data type cannot hold, as fp16 beyond 65504: infinity, the largest that "
        "it holds, or the end of the run. They are counted.",
        CHANGES,
        "inf",
        "saturate",
        "refuse",
        default="inf",
    )
    merge_lora: bool = _switch("Merge LoRA adapters in the source into their weights.", CHANGES)
    lora: str | None = _field("Merge the LoRA adapters (PEFT) at this URL.", "URL", CHANGES)
    lora_scaling: float | None = _field(
        "LoRA scaling: alpha / rank, as a number or like 16/8.",
        "X",
        CHANGES,
        default="from adapter_config.json",
        read=read_ratio,
    )
    rename: tuple[str, ...] = _several(
        "Rename tensors, also with prefix:OLD=NEW or regex:EXPR=NEW; the first match decides.", "OLD=NEW", CHANGES
    )
    name_map: Mapping[str, str] | str | None = _field(
        f'URL of a JSON file with new names by old, {{"old": "new"}}; takes precedence over {named("rename")}.',
        "URL.json",
        CHANGES,
        read=read_document,
    )

    dst_strategy: str | None = _field(
        "MindSpore strategy file that cuts the target, or a prefix with those of all stages.",
        "URL",
        TARGET,
        flags=("--dst-strategy", "--dst-strategy-path-or-dir"),
    )
    dst_layout: str | None = _field("Layout file that cuts the target, instead of a strategy file.", "URL.yaml", TARGET)
    parallel: str | None = _field(
        "Cut the target by parallel sizes, or as a training job's YAML does.", "dp=2,mp=4,...|URL.yaml", TARGET
    )
    serve: Mapping[str, int] | None = _field(
        "Write what each rank of the networks holds that serve the model: MindSpore Transformers', or another engine's "
        f"with {named('form', 'vllm')}. With ep=N ranks share out whole experts.",
        "tp=N[,ep=N]",
        TARGET,
        read=read_serving,
    )
    vllm: str | None = _field(
        f"Version of vLLM whose names {named('form', 'vllm')} writes.", "VERSION", TARGET, default="0.32"
    )
    form: str | None = _choice(
        "Form of a full checkpoint (hf, mindspore, zarr) or of rank shards (iteration, dcp, vllm).",
        TARGET,
        *("hf", "mindspore", "zarr", *_FORMS_OF_RANKS),
        default="hf, or zarr if DST ends in .zarr",
    )
    format: str | None = _choice("Format of the objects.", TARGET, "safetensors", "ckpt", default="safetensors")
    iteration: int | None = _field(
        f"Iteration to write with {named('form', 'iteration')}.",
        "N",
        TARGET,
        default="the source's global_step",
        least=0,
    )
    prefix: str | None = _field(
        "Prefix of rank shards' names, rank_R/<prefix>R.safetensors; {rank} stands for R.",
        "NAME",
        TARGET,
        default="checkpoint_",
    )
    ranks: tuple[range, ...] | None = _field(
        "Ranks to write, like 0-7,16.", "LIST", TARGET, default="all", read=read_ranks
    )
    remove_redundancy: bool = _switch("Write what several ranks own on one of them only.", TARGET)
    part_size: int | None = _field(
        "Largest object of a full checkpoint; in zarr the size of a chunk.",
        "SIZE",
        TARGET,
        default="5GB; mindspore: 3GiB; zarr: 64MiB",
        read=parse_size,
    )
    if_exists: str | None = _choice(
        "What to do where outputs exist: skip leaves a finished conversion that is the same, and refuses anything "
        "else; fail refuses; replace replaces them.",
        TARGET,
        *("skip", "fail", "replace"),
        default="skip",
    )
    overwrite: bool = _switch(f"Replace outputs that exist: {named('if_exists', 'replace')} in short.", TARGET)

    memory: int | None = _field(
        "Limit for all buffers, like 256MiB; on a Ray cluster those of each machine.",
        "SIZE",
        RUN,
        default="512MiB",
        read=parse_size,
    )
    concurrency: int | None = _field(
        "Requests that each process has in flight at once.", "N", RUN, default="8", least=1
    )
    processes: int | None = _field(
        "Processes that move bytes; auto starts more than one for conversions of 1 GiB and more, as the machine's "
        "cores and the memory allow, and on a Ray cluster at least one on each machine.",
        "N|auto",
        RUN,
        default="auto",
        read=read_process_count,
    )
    engine: str | None = _choice(
        "What moves the bytes: this machine, or the workers of a Ray cluster, which this command leads.",
        RUN,
        *("local", "ray"),
        default="local",
    )
    ray_address: str | None = _field(
        "Address of the Ray cluster, like 10.0.0.1:6379.",
        "HOST:PORT",
        RUN,
        default="RAY_ADDRESS, or the cluster that runs on this machine",
    )
    give_up_after: float | None = _field(
        "How long to wait for a store that does not answer.",
        "TIME",
        RUN,
        default="15min; 1min for a store that has never answered",
        read=parse_patience,
    )
    copy: str | None = _choice(
        "Whether the store copies byte ranges itself where it can.", RUN, "auto", "never", default="auto"
    )
    staging: str | None = _choice(
        "Whether to write tensors to a zarr store first; auto does where it is cheaper.",
        RUN,
        *("auto", "never", "always"),
        default="auto",
    )
    integrity: str | None = _choice(
        "What must prove that the store has received what was sent: off lengths alone, fast a CRC-32C where the store "
        "checks one, auto an MD5 where it checks only that, strict refuses a store that checks neither and implies "
        f"{named('verify')}.",
        RUN,
        *("off", "fast", "auto", "strict"),
        default="auto",
    )
    verify: bool = _switch("Read every range of the source again until it comes twice the same.", RUN)
    staging_url: str | None = _field("URL of that zarr store.", "URL", RUN, default="beside DST")
    on_failure: str | None = _choice(
        "What an error leaves: keep what was sent, for the next run of the same conversion, or undo it.",
        RUN,
        "keep",
        "undo",
        default="keep",
    )
    restart: bool = _switch("Begin anew, whatever an earlier run has left.", RUN)
    keep_staging: bool = _switch("Keep the staged tensors for the next run.", RUN)

    @classmethod
    def of(cls, allowed: Collection[str] | None = None, /, **given: object) -> Request:
        """Make a request of options as people give them; None stands for an option that is not given.

        Parameters
        ----------
        allowed
            Names of the options that may be given; all if None.

        Raises
        ------
        TypeError
            An option that is unknown, or not allowed here.
        UsageError
            Values that cannot be read, or options that contradict each other; all are listed.

        Examples
        --------
        >>> request = Request.of(src="a", dst="b", memory="256MiB", keep="model.*")
        >>> request.memory, request.keep
        (268435456, ('model.*',))
        """
        unknown = sorted(given.keys() - set(OPTIONS if allowed is None else allowed))
        if unknown:
            raise TypeError(f"unknown options: {', '.join(map(_with_suggestion, unknown))}")
        read: dict[str, Any] = {}
        problems: list[UsageError] = []
        for name, value in given.items():
            try:
                read |= {} if value is None else {name: OPTIONS[name].parse(name, value)}
            except UsageError as error:
                problems.append(error)
        _raise(problems)
        return cls(**read)

    def __post_init__(self) -> None:
        _raise([*_contradictions(self), *_object_contradictions(self)])

    @property
    def reads_twice(self) -> bool:
        """Whether every range of the source is read again."""
        return self.verify or self.integrity == "strict"

    @property
    def is_sharded(self) -> bool:
        """Whether the target is rank shards."""
        return bool(self.dst_strategy or self.dst_layout or self.parallel or self.serve)

    @property
    def replaces(self) -> bool:
        """Whether outputs that exist are replaced."""
        return self.overwrite or self.if_exists == "replace"

    @property
    def names_object(self) -> bool:
        """Whether the target is named as a single object."""
        return self.dst.rstrip("/").endswith(OBJECT_SUFFIXES)


OPTIONS: Mapping[str, OptionField] = {each.name: each.metadata["option"] for each in fields(Request)}
"""Every option by name, in the order of the help."""

SOURCE_OPTIONS = (
    *(name for name, each in OPTIONS.items() if each.group == SOURCE),
    *("family", "naming", "option", "config"),  # what a source's parallel sizes may need
    "concurrency",
    "give_up_after",
)
"""Options that concern the source alone."""

CHANGE_OPTIONS = tuple(name for name, each in OPTIONS.items() if each.group == CHANGES)
"""Options that concern names and values."""

_WHERE = ("engine", "ray_address", "give_up_after")

RUN_OPTIONS = ("if_exists", "overwrite", "keep_staging", "on_failure", "restart", *_WHERE)
"""Options that concern a run alone, so that they may be given beside a saved plan."""

PLAN_OPTIONS = tuple(name for name in OPTIONS if name not in RUN_OPTIONS)
"""Options that a plan depends on."""

PLANNING_OPTIONS = (*PLAN_OPTIONS, *_WHERE)
"""Options that concern making a plan."""

STRATEGY_OPTIONS = ("parallel", "to", "family", "naming", "config", "option")
"""Options that a strategy made from parallel sizes depends on."""

_PARAMETERS = "\n".join(
    f"    {name}\n        {write_options(each.help)}{f' Default: {each.default}.' * bool(each.default)}"
    for name, each in OPTIONS.items()
)
Request.__doc__ = f"""{Request.__doc__}

    Make it with :meth:`of`, which takes values as people write them.

    Parameters
    ----------
{_PARAMETERS}
    """


def _with_suggestion(name: str) -> str:
    """Explain an option that cannot be given here: misspelt perhaps, or of another statement."""
    if name in OPTIONS:
        return f"{name} (not an option of this statement)"
    near = get_close_matches(name, OPTIONS, n=1)
    return f"{name} (did you mean {near[0]}?)" if near else name


def _raise(problems: list[UsageError]) -> None:
    if len(problems) == 1:
        raise problems[0]
    if problems:
        texts = [
            " ".join(part for part in (each.marked_message.rstrip(".") + ".", each.marked_hint) if part)
            for each in problems
        ]
        raise UsageError(f"{len(problems)} problems with the options", problems=texts)


def _contradictions(request: Request) -> Iterator[UsageError]:
    """Yield an error for each contradiction between options."""
    cuts = ("dst_strategy", "dst_layout", "parallel", "serve")
    for names in (("src_strategy", "src_layout", "src_parallel"), cuts):
        given = [named(name, getattr(request, name)) for name in names if getattr(request, name)]
        if len(given) > 1:
            yield UsageError(f"{' and '.join(given)} cannot be used together", hint="Choose one.")
    if request.lora_scaling is not None and not (request.lora or request.merge_lora):
        yield UsageError(f"{named('lora_scaling')} needs {named('lora')} or {named('merge_lora')}")
    if request.on_overflow and not (request.dtype or request.to or request.lora or request.merge_lora):
        yield UsageError(f"{named('on_overflow')} needs {named('dtype')}: nothing else makes values smaller")
    yield from _serving_contradictions(request)
    is_for_rules = request.to or request.src_parallel or request.serve
    if request.option and not is_for_rules and request.dst:  # a strategy may be made for a checkpoint as it is
        yield UsageError(f"{named('option')} belongs to a family's rules: it needs {named('to')}")
    if request.is_sharded and request.form not in (None, *_FORMS_OF_RANKS):
        yield UsageError(
            f"{named('form', request.form)} writes a full checkpoint; a target strategy or layout cannot cut it"
        )
    if not request.is_sharded:
        for name in ("ranks", "remove_redundancy"):
            if getattr(request, name):
                hint = "A full checkpoint has no ranks."
                yield UsageError(f"{named(name)} needs a target strategy or layout", hint=hint)
        if request.form in _FORMS_OF_RANKS:
            hint = "It is one object per rank."
            yield UsageError(f"{named('form', request.form)} needs a target strategy or layout", hint=hint)
    if request.verify and request.integrity == "off":
        yield UsageError(f"{named('verify')} and {named('integrity', 'off')} contradict each other")
    if request.overwrite and request.if_exists not in (None, "replace"):
        yield UsageError(f"{named('overwrite')} and {named('if_exists', request.if_exists)} contradict each other")
    if request.ray_address and request.engine != "ray":
        yield UsageError(f"{named('ray_address')} needs {named('engine', 'ray')}")
    if request.staging == "never" and request.staging_url:
        yield UsageError(f"{named('staging_url')} is for staging, but {named('staging', 'never')} is given")


def _serving_contradictions(request: Request) -> Iterator[UsageError]:
    """Yield an error for each contradiction about networks that serve the model."""
    if request.form == "vllm" and not request.serve:
        yield UsageError(f"{named('form', 'vllm')} needs {named('serve', 'tp=N')}")
    if request.vllm and request.form != "vllm":
        yield UsageError(f"{named('vllm', request.vllm)} needs {named('form', 'vllm')}")
    if not request.serve:
        return
    if request.form not in (None, "vllm"):
        yield UsageError(f"{named('form', request.form)} is no form that {named('serve')} writes")
    if request.to:
        yield UsageError(f"{named('to', request.to)} and {named('serve')}: the networks decide the names")
    if request.remove_redundancy:
        yield UsageError(f"{named('remove_redundancy')} and {named('serve')}: each rank loads its own object alone")


def _object_contradictions(request: Request) -> Iterator[UsageError]:
    """Yield an error for each contradiction about the objects to write."""
    form, format_ = request.form and named("form", request.form), request.format and named("format", request.format)
    if request.iteration is not None and request.form != "iteration":
        yield UsageError(f"{named('iteration')} needs {named('form', 'iteration')}")
    if request.form == "iteration" and request.ranks is not None:
        yield UsageError(f"{named('ranks')} with {form} would leave out what its metadata.json promises")
    if request.form == "dcp" and request.ranks is not None:
        yield UsageError(f"{named('ranks')} with {form} would leave out pieces that no other rank has")
    if request.form is not None and request.prefix is not None and request.form != "iteration":
        yield UsageError(f"{named('prefix')} is for rank shards, but {form} has names of its own")
    if request.part_size is not None and (
        request.is_sharded or request.format == "ckpt" or request.prefix or request.names_object
    ):
        yield UsageError(f"{named('part_size')} is for full checkpoints of several objects")
    if request.form is not None and (request.format == "ckpt" or (request.form == "zarr" and request.format)):
        made_of = "plain chunks" if request.form == "zarr" else "safetensors"
        yield UsageError(f"{form} consists of {made_of}, but {format_} is given")
    if request.names_object:
        if request.is_sharded or request.prefix or request.form:
            what = f"{request.form} checkpoints" if request.form else "rank shards"
            hint = f"Remove the suffix; {named('prefix')} names rank shards."
            yield UsageError(f"{request.dst}: {what} need a prefix, not the name of one object", hint=hint)
        elif request.format and not request.dst.rstrip("/").endswith(f".{request.format}"):
            yield UsageError(f"{request.dst} does not end in .{request.format}, but {format_} is given")
