"""reshard: model checkpoints in object stores, converted to other layouts without staging a byte on local disk.

Four statements do it all; the command line has the same four:

- :func:`inspect` reads headers and describes the checkpoint at a URL,
- :func:`plan` decides how to convert it, without moving a tensor byte; :func:`estimate` and :func:`explain` show
  what that takes and costs, and how each output is made,
- :func:`convert` carries that out, streaming,
- :func:`verify` compares outputs with sources, bit for bit.
"""

from typing import TYPE_CHECKING

from .doors import lazy_names as _lazy_names

if TYPE_CHECKING:
    from .api.contents import inspect as inspect
    from .api.estimates import estimate as estimate
    from .api.file_system import filesystem as filesystem
    from .api.loads import load as load
    from .api.statements import convert as convert
    from .api.statements import load_plan as load_plan
    from .api.statements import plan as plan
    from .api.statements import verify as verify
    from .api.zarr_groups import open_zarr as open_zarr
    from .engine.events import Answered as Answered
    from .engine.events import Event as Event
    from .engine.events import Noted as Noted
    from .engine.events import PhaseStarted as PhaseStarted
    from .engine.events import Progress as Progress
    from .engine.events import Waiting as Waiting
    from .engine.manifest import Manifest as Manifest
    from .engine.manifest import ObjectReceipt as ObjectReceipt
    from .engine.verification import Report as Report
    from .errors import ReshardError as ReshardError
    from .jobs.training_load import load_for as load_for
    from .planning.catalog import Catalog as Catalog
    from .planning.cost.estimate import Estimate as Estimate
    from .planning.explain import ObjectExplanation as ObjectExplanation
    from .planning.explain import TensorExplanation as TensorExplanation
    from .planning.explain import explain as explain
    from .planning.limits import Limits as Limits
    from .planning.plan import Plan as Plan

__version__ = "0.1.0"

_MODULES = {
    "api.contents": ["inspect"],
    "api.estimates": ["estimate"],
    "api.file_system": ["filesystem"],
    "api.loads": ["load"],
    "api.statements": ["convert", "load_plan", "plan", "verify"],
    "api.zarr_groups": ["open_zarr"],
    "engine.events": ["Answered", "Event", "Noted", "PhaseStarted", "Progress", "Waiting"],
    "engine.manifest": ["Manifest", "ObjectReceipt"],
    "engine.verification": ["Report"],
    "errors": ["ReshardError"],
    "jobs.training_load": ["load_for"],
    "planning.catalog": ["Catalog"],
    "planning.cost.estimate": ["Estimate"],
    "planning.explain": ["ObjectExplanation", "TensorExplanation", "explain"],
    "planning.limits": ["Limits"],
    "planning.plan": ["Plan"],
}
__all__ = sorted(name for names in _MODULES.values() for name in names)

if not TYPE_CHECKING:
    __getattr__ = _lazy_names(__name__, _MODULES)
