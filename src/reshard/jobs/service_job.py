"""What a job service's hyper-parameters ask for: a conversion, and the node that does its share of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..api.option_field import read_texts
from ..api.request import OPTIONS, Request
from ..engine.events import Listener, ignore
from ..errors import UsageError, option
from ..formats.strict_yaml import PlainValue, parse_yaml
from ..formats.yaml_kinds import YamlKind, kind_of
from ..storage import open_location, read_object
from .hyper_parameters import SERVICE_OPTIONS, WAIT_S, HyperParameters
from .job_file import Job, read_job_file
from .nodes import Node, check_destination, find_node, local_warnings, npu_warnings, staged_warnings
from .ray_nodes import RayNode, without_ray
from .training_config import TrainingConfig, read_training_config
from .training_job import TrainingJob, decide
from .training_keys import find_known

_PLACES = (
    *("load_checkpoint", "pretrained_model_dir", "src", "data_url"),
    *("output_dir", "remote_save_url", "dst", "train_url"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceJob:
    """A job as one node sees it.

    Parameters
    ----------
    jobs
        The conversions; none if there is nothing to convert.
    training
        The decision on a training YAML, if it is one that asks.
    warnings, notes
        What is odd, and what else a person should know.
    ray
        This node's part of a Ray cluster that all nodes make; None if each node works for itself.
    """

    node: Node
    wait_s: float
    jobs: Sequence[Job]
    training: TrainingJob | None = None
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    ray: RayNode | None = None


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
    training = None
    given, warnings = without_ray(given, environ)
    npu_count = service.get("npu_num_per_node")
    jobs = _jobs_of_file(given, warnings)
    if jobs is None and _is_training(given):
        training = decide(_training_config(given, service), on_event=on_event, **_more_options(given))
        jobs = [Job("", training.request)] if training.request else []
        npu_count = npu_count or training.config.npu_num_per_node
    elif jobs is None:
        jobs = [Job("", Request.of(None, **_plain_options(given, service)))]
    node = find_node(environ, npu_count)
    for job in jobs:
        check_destination(job.request.dst, node)
        if job.request.ranks is not None and node.count > 1 and job.request.engine != "ray":
            raise UsageError(f"{option('ranks')} is for one node; of {node.count} nodes each writes its own ranks")
    warnings += staged_warnings({name: given.text(name) for name in _PLACES})
    warnings += npu_warnings(environ, node)
    warnings += [text for job in jobs for text in local_warnings(job.request.dst, node)]
    warnings += _training_warnings(training)
    notes = [] if training is None else [training.verdict, *training.notes]
    return ServiceJob(
        node=node,
        wait_s=service.get("wait", WAIT_S),
        jobs=jobs,
        training=training,
        warnings=warnings,
        notes=notes,
        ray=next((found for job in jobs if (found := RayNode.of(node, job.request, environ))), None),
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
    {'keep': ['a.*', 'b.*'], 'dtype': 'bf16'}
    """
    found: dict[str, Any] = {}
    for name, field in OPTIONS.items():
        if given.text(name) is not None:
            found[name] = list(given.texts[name]) if field.read is read_texts else given.text(name)
    return found


def _is_training(given: HyperParameters) -> bool:
    """Whether keys of a training YAML ask; ``config`` may also be a model's ``config.json``."""
    if (given.text("config") or ".json").endswith(".json"):
        return not given.text("src") and any(
            given.text(name) for name in ("load_checkpoint", "pretrained_model_dir", "auto_trans_ckpt")
        )
    return True


def _jobs_of_file(given: HyperParameters, warnings: list[str]) -> Sequence[Job] | None:
    """Return the jobs of a job file; None if ``config`` is none, or something else.

    Options that are given besides take precedence in the only job of a file; raise UsageError for those beside a batch.
    """
    url = given.text("config")
    if url is None or url.endswith(".json"):
        return None
    place = open_location(url)
    document = parse_yaml(read_object(place), place.url, foreign=True)
    if not isinstance(document, dict) or not _is_job_file(document):
        return None
    options = {name: value for name, value in request_options(given).items() if name != "config"}
    listed = document.get("jobs")
    if options and isinstance(listed, dict) and len(listed) > 1:
        raise UsageError(
            f"{place.url}: {', '.join(map(option, options))} cannot be given beside a batch of {len(listed)} jobs",
            hint="Set them in the file, in defaults or in a job.",
        )
    keys = [name for name in given.texts if find_known(name) and name not in OPTIONS and name not in SERVICE_OPTIONS]
    warnings += [f"{name} is a key of training configurations: it has no effect on a job file" for name in keys]
    return read_job_file(url, options=options)


def _is_job_file(document: Mapping[str, PlainValue]) -> bool:
    """Whether a document is a job file: also one that leaves its source and target to hyper-parameters."""
    kind = kind_of(dict(document))
    return kind is YamlKind.JOB_FILE or (kind is None and bool(document) and document.keys() <= OPTIONS.keys())


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


def _more_options(given: HyperParameters) -> dict[str, Any]:
    """Return the options of a request beside a training configuration; some of them are keys there."""
    return {name: value for name, value in request_options(given).items() if name != "config" and not _is_key(name)}


def _is_key(name: str) -> bool:
    """Whether a name is a key of a training configuration: one that training alone reads may be an option here."""
    known = find_known(name)
    return known is not None and not (known.use == "training" and name in OPTIONS)


def _training_config(given: HyperParameters, service: Mapping[str, Any]) -> TrainingConfig:
    """Read the training YAML and the keys that are given besides; channels stand in for places that nothing names."""
    overrides = {name: texts[-1] for name, texts in given.texts.items() if _is_key(name)}
    config = read_training_config(given.text("config"), overrides)
    if not config.load_checkpoint and not config.pretrained_model_dir and service.get("data_url"):
        config = replace(config, load_checkpoint=service["data_url"])
    remote = next((key.value for key in config.keys if key.path == "remote_save_url" and key.value), None)
    place = remote or service.get("train_url")
    if place and not given.text("output_dir") and "://" not in config.output_dir:
        config = replace(config, output_dir=str(place))
    return config


def _training_warnings(training: TrainingJob | None) -> list[str]:
    """Return what is odd about a training YAML."""
    if training is None:
        return []
    unknown = [f"{key.path} is no key that is known: it has no effect" for key in training.config.keys_of("unknown")]
    return [*training.contradictions, *unknown]
