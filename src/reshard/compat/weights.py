"""convert_weight.py and transform_ckpt_lora.py of MindSpore Transformers, each made one conversion.

What the first knows of models and flags is data, in ``convert_weight.yaml``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Unpack

from ..api.changes import load_config
from ..api.options import Options, check_options
from ..api.statements import draw, load_strategy_source, run, wanted_from
from ..engine.events import Listener, ignore
from ..engine.manifest import Manifest
from ..engine.sources.headers import container_of
from ..engine.sources.strategy_files import read_object
from ..errors import FormatError, UsageError, raise_all
from ..formats.containers import Container
from ..formats.strict_json import shown
from ..formats.strict_yaml import PlainValue, parse_yaml
from ..models.family import Family, Parameter
from ..models.family_file import load_family
from ..models.settings import config_value
from ..storage import open_location, shared_connections
from .checkpoints import Extras, buffer_notes, extra_options, for_target, requests_for, text_or_none, with_notes

_YAML = (".yaml", ".yml")
_PICKLED = (".bin", ".pt", ".pth")
_SWITCHES = {"true": True, "1": True, "false": False, "0": False}


@shared_connections()
def convert_weight(
    model: str,
    input_path: str,
    output_path: str,
    *,
    reversed: bool = False,  # noqa: A002  the script's name for it
    dtype: str | None = None,
    config: str | None = None,
    is_lora: bool = False,
    save_format: str | None = None,
    max_worker: int | None = None,
    flags: Mapping[str, object] | None = None,
    overwrite: bool = False,
    on_event: Listener = ignore,
    **extras: Unpack[Extras],
) -> Manifest:
    """Bring Hugging Face's weights to MindSpore Transformers' names, or back, as ``convert_weight.py`` does.

    Parameters
    ----------
    model
        What the script or its documents call it, like ``llama``, ``glm-n`` or ``deepseekv3``.
    input_path
        A checkpoint in any form, whole.
    output_path
        The object to write, or a prefix for several; see ``docs/original-commands.md``.
    reversed
        From MindSpore Transformers to Hugging Face.
    dtype
        ``fp32``, ``fp16`` or ``bf16``; without it what the script takes for this model.
    config
        URL of the model's ``config.json``, or of a YAML configuration of MindSpore Transformers.
    is_lora
        Adapters alone are not converted: True is an error.
    save_format
        ``ckpt`` or ``safetensors``; by default what the script writes for this model.
    max_worker
        Each stands for 8 requests in flight, 64 at most.
    flags
        The script's further flags, like ``num_layers`` and ``qkv_concat``, by name. Numbers are
        compared with what ``config.json`` says, or take its place where it says nothing.

    Raises
    ------
    UsageError
        A model, a flag or an output that there are no rules for, or flags that contradict ``config.json``.
    ReshardError
        As for :func:`reshard.convert`.
    """
    asked = _model(model, reversed)
    if is_lora:
        raise UsageError(
            "--is_lora True: adapters are not converted on their own",
            hint="reshard transform-ckpt-lora merges them; reshard convert --to ms --lora URL does both in one pass.",
        )
    said = _said(flags or {}, asked.family, strict=True) + _said_by_yaml(config, asked.family)
    options: Options = {
        "to": "hf" if reversed else "ms",
        "family": asked.family.name,
        "naming": asked.naming,
        "option": (*asked.options, *_chosen(said)),
        "config": _merged_config(said, asked, config, input_path),
        "dtype": text_or_none(dtype) or asked.dtype,
        "concurrency": requests_for(max_worker),
        **extra_options(extras),
    }
    place, form = _place(output_path, asked, save_format, reversed=reversed)
    options["form"] = form
    check_options(options)
    made = draw(input_path, place, wanted_from(options), None, options, on_event=on_event)
    return run(made, overwrite=overwrite, on_event=on_event)


@shared_connections()
def transform_ckpt_lora(
    src_ckpt_path_or_dir: str,
    dst_ckpt_dir: str,
    *,
    src_ckpt_strategy: str | None = None,
    dst_ckpt_strategy: str | None = None,
    prefix: str = "checkpoint_",
    lora_scaling: float | None = None,
    save_format: str | None = None,
    overwrite: bool = False,
    on_event: Listener = ignore,
    **extras: Unpack[Extras],
) -> Manifest:
    """Merge low-rank adapters into their weights, as ``transform_ckpt_lora.py`` does.

    Parameters
    ----------
    src_ckpt_path_or_dir
        A checkpoint with its adapters: one object, or a prefix, with ``rank_R/`` or whole.
    dst_ckpt_dir
        Gets ``rank_R/<prefix>R.<save_format>``.
    src_ckpt_strategy, dst_ckpt_strategy
        A file, or a prefix with those of all stages; None for a full checkpoint.
    lora_scaling
        Alpha divided by rank; by default what ``adapter_config.json`` beside the source says.
    save_format
        ``ckpt``, the default, or ``safetensors``.

    Raises
    ------
    UsageError
        The scaling is not said: the script's silent 1 would be wrong for most adapters.
    ReshardError
        As for :func:`reshard.convert`.
    """
    strategy = text_or_none(dst_ckpt_strategy)
    options: Options = {
        "src_strategy": text_or_none(src_ckpt_strategy),
        "merge_lora": True,
        "lora_scaling": lora_scaling,
        "prefix": prefix,
        "format": text_or_none(save_format) or Container.CKPT.value,
        **extra_options(extras),
    }
    check_options(options)
    target = load_strategy_source(strategy) if strategy else None
    wanted = for_target(wanted_from(options), target)
    made = draw(src_ckpt_path_or_dir, dst_ckpt_dir, wanted, target, options, on_event=on_event)
    made = with_notes(made, buffer_notes(made))
    return run(made, overwrite=overwrite, on_event=on_event)


# Models.


@dataclass(frozen=True, slots=True)
class _Model:
    """What a name given with --model stands for."""

    called: str
    family: Family
    naming: str
    one: bool
    dtype: str | None
    options: tuple[str, ...]


@cache
def _table() -> dict[str, dict[str, PlainValue]]:
    name = "convert_weight.yaml"
    table = parse_yaml((resources.files(__package__) / name).read_bytes(), name)
    assert isinstance(table, dict)
    return table  # type: ignore[return-value]


def _model(called: str, backwards: bool) -> _Model:
    known = _table()["models"]
    found, back = known.get(called), _table()["reversed"].get(called)
    if not isinstance(found, dict) or not isinstance(back, dict):
        raise UsageError(f"--model {called}: there are no rules for it", hint=f"Known: {', '.join(known)}.")
    chosen = back if backwards else found
    dtype, options = chosen["dtype"], chosen.get("options") or []
    assert isinstance(options, list)
    return _Model(
        called,
        load_family(str(found["family"])),
        str(found["naming"]),
        found["one"] is True,
        dtype if isinstance(dtype, str) else None,
        tuple(map(str, options)),
    )


# Outputs.


def _place(place: str, model: _Model, save_format: str | None, *, reversed: bool) -> tuple[str, str | None]:  # noqa: A002
    """Where to write, and the form of several objects; None for a single one."""
    place, wished = place.rstrip("/"), text_or_none(save_format)
    named = container_of(place)
    if wished not in (None, *(container.value for container in Container)):
        raise UsageError(f"--save_format {wished}: expected ckpt or safetensors")
    if place.endswith(_PICKLED):
        raise UsageError(
            f"--output_path {place}: pickled files are not written",
            hint="Name a prefix, which gets model-0000i-of-0000n.safetensors, or a name that ends in .safetensors.",
        )
    if named is not None and wished not in (None, named.value):
        raise UsageError(f"--output_path {place} is a {named.value}, but --save_format says {wished}")
    if reversed and Container.CKPT in (named, wished):
        raise UsageError(f"--output_path {place}: Hugging Face has no .ckpt", hint="Name a prefix, or .safetensors.")
    if named is not None:
        return place, None
    if reversed:
        return place, "hf"
    if model.one:
        return f"{place}.{wished or Container.CKPT.value}", None
    return (f"{place}/checkpoints.ckpt", None) if wished == Container.CKPT.value else (place, "mindspore")


# Flags.


@dataclass(frozen=True, slots=True)
class _Said:
    """One flag, or one key of a YAML file: of a number, or of a choice."""

    where: str
    parameter: Parameter | None
    value: int | bool
    option: str = ""


def _said(given: Mapping[str, object], family: Family, *, strict: bool, at: str = "--") -> tuple[_Said, ...]:
    """What is said about a family; ``strict`` if what says nothing about it is an error."""
    found = [(name, _one(f"{at}{name}", name, value, family)) for name, value in given.items() if value is not None]
    unknown = [f"{at}{name}: says nothing of {family.name}" for name, said in found if said is None]
    if strict:
        raise_all(UsageError, "flags that do not fit the model", unknown)
    return tuple(said for _, said in found if said is not None)


def _one(where: str, name: str, value: object, family: Family) -> _Said | None:
    size, choice = _table()["sizes"].get(name), _table()["choices"].get(name)
    if isinstance(choice, dict):
        options = {option.name for option in family.options}
        if choice["option"] not in options:
            return None
        is_so = _truth(where, value)
        return _Said(where, None, is_so, f"{choice['option']}={choice[str(is_so).lower()]}")
    parameter = next((one for one in family.parameters if one.name == size and one.config), None)
    if parameter is None:
        return None
    if isinstance(parameter.default, bool):
        return _Said(where, parameter, _truth(where, value))
    return _Said(where, parameter, _count(where, value))


def _truth(where: str, value: object) -> bool:
    found = _SWITCHES.get(str(value).strip().lower())
    if found is None:
        raise UsageError(f"{where} {shown(value)}: expected True or False")
    return found


def _count(where: str, value: object) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,12}", str(value).strip()):
        raise UsageError(f"{where} {shown(value)}: expected a count")
    return int(str(value))


def _said_by_yaml(config: str | None, family: Family) -> tuple[_Said, ...]:
    """What model_config in a YAML file says that concerns the family; it says much else."""
    if config is None or not config.endswith(_YAML):
        return ()
    place = open_location(config)
    section = parse_yaml(read_object(place), place.url, foreign=True)
    for key in ("model", "model_config"):
        section = section.get(key) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        raise FormatError("configuration", where=place.url, expected="model.model_config", found="nothing")
    plain = {key: value for key, value in section.items() if isinstance(value, (int, bool))}
    return _said(plain, family, strict=False, at="model_config.")


def _chosen(said: tuple[_Said, ...]) -> Iterator[str]:
    """The options that were chosen; a flag goes before the file, which comes after it."""
    taken: set[str] = set()
    for item in said:
        name = item.option.partition("=")[0]
        if name and name not in taken:
            taken.add(name)
            yield item.option


# The configuration.


def _merged_config(said: tuple[_Said, ...], model: _Model, url: str | None, src: str) -> dict[str, object] | str | None:
    """What config.json says and, where it says nothing, the flags; its URL if they add nothing.

    Raises
    ------
    UsageError
        They contradict each other; all contradictions are listed.
    """
    url = None if url is None or url.endswith(_YAML) else url
    alone = load_config(url, src)
    config, known = dict(alone), alone.get("model_type")
    problems = []
    if isinstance(known, str) and known not in model.family.model_types:
        problems.append(f"--model {model.called}, but model_type of config.json is {shown(known)}")
    for item in said:
        problems += _take(config, item) if item.parameter is not None else ()
    raise_all(UsageError, "what is said of the model contradicts itself", problems, hint="Leave out what is wrong.")
    return url if config == alone else config


def _take(config: dict[str, object], said: _Said) -> Iterator[str]:
    """Put one number into a configuration that lacks it, or compare."""
    assert said.parameter is not None
    there = {key: config_value(config, key) for key in said.parameter.config}
    key, found = next(((key, value) for key, value in there.items() if value is not None), (None, None))
    if key is None:
        config[said.parameter.config[0]] = said.value
    elif found != said.value:
        yield f"{said.where} is {str(said.value).lower()}, but {key} is {shown(found)} in config.json or another flag"
