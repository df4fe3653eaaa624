"""What a job service's hyper-parameters ask for: a conversion, and the node that does its share of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..api.option_field import read_texts
from ..api.request import OPTIONS, Request
from ..engine.events import Listener, ignore
from ..engine.sources.strategy_files import read_object
from ..errors import UsageError, option
from ..formats.strict_yaml import parse_yaml
from ..storage import open_location
from .hyper_parameters import SERVICE_OPTIONS, WAIT_S, HyperParameters
from .job_file import read_job_file
from .job_service import Node, check_destination, find_node, local_warnings, npu_warnings, staged_warnings
from .training_config import TrainingConfig, read_training_config
from .training_job import TrainingJob, decide
from .training_keys import find_known

_PLACES = (
    *("load_checkpoint", "pretrained_model_dir", "src", "data_url"),
    *("output_dir", "remote_save_url", "dst", "train_url"),
)
_OF_TRAINING = ("remove_redundancy",)
"""Options of a request whose names are a training YAML's, where they are about what the job loads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceJob:
    """A job as one node sees it.

    Parameters
    ----------
    requests
        The conversions by name, in order; none if there is nothing to convert.
    training
        The decision on a training YAML, if it is one that asks.
    warnings, notes
        What is odd, and what else a person should know.
    """

    node: Node
    wait_s: float
    requests: Mapping[str, Request]
    training: TrainingJob | None = None
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()


def is_hyper_parameter(name: str) -> bool:
    """Whether a variable of the environment with this name is a hyper-parameter.

    Examples
    --------
    >>> [is_hyper_parameter(name) for name in ("wait", "dtype", "load_checkpoint", "optimizer.betas", "PATH")]
    [True, True, True, True, False]
    """
    return name in SERVICE_OPTIONS or name in OPTIONS or find_known(name) is not None


def read_service_job(given: HyperParameters, environ: Mapping[str, str], on_event: Listener = ignore) -> ServiceJob:
    """Find out what a job is asked to do on this node; documents and headers are read, nothing is written.

    Raises
    ------
    UsageError
        Hyper-parameters that contradict each other or cannot be read, or a place among the nodes that is unclear.
    ReshardError
        What :func:`~reshard.jobs.training_config.read_training_config` and
        :func:`~reshard.jobs.training_job.decide` raise.
    """
    service = {
        name: field.parse(name, given.texts[name][-1]) for name, field in SERVICE_OPTIONS.items() if name in given
    }
    find_node(environ, service.get("npu_num_per_node"))  # mistakes in it show before anything is read
    training, npu_count = None, service.get("npu_num_per_node")
    requests = _job_requests(given)
    if requests is None and _is_training(given):
        training = decide(_training_config(given, service), on_event=on_event, **_training_options(given))
        requests = {"": training.request} if training.request else {}
        npu_count = npu_count or training.config.npu_num_per_node
    elif requests is None:
        requests = {"": Request.of(None, **_plain_options(given, service))}
    node = find_node(environ, npu_count)
    for request in requests.values():
        check_destination(request.dst, node)
        if request.ranks is not None and node.count > 1:
            raise UsageError(f"{option('ranks')} is for one node; of {node.count} nodes each writes its own ranks")
    places = {name: given.text(name) for name in _PLACES}
    return ServiceJob(
        node=node,
        wait_s=service.get("wait", WAIT_S),
        requests=requests,
        training=training,
        warnings=[
            *staged_warnings(places),
            *npu_warnings(environ, node),
            *(text for request in requests.values() for text in local_warnings(request.dst, node)),
            *_training_warnings(training),
        ],
        notes=[] if training is None else [training.verdict, *training.notes],
    )


def ignored_names(given: HyperParameters) -> list[str]:
    """Return the names of hyper-parameters that mean nothing to the conversion that is asked for."""
    is_training = _is_training(given)
    others = [name for name in given.texts if name not in OPTIONS and name not in SERVICE_OPTIONS]
    return [name for name in others if not is_training or find_known(name) is None]


