"""From a catalog and a target to a plan: a value that tells everything a conversion will do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from .catalog import Catalog
from .cost import Cost, count_cost
from .groups import form_groups
from .limits import Limits
from .memory import Buffers, share_memory
from .steps import Group, Recipe, Step, group_steps
from .target import Document, Output, Target, TargetTensor, check_outputs, tensors_of

__all__ = ["MANIFEST_KEY", "Plan", "make_plan"]

MANIFEST_KEY = "reshard-manifest.json"


@dataclass(frozen=True)
class Plan:
    """A conversion, decided: recipe, cuts and cost. Steps are derived when wanted.

    Parameters
    ----------
    catalog
        The source.
    target, target_url
        What is made of it, and where.
    limits
        As used: what the memory did not allow has been lowered.
    groups
        Which outputs are written together and where they are cut.
    cost
        Counted from the steps.
    notes
        What a person should know before starting.
    manifest_key
        Of the manifest, counted from the target's URL.
    """

    catalog: Catalog
    target: Target
    target_url: str
    limits: Limits
    groups: tuple[Group, ...]
    cost: Cost
    notes: tuple[str, ...]
    manifest_key: str = MANIFEST_KEY

    @cached_property
    def tensors(self) -> tuple[TargetTensor, ...]:
        """Every tensor of the target, whole."""
        return tensors_of(self.catalog)

    @cached_property
    def outputs(self) -> tuple[Output, ...]:
        """Every distinct object of the target."""
        return self.target.outputs(self.tensors, self.catalog.metadata)

    @cached_property
    def documents(self) -> tuple[Document, ...]:
        """Indices that are written beside the outputs."""
        return self.target.documents(self.outputs, self.tensors)

    @property
    def recipe(self) -> Recipe:
        """What steps are derived from."""
        return Recipe(self.catalog, self.tensors, self.outputs, self.limits)

    @property
    def buffers(self) -> Buffers:
        """How the memory is shared out."""
        return share_memory(self.limits)

    @property
    def keys(self) -> tuple[str, ...]:
        """Every object that will be written but the manifest, counted from the target's URL."""
        return tuple(key for output in self.outputs for key in output.keys) + tuple(d.key for d in self.documents)

    def steps(self, group: int) -> Iterator[Step]:
        """Derive the steps of one group, in order."""
        return group_steps(self.recipe, group, self.groups[group])


def make_plan(
    catalog: Catalog,
    target: Target,
    target_url: str,
    limits: Limits,
    manifest_key: str = MANIFEST_KEY,
) -> Plan:
    """Decide how to make a target of a source, or refuse.

    Parameters
    ----------
    catalog
        What the source holds.
    target
        What to make.
    target_url
        Where outputs' keys count from.
    limits
        Memory, concurrency and what the target's store accepts.

    Returns
    -------
    Plan
        The same inputs always give the same plan.

    Raises
    ------
    StrategyError
        Layouts do not fit the tensors.
    OverBudget
        The memory limit is too small; the error tells the number that would do.
    PlanError
        Two outputs would have one key.
    """
    buffers = share_memory(limits)
    tensors = tensors_of(catalog)
    outputs = target.outputs(tensors, catalog.metadata)
    documents = target.documents(outputs, tensors)
    check_outputs(outputs, documents, limits.max_object_bytes)
    recipe = Recipe(catalog, tensors, outputs, buffers.limits)
    groups = form_groups(recipe, _families(outputs), buffers)
    cost = count_cost(recipe, groups, documents, buffers)
    return Plan(
        catalog,
        target,
        target_url,
        buffers.limits,
        groups,
        cost,
        (*catalog.notes, *target.notes(tensors)),
        manifest_key,
    )


def _families(outputs: tuple[Output, ...]) -> list[list[int]]:
    """Outputs of the same tensors (one pipeline stage's ranks), which may share bytes."""
    families: dict[tuple[int, ...], list[int]] = {}
    for index, output in enumerate(outputs):
        families.setdefault(output.tensors, []).append(index)
    return list(families.values())
