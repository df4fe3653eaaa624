"""reshard: model checkpoints in object stores, turned into other layouts without staging a byte on disk.

Four statements do it all; the command line is the same four:

- :func:`inspect` reads headers and tells what a URL holds,
- :func:`plan` decides how to convert it, without moving a tensor byte; :func:`estimate` and :func:`explain` tell
  what that takes and costs, and how each output is made,
- :func:`convert` carries that out, streaming,
- :func:`verify` compares outputs with sources, bit for bit.
"""

from .api import convert, estimate, explain, inspect, load_plan, plan, verify
from .engine.events import Event, Noted, PhaseStarted, Progress
from .engine.manifest import Manifest, Receipt
from .engine.verify import Report
from .errors import ReshardError
from .planning.catalog import Catalog
from .planning.cost.estimate import Estimate
from .planning.explain import ObjectExplanation, TensorExplanation
from .planning.limits import Limits
from .planning.plan import Plan

__version__ = "0.1.0"

__all__ = [
    "Catalog",
    "Estimate",
    "Event",
    "Limits",
    "Manifest",
    "Noted",
    "ObjectExplanation",
    "PhaseStarted",
    "Plan",
    "Progress",
    "Receipt",
    "Report",
    "ReshardError",
    "TensorExplanation",
    "convert",
    "estimate",
    "explain",
    "inspect",
    "load_plan",
    "plan",
    "verify",
]
