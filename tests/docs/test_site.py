"""Is every page on the site, where its links lead somewhere? Building it takes tools that these tests do not need."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SITE = runpy.run_path(str(DOCS / "make_site.py"))

_FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(([^)\s#]+)")


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    stage = SITE["Stage"](tmp_path_factory.mktemp("site") / "docs")
    stage.pages = stage.fill()
    return stage


def test_every_page_is_in_the_navigation_once(stage) -> None:
    config = tomllib.loads(SITE["configuration"](SITE["navigation"](stage.pages)))
    listed = sorted(pages_of(config["project"]["nav"]))
    assert listed == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def pages_of(entry):
    if isinstance(entry, str):
        return [entry]
    below = entry.values() if isinstance(entry, dict) else entry
    return [page for each in below for page in pages_of(each)]


def test_a_page_without_a_section_is_named(stage) -> None:
    with pytest.raises(ValueError, match=r"no section of NAVIGATION: new\.md"):
        SITE["navigation"]([*stage.pages, "new.md"])
    with pytest.raises(ValueError, match=r"names index\.md, which is not there"):
        SITE["navigation"](page for page in stage.pages if page != "index.md")


def test_links_stay_on_the_site(stage) -> None:
    assert not stage.missing
    copies = list(stage.folder.rglob("*.md"))
    assert stage.folder / "repository" / "CONTRIBUTING.md" in copies
    for page in copies:
        for link in _LINK.findall(_FENCED.sub("", page.read_text())):
            if not re.match(r"[a-z]+:", link):
                target = (page.parent / link).resolve()
                assert target.is_relative_to(stage.folder), (page, link)
                assert target.is_file(), (page, link)


def test_names_of_files_become_titles_and_comments_go(stage) -> None:
    page = (stage.folder / "howto" / "convert.md").read_text()
    assert '```yaml title="tp2.yaml"' in page
    assert "<!--" not in _FENCED.sub("", page)
