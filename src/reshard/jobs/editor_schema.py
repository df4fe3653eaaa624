"""The JSON schema of job files, made from the fields of a request, for editors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..api.option_field import (
    MOST_PROCESSES,
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
    read_text,
    read_texts,
    read_truth,
)
from ..api.request import OPTIONS
from ..errors import write_options

Json = dict[str, Any]

_TEXT: Json = {"type": ["string", "number", "boolean"]}  # as written: 110 and yes are texts where text is due
_TEXTS: Json = {"type": "array", "items": _TEXT}
_NAMES: Json = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_WORDS = ("true", "false", "True", "False", "yes", "no", "on", "off", "1", "0")
_TRUTH: Json = {"anyOf": [{"type": "boolean"}, {"enum": [0, 1, *_WORDS]}]}
_NULL: Json = {"type": "null"}
"""Stands for an option that is not given."""
_VARIABLE: Json = {"type": "string", "pattern": r"\$"}
"""What holds a variable: what it stands for is known when the job runs."""

_TYPES: Mapping[Callable[..., Any], list[Json]] = {
    read_text: [_TEXT],
    read_texts: [_TEXT, _TEXTS],
    read_truth: [_TRUTH],
    read_pairs: [{"type": "object"}, _TEXTS],
    read_document: [_TEXT, {"type": "object"}],
    read_config: [_TEXT, {"type": "object"}],
    read_ranks: [_TEXT, _TEXTS],
    read_ratio: [_TEXT],
    read_serving: [_TEXT, {"type": "object"}],
    read_process_count: [
        {"type": "integer", "minimum": 1, "maximum": MOST_PROCESSES},
        {"type": "string", "pattern": "^(auto|[0-9]+)$"},
    ],
    parse_size: [{"type": "integer", "minimum": 1}, {"type": "string"}],
    parse_patience: [{"type": "number", "minimum": 0}, {"type": "string"}],
}
_ADDRESS = "https://json-schema.org/draft/2020-12/schema"


def job_schema() -> Json:
    """Return the JSON schema (draft 2020-12) of job files.

    It knows options, their types and choices; what options mean together, names and variables, ``reshard run --check``
    looks at.

    Examples
    --------
    >>> sorted(job_schema()["$defs"])
    ['job', 'matrix', 'options']
    >>> job_schema()["$defs"]["options"]["properties"]["dtype"]["anyOf"][0]
    {'enum': ['fp32', 'fp16', 'bf16']}
    """
    options = {name: _property(field) for name, field in OPTIONS.items()}
    return {
        "$schema": _ADDRESS,
        "title": "Job file of reshard",
        "if": {"anyOf": [{"required": ["jobs"]}, {"required": ["defaults"]}]},
        "then": _batch(),
        "else": {"$ref": "#/$defs/job"},
        "$defs": {
            "options": {"type": "object", "properties": options, "additionalProperties": False},
            "job": _job(options),
            "matrix": {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": {"anyOf": [{"type": "array"}, {"type": "object"}]},
            },
        },
    }


def _job(options: Json) -> Json:
    needs = {"description": "Jobs that must be done before.", **_NAMES}
    matrix = {
        "description": "Options with several values each: one job for every combination.",
        "$ref": "#/$defs/matrix",
    }
    properties = {**options, "needs": needs, "matrix": matrix}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _batch() -> Json:
    return {
        "type": "object",
        "properties": {
            "defaults": {"description": "Options of every job that does not set them.", "$ref": "#/$defs/options"},
            "jobs": {
                "description": "Jobs by name.",
                "type": "object",
                "minProperties": 1,
                "propertyNames": {"pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"},
                "additionalProperties": {"$ref": "#/$defs/job"},
            },
        },
        "required": ["jobs"],
        "additionalProperties": False,
    }


def _property(field: OptionField) -> Json:
    kinds: list[Json]
    if field.choices:
        kinds = [{"enum": list(field.choices)}]
    elif field.least is not None:
        kinds = [{"type": "integer", "minimum": field.least}, {"type": "string", "pattern": "^[0-9]+$"}]
    else:
        kinds = list(_TYPES[field.read])
    if not any("string" in kind.get("type", ()) and "pattern" not in kind for kind in kinds):
        kinds.append(_VARIABLE)
    kinds.append(_NULL)
    help_ = write_options(field.help, lambda name, value: name if value is None else f"{name}: {value}")
    about = {"description": f"{help_} Default: {field.default}." if field.default else help_}
    return about | (kinds[0] if len(kinds) == 1 else {"anyOf": kinds})
