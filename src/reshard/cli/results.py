"""Checkpoints, manifests, reports and strategies, shown."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..errors import counted
from ..folding import folded
from .flags import OutputForm
from .modules import module_rows
from .printing import Facts, in_bytes, in_time, note_facts, print_facts, print_json, print_rows, rank_order, write
from .spelling import spelled
from .terminal import styled, verbosity

_MODULES = 40  # lines of the summary by module, unless all is asked for

if TYPE_CHECKING:  # what is shown is imported already by whoever made it
    from ..engine.manifest import Manifest
    from ..engine.verification import Report
    from ..planning.catalog import Catalog
    from ..tensor import Strategy


def show_catalog(catalog: Catalog, form: OutputForm, shown: int) -> None:
    """Print what a source holds."""
    if form is OutputForm.JSON:
        print_json(_catalog_json(catalog))
        return
    print_facts(catalog_facts(catalog))
    specs = [entry.spec for entry in catalog.entries]
    modules = module_rows(specs)
    if len(modules) < len(specs):
        print_rows(("module", "tensors", "size", "dtypes"), modules, _MODULES if shown else 0)
    stored = [item for item in catalog.objects if not item.fill]
    print_rows(("object", "size"), [(item.key, in_bytes(item.nbytes)) for item in stored], shown)
    rows = [(spec.name, spec.dtype.value, list(spec.shape), in_bytes(spec.nbytes)) for spec in specs]
    print_rows(("tensor", "dtype", "shape", "size"), rows, shown)


def catalog_facts(catalog: Catalog) -> Facts:
    """Return the lines about a source as a whole."""
    stored = [item for item in catalog.objects if not item.fill]
    specs = [entry.spec for entry in catalog.entries]
    dtypes = Counter(spec.dtype.value for spec in specs)
    # .ckpt has no table of contents: what stands between headers was read too.
    has_ckpt = any(item.key.endswith(".ckpt") for item in catalog.objects)
    return [
        ("source", catalog.url),
        ("kind", catalog.kind),
        ("objects", f"{len(stored)}, {in_bytes(sum(item.nbytes for item in stored))}"),
        ("tensors", f"{len(catalog.entries)}, {in_bytes(catalog.nbytes)}"),
        ("dtypes", ", ".join(f"{dtype} x {count}" for dtype, count in dtypes.most_common())),
        ("metadata", ", ".join(f"{key}={value}" for key, value in sorted(catalog.metadata.items())) or "none"),
        ("read", f"{catalog.header_bytes} bytes of headers and indices{'' if has_ckpt else ', no tensor bytes'}"),
        *(("text", f"{name}: {text}") for name, text in catalog.texts.items()),
        *note_facts(catalog.notes),
    ]


def show_manifest(manifest: Manifest, form: OutputForm, dst: str | None = None) -> None:
    """Print what a conversion has written; ``dst`` is how the user has named its target."""
    if form is OutputForm.JSON:
        print_json(manifest_json(manifest))
        return
    written = sum(receipt.nbytes for receipt in manifest.receipts)
    receipts = sorted(manifest.receipts, key=lambda receipt: rank_order(receipt.key))
    source, target = manifest.conversion.catalog.url, dst or manifest.conversion.target_url
    print_facts(
        [
            ("converted", f"{source} -> {target}"),
            *([("skipped", "an earlier run has finished this; its objects are there, unchanged")] * manifest.was_done),
            ("outputs", f"{counted(len(receipts), 'object')}, {in_bytes(written)}"),
            ("manifest", f"{manifest.conversion.target_url}/{manifest.conversion.manifest_key}"),
            *overflow_facts(manifest),
            *note_facts(manifest.conversion.notes),
        ]
    )
    rows = [(r.key, in_bytes(r.nbytes), "-" if r.crc32c is None else f"{r.crc32c:08x}") for r in receipts]
    print_rows(("output", "size", "crc32c"), rows, 20)
    print_facts([("proven", proven_text(manifest))])


_PROVEN = {
    "crc32c": "by CRC-32C",
    "md5": "by MD5",
    "copy": "copied by the store",
    "local": "with no network between",
    "": "by length alone",
}


def proven_text(manifest: Manifest) -> str:
    """Say what a run has proven of the objects that it wrote and read, and by what."""
    counts, reads = Counter(receipt.proof for receipt in manifest.receipts), manifest.reads
    written = ", ".join(f"{count} {_PROVEN[proof]}" for proof, count in counts.most_common())
    kept = f"{reads.proven_count} of {reads.object_count} by checksums that the store keeps"
    if reads.read_count > 1:
        return f"written: {written}; read: {reads.object_count} by reading twice, {kept}"
    return f"written: {written}; read: {kept}"


def show_pace(manifest: Manifest, seconds: float) -> None:
    """Close a conversion with one line on stderr: how much was written, how fast, and whether it is proven."""
    if manifest.was_done:
        write(f"nothing left to do, found out in {in_time(seconds)}", sys.stderr)
        return
    written, reads = sum(receipt.nbytes for receipt in manifest.receipts), manifest.reads
    proven = "what was written is verified" if all(receipt.proof for receipt in manifest.receipts) else "not verified"
    if proven != "not verified" and (reads.read_count > 1 or reads.proven_count == reads.object_count):
        proven = "verified"
    rate = f"{in_bytes(written / seconds)}/s" if seconds else "at once"
    line = f"{in_bytes(written)} in {in_time(seconds)}, {rate}, {proven}"
    sys.stderr.write(f"{styled(line, 'good', sys.stderr)}\n")


def overflow_facts(manifest: Manifest) -> list[tuple[str, str]]:
    """Say how many values their new data type could not hold."""
    if not manifest.overflows:
        return []
    some = ", ".join(f"{name} ({count})" for name, count in list(manifest.overflows.items())[:5])
    more = ", ..." if len(manifest.overflows) > 5 else ""
    return [("overflow", f"{counted(sum(manifest.overflows.values()), 'value')} beyond their data type: {some}{more}")]


def manifest_json(manifest: Manifest) -> dict[str, Any]:
    """Return for programs what a conversion has written."""
    from ..engine.manifest import manifest_to_json

    body = manifest_to_json(manifest)
    state = "skipped" if manifest.was_done else "converted"
    return {"state": state, **{key: value for key, value in body.items() if key not in ("conversion", "limits")}}


def show_report(report: Report, form: OutputForm) -> None:
    """Print what a verification found."""
    if form is OutputForm.JSON:
        print_json({"is_ok": report.is_ok, **asdict(report)})
        return
    print_facts([("verdict", report.verdict), *report_facts(report)])
    print_rows(("difference",), [(problem,) for problem in folded(report.problems)], 0 if verbosity() else 20)


def report_facts(report: Report) -> Facts:
    """Return the lines about a verification, besides the verdict."""
    return [("compared", report.compared), ("conversion", report.conversion_id[:16])]


def show_strategy(strategy: Strategy, form: OutputForm, written: str | None = None) -> None:
    """Print every layout of a strategy, or only what was written."""
    if form is OutputForm.JSON:
        print_json(_strategy_json(strategy))
        return
    stages = counted(strategy.stage_count, "stage")
    facts = [
        ("ranks", f"{strategy.rank_count} = {stages} x {counted(strategy.device_count, 'device')}"),
        ("tensors", str(len(strategy.names))),
    ]
    print_facts([*facts, *([("written", written)] if written else [])])
    if written:
        return
    rows = [
        (stage, name, list(layout.device_matrix), _map(layout.tensor_map), _extra(layout))
        for stage, layouts in enumerate(strategy.stages)
        for name, layout in sorted(layouts.items())
    ]
    print_rows(("stage", "tensor", "device matrix", "tensor map", "besides"), rows, 0)


def _catalog_json(catalog: Catalog) -> dict[str, Any]:
    specs = [entry.spec for entry in catalog.entries]
    return {
        "url": catalog.url,
        "kind": catalog.kind,
        "objects": [
            {"key": item.key, "nbytes": item.nbytes, "etag": item.etag, "base": item.base}
            for item in catalog.objects
            if not item.fill
        ],
        "tensors": [
            {"name": spec.name, "dtype": spec.dtype.value, "shape": list(spec.shape), "nbytes": spec.nbytes}
            for spec in specs
        ],
        "metadata": dict(catalog.metadata),
        "notes": list(map(spelled, catalog.notes)),
        "header_bytes": catalog.header_bytes,
        "texts": dict(catalog.texts),
        "dropped": list(catalog.dropped),
        "training_state": dict(catalog.training_state),
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
