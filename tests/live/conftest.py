"""The environment that MindSpore is installed in, and the cases that it makes there."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from live import calls, drawing

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parents[1] / ".oracle" / "venv" / "bin" / "python"
SEED = int(os.environ.get("ORACLE_SEED") or random.randrange(10**6))
COUNT = int(os.environ.get("ORACLE_COUNT") or 6)
TIMEOUT_S = 900

collect_ignore = ["make_cases.py"]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Only a run that asks for this tier sees it."""
    return None if config.option.markexpr.startswith("oracle") else True


def pytest_report_header() -> str:
    return f"oracle: ORACLE_SEED={SEED} ORACLE_COUNT={COUNT} makes these cases again"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for every step of every chain of every case."""
    if "step" in metafunc.fixturenames:
        steps = [(form, step) for form, chain in calls.CHAINS.items() for step in chain if step.reshard]
        rows = [(form, index, step) for form, step in steps for index in range(COUNT)]
        metafunc.parametrize(
            ("form", "index", "step"),
            [pytest.param(*row, id=f"{row[0]}-{row[2].name}-{row[1]}") for row in rows],
        )


@pytest.fixture
def drawn(form: str, index: int) -> drawing.Drawn:
    """What the case is about."""
    return drawing.draw(SEED, index, form)


Oracle = Callable[..., None]


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """Runs ``make_cases.py`` where MindSpore is."""
    python = Path(os.environ.get("ORACLE_PYTHON") or ENVIRONMENT)
    if not python.exists():
        pytest.skip(f"no environment with MindSpore at {python}: make test-oracle makes one")
    return lambda *arguments: _run([str(python), str(HERE / "make_cases.py"), *map(str, arguments)])


def _run(command: list[str]) -> None:
    """Run with a time limit for all processes that it starts: the tools' own can outlive them."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    process = subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        pytest.fail(f"{' '.join(command)}\n{output[-4000:]}")


@pytest.fixture(scope="session")
def made(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all cases, each in ``<form>-<index>``, with MindSpore's answers."""
    base = tmp_path_factory.mktemp("oracle")
    for form in calls.CHAINS:
        for index in range(COUNT):
            _ask(base / f"{form}-{index}", form, drawing.draw(SEED, index, form))
    oracle("make", base)
    return base


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where reshard's answers lie, in folders of the same names."""
    return tmp_path_factory.mktemp("ours")


def _ask(folder: Path, form: str, drawn: drawing.Drawn) -> None:
    for side, cutting in (("first", drawn.first), ("second", drawn.second)):
        (folder / "strategy" / side).mkdir(parents=True)
        for name, data in cutting.files.items():
            (folder / "strategy" / side / name).write_bytes(data)
    steps = [step for step in calls.CHAINS[form] if step.applies(drawn)]
    called = [
        {"step": step.name} | dict(zip(("function", "kwargs"), step.mindspore(drawn), strict=True)) for step in steps
    ]
    ask = {
        "seed": [SEED, int(folder.name.rpartition("-")[2])],
        "specs": drawn.specs,
        "merge": [side for side in ("first", "second") if len(getattr(drawn, side).files) > 1],
        "save": [{"ckpt_file_name": f"in/full/rank_0/full.{form}", "format": form}],
        "calls": called,
    }
    (folder / "ask.json").write_text(json.dumps(ask, indent=1))
