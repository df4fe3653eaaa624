"""How large pages of the largest models' plans and checkpoints are, and how long Chromium takes to open them.

Beside each stands an empty page, opened in the same browser in turn. On a machine that does other work too, the least
and the seconds of a core say more than the median. ``python benchmarks/html_pages.py`` writes
``results/html_pages.json``; with names of models, only those.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from pages.examples import plan_html, plan_of
from support.browser import MISSING, Browser, chromium, find_chromium

from reshard.cli.pages.catalog_page import catalog_page

MODELS = ("llama-3.1-405b", "deepseek-v3", "45000-one-stage", "45000-pp16-mp8-dp8")
EMPTY = "<!doctype html><title>empty</title>"
# Scripts have run and what they made is painted: a frame has begun after the one that drew it.
PAINTED = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"


def opened(browser: Browser, path: Path) -> tuple[float, float]:
    """Open a page in a tab of its own: seconds until it is painted, and how many of a core its process took."""
    page = browser.new_page()
    page.show(1200)
    page.send("Performance.enable", timeDomain="threadTicks")
    begun = time.perf_counter()
    page.open(path.as_uri())
    page.run(PAINTED)
    took = time.perf_counter() - begun
    metrics = {each["name"]: each["value"] for each in page.send("Performance.getMetrics")["metrics"]}
    assert not page.errors, page.errors
    page.send("Page.close")
    return took, metrics["ProcessTime"]


def measure(browser: Browser, text: str, folder: Path, repeats: int) -> dict[str, Any]:
    """Open a page and an empty one in turn."""
    page, empty = folder / "page.html", folder / "empty.html"
    page.write_text(text)
    empty.write_text(EMPTY)
    figures: dict[str, Any] = {"page_bytes": len(text.encode())}
    pairs = [(opened(browser, page), opened(browser, empty)) for _ in range(repeats)]
    for name, runs in (("page", [pair[0] for pair in pairs]), ("empty", [pair[1] for pair in pairs])):
        took, cpu = zip(*runs, strict=True)
        figures |= {
            f"{name}_s": statistics.median(took),
            f"{name}_least_s": min(took),
            f"{name}_cpu_s": statistics.median(cpu),
        }
    return figures


def made(make: Callable[[], str]) -> tuple[str, float]:
    """Make a page, and tell how many seconds of one core it took."""
    begun = time.process_time()
    text = make()
    return text, time.process_time() - begun


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value}"


def main() -> None:
    """Measure the models that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--repeats", type=int, default=9)
    asked = parser.parse_args()
    command = find_chromium()
    if command is None:
        sys.exit(f"it {MISSING}")
    found = []
    for model in asked.models or MODELS:
        plan = plan_of(model, copies=model in MODELS[:2])
        for kind, make in (("plan", partial(plan_html, plan)), ("inspect", partial(catalog_page, plan.catalog))):
            text, cpu_s = made(make)
            with tempfile.TemporaryDirectory() as folder, chromium(command) as browser:
                figures = measure(browser, text, Path(folder), asked.repeats)
            case = {"model": model, "page": kind, "made_cpu_s": cpu_s} | figures
            print(", ".join(f"{name} {_shown(value)}" for name, value in case.items()), flush=True)
            found.append(case)
    if not asked.models:
        told = {"date": report.now(), "machine": report.machine(), "repeats": asked.repeats, "load": os.getloadavg()}
        report.write_json(told | {"cases": found}, report.RESULTS / "html_pages.json")


if __name__ == "__main__":
    main()
