"""What a plan comes to and how its bytes are made, with prices and speeds as people write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..engine.sources.strategy_files import read_object
from ..errors import ReshardError, UsageError
from ..planning.cost.estimate import Egress, Estimate, Speeds
from ..planning.cost.passes import Payee, estimate_plan
from ..planning.cost.prices import PriceTable, choose_table, parse_prices
from ..planning.explain import Explanation
from ..planning.explain import explain as _explain
from ..planning.plan import Plan
from ..storage import LocalStore, MemoryStore, open_location, unwrapped

_RATE_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}
_DURATION_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What an estimate is made with, as people write it; what is left out is as :class:`Speeds` has it.

    Parameters
    ----------
    bandwidth
        Like ``1GB/s`` or ``25Gbit/s``, or bytes a second.
    latency
        Like ``20ms``, or seconds.
    egress
        ``region``, the default, if the machine stands in the source's region; ``internet`` if outside.
    prices
        URL of a file of price tables, which go before those of the package.
    price_table
        Name of the table to take for both stores; by default each store's own.
    """

    bandwidth: str | float | None = None
    latency: str | float | None = None
    egress: str | None = None
    prices: str | None = None
    price_table: str | None = None

    def speeds(self) -> Speeds:
        """Bandwidth and latency, read."""
        given: dict[str, float] = {}
        if self.bandwidth is not None:
            given["bandwidth_bytes_s"] = parse_rate(self.bandwidth)
        if self.latency is not None:
            given["latency_s"] = parse_duration(self.latency)
        return Speeds(**given)  # type: ignore[arg-type]

    def where(self) -> Egress:
        """Where the machine stands."""
        if self.egress in (None, "region"):
            return "region"
        if self.egress == "internet":
            return "internet"
        raise UsageError(f"--egress {self.egress}: expected region or internet")

    def tables(self) -> Mapping[str, PriceTable]:
        """The user's own price tables."""
        if self.prices is None:
            return {}
        place = open_location(self.prices)
        return parse_prices(read_object(place), place.url)


def parse_rate(rate: str | float) -> float:
    """Read bytes a second.

    Raises
    ------
    UsageError
        Not a number of bytes a second, and no text of a number with a known unit.

    Examples
    --------
    >>> parse_rate("1GB/s"), parse_rate("25 Gbit/s"), parse_rate("512MiB/s"), parse_rate(2e9)
    (1000000000.0, 3125000000.0, 536870912.0, 2000000000.0)
    """
    match = re.fullmatch(
        r"\s*([0-9]{1,18}(?:\.[0-9]+)?(?:e[+]?[0-9]{1,2})?)\s*([KMGT]?i?)(B|bit)?(?:/s|ps)?\s*",
        str(rate),
        re.IGNORECASE,
    )
    if not match or match[2].upper() not in _RATE_UNITS or not float(match[1]):
        raise UsageError(f"rate {rate!r}: expected bytes or bits a second, like 1GB/s, 500MiB/s or 25Gbit/s")
    if isinstance(rate, str) and not match[3]:
        unit = match[2] or "M"
        raise UsageError(f"rate {rate!r}: of what?", hint=f"Write {match[1]}{unit}B/s or {match[1]}{unit}bit/s.")
    bits = 8 if (match[3] or "").lower() == "bit" else 1
    return float(match[1]) * _RATE_UNITS[match[2].upper()] / bits


def parse_duration(duration: str | float) -> float:
    """Read seconds.

    Raises
    ------
    UsageError
        Not a number of seconds, and no text of a number with a known unit.

    Examples
    --------
    >>> parse_duration("20ms"), parse_duration("0.5 s"), parse_duration(0)
    (0.02, 0.5, 0.0)
    """
    match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]+)?)\s*(us|ms|s)?\s*", str(duration))
    if not match:
        raise UsageError(f"duration {duration!r}: expected a number with us, ms or s, like 20ms")
    if isinstance(duration, str) and not match[2] and float(match[1]):
        raise UsageError(f"duration {duration!r}: seconds or milliseconds?", hint=f"Write {match[1]}ms or {match[1]}s.")
    return float(match[1]) * _DURATION_UNITS[match[2] or "s"]


def provider_name(url: str) -> str:
    """Name the service behind a URL, for a price table; a scheme if it is none that prices could be known of.

    Examples
    --------
    >>> provider_name("memory://lab/a"), provider_name("models/llama"), provider_name("gs://bucket/a")
    ('memory', 'local', 'gs://')
    """
    scheme = url.partition("://")[0].lower() + "://" if "://" in url else ""
    if scheme not in ("", "file://", "memory://", "s3://", "obs://"):
        return scheme
    try:
        store = unwrapped(open_location(url).store)
    except ReshardError:  # a saved plan can be looked at where its stores cannot be reached
        return "Huawei OBS" if scheme == "obs://" else scheme
    if isinstance(store, LocalStore | MemoryStore):
        return "memory" if isinstance(store, MemoryStore) else "local"
    from ..storage.s3 import S3Store  # loaded by now

    return store.settings.provider.name if isinstance(store, S3Store) else scheme


def estimate(
    plan: Plan,
    *,
    bandwidth: str | float | None = None,
    latency: str | float | None = None,
    egress: str | None = None,
    prices: str | None = None,
    price_table: str | None = None,
) -> Estimate:
    """Tell how long a plan would take and what it would cost, its first pass included; asks no store anything.

    Parameters
    ----------
    bandwidth, latency, egress, prices, price_table
        See :class:`Assumptions`.

    Raises
    ------
    UsageError
        A rate, a duration or the name of a table that is none.
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
    given = Assumptions(bandwidth, latency, egress, prices, price_table)
    speeds, where, own = given.speeds(), given.where(), given.tables()
    urls = (
        plan.catalog.url,
        plan.conversion.target_url,
        *([plan.staging.conversion.target_url] if plan.staging else []),
    )
    providers = [provider_name(url) for url in urls]
    payees = [Payee(provider, choose_table(provider, own, price_table)) for provider in providers]
    return estimate_plan(plan, speeds, payees, where)


def explain(plan: Plan, name: str) -> Explanation:
    """Tell how an object or a tensor of the target is made: which of its bytes are copied or streamed, from where.

    Parameters
    ----------
    plan
        Nothing is asked of any store.
    name
        A key of the target, or a tensor's name.

    Raises
    ------
    UsageError
        The plan makes nothing of this name; the error tells what is called like it.
    """
    return _explain(plan, name)
