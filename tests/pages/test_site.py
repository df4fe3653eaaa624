"""The site of docs/ in a browser, where ``make site`` has built it: pages fit and log nothing, search finds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.browser import Page

pytestmark = pytest.mark.pages

SITE = Path(__file__).parents[2] / "site"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
LOOKED_AT = [page for page in ("index.html", "start.html", "howto/plan.html", "reference/cli.html") if page in PAGES]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    if not PAGES:
        pytest.skip("the site is not built: make site")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(SITE)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def check_page(page: Page, address: str, name: str, width: int, scheme: str) -> None:
    page.show(width, scheme=scheme)
    page.open(f"{address}/{name}")
    assert page.errors == []
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("document.querySelector('h1').getBoundingClientRect().right") <= width


@pytest.mark.parametrize("name", PAGES or ["none"])
def test_every_page_fits_a_small_window(page: Page, address: str, name: str) -> None:
    check_page(page, address, name, 360, "light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1600])
@pytest.mark.parametrize("name", LOOKED_AT or ["none"])
def test_pages_fit_every_window(page: Page, address: str, name: str, width: int, scheme: str) -> None:
    check_page(page, address, name, width, scheme)
