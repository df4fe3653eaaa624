"""Measures conversions beside a roofline, MindSpore's tools and torch, in turn, against a real S3 server here.

``make bench`` runs every workload: first once through a proxy that counts requests and bytes, with memory and local
disk watched closely and results compared tensor for tensor; then several times with nothing in between, for the
seconds. It prints a table and writes ``benchmarks/results/bench.json`` and ``bench.svg``. Compare ratios, not seconds:
client and server share the machine. ``--only hf_to_mp4 --repeats 1 --size 64MiB`` is a quick run.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import measure
import report
from baselines import equal_count, fingerprints, keys_below, make_client
from proxy import Request, ceilings, proxy
from roofline import chosen
from sources import BUCKET, put_source
from ways import OUT, WAYS, Job, can_copy, interpreter, missing
from workloads import WORKLOADS, Workload

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
SWEEP = "hf_to_mp4"
SWEEP_WAYS = ("roofline", "reshard", "reshard_copy", "torch")
TRIES = 2


class Bench:
    """One server with one workload's source; every run gets a target bucket of its own, which is then removed.

    Removing a bucket frees its bytes at once; deleted objects would stay in the server's memory for a while.
    """

    def __init__(self, server: Any, job: Job, asked: argparse.Namespace, folder: Path) -> None:
        self.job = job
        self._server, self._asked = server, asked
        self._numbers = itertools.count(1)
        self._requests = folder / "requests.json"
        self.client = make_client(server.endpoint)

    def put_source(self) -> int:
        """Make the source; return its bytes."""
        self.client.create_bucket(Bucket=BUCKET)
        return put_source(self.client, self.job.workload, self.job.tensors)

    def cost(self, way: str) -> dict[str, Any]:
        """What reshard plans."""
        with self.target() as target:
            return self.job.cost(way, target, self._server.environ)

    def counted(self, ways: Sequence[str], expected: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
        """Every way once through a counting proxy; results are compared if there is somewhere to note the first."""
        found = {}
        with proxy(self._server.endpoint) as front:
            for way in sorted(ways, key=lambda way: way != "reshard"):  # the others make its requests again
                with self.target() as target:
                    front.take()
                    figures = self._run(way, target, front.endpoint, is_deep=True)
                    seen = front.take()
                    if way == "reshard":
                        self._requests.write_text(json.dumps(chosen(seen, target)))
                    if expected is not None and not way.startswith("roofline"):
                        made = fingerprints(self.client, target, OUT)
                        figures["equal_tensors"] = equal_count(way, expected.setdefault("first", made), made)
                    found[way] = figures | {"counted": count(seen)}
        return found

    def timed(self, way: str, endpoint: str | None = None) -> dict[str, Any]:
        """One way once."""
        with self.target() as target:
            return self._run(way, target, endpoint or self._server.endpoint, is_deep=False)

    @contextlib.contextmanager
    def delayed(self, delay_ms: float | None) -> Iterator[str]:
        """An endpoint that holds requests back; None for the server's own."""
        if delay_ms is None:
            yield self._server.endpoint
            return
        with proxy(self._server.endpoint, delay_ms) as front:
            yield front.endpoint

    def _run(self, way: str, target: str, endpoint: str, *, is_deep: bool) -> dict[str, Any]:
        spec = self.job.spec(way, target, self._requests)
        environ = self._server.environ | {"AWS_ENDPOINT_URL": endpoint}
        for failed_count in range(TRIES):
            try:
                found = measure.run(spec, environ, self._server.pid, self._asked.disk, is_deep=is_deep)
                return found | {"failed_count": failed_count}
            except measure.Failed as error:
                if way != "mindspore" or failed_count == TRIES - 1:  # its processes sometimes wait without end
                    raise
                print(error, flush=True)
                self._empty(target)
        raise AssertionError("one try returns or raises")

    @contextlib.contextmanager
    def target(self) -> Iterator[str]:
        """Make a bucket for a run, and remove it afterwards."""
        target = f"target-{next(self._numbers)}"
        self.client.create_bucket(Bucket=target)
        try:
            yield target
        finally:
            self._empty(target)
            self.client.delete_bucket(Bucket=target)
            measure.free(self._server.free_command)

    def _empty(self, bucket: str) -> None:
        for upload in self.client.list_multipart_uploads(Bucket=bucket).get("Uploads", ()):
            self.client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        for key in keys_below(self.client, bucket, ""):
            self.client.delete_object(Bucket=bucket, Key=key)


