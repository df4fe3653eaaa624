"""Whatever goes wrong between a run and its store: right bytes, or an error in words; no wrong ones, and no hang."""

from __future__ import annotations

import threading
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support import fault_proxy as faults
from support.checkpoints import encode, random_model
from support.fault_proxy import Chosen, Counting, Fault, Kind, Rule, faulty
from support.s3_servers import S3Server
from support.settings import clear_settings

import reshard
from reshard.api.estimates import estimate
from reshard.engine import claim, session
from reshard.errors import Interrupted, ReshardError
from reshard.storage import Checksum, LocalStore, open_location, s3_store
from reshard.storage.checksums import crc_of
from reshard.tensor import ByteRange

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]

MODEL = random_model({**{f"block.{n}.weight": ("F32", (384, 4096)) for n in range(2)}, "norm": ("BF16", (4096,))})
LAYOUT = b'{"axes": {"mp": 2}, "rules": [{"match": "*weight", "split": [null, "mp"]}, {"match": "*", "split": []}]}'
HOW = {"memory": "32MiB", "concurrency": 2, "give_up_after": 4}
WORKLOADS: Mapping[str, Mapping[str, object]] = {
    "streamed": {"copy": "never", "staging": "never", "rename": ["block=layer"]},
    "copied": {"staging": "never"},
    "staged": {"copy": "never", "staging": "always"},
}
DEADLINE_S = 60.0
WRITES: Sequence[Kind] = ("put", "part", "copy", "create", "complete", "delete", "abort")
EVERY: Sequence[Kind] = ("get", "head", "list", *WRITES)


@dataclass(frozen=True)
class Row:
    """A fault, and the requests that it strikes: all in one run, each once, or each in a run of its own.

    With ``may_refuse`` a run may end with an error in words; else it must go on and end right.
    """

    name: str
    fault: Fault
    kinds: Sequence[Kind] = EVERY
    at_once: bool = True
    may_refuse: bool = False
    how: Mapping[str, object] | None = None


def passing(name: str, fault: Fault, kinds: Sequence[Kind] = EVERY) -> Row:
    return Row(name, fault, kinds)


def deciding(name: str, fault: Fault, kinds: Sequence[Kind] = EVERY) -> Row:
    return Row(name, fault, kinds, at_once=False, may_refuse=True)


ROWS = (
    *(
        passing(f"{number} {code}", faults.status(number, code))
        for number, code in (
            (500, "InternalError"),
            (503, "SlowDown"),
            (429, "TooManyRequests"),
        )
    ),
    # A HEAD has no body that would tell what these mean.
    passing("409 OperationAborted", faults.status(409, "OperationAborted"), ("get", "list", *WRITES)),
    passing("400 RequestTimeout", faults.status(400, "RequestTimeout"), ("get", "list", *WRITES)),
    passing("400 BadDigest", faults.status(400, "BadDigest"), ("put", "part")),
    *(passing(f"{number}, no XML", faults.status(number)) for number in (408, 429, 500, 502, 503, 504)),
    passing("reset before the request", faults.reset_before),
    passing("reset while a body is sent", faults.reset_sending, ("put", "part")),
    passing("closed without an answer", faults.closed_before),
    passing("done, and the answer lost", faults.lost_answer),
    passing("reset inside the answer", faults.reset_inside, ("get", "list", "create", "complete", "copy")),
    passing("answer cut off", faults.cut_off, ("get", "list", "create", "complete", "copy")),
    passing("answer longer than its length", faults.wrong_length(-1), ("get", "list", "create", "complete", "copy")),
    passing("answer shorter than its length", faults.wrong_length(7), ("get", "list", "create", "complete", "copy")),
    passing("bytes that are no answer", faults.garbage),
    passing("bytes of nothing inside TLS", faults.garbled, ("get", "list", "create", "complete", "copy")),
    passing("delivered twice", faults.delivered_twice, WRITES),
    passing("trickle", faults.trickling, ("get",)),
    passing("silence", faults.silent, ("get", "put", "part", "complete")),
    passing("done, and silence", faults.silent_when_done, ("get", "put", "part", "create", "complete")),
    passing("error in a 200", faults.inner_error("InternalError", is_done=False), ("complete", "copy")),
    passing("done, and an error in a 200", faults.inner_error("InternalError", is_done=True), ("complete", "copy")),
    passing("a bit of a body sent", faults.damaged_body("flip"), ("put", "part")),
    passing("the last byte of a body sent", faults.damaged_body("drop"), ("put", "part")),
    Row("a bit of a body read, --verify", faults.damaged_answer("flip"), ("get",), how={"verify": True}),
    Row(
        "the last byte of a body read, --verify", faults.damaged_answer("drop"), ("get",), True, True, {"verify": True}
    ),
    deciding("a bit of a listing", faults.damaged_answer("flip"), ("list", "list_parts", "list_uploads")),
    deciding("a stale listing", faults.stale_listing, ("list",)),
    deciding("a lying etag", faults.lying_etag, ("get", "head", "list", "put", "part", "complete", "copy")),
    deciding("404, then there", faults.status(404, "NoSuchKey")),
    deciding("403", faults.status(403, "AccessDenied")),
    deciding("412", faults.status(412, "PreconditionFailed")),
    deciding("redirect", faults.redirected),
    deciding("expired token", faults.status(400, "ExpiredToken"), ("get", "put", "part", "complete")),
)
QUICK = {
    "weed_server": ("done, and the answer lost", "502, no XML"),
    "juicefs_server": ("reset inside the answer", "done, and an error in a 200", "a lying etag"),
}


