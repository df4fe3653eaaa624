"""Settings of a job file, ``PATH=VALUE``: they take precedence over what the file says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError, counted, option, raise_all

BATCH_KEYS = ("defaults", "jobs")
_LARGEST_DEPTH = 32


def with_settings(value: Any, settings: Sequence[str]) -> Any:
    """Put values into a file where paths name them; UsageError lists those that cannot be put there.

    Examples
    --------
    >>> with_settings({"jobs": {"a": {"dtype": "fp16"}}}, ["jobs.a.dtype=bf16", "memory=1GiB"])
    {'jobs': {'a': {'dtype': 'bf16', 'memory': '1GiB'}}}
    """
    problems = []
    for setting in settings:
        path, equals, text = setting.partition("=")
        keys = path.split(".")
        if not equals or not all(keys) or len(keys) > _LARGEST_DEPTH:
            problems.append(f"{setting[:200]}: expected PATH=VALUE, like jobs.a.dtype=bf16")
            continue
        if isinstance(value, dict) and "jobs" in value and keys[0] not in BATCH_KEYS:
            jobs = value["jobs"] if isinstance(value["jobs"], dict) else {}
            if len(jobs) != 1:
                example = f"jobs.{next(iter(jobs), 'a')}.{path}"
                problems.append(f"{setting}: the file has {counted(len(jobs), 'job')}; name one, like {example}")
                continue
            keys = ["jobs", next(iter(jobs)), *keys]
        elif keys[0] == "jobs" and isinstance(value, dict) and not _has(value, keys[:2]):
            problems.append(f"{setting}: the file has no job {keys[1] if len(keys) > 1 else ''}".rstrip())
            continue
        value = _put(value, keys, text)
    raise_all(UsageError, f"{option('set')} cannot be applied", problems)
    return value


def with_options(value: Any, options: Mapping[str, Any]) -> Any:
    """Put options into the only job of a file; a file of several is left as it is."""
    if not isinstance(value, dict):
        return value
    jobs = value.get("jobs", value)
    if jobs is value:
        return {**value, **options}
    if not isinstance(jobs, dict) or len(jobs) != 1:
        return value
    ((name, fields),) = jobs.items()
    return value | {"jobs": {name: {**fields, **options} if isinstance(fields, dict) else fields}}


def _has(value: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            return False
        value = value[key]
    return True


def _put(value: Any, keys: Sequence[str], text: str) -> Any:
    if not keys:
        return text
    inner = dict(value) if isinstance(value, dict) else {}
    inner[keys[0]] = _put(inner.get(keys[0]), keys[1:], text)
    return inner
