"""What ``plan`` says of time, money and how outputs are made; nothing of it changes the plan."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from cli.runner import ok, run
from safetensors.numpy import save

import reshard
from reshard.storage.open import provider_name


def arguments(place):
    return [place.full, place.at("ranks"), "--dst-strategy", place.strategy, "--quiet"]


def line(done, name):
    return [row.removeprefix(name).strip() for row in done.out.splitlines() if row.startswith(f"{name} ")]


def test_time_tells_what_it_assumes(memory):
    [told] = line(ok("plan", *arguments(memory)), "time")
    assert told.endswith("1 GB/s, 20 ms a request; default bandwidth and latency)")
    [told] = line(ok("plan", *arguments(memory), "--bandwidth", "800kbit/s"), "time")
    assert "limited by bandwidth" in told
    assert told.endswith("100 KB/s, 20 ms a request; default latency)")
    [told] = line(ok("plan", *arguments(memory), "--bandwidth", "2GB/s", "--latency", "3s"), "time")
    assert "limited by latency" in told
    assert told.endswith("2 GB/s, 3000 ms a request)")


def test_machines_share_the_time(memory):
    slow = [*arguments(memory), "--bandwidth", "800kbit/s"]
    [told] = line(ok("plan", *slow, "--nodes", "4"), "time")
    assert " on 4 machines (limited by steps; " in told  # there is one
    [alone] = line(ok("plan", *slow, "--nodes", "1"), "time")
    assert [alone] == line(ok("plan", *slow), "time")
    assert "machines" not in alone
    assert run("plan", *slow, "--nodes", "0").code == 2


def test_what_a_service_allows_an_account_counts(memory):
    [told] = line(ok("plan", *arguments(memory)), "time")
    assert "account" not in told
    made = reshard.plan(memory.full, memory.at("ranks"), dst_strategy=memory.strategy)
    obs = replace(made, conversion=replace(made.conversion, target_url="s3://bucket/ranks"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "https://obs.cn-north-4.myhuaweicloud.com")
        [account] = reshard.estimate(obs).speeds.accounts
    assert (account.bytes_s, account.has_source, account.has_target) == (2e9, False, True)


def test_money_by_a_table(memory):
    [told] = line(ok("plan", *arguments(memory)), "money")
    assert told == "nothing (no list prices for self-hosted stores)"
    [told] = line(ok("plan", *arguments(memory), "--price-table", "aws-us-east-1"), "money")
    assert told.startswith("USD ")
    assert "egress 0 (AWS S3 Standard, us-east-1, prices of 20" in told
    assert told.endswith("if this machine is outside the source's region)")
    outside = ok("plan", *arguments(memory), "--price-table", "aws-us-east-1", "--egress", "internet")
    assert "egress 0 " not in line(outside, "money")[0]


def prices(**changes):
    kinds = ("get", "put", "copy", "list", "internet", "region")
    table = {"title": "Ours", "currency": "EUR", "prices": {kind: {"price": 1000} for kind in kinds}}
    return json.dumps({"format": "reshard-prices/1", "tables": {"ours": table | changes}}).encode()


def test_money_by_ones_own_prices(memory):
    own = memory.put("prices.json", prices())
    done = ok("plan", *arguments(memory), "--prices", own, "--output", "json")
    estimate = done.json["estimate"]
    requests = estimate["requests"]
    charged = sum(count for kind, count in requests.items() if kind != "delete")
    assert sum(bill["requests"] for bill in estimate["bills"]) == pytest.approx(charged)
    assert list(estimate["total"]) == ["EUR"]
    assert "EUR" in line(ok("plan", *arguments(memory), "--prices", own), "money")[0]


def test_what_was_estimated_is_what_was_asked(memory):
    from support.recording_store import recording

    estimated = reshard.estimate(reshard.plan(memory.full, memory.at("ranks"), dst_strategy=memory.strategy)).requests
    with pytest.MonkeyPatch.context() as patch:
        made = reshard.plan(memory.full, memory.at("ranks"), dst_strategy=memory.strategy)
        opened = []
        from reshard.api import statements

        for name in ("open_source", "open_target"):
            before = getattr(statements, name)

            def counting(url, before=before):
                place = before(url)
                store = recording(place.store)
                opened.append(store)
                return type(place)(store, place.key)

            patch.setattr(statements, name, counting)
        reshard.convert(plan=made)
    asked = sum((store.figures.requests for store in opened), start=opened[0].figures.requests.__class__())
    assert asked["get"] == estimated.get
    assert asked["head"] == estimated.head
    assert asked["put"] == estimated.put
    assert asked["list"] == estimated.list


def test_prices_of_no_service_are_not_invented(memory, monkeypatch):
    monkeypatch.setattr("reshard.api.estimates.provider_name", lambda url: "Alibaba OSS")
    assert line(ok("plan", *arguments(memory)), "money") == [
        "unknown for Alibaba OSS: there is no price table; give --prices or --price-table"
    ]


def test_the_plan_stays_the_same(memory):
    plain = ok("plan", *arguments(memory), "--output", "json").json
    other = ok(
        "plan", *arguments(memory), "--output", "json", "--price-table", "aws-us-east-1", "--bandwidth", "5GB/s",
        "--egress", "internet", "--explain", "rank_0/checkpoint_0.safetensors",
    )  # fmt: skip
    beside = ("estimate", "explained")
    assert {k: v for k, v in other.json.items() if k not in beside} == {
        k: v for k, v in plain.items() if k not in beside
    }
    printed = memory.put("printed.json", other.out.encode())
    assert reshard.load_plan(printed) == reshard.load_plan(memory.put("plain.json", json.dumps(plain).encode()))
    ok("convert", "--plan", printed, "--quiet")


def test_explain_outputs_and_tensors(place):
    saved = place.at("plan.json")
    ok("plan", *arguments(place), "--out", saved)
    name = next(
        entry.spec.name for entry in reshard.load_plan(saved).catalog.entries if entry.spec.name.endswith("w1.weight")
    )
    flags = ["--explain", "rank_1/checkpoint_1.safetensors", "--explain", name]
    done = ok("plan", "--plan", saved, *flags)
    assert "output     rank_1/checkpoint_1.safetensors\n" in done.out
    assert f"tensor     {name}, " in done.out
    assert "rank_0/full.safetensors [" in done.out
    assert done.out == ok("plan", *arguments(place), *flags).out
    told = ok("plan", "--plan", saved, *flags, "--output", "json").json["explained"]
    assert [each["kind"] for each in told] == ["object", "tensor"]
    assert len(told[1]["held"]) == 4
    assert told[0]["parts"][0]["sources"][0]["object"] == "rank_0/full.safetensors"


def test_both_passes_are_told(memory):
    memory.put("columns.yaml", b'axes: {mp: 4}\nrules:\n  - {match: "*", split: [null, mp]}\n')
    weights = {"w": np.zeros((64, 64), np.float32)}
    source = memory.put("wide/model.safetensors", save(weights)).rpartition("/")[0]
    told = [source, memory.at("ranks"), "--dst-layout", memory.at("columns.yaml"), "--staging", "always", "--quiet"]
    done = ok("plan", *told)
    [read], [stage], [time], [requests] = (line(done, name) for name in ("read", "stage", "time", "requests"))
    assert read.startswith("32.0 KiB in ")
    assert "(2.000 x needed)" in read
    assert stage.startswith("of this, first 1 tensor: 16.0 KiB read and ")
    assert time.endswith("1 GB/s, 20 ms a request; default bandwidth and latency)")
    assert "in two passes (limited by latency" in time
    assert requests.endswith(" DELETE")
    body = ok("plan", *told, "--output", "json").json
    assert body["cost"]["read_bytes"] == body["estimate"]["staged"]["cost"]["read_bytes"] == 16 << 10
    assert body["estimate"]["cost"]["read_bytes"] == 32 << 10
    assert body["estimate"]["staged"]["requests"]["get"] == body["estimate"]["staged"]["cost"]["get_count"]
    done = ok("plan", *told, "--explain", "rank_1/checkpoint_1.safetensors", "--explain", "w", "--explain", "w/c/0/0")
    assert "chunk w/c/0/0 [" in done.out
    staged = line(done, "staged")
    assert len(staged) == 2
    assert all(row.startswith("w [64, 64], ") and "makes of model.safetensors [" in row for row in staged)
    assert line(done, "chunk")[0] == "w/c/0/0"


def test_explain_of_nothing(memory):
    done = run("plan", *arguments(memory), "--explain", "rank_1/checkpoint_1.safetensor")
    assert (done.code, done.out) == (2, "")
    assert "Did you mean rank_1/checkpoint_1.safetensors" in done.err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--bandwidth", "fast"], "like 1GB/s"),
        (["--bandwidth", "0"], "like 1GB/s"),
        (["--latency", "-1ms"], "like 20ms"),
        (["--latency", "20 minutes"], "like 20ms"),
        (["--latency", "50"], "Write 50ms or 50s"),
        (["--bandwidth", "200"], "Write 200MB/s"),
        (["--price-table", "aws"], "aws-us-east-1"),
    ],
    ids=" ".join,
)
def test_flags_that_make_no_sense(memory, flags, told):
    done = run("plan", *arguments(memory), *flags)
    assert (done.code, done.out) == (2, "")
    assert told in done.err


def test_prices_that_are_none(memory):
    done = run("plan", *arguments(memory), "--prices", memory.put("prices.json", prices(currency="euro")))
    assert done.code == 3
    assert "prices.json: table ours: currency: expected three capital letters" in done.err


def test_a_saved_plan_is_shown_as_it_is(memory):
    saved = memory.at("plan.json")
    shown = ok("plan", *arguments(memory), "--out", saved)
    assert ok("plan", "--plan", saved).out == "".join(
        row for row in shown.out.splitlines(keepends=True) if not row.startswith("saved")
    )
    for extra in ([memory.full], ["--memory", "1GiB"], ["--ranks", "0"]):
        done = run("plan", "--plan", saved, *extra)
        assert (done.code, "--plan cannot be combined with" in done.err) == (2, True)
    for few in ([], [memory.full]):
        assert (run("plan", *few).code, "plan needs SRC and DST" in run("plan", *few).err) == (2, True)


def test_services_by_their_urls(clean_environ):
    clean_environ.setenv("OBS_REGION", "cn-north-4")
    assert provider_name("obs://bucket/a") == "Huawei OBS"
    clean_environ.delenv("OBS_REGION")
    assert provider_name("obs://bucket/a") == "Huawei OBS"
    assert provider_name("s3://bucket/a") == "AWS S3"
    clean_environ.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    assert provider_name("s3://bucket/a") == "S3-compatible store"
    assert [provider_name(url) for url in ("file:///a", "a/b", "memory://x", "gs://b/a")] == [
        "local", "local", "memory", "gs://",
    ]  # fmt: skip
