"""The oracle's cases as data: what MindSpore was asked to do, the same asked of reshard, and both answers compared.

A case is a folder with ``in/``, ``strategy/`` and ``case.json``, which has the exact call and what every file of the
answer says: names, dtypes, shapes and hashes. ``expected/`` holds only what tests need the bytes of. A file that
several cases share lies in one of them; ``copies.json`` tells where. Nothing here knows a single case but for the
tables of answers that are known to be wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path

import pytest
from oracle.calls import TRANSLATIONS, Request
from safetensors import deserialize
from support.ckpt_parser import parse_ckpt

import reshard
from reshard.errors import PlanError
from reshard.storage import MemoryStore, open_location, open_target, read_object

FOLDER = Path(__file__).parents[1] / "conformance" / "mindspore"

# Functions whose cases other tests compare.
ELSEWHERE = {
    "mindspore.save_checkpoint": "oracle/test_mindspore_formats.py and formats/test_ms_ckpt.py",
    "mindspore.parallel.build_searched_strategy": "conformance/test_strategies.py",
    "mindspore.merge_pipeline_strategys": "conformance/test_strategies.py",
    "mindspore.rank_list_for_transform": "conformance/test_strategies.py",
    "mindspore.train._utils.get_parameter_redundancy": "planning/test_redundancy.py",
    "mindspore.parallel._tensor._load_tensor": "oracle/test_mindspore.py, by the slices of training",
    "mindspore.transform_checkpoints under safetensors 0.8.0": "oracle/test_known_wrong.py",
    "see expected/errors.json": "oracle/test_errors.py",
}

# Functions that raise whatever they are given: there is no answer.
BROKEN = {"mindspore.parallel.transform_safetensors.transform_safetensors_by_rank"}

# Cases whose whole answer is wrong; oracle/test_known_wrong.py has what is right.
WRONG = {"unify_dedup_nested_wrong"}

# Tensors that transform_checkpoints deals out in another order than training does, and the slices of training.
_SWAPPED = ("params.9.weight", "moments.params.9.weight")
KNOWN_WRONG = {
    ("split_optmix", "optmix"): _SWAPPED,
    ("split_optmix4", "optmix4"): _SWAPPED,
    ("reshard_optmix_plain_to_4", "optmix4"): _SWAPPED,
}

# Shards that the tool made in that other order: it merges them by the same; oracle/test_known_wrong.py has more.
MADE_WRONG = {"unify_optmix2": _SWAPPED}

# Cases with tensors that were cut and have no layout in the target. MindSpore passes on one rank's raw slice;
# reshard refuses them by name, unless they are left out.
PASSED_RAW = {"reshard_pp2_to_mp4"}

# Types of .ckpt by their names in safetensors.
CKPT_DTYPES = {
    "Bool": "BOOL", "Int8": "I8", "UInt8": "U8", "Int16": "I16", "UInt16": "U16", "Int32": "I32", "UInt32": "U32",
    "Int64": "I64", "UInt64": "U64", "Float16": "F16", "BFloat16": "BF16", "Float32": "F32", "Float64": "F64",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One tensor of an object, by the hash of its bytes."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class Content:
    """What one object says; ``tensors`` are in the order of their bytes."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def order(self) -> list[str]:
        return list(self.tensors)


