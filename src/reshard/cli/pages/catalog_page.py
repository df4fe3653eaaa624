"""A checkpoint as a page: its tensors as a treemap by module, dtypes, shards."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ...folding import folded
from ...planning.catalog import Catalog, Entry
from ..modules import module_rows
from ..printing import in_bytes
from ..results import catalog_facts
from ..spelling import spelled
from .document import FIND_HTML, bar_html, facts_html, list_html, make_page, section, table_html
from .packing import NameColumn, differences
from .plan_data import MOST_PLACES

_TREEMAP = f"""
<p class="tools">{FIND_HTML}</p>
<nav id="path" class="tools" aria-label="Where in the model"></nav>
<div id="treemap"></div>
<div id="tensor" aria-live="polite"></div>
"""
_MOST_MODULES = 400


def catalog_page(catalog: Catalog) -> str:
    """Return the page of a checkpoint."""
    specs = [entry.spec for entry in catalog.entries]
    by_dtype: Counter[str] = Counter()
    for spec in specs:
        by_dtype[spec.dtype.value] += spec.nbytes
    dtypes = [(name, float(nbytes), in_bytes(nbytes)) for name, nbytes in by_dtype.most_common()]
    modules = module_rows(specs)
    dropped = folded(catalog.dropped)
    facts = [each for each in catalog_facts(catalog) if each[0] != "note"]
    sections = [
        section("At a glance", facts_html(facts) + bar_html("Data types, by bytes", dtypes)),
        section("Tensors by module", _TREEMAP, "tensors"),
        section("Modules", table_html(("module", "tensors", "size", "dtypes"), modules[:_MOST_MODULES], len(modules))),
        section("Objects", '<div id="objects"></div>', "shards"),
        section("Notes", list_html([spelled(note) for note in catalog.notes], "None.")),
        *([section("Left out by the options", list_html(dropped, ""))] if dropped else []),
    ]
    return make_page(f"Checkpoint: {catalog.url}", sections, _data(catalog), "catalog.js")


def _data(catalog: Catalog) -> dict[str, Any]:
    kinds: dict[Any, int] = {}
    of = [
        kinds.setdefault((spec.dtype.value, spec.shape, spec.nbytes), len(kinds))
        for spec in (entry.spec for entry in catalog.entries)
    ]
    is_small = sum(len(entry.placements) for entry in catalog.entries) <= MOST_PLACES
    told = [entry.placements if is_small else entry.placements[:1] for entry in catalog.entries]
    places = [placement for placements in told for placement in placements]
    first = [placement.holders[0] if placement.holders else (-1, 0) for placement in places]
    return {
        "names": NameColumn(entry.spec.name for entry in catalog.entries).to_json(),
        "kinds": [[dtype, shape, nbytes] for dtype, shape, nbytes in kinds],
        "of": of,
        "counts": [len(placements) for placements in told] if any(len(each) != 1 for each in told) else [],
        "boxes": [[*each.box.start, *each.box.stop] for each in places] if any(map(_is_cut, catalog.entries)) else [],
        "holders": differences(holder for holder, _ in first),
        "firsts": differences(start for _, start in first),
        "copies": [len(placement.holders) for placement in places] if any(len(p.holders) > 1 for p in places) else [],
        "objects": NameColumn(item.key for item in catalog.objects).to_json(),
        "sizes": [item.nbytes for item in catalog.objects],
        "isWhole": is_small,
    }


def _is_cut(entry: Entry) -> bool:
    return len(entry.placements) > 1
