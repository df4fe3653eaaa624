"""Expressions of users are given up after a while, and understood as Python's own."""

from __future__ import annotations

import re
import time

import pytest

from reshard.errors import UsageError
from reshard.planning.sources.bounded_expression import BoundedExpression
from reshard.planning.sources.selection import NameFilter, Renames


def test_slow_expressions_are_given_up():
    expression = BoundedExpression("(a|aa)+$")
    expression._left_s = 0.2
    started_s = time.process_time()
    with pytest.raises(UsageError, match="takes too long"):
        expression.search("a" * 60 + "!")
    assert time.process_time() - started_s < 3


def test_time_is_that_of_all_names():
    expression = BoundedExpression("a+b")
    expression._left_s = -1.0
    with pytest.raises(UsageError, match="takes too long"):
        expression.search("ab")


@pytest.mark.parametrize(
    ("text", "template", "name"),
    [
        (r"^layers\.(\d+)", r"h.\1", "layers.10.w"),
        (r"(?P<n>\w)x", r"\g<n>", "axbx"),
        (r"(?i)W", "v", "w"),
        (r"(?<=a)b", "c", "ab"),
    ],
)
def test_same_as_python(text, template, name):
    assert BoundedExpression(text).substitute(template, name) == re.sub(text, template, name)
    assert Renames(rules=(f"regex:{text}={template}",)).apply([name]) == {name: re.sub(text, template, name)}


@pytest.mark.parametrize("text", ["(", "a{2,1}", r"\p{L}", "(?|a|b)", "x" * 1001])
def test_only_pythons_syntax(text):
    with pytest.raises(UsageError, match="not a regular expression"):
        BoundedExpression(text)


def test_brackets_within_a_set_are_no_warning():
    assert NameFilter(keep=("regex:[[a]",)).is_kept("a")
