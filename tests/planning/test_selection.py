"""Names taken, dropped and changed as their patterns say, compared with the plain functions of the library."""

import re
from collections import Counter
from fnmatch import fnmatchcase

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from reshard.errors import PlanError, UsageError
from reshard.planning.sources.selection import NameFilter, Renames

NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.mlp.w",
    "model.layers.1.mlp.w",
    "model.layers.10.mlp.w",
    "adam_m.model.layers.0.mlp.w",
    "adam_v.model.layers.0.mlp.w",
    "global_step",
]

# Few letters, so that what is drawn meets; and those that mean something in patterns.
words = st.text("ab.", max_size=4)
names = st.text("aAb.*?[]-!=\\\n:", max_size=6)
some_names = st.lists(names, max_size=8)


def kept(keep=(), drop=()):
    chosen = NameFilter(tuple(keep), tuple(drop))
    assert chosen.dropped(NAMES) == tuple(name for name in NAMES if not chosen.is_kept(name))
    return [name for name in NAMES if chosen.is_kept(name)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("global_step", ["global_step"]),
        ("global", []),
        ("adam_*", ["adam_m.model.layers.0.mlp.w", "adam_v.model.layers.0.mlp.w"]),
        ("model.layers.?.mlp.w", ["model.layers.0.mlp.w", "model.layers.1.mlp.w"]),
        ("model.layers.[!0].*", ["model.layers.1.mlp.w"]),
        ("MODEL.*", []),
        ("glob:global_*", ["global_step"]),
        ("glob:prefix:a", []),
        ("prefix:adam_", ["adam_m.model.layers.0.mlp.w", "adam_v.model.layers.0.mlp.w"]),
        ("prefix:layers", []),
        ("prefix:*", []),
        ("prefix:adam_?", []),
        (r"regex:layers\.\d\.", [NAMES[1], NAMES[2], NAMES[4], NAMES[5]]),
        (r"regex:^model\.layers\.\d+\.mlp\.w$", NAMES[1:4]),
        ("regex:^layers", []),
        ("regex:(?i)GLOBAL", ["global_step"]),
    ],
)
def test_one_pattern(pattern, expected):
    assert kept(keep=[pattern]) == expected
    assert kept(drop=[pattern]) == [name for name in NAMES if name not in expected]
    absent = () if expected else (pattern,)
    assert NameFilter(keep=(pattern,)).unmatched_keep(NAMES) == absent
    assert NameFilter(drop=(pattern,)).unmatched_drop(NAMES) == absent


def test_no_patterns_take_everything():
    assert kept() == NAMES
    assert NameFilter().unmatched_keep(NAMES) == NameFilter().unmatched_drop(NAMES) == ()


def test_drop_wins_over_keep():
    assert kept(keep=["model.*"], drop=["prefix:model.layers."]) == ["model.embed_tokens.weight"]
    assert kept(keep=["global_step"], drop=["global_step"]) == []


def test_names_that_begin_like_a_pattern():
    assert NameFilter(keep=("glob:prefix:a",)).is_kept("prefix:a")
    assert NameFilter(keep=("other:a",)).is_kept("other:a")  # no kind of pattern, so a plain name


def test_patterns_that_match_nothing_are_told_apart():
    chosen = NameFilter(("model.*", "modle.*", "global_step"), ("adam_*", "prefix:accu_grads", "x"))
    assert chosen.unmatched_keep(NAMES) == ("modle.*",)
    assert chosen.unmatched_drop(NAMES) == ("prefix:accu_grads", "x")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("", "found none; * matches every name"),
        ("prefix:", "found none; * matches every name"),
        ("regex:", "found none; * matches every name"),
        ("glob:", "found none; * matches every name"),
        ("regex:(", "not a regular expression: missing )"),
        ("regex:*", "not a regular expression: nothing to repeat at position 0"),
        (f"regex:a{{{10**30}}}", "not a regular expression"),
        ("regex:" + "(" * 10_000 + ")" * 10_000, "not a regular expression"),
    ],
)
def test_a_pattern_that_cannot_be_used(pattern, says):
    with pytest.raises(UsageError, match="patterns that cannot be used") as caught:
        NameFilter(keep=(pattern,))
    assert says in str(caught.value)
    assert len(str(caught.value)) < 500


