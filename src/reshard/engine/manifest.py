"""The record that a finished conversion leaves: what was read, what was written, and the plan between."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from ..errors import FormatError
from ..formats.strict_json import parse_json_object, shown
from ..planning.codec import at, fields_of, integer, refused, text
from ..planning.outputs.output import group_by_layout
from ..planning.plan import Plan
from ..planning.plan_json import plan_from_json, plan_to_json

_FORMAT = "reshard-manifest/1"
_HINT = "Convert anew."
_CRC = re.compile("[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Receipt:
    """One object that was written.

    ``key`` counts from the target's URL, ``crc32c`` is of all its bytes; None where the store copied
    some of them by itself.
    """

    key: str
    nbytes: int
    etag: str
    crc32c: int | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A finished conversion. It is written last: what it names is complete."""

    plan: Plan
    receipts: tuple[Receipt, ...]


def manifest_to_json(manifest: Manifest) -> dict[str, Any]:
    """Express a manifest in JSON's types.

    ``tensors`` lists each distinct set of tensors once; ranks of one stage mostly have the same.
    """
    plan = manifest.plan
    number_of: dict[object, int] = {}
    set_of_key: dict[str, int] = {}
    for positions in group_by_layout(plan.outputs):
        number = number_of.setdefault(plan.outputs[positions[0]].specs, len(number_of))
        set_of_key |= {key: number for position in positions for key in plan.outputs[position].keys}
    plan_json = plan_to_json(plan)
    return {
        "format": _FORMAT,
        "plan_id": plan_json["plan_id"],
        "source_url": plan.catalog.url,
        "target_url": plan.conversion.target_url,
        "sources": [{"key": o.key, "nbytes": o.nbytes, "etag": o.etag} for o in plan.catalog.objects if not o.fill],
        "outputs": [
            {
                "key": receipt.key,
                "nbytes": receipt.nbytes,
                "etag": receipt.etag,
                "crc32c": None if receipt.crc32c is None else f"{receipt.crc32c:08x}",
                "tensors": set_of_key.get(receipt.key),
            }
            for receipt in manifest.receipts
        ],
        "tensors": [
            {spec.name: {"dtype": spec.dtype.value, "shape": list(spec.shape)} for spec in specs}  # type: ignore[attr-defined]
            for specs in number_of
        ],
        "plan": plan_json,
    }


def encode_manifest(manifest: Manifest) -> bytes:
    """Write a manifest for :func:`decode_manifest`."""
    return json.dumps(manifest_to_json(manifest), ensure_ascii=False, separators=(",", ":")).encode()


def decode_manifest(data: bytes, where: str) -> Manifest:
    """Read a manifest.

    Raises
    ------
    FormatError
        Not a manifest, of another version, or altered, or its outputs are not those of its plan.
    """
    body = parse_json_object(data, where)
    if body.get("format") != _FORMAT:
        raise FormatError("not a manifest", where=where, expected=_FORMAT, found=shown(body.get("format")))
    outputs, plan_json = body.get("outputs"), body.get("plan")
    if not isinstance(outputs, list) or not isinstance(plan_json, dict):
        raise FormatError("outputs or plan missing", where=where, hint=_HINT)
    try:
        receipts = tuple(_receipt(output) for output in outputs)
    except FormatError as error:
        what = ": ".join(part for part in ("an output cannot be read", error.where, error.what) if part)
        raise FormatError(what, where=where, expected=error.expected, found=error.found, hint=_HINT) from error
    plan = plan_from_json(plan_json, where)
    found = [receipt.key for receipt in receipts]
    if len(found) != len(plan.conversion.keys) or set(found) != set(plan.conversion.keys):
        strange = sorted(set(found) ^ set(plan.conversion.keys)) or [f"{len(found)} outputs"]
        expected = f"the plan's {len(plan.conversion.keys)}, each once"
        raise FormatError("wrong outputs", where=where, expected=expected, found=shown(strange[0]), hint=_HINT)
    return Manifest(plan, receipts)


def _receipt(value: object) -> Receipt:
    output = fields_of(value, ("key", "nbytes", "etag", "crc32c"), ("tensors",))
    if output.get("tensors") is not None:
        at("tensors", integer, output["tensors"])
    key, etag = at("key", text, output["key"]), at("etag", text, output["etag"])
    return Receipt(key, at("nbytes", integer, output["nbytes"]), etag, at("crc32c", _crc, output["crc32c"]))


def _crc(value: object) -> int | None:
    if value is None:
        return None
    digits = text(value)
    if not _CRC.fullmatch(digits):
        raise refused("8 hex digits", digits)
    return int(digits, 16)
