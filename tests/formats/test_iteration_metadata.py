"""Reading an iteration's metadata: what older writers left out, and what is refused."""

import contextlib
import copy
import functools
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reshard.errors import FormatError, StrategyError
from reshard.formats.mindspore.iteration import (
    parse_common,
    parse_tracker,
)
from reshard.formats.mindspore.iteration_encode import (
    ShardObject,
    encode_metadata,
    shard_objects,
)
from reshard.formats.mindspore.iteration_metadata import parse_metadata
from reshard.tensor import Box, DType, Layout, Strategy, TensorSpec

# --- what is refused


@functools.cache
def base_text():
    specs = [TensorSpec("w", DType.F32, (4, 2)), TensorSpec("n", DType.F32, (2,))]
    strategy = Strategy(2, ({"w": Layout((1, 2), ((), (0,))), "n": Layout((2,), ((),))},))
    return encode_metadata(specs, strategy, shard_objects(specs, strategy, (), ""))


def base():
    return json.loads(base_text())


def parse(document):
    return parse_metadata(json.dumps(document).encode(), "m")


W = ("state_dict_metadata", "w")
S = ("storage_data", "('w', (0,))")
BAD = [
    (("state_dict_metadata",), [], "expected an object, found an array"),
    (("storage_data",), None, "expected an object, found null"),
    (W, 1, "tensor 'w': expected an object"),
    ((*W, "properties"), None, "expected a dtype"),
    ((*W, "properties", "dtype"), "float32", "found 'float32'"),
    ((*W, "properties", "dtype"), ["Float32"], "expected a dtype"),
    ((*W, "properties", "replica_id"), [0], "2 numbers, one a rank"),
    ((*W, "properties", "replica_id"), "0", "one a rank"),
    ((*W, "properties", "allow_to_save"), 1, "a boolean"),
    ((*W, "global_shape"), [4, -2], "integers from 0"),
    ((*W, "global_shape"), [4, True], "integers from 0"),
    ((*W, "global_shape"), [4, 2.0], "integers from 0"),
    ((*W, "global_shape"), [2**62, 2**62], "at most"),
    ((*W, "global_shape"), [1] * 65, "at most 64 axes"),
    ((*W, "global_shape"), [4, 3], "equal pieces"),
    ((*W, "global_shape"), [4], "equal pieces"),
    ((*W, "axis_fragmentations"), [1, 0], "integers from 1"),
    ((*W, "axis_fragmentations"), [2, 1], "the cuts of axis_fragmentations"),
    ((*W, "axis_fragmentations"), [1, 1], "1 chunks"),
    ((*W, "chunk"), {}, "2 chunks, one a piece"),
    ((*W, "chunk"), [], "found 0 of them"),
    ((*W, "chunk", 0), None, "a local_shape of"),
    ((*W, "chunk", 0, "local_shape"), [4, 2], "a local_shape of [4, 1]"),
    ((*W, "chunk", 0, "local_shape"), [4, True], "a local_shape of [4, 1]"),
    ((*W, "chunk", 0, "global_offset"), [1], "every global_offset once"),
    ((*W, "chunk", 0, "global_offset"), [2], "from [0] to [1]"),
    ((*W, "chunk", 0, "global_offset"), [0, 0], "from [0] to [1]"),
    ((*W, "chunk", 0, "global_offset"), [False], "from [0] to [1]"),
    ((*W, "layout"), [], "layout: expected an object or null"),
    ((*W, "layout", "device_matrix"), [2, 2], "as many as device_matrix"),
    ((*W, "layout", "device_matrix"), [], "as many as device_matrix"),
    ((*W, "layout", "device_matrix"), [0, 2], "integers from 1"),
    ((*W, "layout", "device_matrix"), [2, 1], "the cuts of axis_fragmentations"),
    ((*W, "layout", "tensor_map"), [0, 0], "a tensor map that fits"),
    ((*W, "layout", "tensor_map"), [-1, 7], "a tensor map that fits"),
    ((*W, "layout", "tensor_map"), [-1, [-1, 0]], "tensor_map: expected"),
    ((*W, "layout", "tensor_map"), [-1, [[0]]], "tensor_map: expected"),
    ((*W, "layout", "tensor_map"), [[], 0], "tensor_map: expected"),
    ((*W, "layout", "tensor_map"), [0], "the cuts of axis_fragmentations"),
    ((*W, "layout", "interleaved_parallel"), True, "interleaved_parallel: expected false"),
    ((*W, "layout", "alias_name"), ["a", "a"], "2 different names"),
    ((*W, "layout", "alias_name"), ["a", 1], "2 different names"),
    ((*W, "layout", "rank_list"), [0, 0], "different ranks"),
    ((*W, "layout", "rank_list"), [1, 0], "according to its layout"),
    ((*W, "layout", "rank_list"), list(range(10**5)), "different ranks"),
    (("storage_data", "w"), [], "a key such as"),
    (("storage_data", "('w', (2,))"), [{"file_name": "a", "storage_rank": 0}], "a chunk in state_dict_metadata"),
    (("storage_data", "('x', (0,))"), [{"file_name": "a", "storage_rank": 0}], "a chunk in state_dict_metadata"),
    (("storage_data", '("w", (0,))'), [{"file_name": "a", "storage_rank": 0}], "another spelling"),
    (S, [], "a filled array"),
    (S, None, "a filled array"),
    ((*S, 0), "a", "records that are objects"),
    ((*S, 0, "file_name"), 1, "a plain file_name, found a number"),
    ((*S, 0, "file_name"), "../a", "found a '..' step"),
    ((*S, 0, "file_name"), "/a", "found an absolute path"),
    ((*S, 0, "storage_rank"), "0", "a storage_rank"),
    ((*S, 0, "storage_rank"), -1, "a storage_rank"),
    ((*S, 0, "storage_rank"), 1, "and 1 among them"),
    ((*S, 0, "rank_group"), None, "integers from 0"),
    ((*S, 0, "rank_group"), [0, 0], "each rank once"),
    ((*S, 0, "rank_group"), [0, 1], "chunk [1] on rank 1, according to its layout"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD)
def test_contradictions_are_named(path, value, message):
    document = base()
    put(document, path, value)
    with pytest.raises(FormatError) as error:
        parse(document)
    assert message in str(error.value)
    assert str(error.value).startswith("m: invalid metadata: expected every shard")


@pytest.mark.parametrize(
    "path",
    [
        ("state_dict_metadata",),
        ("storage_data",),
        W,
        S,
        *((*W, key) for key in ("properties", "global_shape", "axis_fragmentations", "layout", "chunk")),
        *(
            (*W, "layout", key)
            for key in ("device_matrix", "tensor_map", "interleaved_parallel", "alias_name", "rank_list")
        ),
        *((*S, 0, key) for key in ("file_name", "storage_rank")),
    ],
)
def test_nothing_may_be_missing(path):
    document = base()
    at(document, path[:-1]).pop(path[-1])
    with pytest.raises(FormatError, match="invalid metadata"):
        parse(document)


def test_every_problem_is_listed():
    document = base()
    put(document, (*W, "properties", "dtype"), "x")
    put(document, ("state_dict_metadata", "n", "chunk", 0, "global_offset"), [9])
    put(document, (*S, 0, "file_name"), "../a")
    with pytest.raises(FormatError) as error:
        parse(document)
    assert len(error.value.problems) == 3


def test_hostile_sizes_cost_nothing():
    document = base()
    put(document, (*W, "global_shape"), [0] * 64)
    put(document, (*W, "axis_fragmentations"), [2**31 - 1] * 64)
    document["storage_data"].update({f"('x{n}', (0,))": 1 for n in range(20_000)})
    with pytest.raises(FormatError) as error:
        parse(document)
    assert len(error.value.problems) == 10_000
    assert "2000" in error.value.found


@pytest.mark.parametrize(
    ("ranks", "message"),
    [([1, 2], "consecutive ranks"), ([2, 3], "stages from 0"), ([2**31 - 2, 2**31 - 1], "stages from 0")],
)
def test_ranks_that_make_no_stages(ranks, message):
    document = base()
    del document["state_dict_metadata"]["n"], document["storage_data"]["('n', (0,))"]
    put(document, (*W, "layout", "rank_list"), ranks)
    for number, rank in enumerate(ranks):
        put(document, ("storage_data", f"('w', ({number},))"), [{"file_name": "a", "storage_rank": rank}])
    metadata = parse(document)
    with pytest.raises(StrategyError, match=message):
        metadata.strategy()


def test_what_is_not_written():
    specs = [TensorSpec(name, DType.F32, (2,)) for name in ("a", "b", "b")] + [TensorSpec("c", DType.F8_E4M3, (2,))]
    objects = [ShardObject("../x", 0, ("a",)), ShardObject("y", 1, ("a", "zz")), ShardObject("y", 9, ("a",))]
    with pytest.raises(FormatError) as error:
        encode_metadata(specs, Strategy(2, ({"a": Layout((2,), ((),))},)), objects)
    text = str(error.value)
    for part in [
        "'b': expected a unique name",
        "found F8_E4M3",
        "'..' step",
        "found 'zz'",
        "found it again",
        "'b': expected an object that holds shard 0, found none",
    ]:
        assert part in text
    with pytest.raises(FormatError, match="surrogate"):
        encode_metadata([TensorSpec("\ud800", DType.F32, ())], Strategy(1, ({},)), [ShardObject("x", 0, ("\ud800",))])


def at(document, path):
    return functools.reduce(lambda value, step: value[step], path, document)


def put(document, path, value):
    at(document, path[:-1])[path[-1]] = value


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in items:
        yield from places(item, (*path, step))


PLACES = list(places(json.loads(base_text())))[1:]
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=400)
@given(
    st.lists(
        st.tuples(st.sampled_from(PLACES), st.sampled_from(["put", "drop", "double"]), JUNK), min_size=1, max_size=3
    )
)
def test_mutated_documents_raise_format_errors_only(mutations):
    document = base()
    for path, action, junk in mutations:
        with contextlib.suppress(LookupError, TypeError, AttributeError):
            holder = at(document, path[:-1])
            if action == "put":
                holder[path[-1]] = junk
            elif action == "drop":
                del holder[path[-1]]
            else:
                holder.insert(0, copy.deepcopy(holder[path[-1]]))
    with contextlib.suppress(FormatError):
        metadata = parse(document)
        assert all(tensor.shards for tensor in metadata.tensors)
        with contextlib.suppress(StrategyError):
            metadata.strategy()


