"""Estimates of plans, with prices and speeds as people write them."""

from __future__ import annotations

from ..errors import ReshardError
from ..planning.cost.duration import Account, Speeds
from ..planning.cost.estimate import Estimate, estimate_plan
from ..planning.cost.prices import Payee, choose_table, parse_prices
from ..planning.cost.requests import ProofRequests, RequestCounts
from ..planning.limits import Integrity
from ..planning.plan import Plan
from ..storage import open_location, provider_behind, provider_name, read_object
from ..storage.providers import Allowance, Provider
from .assumptions import ASSUMPTIONS

_QUESTION = RequestCounts(open=1, part=2, delete=1)


def estimate(
    plan: Plan,
    *,
    bandwidth: str | float | None = None,
    latency: str | float | None = None,
    nodes: str | int | None = None,
    egress: str | None = None,
    prices: str | None = None,
    price_table: str | None = None,
) -> Estimate:
    """Estimate how long a plan takes and what it costs, its first pass included, without a request to any store.

    Parameters
    ----------
    bandwidth
        Of the line, like ``1GB/s`` or ``25Gbit/s``, or in bytes a second.
    latency
        Of a request, like ``20ms``, or in seconds.
    nodes
        Machines that would share the steps, each with the plan's processes, requests in flight and memory.
    egress
        ``region``, the default, if the machine is in the source's region; ``internet`` if outside.
    prices
        URL of a file of price tables, which take precedence over those of the package.
    price_table
        Name of the table to use for all stores; by default each store's own.

    Raises
    ------
    UsageError
        A rate or a duration that cannot be read, or an unknown table.
    FormatError
        The file of prices is not of its form.

    Examples
    --------
    >>> import reshard
    >>> from reshard.formats.safetensors import plan_header
    >>> from reshard.storage import MemoryStore
    >>> from reshard.tensor import DType, TensorSpec
    >>> header = plan_header([TensorSpec("w", DType.F16, (2, 3))], {}).data
    >>> _ = MemoryStore("doc").put("m/model.safetensors", header + bytes(12))
    >>> found = estimate(reshard.plan("memory://doc/m", "memory://doc/n"), latency="20ms")
    >>> found.time.limited_by, found.bills[0].total
    ('latency', 0.0)
    """
    given = {"bandwidth": bandwidth, "latency": latency, "nodes": nodes, "egress": egress}
    read = {name: ASSUMPTIONS[name].parse(name, value) for name, value in given.items() if value is not None}
    units = {"bandwidth": "bandwidth_bytes_s", "latency": "latency_s"}
    given_speeds = {unit: read[name] for name, unit in units.items() if name in read}
    source, target = _providers(plan)
    speeds = Speeds(**given_speeds, accounts=_accounts(source, target))
    place = None if prices is None else open_location(prices)
    own = parse_prices(read_object(place), place.url) if place else {}
    first = [plan.staging.conversion.target_url] if plan.staging else []
    providers = [provider_name(url) for url in (plan.catalog.url, plan.conversion.target_url, *first)]
    payees = [Payee(provider, choose_table(provider, own, price_table)) for provider in providers]
    proofs = _proofs(source, target, is_off=plan.limits.integrity is Integrity.OFF)
    return estimate_plan(plan, speeds, payees, read.get("egress", "region"), proofs, read.get("nodes", 1))


def _providers(plan: Plan) -> tuple[Provider | None, Provider | None]:
    """Return the services of a plan's source and target."""
    try:
        return provider_behind(plan.catalog.url), provider_behind(plan.conversion.target_url)
    except ReshardError:  # a saved plan can be shown where its stores cannot be reached
        return None, None


def _accounts(source: Provider | None, target: Provider | None) -> tuple[Account, ...]:
    """Return what the services allow; both sides are taken to be of one account where they are of one service."""
    limited = [each for each in dict.fromkeys((source, target)) if each is not None and each.allowance != Allowance()]
    return tuple(
        Account(allows.bytes_s, allows.gets_s, allows.puts_s, has_source=each is source, has_target=each is target)
        for each, allows in ((each, each.allowance) for each in limited)
    )


def _proofs(source: Provider | None, target: Provider | None, *, is_off: bool) -> ProofRequests:
    """Count what the services of a plan are asked for proofs."""
    return ProofRequests(
        heads_per_put=int(is_off) if target else 0,
        heads_per_upload=2 if target else 0,
        # What is put down of the run itself is checked always.
        question=_QUESTION if target and target.upload_check == "asked" else RequestCounts(),
        gets_per_object=1 if source and source.upload_check == "crc32c" and not is_off else 0,
    )
