"""Draw ``docs/pictures/*.svg``: who holds what under the layouts of ``docs/tasks/layouts.md``, and where bytes go.

Run it after a change of a layout on that page::

    python docs/make_pictures.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from reshard.formats.layout_file import parse_layout_file
from reshard.tensor import Shape, Strategy

FOLDER = Path(__file__).with_name("pictures")
PAGE = Path(__file__).with_name("tasks") / "layouts.md"

SHAPES: Mapping[str, Shape] = {
    "model.embed_tokens.weight": (8, 8),
    **{f"model.layers.{layer}.self_attn.{name}_proj.weight": (8, 8) for layer in range(2) for name in "qo"},
    **{f"model.layers.{layer}.input_layernorm.weight": (8,) for layer in range(2)},
    "model.norm.weight": (8,),
    "lm_head.weight": (8, 8),
}
_Q, _O, _NORM = (
    f"model.layers.0.{name}.weight" for name in ("self_attn.q_proj", "self_attn.o_proj", "input_layernorm")
)
DRAWN: Mapping[str, tuple[str, ...]] = {
    "tensor-parallel.yaml": (_Q, _O, _NORM),
    "copies.yaml": (_Q, _O, _NORM),
    "grid.yaml": (_Q, _O),
    "optimizer.yaml": (_Q, _NORM),
    "stages.yaml": ("model.embed_tokens.weight", _Q, _Q.replace("0", "1"), "model.norm.weight"),
}

_SIDE, _GAP, _TOP, _LEFT, _PER_AXIS = 160, 44, 62, 24, 8
_STYLE = """\
    .page { fill: #ffffff; }
    .name { fill: #1a1a1a; font-size: 13px; font-weight: 600; }
    .note { fill: #4d4d4d; font-size: 12px; }
    .rank { fill: #1a1a1a; font-size: 14px; font-weight: 600; text-anchor: middle; dominant-baseline: central; }
    .inside { fill: #1a1a1a; font-size: 12px; text-anchor: middle; dominant-baseline: central; }
    .line { stroke: #4d4d4d; stroke-width: 1; stroke-dasharray: 3 3; }
    .box { stroke: #1a1a1a; stroke-width: 1.5; }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117; }
      .name { fill: #f0f3f6; }
      .note { fill: #b8c0c8; }
      .line { stroke: #b8c0c8; }
    }
"""
# Of ranks in order; told apart without red and green. The numbers say it too. What every rank holds is grey.
_COLOURS = ("#9ecae9", "#ffcf86", "#c5e3a8", "#f5b5c8", "#d3c2ea", "#f0e68c", "#b4dfd9", "#d9c3a8")
_SHARED = "#dcdcdc"


def pictures() -> Iterator[tuple[Path, str]]:
    """Yield every picture with its text."""
    texts = dict(re.findall(r"<!-- file: (\S+) -->\n```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL))
    for name, tensors in DRAWN.items():
        strategy = parse_layout_file(texts[name].encode(), name).strategy(SHAPES)
        yield FOLDER / name.replace(".yaml", ".svg"), picture(strategy, tensors)
    yield FOLDER / "addresses.svg", addresses()


def picture(strategy: Strategy, tensors: tuple[str, ...]) -> str:
    """Draw tensors side by side, each cut into the boxes that ranks hold."""
    width = 2 * _LEFT + len(tensors) * (_SIDE + _GAP) - _GAP
    drawn, told = [], []
    for place, name in enumerate(tensors):
        left = _LEFT + place * (_SIDE + _GAP)
        holders = holders_of(strategy, name)
        short = re.sub(r"^model\.(layers\.\d+\.(?:self_attn\.)?)?|\.weight$", "", name)
        layer = re.search(r"layers\.\d+", name)
        rows = f"[{', '.join(map(str, SHAPES[name]))}]"
        drawn.append(f'  <text class="name" x="{left}" y="28">{short}</text>')
        drawn.append(f'  <text class="note" x="{left}" y="46">{rows}{" of " + layer[0] if layer else ""}</text>')
        drawn += _boxes(left, SHAPES[name], holders, strategy.rank_count)
        told.append(f"{name}: " + "; ".join(f"{_ranks(ranks)} hold {_extent(box)}" for box, ranks in holders.items()))
    title = f"What each of {strategy.rank_count} ranks holds"
    return _svg(width, _TOP + _SIDE + _LEFT, title, ". ".join(told) + ".", drawn)


def addresses() -> str:
    """Draw one source object and the four objects made of it, byte by byte."""
    drawn = [
        '  <text class="name" x="24" y="30">model.safetensors</text>',
        '  <text class="note" x="24" y="48">the source: a header, then tensors at known offsets</text>',
        '  <text class="note" x="24" y="268">read once for all ranks; written as four uploads, visible once all are '
        "complete</text>",
        *_strip(24, 60, [("header", _SHARED, 64)]),
        *_strip(88, 60, [(f"{rank}", _COLOURS[rank], 64) for rank in range(4)]),
        *_strip(344, 60, [("", _COLOURS[place % 4], 8) for place in range(32)]),
        *_strip(600, 60, [("norm", _SHARED, 64)]),
        '  <text class="note" x="88" y="112">q_proj: rows follow each other</text>',
        '  <text class="note" x="344" y="112">o_proj: each row has a piece for every rank</text>',
    ]
    for rank in range(4):
        left = 24 + rank * 190
        drawn.append(f'  <text class="name" x="{left}" y="190">rank_{rank}</text>')
        pieces = [("", _SHARED, 22), (f"{rank}", _COLOURS[rank], 64), ("", _COLOURS[rank], 64), ("", _SHARED, 20)]
        drawn += _strip(left, 202, pieces)
        drawn.append(f'  <path class="line" d="M{120 + 64 * rank} 118 L{left + 54} 200"/>')
        drawn.append(f'  <path class="line" d="M{376 + 64 * rank} 118 L{left + 118} 200"/>')
    told = (
        "A source object is a header and tensors. Rows of q_proj lie one after another, so each rank gets one stretch "
        "of bytes. o_proj is cut by columns, so each of its rows has a piece for each rank. The norm goes to all."
    )
    return _svg(794, 284, "Every byte of every output has an address in the source", told, drawn)


def _strip(left: int, top: int, pieces: list[tuple[str, str, int]]) -> Iterator[str]:
    for text, colour, width in pieces:
        yield f'  <rect class="box" x="{left}" y="{top}" width="{width}" height="32" fill="{colour}"/>'
        if text:
            kind = "rank" if text.isdigit() else "inside"
            yield f'  <text class="{kind}" x="{left + width / 2:g}" y="{top + 16}">{text}</text>'
        left += width


def _svg(width: int, height: int, title: str, told: str, drawn: list[str]) -> str:
    style = "\n".join(line for line in _STYLE.splitlines() if _is_used(line, drawn))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'role="img" aria-labelledby="title desc"',
            "     font-family=\"-apple-system, 'Segoe UI', Roboto, 'Noto Sans', Helvetica, Arial, sans-serif\">",
            f'  <title id="title">{title}</title>',
            f'  <desc id="desc">{told}</desc>',
            f"  <style>\n{style}\n  </style>",
            f'  <rect class="page" width="{width}" height="{height}" rx="8"/>',
            *drawn,
            "</svg>",
            "",
        ]
    )


def _is_used(rule: str, drawn: list[str]) -> bool:
    found = re.match(r" +\.(\w+) \{", rule)
    return not found or found[1] == "page" or any(f'class="{found[1]}"' in line for line in drawn)


def holders_of(strategy: Strategy, name: str) -> dict[tuple[Shape, Shape], list[int]]:
    """Return the boxes of a tensor, each with the ranks that hold it."""
    found: dict[tuple[Shape, Shape], list[int]] = {}
    for rank in range(strategy.rank_count):
        layout = strategy.layout(name, rank)
        if layout is not None:
            box = layout.box_of(SHAPES[name], rank % strategy.device_count)
            found.setdefault((box.start, box.stop), []).append(rank)
    return found


def _boxes(left: int, shape: Shape, holders: Mapping[tuple[Shape, Shape], list[int]], rank_count: int) -> Iterator[str]:
    unit = _SIDE // _PER_AXIS
    for (start, stop), ranks in holders.items():
        y, height = _TOP + start[0] * unit, (stop[0] - start[0]) * unit
        x, width = (left + start[1] * unit, (stop[1] - start[1]) * unit) if len(shape) > 1 else (left, 3 * unit)
        colour = _SHARED if len(ranks) == rank_count else _COLOURS[ranks[0] % len(_COLOURS)]
        yield f'  <rect class="box" x="{x}" y="{y}" width="{width}" height="{height}" fill="{colour}"/>'
        lines = [ranks] if height < width or len(ranks) == 1 else [[rank] for rank in ranks]
        for line, each in enumerate(lines):
            middle = y + height / 2 + (line - (len(lines) - 1) / 2) * 18
            text = ", ".join(map(str, each))
            yield f'  <text class="rank" x="{x + width / 2:g}" y="{middle:g}">{text}</text>'


def _ranks(ranks: list[int]) -> str:
    return f"ranks {', '.join(map(str, ranks))}"


def _extent(box: tuple[Shape, Shape]) -> str:
    return "[" + ", ".join(f"{start}:{stop}" for start, stop in zip(*box, strict=True)) + "]"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, text in pictures():
        path.write_text(text)
