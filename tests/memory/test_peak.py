"""A conversion of 2 GiB in a fresh process stays within the memory that its plan tells."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.recording_store import recording
from support.s3_servers import S3Server
from support.settings import clear_settings

import reshard
from reshard.api import resolve, save
from reshard.errors import OverBudget
from reshard.formats.safetensors import plan_header
from reshard.formats.weight_index import encode_weight_index
from reshard.planning.plan_json import encode_plan
from reshard.storage import Location, Store, open_location
from reshard.tensor import DType, TensorSpec

pytestmark = [pytest.mark.memory, pytest.mark.server, pytest.mark.timeout(600)]

MIB = 1 << 20
HIDDEN, INNER, LAYERS = 2048, 5632, 25
SLACK_BYTES = 24 * MIB
"""What a run takes besides its buffers: stacks of threads, the plan's objects, pages of the client."""

SLACK_OF_A_PROCESS_BYTES = 16 * MIB
"""What each of several processes takes besides: pages of objects that it shares with its leader until one writes."""

LAYOUT = b"""
axes: {mp: 4}
rules:
  - {match: ["*.o_proj.weight", "*.down_proj.weight"], split: [null, mp]}
  - {match: ["*.q_proj.weight", "*.gate_proj.weight", "*.up_proj.weight"], split: [mp]}
  - {match: "*", split: []}
"""

# In the child: everything is imported and every connection made by a small conversion first, so that
# what the large one adds is its own.
CHILD = """
import json, re, sys
import reshard

def resident_kib(name):
    with open("/proc/self/status") as status:
        return int(re.search(name + r":\\s+(\\d+)", status.read())[1])

small, large, verified = sys.argv[1:]
reshard.convert(plan=small, overwrite=True)
plan = reshard.load_plan(large)
before = resident_kib("VmRSS")
if verified:
    assert reshard.verify(verified).is_ok
else:
    reshard.convert(plan=plan, overwrite=True)
print(json.dumps({"before": before << 10, "peak": resident_kib("VmHWM") << 10}))
"""


def _specs(layer: int) -> list[TensorSpec]:
    shapes = {
        "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        "mlp.gate_proj.weight": (INNER, HIDDEN),
        "mlp.up_proj.weight": (INNER, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, INNER),
        "input_layernorm.weight": (HIDDEN,),
    }
    return [TensorSpec(f"model.layers.{layer}.{name}", DType.BF16, shape) for name, shape in shapes.items()]


def _write_model(store: Store, prefix: str, layers: int) -> None:
    weight_map = {}
    for layer in range(layers):
        header, key = plan_header(_specs(layer), {"format": "pt"}), f"model-{layer}.safetensors"
        store.put(f"{prefix}/{key}", header.data + os.urandom(header.nbytes - len(header.data)))
        weight_map |= {spec.name: key for spec in _specs(layer)}
    store.put(f"{prefix}/model.safetensors.index.json", encode_weight_index(weight_map, 0))


@pytest.fixture(scope="module")
def bucket(weed_server: S3Server) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        clear_settings(patch)
        for name, value in weed_server.environ.items():
            patch.setenv(name, value)
        url = f"s3://{weed_server.make_bucket('peak')}"
        store = open_location(url).store
        assert isinstance(store, Store)
        _write_model(store, "small", 1)
        _write_model(store, "large", LAYERS)
        store.put("mp4.yaml", LAYOUT)
        yield url


def _save_plan(url: str, name: str, src: str, dst: str, **options: str) -> reshard.Plan:
    options = {"memory": "256MiB"} | options
    made = reshard.plan(f"{url}/{src}", f"{url}/{dst}", **options)  # type: ignore[arg-type]
    save(f"{url}/{name}.json", encode_plan(made))
    return made


def _measured(url: str, small: str, large: str, verified: str = "") -> dict[str, int]:
    """Memory before and at the peak of a conversion, or of its verification."""
    command = [sys.executable, "-c", CHILD, f"{url}/{small}.json", f"{url}/{large}.json", verified]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    print(f"{'verify' if verified else large}: {(found['peak'] - found['before']) / MIB:.0f} MiB")
    return found


def test_peak_stays_within_the_plan(bucket: str) -> None:
    layout = f"{bucket}/mp4.yaml"
    _save_plan(bucket, "split-small", "small", "small-mp4", dst_layout=layout)
    split = _save_plan(bucket, "split", "large", "large-mp4", dst_layout=layout)
    assert split.catalog.nbytes > 2 * 1024 * MIB
    found = _measured(bucket, "split-small", "split")
    assert found["peak"] - found["before"] <= split.cost.peak_bytes + SLACK_BYTES

    found = _measured(bucket, "split-small", "split", f"{bucket}/large-mp4")
    assert found["peak"] - found["before"] <= split.cost.peak_bytes + SLACK_BYTES

    _save_plan(bucket, "merge-small", "small-mp4", "small-full", src_layout=layout)
    merge = _save_plan(bucket, "merge", "large-mp4", "large-full", src_layout=layout)
    found = _measured(bucket, "merge-small", "merge")
    assert found["peak"] - found["before"] <= merge.cost.peak_bytes + SLACK_BYTES
    assert reshard.verify(f"{bucket}/large-full", subset="1/8").is_ok


