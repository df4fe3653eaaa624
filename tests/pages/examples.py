"""Pages to look at: a large model's plan and checkpoint from headers alone, and a verification that found something."""

from __future__ import annotations

import runpy
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from reshard.api.estimates import estimate
from reshard.cli.pages.catalog_page import catalog_page
from reshard.cli.pages.plan_page import plan_page
from reshard.cli.pages.report_page import report_page
from reshard.engine.verification import Report
from reshard.planning.conversion import Conversion
from reshard.planning.limits import Limits
from reshard.planning.plan import Plan, make_plan
from reshard.planning.steps.copies import REPLICAS
from reshard.planning.targets.rank_target import RankTarget

NAME = "rank_{rank}/checkpoint_{rank}.safetensors"
PLANS = Path(__file__).parents[2] / "benchmarks" / "plans.py"


@cache
def models() -> dict[str, Any]:
    """What the benchmark of plans knows of published models."""
    sys.path.append(str(PLANS.parent))  # of its neighbours
    return runpy.run_path(str(PLANS), run_name="plans")


@cache
def plan_of(model: str, parallel: str | None = None, *, copies: bool = True) -> Plan:
    """The plan of a model for its ranks, made of names, shapes and dtypes."""
    catalog, strategy, change = models()["chosen"](model, parallel)
    target = RankTarget(strategy, tuple(range(strategy.rank_count)), NAME)
    bases = (REPLICAS, 0) if copies else ()
    return make_plan(Conversion(catalog, target, "s3://models/ranks", change=change), Limits(), bases)


def plan_html(plan: Plan) -> str:
    """Its page, at AWS's prices."""
    return plan_page(plan, estimate(plan, price_table="aws-us-east-1"))


REPORT = Report(
    conversion_id="0f" * 32,
    checked_bytes=140 << 30,
    total_bytes=144 << 30,
    object_count=32,
    problems=(
        *(f"s3://models/ranks/{NAME.format(rank=rank)}: expected 4836 bytes, the object is gone" for rank in range(4)),
        f"s3://models/ranks/{NAME.format(rank=9)}: byte 1234 differs (in tensor model.norm.weight, its byte 10)",
    ),
)


@dataclass(frozen=True)
class Pages:
    """The three pages, as they are written."""

    plan: Plan

    @property
    def all(self) -> dict[str, str]:
        """Each by the command that writes it."""
        return {
            "plan": plan_html(self.plan),
            "inspect": catalog_page(self.plan.catalog),
            "verify": report_page(REPORT, "s3://models/ranks"),
        }
