"""Fixtures that several rooms of tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from support import s3_servers
from support.s3_servers import S3Server
from support.settings import clear_settings

pytest.register_assert_rewrite("storage.contract")

# A shell that starts the tests in the background has them ignore Ctrl-C; tests that send it need the usual answer.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The first draw of text builds hypothesis's tables, which takes seconds on a fresh clone and a busy machine:
# no judgement of the test that happens to draw first. The same examples every time: whoever changes something
# else meets no failure that was there before. New examples are looked for by make test-random.
settings.register_profile("reshard", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("random", settings.get_profile("reshard"), derandomize=False, print_blob=True)
settings.load_profile("reshard")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the tables whose rows tests have recorded, whichever process they ran in."""
    reports = (report for kind in terminalreporter.stats.values() for report in kind)
    properties = (each for report in reports for each in getattr(report, "user_properties", ()))
    rows = sorted({row for name, row in properties if name == "table"})
    if rows:
        terminalreporter.section("tables")
        terminalreporter.write_line("\n".join(rows))


@pytest.fixture(scope="session")
def moto_url() -> Iterator[S3Server]:
    """moto in this process."""
    with s3_servers.moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def weed_server() -> Iterator[S3Server]:
    """SeaweedFS over plain HTTP."""
    yield from _started(s3_servers.weed_server)


@pytest.fixture(scope="session")
def juicefs_server() -> Iterator[S3Server]:
    """The JuiceFS gateway over plain HTTP."""
    yield from _started(s3_servers.juicefs_server)


@pytest.fixture(scope="session")
def juicefs_tls_server() -> Iterator[S3Server]:
    """The JuiceFS gateway behind TLS: the stand-in for OBS."""
    yield from _started(s3_servers.juicefs_tls_server)


@pytest.fixture
def clean_environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No setting of the machine's user reaches the test."""
    clear_settings(monkeypatch)
    return monkeypatch


def _started(start) -> Iterator[S3Server]:
    try:
        with start() as server:
            yield server
    except s3_servers.NotInstalled as error:
        pytest.skip(str(error))
