"""A test over files that finds no files passes: so the corpus must be there, all of it."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("strategies/*/spec.json", 31),
        ("strategies/*/ckpt/*.ckpt", 45),
        ("strategies/*/json/*.json", 39),
        ("mindspore/strategies_decoded/expected/*/*.decoded.json", 78),
        ("mindspore/merge_strategies/in/*/*", 10),
        ("mindspore/merge_strategies/expected/*", 2),
        ("mindspore/training_slices/expected/*/*/net.safetensors", 32),
        ("mindspore/rank_lists/expected/rank_lists.json", 1),
    ],
)
def test_corpus_is_there(pattern, count):
    assert len(list(HERE.glob(pattern))) == count


def test_every_case_says_where_it_comes_from():
    provenance = (HERE / "PROVENANCE.md").read_text()
    missing = [case.name for case in (HERE / "mindspore").iterdir() if f"`mindspore/{case.name}/`" not in provenance]
    assert not missing
