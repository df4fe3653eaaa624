"""Price tables: those of the package, one's own, and what is no price table."""

import json

import pytest

from reshard.errors import FormatError, UsageError
from reshard.planning.cost.prices import built_in_prices, choose_table, parse_prices
from reshard.storage.providers import PROVIDERS

KINDS = ("get", "put", "copy", "list", "internet", "region")


def tables(**changes):
    table = {"title": "Mine", "currency": "EUR", "prices": {kind: {"price": 1} for kind in KINDS}} | changes
    return {"format": "reshard-prices/1", "tables": {"mine": table}}


def parsed(body):
    return parse_prices(json.dumps(body).encode(), "p.json")


def test_every_price_of_the_package_says_where_it_is_from():
    for table in built_in_prices().values():
        if table.is_free:
            continue
        assert table.storage is not None
        for kind in (*KINDS, "storage"):
            price = getattr(table, kind)
            assert price.source, (table.name, kind)
            assert len(price.as_of) == len("2026-11")


def test_tables_are_of_providers_that_exist():
    known = {row.name for row in PROVIDERS} | {"local", "memory"}
    for table in built_in_prices().values():
        assert table.providers
        assert set(table.providers) <= known


def test_a_providers_table_is_found_and_none_is_invented():
    assert choose_table("AWS S3", {}).name == "aws-us-east-1"
    assert choose_table("S3-compatible store", {}).is_free
    assert choose_table("Alibaba OSS", {}) is None
    assert choose_table("gs://", {}) is None
    assert choose_table("gs://", {}, "obs-cn-north-4").currency == "CNY"


def test_ones_own_tables_go_first():
    own = parsed(tables(providers=["AWS S3"]))
    assert choose_table("AWS S3", own).name == "mine"
    assert choose_table("Huawei OBS", own).name == "obs-cn-north-4"
    assert choose_table("gs://", parsed(tables())).name == "mine"
    assert choose_table("AWS S3", own, "aws-us-east-1").name == "aws-us-east-1"


def test_an_unknown_table_tells_those_like_it():
    with pytest.raises(UsageError, match="aws-us-east-1") as refused:
        choose_table("AWS S3", {}, "aws-us-east-2")
    assert "aws-us-east-2" in refused.value.message


def test_the_oldest_price_dates_a_table():
    prices = {kind: {"price": 1, "as_of": f"2026-{number:02d}"} for number, kind in enumerate(KINDS, start=3)}
    assert parsed(tables(prices=prices))["mine"].as_of == "2026-03"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "wrong keys"),
        ({"format": "reshard-prices/2", "tables": {}}, "reshard-prices/1"),
        ({"format": "reshard-prices/1", "tables": {}}, "at least one"),
        ({"format": "reshard-prices/1", "tables": []}, "an array"),
        (tables(currency="euro"), "like USD"),
        (tables(currency=3), "a string"),
        (tables(providers="AWS S3"), "an array"),
        (tables(prices={"get": {"price": 1}}), "wrong keys"),
        (tables(prices=dict.fromkeys(KINDS, 1)), "table mine: get"),
        (tables(colour="red"), "colour"),
        *(
            (tables(prices={kind: {"price": price} for kind in KINDS}), "a number from 0")
            for price in (-1, 10**7, "1", True, None)
        ),
    ],
)
def test_what_is_no_price_table_is_refused(body, told):
    with pytest.raises(FormatError, match=r"^p\.json: ") as refused:
        parsed(body)
    assert told in str(refused.value)


@pytest.mark.parametrize("text", [b"", b"[]", b'{"format": "x", "format": "y"}', b'{"a": NaN}', b"\xff"])
def test_broken_json_is_refused(text):
    with pytest.raises(FormatError, match=r"p\.json"):
        parse_prices(text, "p.json")
