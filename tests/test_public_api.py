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
import reshard.errors

STATEMENTS = ("inspect", "plan", "convert", "verify")
PUBLIC = sorted(set(reshard.__all__) | {f"api.{name}" for name in reshard.api.__all__})

# What only some commands need, and what would take longer to import than the work.
HEAVY = ("boto3", "botocore", "typer", "rich", "fsspec", "s3fs", "torch", "mindspore", "safetensors")
PURE = (
    "reshard.tensor",
    "reshard.formats.safetensors",
    "reshard.formats.mindspore.strategy_merge",
    "reshard.planning.plan",
)
IMPURE = (*HEAVY, "asyncio", "numpy", "awscrt", "reshard.storage", "reshard.engine")


def found(name: str) -> object:
    place = reshard
    for part in name.split("."):
        place = getattr(place, part)
    return place


@pytest.mark.parametrize("module", [reshard, reshard.api, reshard.errors], ids=lambda module: module.__name__)
def test_all_is_sorted_and_complete(module):
    names = module.__all__
    assert list(names) == sorted(names, key=lambda name: (not name[0].isupper(), name))
    assert len(set(names)) == len(names)
    assert all(hasattr(module, name) for name in names)
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
    from reshard.cli.convert import convert
    from reshard.cli.plan import plan

    options = set(reshard.api.Options.__annotations__)
    library = set(inspect.signature(reshard.convert).parameters) - {"on_event", "options"} | options
    assert set(inspect.signature(convert).parameters) - {"output", "quiet"} == library
    library = set(inspect.signature(reshard.plan).parameters) - {"on_event", "options"} | options
    told = {"explain", *set(inspect.signature(reshard.estimate).parameters) - {"plan"}}
    shown = set(inspect.signature(plan).parameters)
    assert told < shown
    assert shown - told - {"output", "quiet", "out", "overwrite", "plan"} == library


def test_options_are_told_and_unknown_ones_refused():
    text = inspect.getdoc(reshard.api.Options)
    assert all(name in text for name in reshard.api.Options.__annotations__)
    with pytest.raises(TypeError, match="unknown options: destination"):
        reshard.plan("a", "b", destination="c")


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
    assert min(seconds for seconds, _ in runs) < 1.5


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
