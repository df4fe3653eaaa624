"""Plans as JSON, and back: small, canonical, and refused when altered."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from itertools import pairwise
from typing import Any

from ..errors import FormatError, ReshardError
from ..formats.containers import Container
from ..formats.safetensors import MAX_AXIS_COUNT
from ..formats.strict_json import parse_json_object, shown
from ..tensor import DType, Layout, RowSplit, Strategy
from .catalog_json import catalog_from_json, catalog_to_json
from .change import FLOATS, Change
from .conversion import Conversion
from .json_fields import choice, counters, fields_of, integer, integers, items, mapping, name, refused, text, texts
from .limits import Limits
from .outputs.output import Attachment
from .plan import Plan, StagingMode, make_plan
from .plan_check import check_conversion, check_strategy_size
from .staging import stage
from .steps.copies import REPLICAS
from .targets.full_target import FullTarget, PartsTarget
from .targets.iteration_target import IterationTarget
from .targets.rank_target import RankTarget
from .targets.target import Target
from .targets.tree_target import TreeTarget
from .targets.zarr_target import ZarrTarget

BESIDE = ("estimate", "explained")
"""What is printed with a plan without being part of it: left out when it is read again."""

_FORMAT = "reshard-plan/2"
_HINT = "Make it anew."
_PLAN_FIELDS = ("format", "conversion", "limits", "copy_bases", "staging", "groups", "cost", "notes")
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


def conversion_to_json(conversion: Conversion) -> Json:
    """Express a conversion in JSON's types."""
    return {
        "catalog": catalog_to_json(conversion.catalog),
        "target_url": conversion.target_url,
        "target": _target_to_json(conversion.target),
        "manifest_key": conversion.manifest_key,
        "renamed": dict(conversion.renamed),
        "attachments": [[each.key, each.index, each.nbytes] for each in conversion.attachments],
        "change": {**asdict(conversion.change), "kept": sorted(conversion.change.kept)},
    }


def conversion_id(conversion: Conversion) -> str:
    """Return the hash of everything that a conversion says."""
    return _hash(conversion_to_json(conversion))


def plan_to_json(plan: Plan) -> Json:
    """Express a plan in JSON's types; ``plan_id`` is the hash of the rest.

    Planning starts from the conversion, the limits and the places; groups and cost follow from these.
    """
    body: Json = {
        "format": _FORMAT,
        "conversion": conversion_to_json(plan.conversion),
        "limits": asdict(plan.limits),
        "copy_bases": list(plan.copy_bases),
        "staging": _staging_to_json(plan),
        "groups": [[list(g.outputs), [[cut.item, cut.row] for cut in g.cuts]] for g in plan.groups],
        "cost": asdict(plan.cost),
        "notes": list(plan.notes),
    }
    return {"plan_id": _hash(body), **body}


def _staging_to_json(plan: Plan) -> Json | None:
    if plan.staging is None or plan.staging_mode is None:
        return None
    mode, target = plan.staging_mode, plan.staging.conversion.target
    assert isinstance(target, ZarrTarget)
    return {
        "url": mode.url,
        "is_near": mode.is_near,
        "limits": mode.limits and asdict(mode.limits),
        "chunk_shapes": {key: list(shape) for key, shape in target.chunk_shapes.items()},
        "first_pass": plan_to_json(plan.staging)["plan_id"],
    }


def plan_id_of(plan: Plan) -> str:
    """Return the plan's identity: a hash of everything it says."""
    return str(plan_to_json(plan)["plan_id"])


def encode_plan(plan: Plan) -> bytes:
    """Write a plan for :func:`decode_plan`."""
    return json.dumps(plan_to_json(plan), ensure_ascii=False, separators=(",", ":")).encode()


def decode_plan(data: bytes, where: str) -> Plan:
    """Read a saved plan: make it again from what planning starts from.

    Raises
    ------
    FormatError
        Not a plan, of another version, altered since it was made, or forged.
    """
    return plan_from_json(parse_json_object(data, where), where)


def plan_from_json(body: Mapping[str, object], where: str) -> Plan:
    """Make the plan again that :func:`plan_to_json` expressed; see :func:`decode_plan`."""
    if body.get("format") != _FORMAT:
        raise FormatError("not a saved plan", where=where, expected=_FORMAT, found=shown(body.get("format")))
    with unreadable("the plan", where, _HINT):
        plan = _plan_from_json(body)
        if body.get("plan_id") != plan_id_of(plan):
            raise refused("the plan was altered, or another version of reshard made it")
    return plan


@contextmanager
def unreadable(what: str, where: str, hint: str) -> Iterator[None]:
    """Turn every error of reading a document into a FormatError."""
    try:
        yield
    except FormatError as error:
        rule = ": ".join(part for part in (f"{what} cannot be read", error.where, error.what) if part)
        sides = {"expected": error.expected, "found": error.found}
        raise FormatError(rule, where=where, hint=hint, problems=error.problems, **sides) from error
    except _BROKEN as error:
        found = shown(str(error) or repr(error))
        raise FormatError(f"{what} cannot be read", where=where, found=found, hint=hint) from error


def conversion_from_json(value: object) -> Conversion:
    """Build the conversion that :func:`conversion_to_json` expressed."""
    found = fields_of(value, "conversion", [field.name for field in fields(Conversion)])
    conversion = Conversion(
        catalog=catalog_from_json(found["catalog"]),
        target=_target_from_json(found["target"]),
        target_url=text(found["target_url"], "target_url"),
        manifest_key=text(found["manifest_key"], "manifest_key"),
        renamed={old: name(new, "new name") for old, new in mapping(found["renamed"], "renamed").items()},
        change=_change_from_json(found["change"]),
        attachments=tuple(_attachment_from_json(each) for each in items(found["attachments"], "attachments")),
    )
    check_conversion(conversion)
    return conversion


def _plan_from_json(body: Mapping[str, object]) -> Plan:
    found = {key: value for key, value in body.items() if key not in ("plan_id", *BESIDE)}
    found = fields_of(found, "plan", _PLAN_FIELDS)
    conversion = conversion_from_json(found["conversion"])
    bases = _bases(found["copy_bases"], len(conversion.catalog.others) + 1)
    staged = found["staging"]
    if staged is None:
        return make_plan(conversion, limits_from_json(found["limits"]), bases)
    body = fields_of(staged, "staging", ("url", "is_near", "limits", "chunk_shapes", "first_pass"))
    limits = None if body["limits"] is None else limits_from_json(body["limits"])
    mode = StagingMode(text(body["url"], "url"), _boolean(body["is_near"], "is_near"), limits=limits)
    shapes = {
        name(k, "chunk_shapes"): integers(n, "chunk_shapes")
        for k, n in mapping(body["chunk_shapes"], "chunk_shapes").items()
    }
    first = make_plan(
        conversion,
        limits_from_json(found["limits"]),
        [base for base in bases if base <= len(conversion.catalog.others)],
    )
    return stage(first, shapes, mode)


def limits_from_json(value: object) -> Limits:
    """Read limits."""
    limits = fields_of(value, "limits", (), [field.name for field in fields(Limits)])
    return Limits(**{key: integer(each, f"limits: {key}") for key, each in limits.items()})


def _bases(value: object, most: int) -> tuple[int, ...]:
    found = tuple(integer(each, "copy_bases", least=REPLICAS, most=most) for each in items(value, "copy_bases"))
    if found and (found[0] != REPLICAS or any(a >= b for a, b in pairwise(found))):
        raise refused("copy_bases", f"{REPLICAS} and then bases, ascending", list(found))
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
