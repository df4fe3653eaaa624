"""A crew of processes on this machine: started, asked, stopped, and waited for."""

from __future__ import annotations

import multiprocessing.connection
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from ...storage import WATCH_THREAD
from .child import serve
from .messages import STOP

_STOP_WAIT_S = 12.0  # a little longer than a process waits for its own requests in flight
_END_WAIT_S = 2.0
_LOOK_S = 0.01


@dataclass(slots=True, eq=False)
class LocalMember:
    """One process, and the end of its pipe."""

    pid: int
    connection: Connection
    _process: subprocess.Popen[bytes] | None = None
    _status: int | None = None

    @property
    def name(self) -> str:
        """Its number."""
        return f"process {self.pid}"

    @property
    def host(self) -> str:
        """This machine."""
        return "localhost"

    def send(self, data: bytes) -> None:
        """Write a message to the pipe; raise OSError if its other end is gone."""
        self.connection.send_bytes(data)

    def receive(self) -> bytes | None:
        """Return the next message in the pipe, None if there is none; raise EOFError once its other end is gone."""
        try:
            return self.connection.recv_bytes() if self.connection.poll() else None
        except OSError as error:
            raise EOFError from error

    @property
    def status(self) -> int | None:
        """Exit code, or minus the signal that ended the process; None while it lives, 0 if nobody can tell."""
        if self._status is None and self._process is not None:
            self._status = self._process.poll()
        elif self._status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # someone else has waited for it
                self._status = 0
            else:
                self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def end(self, wait_s: float) -> int:
        """Wait until the process ends, kill it after ``wait_s``, and return its status."""
        deadline_s = time.monotonic() + wait_s
        while self.status is None:
            if time.monotonic() > deadline_s:
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
            time.sleep(_LOOK_S)
        return self.status


@dataclass(slots=True, eq=False)
class LocalCrew:
    """Processes of this machine; see :class:`~.crew.Crew`."""

    members: list[LocalMember] = field(default_factory=list)
    is_here = True
    second_try_s = None  # what slows one of them down slows all
    grows = False

    def ready(self, members: Collection[LocalMember], wait_s: float) -> Sequence[LocalMember]:
        """Return those members that have something to tell, or have ended; wait for one at most ``wait_s``."""
        found = multiprocessing.connection.wait([member.connection for member in members], wait_s)
        return [member for member in members if member.connection in found]

    def lose(self, member: LocalMember) -> str:
        """Give up a member whose pipe has ended; return in words how it ended."""
        self.members.remove(member)
        member.connection.close()
        status = member.end(_END_WAIT_S)
        how = f"was ended by signal {-status}" if status < 0 else f"ended with exit code {status}"
        return f"A process that moved bytes {how}"

    def break_off(self, members: Collection[LocalMember]) -> None:
        """Have processes break off what they do and end, and wait for that."""
        for member in members:
            with suppress(OSError):
                member.connection.send_bytes(STOP)
        self._end(members, _STOP_WAIT_S)

    def close(self) -> None:
        """End processes that have nothing to do."""
        for member in self.members:
            member.connection.close()
        self._end(self.members, _END_WAIT_S)

    def _end(self, members: Collection[LocalMember], wait_s: float) -> None:
        deadline_s = time.monotonic() + wait_s
        for member in list(members):
            member.end(max(0.0, deadline_s - time.monotonic()))
            member.connection.close()
            self.members.remove(member)


@contextmanager
def started(count: int) -> Iterator[LocalCrew]:
    """Provide so many processes for the length of a block.

    They are forked where no other thread runs in this one, which takes some milliseconds; a fork would otherwise
    inherit locks that nobody releases. Else each is a new interpreter.
    """
    crew = LocalCrew()
    try:
        for _ in range(count):
            crew.members.append(_fork(crew.members) if _can_fork() else _start())
        yield crew
    except BaseException:
        crew.break_off(crew.members)
        raise
    finally:
        crew.close()


def _can_fork() -> bool:
    others = [each for each in threading.enumerate() if each.name != WATCH_THREAD]
    return sys.platform == "linux" and others == [threading.main_thread()] == [threading.current_thread()]


def _fork(before: Sequence[LocalMember]) -> LocalMember:
    ours, theirs = multiprocessing.Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which have been looked at
        pid = os.fork()
    if not pid:
        for connection in (ours, *(member.connection for member in before)):
            connection.close()  # or the others would not see the end of their leader
        serve(theirs)
    theirs.close()
    return LocalMember(pid, ours)


def _start() -> LocalMember:
    ours, theirs = multiprocessing.Pipe()
    package = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    number = theirs.fileno()
    process = subprocess.Popen(  # noqa: S603 - this very interpreter
        [sys.executable, "-m", f"{__package__}.child", str(number)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[number],
        env={**os.environ, "PYTHONPATH": path},
    )
    theirs.close()
    return LocalMember(process.pid, ours, process)
