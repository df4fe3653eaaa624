"""Plans as JSON, and back: small, canonical, and refused when altered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..errors import FormatError, ReshardError
from ..formats.strict_json import parse_json_object
from ..tensor import Box, DType, Layout, RowSplit, Strategy, TensorSpec
from .catalog import Catalog, Entry, Placement, SourceObject, extent_of
from .cost import Cost
from .cuts import Cut
from .limits import Limits
from .plan import Plan
from .steps import Group
from .target import FullTarget, RankTarget, Target

__all__ = [
    "catalog_to_json",
    "decode_plan",
    "encode_plan",
    "plan_from_json",
    "plan_id_of",
    "plan_to_json",
    "strategy_to_json",
]

_FORMAT = "reshard-plan/1"
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
        Not a plan, of another version, or altered since it was made.
    """
    return plan_from_json(parse_json_object(data, where), where)


def plan_from_json(body: Mapping[str, object], where: str) -> Plan:
    """Build the plan that :func:`plan_to_json` expressed; see :func:`decode_plan`."""
    rest = {key: value for key, value in body.items() if key != "plan_id"}
    if rest.get("format") != _FORMAT:
        raise FormatError("not a saved plan", where=where, expected=_FORMAT, found=repr(rest.get("format")))
    if body.get("plan_id") != _hash(rest):
        raise FormatError("the plan was altered after it was made", where=where, hint="Make it anew.")
    try:
        return _plan_from_json(rest)
    except (KeyError, IndexError, TypeError, ValueError, ReshardError) as error:
        raise FormatError("the plan cannot be read", where=where, found=str(error), hint="Make it anew.") from error


def _plan_from_json(body: Json) -> Plan:
    return Plan(
        catalog=_catalog_from_json(body["catalog"]),
        target=_target_from_json(body["target"]),
        target_url=body["target_url"],
        limits=Limits(**body["limits"]),
        groups=tuple(Group(tuple(outputs), tuple(Cut(*cut) for cut in cuts)) for outputs, cuts in body["groups"]),
        cost=Cost(**body["cost"]),
        notes=tuple(body["notes"]),
        manifest_key=body["manifest_key"],
    )


def _hash(body: Mapping[str, object]) -> str:
    canonical = json.dumps(body, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def catalog_to_json(catalog: Catalog) -> Json:
    """Express a catalog in JSON's types."""
    return {
        "url": catalog.url,
        "kind": catalog.kind,
        "objects": [[item.key, item.nbytes, item.etag] for item in catalog.objects],
        "metadata": dict(catalog.metadata),
        "notes": list(catalog.notes),
        "header_bytes": catalog.header_bytes,
        "entries": [
            [entry.spec.name, entry.spec.dtype.value, list(entry.spec.shape), _placements_to_json(entry)]
            for entry in catalog.entries
        ],
    }


def _placements_to_json(entry: Entry) -> list[Any]:
    whole = Box.whole(extent_of(entry.spec)[0])
    return [
        [
            [] if placement.box == whole else [list(placement.box.start), list(placement.box.stop)],
            [list(holder) for holder in placement.holders],
        ]
        for placement in entry.placements
    ]


def _catalog_from_json(body: Json) -> Catalog:
    return Catalog(
        url=body["url"],
        kind=body["kind"],
        objects=tuple(SourceObject(*item) for item in body["objects"]),
        entries=tuple(_entry_from_json(*entry) for entry in body["entries"]),
        metadata=body["metadata"],
        notes=tuple(body["notes"]),
        header_bytes=body["header_bytes"],
    )


def _entry_from_json(name: str, dtype: str, shape: list[int], placements: list[Any]) -> Entry:
    spec = TensorSpec(name, DType(dtype), tuple(shape))
    whole = Box.whole(extent_of(spec)[0])
    return Entry(
        spec,
        tuple(
            Placement(
                Box(tuple(box[0]), tuple(box[1])) if box else whole,
                tuple((index, first) for index, first in holders),
            )
            for box, holders in placements
        ),
    )


def _target_to_json(target: Target) -> Json:
    if isinstance(target, FullTarget):
        return {"kind": "full", **asdict(target)}
    return {
        "kind": "ranks",
        "ranks": list(target.ranks),
        "name": target.name,
        "strategy": strategy_to_json(target.strategy),
    }


def _target_from_json(body: Json) -> Target:
    rest = {key: value for key, value in body.items() if key != "kind"}
    if body["kind"] == "full":
        return FullTarget(**rest)
    return RankTarget(_strategy_from_json(rest["strategy"]), tuple(rest["ranks"]), rest["name"])


def strategy_to_json(strategy: Strategy) -> Json:
    """Express a strategy in JSON's types: each distinct layout once, stages name them by number."""
    numbers: dict[Layout, int] = {}
    stages = [
        {name: numbers.setdefault(layout, len(numbers)) for name, layout in layouts.items()}
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


def _strategy_from_json(body: Json) -> Strategy:
    layouts = [
        Layout(
            tuple(matrix),
            tuple(tuple(axis) for axis in tensor_map),
            size,
            step,
            RowSplit(tuple(split[0]), tuple(split[1])) if split else None,
            field_size,
        )
        for matrix, tensor_map, size, step, split, field_size in body["layouts"]
    ]
    stages = tuple({name: layouts[number] for name, number in stage.items()} for stage in body["stages"])
    return Strategy(body["device_count"], stages)
