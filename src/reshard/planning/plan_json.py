"""Plans as JSON, and back: small, canonical, and refused when altered."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import pairwise
from typing import Any

from ..errors import FormatError, ReshardError
from ..formats.containers import Container
from ..formats.safetensors import MAX_AXIS_COUNT
from ..formats.strict_json import parse_json_object, shown
from ..tensor import DType, Layout, RowSplit, Strategy
from .catalog_json import catalog_from_json, catalog_to_json
from .change import FLOATS, NO_CHANGE, Change
from .cost.cost import Cost
from .json_fields import choice, counters, fields_of, integer, integers, items, mapping, name, refused, text, texts
from .limits import Limits
from .outputs.output import Attachment
from .plan import Plan
from .plan_check import check_catalog, check_plan, check_strategy_size
from .staging import is_staging_url, unstaged_catalog, with_chunks
from .steps.copies import REPLICAS
from .steps.cuts import Cut
from .steps.recipe import Group
from .targets.full_target import FullTarget, PartsTarget
from .targets.iteration_target import IterationTarget
from .targets.rank_target import RankTarget
from .targets.target import Target
from .targets.tree_target import TreeTarget
from .targets.zarr_target import ZarrTarget

BESIDE = ("estimate", "explained")
"""What is printed with a plan without being part of it: left out when it is read again."""

_FORMAT = "reshard-plan/1"
_HINT = "Make it anew."
_PLAN_FIELDS = (
    "format",
    "catalog",
    "target_url",
    "target",
    "limits",
    "groups",
    "cost",
    "notes",
    "manifest_key",
    "renamed",
    "change",
    "attachments",
    "copied_from",
    "staging",
)
# Nothing but a FormatError should come of a plan that someone forged; what checks overlooked ends here.
_BROKEN = (
    ReshardError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
Json = dict[str, Any]


def plan_to_json(plan: Plan) -> Json:
    """Express a plan in JSON's types; ``plan_id`` is the hash of all the rest."""
    body: Json = {
        "format": _FORMAT,
        "catalog": catalog_to_json(plan.catalog),
        "target_url": plan.target_url,
        "target": _target_to_json(plan.target),
        "limits": asdict(plan.limits),
        "groups": [[list(g.outputs), [[cut.item, cut.row] for cut in g.cuts]] for g in plan.groups],
        "cost": asdict(plan.cost),
        "notes": list(plan.notes),
        "manifest_key": plan.manifest_key,
        "renamed": dict(plan.renamed),
        "attachments": [[each.key, each.index, each.nbytes] for each in plan.attachments],
        "change": {**asdict(plan.change), "kept": sorted(plan.change.kept)},
        "copied_from": list(plan.copy_bases),
        "staging": plan.staging and plan_to_json(plan.staging),
    }
    return {"plan_id": _hash(body), **body}


def plan_id_of(plan: Plan) -> str:
    """The plan's identity: a hash of everything it says."""
    return str(plan_to_json(plan)["plan_id"])


def encode_plan(plan: Plan) -> bytes:
    """Write a plan for :func:`decode_plan`."""
    return json.dumps(plan_to_json(plan), ensure_ascii=False, separators=(",", ":")).encode()


def decode_plan(data: bytes, where: str) -> Plan:
    """Read a saved plan.

    Raises
    ------
    FormatError
        Not a plan, of another version, altered since it was made, or forged.
    """
    return plan_from_json(parse_json_object(data, where), where)


def plan_from_json(body: Mapping[str, object], where: str) -> Plan:
    """Build the plan that :func:`plan_to_json` expressed; see :func:`decode_plan`.

    Anyone can write a plan with the right hash, so everything it says is checked, but nothing planned anew.
    """
    rest = {key: value for key, value in body.items() if key not in ("plan_id", *BESIDE)}
    if rest.get("format") != _FORMAT:
        raise FormatError("not a saved plan", where=where, expected=_FORMAT, found=shown(rest.get("format")))
    try:
        if body.get("plan_id") != _hash(rest):
            raise refused("the plan was altered after it was made")
        plan = _plan_from_json(rest)
        _check_staging(plan)
        check_plan(plan)
    except FormatError as error:
        what, place = f"the plan cannot be read: {error.what}", ": ".join(part for part in (where, error.where) if part)
        raise FormatError(
            what, where=place, expected=error.expected, found=error.found, hint=_HINT, problems=error.problems
        ) from error
    except _BROKEN as error:
        found = shown(str(error) or repr(error))
        raise FormatError("the plan cannot be read", where=where, found=found, hint=_HINT) from error
    return plan


