"""The command line starts at once: a command imports what it needs, and ``--help`` next to nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# What takes long to import; newer versions of typer also read values with pydantic, but not for --help.
HEAVY = {
    "numpy", "ml_dtypes", "boto3", "botocore", "awscrt", "fsspec", "yaml", "rich", "asyncio", "concurrent.futures",
}  # fmt: skip
COUNTED = """
import json, sys
sys.argv = ["reshard", *{arguments}]
try:
    from reshard.cli.app import main
    main()
except SystemExit:
    pass
sys.stderr.write(json.dumps(sorted(sys.modules)))
"""


def modules_of(*arguments):
    """Every module that a command has imported in the end."""
    program = COUNTED.format(arguments=list(arguments))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stderr)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["strategy", "--help"]], ids=" ".join)
def test_help_imports_no_more_than_it_shows(arguments):
    modules = modules_of(*arguments)
    ours = {name for name in modules if name.startswith("reshard")}
    assert ours <= {
        "reshard", "reshard.doors", "reshard.errors", "reshard.cli", "reshard.cli.app", "reshard.cli.lazy_commands",
        "reshard.cli.signals", "reshard.cli.spelling",
    }  # fmt: skip
    assert not HEAVY.intersection(modules)
    if arguments == ["--help"]:
        assert "pydantic" not in modules
        assert len(modules) < 200


@pytest.mark.parametrize("command", ["inspect", "plan", "convert", "verify"])
def test_help_of_a_command_imports_no_client(command):
    modules = modules_of(command, "--help")
    assert not HEAVY.intersection(modules)
    rooms = ("reshard.engine.", "reshard.planning", "reshard.storage", "reshard.models", "reshard.formats")
    assert {name for name in modules if name.startswith(rooms)} <= {"reshard.engine.events"}


def test_inspecting_a_local_object_imports_no_client(local):
    modules = modules_of("inspect", f"{local.full}/rank_0/full.safetensors")
    assert not {"numpy", "ml_dtypes", "boto3", "awscrt", "fsspec", "rich"}.intersection(modules)
    assert not [name for name in modules if name.startswith(("reshard.engine.kernels", "reshard.engine.executors"))]


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "reshard", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("reshard ")
