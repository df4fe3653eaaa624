"""The pages in a browser: they fit, log nothing, serve keyboards and screen readers, and tell what the plan does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from cli.test_pages import HOSTILE, LAYOUT
from pages.examples import Pages, plan_html, plan_of
from support.browser import Page

from reshard.api import contents, statements
from reshard.cli.pages.catalog_page import catalog_page
from reshard.formats.safetensors import plan_header
from reshard.planning.explain import TensorExplanation, explain
from reshard.planning.ownership import plan_grid
from reshard.planning.plan import Plan
from reshard.storage import MemoryStore
from reshard.tensor import DType, TensorSpec

pytestmark = pytest.mark.pages

WIDTHS = (360, 800, 1600)
SCHEMES = ("light", "dark")

# What reaches beyond the window, unless it can be scrolled to within its own box.
OVERFLOWING = """[...document.querySelectorAll("body *")].filter((each) => {
  const box = each.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && !each.closest(".scroll") && !each.closest("svg");
}).map((each) => each.outerHTML.slice(0, 100))"""
CONTRAST = """(() => {
  const light = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
    const [r, g, b] = parts.map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = light(getComputedStyle(document.body).backgroundColor);
  const texts = [...document.querySelectorAll("p, dt, dd, li, h1, h2, label, .label, td, th, button")];
  return Math.min(...texts.map((each) => {
    const front = light(getComputedStyle(each).color);
    return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
  }));
})()"""

# Of every line of the map, the ranks in each colour.
STRIPS = """[...document.querySelectorAll(".row")].map((row) => {
  const paths = [...row.querySelectorAll("path")].filter((path) => path.getAttribute("class") !== "cut");
  const ranks = (path) => path.getAttribute("d").match(/M\\d+/g).map((at) => Number(at.slice(1)));
  return [row.querySelector(".name").textContent, paths.map((path) => [path.getAttribute("class"), ranks(path)])];
})"""
# Of every box of the chosen tensor, what is told when it is chosen in turn.
BOXES = """[...document.querySelectorAll("#grid .cell")].map((cell) => {
  cell.dispatchEvent(new MouseEvent("click", { bubbles: true }));
  for (const more of document.querySelectorAll("#box button")) more.click();
  const names = [...document.querySelectorAll("#box dt")];
  const facts = Object.fromEntries(names.map((name) => [name.textContent, name.nextSibling.textContent]));
  const lines = [...document.querySelectorAll("#box tbody tr")];
  const rows = lines.map((line) => [...line.children].map((each) => each.textContent));
  return { ...facts, box: document.querySelector("#box h3").textContent, rows };
})"""
STAGE_3 = """(() => {
  const stage = document.getElementById("stage");
  stage.value = "3";
  stage.dispatchEvent(new Event("change"));
})()"""


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["plan", "inspect", "verify"])
def test_a_page_fits_and_logs_nothing(page: Page, urls: dict[str, str], name: str, width: int, scheme: str) -> None:
    page.show(width, scheme=scheme)
    page.open(urls[name])
    assert page.errors == []
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run(OVERFLOWING) == []
    assert page.run("performance.getEntriesByType('resource').length") == 0
    assert page.run(CONTRAST) > 4.5
    is_dark = page.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert is_dark == (scheme == "dark")


@pytest.mark.parametrize("name", ["plan", "inspect", "verify"])
def test_everything_that_can_be_used_has_a_name(page: Page, urls: dict[str, str], name: str) -> None:
    page.show(1000)
    page.open(urls[name])
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    used = [
        node for node in nodes if node.get("role", {}).get("value") in {"button", "searchbox", "combobox", "region"}
    ]
    assert used or name == "verify"
    assert all(node["name"]["value"].strip() for node in used)
    headings = [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == "heading"]
    assert len(headings) >= 2


def test_the_map_shows_every_rank_of_every_stage(page: Page, urls: dict[str, str], pages: Pages) -> None:
    page.show(1200)
    page.open(urls["plan"])
    strips = page.run(STRIPS)
    drawn = {name: dict(paths) for name, paths in strips}
    assert len(drawn) == len(strips) >= 10
    held = drawn["model.layers.{0..79}.attention.wq.weight"]
    assert sorted(rank for ranks in held.values() for rank in ranks) == list(range(32))
    grid = plan_grid(pages.plan, "model.layers.0.attention.wq.weight")
    for number, ranks in enumerate(grid.holders.values()):
        assert set(ranks) <= set(held[f"o{number}"])
    assert list(drawn["model.layers.{0..79}.ffn_norm.weight"]) == ["whole"]
    assert sorted(drawn["lm_head.weight"]["o0"]) == list(plan_grid(pages.plan, "lm_head.weight").holders[0, 0])


def find(page: Page, name: str) -> None:
    """Type a tensor's name."""
    page.run(f"""(() => {{
      const find = document.getElementById("find");
      find.value = {json.dumps(name)};
      find.dispatchEvent(new Event("input"));
    }})()""")