def count(seen: Sequence[Request]) -> dict[str, Any]:
    """Requests by kind, and bytes of content both ways; what an error says is no content."""
    done = [request for request in seen if request["status"] < 300]
    return {
        "requests": dict(sorted(Counter(request["kind"] for request in seen).items())),
        "failed_count": len(seen) - len(done),
        "read_bytes": sum(r["received_bytes"] for r in done if r["kind"] == "get"),
        "written_bytes": sum(r["sent_bytes"] for r in done if r["kind"] in ("put", "part")),
    }


@contextlib.contextmanager
def bench_for(asked: argparse.Namespace, workload: Workload, nbytes: int) -> Iterator[Bench]:
    """Start a server of its own for a workload: what it held before is gone with it."""
    from support import s3_servers

    job = Job(workload, workload.tensors(nbytes), asked.memory, asked.concurrency)
    start = {"weed": s3_servers.weed_server, "juicefs": s3_servers.juicefs_server}[asked.server]
    with start() as server, tempfile.TemporaryDirectory(prefix="reshard-bench-") as folder:
        os.environ.update(server.environ)
        yield Bench(server, job, asked, Path(folder))


def run_workload(asked: argparse.Namespace, workload: Workload) -> dict[str, Any]:
    """All ways of one workload, in turn."""
    skipped = {way: reason for way in asked.ways if (reason := missing(way, workload))}
    ways = [way for way in asked.ways if way not in skipped]
    with bench_for(asked, workload, asked.size) as bench:
        source_bytes = bench.put_source()
        costs = {way: bench.cost(way) for way in ways if way.startswith("reshard")}
        if "mindspore" in ways:
            skipped |= _tried(bench, ways)
        counted = bench.counted(ways, {} if asked.compare else None)
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for repeat in range(asked.repeats):
            for way, found in list(runs.items()):
                try:
                    found.append(bench.timed(way))
                except measure.Failed as error:
                    if way != "mindspore":
                        raise
                    skipped[way] = f"its tool fails: {str(error).strip().splitlines()[0]}"
                    del runs[way]
                    continue
                print(f"{workload.name} {repeat + 1}/{asked.repeats} {way} {found[-1]['wall_s']:.2f} s", flush=True)
    facts = {"name": workload.name, "title": workload.title, "source_bytes": source_bytes}
    told = {way: told_of(way, counted[way], found, costs.get(way)) for way, found in runs.items()}
    moved = counted["reshard"]["counted"]
    moved_gib = (moved["read_bytes"] + moved["written_bytes"]) / 2**30
    for each in told.values():
        each["medians"]["cpu_s_per_gib"] = each["medians"]["cpu_s"] / moved_gib
    return facts | {"moved_gib": moved_gib, "ways": told, "ratios": ratios(runs), "skipped": skipped}


def _tried(bench: Bench, ways: list[str]) -> dict[str, str]:
    """Why MindSpore's tool does not do this workload at all, if so; then it is not among the ways any more."""
    try:
        bench.timed("mindspore")
    except measure.Failed as error:
        print(error, flush=True)
        ways.remove("mindspore")
        return {"mindspore": f"its tool fails: {str(error).strip().splitlines()[-1]}"}
    return {}


