"""A test over files that finds no files passes: so the corpus must be there, all of it."""

import json
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROVENANCE = (HERE / "PROVENANCE.md").read_text()


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("strategies/*/spec.json", 31),
        ("strategies/*/ckpt/*.ckpt", 45),
        ("strategies/*/json/*.json", 39),
        ("mindspore/merge_strategies/in/*/*", 10),
        ("mindspore/merge_strategies/expected/*", 2),
        ("mindspore/training_slices/expected/*/*/net.safetensors", 32),
        ("mindspore/rank_lists/expected/rank_lists.json", 1),
        ("mindspore/redundancy_maps/expected/redundancy.json", 1),
        ("mindspore/*/case.json", 60),
        ("mindspore/split_*/case.json", 11),
        ("mindspore/reshard_*/case.json", 15),
        ("mindspore/unify_*/case.json", 15),
        ("mindspore/lds_*/case.json", 5),
        ("mindspore/fmt_*/case.json", 5),
    ],
)
def test_corpus_is_there(pattern, count):
    assert len(list(HERE.glob(pattern))) == count


def test_corpus_stays_small():
    assert sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file()) < 30_000_000


def test_every_case_says_where_it_comes_from():
    cases = [case for case in (HERE / "mindspore").iterdir() if case.is_dir()]
    assert not [case.name for case in cases if not (case / "case.json").is_file()]
    assert not [line for line in PROVENANCE.splitlines() for name in named(line) if not (HERE / name).is_dir()]


def test_files_that_are_left_out_lie_where_the_table_says():
    """Each has a name in a case that is there, no copy under that name, and its bytes in a file of another name."""
    root = HERE / "mindspore"
    copies = json.loads((root / "copies.json").read_text())
    assert len(copies) == 300
    assert not [name for name in copies if (root / name).exists() or not (root / name.split("/")[0]).is_dir()]
    assert not [place for place in copies.values() if not (root / place).is_file()]


def named(line):
    return re.findall(r"^\| `(mindspore/\w+)/`", line)
