"""Decisions on training configurations, shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..formats.strict_json import shown
from .flags import OutputForm
from .printing import Facts, in_bytes, note_facts, print_facts, print_json, print_rows
from .spelling import spelled

if TYPE_CHECKING:  # what is shown is imported already by whoever made it
    from ..jobs.training_config import TrainingConfig
    from ..jobs.training_job import TrainingJob
    from ..jobs.training_keys import KeyUse
    from ..jobs.training_run import TrainingOutcome
    from ..planning.plan import Plan

_LONGEST_VALUE = 48
_SHOWN_UNKNOWN = 100
_HIDDEN = ("src", "dst", "config")


def show_training_job(job: TrainingJob, form: OutputForm, plan: Plan | None = None) -> None:
    """Print what was decided for a job, the notes of its plan, and what every key of its configuration is for."""
    if form is OutputForm.JSON:
        print_json(training_job_json(job))
        return
    facts: Facts = [("verdict", job.verdict)]
    if job.options is not None:
        facts += [("source", job.options["src"]), ("target", job.options["dst"])]
    if job.strategy_url is not None:
        facts.append(("strategies", job.strategy_url))
    if job.options is not None:
        facts += [
            ("option", f"{name}: {value}")
            for name, value in job.options.items()
            if name not in _HIDDEN and value is not None
        ]
    facts += [("conflict", spelled(text)) for text in job.contradictions]
    if plan is not None:
        facts += _plan_facts(plan)
    print_facts([*facts, *note_facts((*job.notes, *(plan.notes if plan else ())))])
    show_training_keys(job.config)


def show_training_keys(config: TrainingConfig) -> None:
    """Print what every key of a configuration is for: those that training alone reads by their section."""
    for use, why in (("used", "for"), ("no effect", "because")):
        rows = [(key.path, _text(key), key.note) for key in config.keys_of(use)]
        print_rows((use, "value", why), rows, 0)
    sections = Counter(_section(key.path) for key in config.keys_of("training"))
    print_rows(("training alone", "keys"), sorted(sections.items()), 0)
    print_rows(("unknown", "value"), [(key.path, _text(key)) for key in config.keys_of("unknown")], _SHOWN_UNKNOWN)


def show_checked_training(config: TrainingConfig, form: OutputForm) -> None:
    """Print the keys of a configuration without mistakes."""
    if form is OutputForm.JSON:
        print_json({"keys": _keys_json(config.keys)})
        return
    print_facts([("keys", f"{len(config.keys)}, no mistakes")])
    show_training_keys(config)


def _plan_facts(plan: Plan) -> Facts:
    from ..api.estimates import estimate
    from .plan_text import estimate_facts

    cost = plan.cost
    moved = [("read", in_bytes(cost.read_bytes)), ("write", in_bytes(cost.written_bytes + cost.copied_bytes))]
    return [*moved, *estimate_facts(cost, estimate(plan))]


def training_job_json(job: TrainingJob) -> dict[str, Any]:
    """Return a decision for programs."""
    return {
        "verdict": job.verdict,
        "contradictions": list(map(spelled, job.contradictions)),
        "options": None if job.options is None else dict(job.options),
        "strategy_url": job.strategy_url,
        "notes": list(map(spelled, job.notes)),
        "keys": _keys_json(job.config.keys),
    }


def training_run_json(job: TrainingJob, plan: Plan | None, outcome: TrainingOutcome | None) -> dict[str, Any]:
    """Return a decision, and its plan or what was made of it, for programs."""
    from ..api.estimates import estimate
    from .results import manifest_json

    body = training_job_json(job)
    if outcome is not None:
        manifest = outcome.manifest
        body["notes"] += list(map(spelled, manifest.conversion.notes)) if manifest else []
        return body | {"result": manifest and manifest_json(manifest)}
    if plan is None:
        return body
    body["notes"] += list(map(spelled, plan.notes))
    return body | {"estimate": estimate(plan).to_json()}


def _keys_json(keys: Iterable[KeyUse]) -> list[dict[str, Any]]:
    return [{"key": key.path, "value": key.value, "use": key.use, "note": key.note} for key in keys]


def _section(path: str) -> str:
    """Return the section of a key: a callback's type counts too."""
    parts = path.split(".")
    depth = 2 if parts[0] in ("callbacks", "model") else 1
    return path if len(parts) <= depth else ".".join([*parts[:depth], "*"])


def _text(key: KeyUse) -> str:
    text = "" if key.value is None else str(key.value)
    return shown(text)[: _LONGEST_VALUE - 3] + "..." if len(text) > _LONGEST_VALUE else text
