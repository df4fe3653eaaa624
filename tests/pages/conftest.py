"""A browser, and pages in files, for all tests here; skipped where there is no Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pages.examples import Pages, plan_of
from support.browser import MISSING, Browser, Page, chromium, find_chromium


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    command = find_chromium()
    if command is None:
        pytest.skip(MISSING)
    with chromium(command) as found:
        yield found


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    found = browser.new_page()
    yield found
    found.send("Page.close")


@pytest.fixture(scope="session")
def pages() -> Pages:
    """Qwen2.5-72B's, some of whose layers have replicas."""
    return Pages(plan_of("qwen2.5-72b", "dp=2,mp=4,pp=4"))


@pytest.fixture(scope="session")
def urls(pages: Pages, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    return {name: written(folder / f"{name}.html", text) for name, text in pages.all.items()}


@pytest.fixture
def shown(page: Page, tmp_path: Path) -> Callable[[str], Page]:
    """Open a page that is given as text."""

    def show(text: str) -> Page:
        page.show(1000)
        page.open(written(tmp_path / "page.html", text))
        return page

    return show


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return path.as_uri()
