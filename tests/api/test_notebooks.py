"""What notebooks show: short lines, HTML whose tables fold, and a progress bar where nobody else listens."""

import re
import sys
import types
from html.parser import HTMLParser

import numpy as np
import pytest
from support.stores import new_place, put, put_model

import reshard
from reshard.engine.events import Answered, Noted, PhaseStarted, Progress, Waiting
from reshard.engine.verification import Report

EVIL = "<script>alert(1)</script>\u202e"
MODEL = {f"layer.{number}.w": np.zeros((2, 2), np.float32) for number in range(300)} | {EVIL: np.ones(2, np.float16)}
VOID = ("progress", "br")


@pytest.fixture(scope="module")
def values():
    base = new_place()
    put_model(f"{base}/hf", MODEL)
    put(f"{base}/l.yaml", b"axes: {mp: 2}\nrules:\n  - {match: '*', split: []}\n")
    plan = reshard.plan(f"{base}/hf", f"{base}/ranks", dst_layout=f"{base}/l.yaml")
    manifest = reshard.convert(plan=plan)
    return {
        "Catalog": reshard.inspect(f"{base}/hf"),
        "Plan": plan,
        "Conversion": plan.conversion,
        "Manifest": manifest,
        "Report": reshard.verify(f"{base}/ranks"),
        "Loader": reshard.load(f"{base}/hf"),
    }


class Balanced(HTMLParser):
    """Names of the elements; fails for one that is not closed where it should be."""

    def __init__(self, html):
        super().__init__()
        self.open, self.names = [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.open += [tag] * (tag not in VOID)

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag


@pytest.mark.parametrize("name", ["Catalog", "Plan", "Conversion", "Manifest", "Report", "Loader"])
def test_lines_are_short_and_html_is_bounded_and_well_formed(values, name):
    value = values[name]
    assert re.fullmatch(rf"<{name} [^\n]{{10,300}}>", repr(value))
    html = value._repr_html_()
    assert len(html) < 60_000
    assert "script" not in Balanced(html).names
    assert "\u202e" not in html


def test_tables_fold_and_say_how_many_rows_there_are(values):
    html = values["Catalog"]._repr_html_()
    assert "<summary>tensors (301)</summary>" in html
    assert "and 101 more" in html
    assert html.count("<details>") == 2
    assert "<td>rank_1/checkpoint_1.safetensors</td>" in values["Manifest"]._repr_html_()
    assert "read bytes" in values["Plan"]._repr_html_()
    assert "all compared bytes match" in repr(values["Report"])
    assert repr(Report("id", 1, 1, 1, ("a < b",))).startswith("<Report 1 difference")
    assert "a &lt; b" in Report("id", 1, 1, 1, ("a < b",))._repr_html_()


@pytest.fixture
def drawn(monkeypatch):
    """A kernel that keeps what it displays: one list for each line that is shown."""
    lines = []

    class Handle:
        def __init__(self, html):
            self.states = [html]
            lines.append(self.states)

        def update(self, html):
            self.states.append(html)

    display = types.SimpleNamespace(HTML=str, display=lambda html, display_id: Handle(html))
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell, display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return lines


def test_statements_draw_a_bar_in_a_notebook(values, drawn):
    base = values["Catalog"].url.removesuffix("/hf")
    reshard.convert(f"{base}/hf", f"{base}/copy")
    reshard.verify(f"{base}/copy")
    reshard.load(f"{base}/copy").tensors()
    assert len(drawn) == 3
    assert all("<progress" in states[-1] for states in drawn)
    for states in drawn:
        for html in states:
            Balanced(html)


def test_whoever_listens_gets_the_events_alone(values, drawn):
    heard = []
    reshard.convert(values["Catalog"].url, f"{new_place()}/copy", on_event=heard.append)
    assert heard
    assert drawn == []


def test_nothing_is_drawn_on_a_terminal(values, drawn, monkeypatch):
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: types.SimpleNamespace())
    reshard.plan(values["Catalog"].url, f"{new_place()}/copy")
    assert drawn == []


def test_a_bar_tells_of_phases_notes_and_waits(drawn):
    from reshard.api.notebook_progress import listening

    bar = listening(None)
    for event in (
        PhaseStarted("transfer"),
        Progress(1 << 20, 0, 2 << 20, 2 << 20, 1, 0, False),
        Noted("a < b"),
        Waiting(70),
        Answered(),
        PhaseStarted("commit"),
    ):
        bar(event)
    [states] = drawn
    assert "1.0 MiB of 4.0 MiB" in states[1]
    assert "note: a &lt; b" in states[2]
    assert "waiting for the store, 1 min 10 s" in states[3]
    assert "waiting" not in states[4]
    assert states[5].startswith("<div>commit <progress value=1048576 max=4194304>")
