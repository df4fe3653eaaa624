"""The benchmark runs: one small workload against a real server, its roofline beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[2] / "benchmarks" / "run.py"


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.skipif(not Path(sys.executable).with_name("weed").exists(), reason="weed is not installed")
def test_one_workload(tmp_path):
    out = tmp_path / "bench.json"
    small = ["--only", "hf_to_mp4", "--size", "8MiB", "--repeats", "1", "--ways", "roofline", "reshard"]
    done = subprocess.run([sys.executable, RUN, *small, "--out", out], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr
    (workload,) = json.loads(out.read_text())["workloads"]
    made, floor = (workload["ways"][way]["counted"] for way in ("reshard", "roofline"))
    assert made["equal_tensors"] > 0
    assert made["disk_bytes"] == 0
    assert (floor["read_bytes"], floor["written_bytes"]) == (made["read_bytes"], made["written_bytes"])
    assert "</svg>" in out.with_suffix(".svg").read_text()