def test_all_bad_patterns_are_listed():
    with pytest.raises(UsageError) as caught:
        NameFilter(("", "fine", "regex:["), ("regex:)", "*"))
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["keep ''", "keep 'regex", "drop 'regex"]


@given(st.text("aAb.*?[]-!\\\n", min_size=1, max_size=6), some_names)
def test_globs_agree_with_fnmatch(pattern, some):
    chosen = NameFilter(keep=(pattern,))
    assert [chosen.is_kept(name) for name in some] == [fnmatchcase(name, pattern) for name in some]


@given(st.lists(words.filter(bool), max_size=3), st.lists(words.filter(bool), max_size=3), some_names)
def test_lists_of_patterns_agree_with_their_meaning(keep, drop, some):
    chosen = NameFilter(tuple(f"prefix:{text}" for text in keep), tuple(f"*{text}*" for text in drop))
    for name in some:
        is_wanted = not keep or any(name.startswith(text) for text in keep)
        assert chosen.is_kept(name) == (is_wanted and not any(text in name for text in drop))
    absent = [f"prefix:{text}" for text in keep if not any(name.startswith(text) for name in some)]
    assert list(chosen.unmatched_keep(some)) == absent
    assert list(chosen.unmatched_drop(some)) == [f"*{text}*" for text in drop if not any(text in n for n in some)]


@given(words.filter(bool), some_names)
def test_expressions_are_found_anywhere(text, some):
    chosen = NameFilter(keep=(f"regex:{text}",))
    assert [chosen.is_kept(name) for name in some] == [bool(re.search(text, name)) for name in some]


def test_equal_filters_are_equal():
    assert NameFilter(("a*",), ("regex:b",)) == NameFilter(("a*",), ("regex:b",))
    assert hash(NameFilter(("a*",))) == hash(NameFilter(("a*",)))
    assert repr(NameFilter(("a*",))) == "NameFilter(keep=('a*',), drop=(), network_only=False)"


def test_many_names_are_quick_to_look_up():
    many = tuple(f"layers.{number}.weight" for number in range(20_000))
    chosen = NameFilter(keep=many)
    assert chosen.dropped(many) == chosen.unmatched_keep(many) == ()


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        ("a=b", "a", "b"),
        ("a=b", "a.b", "a.b"),
        ("a*=b", "ab", "ab"),  # no glob: a name is a name
        ("params['w'][0]=w.0", "params['w'][0]", "w.0"),
        ("x=1=y", "x=1", "y"),
        ("prefix:a.=b.", "a.a.w", "b.a.w"),
        ("prefix:a.=b.", "c.a.w", "c.a.w"),
        ("prefix:model.=", "model.w", "w"),
        ("prefix:=", "", None),
        (r"regex:^model\.(.*)$=\1", "model.w", "w"),
        (r"regex:^model\.(.*)$=\1", "a.model.w", "a.model.w"),
        ("regex:_=.", "a_b_c", "a.b.c"),
        (r"regex:(?P<n>\d+)=<\g<n>>", "h.12.w", "h.<12>.w"),
        ("regex:(?<=layers.)=L", "layers.0", "layers.L0"),
        ("regex:gamma$=weight", "norm.gamma", "norm.weight"),
        (r"regex:\.=\\", "a.b", "a\\b"),
        ("regex:(x)?b=\\1c", "ab", "ac"),
        ("regex:a=", "ab", "b"),
        ("regexp:a=b", "regexp:a", "b"),
    ],
)
def test_one_rename(rule, old, new):
    if new is None:
        with pytest.raises(UsageError):
            Renames(rules=(rule,))
    else:
        assert Renames(rules=(rule,)).apply([old]) == {old: new}


def test_the_first_that_matches_decides_and_the_map_goes_before_all():
    renames = Renames({"a.0": "map"}, ("prefix:a.=b.", "a.1=never", "regex:^b=c", "b=never"))
    assert renames.apply(["a.0", "a.1", "b", "z"]) == {"a.0": "map", "a.1": "b.1", "b": "c", "z": "z"}
    assert renames.unmatched_rules(["a.0", "a.1", "b", "z"]) == ("a.1=never", "b=never")
    assert renames.unmatched_rules(["a.0"]) == renames.rules


