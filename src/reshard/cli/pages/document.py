"""One self-contained HTML document: styles, data and script inside, nothing fetched, nothing of a name obeyed."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from ..printing import Facts, plain

_ASSETS = files(__package__) / "assets"
# Data is never code: the only scripts that run are these of ours, by their digests, and nothing is fetched.
_POLICY = "default-src 'none'; style-src '{style}'; script-src '{script}'; base-uri 'none'; form-action 'none'"


FIND_HTML = (
    '<label>Find a tensor <input id="find" type="search" list="found" autocomplete="off" spellcheck="false"></label>'
    '<datalist id="found"></datalist>'
)
"""Where a name is typed, and found by its letters."""

_WITHOUT_SCRIPT = (
    '<noscript><p class="note">The pictures are drawn by a script in this page, which is off.</p></noscript>'
)


def make_page(title: str, sections: Sequence[str], data: Any, script: str) -> str:
    """Make a document of sections of HTML, and of data that a script draws.

    Parameters
    ----------
    title
        Text for the window and the first heading.
    sections
        HTML, in the order of the page; the script fills what it finds by ids.
    data
        What the script reads, in JSON's types.
    script
        Name of the script among the assets.
    """
    style = _asset("page.css")
    code = f'"use strict";\n(() => {{\n{_asset("page.js")}\n{_asset(script)}\n}})();\n'
    policy = _POLICY.format(style=_digest(style), script=_digest(code))
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{html(title)}</title>",
            f"<style>{style}</style>",
            f"<main><h1>{html(title)}</h1>",
            *sections,
            _WITHOUT_SCRIPT,
            "</main>",
            f'<script type="application/json" id="data">{_script_data(data)}</script>',
            f"<script>{code}</script>",
            "</html>",
            "",
        ]
    )


def html(text: str) -> str:
    """Return a text as HTML, with control characters escaped as on a terminal."""
    return escape(plain(text, is_line=True))


def section(heading: str, body: str, name: str = "") -> str:
    """Return a section with a heading; a name makes it one that scripts and links find."""
    at = f' id="{name}"' if name else ""
    return f"<section{at}><h2>{html(heading)}</h2>\n{body}\n</section>"


def facts_html(facts: Facts) -> str:
    """Return named lines as a list of descriptions; names that follow each other are written once."""
    lines, last = [], ""
    for name, value in facts:
        lines.append(f"{'' if name == last else f'<dt>{html(name)}</dt>'}<dd>{html(value)}</dd>")
        last = name
    return "<dl>" + "\n".join(lines) + "</dl>"


def list_html(texts: Sequence[str], otherwise: str) -> str:
    """Return texts as a list, or a sentence if there are none."""
    if not texts:
        return f"<p>{html(otherwise)}</p>"
    return "<ul>" + "\n".join(f"<li>{html(text)}</li>" for text in texts) + "</ul>"


def table_html(titles: Sequence[str], rows: Sequence[Sequence[object]], count: int) -> str:
    """Return a table; ``count`` says how many rows there are in all, numbers stand to the right."""
    head = "".join(f"<th>{html(title)}</th>" for title in titles)
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    left = f"<p>... and {count - len(rows)} more</p>" if count > len(rows) else ""
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{left}'


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f'<td class="count">{value}</td>'
    text = str(value)
    indent = len(text) - len(text.lstrip())
    return f"<td>{'&nbsp;' * 2 * indent}{html(text.lstrip())}</td>"


def bar_html(label: str, shares: Sequence[tuple[str, float, str]], total: float = 0.0) -> str:
    """Return a bar of shares, each a name, a size and a text, with a legend that says the same in words.

    A total that is larger than the shares leaves the rest of the bar empty.
    """
    shares = [each for each in shares if each[1] > 0]
    if not shares:
        return f"<figure><figcaption>{html(label)}</figcaption></figure>"
    whole = max(total, sum(size for _, size, _ in shares)) or 1.0
    cells, items, at = [], [], 0.0
    for number, (name, size, text) in enumerate(shares):
        width = 100 * size / whole
        cells.append(f'<rect class="o{number % 12}" x="{at:.3f}" y="0" width="{width:.3f}" height="4"/>')
        items.append(f'<li><svg class="key" viewBox="0 0 1 1" aria-hidden="true"><rect class="o{number % 12}" '
                     f'width="1" height="1"/></svg>{html(name)}: {html(text)}</li>')  # fmt: skip
        at += width
    picture = (
        f'<svg class="bar" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">{"".join(cells)}</svg>'
    )
    return f'<figure><figcaption>{html(label)}</figcaption>{picture}<ul class="legend">{"".join(items)}</ul></figure>'


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _script_data(data: Any) -> str:
    """Return JSON that cannot end the element that it stands in."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
