"""What a program that imports the package relies on."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
import types
import typing

import pytest

import reshard
import reshard.api
import reshard.compat
import reshard.errors
from reshard.api.assumptions import ASSUMPTIONS
from reshard.api.request import OPTIONS, PLANNING_OPTIONS

STATEMENTS = ("inspect", "plan", "convert", "verify")
DOORS = (reshard, reshard.api, reshard.compat, reshard.errors)
PUBLIC = sorted(
    {*reshard.__all__, *(f"{door}.{name}" for door in ("api", "compat") for name in getattr(reshard, door).__all__)}
)

# What only some commands need, and what would take longer to import than the work.
HEAVY = (
    "boto3", "botocore", "typer", "rich", "fsspec", "s3fs", "torch", "mindspore", "safetensors", "numpy", "ml_dtypes",
    "awscrt", "yaml", "asyncio",
)  # fmt: skip
PURE = (
    "reshard.tensor",
    "reshard.formats.safetensors",
    "reshard.formats.mindspore.strategy_merge",
    "reshard.planning.plan",
)
IMPURE = (*(name for name in HEAVY if name != "yaml"), "reshard.storage", "reshard.engine")


def found(name: str) -> object:
    place = reshard
    for part in name.split("."):
        place = getattr(place, part)
    return place


@pytest.mark.parametrize("module", DOORS, ids=lambda module: module.__name__)
def test_all_is_sorted_and_complete(module):
    names = module.__all__
    assert list(names) == sorted(names, key=lambda name: (not name[0].isupper(), name))
    assert len(set(names)) == len(names)
    assert all(hasattr(module, name) for name in names)
    with pytest.raises(AttributeError, match="absent"):
        _ = module.absent
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name != "annotations"
        if getattr(value, "__module__", "").startswith("reshard")
    }
    assert public <= set(names)


def test_the_statements_are_there():
    assert set(STATEMENTS) < set(reshard.__all__)
    assert reshard.__version__


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_is_documented(name):
    value = found(name)
    text = inspect.getdoc(value)
    assert text
    if inspect.isclass(value):
        own = {key: member for key, member in vars(value).items() if not key.startswith("_")}
        assert all(
            inspect.getdoc(member) for member in own.values() if callable(member) or isinstance(member, property)
        )
        assert value.__doc__ == text or inspect.cleandoc(value.__doc__) == text, "inherited"
        if dataclasses.is_dataclass(value):
            assert not text.startswith(f"{value.__name__}("), "made by dataclass"
            assert value.__dataclass_params__.frozen


@pytest.mark.parametrize("name", [*STATEMENTS, "load_plan"])
def test_statements_are_typed_and_told(name):
    statement = getattr(reshard, name)
    hints = typing.get_type_hints(statement)
    parameters = inspect.signature(statement).parameters
    assert set(hints) == {*parameters, "return"}
    text = inspect.getdoc(statement)
    if name != "load_plan":
        assert all(parameter in text for parameter in parameters), parameters
        assert "Raises" in text
    optional = [p for p in parameters.values() if p.default is not p.empty and p.name not in ("src", "dst")]
    assert all(p.kind is p.KEYWORD_ONLY for p in optional)


def test_the_command_line_takes_what_the_library_takes():
    from reshard.cli.commands import convert, plan

    assert set(inspect.signature(convert).parameters) - {"output", "quiet"} == {*OPTIONS, "plan"}
    own = {"output", "quiet", "out", "overwrite", "plan", "explain", "html", "picture"}
    assert set(inspect.signature(plan).parameters) - own == {*PLANNING_OPTIONS, *ASSUMPTIONS}
    assert set(inspect.signature(reshard.estimate).parameters) - {"plan"} == set(ASSUMPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_new_option_is_one_field(name):
    text = inspect.getdoc(reshard.api.Request)
    assert f"\n{name}\n    " in text
    assert "\u27e6" not in text
    assert OPTIONS[name].help.endswith(".")


def test_defaults_are_those_of_the_limits():
    from reshard.api.option_field import parse_duration, parse_rate, parse_size
    from reshard.planning.cost.estimate import Speeds

    limits, speeds = reshard.Limits(), Speeds()
    assert parse_size(OPTIONS["memory"].default) == limits.memory_bytes
    assert int(OPTIONS["concurrency"].default) == limits.concurrency
    sizes = [parse_size(text.split(": ")[-1]) for text in OPTIONS["part_size"].default.split("; ")]
    assert sizes == [limits.object_bytes, limits.mindspore_part_bytes, limits.chunk_bytes]
    assert parse_rate(ASSUMPTIONS["bandwidth"].default) == speeds.bandwidth_bytes_s
    assert parse_duration(ASSUMPTIONS["latency"].default) == speeds.latency_s


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="unknown options: destination"):
        reshard.plan("a", "b", destination="c")
    with pytest.raises(TypeError, match="unknown options: overwrite"):
        reshard.plan("a", "b", overwrite=True)
    with pytest.raises(TypeError, match="unknown options: memory"):
        reshard.inspect("a", memory="1GiB")
    with pytest.raises(TypeError, match="filter_out_param_prefx"):
        reshard.compat.unified_safetensors("a", "b", "c", filter_out_param_prefx="adam_")


def test_what_is_wrong_with_options_is_told_together():
    with pytest.raises(reshard.errors.UsageError) as caught:
        reshard.plan("a", "b", memory="lots", ranks="first", staging="sometimes")
    found = [problem.partition(":")[0] for problem in caught.value.problems]
    assert found == ["memory='lots'", "ranks='first'", "staging='sometimes'"]
    assert "  - memory='lots': expected bytes" in str(caught.value)
    with pytest.raises(reshard.errors.UsageError) as caught:
        reshard.plan("a", "b", src_strategy="s", src_layout="l", iteration=3)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("memory", 1 << 20, 1 << 20), ("memory", "1MiB", 1 << 20), ("keep", "a", ("a",)), ("keep", ["a"], ("a",)),
        ("ranks", "0-1,3", (range(2), range(3, 4))), ("ranks", (0, 3), (range(1), range(3, 4))), ("to", None, None),
        ("overwrite", True, True), ("overwrite", "true", True), ("name_map", {"a": "b"}, {"a": "b"}),
        ("name_map", "m.json", "m.json"), ("option", ["a=1"], {"a": 1}), ("option", {"a": True}, {"a": True}),
        ("concurrency", "8", 8), ("concurrency", 8, 8), ("give_up_after", "2h", 7200), ("give_up_after", 30, 30),
    ],
)  # fmt: skip
def test_values_are_read_from_text_and_from_python(name, given, value):
    cut = {"dst_layout": "l.yaml"} if name == "ranks" else {}
    assert getattr(reshard.api.Request.of(**cut, **{name: given}), name) == value


def test_errors_are_one_tree_with_exit_codes():
    errors = [value for value in vars(reshard.errors).values() if inspect.isclass(value)]
    ours = [error for error in errors if issubclass(error, Exception) and error.__module__ == "reshard.errors"]
    assert all(issubclass(error, reshard.ReshardError) for error in ours)
    assert {error.exit_code for error in ours} == {1, 2, 3, 4, 5, 6, 130}
    assert [error for error in ours if error.exit_code == 1] == [reshard.ReshardError]


def in_a_fresh_process(code: str) -> object:
    program = f"import json, sys\n{code}\nprint(json.dumps(result))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_is_light():
    """The better of two, by the clock of the process: other work on the machine does not count."""
    code = f"""
