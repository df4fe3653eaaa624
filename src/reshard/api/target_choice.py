"""Targets of requests: their place and their form."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UsageError, option
from ..formats.containers import Container
from ..formats.mindspore.iteration import CommonValue
from ..formats.mindspore.rank_names import SavedAt, resumable
from ..planning.limits import Limits
from ..planning.targets.full_target import FullTarget, PartsTarget
from ..planning.targets.iteration_target import IterationTarget
from ..planning.targets.rank_target import RankTarget
from ..planning.targets.serving_target import ServingTarget
from ..planning.targets.sharded_target import ShardedTarget
from ..planning.targets.target import Target
from ..planning.targets.zarr_target import ZarrTarget
from ..storage import Location, open_target, open_target_object
from ..tensor import Strategy
from .request import Request

_DEFAULT_PREFIX = "checkpoint_"


def target_place(request: Request) -> tuple[Location, str | None]:
    """Open where outputs' keys count from, with the name of the single object if the target is one."""
    if request.names_object:
        return open_target_object(request.dst.rstrip("/"))
    base = open_target(request.dst)
    if _is_called_zarr(base, request) and (request.is_sharded or request.prefix):
        raise UsageError(
            f"{request.dst}: a zarr store holds a full checkpoint, but rank shards are requested",
            hint="Choose a target whose name does not end in .zarr.",
        )
    return base, None


def choose_target(
    request: Request,
    place: tuple[Location, str | None],
    strategy: Strategy | None,
    limits: Limits,
    training_state: Mapping[str, CommonValue],
    saved_at: SavedAt | None = None,
) -> Target:
    """Choose the form of the target at a place that :func:`target_place` opened; without a strategy it is full.

    ``saved_at`` is when the source was saved, if ranks shall tell training so.
    """
    if strategy is None:
        return _full_target(request, place, limits)
    if request.form == "iteration":
        return _iteration_target(request, strategy, training_state)
    if request.form == "dcp":
        return ShardedTarget(strategy)
    if request.form == "vllm":
        return ServingTarget(strategy, _ranks(request, strategy.rank_count), "model-rank-{rank}-part-0.safetensors")
    container = Container(request.format or Container.SAFETENSORS)
    name, ranks = f"rank_{{rank}}/{_rank_name(request.prefix, container)}", _ranks(request, strategy.rank_count)
    return RankTarget(strategy, ranks, name, container, request.remove_redundancy, saved_at)


def promised_point(request: Request) -> SavedAt | None:
    """Return epoch and step in the names of ranks' objects, if training finds such names to resume from."""
    return resumable(_rank_name(request.prefix, Container(request.format or Container.SAFETENSORS)))


def _full_target(
    request: Request, place: tuple[Location, str | None], limits: Limits
) -> FullTarget | PartsTarget | ZarrTarget:
    base, name = place
    if request.form == "zarr" or (name is None and _is_called_zarr(base, request)):
        return ZarrTarget(request.part_size or limits.chunk_bytes)
    if request.form == "mindspore":
        return PartsTarget(request.part_size or limits.mindspore_part_bytes)
    object_bytes = request.part_size or limits.object_bytes
    container = next((each for each in Container if name and name.endswith(each.suffix)), None)
    container = container or Container(request.format or Container.SAFETENSORS)
    if name is None and request.prefix is not None:
        name = f"rank_0/{_rank_name(request.prefix, container).format(rank=0)}"
        return FullTarget(name, name, "", "ms", object_bytes, container)
    if name is None and container is Container.CKPT:
        name = "model.ckpt"
    if name is not None:
        return FullTarget(name, name, "", "pt", object_bytes, container)
    names = "model-{part:05d}-of-{parts:05d}.safetensors", "model.safetensors", "model.safetensors.index.json"
    return FullTarget(*names, "pt", object_bytes)


def _is_called_zarr(base: Location, request: Request) -> bool:
    """Whether the target's name alone asks for zarr."""
    return base.key.endswith(".zarr") and not (request.form or request.format)


def _iteration_target(
    request: Request, strategy: Strategy, training_state: Mapping[str, CommonValue]
) -> IterationTarget:
    iteration, prefix = request.iteration, request.prefix or ""
    if iteration is None:
        step = training_state.get("global_step")
        if type(step) is not int or step < 0:
            raise UsageError(
                "The iteration is unknown: the source has no global_step", hint=f"Give it: {option('iteration', 'N')}."
            )
        iteration = step
    if "/" in prefix:
        raise UsageError(f"{option('prefix', prefix)}: expected the start of a name, without /")
    return IterationTarget(strategy, iteration, prefix, request.remove_redundancy, training_state)


def _ranks(request: Request, rank_count: int) -> tuple[int, ...]:
    if request.ranks is None:
        return tuple(range(rank_count))
    last = max(span.stop for span in request.ranks) - 1
    if last >= rank_count:
        raise UsageError(
            f"{option('ranks')} names rank {last}: expected some of 0..{rank_count - 1}, those of the target strategy"
        )
    return tuple(sorted({rank for span in request.ranks for rank in span}))


def _rank_name(prefix: str | None, container: Container) -> str:
    """Return the name of a rank's object, ``{rank}`` standing for its number."""
    name = _DEFAULT_PREFIX if prefix is None else prefix
    rest = name.replace("{rank}", "")
    if "/" in rest or "{" in rest or "}" in rest or rest.startswith("."):
        raise UsageError(
            f"{option('prefix', prefix)}: expected the start of a name, with no /, no leading dot and no braces "
            "but {rank}"
        )
    if any(name.endswith(each.suffix) for each in Container if each is not container):
        raise UsageError(f"{option('prefix', prefix)}: expected a name that ends in {container.suffix}, or its start")
    if name.endswith(container.suffix):
        return name
    return f"{name if '{rank}' in name else name + '{rank}'}{container.suffix}"
