"""Conversions and plans as JSON, and back; see ``docs/design/0022-saved-plans.md``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import FormatError, PlanError, ReshardError
from ..formats.strict_json import parse_json_object, shown
from .codec import decode, encode, fields_of
from .conversion import Conversion
from .conversion_check import check_conversion
from .limits import Limits
from .plan import Plan, StagingMode, make_plan
from .staging import first_pass, second_pass
from .targets import Target
from .targets.zarr_target import ZarrTarget

BESIDE = ("estimate", "explained")
"""Keys that are printed with a plan without being part of it."""

_FORMAT = "reshard-plan/2"
_INPUTS = ("conversion", "limits", "copy_bases", "staging")
_DERIVED = ("conversion_id", "groups", "staged_groups", "cost", "notes", *BESIDE)
# Nothing but a FormatError may come of a document that someone forged. What the checks overlook ends here.
_BROKEN = (ReshardError, ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
_PIECE_COUNT = 4096
_TENSOR_BYTES = 1100  # what planning takes for each
Json = dict[str, Any]
_FOR_PEOPLE = ("kind", "notes", "header_bytes")
"""Fields of a catalog that are shown and never decided upon."""


@dataclass(frozen=True, slots=True)
class _FirstPass:
    """What planning the first of two passes starts from."""

    mode: StagingMode
    target: Target
    limits: Limits
    copy_bases: tuple[int, ...]
    note: str


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What planning starts from."""

    conversion: Conversion
    limits: Limits
    copy_bases: tuple[int, ...]
    staging: _FirstPass | None

    def plan(self) -> Plan:
        if self.staging is None:
            return make_plan(self.conversion, self.limits, self.copy_bases)
        mode, target = self.staging.mode, self.staging.target
        if not isinstance(target, ZarrTarget):
            raise PlanError("tensors can only be staged in zarr chunks")
        first = first_pass(self.conversion, target, mode, self.staging.limits, self.staging.copy_bases)
        second = second_pass(self.conversion, first, mode, self.limits, self.copy_bases)
        return second.after(first, mode, self.staging.note)


def conversion_to_json(conversion: Conversion) -> Json:
    """Express a conversion in JSON's types."""
    body: Json = encode(conversion)
    return body


def conversion_id(conversion: Conversion) -> str:
    """Return the hash of all that decides what a conversion writes; remarks for people do not."""
    return _conversion_id(conversion_to_json(conversion))


def conversion_ids(conversion: Conversion) -> tuple[str, str]:
    """Return the conversion's id, and that of the whole that it is a share of: the same unless it is a share."""
    own, whole = conversion_id(conversion), conversion.whole
    return own, own if whole is conversion else conversion_id(whole)


def _conversion_id(body: Json) -> str:
    decisive = {key: value for key, value in body["catalog"].items() if key not in _FOR_PEOPLE}
    return _hash({**body, "catalog": decisive})


def conversion_from_json(value: object, document_nbytes: int) -> Conversion:
    """Build the conversion that :func:`conversion_to_json` expressed, and check it; see :func:`unreadable`.

    ``document_nbytes`` is the length of the document that it is from.
    """
    conversion: Conversion = decode(Conversion, value)
    _check_density(conversion, document_nbytes)
    check_conversion(conversion)
    return conversion


def _check_density(conversion: Conversion, document_nbytes: int) -> None:
    """Refuse more tensors than planning can hold in ten times the document and 64 MiB."""
    most, found = (10 * document_nbytes + (64 << 20)) // _TENSOR_BYTES, len(conversion.catalog.entries)
    if found > most:
        raise PlanError(f"{found} tensors: expected at most {most} in a document of {document_nbytes} bytes")