def told_of(
    way: str, counted: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], cost: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What there is to tell of one way: medians, counted figures, the plan, all runs."""
    known = [name for name, value in runs[0].items() if isinstance(value, int | float)]
    found: dict[str, Any] = {"says": WAYS[way], "medians": {k: statistics.median(r[k] for r in runs) for k in known}}
    watched = ("tree_peak_bytes", "tree_peak_with_files_bytes", "disk_bytes", "equal_tensors")
    found["counted"] = counted["counted"] | {name: counted[name] for name in watched if name in counted}
    if cost is not None:
        found["planned"] = dict(cost)
        found["counted"]["copied_bytes"] = cost.get("copied_bytes", 0)
    return found | {"runs": list(runs)}


def ratios(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Each way's seconds, and client's CPU, as multiples of the roofline's in the same round; medians."""
    floor = runs.get("roofline")
    if not floor:
        return {}
    return {
        way: {
            name: statistics.median(mine[name] / its[name] for mine, its in zip(found, floor, strict=True))
            for name in ("wall_s", "cpu_s")
        }
        for way, found in runs.items()
    }


def sweep(asked: argparse.Namespace) -> dict[str, Any]:
    """One workload with each request held back for a while; and what the proxy itself costs."""
    workload = WORKLOADS[SWEEP]
    ways = [way for way in SWEEP_WAYS if way in asked.ways and not missing(way, workload)]
    rows = []
    with bench_for(asked, workload, min(asked.size, asked.latency_size)) as bench:
        source_bytes = bench.put_source()
        bench.counted(["reshard"])
        for delay_ms in (None, *asked.delays):
            runs: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
            with bench.delayed(delay_ms) as endpoint:
                for _ in range(asked.repeats):
                    for way, found in runs.items():
                        found.append(bench.timed(way, endpoint))
                        print(f"latency {delay_ms} ms {way} {found[-1]['wall_s']:.2f} s", flush=True)
            medians = {way: statistics.median(r["wall_s"] for r in found) for way, found in runs.items()}
            rows.append({"delay_ms": delay_ms, "wall_s": medians, "ratios": ratios(runs), "runs": runs})
    facts = {"workload": SWEEP, "source_bytes": source_bytes, "repeats": asked.repeats}
    return facts | {"proxy_bytes_per_s": ceilings(), "rows": rows}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from reshard.api.option_field import parse_size

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*WORKLOADS, "latency"], default=[*WORKLOADS, "latency"])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--size", type=parse_size, default="2GiB", help="bytes of each source")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", default="512MiB", help="limit of reshard's buffers")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--server", choices=["weed", "juicefs"], default="juicefs")
    parser.add_argument("--latency-size", type=parse_size, default="512MiB")
    parser.add_argument("--delays", type=float, nargs="+", default=[0.0, 20.0, 100.0], help="ms a request is held back")
    parser.add_argument("--no-compare", dest="compare", action="store_false", help="do not compare the results")
    parser.add_argument("--disk", type=Path, help="folder for what the other ways download; the system's")
    parser.add_argument("--keep", action="store_true", help="keep what the result has of other workloads")
    parser.add_argument("--out", type=Path, default=report.RESULTS / "bench.json", help="the plot goes beside it")
    asked = parser.parse_args(arguments)
    if "reshard" not in asked.ways:
        asked.ways.insert(0, "reshard")  # its requests are what the roofline makes again
    return asked


def prepare() -> None:
    """Leave out of this process, and of those it starts, what belongs to whoever runs it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # the server and its bytes must not stay behind
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]  # profiles and endpoints
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # nobody compiles all modules in every run


def main() -> None:
    """Run what is asked for; results are written after each workload."""
    asked = parse()
    prepare()
    result = report.head(asked, {way: interpreter(way) for way in ("mindspore", "torch")}, can_copy=can_copy())
    if asked.keep:
        result |= report.kept(asked.out, result, asked.only)
    for name in asked.only:
        if name != "latency":
            result["workloads"].append(run_workload(asked, WORKLOADS[name]))
            result["workloads"].sort(key=lambda workload: list(WORKLOADS).index(workload["name"]))
            report.write(result, asked.out)
    if "latency" in asked.only:
        result["latency"] = sweep(asked)
    report.write(result, asked.out)
    report.print_table(result)


if __name__ == "__main__":
    main()
