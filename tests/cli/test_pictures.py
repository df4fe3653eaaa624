"""Tensors drawn with characters: every box is there once, in its place, and lines fit."""

from __future__ import annotations

import re

import pytest
from cli.runner import ok, run

from reshard.cli import printing
from reshard.cli.pictures import draw, letters
from reshard.formats.safetensors import plan_header
from reshard.planning.ownership import TensorGrid, strategy_grids
from reshard.storage import MemoryStore
from reshard.tensor import DType, Layout, RowSplit, Strategy, TensorSpec

LAYOUT = b"""
axes: {pp: 2, dp: 2, mp: 2}
rules:
  - {match: "*.w", split: [mp]}
  - {match: "*", split: []}
stages:
  - {layers: 0}
  - {match: "end", layers: 1}
"""


def grid_of(layout: Layout, shape: tuple[int, ...], stages: int = 1) -> TensorGrid:
    strategy = Strategy(layout.device_count, tuple({"w": layout} for _ in range(stages)))
    (grid,) = strategy_grids(strategy, "w", TensorSpec("w", DType.BF16, shape))
    return grid


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (Layout((2, 2), ((1,), (0,))), (8, 6)),
        (Layout((2, 4), ((), (0,))), (8, 16)),
        (Layout((2, 2, 2), ((2,), (1,), (0,))), (4, 6, 8)),
        (Layout((4,), ((0,),)), (8,)),
        (Layout((4,), ()), ()),
        (Layout((2,), ((0,), ()), row_split=RowSplit((3, 5), (0, 3))), (8, 2)),
    ],
)
def test_every_box_is_drawn_with_its_ranks(layout, shape):
    lines = draw(grid_of(layout, shape), 100)
    drawn = re.findall(r"ranks? ([\d,-]+)", "\n".join(lines))
    owners = {}
    for rank in range(layout.device_count):
        owners.setdefault(layout.box_of(shape, rank), []).append(rank)
    assert len(drawn) == len(owners)
    assert sorted(rank for text in drawn for rank in _ranks(text)) == list(range(layout.device_count))
    assert {tuple(_ranks(text)) for text in drawn} == {tuple(ranks) for ranks in owners.values()}


def _ranks(text: str) -> list[int]:
    spans = [span.split("-") for span in text.split(",")]
    return [rank for span in spans for rank in range(int(span[0]), int(span[-1]) + 1)]


@pytest.mark.parametrize("width", [40, 80, 140])
@pytest.mark.parametrize("matrix", [(4, 64), (64, 4), (1024, 1), (1, 1024), (32, 32)])
def test_lines_fit_whatever_is_left_out(width, matrix):
    lines = draw(grid_of(Layout(matrix, ((1,), (0,))), (4096, 4096)), width)
    assert max(map(len, lines)) <= width
    assert len(lines) < 90
    assert any("⋮" in line or "⋯" in line for line in lines)
    last = f"{matrix[0] * matrix[1] - 1}"
    assert width < 80 or any(last in line for line in lines)


def test_colours_are_those_of_pieces():
    lines = "\n".join(draw(grid_of(Layout((2, 2), ((0,), ())), (8, 6)), 80, is_colored=True))
    colours = dict(re.findall(r"48;5;(\d+)m +([A-Z]) +\x1b\[0m", lines))
    assert sorted(colours.values()) == ["A", "B"]
    assert "\x1b" not in "\n".join(draw(grid_of(Layout((2, 2), ((0,), ())), (8, 6)), 80))


def test_letters_do_not_repeat():
    assert len({letters(number) for number in range(3000)}) == 3000


@pytest.fixture
def url() -> str:
    specs = [TensorSpec(name, DType.F16, (8, 4)) for name in ("model.layers.0.w", "model.layers.1.w", "end")]
    store = MemoryStore("pictures")
    store.put("m/model.safetensors", plan_header(specs, {}).data + bytes(3 * 64))
    store.put("layout.yaml", LAYOUT)
    return "memory://pictures"


def test_a_plan_and_its_strategy_draw_alike(url):
    layout = f"{url}/layout.yaml"
    of_plan = ok("plan", f"{url}/m", f"{url}/r", "--dst-layout", layout, "--picture", "model.layers.1.w", "--quiet")
    of_strategy = ok("strategy", "show", layout, "--for", f"{url}/m", "--picture", "model.layers.1.w")
    assert of_plan.out == of_strategy.out
    assert "ranks 5,7" in of_plan.out


def test_objects_are_named_below(url):
    done = ok("plan", f"{url}/m", f"{url}/full", "--picture", "end", "--quiet")
    assert done.out.endswith("A  model.safetensors\n")


def test_a_name_that_is_not_there_is_answered_with_near_ones(url):
    done = run(
        "plan", f"{url}/m", f"{url}/r", "--dst-layout", f"{url}/layout.yaml", "--picture", "model.layers.0", "--quiet"
    )
    assert done.code == 2
    assert "Did you mean model.layers.0.w" in done.err


def test_tables_are_as_wide_as_the_terminal(capsys, monkeypatch):
    rows = [(f"model.layers.{layer}.self_attn.{'long' * 20}.weight", "BF16", layer) for layer in range(3)]
    printing.print_rows(("tensor", "dtype", "number"), rows, 0)
    assert rows[0][0] in capsys.readouterr().out
    monkeypatch.setattr(printing.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    printing.print_rows(("tensor", "dtype", "number"), rows, 0)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert all(line.startswith("model.layers.") and ".weight" in line for line in lines[2:])
