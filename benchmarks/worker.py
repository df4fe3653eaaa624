"""One way of one conversion, in a process of its own; tells how much memory it took and when work began."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any


def memory(name: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def run_reshard(spec: dict[str, Any]) -> dict[str, Any]:
    """The command line, in this process."""
    import reshard.storage.s3_store  # noqa: F401 - the client's modules belong to the start
    from reshard.cli.app import main

    if spec["limits"]:
        _set_limits(spec["limits"])
    found = started()
    sys.argv = ["reshard", *spec["argv"]]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
    return found


def _set_limits(limits: dict[str, int]) -> None:
    """What a person cannot set."""
    from reshard.api import resolve

    usual = resolve.limits_of
    resolve.limits_of = lambda *asked: replace(usual(*asked), **limits)


def run_roofline(spec: dict[str, Any]) -> dict[str, Any]:
    """The same requests, nothing in between."""
    from roofline import TRANSPORTS, chosen, replay

    import reshard.storage.s3_store  # noqa: F401

    requests = chosen(json.loads(Path(spec["requests"]).read_text()), spec["target"])
    found = started()
    replay(requests, spec["concurrency"], TRANSPORTS[spec["kind"]](requests))
    return found


def run_through_disk(spec: dict[str, Any]) -> dict[str, Any]:
    """Download, convert, upload."""
    from baselines import make_client, through_disk

    client = make_client(os.environ["AWS_ENDPOINT_URL"])
    return started() | through_disk(client, spec, Path.cwd())


def started() -> dict[str, Any]:
    """How long the interpreter and its imports took, and the memory that they hold."""
    return {"start_s": time.monotonic() - float(os.environ["BENCH_SPAWNED_S"]), "start_bytes": memory("VmRSS")}


def main() -> None:
    """Carry out a specification, and write what there is to tell into a file."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    out = Path(sys.argv[2])
    ways = {"reshard": run_reshard, "roofline": run_roofline, "roofline_http": run_roofline}
    found = ways.get(spec["kind"], run_through_disk)(spec)
    out.write_text(json.dumps(found | {"hwm_bytes": memory("VmHWM")}))


if __name__ == "__main__":
    main()