def plan_to_json(plan: Plan) -> Json:
    """Express a plan in JSON's types: what planning starts from, and for readers what follows from it."""
    first = None
    if plan.staging is not None and plan.staging_mode is not None:
        target, limits, bases = plan.staging.conversion.target, plan.staging.limits, plan.staging.copy_bases
        first = _FirstPass(plan.staging_mode, target, limits, bases, plan.staging_note)
    inputs: Json = encode(_Inputs(plan.conversion, plan.limits, plan.copy_bases, first))
    conversion = inputs.pop("conversion")
    groups = {"groups": _groups(plan), "staged_groups": _groups(plan.staging) if plan.staging else []}
    body = {"format": _FORMAT, "conversion_id": _conversion_id(conversion), **inputs, **groups}
    derived = {"cost": asdict(plan.cost), "notes": list(plan.notes)}
    plan_id = _hash({**body, "conversion": _hash(conversion)})  # with the remarks for people, as they were made
    return {"plan_id": plan_id, **body, "conversion": conversion, **derived}


def _groups(plan: Plan) -> list[Any]:
    return [[list(group.outputs), [[cut.item, cut.row] for cut in group.cuts]] for group in plan.groups]


def plan_id_of(plan: Plan) -> str:
    """Return the plan's identity: a hash of what it makes, in which parts, and within which limits."""
    return str(plan_to_json(plan)["plan_id"])


def encode_plan(plan: Plan) -> bytes:
    """Write a plan for :func:`decode_plan`."""
    return json.dumps(plan_to_json(plan), ensure_ascii=False, separators=(",", ":")).encode()


def decode_plan(data: bytes, where: str) -> Plan:
    """Read a saved plan: make it again from what planning starts from.

    Raise FormatError for anything but a plan of this version, and for one that was altered since, or forged.
    """
    body = parse_json_object(data, where)
    if body.get("format") != _FORMAT:
        raise FormatError("not a saved plan", where=where, expected=_FORMAT, found=shown(body.get("format")))
    with unreadable("the plan", where, "Make a new plan."):
        found = fields_of(body, ("format", "plan_id", *_INPUTS), _DERIVED)
        plan_id = found["plan_id"]
        inputs: _Inputs = decode(_Inputs, {key: found[key] for key in _INPUTS})
        del body, found  # planning and comparing take as much memory again
        _check_density(inputs.conversion, len(data))
        check_conversion(inputs.conversion)
        plan = inputs.plan()
        if plan_id != (made := plan_id_of(plan)):
            what = "altered, or made by another version of reshard"
            raise FormatError(what, where="plan_id", expected=made, found=shown(plan_id))
    return plan


def _hash(body: Json) -> str:
    digest = hashlib.sha256()
    for piece in _canonical(body):
        digest.update(piece.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _canonical(value: object, depth: int = 4) -> Iterator[str]:
    """Yield the canonical text of a document in pieces: as a whole it takes as much memory again."""
    if depth and type(value) is dict:
        for number, key in enumerate(sorted(value)):
            yield f"{',' if number else '{'}{_dumps(key)}:"
            yield from _canonical(value[key], depth - 1)
        yield "}" if value else "{}"
    elif type(value) is list and len(value) > _PIECE_COUNT:
        for start in range(0, len(value), _PIECE_COUNT):
            yield f"{',' if start else '['}{_dumps(value[start : start + _PIECE_COUNT])[1:-1]}"
        yield "]"
    else:
        yield _dumps(value)


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


@contextmanager
def unreadable(what: str, where: str, hint: str) -> Iterator[None]:
    """Turn every error of reading a document into a FormatError."""
    try:
        yield
    except FormatError as error:
        rule = ": ".join(part for part in (f"{what} cannot be read", error.where, error.what) if part)
        sides = {"expected": error.expected, "found": error.found}
        raise FormatError(rule, where=where, hint=hint, problems=error.marked_problems, **sides) from error
    except _BROKEN as error:
        text = error.marked_message if isinstance(error, ReshardError) else str(error) or repr(error)
        raise FormatError(f"{what} cannot be read: {shown(text)}", where=where, hint=hint) from error