def chosen(page: Page, tensor: str) -> list[dict[str, Any]]:
    """Choose a tensor, and return what the page tells of each of its boxes."""
    find(page, tensor)
    found = page.run(BOXES)
    assert isinstance(found, list)
    return found


def check_tensor(page: Page, plan: Plan, tensor: str) -> None:
    """Compare what the page tells of a tensor with what the plan explains of it."""
    told, explained = chosen(page, tensor), explain(plan, tensor)
    assert isinstance(explained, TensorExplanation)
    expected: dict[str, Any] = {}
    for held in explained.held:
        box = ", ".join(f"{a}:{b}" for a, b in zip(held.box.start, held.box.stop, strict=True))
        keys, places, sources = expected.setdefault(f"Box [{box}]", (set(), set(), []))
        keys |= set(held.keys)
        places.add(f"{held.keys[0]} [{held.ranges[0].start}, {held.ranges[-1].stop})")
        sources[:] = sorted((one.object, f"[{one.range.start}, {one.range.stop})") for one in held.sources)
    assert {each["box"] for each in told} == set(expected)
    for each in told:
        keys, places, sources = expected[each["box"]]
        count = (
            re.search(r"\((\d+) ranks?\)", each["ranks"]) if "ranks" in each else re.match(r"(\d+)", each["objects"])
        )
        assert count is not None
        assert int(count[1]) == len(keys)
        assert any(each["written to"].startswith(place) for place in places)
        assert sorted((row[0], row[2]) for row in each["rows"]) == sources


def test_what_fills_a_box_is_what_the_plan_explains(page: Page, urls: dict[str, str], pages: Pages) -> None:
    page.show(1000)
    page.open(urls["plan"])
    for tensor in (
        "model.tok_embeddings.embedding_weight",
        "model.layers.0.attention.wq.weight",
        "model.layers.41.attention.wo.weight",
        "model.layers.79.feed_forward.w2.weight",
        "model.layers.20.attention.wk.bias",
        "model.norm_out.weight",
    ):
        check_tensor(page, pages.plan, tensor)
    assert page.errors == []


def test_copied_and_streamed_are_told_apart(page: Page, urls: dict[str, str], pages: Pages) -> None:
    page.show(1000)
    page.open(urls["plan"])
    for tensor in ("model.layers.1.feed_forward.w1.weight", "model.layers.1.feed_forward.w2.weight"):
        told, explained = chosen(page, tensor), explain(pages.plan, tensor)
        assert isinstance(explained, TensorExplanation)
        assert any("copied by the store" in each["filled"] for each in told) == (explained.copied_bytes > 0)
        assert any("streamed" in each["filled"] for each in told) == (explained.streamed_bytes > 0)


def test_keys_reach_what_the_mouse_does(page: Page, urls: dict[str, str]) -> None:
    page.show(1000)
    page.open(urls["plan"])
    page.run("document.querySelector('.row').focus()")
    for _ in range(5):
        page.press("ArrowDown")
    page.press("Enter")
    name = page.run("document.querySelector('#facts .name').textContent")
    assert name == "model.layers.0.attention.wq.weight"
    page.run("document.querySelector('#grid .cell').focus()")
    before = page.run("document.querySelector('#box h3').textContent")
    page.press("ArrowDown")
    page.press("Enter")
    assert page.run("document.querySelector('#box h3').textContent") != before
    assert page.run("document.querySelectorAll('.cell[aria-pressed=true]').length") == 1


def test_a_stage_can_be_looked_at_alone(page: Page, urls: dict[str, str]) -> None:
    page.show(1000)
    page.open(urls["plan"])
    page.run(STAGE_3)
    assert page.run("document.querySelector('.stages').textContent") == "stage 3: ranks 24-31"
    assert page.run("document.querySelector('.strip').getAttribute('viewBox')") == "0 0 8 1"


@pytest.fixture
def layers() -> str:
    """A small model of equal layers, and a layout that cuts half of its tensors."""
    specs = [TensorSpec(f"h.{layer}.w{part}", DType.F16, (8, 6)) for layer in range(3) for part in "ab"]
    MemoryStore("pages").put("small/model.safetensors", plan_header(specs, {}).data + bytes(6 * 96))
    MemoryStore("pages").put("cut.yaml", LAYOUT.replace(b"*.q_proj.weight", b"*.wa"))
    return "memory://pages/small"


RANKS = {"dst_layout": "memory://pages/cut.yaml"}
TARGETS = {
    "computed": RANKS | {"dtype": "fp32"},
    "one writer of each box": RANKS | {"remove_redundancy": True},
    "ckpt": RANKS | {"format": "ckpt"},
    "some ranks": RANKS | {"ranks": "1-2"},
    "iteration": RANKS | {"form": "iteration", "iteration": 3},
    "dcp": RANKS | {"form": "dcp"},
    "one object": {},
    "zarr": {"form": "zarr", "part_size": "64B"},
}


