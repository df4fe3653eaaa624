"""convert_weight.py and transform_ckpt_lora.py of MindSpore Transformers, each made one conversion.

The models and flags of the first are data, in ``convert_weight.yaml``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import resources
from typing import Annotated

from ..api.contents import YAML, load_config
from ..api.option_field import OptionField, read_nullable, read_ratio, read_truth
from ..api.request import OPTIONS, Request
from ..api.resolve import resolve
from ..errors import FormatError, UsageError, option, raise_all
from ..formats.containers import Container, container_of
from ..formats.strict_json import shown
from ..formats.strict_yaml import PlainValue, parse_yaml
from ..models.family import Family, Parameter
from ..models.family_file import load_family
from ..models.settings import config_value
from ..planning.limits import requests_for
from ..storage import open_location, read_object
from .buffers import LeaveOutBuffers
from .checkpoints import Prefix, strategy_option
from .imitation import Processes, Translation, format_option, imitation

_PICKLED = (".bin", ".pt", ".pth")


def _size(help: str, *flags: str) -> OptionField:  # noqa: A002
    return OptionField(f"{help}; must agree with config.json.", "N", "Model", least=0, flags=flags)


def _layout(help: str) -> OptionField:  # noqa: A002
    return OptionField(help, "BOOL", "Model", "the rules' own", read_truth)


FLAGS: Mapping[str, OptionField] = {
    "qkv_concat": _layout("Write q, k and v, and gate and up, as one tensor."),
    "mlp_concat": _layout("GLM: write gate and up as one tensor."),
    "use_rearrange_rope": _layout("GLM: separate the rows of rotary pairs."),
    "use_gmm": _layout("Mixtral: lay experts out for the grouped product."),
    "use_grouped_gemm": _layout("DeepSeek: lay experts out for the grouped product."),
    "num_layers": _size("Number of layers"),
    "num_nextn_predict_layers": _size("Number of layers that predict further tokens"),
    "first_k_dense_replace": _size("Number of first layers without experts"),
    "num_routed_experts": _size("Experts of a layer"),
    "hidden_size": _size("Size of hidden states"),
    "vocab_size": _size("Rows of the embedding"),
    "ffn_hidden_size": _size("Rows of a layer's gate"),
    "moe_ffn_hidden_size": _size("Rows of an expert's gate"),
    "num_attention_heads": _size("Attention heads", "--num_attention_heads", "--n_head"),
    "num_query_groups": _size("Heads of keys and values"),
    "kv_channels": _size("Rows of a head"),
    "qk_nope_head_dim": _size("DeepSeek: rows of a head without rotation"),
    "qk_rope_head_dim": _size("DeepSeek: rows of a head with rotation"),
    "v_head_dim": _size("DeepSeek: rows of a value"),
}
"""The script's further flags, which describe the model."""


@imitation(
    "drop",
    "load_ckpt_format",
    "network_only",
    "keep_rank",
    "memory",
    src="input_path",
    dst="output_path",
    concurrency="max_worker",
    without_effect={
        "layers": "only GPT-2 and WizardCoder need it",
        "is_pretrain": "only Swin needs it",
        "telechat_type": "only TeleChat needs it",
    },
)
def convert_weight(
    model: Annotated[str, OptionField("Name of the model in the script, like llama or deepseekv3.", "NAME")],
    input_path: Annotated[str, OptionField("Full checkpoint to convert, in any form.", "URL")],
    output_path: Annotated[str, OptionField("Object to write, or a prefix for several.", "URL")],
    *,
    reversed: Annotated[  # noqa: A002  the script's name for it
        bool, OptionField("Convert from MindSpore Transformers to Hugging Face.", read=read_truth)
    ] = False,
    dtype: Annotated[str | None, replace(OPTIONS["dtype"], default="the script's", read=read_nullable)] = None,
    config: Annotated[str | None, OptionField("config.json, or a YAML configuration of training.", "URL")] = None,
    is_lora: Annotated[
        bool, OptionField("Convert adapters alone: not possible, an error.", "BOOL", read=read_truth)
    ] = False,
    save_format: Annotated[str | None, format_option("the script's")] = None,
    max_worker: Processes = None,
    flags: Mapping[str, object] | None = None,
) -> Translation:
    """Bring Hugging Face's weights to MindSpore Transformers' names, or back, as ``convert_weight.py`` does.

    ``flags`` are the script's further ones, like ``num_layers`` and ``qkv_concat``, by name. Sizes are compared with
    ``config.json``, or take its place where it has none. Raise UsageError for a model, a flag or an output that there
    are no rules for, and for flags that contradict ``config.json``.
    """
    chosen = _model(model, reversed)
    if is_lora:
        raise UsageError(
            f"{option('is_lora', True)}: adapters are not converted on their own",
            hint="reshard transform-ckpt-lora merges them; reshard convert --to ms --lora URL does both in one pass.",
        )
    given = _read_flags(flags or {}, chosen.family)
    stated = (*given, *_in_yaml(config, chosen.family))
    place, form = _place(output_path, chosen, save_format, is_reversed=reversed)
    request = Request.of(
        src=input_path,
        dst=place,
        form=form,
        to="hf" if reversed else "ms",
        family=chosen.family.name,
        naming=chosen.naming,
        option=(*chosen.options, *_choices(stated)),
        config=_merged_config(stated, chosen, config, input_path),
        dtype=dtype or chosen.dtype,
        concurrency=requests_for(max_worker),
    )
    return request, resolve


