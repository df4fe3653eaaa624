"""Loading a rank takes its tensors, and the memory that it is allowed besides them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from reshard.formats.safetensors import plan_header
from reshard.tensor import DType, TensorSpec

pytestmark = [pytest.mark.memory, pytest.mark.timeout(600)]

MIB = 1 << 20
MEMORY_BYTES = 48 * MIB
SLACK_BYTES = 24 * MIB
"""What a run takes besides its buffers: stacks of threads, objects in passing."""
SPECS = [TensorSpec(f"{layer}.{name}", DType.BF16, (4096, 8192)) for layer in range(8) for name in ("rows", "columns")]
LAYOUT = """
axes: {mp: 4}
rules:
  - {match: "*.rows", split: [mp]}
  - {match: "*.columns", split: [null, mp]}
"""
CHILD = """
import json, re, sys
import reshard

def resident_bytes(name):
    with open("/proc/self/status") as status:
        return int(re.search(name + r":\\s+(\\d+)", status.read())[1]) << 10

url, memory, takes_one = sys.argv[1], int(sys.argv[2]), bool(sys.argv[3])
options = {"rank": 3, "dst_layout": f"{url}/l.yaml", "memory": memory, "max_gap": "64KiB"}
reshard.load(url, keep="0.rows", **options).tensors()
shard = reshard.load(url, **options)
before = resident_bytes("VmRSS")
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
if takes_one:
    for name, tensor in shard:
        del tensor
else:
    tensors = shard.tensors()
print(json.dumps({"grown": resident_bytes("VmHWM") - before, "tensors": shard.nbytes}))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 1 GiB that takes no room: its tensors are holes."""
    folder = tmp_path_factory.mktemp("model")
    header = plan_header(SPECS, {}).data
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(spec.nbytes for spec in SPECS))
    (folder / "l.yaml").write_text(LAYOUT)
    return folder


@pytest.mark.parametrize("takes_one", [False, True], ids=["all at once", "one by one"])
def test_a_rank_takes_its_tensors_and_what_it_may_besides(place: Path, takes_one: bool) -> None:
    arguments = [str(place), str(MEMORY_BYTES), "1" if takes_one else ""]
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["tensors"] == sum(spec.nbytes for spec in SPECS) // 4
    # Taken one by one, only tensors that are being filled are there: those of the steps in flight.
    held = 4 * SPECS[0].nbytes // 4 if takes_one else found["tensors"]
    assert found["grown"] <= held + MEMORY_BYTES + SLACK_BYTES