def read_content(data: bytes) -> Content:
    """Parse a safetensors object by hand, and have the library agree to it."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    metadata = header.pop("__metadata__", {})
    begin, end = 8 + length, 0
    tensors = {}
    for name, item in header.items():  # listed in the order of bytes: MindSpore's reader insists
        start, stop = item["data_offsets"]
        assert start == end, name
        end = stop
        tensors[name] = tensor(item["dtype"], item["shape"], data[begin + start : begin + stop])
    assert begin + end == len(data)
    found = {name: tensor(item["dtype"], item["shape"], item["data"]) for name, item in deserialize(data)}
    assert found == tensors
    return Content(tensors, metadata)


def read_ckpt(data: bytes) -> Content:
    """Parse a .ckpt object by hand."""
    parsed = parse_ckpt(data)
    tensors = {k: tensor(CKPT_DTYPES[v.type_name], v.extents, v.data) for k, v in parsed.values.items()}
    return Content(tensors, texts=parsed.texts)


def read_any(name: str, data: bytes) -> Content | object:
    """What an object says, by the end of its name: a Content, or JSON."""
    if name.endswith(".json"):
        return json.loads(data)
    return read_ckpt(data) if name.endswith(".ckpt") else read_content(data)


def tensor(dtype: str, shape: Iterable[int], data: bytes) -> Tensor:
    return Tensor(dtype, tuple(shape), hashlib.sha256(data).hexdigest()[:32])


@cache
def copies() -> dict[str, dict[str, Path]]:
    """By case, the files that lie in another folder, by their names in this one."""
    found: dict[str, dict[str, Path]] = {}
    for name, place in json.loads((FOLDER / "copies.json").read_text()).items():
        case, _, rest = name.partition("/")
        found.setdefault(case, {})[rest] = FOLDER / place
    return found


@dataclass(frozen=True)
class Case:
    """One folder."""

    folder: Path

    @classmethod
    def named(cls, name: str) -> Case:
        return cls(FOLDER / name)

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def json(self) -> dict:
        return json.loads((self.folder / "case.json").read_text())

    @cached_property
    def paths(self) -> dict[str, Path]:
        """Where each of the case's files lies, by its name in the case."""
        here = {p.relative_to(self.folder).as_posix(): p for p in self.folder.rglob("*") if p.is_file()}
        return dict(sorted((here | copies().get(self.name, {})).items()))

    def read(self, name: str) -> bytes:
        return self.paths[name].read_bytes()

    def content(self, name: str) -> Content:
        """What one of the case's files says: by a reader that knows nothing of the package, or by ``case.json``."""
        return read_any(name, self.read(name)) if name in self.paths else self.told(name)

    def told(self, name: str) -> Content | object:
        """What ``case.json`` says of a file."""
        file = self.json["files"][name]
        if "json" in file:
            return file["json"]
        tensors = self.listed(name)
        return Content({tensor: tensors[tensor] for tensor in file["order"]}, file.get("metadata", {}))

    def below(self, folder: str) -> list[str]:
        """Names of the case's files in a folder, and of answers that only ``case.json`` tells."""
        told = [name for name in self.json["files"] if name.startswith("expected/")]
        return [name for name in sorted({*self.paths, *told}) if name.startswith(f"{folder}/")]

    @property
    def prepared(self) -> list[dict]:
        """The calls that made the inputs."""
        return self.json["prepared_by"]

    @property
    def functions(self) -> set[str]:
        return {call["function"] for call in self.json["calls"]} - BROKEN

    @property
    def is_ours(self) -> bool:
        """Whether this case is compared by what reshard makes of it."""
        return self.functions <= TRANSLATIONS.keys() and self.name not in WRONG

    @property
    def is_known(self) -> bool:
        """Whether anybody compares this case."""
        elsewhere = all(any(function.startswith(known) for known in ELSEWHERE) for function in self.functions)
        return self.is_ours or elsewhere or self.name in WRONG

    def upload(self, base_url: str) -> str:
        """Put all inputs and strategies below a URL; return it."""
        base = open_target(base_url)
        for name in (*self.below("in"), *self.below("strategy")):
            base.store.put(base.child(name).key, self.read(name))
        return base_url

    def requests(self, base_url: str) -> list[Request]:
        """What asks reshard for the same as the case's calls, word for word."""
        calls = [call for call in self.json["calls"] if call["function"] not in BROKEN]
        return [TRANSLATIONS[call["function"]](dict(call["kwargs"]), base_url) for call in calls]

    def answered_requests(self, base_url: str) -> list[Request]:
        """The same, without the tensors that reshard refuses."""
        requests = self.requests(base_url)
        return [without_raw(request) for request in requests] if self.name in PASSED_RAW else requests

    def listed(self, name: str) -> dict[str, Tensor]:
        """What ``case.json`` says of a file's tensors."""
        listed = self.json["files"][name]
        dtypes = CKPT_DTYPES if listed["format"] == "ckpt" else {}
        return {
            name: Tensor(dtypes.get(item["dtype"], item["dtype"]), tuple(item["shape"]), item["sha256"])
            for name, item in listed["tensors"].items()
            if item["dtype"] != "str"
        }

    def truth_of(self, name: str) -> Mapping[str, Tensor]:
        """What training holds where MindSpore's tool is known to answer wrongly."""
        for (case, setting), tensors in KNOWN_WRONG.items():
            if case == self.name and name.startswith("expected/"):
                slices = f"expected/{setting}/{name.split('/')[1]}/net.safetensors"
                held = Case.named("training_slices").content(slices).tensors
                return {tensor: held[tensor] for tensor in tensors}
        return {}