@pytest.mark.parametrize("options", TARGETS.values(), ids=TARGETS)
def test_pages_tell_the_truth_of_every_target(
    shown: Callable[[str], Page], layers: str, options: dict[str, Any]
) -> None:
    plan = statements.plan(layers, "memory://pages/target", **options)
    page = shown(plan_html(plan))
    for tensor in ("h.0.wa", "h.2.wa", "h.2.wb"):
        check_tensor(page, plan, tensor)
        filled = [each["filled"] for each in chosen(page, tensor)]
        assert all("streamed" in text for text in filled)
        assert all("computed: cast" in text for text in filled) == ("dtype" in options)
    assert page.errors == []


def test_ranks_become_other_ranks(shown: Callable[[str], Page], layers: str) -> None:
    statements.convert(layers, "memory://pages/ranks-of-four", **RANKS)
    plan = statements.plan("memory://pages/ranks-of-four", "memory://pages/whole")
    page = shown(plan_html(plan))
    for tensor in ("h.1.wa", "h.2.wb"):
        check_tensor(page, plan, tensor)
    source = shown(catalog_page(plan.catalog))
    find(source, "h.1.wa")
    pieces = source.run("[...document.querySelectorAll('#tensor tbody tr')].map((row) => row.children[0].textContent)")
    assert pieces == ["[0:4, 0:6]", "[4:8, 0:6]"]


def test_staged_tensors_are_told(shown: Callable[[str], Page], layers: str) -> None:
    MemoryStore("pages").put("across.yaml", b'axes: {mp: 2}\nrules:\n  - {match: "*", split: [null, mp]}\n')
    layout = "memory://pages/across.yaml"
    plan = statements.plan(layers, "memory://pages/target", dst_layout=layout, staging="always")
    assert plan.staging is not None
    page = shown(plan_html(plan))
    check_tensor(page, plan, "h.1.wb")
    assert all("staged" in each["filled"] for each in chosen(page, "h.1.wb"))


def test_a_treemap_goes_from_modules_to_bytes(page: Page, urls: dict[str, str], pages: Pages) -> None:
    page.show(1200)
    page.open(urls["inspect"])
    areas = page.run("""[...document.querySelectorAll("#treemap .cell")].map((cell) => {
      const box = cell.querySelector("rect");
      return [cell.getAttribute("aria-label"), box.getAttribute("width") * box.getAttribute("height")];
    })""")
    total = sum(area for _, area in areas)
    assert total == pytest.approx(1000 * 560, rel=1e-3)
    head = next(area for label, area in areas if label.startswith("lm_head"))
    sizes = {entry.spec.name: entry.spec.nbytes for entry in pages.plan.catalog.entries}
    assert head / total == pytest.approx(sizes["lm_head.weight"] / pages.plan.catalog.nbytes, rel=1e-3)
    page.run("document.querySelector('#treemap .cell').focus()")
    page.press("Enter")  # the largest: into the model
    assert page.run("document.querySelector('#path').textContent").startswith("allmodel.")
    name = "model.layers.41.mlp.down_proj.weight"
    find(page, name)
    told = page.run("document.querySelector('#tensor').textContent")
    entry = next(entry for entry in pages.plan.catalog.entries if entry.spec.name == name)
    holder, first = entry.placements[0].holders[0]
    assert pages.plan.catalog.objects[holder].key in told
    assert f"from {first}" in told
    assert page.errors == []


def test_names_that_would_harm_are_shown_and_do_nothing(shown: Callable[[str], Page]) -> None:
    specs = [TensorSpec(name, DType.F16, (8, 4)) for name in (*HOSTILE, "h.0.q_proj.weight")]
    MemoryStore("pages").put("h/model.safetensors", plan_header(specs, {}).data + bytes(64 * len(specs)))
    MemoryStore("pages").put("layout.yaml", LAYOUT)
    plan = statements.plan("memory://pages/h", "memory://pages/r", dst_layout="memory://pages/layout.yaml")
    for text in (plan_html(plan), catalog_page(contents.inspect("memory://pages/h"))):
        page = shown(text)
        assert page.errors == []
        assert page.run("document.images.length + document.scripts.length") == 2
        assert "alert(1)" in page.run("document.body.innerText")


def test_findings_open_and_close(page: Page, urls: dict[str, str]) -> None:
    page.show(800)
    page.open(urls["verify"])
    assert page.run("document.querySelector('.verdict').textContent") == "✗ 5 differences"
    assert page.run("document.querySelectorAll('details').length") == 1
    page.run("document.querySelector('summary').click()")
    assert page.run("document.querySelector('details').open") is True


def test_ranks_that_cut_rows_and_columns(shown: Callable[[str], Page]) -> None:
    plan = plan_of("qwen2.5-72b", "mp=8", copies=False)
    page = shown(plan_html(plan))
    check_tensor(page, plan, "model.layers.7.attention.wo.weight")
