"""Do the pages tell the truth? What runs in them runs here, and what they repeat from the code is compared with it."""

from __future__ import annotations

import re
import runpy
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import pytest
import typer
from docs.blocks import Session, blocks_of
from docs.model import put_llama, put_model, put_quantised, put_run, put_strategies
from support.settings import clear_settings

import reshard
from reshard import errors
from reshard.cli.app import app
from reshard.formats.layout_file import parse_layout_file
from reshard.formats.strict_yaml import parse_yaml
from reshard.formats.yaml_kinds import YamlKind, kind_of
from reshard.jobs import job_schema
from reshard.jobs.training_config import config_of
from reshard.storage import shared_connections

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
ORIGINALS = DOCS / "original-commands.md"
"""Explains the commands that are called as MindSpore's own tools are."""
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
BUCKET = "models"

_LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_MACHINE_PATHS = re.compile(
    r"(?<![\w.~])/(?:work|root|home|tmp|Users|mnt|opt|var)/|[A-Z]:\\|localhost:\d|file:///(?!path)"
)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def originals(moto_url) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A bucket with models and a training run, which all pages share, and what is in it."""
    with pytest.MonkeyPatch.context() as patch, shared_connections():
        clear_settings(patch)
        for name, value in moto_url.environ.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=moto_url.endpoint)
        client.create_bucket(Bucket=BUCKET)
        put_model(f"s3://{BUCKET}/my-model")
        put_run(f"s3://{BUCKET}/run")
        put_llama(f"s3://{BUCKET}")
        put_quantised(f"s3://{BUCKET}")
        listed = etags(client)
        contents = {key: (listed[key], client.get_object(Bucket=BUCKET, Key=key)["Body"].read()) for key in listed}
    yield client, contents
    restore(client, {})
    client.delete_bucket(Bucket=BUCKET)


def etags(client: Any) -> dict[str, str]:
    return {each["Key"]: each["ETag"] for each in client.list_objects_v2(Bucket=BUCKET).get("Contents", ())}


def restore(client: Any, contents: dict[str, Any]) -> None:
    """Make the bucket hold these objects and no others."""
    found = etags(client)
    if added := [{"Key": key} for key in found if key not in contents]:
        client.delete_objects(Bucket=BUCKET, Delete={"Objects": added})
    for key, (etag, data) in contents.items():
        if found.get(key) != etag:
            client.put_object(Bucket=BUCKET, Key=key, Body=data)


@pytest.fixture
def session(moto_url, originals, clean_environ: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Session]:
    """An empty folder, the bucket as no page has changed it, strategy files, and a layout file of eight ranks."""
    for name, value in moto_url.environ.items():
        clean_environ.setenv(name, value)
    clean_environ.chdir(tmp_path)
    put_strategies(tmp_path)
    session = Session(tmp_path)
    with shared_connections():  # making a client for each command of a page would take most of the time
        for block in blocks_of((DOCS / "howto" / "convert.md").read_text()):
            if block.value == "layout.yaml":
                session.run(block)
        yield session
    restore(*originals)


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "zh"], ids=name_of)
def test_blocks_run(page: Path, request: pytest.FixtureRequest) -> None:  # test_chinese.py compares those of zh/
    blocks = list(blocks_of(page.read_text()))
    if not any(block.language in ("console", "bash", "python") and block.note != "not run" for block in blocks):
        return
    session = request.getfixturevalue("session")
    for block in blocks:
        session.run(block)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_yaml_files_are_valid(page: Path) -> None:
    for block in blocks_of(page.read_text()):
        if block.language == "yaml":
            data, where = block.body.encode(), f"{name_of(page)}, line {block.line}"
            document = parse_yaml(data, where, foreign=True)
            if document is None:  # comments alone
                continue
            if kind_of(document) is YamlKind.TRAINING:
                assert config_of(document).keys
            elif kind_of(document) is YamlKind.JOB_FILE:
                jsonschema.validate(document, job_schema())
            else:
                assert parse_layout_file(data, where).rules


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    for link in _LINK.findall(_FENCED.sub("", page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_path_of_a_machine(page: Path) -> None:
    assert not _MACHINE_PATHS.findall(page.read_text())


def test_every_page_is_found_from_the_index() -> None:
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in _LINK.findall((DOCS / "index.md").read_text())}
    assert {page for page in PAGES if DOCS in page.parents} - linked == {DOCS / "index.md"}


def commands(command: Any = None, path: str = "reshard") -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its path."""
    command = command or typer.main.get_command(app)
    if not hasattr(command, "list_commands"):
        yield path, command
        return
    for name in command.list_commands(None):
        yield from commands(command.get_command(None, name), f"{path} {name}")


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_and_flag_is_explained(path: str, command: Any) -> None:
    assert command.help
    everywhere = "".join(page.read_text() for page in (*(DOCS / "howto").glob("*.md"), ORIGINALS) if page.exists())
    assert re.search(rf"^\$ {path} ", everywhere, re.MULTILINE), "no example"
    for option in command.params:
        for flag in (name for name in option.opts if name.startswith("--") and name != "--help"):
            assert flag in everywhere, flag


