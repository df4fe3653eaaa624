"""The record that a finished conversion leaves: what was read, what was written, and the plan between."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import FormatError
from ..formats.strict_json import parse_json_object
from ..planning.plan import Plan
from ..planning.plan_json import plan_from_json, plan_to_json

__all__ = ["Manifest", "Receipt", "decode_manifest", "encode_manifest", "manifest_to_json"]

_FORMAT = "reshard-manifest/1"


@dataclass(frozen=True, slots=True)
class Receipt:
    """One object that was written; ``key`` counts from the target's URL, ``crc32c`` is of all its bytes."""

    key: str
    nbytes: int
    etag: str
    crc32c: int


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
    set_of_key = {
        key: number_of.setdefault(output.specs, len(number_of)) for output in plan.outputs for key in output.keys
    }
    plan_json = plan_to_json(plan)
    return {
        "format": _FORMAT,
        "plan_id": plan_json["plan_id"],
        "source_url": plan.catalog.url,
        "target_url": plan.target_url,
        "sources": [{"key": o.key, "nbytes": o.nbytes, "etag": o.etag} for o in plan.catalog.objects],
        "outputs": [
            {
                "key": receipt.key,
                "nbytes": receipt.nbytes,
                "etag": receipt.etag,
                "crc32c": f"{receipt.crc32c:08x}",
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
        Not a manifest, of another version, or its plan was altered.
    """
    body = parse_json_object(data, where)
    if body.get("format") != _FORMAT:
        raise FormatError("not a manifest", where=where, expected=_FORMAT, found=repr(body.get("format")))
    outputs, plan = body.get("outputs"), body.get("plan")
    if not isinstance(outputs, list) or not isinstance(plan, dict):
        raise FormatError("outputs or plan missing", where=where)
    try:
        receipts = tuple(_receipt(output) for output in outputs)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError("an output cannot be read", where=where, found=repr(error)) from error
    return Manifest(plan_from_json(plan, where), receipts)


def _receipt(output: Mapping[str, Any]) -> Receipt:
    return Receipt(str(output["key"]), int(output["nbytes"]), str(output["etag"]), int(output["crc32c"], 16))
