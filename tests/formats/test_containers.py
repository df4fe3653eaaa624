"""Containers: what a frame lays out is an object of its format, and what the format cannot hold is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import CKPT_TYPES, assembled, decode, decode_ckpt, list_ckpt, random_model

from reshard.errors import FormatError
from reshard.formats.containers import Container
from reshard.formats.mindspore.ckpt import plan_ckpt
from reshard.tensor import DType, TensorSpec

SAFETENSORS, CKPT = Container.SAFETENSORS.definition, Container.CKPT.definition
SHAPES = st.lists(st.integers(1, 5), max_size=4).map(tuple) | st.sampled_from([(0, 3), (2, 0), (1, 1, 40)])


@st.composite
def models(draw, dtypes):
    names = draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5, unique=True))
    return random_model({name: (draw(st.sampled_from(sorted(dtypes))), draw(SHAPES)) for name in names})


def ordered(model):
    """The tensors as outputs have them."""
    specs = [TensorSpec(name, dtype, shape) for name, (dtype, shape, _) in model.items()]
    return sorted(specs, key=lambda spec: (-spec.dtype.order, spec.name))


def whole(frame, specs, model):
    return assembled(frame, [model[spec.name][2].tobytes() for spec in specs])


def told(model):
    return {name: (dtype.value, shape, array.tobytes()) for name, (dtype, shape, array) in model.items()}


@given(
    models([dtype.value for dtype in DType if dtype.bits >= 8]),
    st.dictionaries(st.text("xyz", min_size=2), st.text("abc")),
)
def test_safetensors(model, metadata):
    specs = ordered(model)
    frame = SAFETENSORS.make_frame(specs, metadata, {"left": "out"})
    assert decode(whole(frame, specs, model)) == (told(model), metadata)


@given(
    models(CKPT_TYPES), st.dictionaries(st.text("xyz", min_size=2), st.text("ab\u4e2d\U0001f600")), st.integers(8, 64)
)
def test_ckpt(model, texts, piece_bytes):
    specs = ordered(model)
    frame = plan_ckpt(specs, {"author": "me"}, texts, piece_bytes=piece_bytes)
    body = whole(frame, specs, model)
    assert decode_ckpt(body) == (told(model), texts)
    assert all(b - a <= piece_bytes for _, _, _, spans in list_ckpt(body)[0] for a, b in spans)
    assert [name for name, *_ in list_ckpt(body)[0]] == [spec.name for spec in specs]


def test_sub_byte_tensors_are_rows_of_bytes():
    specs = [TensorSpec("w", DType.F4, (2, 6))]
    [extent] = SAFETENSORS.make_frame(specs, {}, {}).extents
    assert (extent.element_count, extent.itemsize) == (6, 1)


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype.value not in CKPT_TYPES])
def test_dtypes_that_ckpt_lacks(dtype):
    with pytest.raises(FormatError, match=r"values that \.ckpt cannot hold") as caught:
        CKPT.make_frame([TensorSpec("w", dtype, (8,))], {}, {})
    [problem] = caught.value.problems
    assert problem.startswith("tensor 'w': expected one of")


def test_packed_int4_keeps_its_name():
    spec = TensorSpec("w", DType.I8, (4,))
    body = whole(CKPT.make_frame([spec], {"w": "Int4"}, {}), [spec], random_model({"w": ("I8", (4,))}))
    assert list_ckpt(body)[2] == {"w": "Int4"}
    plain = whole(CKPT.make_frame([spec], {"w": "other"}, {}), [spec], random_model({"w": ("I8", (4,))}))
    assert list_ckpt(plain)[2] == {}


def test_packed_int4_is_int8():
    with pytest.raises(FormatError, match=r"values that \.ckpt cannot hold"):
        CKPT.make_frame([TensorSpec("w", DType.F32, (4,))], {"w": "Int4"}, {})


def test_every_unfit_value_is_told():
    specs = [TensorSpec("a", DType.F4, (2,)), TensorSpec("b", DType.F32, (0,)), TensorSpec("c", DType.U8, (1,))]
    with pytest.raises(FormatError) as caught:
        CKPT.make_frame(specs, {}, {"c": "text", "d": "\ud800", "e": "x\0"})
    assert len(caught.value.problems) == 5


def test_nothing():
    assert SAFETENSORS.make_frame([], {}, {}).extents == ()
    with pytest.raises(FormatError, match="nothing to write"):
        CKPT.make_frame([], {}, {})
    assert CKPT.make_frame([], {}, {"note": "x"}).extents == ()
