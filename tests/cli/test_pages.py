"""Pages of plans, checkpoints and reports, as text; what browsers make of them is in tests/pages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cli.runner import ok, run

from reshard.api import contents, statements
from reshard.api.estimates import estimate
from reshard.cli.pages import plan_data
from reshard.cli.pages.catalog_page import catalog_page
from reshard.cli.pages.plan_page import plan_page
from reshard.cli.pages.report_page import report_page
from reshard.engine.verification import Report
from reshard.formats.safetensors import plan_header
from reshard.storage import MemoryStore
from reshard.tensor import DType, TensorSpec

HOSTILE = [
    "</script><script>alert(1)</script>.weight",
    "<img src=x onerror=alert(1)>",
    "a\u202egnp.weight",
    "]]><!--\u2028\x1b[2J",
    "&lt;b&gt; \"'`${alert(1)}",
]
LAYERS = [f"model.layers.{layer}.{part}.weight" for layer in range(6) for part in ("q_proj", "norm")]

LAYOUT = b"""
axes: {dp: 2, mp: 2}
rules:
  - {match: "*.q_proj.weight", split: [mp]}
  - {match: "*", split: []}
"""


@pytest.fixture
def url() -> str:
    """A checkpoint of some layers, and of tensors whose names someone made up to harm."""
    specs = [TensorSpec(name, DType.F16, (8, 4)) for name in (*HOSTILE, *LAYERS)]
    data = plan_header(specs, {"</script>": "<b>"}).data + bytes(len(specs) * 64)
    MemoryStore("pages").put("m/model.safetensors", data)
    MemoryStore("pages").put("layout.yaml", LAYOUT)
    return "memory://pages/m"


def plan_of(url: str) -> Any:
    return statements.plan(url, "memory://pages/ranks", dst_layout="memory://pages/layout.yaml")


def data_of(page: str) -> Any:
    """What the page's script reads."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def pages_of(url: str) -> dict[str, str]:
    plan = plan_of(url)
    problems = tuple(f"{url}: {name} differs" for name in HOSTILE)
    return {
        "plan": plan_page(plan, estimate(plan)),
        "inspect": catalog_page(contents.inspect(url)),
        "verify": report_page(Report("0" * 64, 1, 2, 1, problems), f"{url}<i>"),
    }


def test_names_are_text_wherever_they_stand(url):
    for kind, page in pages_of(url).items():
        assert len(re.findall("<script", page)) == 2, kind
        assert "<img" not in page, kind
        assert "onerror=alert(1)>" not in page, kind
        assert not re.search("[\u202e\u2028\x1b]", page), kind
        assert "gnp.weight" in page, kind
        data_of(page)


def test_pages_fetch_nothing(url):
    for page in pages_of(url).values():
        assert not re.search(r"\b(src|href|url|import)\s*[=(]", page.partition("<main>")[0].partition("<style>")[0])
        assert "default-src 'none'" in page
        assert "https://" not in page


def test_what_is_alike_is_told_once(url):
    data = data_of(pages_of(url)["plan"])
    kinds = {len(row["members"]): row for row in data["rows"] if len(row["members"]) > 1}
    assert list(kinds) == [6]
    assert sum(len(row["members"]) for row in data["rows"]) == len(HOSTILE) + len(LAYERS)
    assert data["deviceCount"] == 4
    assert data["ranks"] == list(range(4))


def test_too_much_to_tell_is_told_of_one_tensor_of_each_kind(url, monkeypatch):
    whole = len(pages_of(url)["plan"])
    monkeypatch.setattr(plan_data, "MOST_PLACES", 3)
    monkeypatch.setattr(plan_data, "MOST_BOXES", 1)
    data = data_of(page := pages_of(url)["plan"])
    assert len(page) < whole
    assert not data["isWhole"]
    assert sum(row["fills"] is None for row in data["rows"]) == len(data["rows"]) - 1
    assert len(data["sources"]["tensors"]) == len(data["rows"])


def test_findings_that_differ_in_numbers_are_one():
    problems = tuple(f"rank_{rank}/c.safetensors: the object is gone" for rank in range(30))
    page = report_page(Report("0" * 64, 1, 2, 30, (*problems, "config.json: byte 3 differs")), "s3://b/ranks")
    assert page.count("<summary>") == 1
    assert "and 29 alike" in page
    assert "30 differences" not in page
    assert "31 differences" in page


def test_a_page_is_written_and_replaced(url, tmp_path: Path):
    target = tmp_path / "plan.html"
    for _ in range(2):
        ok(
            "plan",
            url,
            str(tmp_path / "ranks"),
            "--dst-layout",
            "memory://pages/layout.yaml",
            "--html",
            str(target),
            "--quiet",
        )
        assert target.read_text().startswith("<!doctype html>")
    ok("inspect", url, "--html", str(target))
    assert "Tensors by module" in target.read_text()


def test_only_pages_are_replaced(url, tmp_path: Path):
    kept = tmp_path / "model.safetensors"
    kept.write_bytes(b"weights")
    for command in (["plan", url, str(tmp_path / "ranks")], ["inspect", url], ["verify", str(tmp_path)]):
        done = run(*command, "--html", str(kept))
        assert done.code == 2
        assert "expected a name that ends in .html" in done.err
    assert kept.read_bytes() == b"weights"


def test_a_browser_shows_a_page_of_a_bucket(moto_url, moto_bucket, url, clean_environ):
    import boto3

    for name, value in moto_url.environ.items():
        clean_environ.setenv(name, value)
    ok("inspect", url, "--html", f"s3://{moto_bucket}/m.html")
    found = boto3.client("s3", endpoint_url=moto_url.endpoint).head_object(Bucket=moto_bucket, Key="m.html")
    assert found["ContentType"] == "text/html; charset=utf-8"
