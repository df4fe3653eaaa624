"""Build the site of these pages in ``site/``; a link that leads nowhere is an error.

Run it with the tools that ``requirements-docs.txt`` pins, as ``make site`` does::

    python docs/make_site.py

The pages are written for readers of the repository. Here they are staged for Zensical: links to what lies outside
``docs/`` lead to copies below ``repository/``, names of files become titles of blocks, and the navigation is added.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
STAGE = ROOT / ".site"
CONFIG = DOCS / "zensical.toml"
BUILT = ROOT / "site"

# Pages as users come to them, in sections and what these hold; a pattern takes what no entry before it names.
NAVIGATION: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "Start": {"": ("index.md", "start.md", "coming-from-mindspore-transformers.md", "faq.md", "glossary.md")},
    "Tasks": {
        "": tuple(f"tasks/{name}.md" for name in ("download-to-job", "recipes", "layouts", "clusters")),
        "Convert": tuple(
            f"howto/{name}.md"
            for name in ("inspect", "plan", "convert", "verify", "models", "names", "sources", "other-trainers", "zarr")
        ),
        "Strategies": ("howto/strategy.md", "howto/which-strategy.md"),
        "Load": ("howto/load.md", "howto/library.md"),
        "Serve": ("howto/serving.md",),
        "Run as a job": tuple(f"howto/{name}.md" for name in ("run", "training-yaml", "modelarts", "ray", "runs")),
        "Stores and settings": (
            "howto/stores.md",
            "howto/settings.md",
            "howto/memory.md",
            "howto/copies.md",
            "howto/staging.md",
        ),
        "More": ("howto/*.md",),
    },
    "Concepts": {"": ("concepts.md", "reliability.md", "security.md")},
    "Reference": {
        "": ("reference/cli.md", "reference/api.md", "reference/options.md", "errors.md", "original-commands.md"),
        "Formats and stores": ("formats.md", "storage.md", "bad-sources.md"),
        "Families of models": ("families/*.md",),
    },
    "Performance": {"": ("performance.md",)},
    "Design": {"": ("architecture.md",), "Decisions": ("design/*.md",)},
    "中文": {
        "": tuple(
            f"zh/{name}.md"
            for name in (
                "start",
                "coming-from-mindspore-transformers",
                "download-to-job",
                "recipes",
                "layouts",
                "clusters",
            )
        ),
    },
}

_PUBLISHED = (".md", ".svg", ".png", ".json", ".css")
_FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!\\)(\[[^\]]*\]\()([^)\s#]+)")
_FILE_NOTE = re.compile(r"^( *)<!-- *file: *(.*?) *-->\n( *```\w*)", re.MULTILINE)
_COMMENT = re.compile(r"^ *<!--.*?-->\n", re.MULTILINE)


def navigation(pages: Iterable[str]) -> list[dict[str, Any]]:
    """Return the sections with their pages, as Zensical has them.

    Raises
    ------
    ValueError
        Pages that no section has, or that are not there.
    """
    left = sorted(pages)

    def taken(pattern: str) -> list[str]:
        found = [page for page in left if fnmatchcase(page, pattern)]
        left[:] = [page for page in left if page not in found]
        if not found and "*" not in pattern:
            raise ValueError(f"NAVIGATION names {pattern}, which is not there")
        return found

    sections: list[dict[str, Any]] = []
    for title, parts in NAVIGATION.items():
        held = [(part, [page for pattern in patterns for page in taken(pattern)]) for part, patterns in parts.items()]
        sections.append(
            {title: [entry for part, each in held for entry in ([{part: each}] if part and each else each)]}
        )
    if left:
        raise ValueError(f"pages in no section of NAVIGATION: {', '.join(left)}")
    return sections


class Stage:
    """The pages as Zensical reads them, and what they link to outside of ``docs/``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.copied: set[Path] = set()
        self.missing: list[str] = []

    def fill(self) -> list[str]:
        """Write every page and picture, and return the names of the pages of ``docs/``."""
        shutil.rmtree(self.folder, ignore_errors=True)
        sources = sorted(path for path in DOCS.rglob("*") if path.suffix in _PUBLISHED)
        for source in sources:
            self._put(source)
        return [path.relative_to(DOCS).as_posix() for path in sources if path.suffix == ".md"]

    def place_of(self, source: Path) -> Path:
        """Return where a file of the repository stands on the site."""
        if source == ROOT / "README.md":  # the site's own first page says the same
            return self.folder / "index.md"
        inside = source.is_relative_to(DOCS)
        return self.folder / (source.relative_to(DOCS) if inside else Path("repository") / source.relative_to(ROOT))

    def _put(self, source: Path) -> None:
        self.copied.add(source)
        place = self.place_of(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            place.write_text(self._page(source))
        else:
            shutil.copyfile(source, place)

    def _page(self, source: Path) -> str:
        text = _FILE_NOTE.sub(r'\1\3 title="\2"', source.read_text())
        pieces, at = [], 0
        for fenced in _FENCED.finditer(text):
            pieces += [self._prose(source, text[at : fenced.start()]), fenced[0]]
            at = fenced.end()
        return "".join([*pieces, self._prose(source, text[at:])])

    def _prose(self, source: Path, text: str) -> str:
        return _LINK.sub(lambda match: match[1] + self._link(source, match[2]), _COMMENT.sub("", text))

    def _link(self, source: Path, link: str) -> str:
        if re.match(r"[a-z]+:", link):
            return link
        target = (source.parent / link).resolve()
        if target.is_dir():
            target = next((target / name for name in ("index.md", "README.md") if (target / name).exists()), target)
        if not target.is_file():
            self.missing.append(f"{source.relative_to(ROOT)}: {link}")
            return link
        if target not in self.copied and not target.is_relative_to(DOCS) and target != ROOT / "README.md":
            self._put(target)
        return PurePosixPath(os.path.relpath(self.place_of(target), self.place_of(source).parent)).as_posix()


def configuration(sections: list[dict[str, Any]]) -> str:
    """Return Zensical's configuration with the navigation of the site."""
    return CONFIG.read_text().replace("\n[project.theme]", f"\nnav = {_toml(sections)}\n\n[project.theme]", 1)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, list) else json.dumps(value)


def finish(site: Path) -> None:
    """Let the search divide Chinese into words, and say which pages are Chinese."""
    index = site / "search.json"
    found = json.loads(index.read_text())
    found["config"]["lang"] = ["en", "zh"]
    index.write_text(json.dumps(found, ensure_ascii=False))
    for page in (site / "zh").rglob("*.html"):
        page.write_text(page.read_text().replace('<html lang="en"', '<html lang="zh-CN"', 1))


def main() -> int:
    """Build the site."""
    stage = Stage(STAGE / "docs")
    pages = stage.fill()
    if stage.missing:
        print("links that lead nowhere:", *stage.missing, sep="\n  ", file=sys.stderr)
        return 1
    (STAGE / "zensical.toml").write_text(configuration(navigation(pages)))
    shutil.rmtree(STAGE / "site", ignore_errors=True)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    if code := subprocess.run(command, cwd=STAGE, check=False).returncode:
        return code
    finish(STAGE / "site")
    shutil.rmtree(BUILT, ignore_errors=True)
    (STAGE / "site").rename(BUILT)
    print(f"{len(pages)} pages in {BUILT.name}/; open {BUILT.name}/index.html, or serve the folder for its search")
    return 0


if __name__ == "__main__":
    sys.exit(main())
