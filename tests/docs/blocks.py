"""Code blocks of a Markdown page, and how they run.

- A ``console`` block is a session: a line that begins with ``$ `` is a command, the lines up to the
  next one are what it prints. They are compared, unless there are none; a line ``...`` stands for any
  lines, ``...`` within a line for any text.
- A ``python`` block runs after those before it, in one namespace a page; with ``>>>`` it is a doctest.
- A comment right above a block's fence changes that: ``<!-- file: NAME -->`` writes the block to a file,
  ``<!-- not run: REASON -->`` leaves it alone, ``<!-- fails -->`` says that its last command must fail.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reshard.cli.app import main

_FENCE = re.compile(
    r"^(?:<!-- *(?P<note>file|not run|fails)(?:: *(?P<value>.*?))? *-->\n)?"
    r"```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_PROGRESS = re.compile(
    r"headers|transfer|commit|verify|  \d+%, .* (?:left|unknown)|[\d.]+ \w+ in .*/s, .*verified|nothing left to do, .*"
)
_PLAN_ID = re.compile(r"\b[0-9a-f]{16}\b")
_TIME = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    language: str
    body: str
    line: int
    note: str = ""
    value: str = ""


@dataclass(frozen=True)
class Command:
    """One line after ``$ ``, and what the page says that it prints."""

    line: str
    shown: tuple[str, ...]


@dataclass
class Session:
    """What the blocks of one page share."""

    folder: Path
    names: dict[str, Any] = field(default_factory=dict)
    code: int = 0

    def run(self, block: Block) -> None:
        """Run one block and compare what it prints."""
        if block.note == "not run":
            return
        if block.note == "file":
            path = self.folder / block.value
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.body)
        elif block.language in ("console", "bash"):
            self._run_console(block)
        elif block.language == "python":
            _run_python(block, self.names)

    def _run_console(self, block: Block) -> None:
        for command in commands(block):
            is_question = command.line == "echo $?"
            printed, code = (f"{self.code}\n", 0) if is_question else run_command(command.line, self.folder)
            self.code = self.code if is_question else code
            if command.shown:
                assert matches(command.shown, printed), f"line {block.line}: $ {command.line}\nprinted\n{printed}"
        assert bool(self.code) == (block.note == "fails"), f"line {block.line}: ended with exit code {self.code}"


def blocks_of(text: str) -> Iterator[Block]:
    """Find the fenced blocks of a page."""
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(match["language"], match["body"], line, match["note"] or "", match["value"] or "")


def commands(block: Block) -> Iterator[Command]:
    """Take a session apart."""
    lines = iter(block.body.splitlines())
    command, shown = "", list[str]()
    for line in lines:
        if line.startswith("$ "):
            if command:
                yield Command(command, tuple(shown))
            command, shown = line[2:], []
            while command.endswith("\\"):
                command = command[:-1] + next(lines).lstrip()
        else:
            assert command, f"line {block.line}: output before any command"
            shown.append(line)
    if command:
        yield Command(command, tuple(shown))


def run_command(line: str, folder: Path) -> tuple[str, int]:
    """Run one command; what it prints on stdout, then on stderr without progress, and its exit code."""
    words = shlex.split(line, comments=True)
    if words[0] == "reshard" and not {"|", ">", "&&"}.intersection(words):
        printed, told, code = _run_reshard(words[1:])
    else:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=folder,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        printed, told, code = done.stdout, done.stderr, done.returncode
    lines = [line for line in told.splitlines() if not _PROGRESS.fullmatch(line)]
    return printed + "\n".join(lines), code


def _run_reshard(arguments: list[str]) -> tuple[str, str, int]:
    """Run the command line in this process: a fresh one takes a second to start."""
    printed, told = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["reshard", *arguments]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
            main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return printed.getvalue(), told.getvalue(), code


def _run_python(block: Block, names: dict[str, Any]) -> None:
    if ">>> " not in block.body:
        exec(compile("\n" * block.line + block.body, "page", "exec"), names)
        return
    test = doctest.DocTestParser().get_doctest(block.body, names, "page", "page", block.line)
    report = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert not runner.run(test, out=report.write, clear_globs=False).failed, report.getvalue()
    names.update(test.globs)


def matches(shown: tuple[str, ...], printed: str) -> bool:
    """Whether a page tells truly what was printed."""
    pattern = "".join(_any_lines() if line.strip() == "..." else _one_line(line) for line in shown)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _plain(printed).split("\n"))) is not None


def _any_lines() -> str:
    return r"(?:[^\n]*\n)*"


def _one_line(line: str) -> str:
    return ".*".join(map(re.escape, _plain(line).split("..."))) + r"\n"


def _plain(text: str) -> str:
    """Text without what differs from run to run: plan ids, times, and spaces at the ends of lines."""
    text = _TIME.sub("<time> ", _PLAN_ID.sub("<plan>", text))
    lines = [line.rstrip() for line in text.rstrip().splitlines()]
    return "\n".join(lines)