def test_renames_happen_at_once():
    assert Renames({"a": "b", "b": "a"}).apply(["a", "b"]) == {"a": "b", "b": "a"}
    assert Renames(rules=("a=b", "b=c")).apply(["a", "b"]) == {"a": "b", "b": "c"}


def test_entries_of_the_map_that_are_not_there():
    renames = Renames({"a": "x", "b": "y", "c": "z"})
    assert renames.unmatched_map(["b"]) == ("a", "c")
    assert renames.apply(["b"]) == {"b": "y"}


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("", "expected OLD=NEW, found no ="),
        ("a", "expected OLD=NEW, found no ="),
        ("=b", "expected an old name before the =, found none"),
        ("prefix:=b", "expected an old name before the =, found none"),
        ("regex:=b", "expected an old name before the =, found none"),
        ("a=", "expected a new name after the =, found none"),
        ("glob:a.*=b.*", "a glob does not say which part of a name stays"),
        ("regex:(=b", "not a regular expression: missing )"),
        (r"regex:(a)=\2", "the new name is not a template: invalid group reference 2"),
        (r"regex:(a)=\g<x>", "the new name is not a template: unknown group name 'x'"),
        (r"regex:a=\q", r"the new name is not a template: bad escape \q"),
    ],
)
def test_a_rename_that_cannot_be_used(rule, says):
    with pytest.raises(UsageError, match="renames that cannot be used") as caught:
        Renames(rules=("fine=too", rule))
    assert len(caught.value.problems) == 1
    assert says in str(caught.value)


def test_all_names_that_clash_are_listed():
    renames = Renames({"a": "x", "b": "x"}, (r"regex:\d+=N", "e=z", "regex:^gone$="))
    with pytest.raises(PlanError) as caught:
        renames.apply(["a", "b", "c.1", "c.2", "c.3", "e", "z", "gone", "fine"])
    assert list(caught.value.problems) == [
        "'gone' would have an empty name",
        "'x' is the new name of 'a', 'b'",
        "'c.N' is the new name of 'c.1', 'c.2', 'c.3'",
        "'z' is the new name of 'e', 'z'",
    ]


def test_a_clash_of_very_many_is_short():
    with pytest.raises(PlanError, match="and 44992 more") as caught:
        Renames(rules=("regex:.+=x",)).apply(str(number) for number in range(45_000))
    assert len(str(caught.value)) < 500


def test_a_tensor_without_a_name_is_left_alone():
    assert Renames().apply(["", "a"]) == {"": "", "a": "a"}
    with pytest.raises(PlanError, match="'a' would have an empty name"):
        Renames({"a": ""}).apply(["", "a"])


def test_a_name_given_twice_is_one_tensor():
    assert Renames(rules=("a=b",)).apply(["a", "a"]) == {"a": "b"}


@given(
    st.dictionaries(words, words, max_size=3),
    st.lists(st.tuples(st.sampled_from(["", "prefix:", "regex:"]), words.filter(bool), words), max_size=4),
    st.lists(words.filter(bool), max_size=6),
)
def test_every_name_becomes_one_of_its_own_or_the_plan_is_refused(name_map, rules, some):
    assume(all(kind or new for kind, _, new in rules))
    # Dots are dots here: what an expression finds is what str.replace replaces.
    texts = tuple(f"{kind}{re.escape(old) if kind == 'regex:' else old}={new}" for kind, old, new in rules)
    renames, expected = Renames(name_map, texts), {name: by_hand(name_map, rules, name) for name in some}
    counts = Counter(expected.values())
    if "" in counts or any(count > 1 for count in counts.values()):
        with pytest.raises(PlanError) as caught:
            renames.apply(some)
        assert len(caught.value.problems) == counts[""] + sum(n > 1 for new, n in counts.items() if new)
    else:
        assert list(renames.apply(some).items()) == list(expected.items())
    assert set(renames.unmatched_map(some)) == set(name_map).difference(some)


def by_hand(name_map, rules, name):
    if name in name_map:
        return name_map[name]
    for kind, old, new in rules:
        if not kind and name == old:
            return new
        if kind == "prefix:" and name.startswith(old):
            return new + name.removeprefix(old)
        if kind == "regex:" and old in name:
            return name.replace(old, new)
    return name


@given(some_names)
def test_no_renames_change_nothing(some):
    assert Renames().apply(some) == {name: name for name in some}
