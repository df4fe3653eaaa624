"""MindSpore's two calls that bring objects from one format into the other, each object on its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ..api.arguments import check_sources_kept, copy_bases, limits_for
from ..api.options import Options, Size
from ..api.statements import name_map_from, renamed_catalog, run, wanted_from
from ..engine.events import Listener, PhaseStarted, ignore
from ..engine.manifest import Manifest
from ..engine.sources import read_catalog, read_tree
from ..engine.sources.headers import container_of
from ..engine.workers import working
from ..errors import PlanError, UsageError, raise_all
from ..formats.containers import Container
from ..planning.catalog import Catalog
from ..planning.conversion import MANIFEST_KEY, Conversion
from ..planning.plan import Plan, make_plan
from ..planning.sources.selection import Renames
from ..planning.targets.full_target import FullTarget
from ..planning.targets.tree_target import TreeTarget, tree_name
from ..storage import Location, open_source, open_target, open_target_object, shared_connections
from .checkpoints import requests_for

_BETWEEN = tree_name("", "")


@shared_connections()
def ckpt_to_safetensors(
    file_path: str,
    save_path: str | None = None,
    name_map: Mapping[str, str] | str | None = None,
    file_name_regex: str | None = None,
    processes_num: int | None = None,
    *,
    drop: Iterable[str] | None = None,
    memory: Size | None = None,
    overwrite: bool = False,
    on_event: Listener = ignore,
) -> Manifest:
    """Write ``.ckpt`` objects as safetensors, as ``mindspore.ckpt_to_safetensors`` does.

    Parameters
    ----------
    file_path
        One object, or a prefix: every object directly below its ``rank*/``.
    save_path
        Prefix for the results; without it they go beside the sources.
    name_map
        New names by old, or the URL of a JSON file that holds them.
    file_name_regex
        Found somewhere in the names of the objects to take from a prefix.
    processes_num
        Each process stands for 8 requests in flight, 64 at most.
    drop, memory
        As in :class:`reshard.api.Options`.

    Raises
    ------
    PlanError
        Values that are text, which safetensors cannot hold.
    ReshardError
        As for :func:`reshard.convert`.
    """
    options: Options = {"drop": drop, "memory": memory, "concurrency": requests_for(processes_num)}
    job = _Rewriting(Container.CKPT, Container.SAFETENSORS, name_map_from(name_map), options)
    return run(job.plan(file_path, save_path, file_name_regex, on_event), overwrite=overwrite, on_event=on_event)


@shared_connections()
def safetensors_to_ckpt(
    file_path: str,
    save_path: str | None = None,
    name_map: Mapping[str, str] | str | None = None,
    file_name_regex: str | None = None,
    processes_num: int | None = None,
    *,
    drop: Iterable[str] | None = None,
    memory: Size | None = None,
    overwrite: bool = False,
    on_event: Listener = ignore,
) -> Manifest:
    """Write safetensors objects as ``.ckpt``, as ``mindspore.safetensors_to_ckpt`` does.

    Everything is as for :func:`ckpt_to_safetensors`, the other way round.
    """
    options: Options = {"drop": drop, "memory": memory, "concurrency": requests_for(processes_num)}
    job = _Rewriting(Container.SAFETENSORS, Container.CKPT, name_map_from(name_map), options)
    return run(job.plan(file_path, save_path, file_name_regex, on_event), overwrite=overwrite, on_event=on_event)


@dataclass(frozen=True, slots=True)
class _Rewriting:
    """From one format to another, under which names, and how."""

    old: Container
    new: Container
    name_map: Mapping[str, str]
    options: Options

    def plan(self, src: str, dst: str | None, pattern: str | None, on_event: Listener) -> Plan:
        """Decide what becomes of one object or of a tree."""
        if dst is not None and container_of(dst.rstrip("/")) is not None:
            raise UsageError(f"{dst}: expected a prefix for the results, found the name of one object")
        found = container_of(src.rstrip("/"))
        if found not in (None, self.old):
            raise UsageError(
                f"{src}: expected a {self.old.suffix} object or a prefix with rank*/, found {found} object"
            )
        if found is None:
            return self._plan_tree(src, dst, _compiled(pattern), on_event)
        if pattern is not None:
            raise UsageError(f"{src} is one object; --file_name_regex chooses among those below a prefix")
        return self._plan_one(src.rstrip("/"), dst, on_event)

    def _plan_one(self, src: str, dst: str | None, on_event: Listener) -> Plan:
        above = open_target_object(src)[0] if dst is None else open_target(dst)
        location, limits = open_source(src), limits_for(above, self.options)
        on_event(PhaseStarted("headers"))
        with working(limits.concurrency, location.store) as workers:
            catalog = read_catalog(location, wanted_from(self.options), workers)
        catalog, renamed = renamed_catalog(catalog, Renames(self.name_map))
        name = location.key.rsplit("/", 1)[-1].removesuffix(self.old.suffix) + self.new.suffix
        target = FullTarget(name, name, "", "ms", limits.object_bytes, self.new)
        bases = copy_bases(above, catalog, self.options)
        conversion = Conversion(catalog, target, above.url, f"{name}.manifest.json", renamed)
        made = make_plan(conversion, limits, bases)
        return _kept(made, above)

    def _plan_tree(self, src: str, dst: str | None, pattern: re.Pattern[str] | None, on_event: Listener) -> Plan:
        location, target = open_source(src), open_target(src if dst is None else dst)
        limits = limits_for(target, self.options)
        on_event(PhaseStarted("headers"))
        with working(limits.concurrency, location.store) as workers:
            catalog = read_tree(location, self.old, pattern, wanted_from(self.options), workers)
        catalog, renamed = self._renamed(catalog)
        # What wrote the sources may have left its manifest there, and it stays true.
        in_place = target.identity == location.identity
        manifest_key = f"reshard-manifest-{self.new}.json" if in_place else MANIFEST_KEY
        bases = copy_bases(target, catalog, self.options)
        conversion = Conversion(catalog, TreeTarget(self.new), target.url, manifest_key, renamed)
        made = make_plan(conversion, limits, bases)
        return _kept(made, target)

    def _renamed(self, catalog: Catalog) -> tuple[Catalog, dict[str, str]]:
        """New names within each object of a tree."""
        names: dict[str, list[str]] = {}
        for entry in catalog.entries:
            key, _, name = entry.spec.name.partition(_BETWEEN)
            names.setdefault(key, []).append(name)
        renames, problems = Renames(self.name_map), list[str]()
        renamed: dict[str, str] = {}
        for key, own in names.items():
            try:
                renamed |= {tree_name(key, old): tree_name(key, new) for old, new in renames.apply(own).items()}
            except PlanError as error:
                problems += [f"{key}: {problem}" for problem in error.problems]
        raise_all(PlanError, "the name map does not give every tensor a name of its own", problems)
        missed = renames.unmatched_map([name for own in names.values() for name in own])
        note = f"{len(missed)} renames match no tensor: {', '.join(missed[:5])}"
        return replace(catalog, notes=(*catalog.notes, note)) if missed else catalog, renamed


def _kept(made: Plan, target: Location) -> Plan:
    check_sources_kept(made, open_source(made.catalog.url), target)
    return made


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--file_name_regex {pattern!r}: not a regular expression: {error}") from error
