"""Job files: what they say becomes jobs, and every mistake in one gets a line.

A file holds one job, whose keys are the options of :class:`reshard.api.Request`, or a batch: ``defaults`` and
``jobs``, a mapping from names to jobs. A ``matrix`` makes one job of each combination of its values.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from ..api.request import OPTIONS, Request
from ..engine.sources.strategy_files import read_object
from ..errors import FormatError, UsageError, option, raise_all, write_options
from ..formats.strict_json import shown
from ..formats.strict_yaml import LinedYaml, YamlPath, parse_lined_yaml
from ..formats.yaml_kinds import YamlKind, kind_of
from ..storage import open_location

_BATCH_KEYS = ("defaults", "jobs")
_JOB_KEYS = ("needs", "matrix")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MAX_JOBS = 10_000
_VARIABLE = re.compile(r"\$(?:\$|\{([^{}]*)\})")
_REFERENCE = re.compile(r"(matrix\.)?([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)
_UNTITLED = "job"
"""Name of the only job of a file."""


@dataclass(frozen=True, slots=True)
class Job:
    """One conversion of a batch: its request, and the names of jobs that must be done before it."""

    name: str
    request: Request
    needs: tuple[str, ...] = ()


def parse_job_file(
    data: bytes, where: str, environment: Mapping[str, str], settings: Sequence[str] = ()
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
    _refuse_other_kinds(document, where)
    reader = _Reader(document, environment)
    tree = _with_settings(document.value, settings)
    jobs = reader.jobs(tree)
    reader.check_places(jobs)
    found = sorted(set(reader.problems))
    count = f"{len(found)} mistake{'s' * (len(found) > 1)}"
    raise_all(UsageError, f"{where}: {count}", [f"line {line}: {text}" for line, text in found])
    return jobs


def read_job_file(
    url: str, environment: Mapping[str, str] = os.environ, settings: Sequence[str] = ()
) -> tuple[Job, ...]:
    """Read the job file at a URL or a path, or on standard input if that is ``-``; see :func:`parse_job_file`."""
    if url == "-":
        return parse_job_file(sys.stdin.buffer.read(), "standard input", environment, settings)
    place = open_location(url)
    return parse_job_file(read_object(place), place.url, environment, settings)


def _refuse_other_kinds(document: LinedYaml, where: str) -> None:
    """Refuse files of other kinds, of which every key would be a mistake."""
    kind = kind_of(document.value)
    hints = {
        YamlKind.TRAINING: f"Give it as {option('config')}.",
        YamlKind.LAYOUT_FILE: f"A job names it as {option('dst_layout')} or {option('src_layout')}.",
    }
    if kind in hints:
        raise FormatError(f"this is {kind}, not {YamlKind.JOB_FILE}", where=where, hint=hints[kind])


class _Reader:
    """Makes jobs of a file, and collects what is wrong with it, by line."""

    def __init__(self, document: LinedYaml, environment: Mapping[str, str]) -> None:
        self.problems: list[tuple[int, str]] = list(document.problems)
        self._lines = document.lines
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
        if "jobs" not in tree and "defaults" not in tree:
            return self._in_order({_UNTITLED: self._expanded(_UNTITLED, (), tree, {}, ())})
        for key in tree.keys() - set(_BATCH_KEYS):
            self._note((key,), f"{key}: {_unknown(key, _BATCH_KEYS)}; in a batch, options are in defaults or in a job")
        defaults, listed = tree.get("defaults") or {}, tree.get("jobs")
        if not isinstance(defaults, dict):
            self._note(("defaults",), "defaults: expected a mapping of options")
            defaults = {}
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
                found[name] = self._expanded(name, path, fields, defaults, ("defaults",))
        return self._in_order(found)

    def _expanded(
        self, name: str, path: YamlPath, fields: dict[str, Any], defaults: dict[str, Any], defaults_path: YamlPath
    ) -> list[Job]:
        """Make the jobs of one entry: one, or one of each combination of its matrix."""
        places = {key: (*defaults_path, key) for key in defaults} | {key: (*path, key) for key in fields}
        fields = {**defaults, **fields}
        matrix = self._matrix(fields.pop("matrix", None), places.get("matrix", path))
        self._needs[name] = self._named(fields.pop("needs", None), places.get("needs", path))
        used = set[str]()
        jobs, names = list[Job](), set[str]()
        if matrix is None:
            return jobs
        for labels, values in _combinations(matrix):
            own = name + "".join(f"/{label}" for label in labels)
            if own in names:
                self._note(places.get("matrix", path), f"{own}: the name of two combinations: give labels")
            names.add(own)
            chosen = {key: value for key, value in values.items() if key in OPTIONS}
            where = places | dict.fromkeys(chosen, places.get("matrix", path))
            request = self._request(own, path, {**fields, **chosen}, where, values, used)
            jobs += [Job(own, request)] if request is not None else []
        for key in matrix.keys() - used - OPTIONS.keys():
            self._note(
                (*places.get("matrix", path), key),
                f"{name}: matrix.{key} is no option, and no ${{matrix.{key}}} uses it",
            )
        return jobs

    def _request(
        self,
        name: str,
        path: YamlPath,
        fields: Mapping[str, Any],
        places: Mapping[str, YamlPath],
        matrix: Mapping[str, Any],
        used: set[str],
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
                expanded = self._text(value, {"job": name}, matrix, used)
                given |= {} if expanded is None else {key: expanded}
                if expanded is not None:
                    OPTIONS[key].parse(key, expanded)
            except UsageError as error:
                self._note(place, _plain(error))
        for key in ("src", "dst"):
            if not fields.get(key):
                self._note(path, f"{key} is missing" + f" in {name}" * (name != _UNTITLED))
        if len(self.problems) > before:
            return None
        try:
            return Request.of(None, **given)
        except UsageError as error:
            for text in error.marked_problems or [_plain(error)]:
                self._note(path, write_options(text, _as_field))
            return None

    def _matrix(self, value: object, path: YamlPath) -> dict[str, list[tuple[str, Any]]] | None:
        """Read a matrix: of each key its values, each with a label; None if these are too many."""
        if value is None:
            return {}
        found: dict[str, list[tuple[str, Any]]] = {}
        count = 1
        for key, values in value.items() if isinstance(value, dict) else ():
            if isinstance(values, dict) and values:
                found[key] = [(str(label), each) for label, each in values.items()]
            elif isinstance(values, list) and values:
                found[key] = [(_label(each), each) for each in values]
            else:
                self._note((*path, key), f"matrix.{key}: expected a list of values, or a mapping from labels to values")
                continue
            count *= len(values)
        if not isinstance(value, dict) or not value:
            self._note(path, "matrix: expected a mapping from options to lists of values")
        if count > _MAX_JOBS:
            self._note(path, f"matrix: {count} combinations; at most {_MAX_JOBS} are supported")
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

    def _text(self, value: Any, own: Mapping[str, str], matrix: Mapping[str, Any], used: set[str]) -> Any:
        """Replace variables in a text, or in all texts of a list or a mapping."""
        if isinstance(value, list):
            return [self._text(each, own, matrix, used) for each in value]
        if isinstance(value, dict):
            return {key: self._text(each, own, matrix, used) for key, each in value.items()}
        if not isinstance(value, str):
            return value

        def replaced(match: re.Match[str]) -> str:
            if match[1] is None:
                return "$"
            reference = _REFERENCE.fullmatch(match[1])
            if reference is None:
                raise UsageError(f"{match[0]}: expected ${{NAME}}, ${{NAME:-default}} or ${{matrix.KEY}}")
            is_matrix, name, default = reference.groups()
            used.update([name] if is_matrix else [])
            known = matrix if is_matrix else own if name in own else self._environment
            if name in known:
                return str(known[name])
            if default is None:
                what = "the matrix has no such key" if is_matrix else "this variable is not in the environment"
                raise UsageError(f"{match[0]}: {what}")
            return str(default)

        return _VARIABLE.sub(replaced, value)

    # Jobs together.

    def _in_order(self, found: Mapping[str, Sequence[Job]]) -> tuple[Job, ...]:
        """Resolve needs to the names of single jobs; a job that reads what another writes needs it."""
        every = {job.name: job for jobs in found.values() for job in jobs}
        if len(every) > _MAX_JOBS:
            self._note(("jobs",), f"{len(every)} jobs; at most {_MAX_JOBS} are supported")
            return ()
        writers: dict[str, list[str]] = {}
        for job in every.values():
            writers.setdefault(_place(job.request.dst), []).append(job.name)
        made = []
        for entry, jobs in found.items():
            needs: list[str] = []
            for need in self._needs[entry]:
                if need not in found and need not in every:
                    self._note(("jobs", entry, "needs"), f"{entry} needs {need}: {_unknown(need, found)}")
                needs += [each.name for each in found[need]] if need in found else [need]
            for job in jobs:
                names = [*writers.get(_place(job.request.src), ()), *needs]
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
        """Note jobs that write one place, unless each writes ranks of its own there."""
        by_place: dict[str, list[Job]] = {}
        for job in jobs:
            by_place.setdefault(_place(job.request.dst), []).append(job)
        for place, several in by_place.items():
            seen: list[tuple[Job, set[int]]] = []
            for job in several:
                ranks = {rank for span in job.request.ranks or () for rank in span}
                other = next((one for one, theirs in seen if not ranks or not theirs or ranks & theirs), None)
                if other is not None:
                    text = f"{job.name} and {other.name} both write {place}"
                    self._note(("jobs", job.name.partition("/")[0]), text)
                seen.append((job, ranks))


def _combinations(matrix: Mapping[str, Sequence[tuple[str, Any]]]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    for chosen in itertools.product(*matrix.values()):
        yield [label for label, _ in chosen], {key: value for key, (_, value) in zip(matrix, chosen, strict=True)}


def _label(value: object) -> str:
    """Name a value of a matrix: by the last part of a URL, without its suffix.

    Examples
    --------
    >>> _label("s3://m/layouts/tp4.yaml"), _label("0-7"), _label(16)
    ('tp4', '0-7', '16')
    """
    last = str(value).rstrip("/").rpartition("/")[2]
    stem, dot, suffix = last.rpartition(".")
    return re.sub(r"[^A-Za-z0-9_.-]", "_", stem if dot and not suffix.isdigit() else last) or "value"


def _place(url: str) -> str:
    return url.rstrip("/")


def _with_settings(value: Any, settings: Sequence[str]) -> Any:
    """Put values into a file where paths name them; UsageError lists those that cannot be put there."""
    problems = []
    for setting in settings:
        path, equals, text = setting.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            problems.append(f"{setting}: expected PATH=VALUE, like jobs.a.dtype=bf16")
            continue
        if isinstance(value, dict) and "jobs" in value and keys[0] not in _BATCH_KEYS:
            jobs = value["jobs"] if isinstance(value["jobs"], dict) else {}
            if len(jobs) != 1:
                example = f"jobs.{next(iter(jobs), 'a')}.{path}"
                problems.append(f"{setting}: the file has {len(jobs)} jobs; name one, like {example}")
                continue
            keys = ["jobs", next(iter(jobs)), *keys]
        elif keys[:1] == ["jobs"] and isinstance(value, dict) and not _has(value, keys[:2]):
            problems.append(f"{setting}: the file has no job {keys[1] if len(keys) > 1 else ''}")
            continue
        value = _put(value, keys, text)
    raise_all(UsageError, f"{option('set')} cannot be applied", problems)
    return value


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


def _unknown(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"unknown (did you mean {near[0]}?)" if near else "unknown"


def _plain(error: UsageError) -> str:
    text = " ".join(part for part in (error.marked_message.rstrip("."), error.marked_hint) if part)
    return write_options(text, _as_field)


def _as_field(name: str, value: str | None) -> str:
    return name if value is None else f"{name}: {value}"
