"""What a Ray cluster is asked for, without Ray."""

from __future__ import annotations

import socket
import sys

import pytest

from reshard.engine.executors.cluster import Cluster, Machine, check_reach
from reshard.errors import UsageError

HERE = Machine("a", "10.0.0.1", socket.gethostname(), 8, 1 << 30)
THERE = Machine("b", "10.0.0.2", "another", 8, 1 << 30)


def test_places_must_be_reached_from_every_machine(tmp_path):
    check_reach([str(tmp_path), "s3://models/a"], [HERE])
    check_reach(["obs://models/b", "s3://models/a"], [HERE, THERE])
    with pytest.raises(UsageError, match="is a path of this machine"):
        check_reach([str(tmp_path)], [HERE, THERE])
    with pytest.raises(UsageError, match="memory://lab/to is in the memory of one process"):
        check_reach(["memory://lab/to"], [HERE])


def test_ray_must_be_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "reshard.engine.executors.ray_crew", raising=False)
    with pytest.raises(UsageError, match="needs Ray") as refused:
        Cluster("auto", 1 << 30).machines(["s3://models/a"])
    assert "reshard[ray]" in str(refused.value)
