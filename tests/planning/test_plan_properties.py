"""Any plan whatever makes every byte once, of the right byte, within its limits."""

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.checkpoints import catalog_of_objects, catalog_of_ranks
from support.plan_checker import check_plan
from support.random_plans import cases, full_targets, limits, object_shares, rank_shares, rank_targets

from reshard.errors import OverBudget, PlanError
from reshard.planning.plan import make_plan

# Plans take a while to draw and to check, and how long depends on the machine.
slow = settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def checked(catalog, target, wished):
    """Check the plan, or the refusal and then the plan that it says would be accepted."""
    try:
        plan = make_plan(catalog, target, "memory://target", wished)
    except OverBudget as refusal:
        assert refusal.needed_bytes > wished.memory_bytes
        plan = make_plan(catalog, target, "memory://target", replace(wished, memory_bytes=refusal.needed_bytes))
    except PlanError:
        assert wished.max_part_count < 10_000
        return
    check_plan(plan)


@slow
@given(st.data(), cases(1), limits())
def test_full_to_ranks(data, case, wished):
    catalog = catalog_of_objects(data.draw(object_shares(case.model)))
    checked(catalog, data.draw(rank_targets(case.strategies[0])), wished)


@slow
@given(st.data(), cases(1), limits())
def test_ranks_to_full(data, case, wished):
    [strategy] = case.strategies
    catalog = catalog_of_ranks(data.draw(rank_shares(case.model, strategy)), strategy)
    checked(catalog, data.draw(full_targets()), wished)


@slow
@given(st.data(), cases(2), limits())
def test_ranks_to_ranks(data, case, wished):
    source, target = case.strategies
    catalog = catalog_of_ranks(data.draw(rank_shares(case.model, source)), source)
    checked(catalog, data.draw(rank_targets(target)), wished)


@slow
@given(st.data(), cases(1), limits())
def test_full_to_full(data, case, wished):
    catalog = catalog_of_objects(data.draw(object_shares(case.model)))
    checked(catalog, data.draw(full_targets()), wished)