def test_all_processes_together_stay_within_the_plan(bucket: str) -> None:
    count = 3
    layout = f"{bucket}/mp4.yaml"
    _save_plan(bucket, "processes-small", "small", "processes-small-mp4", dst_layout=layout, processes="1")
    plan = _save_plan(bucket, "processes", "large", "processes-mp4", dst_layout=layout, processes=str(count))
    assert plan.limits.process_count == count
    command = [sys.executable, "-c", CHILD, f"{bucket}/processes-small.json", f"{bucket}/processes.json", ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as leader:
        peak_bytes, most_processes = 0, 0
        while leader.poll() is None:
            tree = _tree(leader.pid)
            peak_bytes = max(peak_bytes, sum(map(_anonymous_bytes, tree)))
            most_processes = max(most_processes, len(tree))
            time.sleep(0.02)
        assert leader.returncode == 0
        assert leader.stdout is not None
        before_bytes = json.loads(leader.stdout.read().splitlines()[-1])["before"]
    grown_bytes = peak_bytes - before_bytes
    print(f"{most_processes} processes: {grown_bytes / MIB:.0f} MiB, {plan.cost.peak_bytes / MIB:.0f} planned")
    assert most_processes > count  # the leader, too
    assert grown_bytes <= plan.cost.peak_bytes + most_processes * SLACK_OF_A_PROCESS_BYTES


def _tree(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        leader = psutil.Process(pid)
        return [leader, *leader.children(recursive=True)]
    return []


def _anonymous_bytes(process: psutil.Process) -> int:
    """Memory that no file stands behind; of pages that processes share, each has its part."""
    with contextlib.suppress(OSError):  # it has ended
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        if found := re.search(r"Pss_Anon:\s+(\d+) kB", rollup):
            return int(found[1]) << 10
    return 0


def test_too_little_memory_is_refused_before_a_tensor_byte_moves(bucket: str) -> None:
    command = [str(Path(sys.executable).with_name("reshard")), "convert", f"{bucket}/large", f"{bucket}/refused"]
    options = ["--dst-layout", f"{bucket}/mp4.yaml", "--memory", "8MiB"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "needs at least" in done.stderr
    assert "--memory" in done.stderr
    assert not list(open_location(f"{bucket}/refused").objects())


def test_a_refusal_reads_headers_only_and_its_number_would_do(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url, layout = f"{bucket}/large", f"{bucket}/mp4.yaml"
    header_bytes = reshard.inspect(url).header_bytes
    place = open_location(url)
    counted = recording(place.store)
    monkeypatch.setattr(resolve, "open_source", lambda _: Location(counted, place.key))
    with pytest.raises(OverBudget) as refused:
        reshard.convert(url, f"{bucket}/refused", dst_layout=layout, memory="8MiB")
    assert counted.figures.read_bytes == header_bytes
    found = re.search(r"memory='(\d+MiB)'", str(refused.value))
    assert found
    accepted = reshard.plan(url, f"{bucket}/refused", dst_layout=layout, memory=found[1])
    assert accepted.cost.peak_bytes <= int(found[1].removesuffix("MiB")) * MIB
    with pytest.raises(OverBudget):
        reshard.plan(url, f"{bucket}/refused", dst_layout=layout, memory=refused.value.needed_bytes - 1)


COMPUTED = {"fp32": {"dtype": "fp32"}, "ms": {"to": "ms"}, "both": {"to": "ms", "dtype": "fp32"}}


def _write_experts(store: Store, prefix: str, experts: int) -> None:
    """One layer of a Mixtral: experts that legacy MindSpore Transformers stacks and turns over."""
    config = {
        "model_type": "mixtral", "num_hidden_layers": 1, "hidden_size": 1024, "intermediate_size": 2048,
        "num_attention_heads": 8, "num_key_value_heads": 8, "num_local_experts": experts, "vocab_size": 1024,
        "tie_word_embeddings": False,
    }  # fmt: skip
    hidden, inner, head = 1024, 2048, "model.layers.0"
    shapes = {"model.embed_tokens.weight": (1024, hidden), "lm_head.weight": (1024, hidden)}
    shapes |= {f"{head}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
    shapes[f"{head}.block_sparse_moe.gate.weight"] = (experts, hidden)
    for expert in range(experts):
        for name, shape in (("w1", (inner, hidden)), ("w2", (hidden, inner)), ("w3", (inner, hidden))):
            shapes[f"{head}.block_sparse_moe.experts.{expert}.{name}.weight"] = shape
    norms = ("model.norm", f"{head}.input_layernorm", f"{head}.post_attention_layernorm")
    shapes |= {f"{name}.weight": (hidden,) for name in norms}
    header = plan_header([TensorSpec(name, DType.BF16, shape) for name, shape in shapes.items()], {"format": "pt"})
    store.put(f"{prefix}/model.safetensors", header.data + os.urandom(header.nbytes - len(header.data)))
    store.put(f"{prefix}/config.json", json.dumps(config).encode())


def test_peak_of_what_is_computed_or_turned_over(bucket: str) -> None:
    store = open_location(bucket).store
    assert isinstance(store, Store)
    for name, experts in (("few", 1), ("many", 16)):
        _write_experts(store, name, experts)
        for kind, options in COMPUTED.items():
            _save_plan(bucket, f"{name}-{kind}", name, f"{name}-as-{kind}", memory="96MiB", **options)
    for kind in COMPUTED:
        plan = reshard.load_plan(f"{bucket}/many-{kind}.json")
        assert plan.catalog.nbytes > 200 * MIB
        assert plan.cost.peak_bytes <= 96 * MIB
        found = _measured(bucket, f"few-{kind}", f"many-{kind}")
        assert found["peak"] - found["before"] <= plan.cost.peak_bytes + SLACK_BYTES
        found = _measured(bucket, f"few-{kind}", f"many-{kind}", f"{bucket}/many-as-{kind}")
        assert found["peak"] - found["before"] <= plan.cost.peak_bytes + SLACK_BYTES