def _plan_from_json(body: Json) -> Plan:
    found = fields_of(body, "plan", _PLAN_FIELDS)
    catalog = catalog_from_json(found["catalog"])
    check_catalog(catalog)
    cost = fields_of(found["cost"], "cost", [field.name for field in fields(Cost)])
    limits = fields_of(found["limits"], "limits", (), [field.name for field in fields(Limits)])
    return Plan(
        catalog=catalog,
        target=_target_from_json(found["target"]),
        target_url=text(found["target_url"], "target_url"),
        limits=Limits(**{key: integer(value, f"limits: {key}") for key, value in limits.items()}),
        groups=tuple(_group_from_json(group) for group in items(found["groups"], "groups")),
        cost=Cost(**{key: integer(value, f"cost: {key}") for key, value in cost.items()}),
        notes=texts(found["notes"], "notes"),
        manifest_key=text(found["manifest_key"], "manifest_key"),
        change=_change_from_json(found["change"]),
        attachments=tuple(_attachment_from_json(each) for each in items(found["attachments"], "attachments")),
        copy_bases=_bases(found["copied_from"], len(catalog.others)),
        staging=None if found["staging"] is None else _staging_from_json(found["staging"]),
        renamed={old: name(new, "new name") for old, new in mapping(found["renamed"], "renamed").items()},
    )


def _staging_from_json(value: object) -> Plan:
    body = mapping(value, "staging")
    rest = {key: each for key, each in body.items() if key != "plan_id"}
    if rest.get("format") != _FORMAT or rest.get("staging") is not None or body.get("plan_id") != _hash(rest):
        raise refused("staging", "a plan in one pass, as it was made")
    return _plan_from_json(rest)


def _check_staging(plan: Plan) -> None:
    """Refuse a first pass that does not make what the second reads."""
    if plan.staging is None:
        return
    check_plan(plan.staging)
    if not is_staging_url(plan.staging.target_url):
        raise refused("staging", "a folder of its own", plan.staging.target_url)
    if not isinstance(plan.staging.target, ZarrTarget) or plan.staging.change != NO_CHANGE or plan.staging.renamed:
        raise refused("staging", "whole tensors as they are, in zarr")
    if not plan.catalog.others or plan.catalog != with_chunks(unstaged_catalog(plan), plan.staging):
        raise refused("staging", "to make what the second pass reads")


def _bases(value: object, most: int) -> tuple[int, ...]:
    found = tuple(integer(each, "copied_from", least=REPLICAS, most=most) for each in items(value, "copied_from"))
    if found and (found[0] != REPLICAS or any(a >= b for a, b in pairwise(found))):
        raise refused("copied_from", f"{REPLICAS} and then bases, ascending", list(found))
    return found


def _attachment_from_json(value: object) -> Attachment:
    key, index, nbytes = items(value, "an attachment", 3)
    return Attachment(text(key, "key"), integer(index, "index"), integer(nbytes, "bytes of an attachment"))


def _change_from_json(value: object) -> Change:
    body = fields_of(value, "change", [field.name for field in fields(Change)])
    scalings = mapping(body["scalings"], "scalings")
    if not all(isinstance(each, float) and math.isfinite(each) for each in scalings.values()):
        raise refused("scalings", "finite numbers with a point", scalings)
    options = counters(body["options"], "options")
    if not all(isinstance(each, int | str) for each in options.values()):
        raise refused("options", "integers, booleans or text", options)
    dtype = None if body["dtype"] is None else choice(body["dtype"], "dtype", DType)
    if dtype is not None and dtype not in FLOATS:
        raise refused("dtype", f"one of {', '.join(sorted(FLOATS))}", dtype)
    return Change(
        family=text(body["family"], "family"),
        direction=text(body["direction"], "direction"),
        naming=text(body["naming"], "naming"),
        options=options,  # type: ignore[arg-type]
        config=mapping(body["config"], "config"),
        dtype=dtype,
        kept=frozenset(texts(body["kept"], "kept")),
        scalings=scalings,  # type: ignore[arg-type]
        transposed=_boolean(body["transposed"], "transposed"),
    )


def _group_from_json(value: object) -> Group:
    outputs, cuts = items(value, "a group", 2)
    places = (items(cut, "a cut", 2) for cut in items(cuts, "cuts"))
    return Group(integers(outputs, "outputs of a group"), tuple(Cut(*integers(place, "a cut")) for place in places))


