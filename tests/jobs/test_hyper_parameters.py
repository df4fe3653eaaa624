"""Arguments and variables of a job: what belongs to which name, and which of them counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.jobs.hyper_parameters import parse_arguments, read_hyper_parameters


@pytest.mark.parametrize(
    ("arguments", "texts", "strays"),
    [
        (["--a=1"], {"a": ("1",)}, ()),
        (["--a", "1"], {"a": ("1",)}, ()),
        (["--a"], {"a": ("True",)}, ()),
        (["--a", "--b", "2"], {"a": ("True",), "b": ("2",)}, ()),
        (["--a="], {"a": ("",)}, ()),
        (["--a=b=c"], {"a": ("b=c",)}, ()),
        (["--a", "-1"], {"a": ("-1",)}, ()),
        (["--a=1", "--a=2", "--a", "3"], {"a": ("1", "2", "3")}, ()),
        (["--dst-layout=l"], {"dst_layout": ("l",)}, ()),
        (["--parallel_config.model_parallel=4"], {"parallel_config.model_parallel": ("4",)}, ()),
        (["x.py", "-v", "--a=1", "y"], {"a": ("1",)}, ("x.py", "-v", "y")),
        (["--", "--a=1"], {"a": ("1",)}, ("--",)),
        (["--=1"], {}, ("1",)),
        ([], {}, ()),
    ],
)
def test_arguments(arguments: list[str], texts: dict, strays: tuple) -> None:
    found = parse_arguments(arguments)
    assert (dict(found.texts), found.strays) == (texts, strays)


@given(st.lists(st.text(max_size=12), max_size=6))
def test_no_arguments_are_refused_or_lost(arguments: list[str]) -> None:
    found = parse_arguments(arguments)
    assert sum(map(len, found.texts.values())) + len(found.strays) <= len(arguments)
    for name in found.texts:
        found.text(name)


def test_an_argument_counts_before_a_variable() -> None:
    environ = {"load_checkpoint": "obs://env", "auto_trans_ckpt": "1", "PATH": "/bin", "unknown": "x"}
    found = read_hyper_parameters(
        ["--load_checkpoint=obs://argument", "--other=y"], environ, {"load_checkpoint", "auto_trans_ckpt"}.__contains__
    )
    assert found.text("load_checkpoint") == "obs://argument"
    assert found.text("auto_trans_ckpt") == "1"
    assert found.from_environment == {"auto_trans_ckpt"}
    assert "unknown" not in found
    assert "other" in found


def test_a_variable_with_a_dot_counts() -> None:
    found = read_hyper_parameters([], {"parallel_config.model_parallel": "4"}, lambda name: "." in name)
    assert found.text("parallel_config.model_parallel") == "4"


def test_nothing_given_is_nothing() -> None:
    found = parse_arguments(["--a=None", "--b="])
    assert (found.text("a"), found.text("b"), found.text("c")) == (None, None, None)
