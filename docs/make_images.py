"""Takes the pictures of pages in docs/images with Chromium: ``make images``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
sys.path.insert(0, str(DOCS.parent / "tests"))
from pages.examples import Pages, plan_of  # noqa: E402
from support.browser import MISSING, chromium, find_chromium  # noqa: E402

HEIGHTS = {"plan": 1160, "inspect": 900, "verify": 460}
SIGHTS = ((360, "dark"), (800, "light"))
# What is worth seeing: the matrices of a layer, one of them chosen.
_CHOOSE = """(() => {
  const row = [...document.querySelectorAll(".row")].find((each) => each.textContent.includes("wq"));
  row?.click();
  document.getElementById("ranks")?.scrollIntoView();
})()"""


def main() -> None:
    """Write a PNG of every page at every width."""
    command = find_chromium()
    if command is None:
        sys.exit(f"make images: it {MISSING}")
    IMAGES.mkdir(exist_ok=True)
    pages = Pages(plan_of("qwen2.5-72b")).all
    with tempfile.TemporaryDirectory() as folder, chromium(command) as browser:
        page = browser.new_page()
        for name, text in pages.items():
            path = Path(folder) / f"{name}.html"
            path.write_text(text)
            for width, scheme in SIGHTS:
                page.show(width, HEIGHTS[name], scheme)
                page.open(path.as_uri())
                page.run(_CHOOSE)
                page.screenshot(IMAGES / f"{name}-{width}-{scheme}.png")


if __name__ == "__main__":
    main()