def _read_scaling(value: object) -> float | None:
    """Read a scaling; the words that the documents print ask for that of adapter_config.json."""
    return None if value == "lora_alpha/lora_rank" else read_ratio(value)


@imitation(
    "drop",
    "load_ckpt_format",
    "network_only",
    "keep_rank",
    "memory",
    src="src_ckpt_path_or_dir",
    dst="dst_ckpt_dir",
    src_strategy="src_ckpt_strategy",
    dst_strategy="dst_ckpt_strategy",
    format="save_format",
)
def transform_ckpt_lora(
    src_ckpt_path_or_dir: Annotated[
        str,
        OptionField(
            "Checkpoint with its adapters: one object, or a prefix.",
            "URL",
            flags=("--src_ckpt_path_or_dir", "--src_ckpt_path"),
        ),
    ],
    dst_ckpt_dir: Annotated[
        str,
        OptionField(
            "Where rank_R/<prefix>R.<save_format> go; the script's default does not apply.",
            "URL",
            flags=("--dst_ckpt_dir", "--dst_ckpt_path"),
        ),
    ],
    *,
    src_ckpt_strategy: Annotated[str | None, strategy_option("source", "--src_ckpt_strategy")] = None,
    dst_ckpt_strategy: Annotated[str | None, strategy_option("target", "--dst_ckpt_strategy")] = None,
    prefix: Prefix = "checkpoint_",
    lora_scaling: Annotated[
        float | str | None,
        OptionField(
            "Alpha divided by rank, also as 16/8.", "X", default="from adapter_config.json", read=_read_scaling
        ),
    ] = None,
    save_format: Annotated[str | None, format_option("ckpt")] = None,
) -> Translation:
    """Merge low-rank adapters into their weights, as ``transform_ckpt_lora.py`` does.

    Raise UsageError if the scaling is unknown: the script's silent 1 would be wrong for most adapters.
    """
    request = Request.of(
        src=src_ckpt_path_or_dir,
        dst=dst_ckpt_dir,
        src_strategy=src_ckpt_strategy,
        dst_strategy=dst_ckpt_strategy,
        merge_lora=True,
        lora_scaling=lora_scaling,
        prefix=prefix,
        format=save_format or Container.CKPT,
    )
    return request, partial(resolve, hooks=LeaveOutBuffers())


# Models.


@dataclass(frozen=True, slots=True)
class _Model:
    """The model that a name of the script stands for."""

    name: str
    family: Family
    naming: str
    is_one_object: bool
    dtype: str | None
    options: tuple[str, ...]


@cache
def _table() -> dict[str, dict[str, PlainValue]]:
    name = "convert_weight.yaml"
    table = parse_yaml((resources.files(__package__) / name).read_bytes(), name)
    assert isinstance(table, dict)
    return table  # type: ignore[return-value]


def model_of_folder(folder: str) -> str | None:
    """Return the model whose scripts a folder of MindSpore Transformers has; None if it is of no model known here.

    Examples
    --------
    >>> model_of_folder("deepseek3"), model_of_folder("research")
    ('deepseek3', None)
    """
    found = _table()["folders"].get(folder)
    return None if found is None else str(found)


def _model(name: str, is_reversed: bool) -> _Model:
    known = _table()["models"]
    found, back = known.get(name), _table()["reversed"].get(name)
    if not isinstance(found, dict) or not isinstance(back, dict):
        raise UsageError(f"{option('model', name)}: there are no rules for it", hint=f"Known: {', '.join(known)}.")
    way = back if is_reversed else found
    dtype, options = way["dtype"], way.get("options") or []
    assert isinstance(options, list)
    return _Model(
        name,
        load_family(str(found["family"])),
        str(found["naming"]),
        found["one"] is True,
        dtype if isinstance(dtype, str) else None,
        tuple(map(str, options)),
    )


