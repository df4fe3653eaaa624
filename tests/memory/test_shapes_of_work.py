"""Whatever a conversion does, it stays within the memory that its plan tells; each runs in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.large_models import ADAPTER_CONFIG, Specs, adapters, dense, llama, llama_config, quantised, write_model
from support.planning import without_staging
from support.s3_servers import S3Server
from support.settings import clear_settings

import reshard
from reshard.api import save
from reshard.planning.plan import without_copies
from reshard.planning.plan_json import encode_plan
from reshard.storage import Store, open_location
from reshard.tensor import DType, TensorSpec

pytestmark = [pytest.mark.memory, pytest.mark.server, pytest.mark.timeout(600)]

MIB = 1 << 20
SLACK_BYTES = 24 * MIB
"""What a run takes besides its buffers: stacks of threads, objects in passing, pages of the client."""

# In the child: everything is imported and every connection made by a small conversion first, and the plan
# and what follows from it are held, so that what is measured is what moving the bytes adds.
CHILD = """
import json, re, sys
import reshard

def resident_bytes(name):
    with open("/proc/self/status") as status:
        return int(re.search(name + r":\\s+(\\d+)", status.read())[1]) << 10

small, large, verified = sys.argv[1:]
reshard.convert(plan=small, overwrite=True)
empty = resident_bytes("VmRSS")
plan = reshard.load_plan(large)
before = resident_bytes("VmRSS")
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
if verified:
    assert reshard.verify(verified).is_ok
else:
    reshard.convert(plan=plan, overwrite=True)
print(json.dumps({"plan": before - empty, "grown": resident_bytes("VmHWM") - before}))
"""

LAYOUTS = {
    "mp4.yaml": """
axes: {mp: 4}
rules:
  - {match: ["*.o_proj.weight", "*.down_proj.weight"], split: [null, mp]}
  - {match: ["*.q_proj.weight", "*.gate_proj.weight", "*.up_proj.weight"], split: [mp]}
  - {match: "*", split: []}
""",
    "columns16.yaml": """
axes: {mp: 16}
rules:
  - {match: "*", split: [null, mp]}
""",
}


@dataclass(frozen=True)
class Model:
    """What is converted, and something small of its kind that is converted before."""

    large: Specs
    small: Specs
    config: Mapping[str, object] = field(default_factory=dict)
    small_config: Mapping[str, object] = field(default_factory=dict)


def _matrices(count: int, shape: tuple[int, int]) -> Specs:
    return [TensorSpec(f"layers.{n}.{'qo'[n % 2]}_proj.weight", DType.BF16, shape) for n in range(count)]


SMALL = {"hidden": 1024, "inner": 2048, "layers": 2}
MODELS = {
    "dense": Model(dense(), dense(**SMALL)),
    "embedding": Model(_matrices(1, (32000, 4096)), _matrices(1, (4096, 4096))),
    "many": Model(_matrices(3000, (256, 192)), _matrices(30, (256, 192))),
    "quantised": Model(quantised(), quantised(2)),
    "adapters": Model(adapters(dense()), adapters(dense(**SMALL)), ADAPTER_CONFIG, ADAPTER_CONFIG),
    "llama": Model(llama(), llama(**SMALL, vocab=1024), llama_config(), llama_config(**SMALL, vocab=1024)),
}


@dataclass(frozen=True)
class Case:
    """A conversion: of what, how, and in how much memory."""

    name: str
    src: str
    memory: str | None
    options: Mapping[str, Any]
    verified: bool = False
    """Whether verifying is measured too."""


MP4, COLUMNS = {"dst_layout": "{url}/mp4.yaml"}, {"dst_layout": "{url}/columns16.yaml"}
CASES = [
    Case("split", "dense", "64MiB", MP4, verified=True),
    Case("split", "dense", "256MiB", MP4),
    Case("split", "dense", None, MP4),
    Case("merge", "split-64MiB", "64MiB", {"src_layout": "{url}/mp4.yaml"}),
    Case("columns", "embedding", "64MiB", COLUMNS),
    Case("staged", "embedding", "64MiB", {**COLUMNS, "staging": "always"}),
    Case("cast", "dense", "64MiB", {"dtype": "fp32"}),
    Case("dequantise", "quantised", "64MiB", {"dtype": "bf16"}),
    Case("lora", "dense", "64MiB", {"lora": "{url}/{size}-adapters"}),
    Case("many", "many", "64MiB", MP4, verified=True),
    Case("zarr", "dense", "64MiB", {"form": "zarr", "copy": "never"}),
    Case("copies", "dense", "64MiB", {"rename": ["prefix:model.=decoder."]}, verified=True),
    Case("ordinary", "llama", "64MiB", {"to": "ms", "parallel": "mp=8,pp=2"}),
]


@pytest.fixture(scope="module")
def bucket(weed_server: S3Server) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        clear_settings(patch)
        for name, value in weed_server.environ.items():
            patch.setenv(name, value)
        url = f"s3://{weed_server.make_bucket('shapes')}"
        store = open_location(url).store
        assert isinstance(store, Store)
        for name, text in LAYOUTS.items():
            store.put(name, text.encode())
        for name, model in MODELS.items():
            config = "adapter_config.json" if name == "adapters" else "config.json"
            for size, specs, values in (
                ("large", model.large, model.config),
                ("small", model.small, model.small_config),
            ):
                write_model(store, f"{size}-{name}", specs, {config: values} if values else {})
        yield url


def _planned(url: str, case: Case, size: str) -> tuple[reshard.Plan, str, str]:
    """The plan, where it is saved, and its target."""
    options = {
        key: value.format(url=url, size=size) if isinstance(value, str) else value
        for key, value in case.options.items()
    }
    dst = f"{url}/{size}-{case.name}-{case.memory}"
    made = reshard.plan(f"{url}/{size}-{case.src}", dst, **options, memory=case.memory)
    save(f"{dst}.json", encode_plan(made))
    return made, f"{dst}.json", dst


def _measured(*arguments: str) -> dict[str, int]:
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.memory or 'default'}")
def test_measured_memory_is_within_the_plan(bucket: str, case: Case) -> None:
    _, small, _ = _planned(bucket, case, "small")
    plan, large, dst = _planned(bucket, case, "large")
    converting = max(each.cost.peak_bytes for each in (plan, plan.staging) if each)
    assert converting <= plan.limits.memory_bytes
    assert plan.catalog.nbytes > 245 * MIB
    assert bool(plan.staging) == (case.name == "staged")
    # To verify reads what was copied or staged like the rest.
    read_again = without_copies(without_staging(plan)).cost.peak_bytes
    for verified, planned in (("", converting), *([(dst, read_again)] if case.verified else [])):
        found = _measured(small, large, verified)
        print(
            f"{'verify ' if verified else ''}{case.name} {case.memory}: {found['grown'] / MIB:.1f} MiB measured, "
            f"{planned / MIB:.1f} planned, plan itself {found['plan'] / MIB:.1f}"
        )
        assert found["grown"] <= planned + found["plan"] + SLACK_BYTES
    if case.name == "copies":
        assert plan.cost.copied_bytes > 0.95 * plan.catalog.nbytes
        assert plan.cost.peak_bytes < plan.limits.memory_bytes // 2
