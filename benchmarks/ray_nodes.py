"""A Ray cluster of simulated machines, all of this one: ``python benchmarks/ray_nodes.py COUNT`` prints its address.

Each takes workers on one core; the head takes none. They end with standard input. Ray gives up waiting for a part of a
cluster after 30 s, which is little for a busy machine, so that it is asked several times.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from ray.cluster_utils import Cluster

_MIB = 1 << 20
_TRIES = 4


def main() -> None:
    """Start the machines, and keep them until nobody needs them any more."""
    os.environ["RAY_enable_worker_prestart"] = "0"  # noqa: SIM112  # Ray's spelling
    head = {"num_cpus": 0, "object_store_memory": 80 * _MIB, "memory": 1 << 30, "include_dashboard": False}
    cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        for _ in range(int(sys.argv[1])):
            _patiently(lambda: cluster.add_node(num_cpus=1, memory=2 << 30, object_store_memory=80 * _MIB))
        cluster.wait_for_nodes()
        print(f"address {cluster.address}", flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


def _patiently(start: Callable[[], Any]) -> Any:
    for left in reversed(range(_TRIES)):
        try:
            return start()
        except Exception as error:
            if not left or "timed out during startup" not in str(error):
                raise
    raise AssertionError("the last try returns or raises")


if __name__ == "__main__":
    main()