def _place(place: str, model: _Model, save_format: str | None, *, is_reversed: bool) -> tuple[str, str | None]:
    """Return where to write, and the form of several objects; None for a single one."""
    place = place.rstrip("/")
    given, named = option("output_path", place), container_of(place)
    if place.endswith(_PICKLED):
        raise UsageError(
            f"{given}: pickled files are not written",
            hint="Name a prefix, which gets model-0000i-of-0000n.safetensors, or a name that ends in .safetensors.",
        )
    if named is not None and save_format not in (None, named.value):
        raise UsageError(f"{given} is a {named.value}, but {option('save_format', save_format)} is given")
    if is_reversed and Container.CKPT in (named, save_format):
        raise UsageError(f"{given}: Hugging Face has no .ckpt", hint="Name a prefix, or .safetensors.")
    if named is not None:
        return place, None
    if is_reversed:
        return place, "hf"
    if model.is_one_object:
        return f"{place}.{save_format or Container.CKPT.value}", None
    return (f"{place}/checkpoints.ckpt", None) if save_format == Container.CKPT.value else (place, "mindspore")


# Flags, and what a YAML file states.


@dataclass(frozen=True, slots=True)
class _Statement:
    """One flag, or one key of a YAML file: a size of the model, or a choice among its layouts."""

    where: str
    parameter: Parameter | None
    value: int | bool
    option: str = ""


def _read_flags(given: Mapping[str, object], family: Family) -> tuple[_Statement, ...]:
    """Read flags; all must concern the family."""
    found = {name: _statement(option(name), name, value, family) for name, value in given.items() if value is not None}
    unknown = [f"{option(name)} does not concern {family.name}" for name, each in found.items() if each is None]
    raise_all(UsageError, "flags that do not fit the model", unknown)
    return tuple(each for each in found.values() if each is not None)


def _in_yaml(config: str | None, family: Family) -> tuple[_Statement, ...]:
    """Read what model_config in a YAML file states about the family, among much else."""
    if config is None or not config.endswith(YAML):
        return ()
    place = open_location(config)
    section = parse_yaml(read_object(place), place.url, foreign=True)
    for key in ("model", "model_config"):
        section = section.get(key) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        raise FormatError("configuration", where=place.url, expected="model.model_config", found="nothing")
    plain = {key: value for key, value in section.items() if isinstance(value, (int, bool))}
    found = (_statement(f"model_config.{key}", key, value, family) for key, value in plain.items())
    return tuple(each for each in found if each is not None)


def _statement(where: str, name: str, value: object, family: Family) -> _Statement | None:
    size, choice = _table()["sizes"].get(name), _table()["choices"].get(name)
    if isinstance(choice, dict):
        if choice["option"] not in {each.name for each in family.options}:
            return None
        is_so = _read(where, value, read_truth)
        return _Statement(where, None, is_so, f"{choice['option']}={choice[str(is_so).lower()]}")
    parameter = next((one for one in family.parameters if one.name == size and one.config), None)
    if parameter is None:
        return None
    return _Statement(
        where, parameter, _read(where, value, read_truth if isinstance(parameter.default, bool) else _read_count)
    )


def _read(where: str, value: object, read: Callable[[object], int]) -> int:
    try:
        return read(value)
    except UsageError as error:
        raise UsageError(f"{where} {shown(value)}: {error.marked_message}") from None


def _read_count(value: object) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,12}", str(value).strip()):
        raise UsageError("expected a count")
    return int(str(value))


def _choices(stated: Iterable[_Statement]) -> Iterator[str]:
    """Yield the options that are chosen; the first statement about one decides, as flags come before the file."""
    taken: set[str] = set()
    for item in stated:
        name = item.option.partition("=")[0]
        if name and name not in taken:
            taken.add(name)
            yield item.option


def _merged_config(
    stated: Iterable[_Statement], model: _Model, url: str | None, src: str
) -> dict[str, object] | str | None:
    """Return config.json with the statements where it has nothing; its URL if they add nothing.

    Raise UsageError with all contradictions among them.
    """
    url = None if url is None or url.endswith(YAML) else url
    alone = load_config(url, src)
    config, known = dict(alone), alone.get("model_type")
    problems = []
    if isinstance(known, str) and known not in model.family.model_types:
        problems.append(f"{option('model', model.name)}, but model_type of config.json is {shown(known)}")
    for item in stated:
        problems += _take(config, item) if item.parameter is not None else ()
    hint = "Leave out what is wrong."
    raise_all(UsageError, "flags and files contradict each other about the model", problems, hint)
    return url if config == alone else config


def _take(config: dict[str, object], stated: _Statement) -> Iterator[str]:
    """Put one size into a configuration that lacks it, or compare."""
    assert stated.parameter is not None
    there = {key: config_value(config, key) for key in stated.parameter.config}
    key, found = next(((key, value) for key, value in there.items() if value is not None), (None, None))
    if key is None:
        config[stated.parameter.config[0]] = stated.value
    elif found != stated.value:
        value = str(stated.value).lower()
        yield f"{stated.where} is {value}, but {key} is {shown(found)} in config.json or another flag"
