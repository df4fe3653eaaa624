"""What stores ask for requests and traffic: tables of public list prices, and one's own.

Prices change and depend on region, contract and volume; each says where it is from and of when. Those that come with
the package are in ``prices.json``; a file of the same form goes before them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources

from ...errors import FormatError, UsageError
from ...formats.strict_json import parse_json_object, shown
from ..codec import at, fields_of, items, mapping, refused, text

_FORMAT = "reshard-prices/1"
_NAME = "prices.json"
_PRICES = ("get", "put", "copy", "list", "internet", "region")
_LARGEST = 10**6  # nobody asks more for a thousand requests or a GiB: a slip of the keyboard


@dataclass(frozen=True, slots=True)
class Price:
    """One price, and where it is from.

    Parameters
    ----------
    price
        In the table's currency.
    as_of
        The year and month it was published or looked up in.
    source
        The page that says so.
    """

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
    currency
        Like ``USD``.
    get, put, copy, list
        For 1000 requests: GETs and HEADs; PUTs, parts, and opening and completing uploads; copied parts; listings.
    internet, region
        For a GiB that leaves the store: to the internet, or to a machine in its own region.
    storage
        For a GiB kept for a month; None if the table does not say.
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
        """Since when none of its prices has been looked at; empty if nothing is said."""
        found = (self.get, self.put, self.copy, self.list, self.internet, self.region)
        return min((each.as_of for each in found if each.as_of), default="")

    @property
    def is_free(self) -> bool:
        """Whether nothing costs anything."""
        return not any(each.price for each in (self.get, self.put, self.copy, self.list, self.internet, self.region))


def parse_prices(data: bytes, where: str) -> Mapping[str, PriceTable]:
    """Read tables of prices from JSON, by name.

    Raises
    ------
    FormatError
        Not of this form; nothing is guessed or passed over.

    Examples
    --------
    >>> from reshard.planning.cost.prices import built_in_prices
    >>> built_in_prices()["aws-us-east-1"].get.price
    0.0004
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
    providers = tuple(at("providers", text, each) for each in at("providers", items, body.get("providers", [])))
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
    """The tables that come with the package."""
    return parse_prices((resources.files(__package__) / _NAME).read_bytes(), _NAME)


def choose_table(provider: str, own: Mapping[str, PriceTable], name: str | None = None) -> PriceTable | None:
    """Find the prices of a service.

    Parameters
    ----------
    provider
        The service's name, as :mod:`reshard.storage.providers` has it; ``local`` and ``memory`` are free.
    own
        Tables that go before those of the package.
    name
        Of the table to take, whatever the provider.

    Returns
    -------
    PriceTable | None
        None if no table is for this service.

    Raises
    ------
    UsageError
        There is no table of this name.

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
