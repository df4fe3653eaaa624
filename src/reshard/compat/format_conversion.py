"""MindSpore's two calls that bring objects from one format into the other, each object on its own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated

from ..api.contents import source_options
from ..api.option_field import OptionField, read_document
from ..api.request import Request
from ..api.resolve import Resolved, copy_bases, limits_of, load_name_map, note_unmatched
from ..engine.events import Listener, PhaseStarted
from ..engine.sources import read_catalog, read_tree
from ..engine.workers import working
from ..errors import PlanError, UsageError, option, raise_all
from ..formats.containers import Container, container_of
from ..planning.catalog import Catalog
from ..planning.conversion import MANIFEST_KEY, Conversion
from ..planning.limits import requests_for
from ..planning.sources.bounded_expression import BoundedExpression
from ..planning.sources.selection import Renames
from ..planning.targets.full_target import FullTarget
from ..planning.targets.target import Target
from ..planning.targets.tree_target import TreeTarget, tree_name
from ..storage import open_source, open_target, open_target_object
from .imitation import Processes, Translation, imitation

_BETWEEN = tree_name("", "")

SavePath = Annotated[
    str | None, OptionField("Prefix for the results.", "DST", default="beside the sources", flags=("--save_path",))
]
NameMap = Annotated[
    Mapping[str, str] | str | None,
    OptionField('URL of a JSON file with new names by old, {"old": "new"}.', "URL.json", read=read_document),
]
FileNameRegex = Annotated[
    str | None, OptionField("Take only objects below a prefix whose names match somewhere.", "EXPR")
]


@imitation("drop", "memory", src="file_path", dst="save_path", concurrency="processes_num")
def ckpt_to_safetensors(
    file_path: Annotated[
        str, OptionField("One .ckpt object, or a prefix that holds some, or rank*/.", "SRC", flags=("--file_path",))
    ],
    save_path: SavePath = None,
    name_map: NameMap = None,
    file_name_regex: FileNameRegex = None,
    processes_num: Processes = None,
) -> Translation:
    """Write ``.ckpt`` objects as safetensors, as ``mindspore.ckpt_to_safetensors`` does.

    Of a prefix every object directly below its ``rank*/`` is taken, or without these every object directly below the
    prefix itself. Raise PlanError for values that are text, which
    safetensors cannot hold.
    """
    request = Request.of(src=file_path, dst=save_path, name_map=name_map, concurrency=requests_for(processes_num))
    return request, partial(_resolve, old=Container.CKPT, new=Container.SAFETENSORS, pattern=file_name_regex)


@imitation("drop", "memory", src="file_path", dst="save_path", concurrency="processes_num")
def safetensors_to_ckpt(
    file_path: Annotated[
        str,
        OptionField("One safetensors object, or a prefix that holds some, or rank*/.", "SRC", flags=("--file_path",)),
    ],
    save_path: SavePath = None,
    name_map: NameMap = None,
    file_name_regex: FileNameRegex = None,
    processes_num: Processes = None,
) -> Translation:
    """Write safetensors objects as ``.ckpt``, as ``mindspore.safetensors_to_ckpt`` does.

    Everything is as for :func:`ckpt_to_safetensors`, the other way round.
    """
    request = Request.of(src=file_path, dst=save_path, name_map=name_map, concurrency=requests_for(processes_num))
    return request, partial(_resolve, old=Container.SAFETENSORS, new=Container.CKPT, pattern=file_name_regex)


def _resolve(request: Request, on_event: Listener, *, old: Container, new: Container, pattern: str | None) -> Resolved:
    """Decide what becomes of one object, or of a tree of them."""
    src = request.src.rstrip("/")
    found = container_of(src)
    if request.names_object:
        raise UsageError(f"{request.dst}: expected a prefix for the results, found the name of one object")
    if found not in (None, old):
        raise UsageError(f"{request.src}: expected a {old.suffix} object or a prefix with some, found {found} object")
    if found is not None and pattern is not None:
        needs = f"{option('file_name_regex')} chooses among objects below a prefix"
        raise UsageError(f"{request.src} is one object; {needs}")
    try:
        chosen = None if pattern is None else BoundedExpression(pattern)
    except UsageError as error:
        raise UsageError(f"{option('file_name_regex', pattern)}: {error.marked_message}") from error
    renames = Renames(load_name_map(request.name_map))
    if request.dst:
        base = open_target(request.dst)
    else:
        base = open_target(src) if found is None else open_target_object(src)[0]
    location, limits, wanted = open_source(src), limits_of(base, request), source_options(request)
    on_event(PhaseStarted("headers"))
    target: Target = TreeTarget(new)
    with working(limits.concurrency, location.store) as workers:
        if found is None:
            catalog, renamed = _renamed_tree(read_tree(location, old, chosen, wanted, workers), renames)
            # What wrote the sources may have left its manifest there, and it stays true.
            is_in_place = base.identity == location.identity
            manifest_key = f"reshard-manifest-{new}.json" if is_in_place else MANIFEST_KEY
        else:
            catalog = read_catalog(location, wanted, workers)
            names = [entry.spec.name for entry in catalog.entries]
            catalog, renamed = note_unmatched(catalog, renames.unmatched_map(names)), renames.apply(names)
            key = location.key.rsplit("/", 1)[-1].removesuffix(old.suffix) + new.suffix
            target, manifest_key = FullTarget(key, key, "", "ms", limits.object_bytes, new), f"{key}.manifest.json"
    conversion = Conversion(catalog, target, base.url, manifest_key, renamed)
    return Resolved(conversion, limits, copy_bases(base, catalog, request))


def _renamed_tree(catalog: Catalog, renames: Renames) -> tuple[Catalog, dict[str, str]]:
    """Return new names within each object of a tree, and the catalog with a note of those that match nothing."""
    names: dict[str, list[str]] = {}
    for entry in catalog.entries:
        key, _, name = entry.spec.name.partition(_BETWEEN)
        names.setdefault(key, []).append(name)
    problems: list[str] = []
    renamed: dict[str, str] = {}
    for key, own in names.items():
        try:
            renamed |= {tree_name(key, old): tree_name(key, new) for old, new in renames.apply(own).items()}
        except PlanError as error:
            problems += [f"{key}: {problem}" for problem in error.marked_problems]
    raise_all(PlanError, "the name map does not give every tensor a name of its own", problems)
    missed = renames.unmatched_map([name for own in names.values() for name in own])
    return note_unmatched(catalog, missed), renamed
