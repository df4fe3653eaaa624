"""Results on stdout, as text for people or JSON for programs; errors on stderr."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from ..engine.manifest import Manifest, manifest_to_json
from ..engine.verify import Report
from ..errors import ReshardError
from ..planning.catalog import Catalog, SourceObject
from ..planning.cost.cost import Cost
from ..planning.cost.estimate import Estimate, PassEstimate
from ..planning.explain import Explanation, explanation_to_json
from ..planning.plan import Plan
from ..planning.plan_json import plan_id_of, plan_to_json
from ..tensor import Strategy
from .estimates import estimate_facts, explanation_facts, explanation_rows, in_time
from .options import OutputForm

_UNIT = 1024.0
_PIPE_WIDTH = 1000


def in_bytes(nbytes: float) -> str:
    """A number of bytes for people.

    Examples
    --------
    >>> in_bytes(999), in_bytes(3 << 20)
    ('999 B', '3.0 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < _UNIT:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= _UNIT
    return f"{nbytes:.2f} TiB"


def as_flag(name: str, value: str | None) -> str:
    """Spell an option as a flag of the command line.

    Examples
    --------
    >>> as_flag("dst_layout", "l.yaml")
    '--dst-layout l.yaml'
    """
    return " ".join([f"--{name.replace('_', '-')}", *([] if value is None else [value])])


def print_error(error: ReshardError) -> None:
    """Tell what failed on stderr."""
    sys.stderr.write(f"error: {error.text(as_flag)}\n")


def show_catalog(catalog: Catalog, form: OutputForm, shown: int) -> None:
    """Print what a source holds."""
    if form is OutputForm.JSON:
        _print_json(_catalog_json(catalog))
        return
    stored = [item for item in catalog.objects if not item.fill]
    dtypes = Counter(entry.spec.dtype.value for entry in catalog.entries)
    _print_facts(
        [
            ("source", catalog.url),
            ("kind", catalog.kind),
            ("objects", f"{len(stored)}, {in_bytes(sum(item.nbytes for item in stored))}"),
            ("tensors", f"{len(catalog.entries)}, {in_bytes(catalog.nbytes)}"),
            ("dtypes", ", ".join(f"{dtype} x {count}" for dtype, count in dtypes.most_common())),
            ("metadata", ", ".join(f"{key}={value}" for key, value in sorted(catalog.metadata.items())) or "none"),
            ("read", f"{catalog.header_bytes} bytes of headers and indices{_besides(catalog)}"),
            *(("text", f"{name}: {text}") for name, text in catalog.texts.items()),
            *(("note", note) for note in catalog.notes),
        ]
    )
    _print_rows(("object", "size"), [(item.key, in_bytes(item.nbytes)) for item in stored], shown)
    _print_rows(
        ("tensor", "dtype", "shape", "size"),
        [
            (entry.spec.name, entry.spec.dtype.value, list(entry.spec.shape), in_bytes(entry.spec.nbytes))
            for entry in catalog.entries
        ],
        shown,
    )


def _besides(catalog: Catalog) -> str:
    """Whether what stands between headers was read too: ``.ckpt`` has no table of contents."""
    return "" if any(item.key.endswith(".ckpt") for item in catalog.objects) else ", no tensor bytes"


def show_plan(
    plan: Plan,
    form: OutputForm,
    saved_as: str | None,
    estimate: Estimate,
    explained: Sequence[Explanation] = (),
) -> None:
    """Print what a plan will do and what it comes to; or only how some of what it makes is made."""
    if form is OutputForm.JSON:
        told = {"explained": [explanation_to_json(each) for each in explained]} if explained else {}
        _print_json({**plan_to_json(plan), "estimate": estimate.to_json(), **told})
        return
    if explained:
        for number, explanation in enumerate(explained):
            sys.stdout.write("\n" * bool(number))
            _print_facts(explanation_facts(explanation))
            _print_rows(*explanation_rows(explanation), 0)
        return
    cost, needed_bytes = estimate.cost, plan.cost.needed_bytes
    over_read = cost.read_bytes / needed_bytes if needed_bytes else 1.0
    _print_facts(
        [
            ("plan", plan_id_of(plan)[:16]),
            ("source", f"{plan.catalog.url} ({plan.catalog.kind})"),
            ("tensors", f"{len(plan.catalog.entries)}, {in_bytes(plan.catalog.nbytes)}"),
            ("target", plan.conversion.target_url),
            (
                "outputs",
                f"{len(plan.conversion.keys)} objects, {len(plan.outputs)} distinct, in {len(plan.groups)} groups",
            ),
            ("read", f"{in_bytes(cost.read_bytes)} in {cost.get_count} requests ({over_read:.3f} x needed)"),
            ("write", f"{in_bytes(cost.written_bytes)} in {_writes(cost)}"),
            *([("copy", _copies(cost))] if cost.copied_bytes else []),
            *([("stage", _staged(plan.staging, estimate.staged))] if plan.staging and estimate.staged else []),
            *estimate_facts(plan.cost, estimate),
            ("memory", _memory(plan, estimate)),
            ("steps", f"{cost.step_count}, {plan.limits.concurrency} requests in flight"),
            *(("note", note) for note in plan.notes),
            *([("saved", saved_as)] if saved_as else []),
        ]
    )
    rows = [(_keys(output.keys), len(output.specs), in_bytes(output.nbytes)) for output in plan.outputs]
    _print_rows(("output", "tensors", "size"), rows, 20)


def _memory(plan: Plan, estimate: Estimate) -> str:
    sizes = estimate.cost.peak_bytes, plan.limits.memory_bytes, estimate.process_bytes
    return "{} of buffers at most, limit {}; the process grows by about {}".format(*map(in_bytes, sizes))


def show_manifest(manifest: Manifest, form: OutputForm) -> None:
    """Print what a conversion has written."""
    if form is OutputForm.JSON:
        body = manifest_to_json(manifest)
        _print_json({key: value for key, value in body.items() if key != "plan"})
        return
    written = sum(receipt.nbytes for receipt in manifest.receipts)
    _print_facts(
        [
            ("converted", f"{manifest.plan.catalog.url} -> {manifest.plan.conversion.target_url}"),
            ("outputs", f"{len(manifest.receipts)} objects, {in_bytes(written)}"),
            ("manifest", f"{manifest.plan.conversion.target_url}/{manifest.plan.conversion.manifest_key}"),
            *(("note", note) for note in manifest.plan.notes),
        ]
    )
    rows = [
        (r.key, in_bytes(r.nbytes), "(copied)" if r.crc32c is None else f"{r.crc32c:08x}") for r in manifest.receipts
    ]
    _print_rows(("output", "size", "crc32c"), rows, 20)


def show_report(report: Report, form: OutputForm) -> None:
    """Print what a verification found."""
    if form is OutputForm.JSON:
        _print_json({"is_ok": report.is_ok, **asdict(report)})
        return
    verdict = "every compared byte is right" if report.checked_bytes else "nothing was compared"
    if not report.is_ok:
        verdict = f"{len(report.problems)} differences"
    compared = f"{in_bytes(report.checked_bytes)} of {in_bytes(report.total_bytes)} in {report.object_count} objects"
    _print_facts([("verdict", verdict), ("compared", compared), ("plan", report.plan_id[:16])])
    _print_rows(("difference",), [(problem,) for problem in report.problems], 50)


def show_strategy(strategy: Strategy, form: OutputForm, written: str | None = None) -> None:
    """Print every layout of a strategy, or only what was written."""
    if form is OutputForm.JSON:
        _print_json(_strategy_json(strategy))
        return
    facts = [
        ("ranks", f"{strategy.rank_count} = {strategy.stage_count} stages x {strategy.device_count} devices"),
        ("tensors", str(len(strategy.names))),
    ]
    _print_facts([*facts, *([("written", written)] if written else [])])
    if written:
        return
    rows = [
        (stage, name, list(layout.device_matrix), _map(layout.tensor_map), _extra(layout))
        for stage, layouts in enumerate(strategy.stages)
        for name, layout in sorted(layouts.items())
    ]
    _print_rows(("stage", "tensor", "device matrix", "tensor map", "besides"), rows, 0)


def _object_json(item: SourceObject) -> dict[str, Any]:
    return {"key": item.key, "nbytes": item.nbytes, "etag": item.etag, "base": item.base}


def _catalog_json(catalog: Catalog) -> dict[str, Any]:
    return {
        "url": catalog.url,
        "kind": catalog.kind,
        "objects": [_object_json(item) for item in catalog.objects if not item.fill],
        "tensors": [
            {
                "name": entry.spec.name,
                "dtype": entry.spec.dtype.value,
                "shape": list(entry.spec.shape),
                "nbytes": entry.spec.nbytes,
            }
            for entry in catalog.entries
        ],
        "metadata": dict(catalog.metadata),
        "notes": list(catalog.notes),
        "header_bytes": catalog.header_bytes,
        "texts": dict(catalog.texts),
        "dropped": list(catalog.dropped),
        "counters": dict(catalog.counters),
    }


def _strategy_json(strategy: Strategy) -> dict[str, Any]:
    return {
        "rank_count": strategy.rank_count,
        "device_count": strategy.device_count,
        "stages": [
            {
                name: {
                    "device_matrix": list(layout.device_matrix),
                    "tensor_map": [list(axis) for axis in layout.tensor_map],
                    "optimizer_shard_size": layout.optimizer_shard_size,
                    "optimizer_shard_step": layout.optimizer_shard_step,
                    "row_counts": list(layout.row_split.counts) if layout.row_split else None,
                }
                for name, layout in sorted(layouts.items())
            }
            for layouts in strategy.stages
        ],
    }


def _map(tensor_map: Iterable[Sequence[int]]) -> str:
    return str([axis[0] if len(axis) == 1 else list(axis) if axis else -1 for axis in tensor_map])


def _extra(layout: Any) -> str:
    notes = []
    if layout.optimizer_shard_size:
        notes.append(f"optimizer shard {layout.optimizer_shard_size} (step {layout.optimizer_shard_step})")
    if layout.row_split:
        notes.append(f"rows {list(layout.row_split.counts)}")
    return ", ".join(notes)


def _writes(cost: Cost) -> str:
    return f"{cost.part_count} parts of {cost.upload_count} uploads and {cost.put_count} single PUTs"


def _copies(cost: Cost) -> str:
    return f"{in_bytes(cost.copied_bytes)} in the store, in {cost.copy_count} requests"


def _staged(first: Plan, estimate: PassEstimate) -> str:
    """What of all that is told the first pass is."""
    cost, count = estimate.cost, estimate.requests.total
    read, written = in_bytes(cost.read_bytes + cost.copied_bytes), in_bytes(cost.written_bytes + cost.copied_bytes)
    takes = f"{count} requests, {in_time(estimate.time.seconds)}, {in_bytes(cost.peak_bytes)} of memory"
    return f"of this, first {len(first.catalog.entries)} tensors: {read} read and {written} written, {takes}"


def _keys(keys: Sequence[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} (and {len(keys) - 1} equal)"


def _print_json(body: object) -> None:
    sys.stdout.write(json.dumps(body, ensure_ascii=False, indent=1) + "\n")


def _print_facts(facts: Iterable[tuple[str, str]]) -> None:
    for name, value in facts:
        sys.stdout.write(f"{name:<10} {value}\n")


def _print_rows(titles: Sequence[str], rows: Sequence[Sequence[object]], shown: int) -> None:
    if not rows:
        return
    columns = [Column(title, overflow="fold") for title in titles]
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    visible = rows[:shown] if shown else rows
    for row in visible:
        table.add_row(*map(str, row))
    # Names are never shortened: what is piped may be as wide as it likes, a terminal folds them.
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print()
    console.print(table)
    if len(visible) < len(rows):
        console.print(f"... and {len(rows) - len(visible)} more")
