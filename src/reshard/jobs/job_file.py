"""Job files: what they say becomes jobs, and every mistake in one gets a line.

A file holds one job, whose keys are the options of :class:`reshard.api.Request`, or a batch: ``defaults`` and
``jobs``, a mapping from names to jobs. A ``matrix`` makes one job of each combination of its values.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from ..api.option_field import read_ranks, read_text, read_texts
from ..api.request import OPTIONS, Request
from ..errors import UsageError, as_field, counted, option, raise_all, write_options
from ..formats.strict_json import shown
from ..formats.strict_yaml import LinedYaml, YamlPath, parse_lined_yaml
from ..formats.yaml_kinds import YamlKind, refuse_other_kinds
from ..storage import open_location, read_object, shared_connections
from .job_settings import BATCH_KEYS, with_options, with_settings
from .matrix import MAX_JOBS, Choices, combinations, label_of
from .places import PlaceIndex
from .variables import Variables

_JOB_KEYS = ("needs", "matrix")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_UNTITLED = "job"
"""Name of the only job of a file."""
_INPUTS = ("src", "lora", "config", "name_map", "src_strategy", "src_layout", "dst_strategy", "dst_layout")
"""Options that name what a job reads."""
_HINTS = {
    YamlKind.TRAINING: f"Give it as {option('config')}.",
    YamlKind.LAYOUT_FILE: f"A job names it as {option('dst_layout')} or {option('src_layout')}.",
}


@dataclass(frozen=True, slots=True)
class Job:
    """One conversion of a batch: its request, and the names of jobs that must be done before it."""

    name: str
    request: Request
    needs: tuple[str, ...] = ()


@shared_connections()
def parse_job_file(
    data: bytes,
    where: str,
    environment: Mapping[str, str],
    settings: Sequence[str] = (),
    options: Mapping[str, object] | None = None,
) -> tuple[Job, ...]:
    """Parse a job file.

    Parameters
    ----------
    data
        YAML, so JSON too.
    environment
        What ``${NAME}`` and ``${NAME:-default}`` stand for in any text; ``${job}`` is the name of the job,
        ``${matrix.KEY}`` a value of its matrix, and ``$$`` one ``$``.
    settings
        ``PATH=VALUE``, like ``jobs.a.dtype=bf16``, or ``dtype=bf16`` for the only job; they take precedence.
    options
        Options of the only job of a file; they take precedence, too.

    Raises
    ------
    FormatError
        The file is not YAML, or a file of another kind.
    UsageError
        It has mistakes: all are listed, each with its line.

    Examples
    --------
    >>> jobs = parse_job_file(b"{defaults: {dtype: bf16}, jobs: {a: {src: s3://m/a, dst: 's3://$HOME'}}}", "j.yaml", {})
    >>> [(job.name, job.request.src, job.request.dtype) for job in jobs]
    [('a', 's3://m/a', 'bf16')]
    >>> parse_job_file(b"src: s3://m/a\\ndts: s3://m/b", "j.yaml", {})
    Traceback (most recent call last):
    ...
    reshard.errors.UsageError: j.yaml: 2 mistakes
      - line 1: dst is missing
      - line 2: dts: unknown (did you mean dst?)
    """
    document = parse_lined_yaml(data, where)
    refuse_other_kinds(document.value, YamlKind.JOB_FILE, where, _HINTS)
    tree = with_options(with_settings(document.value, settings), options or {})
    reader = _JobFileReader(document, environment)
    jobs = reader.jobs(tree)
    reader.check_places(jobs)
    found = sorted(set(reader.problems))
    raise_all(
        UsageError, f"{where}: {counted(len(found), 'mistake')}", [f"line {line}: {text}" for line, text in found]
    )
    return jobs


def read_job_file(
    url: str,
    environment: Mapping[str, str] = os.environ,
    settings: Sequence[str] = (),
    options: Mapping[str, object] | None = None,
) -> tuple[Job, ...]:
    """Read the job file at a URL or a path, or on standard input if that is ``-``; see :func:`parse_job_file`."""
    if url == "-":
        return parse_job_file(sys.stdin.buffer.read(), "standard input", environment, settings, options)
    place = open_location(url)
    return parse_job_file(read_object(place), place.url, environment, settings, options)


class _JobFileReader:
    """Makes jobs of a file, and collects what is wrong with it, by line."""

    def __init__(self, document: LinedYaml, environment: Mapping[str, str]) -> None:
        self.problems: list[tuple[int, str]] = list(document.problems)
        self._lines, self._texts = document.lines, document.texts
        self._environment = environment
        self._needs: dict[str, tuple[str, ...]] = {}  # by entry, which may be several jobs, or none that is right

    def _note(self, path: YamlPath, text: str) -> None:
        """Note a mistake, on the line of a value or of the nearest one around it."""
        while path and path not in self._lines:
            path = path[:-1]
        self.problems.append((self._lines.get(path, 1), text))

    def jobs(self, tree: object) -> tuple[Job, ...]:
        """Make the jobs of a whole file, in its order."""
        if not isinstance(tree, dict):
            self._note((), f"expected a job or a batch, found {shown(tree)}")
            return ()
        if not tree.keys() & set(BATCH_KEYS):
            return self._in_order({_UNTITLED: self._expanded(_UNTITLED, (), tree, {})})
        for key in tree.keys() - set(BATCH_KEYS):
            self._note((key,), f"{key}: {_unknown(key, BATCH_KEYS)}; in a batch, options are in defaults or in a job")
        defaults, listed = self._defaults(tree.get("defaults")), tree.get("jobs")
        if not isinstance(listed, dict) or not listed:
            self._note(("jobs",), "jobs: expected a mapping from names to jobs")
            return ()
        found: dict[str, list[Job]] = {}
        for name, fields in listed.items():
            path = ("jobs", name)
            if not _NAME.fullmatch(name):
                self._note(path, f"{name}: a name has letters, digits, - and _, at most 64")
            elif not isinstance(fields, dict):
                self._note(path, f"{name}: expected a mapping of options")
            else:
                found[name] = self._expanded(name, path, fields, defaults)
        return self._in_order(found)

    def _defaults(self, value: object) -> dict[str, Any]:
        if value is not None and not isinstance(value, dict):
            self._note(("defaults",), "defaults: expected a mapping of options")
        defaults = dict(value) if isinstance(value, dict) else {}
        for key in _JOB_KEYS:
            if defaults.pop(key, None) is not None:
                self._note(("defaults", key), f"defaults: {key} belongs to a job")
        return defaults

    def _expanded(self, name: str, path: YamlPath, fields: dict[str, Any], defaults: dict[str, Any]) -> list[Job]:
        """Make the jobs of one entry: one, or one of each combination of its matrix."""
        places = {key: ("defaults", key) for key in defaults} | {key: (*path, key) for key in fields}
        fields = {**defaults, **fields}
        matrix_path = places.get("matrix", path)
        matrix = self._matrix(fields.pop("matrix", None), matrix_path)
        self._needs[name] = self._named(fields.pop("needs", None), places.get("needs", path))
        fields = {key: self._as_written(key, value, places[key]) for key, value in fields.items()}
        used = set[str]()
        jobs, names = list[Job](), set[str]()
        if matrix is None:
            return jobs
        for labels, values in combinations(matrix):
            own = name + "".join(f"/{label}" for label in labels)
            if own in names:
                self._note(matrix_path, f"{own}: the name of two combinations: give labels")
            names.add(own)
            chosen = {key: value for key, value in values.items() if key in OPTIONS}
            where = places | dict.fromkeys(chosen, matrix_path)
            request = self._request(path, {**fields, **chosen}, where, Variables(own, values, self._environment, used))
            jobs += [Job(own, request)] if request is not None else []
        for key in matrix.keys() - used - OPTIONS.keys():
            text = f"{name}: matrix.{key} is no option, and no ${{matrix.{key}}} uses it"
            self._note((*matrix_path, key), text)
        return jobs

    def _as_written(self, key: str, value: Any, path: YamlPath) -> Any:
        """Return a value as the file has it where an option takes text: 110 and 007 are no numbers there."""
        field = OPTIONS.get(key)
        if field is None or field.choices or field.read not in (read_text, read_texts, read_ranks):
            return value
        if field.least is not None or value is None or isinstance(value, str | dict):
            return value
        if isinstance(value, list):
            return [self._as_written(key, each, (*path, index)) for index, each in enumerate(value)]
        return self._texts.get(path, str(value))

    def _request(
        self, path: YamlPath, fields: Mapping[str, Any], places: Mapping[str, YamlPath], variables: Variables
    ) -> Request | None:
        """Make one request; note every option that is unknown or cannot be read, and every contradiction."""
        before = len(self.problems)
        given: dict[str, Any] = {}
        for key, value in fields.items():
            place = places.get(key, path)
            if key not in OPTIONS:
                self._note(place, f"{key}: {_unknown(key, (*OPTIONS, *_JOB_KEYS))}")
                continue
            try:
                expanded = variables.replaced_in(value)
                if expanded is not None:
                    given[key] = expanded
                    OPTIONS[key].parse(key, expanded)
            except UsageError as error:
                self._note(place, _plain(error))
                given.setdefault(key, value)
        for key in ("src", "dst"):
            if not given.get(key):
                text = f"{key} is missing" if fields.get(key) is None else f"{key} is empty"
                self._note(places.get(key, path), text + f" in {variables.job}" * (variables.job != _UNTITLED))
        if len(self.problems) > before:
            return None
        try:
            return Request.of(None, **given)
        except UsageError as error:
            for text in error.marked_problems or [_plain(error)]:
                self._note(path, write_options(text, as_field))
            return None

    def _matrix(self, value: object, path: YamlPath) -> dict[str, Choices] | None:
        """Read a matrix: of each key its values, each with a label; None if these are too many."""
        if value is None:
            return {}
        found: dict[str, Choices] = {}
        count = 1
        for key, values in value.items() if isinstance(value, dict) else ():
            if not isinstance(values, dict | list) or not values:
                self._note((*path, key), f"matrix.{key}: expected a list of values, or a mapping from labels to values")
                continue
            steps = values.items() if isinstance(values, dict) else enumerate(values)
            written = [(step, self._as_written(key, each, (*path, key, step))) for step, each in steps]
            found[key] = [(str(step) if isinstance(values, dict) else label_of(each), each) for step, each in written]
            count *= len(values)
        if not isinstance(value, dict) or not value:
            self._note(path, "matrix: expected a mapping from options to lists of values")
        if count > MAX_JOBS:
            self._note(path, f"matrix: {count} combinations; at most {MAX_JOBS} are supported")
            return None
        return found

    def _named(self, value: object, path: YamlPath) -> tuple[str, ...]:
        names = [value] if isinstance(value, str) else value
        if names is None:
            return ()
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            self._note(path, "needs: expected the names of other jobs")
            return ()
        return tuple(names)

    # Jobs together.

    def _in_order(self, found: Mapping[str, Sequence[Job]]) -> tuple[Job, ...]:
        """Resolve needs to the names of single jobs; a job that reads what another writes needs it."""
        every = {job.name: job for jobs in found.values() for job in jobs}
        if len(every) > MAX_JOBS:
            self._note(("jobs",), f"{len(every)} jobs; at most {MAX_JOBS} are supported")
            return ()
        targets = PlaceIndex({job.name: job.request.dst for job in every.values()})
        made = []
        for entry, jobs in found.items():
            needs: list[str] = []
            for need in self._needs[entry]:
                if need not in found and need not in every:
                    self._note(("jobs", entry, "needs"), f"{entry} needs {need}: {_unknown(need, found)}")
                needs += [each.name for each in found[need]] if need in found else [need]
            for job in jobs:
                names = [name for url in inputs_of(job.request) for name in targets.around(url)] + needs
                made.append(replace(job, needs=tuple(dict.fromkeys(name for name in names if name != job.name))))
        self._check_cycles(made)
        return tuple(made)

    def _check_cycles(self, jobs: Iterable[Job]) -> None:
        left = {job.name: set(job.needs) for job in jobs}
        while ready := [name for name, needs in left.items() if not needs & left.keys()]:
            for name in ready:
                del left[name]
        for name, needs in left.items():
            around = ", ".join(sorted(needs & left.keys()))
            self._note(("jobs", name.partition("/")[0]), f"{name} can never start: it needs {around}, which needs it")

    def check_places(self, jobs: Sequence[Job]) -> None:
        """Note jobs that write one place, unless each writes ranks of its own there, or inside another's place."""
        by_name = {job.name: job for job in jobs}
        targets = PlaceIndex({job.name: job.request.dst for job in jobs})
        for names in targets.same():
            seen: list[tuple[str, set[int]]] = []
            for name in names:
                ranks = {rank for span in by_name[name].request.ranks or () for rank in span}
                other = next((one for one, theirs in seen if not ranks or not theirs or ranks & theirs), None)
                if other is not None:
                    text = f"{name} and {other} both write {by_name[name].request.dst}"
                    self._note(("jobs", name.partition("/")[0]), text)
                seen.append((name, ranks))
        for name, outer in targets.nested():
            text = f"{name} writes {by_name[name].request.dst}, which is inside {by_name[outer].request.dst} of {outer}"
            self._note(("jobs", name.partition("/")[0]), text)


def inputs_of(request: Request) -> list[str]:
    """Return the places that a job reads."""
    values = (getattr(request, name) for name in _INPUTS)
    return [value for value in values if value and isinstance(value, str)]


def _unknown(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"unknown (did you mean {near[0]}?)" if near else "unknown"


def _plain(error: UsageError) -> str:
    text = " ".join(part for part in (error.marked_message.rstrip("."), error.marked_hint) if part)
    return write_options(text, as_field)
