"""Conversions and plans as JSON, and back; see ``docs/design/0022-saved-plans.md``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

from ..errors import FormatError, ReshardError
from ..formats.strict_json import parse_json_object, shown
from .codec import at, decode, encode, fields_of, integer, items, refused, text
from .conversion import Conversion
from .conversion_check import check_conversion
from .limits import Limits
from .plan import Plan, StagingMode, make_plan
from .staging import first_pass, second_pass
from .steps.copies import REPLICAS
from .targets import Target
from .targets.zarr_target import ZarrTarget

BESIDE = ("estimate", "explained")
"""Keys that are printed with a plan without being part of it."""

_FORMAT = "reshard-plan/2"
_INPUTS = ("format", "plan_id", "conversion", "limits", "copy_bases", "staging")
_SHOWN = ("conversion_id", "groups", "cost", "notes", *BESIDE)
_STAGING = ("mode", "target", "limits", "copy_bases", "note", "groups")
# Nothing but a FormatError may come of a document that someone forged. What the checks overlook ends here.
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
    body: Json = encode(conversion)
    return body


def conversion_id(conversion: Conversion) -> str:
    """Return the hash of everything that a conversion says."""
    return _hash(conversion_to_json(conversion))


def conversion_from_json(value: object, where: str) -> Conversion:
    """Build the conversion that :func:`conversion_to_json` expressed, and check it.

    Raises
    ------
    FormatError
        Altered, or forged.
    """
    with _unreadable("the conversion", where, "Convert again."):
        return _checked_conversion(value)


def plan_to_json(plan: Plan) -> Json:
    """Express a plan in JSON's types: what planning starts from, and for readers what follows from it."""
    conversion = conversion_to_json(plan.conversion)
    staging: Json | None = None
    if plan.staging is not None:
        mode, target = encode(plan.staging_mode), encode(plan.staging.conversion.target)
        staging = {"mode": mode, "target": target, "note": plan.staging_note, **_pass_to_json(plan.staging)}
    body: Json = {"format": _FORMAT, "conversion_id": _hash(conversion), "staging": staging, **_pass_to_json(plan)}
    beside = {"conversion": conversion, "cost": asdict(plan.cost), "notes": list(plan.notes)}
    return {"plan_id": _hash(body), **body, **beside}


def _pass_to_json(plan: Plan) -> Json:
    groups = [[list(group.outputs), [[cut.item, cut.row] for cut in group.cuts]] for group in plan.groups]
    return {"limits": encode(plan.limits), "copy_bases": list(plan.copy_bases), "groups": groups}


def plan_id_of(plan: Plan) -> str:
    """Return the plan's identity: a hash of what it makes, by which parts, within which limits."""
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
    with _unreadable("the plan", where, "Make a new plan."):
        found = fields_of(body, _INPUTS, _SHOWN)
        conversion = at("conversion", _checked_conversion, found["conversion"])
        limits, bases = at("limits", _limits, found["limits"]), at("copy_bases", _bases, found["copy_bases"])
        if found["staging"] is None:
            plan = make_plan(conversion, limits, bases)
        else:
            staging = dict(at("staging", lambda value: fields_of(value, _STAGING), found["staging"]))
            plan = replace(_staged(conversion, staging, limits, bases), staging_note=text(staging["note"]))
        if found["plan_id"] != (made := plan_id_of(plan)):
            what = "altered, or made by another version of reshard"
            raise FormatError(what, where="plan_id", expected=made, found=shown(found["plan_id"]))
    return plan


def _checked_conversion(value: object) -> Conversion:
    conversion: Conversion = decode(Conversion, value)
    check_conversion(conversion)
    return conversion


def _staged(conversion: Conversion, staging: Json, limits: Limits, bases: tuple[int, ...]) -> Plan:
    """Plan both passes anew."""
    mode, target = decode(StagingMode, staging["mode"]), decode(Target, staging["target"])
    if not isinstance(target, ZarrTarget):
        raise refused("a target of kind zarr", staging["target"], "staging")
    first_limits, first_bases = _limits(staging["limits"]), _bases(staging["copy_bases"])
    first = first_pass(conversion.catalog, target, mode, first_limits, first_bases)
    return second_pass(conversion, first, mode, limits, bases)


def _limits(value: object) -> Limits:
    made: Limits = decode(Limits, value)
    return made


def _bases(value: object) -> tuple[int, ...]:
    found = tuple(integer(each, least=REPLICAS) for each in items(value))
    if found and (found[0] != REPLICAS or any(a >= b for a, b in pairwise(found))):
        raise refused(f"{REPLICAS} and then bases, ascending", list(found))
    return found


def _hash(body: Json) -> str:
    canonical = json.dumps(body, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


@contextmanager
def _unreadable(what: str, where: str, hint: str) -> Iterator[None]:
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