import time
before_s = time.process_time()
import reshard
result = [time.process_time() - before_s, [name for name in {HEAVY} if name in sys.modules]]
"""
    runs = [in_a_fresh_process(code) for _ in range(2)]
    assert runs[0][1] == []
    assert min(seconds for seconds, _ in runs) < 0.3


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_import_no_io(room):
    """As the import contracts say; this looks at what really gets loaded."""
    module = in_a_fresh_process(
        f"""
import types
# The package's own __init__ imports everything: an empty one stands in for it.
import importlib.util
origin = importlib.util.find_spec("reshard").submodule_search_locations
package = types.ModuleType("reshard")
package.__path__ = list(origin)
sys.modules["reshard"] = package
import importlib
importlib.import_module({room!r})
result = [name for name in {IMPURE} if name in sys.modules]
"""
    )
    assert module == []


def test_a_plan_can_be_looked_into_without_the_command_line(tmp_path):
    """The library prints nothing and draws nothing: events go to who asks for them."""
    path = tmp_path / "model.safetensors"
    header = json.dumps({"w": {"dtype": "U8", "shape": [4, 4], "data_offsets": [0, 16]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    events = []
    plan = reshard.plan(str(path), str(tmp_path / "out"), on_event=events.append)
    manifest = reshard.convert(plan=plan, on_event=events.append)
    report = reshard.verify(str(tmp_path / "out"), on_event=events.append)
    assert report.is_ok
    assert [event.name for event in events if isinstance(event, reshard.PhaseStarted)] == [
        "headers",
        "transfer",
        "commit",
        "verify",
    ]
    moved = [event for event in events if isinstance(event, reshard.Progress)]
    assert moved[0].total_read_bytes == plan.cost.read_bytes == 16
    assert max(event.read_bytes for event in moved) == 16
    assert isinstance(manifest, reshard.Manifest)
    assert isinstance(manifest.receipts[0], reshard.ObjectReceipt)
