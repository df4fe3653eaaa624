"""The record that a finished conversion leaves: what was converted, within which limits, and every object written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from ..errors import FormatError
from ..figures import in_bytes
from ..formats.strict_json import parse_json_object, shown
from ..notebook import Picture, Shown, Table
from ..planning.codec import at, choice, decode, each_of, fields_of, integer, mapping, refused, text
from ..planning.conversion import Conversion
from ..planning.limits import Limits
from ..planning.outputs.output import group_by_layout
from ..planning.plan_json import conversion_from_json, conversion_ids, conversion_to_json, unreadable
from ..storage import PROOFS, Proof
from .digest import ReadProof

_FORMAT = "reshard-manifest/2"
_HINT = "Convert again."
_CRC = re.compile("[0-9a-f]{8}")
_IDS = re.compile(rb'{"format":"reshard-manifest/2","conversion_id":"([0-9a-f]{64})","whole_id":"([0-9a-f]{64})"')
START_BYTES = 256
"""Bytes that hold the ids of a manifest."""


@dataclass(frozen=True, slots=True)
class ObjectReceipt:
    """One object that was written.

    ``key`` is relative to the target's URL, ``crc32c`` covers all bytes and is None where the store copied
    some of them and does not tell it. ``proof`` is what shows that the store has them as they were sent.
    """

    key: str
    nbytes: int
    etag: str
    crc32c: int | None
    proof: Proof = ""


@dataclass(frozen=True, slots=True, repr=False)
class Manifest(Shown):
    """A finished conversion. It is written last, so every object that it names is complete.

    Verifying keeps to the limits that the run kept to. ``was_done`` is set if an earlier run had finished it; it is
    not stored. ``overflows`` counts values that their new dtype could not hold, by the source's names of tensors.
    ``reads`` is what the run knows of the bytes that it read.
    """

    conversion: Conversion
    limits: Limits
    receipts: tuple[ObjectReceipt, ...]
    reads: ReadProof = field(default_factory=ReadProof)
    was_done: bool = field(default=False, compare=False)
    overflows: Mapping[str, int] = field(default_factory=dict)

    def picture(self) -> Picture:
        """Return what a notebook shows of it."""
        made, written = self.conversion, sum(receipt.nbytes for receipt in self.receipts)
        line = f"{made.catalog.url} -> {made.target_url}: {len(self.receipts)} objects, {in_bytes(written)}"
        rows = (
            (each.key, in_bytes(each.nbytes), "" if each.crc32c is None else f"{each.crc32c:08x}", each.etag)
            for each in self.receipts
        )
        overflows = Table("overflows", ("tensor", "values"), self.overflows.items(), len(self.overflows))
        objects = Table("objects", ("key", "size", "crc32c", "etag"), rows, len(self.receipts))
        return Picture(f"{line}{', done by an earlier run' * self.was_done}", (objects, overflows), made.notes)


def manifest_to_json(manifest: Manifest) -> dict[str, Any]:
    """Express a manifest in JSON's types.

    ``tensors`` lists each distinct set of tensors once; the ranks of one stage mostly have the same.
    """
    conversion = manifest.conversion
    number_of: dict[object, int] = {}
    set_of_key: dict[str, int] = {}
    for positions in group_by_layout(conversion.outputs):
        number = number_of.setdefault(conversion.outputs[positions[0]].specs, len(number_of))
        set_of_key |= {key: number for position in positions for key in conversion.outputs[position].keys}
    objects = conversion.catalog.objects
    own_id, whole_id = conversion_ids(conversion)
    return {
        "format": _FORMAT,
        "conversion_id": own_id,
        # What it is a share of; both ids are at the start, where they can be read without the rest.
        "whole_id": whole_id,
        "source_url": conversion.catalog.url,
        "target_url": conversion.target_url,
        "sources": [{"key": o.key, "nbytes": o.nbytes, "etag": o.etag} for o in objects if not o.fill],
        "outputs": [
            {
                "key": receipt.key,
                "nbytes": receipt.nbytes,
                "etag": receipt.etag,
                "crc32c": None if receipt.crc32c is None else f"{receipt.crc32c:08x}",
                "proof": receipt.proof,
                "tensors": set_of_key.get(receipt.key),
            }
            for receipt in manifest.receipts
        ],
        "tensors": [
            {spec.name: {"dtype": spec.dtype.value, "shape": list(spec.shape)} for spec in specs}  # type: ignore[attr-defined]
            for specs in number_of
        ],
        "reads": asdict(manifest.reads),
        "limits": asdict(manifest.limits),
        "overflows": dict(manifest.overflows),
        "conversion": conversion_to_json(conversion),
    }


def encode_manifest(manifest: Manifest) -> bytes:
    """Write a manifest for :func:`decode_manifest`."""
    return json.dumps(manifest_to_json(manifest), ensure_ascii=False, separators=(",", ":")).encode()


def decode_manifest(data: bytes, where: str) -> Manifest:
    """Read a manifest.

    Raise FormatError if it is none, of another version or altered, or if its objects are not those of its conversion.
    """
    body = parse_json_object(data, where)
    if body.get("format") != _FORMAT:
        raise FormatError("not a manifest", where=where, expected=_FORMAT, found=shown(body.get("format")))
    body.pop("tensors", None)  # for people, and as long as all the rest
    with unreadable("the manifest", where, _HINT):
        receipts = tuple(at("outputs", lambda value: each_of(value, _receipt), body.get("outputs")))
        limits: Limits = at("limits", partial(decode, Limits), body.get("limits"))
        reads: ReadProof = at("reads", partial(decode, ReadProof), body.get("reads"))
        found = at("overflows", mapping, body.get("overflows", {}))
        overflows = {name: at("overflows", integer, count) for name, count in found.items()}
        conversion = conversion_from_json(body.pop("conversion", None), len(data))
        if (body.get("conversion_id"), body.get("whole_id")) != conversion_ids(conversion):
            raise FormatError("the conversion was altered, or another version of reshard wrote it")
        keys, expected = [receipt.key for receipt in receipts], set(conversion.keys)
        if len(keys) != len(expected) or set(keys) != expected:
            strange = sorted(set(keys) ^ expected) or [f"{len(keys)} outputs"]
            raise refused(f"the conversion's {len(expected)}, each once", strange[0], "outputs")
    return Manifest(conversion, limits, receipts, reads, overflows=overflows)


def ids_at_start(data: bytes) -> tuple[str, str] | None:
    """Return the conversion's id, and that of what it is a share of, from a manifest's first bytes.

    None if these are not the start of a manifest.
    """
    found = _IDS.match(data)
    return (found[1].decode(), found[2].decode()) if found else None


def _receipt(value: object) -> ObjectReceipt:
    output = fields_of(value, ("key", "nbytes", "etag", "crc32c", "proof"), ("tensors",))
    if output.get("tensors") is not None:
        at("tensors", integer, output["tensors"])
    key, etag = at("key", text, output["key"]), at("etag", text, output["etag"])
    nbytes, crc = at("nbytes", integer, output["nbytes"]), at("crc32c", _crc, output["crc32c"])
    return ObjectReceipt(key, nbytes, etag, crc, at("proof", _proof, output["proof"]))


_proof = partial(choice, {proof: proof for proof in PROOFS})


def _crc(value: object) -> int | None:
    if value is None:
        return None
    digits = text(value)
    if not _CRC.fullmatch(digits):
        raise refused("8 hex digits", digits)
    return int(digits, 16)