def _hash(body: Mapping[str, object]) -> str:
    canonical = json.dumps(body, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def _target_to_json(target: Target) -> Json:
    body: Json = {field.name: getattr(target, field.name) for field in fields(target)}
    if isinstance(target, RankTarget | IterationTarget):
        body["strategy"] = strategy_to_json(target.strategy)
    if isinstance(target, RankTarget):
        body["ranks"] = list(target.ranks)
    if isinstance(target, IterationTarget):
        body["common"] = dict(target.common)
    if isinstance(target, ZarrTarget):
        body["chunk_shapes"] = {key: list(shape) for key, shape in target.chunk_shapes.items()}
    return {"kind": _KIND_OF[type(target)], **body}


def _target_from_json(value: object) -> Target:
    kind = mapping(value, "target").get("kind")
    if not isinstance(kind, str) or kind not in _TARGETS:
        raise refused("kind of target", f"one of {', '.join(_TARGETS)}", kind)
    body = fields_of(value, "target", ["kind", *(field.name for field in fields(_TARGETS[kind]))])
    del body["kind"]
    return _TARGETS[kind](**{key: _FIELDS[key](each, f"target: {key}") for key, each in body.items()})


def strategy_to_json(strategy: Strategy) -> Json:
    """Express a strategy in JSON's types: each distinct layout once, stages name them by number."""
    numbers: dict[Layout, int] = {}
    stages = [
        {key: numbers.setdefault(layout, len(numbers)) for key, layout in layouts.items()}
        for layouts in strategy.stages
    ]
    layouts = [
        [
            list(layout.device_matrix),
            [list(axis) for axis in layout.tensor_map],
            layout.optimizer_shard_size,
            layout.optimizer_shard_step,
            layout.row_split and [list(layout.row_split.counts), list(layout.row_split.offsets)],
            layout.field_size,
        ]
        for layout in numbers
    ]
    return {"device_count": strategy.device_count, "layouts": layouts, "stages": stages}


def _strategy_from_json(value: object) -> Strategy:
    body = fields_of(value, "strategy", ("device_count", "layouts", "stages"))
    device_count, stages = integer(body["device_count"], "device_count"), items(body["stages"], "stages")
    check_strategy_size(device_count, len(stages))
    layouts = [_layout_from_json(layout) for layout in items(body["layouts"], "layouts")]
    return Strategy(device_count, tuple(_stage_from_json(stage, layouts) for stage in stages))


def _boolean(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise refused(what, "a boolean", value)
    return value


_TARGETS: dict[str, type[Target]] = {
    "full": FullTarget,
    "iteration": IterationTarget,
    "parts": PartsTarget,
    "ranks": RankTarget,
    "tree": TreeTarget,
    "zarr": ZarrTarget,
}
_KIND_OF = {made: kind for kind, made in _TARGETS.items()}
_FIELDS: dict[str, Callable[[object, str], Any]] = {
    "chunk_bytes": lambda value, what: integer(value, what, least=1),
    "chunk_shapes": lambda value, what: {name(k, what): integers(n, what) for k, n in mapping(value, what).items()},
    "common": counters,
    "iteration": lambda value, what: integer(value, what, most=10**18 - 1),
    "prefix": text,
    "container": lambda value, what: choice(value, what, Container),
    "format": text,
    "index_name": text,
    "name": text,
    "object_bytes": integer,
    "part_bytes": lambda value, what: integer(value, what, least=1),
    "ranks": integers,
    "remove_redundancy": _boolean,
    "single_name": text,
    "strategy": lambda value, _what: _strategy_from_json(value),
}


def _stage_from_json(value: object, layouts: Sequence[Layout]) -> dict[str, Layout]:
    numbers = {
        name(key, "name in the strategy"): integer(number, "layout", most=len(layouts) - 1)
        for key, number in mapping(value, "stage").items()
    }
    return {key: layouts[number] for key, number in numbers.items()}


def _layout_from_json(value: object) -> Layout:
    matrix, tensor_map, size, step, split, field_size = items(value, "a layout", 6)
    if len(items(matrix, "device matrix")) > MAX_AXIS_COUNT or len(items(tensor_map, "tensor map")) > MAX_AXIS_COUNT:
        raise refused("a layout", f"at most {MAX_AXIS_COUNT} axes", value)
    return Layout(
        integers(matrix, "device matrix"),
        tuple(integers(axis, "tensor map") for axis in items(tensor_map, "tensor map")),
        integer(size, "optimizer shard size", least=-1),
        integer(step, "optimizer shard step", least=-1),
        None if split is None else RowSplit(*(integers(side, "row split") for side in items(split, "row split", 2))),
        integer(field_size, "field size"),
    )
