"""What people and job services type: URLs, variables of the environment, options, settings, command lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from io import StringIO
from typing import Any
from unittest.mock import patch

from typer.main import get_command

from reshard.api.option_field import parse_duration, parse_patience, parse_rate, parse_size, read_integer
from reshard.api.request import OPTIONS, Request
from reshard.cli.app import app
from reshard.cli.printing import plain
from reshard.cli.scripts import as_command
from reshard.compat.checkpoints import _rank_of_process
from reshard.compat.weights import _in_yaml
from reshard.engine.verification import Subset
from reshard.errors import ReshardError, is_signed, redacted
from reshard.jobs.hyper_parameters import SERVICE_OPTIONS, parse_arguments, read_hyper_parameters
from reshard.jobs.job_file import parse_job_file
from reshard.jobs.nodes import find_node, npu_warnings, staged_warnings
from reshard.jobs.service_job import ignored_names, is_hyper_parameter, request_options
from reshard.jobs.training_config import read_training_config
from reshard.jobs.variables import Variables
from reshard.models.family_file import load_family
from reshard.models.own_family import read_own_family
from reshard.models.pattern import parse_expression, parse_name, parse_tensor
from reshard.storage import connects_when_opened, open_location, open_target, s3_client
from reshard.storage.location import normal_key
from reshard.storage.s3_settings import obs_settings, s3_settings

Target = Callable[[bytes], object]

_WHERE = "input"
_JOBS = b"defaults: {memory: 1GiB}\njobs: {a: {src: memory://m/a, dst: memory://m/b}, c: {src: /x, dst: /y, needs: a}}"


def _text(data: bytes) -> str:
    """Return bytes as Python has those of a command line: what is no UTF-8 becomes halves of surrogate pairs."""
    return data.decode("utf-8", "surrogateescape")


def _lines(data: bytes) -> list[str]:
    return _text(data).split("\n")


def _pairs(data: bytes) -> dict[str, str]:
    return {name: text for name, equals, text in (line.partition("=") for line in _lines(data)) if equals}


def _each(*actions: Callable[[], object]) -> list[object]:
    """Return what actions return that end without an error of ours."""
    found = list[object]()
    for action in actions:
        with suppress(ReshardError):
            found.append(action())
    return found


@cache
def _client() -> tuple[Any, Any]:
    keyed = s3_settings("b", {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "s"}, "http://b.invalid")
    return s3_client._session(), s3_client.make_client(keyed)


@contextmanager
def one_client() -> Iterator[None]:
    """Have all buckets share a client: making one takes twenty milliseconds, and is boto3's work."""
    session, client = _client()
    with (
        patch.object(s3_client, "_session", lambda: session),
        patch.object(s3_client, "_client", lambda *_, **__: client),
    ):
        yield


def _url(data: bytes) -> object:
    text = _text(data)
    shown = redacted(text)
    assert redacted(shown) == shown
    if "://" in text and connects_when_opened(text) and not text.lower().startswith(("http://", "https://")):
        return is_signed(text)
    with one_client():
        return [place.url for place in _each(lambda: open_location(text), lambda: open_target(text))]  # type: ignore[attr-defined]


def _environment(data: bytes) -> object:
    found = _pairs(data)
    names = dict.fromkeys(found, None) | found

    def rank() -> object:
        with patch("reshard.compat.checkpoints.os.environ", found):
            return _rank_of_process()

    return _each(
        lambda: s3_settings("b", found, found.get("AWS_ENDPOINT_URL", "")).identity,
        lambda: obs_settings("b", found, found.get("AWS_REGION")).identity,
        lambda: npu_warnings(found, find_node(found, found.get("npu_num_per_node"))),
        lambda: staged_warnings(names),
        rank,
    )


def _sizes(data: bytes) -> object:
    text = _text(data)
    readers = (parse_size, parse_rate, parse_duration, parse_patience, read_integer, normal_key, Subset.parse)
    return _each(*(lambda read=read: read(text) for read in readers))  # type: ignore[misc]


def _request(data: bytes) -> object:
    found = _pairs(data)
    for name, text in found.items():
        field = OPTIONS.get(name) or SERVICE_OPTIONS.get(name)
        if field is not None:
            _each(lambda name=name, field=field, text=text: field.parse(name, text))  # type: ignore[misc]
    return Request.of(None, **{name: text for name, text in found.items() if name in OPTIONS})


def _hyper_parameters(data: bytes) -> object:
    lines = _lines(data)
    given = read_hyper_parameters(lines, _pairs(data), is_hyper_parameter)
    options = request_options(given)
    ignored_names(given)
    training = {name: given.text(name) for name in parse_arguments(lines).texts}
    return _each(lambda: Request.of(None, **options), lambda: read_training_config(None, training))


def _settings(data: bytes) -> object:
    return parse_job_file(_JOBS, _WHERE, {}, _lines(data))


def _variables(data: bytes) -> object:
    found = Variables("a/b", {"k": 1}, {"HOME": "/h"})
    return _each(*(lambda line=line: found.replaced_in({"x": [line]}) for line in _lines(data)))  # type: ignore[misc]


@cache
def _command(name: str) -> Any:
    group = get_command(app)
    return group.get_command(None, name)  # type: ignore[attr-defined]


def _command_line(data: bytes) -> object:
    """Read a command line down to the arguments of the command's function."""
    with patch.dict(os.environ), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        name, *words = as_command([word.replace("\0", "") for word in _lines(data)])
        command = _command(name.replace("_", "-"))
        if command is None:
            return None
        try:
            return command.make_context(name, words).params
        except Exception as error:
            if "click" in type(error).__module__:  # a message, or the end after help
                return type(error)
            raise


def _weight_config(data: bytes) -> object:
    place = open_target("memory://fuzz-weights/c.yaml")
    place.writable_store().put(place.key, data)
    return _in_yaml(place.url, load_family("deepseek_v3")), _in_yaml(place.url, load_family("llama"))


def _pattern(data: bytes) -> object:
    text = data.decode("utf-8", "replace")
    parsers = (parse_expression, parse_name)
    found = _each(*(lambda parse=parse: parse(text, _WHERE) for parse in parsers))  # type: ignore[misc]
    return found, _each(lambda: parse_tensor("a", text, _WHERE))


def _terminal(data: bytes) -> object:
    text = plain(_text(data), is_line=True)
    assert text.isprintable() or all(char.isprintable() or ord(char) > 0x9F for char in text)
    text.encode()
    return text


TEXTS: Mapping[str, Target] = {
    "command_line": _command_line,
    "environment": _environment,
    "hyper_parameters": _hyper_parameters,
    "own_family": lambda data: read_own_family(data, _WHERE),
    "pattern": _pattern,
    "request": _request,
    "settings": _settings,
    "sizes": _sizes,
    "terminal": _terminal,
    "url": _url,
    "variables": _variables,
    "weight_config": _weight_config,
}
"""Targets by their names."""