def request_options(given: HyperParameters) -> dict[str, Any]:
    """Return the options of a request among hyper-parameters; what is given empty, or as ``None``, is not given.

    Examples
    --------
    >>> from reshard.jobs.hyper_parameters import parse_arguments
    >>> request_options(parse_arguments(["--dtype=bf16", "--keep=a.*", "--keep=b.*", "--lora=None", "--seed=7"]))
    {'keep': ('a.*', 'b.*'), 'dtype': 'bf16'}
    """
    found: dict[str, Any] = {}
    for name, field in OPTIONS.items():
        if given.text(name) is not None:
            found[name] = given.texts[name] if field.read is read_texts else given.text(name)
    return found


def _is_training(given: HyperParameters) -> bool:
    """Whether keys of a training YAML ask; ``config`` may also be a model's ``config.json``."""
    if (given.text("config") or ".json").endswith(".json"):
        return not given.text("src") and any(
            given.text(name) for name in ("load_checkpoint", "pretrained_model_dir", "auto_trans_ckpt")
        )
    return True


def _job_requests(given: HyperParameters) -> dict[str, Request] | None:
    """Return the requests of a job file by their jobs' names; None if ``config`` is none, or something else.

    Options that are given besides take precedence in the only job of a file; raise UsageError for those beside a batch.
    """
    url = given.text("config")
    if url is None or url.endswith(".json"):
        return None
    place = open_location(url)
    document = parse_yaml(read_object(place), place.url, foreign=True)
    if not isinstance(document, dict) or not (document.keys() >= {"src", "dst"} or "jobs" in document):
        return None
    requests = {job.name: job.request for job in read_job_file(url)}
    options = {name: OPTIONS[name].parse(name, value) for name, value in _training_options(given).items()}
    if options and len(requests) > 1:
        raise UsageError(
            f"{place.url}: {', '.join(map(option, options))} cannot be given beside a batch of {len(requests)} jobs",
            hint="Set them in the file, in defaults or in a job.",
        )
    return {name: replace(request, **options) for name, request in requests.items()}


def _plain_options(given: HyperParameters, service: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a conversion that hyper-parameters alone describe."""
    options = request_options(given)
    for name, channel in (("src", "data_url"), ("dst", "train_url")):
        if name not in options and service.get(channel):
            options[name] = service[channel]
    missing = [option(name) for name in ("src", "dst") if name not in options]
    if missing:
        hint = f"A training job gives {option('config')}, {option('load_checkpoint')} and {option('output_dir')}."
        raise UsageError(f"no hyper-parameter names {' or '.join(missing)}", hint=hint)
    return options


def _training_options(given: HyperParameters) -> dict[str, Any]:
    options = request_options(given)
    return {name: value for name, value in options.items() if name not in (*_OF_TRAINING, "config")}


def _training_config(given: HyperParameters, service: Mapping[str, Any]) -> TrainingConfig:
    """Read the training YAML and the keys that are given besides; channels stand in for places that nothing names."""
    overrides = {
        name: texts[-1]
        for name, texts in given.texts.items()
        if find_known(name) is not None and (name not in OPTIONS or name in _OF_TRAINING)
    }
    config = read_training_config(given.text("config"), overrides)
    if not config.load_checkpoint and not config.pretrained_model_dir and service.get("data_url"):
        config = replace(config, load_checkpoint=service["data_url"])
    remote = next((key.value for key in config.keys if key.path == "remote_save_url" and key.value), None)
    place = remote or service.get("train_url")
    if place and not given.text("output_dir") and "://" not in config.output_dir:
        config = replace(config, output_dir=str(place))
    return config


def _training_warnings(training: TrainingJob | None) -> list[str]:
    """Return what is odd about a training YAML; ``?`` is no key of it."""
    if training is None:
        return []
    unknown = [f"{key.path} is no key that is known: it has no effect" for key in training.config.keys_of("unknown")]
    return [*training.contradictions, *unknown]