class Place:
    """A server with a source, and what a run makes of it where nothing goes wrong."""

    def __init__(self, server: S3Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.bucket = server.make_bucket(f"b-{uuid.uuid4().hex[:12]}")
        self.source = f"s3://{self.bucket}/source/hf"
        self.layout = str(folder / "layout.yaml")
        LocalStore(folder).put("layout.yaml", LAYOUT)
        with reaching(server):
            for name, data in (("model.safetensors", encode(MODEL)), ("config.json", b'{"model_type": "made up"}')):
                place = open_location(f"{self.source}/{name}")
                place.writable_store().put(place.key, data, Checksum(crc_of(data)))
        self.expected: dict[str, dict[str, bytes]] = {}
        self.counts: dict[str, Counter[Kind]] = {}
        for workload in WORKLOADS:
            counting = Counting()
            with faulty(server, counting) as proxy, reaching(proxy):
                url = self.new_target()
                reshard.convert(self.source, url, **self.options(workload))
            self.counts[workload] = counting.seen
            self.expected[workload] = self.objects_at(url)

    def new_target(self) -> str:
        return f"s3://{self.bucket}/{uuid.uuid4().hex}/to"

    def options(self, workload: str) -> dict[str, object]:
        cut = {"dst_layout": self.layout} if workload == "staged" else {}
        return {**HOW, **WORKLOADS[workload], **cut}

    def objects_at(self, url: str) -> dict[str, bytes]:
        with reaching(self.server):
            place = open_location(url)
            return {
                name: place.store.read(info.key, ByteRange(0, info.nbytes))
                for name, info in place.named_objects()
                if "manifest" not in name
            }

    def has_manifest(self, url: str) -> bool:
        with reaching(self.server):
            return open_location(url).child("reshard-manifest.json").head_or_none() is not None


@contextmanager
def reaching(server: S3Server) -> Iterator[None]:
    """Have URLs mean a server; what is silent there is given up in seconds."""
    with pytest.MonkeyPatch.context() as patch:
        clear_settings(patch)
        for name, value in server.environ.items():
            patch.setenv(name, value)
        find = s3_store.find_settings
        patch.setattr(
            s3_store, "find_settings", lambda *of: replace(find(*of), read_timeout_s=1.5, block_timeout_s=1.0)
        )
        yield


def outcome_of(place: Place, tls: bool, workload: str, rule: Rule, **how: object) -> str:
    """Convert once while something goes wrong; return how that ended, in a few words, or in many if it ended badly."""
    url, ended = place.new_target(), list[str]()

    def convert() -> None:
        try:
            reshard.convert(place.source, url, **place.options(workload), **how)
            ended.append("right")
        except ReshardError as error:
            ended.append("STOPPED" if isinstance(error, Interrupted) else f"refused {error.exit_code}: {error.message}")
        except BaseException:  # noqa: BLE001 - this is what is looked for
            ended.append(f"TRACEBACK {traceback.format_exc()}")

    with faulty(place.server, rule, place.folder if tls else None) as proxy, reaching(proxy):
        thread = threading.Thread(target=convert, daemon=True)
        thread.start()
        thread.join(DEADLINE_S)
    if not ended:
        return "HANG"
    found = place.objects_at(url)
    if ended[0] == "right":
        if found == place.expected[workload]:
            return "right"
        records = [name for name in found if name.startswith("reshard-run.")]
        is_right = {name: data for name, data in found.items() if name not in records} == place.expected[workload]
        return "right, and a record is left" if is_right else f"WRONG BYTES: {sorted(found)}"
    if ended[0].startswith("refused") and place.has_manifest(url):
        return f"REFUSED, WITH A MANIFEST: {ended[0]}"
    return ended[0]


def outcomes(place: Place, tls: bool, number: int, row: Row) -> Iterator[tuple[str, str]]:
    """Run all of a row; yield what was struck, and how that ended."""
    # What a store decides is the same inside TLS: there a third of these requests are struck.
    struck = row.kinds[number % 3 :: 3] or row.kinds if tls else row.kinds
    groups = [row.kinds] if row.at_once else [[kind] for kind in struck]
    for turn, kinds in enumerate(groups):
        names = [name for name in WORKLOADS if any(place.counts[name][kind] for kind in kinds)]
        if not names:
            continue
        workload = names[(number + turn) % len(names)]
        counts = place.counts[workload]
        at = {kind: 1 + (7 * number + turn) % counts[kind] for kind in kinds if counts[kind]}
        rule = Chosen(row.fault, at)
        outcome = outcome_of(place, tls, workload, rule, **(row.how or {}))
        where = ", ".join(sorted(rule.hit)) if not row.at_once else "all"
        yield f"{where} ({workload})", outcome if rule.hit else "not struck"


def is_bad(row: Row, outcome: str) -> bool:
    allowed = ("not struck", *(("refused", "right, and") if row.may_refuse else ()))
    return outcome != "right" and not outcome.startswith(allowed)


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(request.getfixturevalue(request.param), tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("place", ["weed_server", "juicefs_server"], indirect=True)
def test_some_faults(place: Place, tls: bool, request: pytest.FixtureRequest) -> None:
    chosen = QUICK[request.node.callspec.params["place"]]
    ended = {
        (row.name, where): outcome
        for number, row in enumerate(ROWS)
        if row.name in chosen
        for where, outcome in outcomes(place, tls, number, row)
        if is_bad(row, outcome)
    }
    assert not ended


@pytest.mark.matrix
@pytest.mark.parametrize("number", range(len(ROWS)), ids=[row.name for row in ROWS])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("place", ["weed_server", "juicefs_server"], indirect=True)
def test_every_fault(place: Place, tls: bool, number: int, record_property: Callable[[str, object], None]) -> None:
    """Its rows, printed at the end of the run, are the table of docs/reliability.md."""
    row = ROWS[number]
    ended = list(outcomes(place, tls, number + tls, row))
    words = Counter(outcome.partition(":")[0] for _, outcome in ended)
    told = ", ".join(f"{count} {word}" for word, count in words.items())
    record_property("table", f"| {place.server.name}{', TLS' * tls} | {row.name} | {told} |")
    assert not {where: outcome for where, outcome in ended if is_bad(row, outcome)}


@pytest.mark.parametrize("integrity", ["auto", pytest.param("off", marks=pytest.mark.matrix)])
@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("place", ["weed_server", "juicefs_server"], indirect=True)
def test_a_plan_counts_the_requests_of_its_run(
    place: Place, workload: str, integrity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "BEAT_S", 600.0)  # a run that takes longer shows more often that it lives,
    monkeypatch.setattr(session, "FRESH_S", 600.0)  # and looks more often whether its claim is held
    rule, passes = Counting(), 2 if workload == "staged" else 1
    with reaching(place.server):
        plan = reshard.plan(place.source, place.new_target(), **place.options(workload), integrity=integrity)
        planned = estimate(plan).requests
    with faulty(place.server, rule) as proxy, reaching(proxy):
        reshard.convert(plan=plan)
    sent = rule.seen
    exact = {"head": planned.head, "copy": planned.copy, "create": planned.open, "complete": planned.complete}
    assert {kind: sent[kind] for kind in exact} == exact
    assert 0 <= sent["part"] - planned.part <= passes  # of a service that checks MD5 three are asked for
    assert sent["list"] == planned.list
    # A journal that is due in between is written once more, and removed.
    assert 0 <= sent["put"] - planned.put <= 2 * passes
    assert 0 <= sent["delete"] + sent["abort"] - planned.delete <= 2 * passes
    # The run's record is read; and what a store keeps a checksum of whole: a header, and what is copied.
    assert 0 <= sent["get"] - planned.get <= 4 * passes + 2 * len(plan.catalog.objects)