@given(st.integers(0, 2000), st.binary(max_size=4))
def test_mutated_bytes_raise_format_errors_only(position, junk):
    data = base_text()
    with contextlib.suppress(FormatError):
        parse_metadata(data[:position] + junk + data[position + len(junk) :], "m")


@given(st.binary(max_size=60))
def test_any_bytes_raise_format_errors_only(data):
    for parser in (parse_metadata, parse_common, parse_tracker):
        with contextlib.suppress(FormatError):
            parser(data, "x")


def test_many_tensors_on_many_ranks_take_seconds():
    layout = Layout((32, 8), ((0,), ()))
    specs = [TensorSpec(f"layers.{n}.w", DType.BF16, (1024, 64)) for n in range(300)]
    strategy = Strategy(256, ({spec.name: layout for spec in specs},))
    begin = time.perf_counter()
    metadata = parse_metadata(
        encode_metadata(specs, strategy, shard_objects(specs, strategy, (), "", remove_redundancy=True)), "m"
    )
    assert len(metadata.file_names) == 256
    assert time.perf_counter() - begin < 20


def test_equal_records_count_once():
    document = base()
    document["storage_data"]["('w', (0,))"] *= 2
    assert len(parse(document).tensors[0].shards[0].copies) == 1


@pytest.mark.parametrize("missing", ["rank_group", "replica_id", "allow_to_save"])
def test_what_older_writers_left_out(missing):
    document = base()
    document["state_dict_metadata"]["w"]["properties"].pop(missing, None)
    for records in document["storage_data"].values():
        for record in records:
            record.pop(missing, None)
    assert parse(document).tensors[0].shards[1].box == Box((0, 1), (4, 2))
