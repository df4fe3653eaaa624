"""Plans for tests, from what a conversion is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reshard.planning.catalog import Catalog
from reshard.planning.change import NO_CHANGE, Change, make_tensors
from reshard.planning.conversion import MANIFEST_KEY, Conversion
from reshard.planning.limits import Limits
from reshard.planning.outputs.output import Attachment, TargetTensor
from reshard.planning.plan import Plan, make_plan
from reshard.planning.targets.target import Target


def tensors_of(catalog: Catalog) -> tuple[TargetTensor, ...]:
    """The tensors of a source, unchanged."""
    return make_tensors(catalog, {}, NO_CHANGE).tensors


def plan_for(
    catalog: Catalog,
    target: Target,
    target_url: str,
    limits: Limits,
    manifest_key: str = MANIFEST_KEY,
    renamed: Mapping[str, str] | None = None,
    change: Change = NO_CHANGE,
    attachments: Sequence[Attachment] = (),
    copy_bases: Sequence[int] = (),
) -> Plan:
    conversion = Conversion(catalog, target, target_url, manifest_key, renamed or {}, change, tuple(attachments))
    return make_plan(conversion, limits, copy_bases)


def without_staging(plan: Plan) -> Plan:
    """Return the same conversion in one pass; it writes the same objects."""
    if plan.staging is None:
        return plan
    bases = [base for base in plan.copy_bases if base < len(plan.catalog.others)]
    return make_plan(plan.conversion, plan.limits, bases)