def without_raw(request: Request) -> Request:
    """Leave out what is refused because it was cut and has no layout in the target."""
    with pytest.raises(PlanError, match="cut over the source's ranks") as caught:
        reshard.plan(**request.arguments)
    return replace(request, arguments=request.arguments | {"drop": list(caught.value.problems)})


def cases() -> list[Case]:
    """Every case there is."""
    return [Case(path.parent) for path in sorted(FOLDER.glob("*/case.json"))]


def memory_url(name: str) -> str:
    """An empty place in memory."""
    MemoryStore(name).clear()
    return f"memory://{name}"


def outputs_of(url: str) -> dict[str, Content]:
    """Every object below a target but the manifests, by key."""
    found = objects_below(url)
    manifests = [name for name in found if name.startswith("reshard-manifest")]
    assert manifests
    return {name: read_any(name, data) for name, data in found.items() if name not in manifests}


def objects_below(url: str) -> dict[str, bytes]:
    """Every object below a place, whole, by its key there."""
    place = open_location(url)
    return {name: read_object(place.child(name)) for name, _ in place.named_objects()}


def check(case: Case, base_url: str) -> None:
    """Do what the case did, and compare every object with MindSpore's."""
    requests = case.answered_requests(case.upload(base_url))
    for request in requests:
        manifest = reshard.convert(**request.arguments)
        report = reshard.verify(request.dst)
        is_share = bool(request.arguments.get("ranks"))
        assert (report.is_ok, report.problems) == (not report.missing_ranks, ())
        assert is_share or not report.missing_ranks
        assert report.checked_bytes == report.total_bytes > 0
        assert report.object_count == len(manifest.receipts)
    compare(case, requests)


def compare(case: Case, requests: Iterable[Request]) -> None:
    """Compare everything that was made: names of objects, and what is in them."""
    answers, found = set(), {}
    for request in requests:
        answers.add(request.answer)
        found |= {request.name_of(key): (content, request) for key, content in outputs_of(request.dst).items()}
    assert sorted(found) == sorted(name for answer in answers for name in case.below(answer))
    for name, (content, request) in found.items():
        if name.endswith(".json"):
            assert content == case.content(name) == case.json["files"][name]["json"], name
        else:
            compare_object(case, name, content, request)


def compare_object(case: Case, name: str, found: Content, request: Request) -> None:
    """Compare one object: dtypes, shapes, bytes, texts and, of safetensors, order and metadata."""
    expected, truth = case.content(name), case.truth_of(name)
    assert truth.keys() <= expected.tensors.keys()
    order = [tensor for tensor in expected.order if not request.is_dropped(tensor)]
    right = {tensor: expected.tensors[tensor] for tensor in order} | truth
    unjudged = {tensor: found.tensors.get(tensor) for tensor in MADE_WRONG.get(case.name, ()) if tensor in right}
    assert dict(found.tensors) == right | unjudged, name
    assert found.texts == expected.texts, name
    if not name.endswith(".ckpt"):
        assert found.order == order, name
        # MindSpore repeats the flag where sources had one: that nothing is removed is what its absence says, too.
        told = {
            key: value for key, value in expected.metadata.items() if (key, value) != ("remove_redundancy", "False")
        }
        assert found.metadata == told == {"format": "ms"}, name


def check_deduplicated(case: Case, base_url: str) -> None:
    """Cut the case's model without redundancy: rank for rank the tensors, order and flag that MindSpore saves."""
    (request,) = case.requests(case.upload(base_url))
    reshard.convert(
        f"{base_url}/in/full",
        f"{base_url}/out",
        dst_strategy=request.arguments["src_strategy"],
        prefix="net_rank_",
        remove_redundancy=True,
    )
    found = outputs_of(f"{base_url}/out")
    assert sorted(f"in/shards/{key}" for key in found) == case.below("in/shards")
    for key, content in found.items():
        expected = case.content(f"in/shards/{key}")
        assert content == expected, key
        assert content.order == expected.order, key
        assert content.metadata == {"format": "ms", "remove_redundancy": "True"}, key
