"""Manifests: the same comes back, and what is not of the plan is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import catalog_of_objects, random_model
from support.planning import plan_for

from reshard.engine.manifest import Manifest, ObjectReceipt, decode_manifest, encode_manifest
from reshard.errors import FormatError
from reshard.planning.limits import Limits
from reshard.planning.targets.full_target import FullTarget

MODEL = random_model({"a": ("F32", (8, 6)), "b": ("BF16", (6,))})
FULL = FullTarget("m-{part:05d}-of-{parts:05d}.safetensors", "m.safetensors", "i.json", "pt", 100)


def a_manifest():
    catalog = catalog_of_objects({"s.safetensors": MODEL})
    plan = plan_for(catalog, FULL, "memory://t", Limits())
    receipts = tuple(ObjectReceipt(key, 5, "e", 0xABC) for key in plan.conversion.keys)
    return Manifest(plan.conversion, plan.limits, receipts)


def body_of():
    return json.loads(encode_manifest(a_manifest()))


def test_there_and_back():
    again = decode_manifest(encode_manifest(a_manifest()), "m")
    assert again == a_manifest()
    assert encode_manifest(again) == encode_manifest(a_manifest())


def test_parts_are_numbered_in_five_digits():
    assert a_manifest().conversion.keys[0] == "m-00001-of-00002.safetensors"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key", None),
        ("key", 1),
        ("key", "elsewhere"),
        ("nbytes", True),
        ("nbytes", "5"),
        ("nbytes", 5.0),
        ("nbytes", -1),
        ("nbytes", 1 << 63),
        ("etag", None),
        ("etag", 1),
        ("crc32c", 1),
        ("crc32c", "0x0000ab"),
        ("crc32c", "+0000abc"),
        ("crc32c", "abc"),
        ("crc32c", "000000abc"),
        ("crc32c", "00000abc\n"),
        ("tensors", "0"),
        ("extra", 1),
    ],
)
def test_receipts_that_are_none(field, value):
    body = body_of()
    body["outputs"][0][field] = value
    with pytest.raises(FormatError, match=r"^m: .*output"):
        decode_manifest(json.dumps(body).encode(), "m")


@pytest.mark.parametrize(
    "change",
    [
        lambda outputs: outputs[1:],
        lambda outputs: [],
        lambda outputs: [*outputs, outputs[0]],
        lambda outputs: [outputs[0], *outputs[:-1]],
        lambda outputs: [1],
        lambda outputs: {},
        lambda outputs: None,
    ],
)
def test_outputs_that_are_not_the_plans(change):
    body = body_of()
    body["outputs"] = change(body["outputs"])
    with pytest.raises(FormatError):
        decode_manifest(json.dumps(body).encode(), "m")


@pytest.mark.parametrize("field", ["format", "outputs", "limits", "conversion", "conversion_id"])
def test_fields_that_lack(field):
    body = body_of()
    del body[field]
    with pytest.raises(FormatError):
        decode_manifest(json.dumps(body).encode(), "m")


JUNK = st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.lists(st.integers(), max_size=3)


@settings(deadline=None)
@given(st.sampled_from(["key", "nbytes", "etag", "crc32c", "tensors"]), JUNK)
def test_junk_in_a_receipt_is_a_format_error_or_a_manifest(field, value):
    body = body_of()
    body["outputs"][0][field] = value
    try:
        decode_manifest(json.dumps(body).encode(), "m")
    except FormatError:
        return
