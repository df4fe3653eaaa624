"""The objects that a target holds before a run: whether they may be replaced, and which must go."""

from __future__ import annotations

from collections.abc import Collection

from ..errors import FormatError, TargetExists, option, raise_all
from ..planning.conversion import MANIFEST_KEY
from ..planning.plan import Plan
from ..planning.targets import is_checkpoint_object
from ..storage import Location
from .locations import Locations
from .manifest import decode_manifest
from .sources.strategy_files import read_object


def check_target(plan: Plan, locations: Locations, *, overwrite: bool) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the etags of objects that will be replaced, by key, and the keys of objects that must go.

    An earlier conversion wrote these and this one does not: no reader may mix old and new. Raise TargetExists if
    outputs exist and must not be replaced, another checkpoint's objects are there, or the source would be removed.
    """
    target, conversion = locations.target, plan.conversion
    wanted = {*conversion.keys, conversion.manifest_key}
    scope = conversion.target.scope
    if conversion.manifest_key == MANIFEST_KEY or scope is None:
        found = {name: info.etag for name, info in target.named_objects()}
    else:  # one object, or some ranks, with a manifest of their own: what else is there is not ours to list
        found = {key: info.etag for key in wanted for info in [target.child(key).head_or_none()] if info}
    before = {key: etag for key, etag in found.items() if key in wanted}
    if before and not overwrite:
        raise TargetExists(
            f"{target.url}: {len(before)} of {len(wanted)} outputs exist already",
            problems=sorted(before),
            hint=f"Give {option('overwrite')} to replace them, or another destination.",
        )
    if scope is None:  # every object is independent of its neighbours
        return before, ()
    others = [key for key in found if key.startswith(scope) and key not in wanted]
    leftovers = tuple(sorted(_written_before(plan, target, before).intersection(others)))
    raise_all(
        TargetExists,
        f"{target.url}: another checkpoint's objects are there; readers could not tell them from the new ones",
        [key for key in others if is_checkpoint_object(key) and key not in leftovers],
        hint="Choose an empty destination, or remove them.",
    )
    read = {locations.source(item).identity for item in plan.catalog.objects}
    raise_all(
        TargetExists,
        f"{target.url}: an earlier conversion's outputs would be removed, and they are the source of this one",
        [key for key in leftovers if target.child(key).identity in read],
        hint="Choose another destination.",
    )
    return before, leftovers


def _written_before(plan: Plan, target: Location, before: Collection[str]) -> frozenset[str]:
    """Return the keys in the manifest that is about to be replaced."""
    if plan.conversion.manifest_key not in before:
        return frozenset()
    place = target.child(plan.conversion.manifest_key)
    try:
        return frozenset(receipt.key for receipt in decode_manifest(read_object(place), place.url).receipts)
    except FormatError:
        return frozenset()
