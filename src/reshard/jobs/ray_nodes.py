"""Nodes of a job that make one Ray cluster: the first starts it and leads, the others join it and wait."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ..api.request import Request
from ..engine.executors.cluster import Cluster
from ..errors import UsageError, option
from .hyper_parameters import HyperParameters
from .nodes import Node, find_node

PORT = 6379
_JOIN_S = 120.0
_AGAIN_S, _LOOK_S = 2.0, 0.2
_END_S = 20.0
_STORE_BYTES = 80 << 20  # little less is the least that Ray accepts, and no tensor goes through it
_AT_ONCE = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
_ENGINE = ("engine", "ray_address")


@dataclass(frozen=True, slots=True)
class RayNode:
    """One node of a cluster, and the host of the first node."""

    node: Node
    first_host: str

    @classmethod
    def of(cls, node: Node, request: Request, environ: Mapping[str, str]) -> RayNode | None:
        """Return a node's part of a cluster; None if a request needs none, or names one that runs elsewhere.

        Raise UsageError if nothing says where the first node is.
        """
        if request.engine != "ray" or request.ray_address or node.count == 1:
            return None
        first, _, _ = environ.get("VC_WORKER_HOSTS", "").partition(",")
        if not first.strip():
            raise UsageError(
                f"{option('engine', 'ray')} on {node.count} nodes: VC_WORKER_HOSTS does not say where the first one is",
                hint=f"Give {option('ray_address')} of a cluster that runs.",
            )
        return cls(node, first.strip())

    @contextmanager
    def joined(self, show: Callable[[str], None]) -> Iterator[None]:
        """Keep Ray running on this node for the length of a block; the first node waits for the others for a while."""
        has_ended = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(has_ended, show), name="reshard-ray")
        keeper.start()
        try:
            if not self.node.index:
                found = Cluster("auto", 0).wait_for(self.node.count, _JOIN_S)
                show(f"{found} of {self.node.count} nodes have joined the Ray cluster that this one leads")
            yield
        finally:
            has_ended.set()
            keeper.join()

    @property
    def _command(self) -> list[str]:
        role = [f"--address={self.first_host}:{PORT}"]
        if not self.node.index:
            role = ["--head", f"--port={PORT}", "--include-dashboard=false", "--disable-usage-stats"]
        program = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        return [*program, f"--object-store-memory={_STORE_BYTES}", *role]

    def _keep(self, has_ended: threading.Event, show: Callable[[str], None]) -> None:
        """Run Ray until an event, and start it again when it ends: the first node may not be there yet, or again."""
        told, environ = "", os.environ | _AT_ONCE
        while not has_ended.is_set():
            with subprocess.Popen(  # noqa: S603
                self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ
            ) as process:
                while process.poll() is None and not has_ended.wait(_LOOK_S):
                    pass
                process.terminate()
                try:
                    output, _ = process.communicate(timeout=_END_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    break
            last = (output.decode(errors="replace").strip() or "no reason given").splitlines()[-1]
            if not has_ended.is_set() and last != told:
                told = last
                show(f"Ray has ended on this node, and is started again: {last}")
            has_ended.wait(_AGAIN_S)


def without_ray(given: HyperParameters, environ: Mapping[str, str]) -> tuple[HyperParameters, list[str]]:
    """Drop the wish for Ray on several nodes that do not have it; return what to warn of."""
    is_wanted = (given.text("engine") or "").strip().lower() == "ray"
    if not is_wanted or find_node(environ).count == 1 or importlib.util.find_spec("ray") is not None:
        return given, []
    texts = {name: value for name, value in given.texts.items() if name not in _ENGINE}
    text = f"{option('engine', 'ray')} has no effect: Ray is not installed, so each node writes its own ranks"
    return replace(given, texts=texts), [text]
