"""What is told while a command runs: on stderr, live on a terminal, rarely in a log."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace

import pytest

from reshard import Answered, PhaseStarted, Progress, Waiting
from reshard.cli import progress as module
from reshard.cli.pace import Pace
from reshard.cli.progress import progress

MIB = 1 << 20
MOVED = Progress(
    read_bytes=30 * MIB,
    written_bytes=10 * MIB,
    total_read_bytes=50 * MIB,
    total_written_bytes=70 * MIB,
    reading=1,
    writing=7,
    waits_for_memory=False,
)
TOLD = ["33%", "10.0 MiB of 70.0 MiB", "MiB/s", "limited by writes", "s left"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What was drawn, one line after the other, without colours."""
        return re.sub(r"\x1b\[[\d;]*m", "", self.getvalue()).split("\r\x1b[2K")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds; tests set it."""
    now = [100.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    monkeypatch.setattr(module, "time", Clock)
    return now


def test_live_on_a_terminal(monkeypatch, clock):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with progress(quiet=False) as listener:
        listener(PhaseStarted("transfer"))
        clock[0] += 20
        listener(MOVED)
    shown = screen.getvalue()
    assert "transfer" in shown
    assert all(text in shown for text in TOLD)
    assert "2.0 MiB/s" in shown
    assert "40 s left" in shown
    assert shown.endswith("\x1b[2K")  # what was live is wiped: results follow on a clean line


def test_a_line_now_and_then_in_a_log(capsys, clock):
    with progress(quiet=False) as listener:
        listener(PhaseStarted("transfer"))
        for _ in range(25):
            clock[0] += 1
            listener(MOVED)
    out, err = capsys.readouterr()
    assert out == ""
    phase, *lines = err.splitlines()
    assert phase == "transfer"
    assert len(lines) == 2
    assert all(text in line for text in TOLD for line in lines)


def test_nothing_when_quiet(capsys, clock):
    with progress(quiet=True) as listener:
        listener(PhaseStarted("transfer"))
        clock[0] += 100
        listener(MOVED)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("reading", "writing", "waits", "expected"),
    [(8, 0, False, "reads"), (0, 8, False, "writes"), (1, 7, True, "writes"), (7, 1, True, "memory")],
)
def test_what_limits(reading, writing, waits, expected):
    assert Progress(0, 0, 1, 1, reading, writing, waits).limited_by == expected


def test_no_rate_before_anything_moved(capsys, clock):
    with progress(quiet=False) as listener:
        clock[0] += 30
        listener(Progress(0, 0, 50, 70, 0, 0, waits_for_memory=False))
    err = capsys.readouterr().err
    assert "0 B/s, 0 B/s on average, limited by reads, time left unknown" in err


@pytest.mark.parametrize("columns", [20, 80, 110, 200])
def test_one_line_fits_the_terminal(monkeypatch, clock, columns):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    machines = {f"worker-{number}.cluster.example": MIB * (number + 1) for number in range(9)}
    moved = replace(MOVED, copied_bytes=5 * MIB, resumed_bytes=2 * MIB, machine_bytes=machines)
    with progress(quiet=False) as listener:
        listener(PhaseStarted("transfer"))
        clock[0] += 20
        listener(moved)
    *_, line, end = screen.lines()
    assert end == ""
    assert len(line) < columns
    assert ("33%" in line) == (columns > 40)
    assert ("s left" in line) == (columns > 40)
    assert ("5.0 MiB copied by the store" in line) == (columns > 150)


def test_what_an_earlier_run_has_sent_is_no_speed(capsys, clock):
    with progress(quiet=False) as listener:
        listener(PhaseStarted("transfer"))
        clock[0] += 20
        listener(replace(MOVED, resumed_bytes=10 * MIB))
    err = capsys.readouterr().err
    assert "10.0 MiB resumed" in err
    assert "1.5 MiB/s on average" in err


def test_machines_are_told_with_the_slowest_first(capsys, clock):
    with progress(quiet=False) as listener:
        listener(PhaseStarted("transfer"))
        clock[0] += 20
        listener(replace(MOVED, machine_bytes={"fast": 30 * MIB, "slow": 10 * MIB}))
    assert "2 machines: slow 512.0 KiB/s, fast 1.5 MiB/s" in capsys.readouterr().err


def test_the_time_left_settles(clock):
    pace, left = Pace(clock[0]), []
    for second in range(1, 61):
        moved = MIB * (10 * (second // 10) + 2 * min(second % 10, 5))  # 1 MiB/s, in bursts
        event = Progress(moved, 0, 120 * MIB, 0, 1, 0, waits_for_memory=False)
        left.append(pace.figures(event, clock[0] + second).left_s)
    assert left[0] is None
    assert all(abs(left_s - (120 - second)) <= 25 for second, left_s in enumerate(left[20:], 21))
    assert all(abs(after - before) <= 15 for before, after in zip(left[20:], left[21:], strict=False))


REASON = "Cannot write a part of s3://b/k (AWS S3): no connection to the endpoint."


def test_a_wait_in_a_log_is_told_every_half_minute(capsys, clock):
    with progress(quiet=False) as listener:
        for second in range(1, 76):
            clock[0] += 1
            listener(Waiting(second, REASON))
            listener(MOVED)
        listener(Answered())
        clock[0] += 20
        listener(MOVED)
    *waits, answered, moved = capsys.readouterr().err.splitlines()
    assert waits == [f"  waiting for the store, {seconds}: {REASON}" for seconds in ("10 s", "40 s", "1 min 10 s")], (
        "no figures meanwhile: nothing moves"
    )
    assert answered == "  the store answers again, after 1 min 15 s"
    assert all(text in moved for text in TOLD[:2])


def test_a_short_wait_is_no_line_of_a_log(capsys, clock):
    with progress(quiet=False) as listener:
        for second in range(1, 9):
            clock[0] += 1
            listener(Waiting(second, REASON))
        listener(Answered())
    assert capsys.readouterr().err == ""


def test_a_wait_on_a_terminal_stands_in_place_of_the_figures(monkeypatch, clock):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with progress(quiet=False) as listener:
        listener(PhaseStarted("transfer"))
        listener(Waiting(40, REASON))
        listener(MOVED)
    assert "waiting for the store, 40 s" in screen.getvalue()
    assert "limited by" not in screen.getvalue()
    with progress(quiet=False) as listener:
        listener(Waiting(40, REASON))
        listener(Answered())
        clock[0] += 20
        listener(MOVED)
    assert "limited by" in screen.getvalue()


def test_no_word_of_a_wait_when_quiet(capsys, clock):
    with progress(quiet=True) as listener:
        listener(Waiting(100, REASON))
        listener(Answered())
    assert capsys.readouterr() == ("", "")
