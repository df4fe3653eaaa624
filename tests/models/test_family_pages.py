"""Pages of families say what the data says."""

import importlib.util
from pathlib import Path

import pytest

from reshard.models.family_file import family_names, load_family

DOCS = Path(__file__).parents[2] / "docs"
SPEC = importlib.util.spec_from_file_location("make_families", DOCS / "make_families.py")
MAKE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MAKE)


@pytest.mark.parametrize(("path", "text"), [pytest.param(*page, id=page[0].stem) for page in MAKE.pages()])
def test_pages_are_current(path, text):
    assert path.read_text() == text, "run: python docs/make_families.py"


def test_no_page_is_left_of_a_family_that_is_gone():
    assert {page.stem for page in (DOCS / "families").glob("*.md")} == {
        *family_names(),
        "operations",
        "adding",
        "models",
    }


def test_every_family_and_every_case_is_in_the_table_of_models():
    listed = MAKE.cast("list", MAKE.parse_yaml(MAKE.MODELS.read_bytes(), "models"))
    assert sorted(one["family"] for one in listed if "family" in one) == list(family_names())
    prefixes = tuple(prefix for one in listed for prefix in one.get("cases", ()))
    kinds = ("ckpt2_", "fp8_", "layer_setting", "lora_", "transform160_", "unify160_")  # of no family
    names = [path.parent.name for path in MAKE.CASES.glob("*/case.json")]
    assert not [name for name in names if not name.startswith((*prefixes, *kinds))]
    assert all(any(name.startswith(prefix) for name in names) for prefix in prefixes)


def test_operations_follow_from_rows():
    named = {
        name: {
            op
            for naming in load_family(name).namings
            for row in naming.rows
            for op in MAKE.operations(row, load_family(name))
        }
        for name in family_names()
    }
    assert named["llama"] == {"rename", "group interleave"}
    assert {"stack", "permute", "concat"} <= named["qwen3_moe"]
    assert {"split", "reshape by grouping"} <= named["deepseek_v3"]
