"""Prices of requests and traffic, from tables of public list prices or one's own, and bills by them.

Prices change and depend on region, contract and volume; each has its source and its month. Those of the package are
in ``prices.json``; a file of the same form takes precedence.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from typing import Literal

from ...errors import FormatError, UsageError
from ...formats.strict_json import parse_json_object, shown
from ..codec import at, each_of, fields_of, mapping, refused, text

Egress = Literal["region", "internet"]
"""Where the machine that converts is, seen from the source: in its region, or outside."""

_GIB = 1 << 30
_FORMAT = "reshard-prices/1"
_NAME = "prices.json"
_PRICES = ("get", "put", "copy", "list", "internet", "region")
_LARGEST = 10**6  # nobody asks more for a thousand requests or a GiB: a slip of the keyboard


@dataclass(frozen=True, slots=True)
class Price:
    """One price in the table's currency, the page that states it, and year and month of its publication or look-up."""

    price: float
    as_of: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class PriceTable:
    """The prices of one service in one region.

    Parameters
    ----------
    name, title
        For flags, and for people.
    get, put, copy, list
        For 1000 requests: GETs and HEADs; PUTs, parts, and opening and completing uploads; copied parts; listings.
    internet, region
        For a GiB that leaves the store: to the internet, or to a machine in its own region.
    storage
        For a GiB kept for a month; None if the table has no such price.
    providers
        Names of the services that these are the prices of; empty for any.
    """

    name: str
    title: str
    currency: str
    get: Price
    put: Price
    copy: Price
    list: Price
    internet: Price
    region: Price
    storage: Price | None = None
    providers: tuple[str, ...] = ()

    @property
    def as_of(self) -> str:
        """The month of its oldest price; empty if none has one."""
        return min((price.as_of for kind in _PRICES if (price := getattr(self, kind)).as_of), default="")

    @property
    def is_free(self) -> bool:
        """Whether nothing costs anything."""
        return not any(getattr(self, kind).price for kind in _PRICES)


def parse_prices(data: bytes, where: str) -> Mapping[str, PriceTable]:
    """Read tables of prices from JSON, by name; FormatError for any other form: nothing is guessed or passed over.

    Examples
    --------
    >>> parse_prices(b'{"format": "reshard-prices/1", "tables": {}}', "p.json")
    Traceback (most recent call last):
    ...
    reshard.errors.FormatError: p.json: tables: expected at least one
    """
    body = parse_json_object(data, where)
    try:
        found = fields_of(body, ("format", "tables"))
        if found["format"] != _FORMAT:
            raise refused(_FORMAT, found["format"], "format")
        tables = at("tables", mapping, found["tables"])
        if not tables:
            raise FormatError("", where="tables", expected="at least one")
        return {name: at(f"table {name}", partial(_table, name), value) for name, value in tables.items()}
    except FormatError as error:
        raise error.at(where) from None


def _table(name: str, value: object) -> PriceTable:
    body = fields_of(value, ("title", "currency", "prices"), ("providers",))
    prices = at("prices", lambda value: fields_of(value, _PRICES, ("storage",)), body["prices"])
    found = {kind: at(kind, _price, each) for kind, each in prices.items()}
    providers = tuple(at("providers", lambda value: each_of(value, text), body.get("providers", [])))
    title, currency = at("title", text, body["title"]), at("currency", text, body["currency"])
    if not (len(currency) == 3 and currency.isascii() and currency.isupper()):
        raise refused("three capital letters, like USD", currency, "currency")
    return PriceTable(name, title or name, currency, providers=providers, **found)


def _price(value: object) -> Price:
    body = fields_of(value, ("price",), ("as_of", "source"))
    price = body["price"]
    if type(price) not in (int, float) or not 0 <= price <= _LARGEST or not math.isfinite(price):
        raise refused(f"a number from 0 to {_LARGEST}", price, "price")
    return Price(float(price), **{key: at(key, text, body[key]) for key in ("as_of", "source") if key in body})


@cache
def built_in_prices() -> Mapping[str, PriceTable]:
    """Return the tables of the package."""
    return parse_prices((resources.files(__package__) / _NAME).read_bytes(), _NAME)


def choose_table(provider: str, own: Mapping[str, PriceTable], name: str | None = None) -> PriceTable | None:
    """Find the prices of a service, None if no table is for it; the ``own`` ones precede those of the package.

    ``provider`` is its name as :mod:`reshard.storage.providers` has it; ``local`` and ``memory`` are free. ``name`` is
    that of the table to use, whatever the provider. Raise UsageError if there is no such table.

    Examples
    --------
    >>> choose_table("Huawei OBS", {}).currency, choose_table("Tencent COS", {})
    ('CNY', None)
    """
    tables = {**own, **{key: table for key, table in built_in_prices().items() if key not in own}}
    if name is not None:
        if name not in tables:
            near = difflib.get_close_matches(name, tables, n=1) or sorted(tables)
            raise UsageError(f"no price table is called {shown(name)}", hint=f"There is {', '.join(near)}.")
        return tables[name]
    return next((table for table in tables.values() if not table.providers or provider in table.providers), None)


@dataclass(frozen=True, slots=True)
class Payee:
    """A store that may charge: the service's name, and its prices if any are known."""

    provider: str
    table: PriceTable | None


@dataclass(frozen=True, slots=True)
class Charge:
    """Items of one store's bill: requests by the kinds that have a price, bytes that leave it, bytes that it keeps."""

    get: int = 0
    put: int = 0
    copy: int = 0
    list: int = 0
    sent_bytes: int = 0
    kept_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Bill:
    """The bill of one store for a conversion, in its table's currency.

    Parameters
    ----------
    side
        ``source``, ``target`` or ``staging``, where chunks are between two passes.
    table, title, currency, as_of
        The prices; the table is empty and all amounts 0 where none are known.
    requests, egress, egress_outside
        For all requests; for the bytes that leave the store, to where the machine is assumed to be; and the same if
        it is outside the region.
    storage_month
        For keeping the outputs, a month; None where the table has no price.
    """

    side: str
    provider: str
    table: str
    title: str
    currency: str
    as_of: str
    requests: float
    egress: float
    egress_outside: float
    storage_month: float | None

    @property
    def is_known(self) -> bool:
        """Whether there are prices."""
        return bool(self.table)

    @property
    def total(self) -> float:
        """Requests and egress."""
        return self.requests + self.egress


def bill(side: str, payee: Payee, charge: Charge, egress: Egress) -> Bill:
    """Make out the bill of one store."""
    table = payee.table
    if table is None:
        return Bill(side, payee.provider, "", "", "", "", 0.0, 0.0, 0.0, None)
    requests = sum(getattr(charge, kind) / 1000 * getattr(table, kind).price for kind in ("get", "put", "copy", "list"))
    sent = charge.sent_bytes / _GIB
    outside, here = sent * table.internet.price, sent * (table.internet if egress == "internet" else table.region).price
    kept = charge.kept_bytes / _GIB * table.storage.price if table.storage else None
    prices = table.name, table.title, table.currency, table.as_of
    return Bill(side, payee.provider, *prices, requests, here, outside, kept)


def total_money(bills: Sequence[Bill]) -> Mapping[str, float]:
    """Add up requests and egress of several bills, by currency.

    Examples
    --------
    >>> total_money([Bill("source", "", "t", "", "USD", "", 0.25, 0.5, 0.5, None)])
    {'USD': 0.75}
    """
    total: dict[str, float] = {}
    for bill in bills:
        if bill.is_known:
            total[bill.currency] = total.get(bill.currency, 0.0) + bill.total
    return total
