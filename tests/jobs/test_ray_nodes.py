"""Which nodes of a job make a Ray cluster, without Ray."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from support.checkpoints import put_full, random_model

from reshard.api.request import Request
from reshard.errors import UsageError
from reshard.jobs.hyper_parameters import parse_arguments
from reshard.jobs.node_share import NodeShare
from reshard.jobs.nodes import Node
from reshard.jobs.ray_nodes import RayNode, without_ray
from reshard.storage import LocalStore, Location

HOSTS = {"VC_WORKER_HOSTS": "job-worker-0.job,job-worker-1.job", "VC_TASK_INDEX": "1"}


def test_nodes_that_make_a_cluster():
    wanted = Request(engine="ray")
    assert RayNode.of(Node(1, 2), wanted, HOSTS) == RayNode(Node(1, 2), "job-worker-0.job")
    for node, request in (
        (Node(0, 1), wanted),
        (Node(0, 2), Request(engine="local")),
        (Node(0, 2), Request(engine="ray", ray_address="10.0.0.1:6379")),
    ):
        assert RayNode.of(node, request, HOSTS) is None
    with pytest.raises(UsageError, match="VC_WORKER_HOSTS does not say"):
        RayNode.of(Node(1, 2), wanted, {"MA_NUM_HOSTS": "2"})


@pytest.mark.parametrize(
    ("is_there", "environ", "stays"), [(True, HOSTS, True), (False, HOSTS, False), (False, {}, True)]
)
def test_without_ray_several_nodes_share_as_ever(monkeypatch, is_there, environ, stays):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if is_there else None)
    given = parse_arguments(["--engine=ray", "--dtype=bf16"])
    found, warnings = without_ray(given, environ)
    assert (found == given) == stays
    assert found.text("dtype") == "bf16"
    assert [text for text in warnings if "each node writes its own ranks" in text] == warnings
    assert bool(warnings) == (not stays)


def test_the_first_node_leads_all(tmp_path: Path):
    put_full(Location(LocalStore(tmp_path), "hf"), {"model.safetensors": random_model({"w": ("F32", (8, 8))})})
    (tmp_path / "layout.yaml").write_text("axes: {mp: 8}\nrules:\n  - {match: '*', split: [mp]}\n")
    request = Request.of(
        src=str(tmp_path / "hf"), dst=str(tmp_path / "to"), dst_layout=str(tmp_path / "layout.yaml"), engine="ray"
    )
    shares = [NodeShare.of(request, Node(index, 2, npu_count=1)) for index in (0, 1)]
    assert [share.is_empty for share in shares] == [False, True]
    assert shares[0].resolved.conversion.whole is shares[0].resolved.conversion