@pytest.mark.parametrize("name", [name for name in reshard.__all__ if not name[0].isupper()])
def test_every_statement_of_the_library_is_explained(name: str) -> None:
    assert f"`{name}(" in (DOCS / "howto" / "library.md").read_text()


def test_api_reference_is_current() -> None:
    script = runpy.run_path(str(DOCS / "make_api_reference.py"))
    for path, text in script["pages"]():
        assert path.read_text() == text, f"{path.name}: run docs/make_api_reference.py"


def test_pictures_are_current() -> None:
    script = runpy.run_path(str(DOCS / "make_pictures.py"))
    drawn = dict(script["pictures"]())
    for path, text in drawn.items():
        assert path.read_text() == text, f"{path.name}: run docs/make_pictures.py"
    assert set(drawn) == set((DOCS / "pictures").iterdir())


def test_command_line_reference_is_current() -> None:
    script = runpy.run_path(str(DOCS / "make_cli_reference.py"))
    assert script["PAGE"].read_text() == script["reference"](), "run docs/make_cli_reference.py"


def test_tables_are_current() -> None:
    script = runpy.run_path(str(DOCS / "make_tables.py"))
    pages = list(script["pages"]())
    assert {page.name for page in pages} == {
        "README.md", "storage.md", "formats.md", "errors.md", "memory.md", "performance.md", "plan.md",
        "security.md", "training-yaml.md",
    }  # fmt: skip
    for page in pages:
        assert page.read_text() == script["rendered"](page.read_text()), f"{page.name}: run docs/make_tables.py"


def _as_flag(match: re.Match[str]) -> str:
    """What the command line makes of an option that a message marks."""
    name, value = match.groups()
    return (
        name.upper()
        if name in ("src", "dst")
        else " ".join([f"--{name.replace('_', '-')}", *([value] if value else [])])
    )


def test_messages_that_are_explained_exist() -> None:
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    joined = re.sub(r"\{option\(['\"](\w+)['\"](?:, ['\"](\w+)['\"])?\)\}", _as_flag, joined)
    table = (DOCS / "errors.md").read_text().partition("## What to do")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")][2:]
    for code, messages, _ in rows:
        assert int(code) in {error.exit_code for error in errors.ReshardError.__subclasses__()}
        for message in re.findall(r"`([^`]+)`", messages):
            for text in re.split(r"\[?\.\.\.\]?|\bN\b|\b[07]\b", message):
                assert len(text.strip()) < 3 or text.strip() in joined, message


def test_schema_of_job_files_is_that_of_the_options() -> None:
    script = runpy.run_path(str(DOCS / "make_job_schema.py"))
    assert script["PAGE"].read_text() == script["schema"](), "run docs/make_job_schema.py"


def test_exit_codes_of_the_readme_are_those_of_the_errors() -> None:
    told = {int(code) for code in re.findall(r"(\d+) \w+", re.search(r"\[Exit codes\].*", README.read_text())[0])}
    assert told == {0} | {error.exit_code for error in errors.ReshardError.__subclasses__()}


def test_every_dependency_has_a_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    page = (DOCS / "design" / "0011-dependencies.md").read_text()
    for name in (re.match(r"[\w-]+", requirement)[0] for requirement in wanted):
        assert re.search(rf"^\|.*\b{re.escape(name)}\b.*\|", page, re.MULTILINE), name


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.svg")), ids=lambda path: path.name)
def test_picture_is_legible_everywhere(path: Path) -> None:
    text = path.read_text()
    picture = ET.fromstring(text)
    namespace = "{http://www.w3.org/2000/svg}"
    assert picture.find(f"{namespace}title") is not None
    assert picture.find(f"{namespace}desc") is not None
    assert "prefers-color-scheme: dark" in text
    assert any(f"{path.name})" in page.read_text() for page in PAGES)
    used = {name for names in re.findall(r'class="([^"]+)"', text) for name in names.split()}
    assert used == set(re.findall(r"^ +\.(\w+) \{", text.partition("@media")[0], re.MULTILINE))
