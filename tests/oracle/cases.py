"""The oracle's cases as data: what MindSpore was asked to do, the same asked of reshard, and both answers compared.

A case is a folder with ``in/``, ``strategy/``, ``expected/`` and ``case.json``, which has the exact
call. Nothing here knows a single case but for the table of answers that are known to be wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import deserialize

import reshard
from reshard.engine.strategies import read_object
from reshard.planning.plan import MANIFEST_KEY
from reshard.storage import MemoryStore, open_location, open_target

FOLDER = Path(__file__).parents[1] / "conformance" / "mindspore"

# Functions whose cases other tests compare.
ELSEWHERE = {
    "mindspore.save_checkpoint": "formats/test_ms_ckpt.py; what it writes as safetensors here",
    "mindspore.ckpt_to_safetensors": "formats/test_ms_ckpt.py",
    "mindspore.safetensors_to_ckpt": "formats/test_ms_ckpt.py",
    "mindspore.parallel.build_searched_strategy": "conformance/test_strategies.py",
    "mindspore.merge_pipeline_strategys": "conformance/test_strategies.py",
    "mindspore.rank_list_for_transform": "conformance/test_strategies.py",
    "mindspore.parallel._tensor._load_tensor": "oracle/test_mindspore_safetensors.py, by the slices of training",
    "see expected/errors.json": "oracle/test_bad_calls.py",
}

# Tensors that transform_checkpoints deals out in another order than training does, and the slices of training.
_SWAPPED = ("params.9.weight", "moments.params.9.weight")
KNOWN_WRONG = {
    ("split_optmix", "optmix"): _SWAPPED,
    ("split_optmix4", "optmix4"): _SWAPPED,
    ("reshard_optmix_plain_to_4", "optmix4"): _SWAPPED,
}

# Types of .ckpt by their names in safetensors, for the cases whose answer is a .ckpt.
_CKPT_DTYPES = {
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
    """What one safetensors object says; ``tensors`` are in the order of their bytes."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def order(self) -> list[str]:
        return list(self.tensors)


def read_content(data: bytes) -> Content:
    """Parse an object by hand, and have the safetensors library agree to it."""
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


def tensor(dtype: str, shape: list[int], data: bytes) -> Tensor:
    return Tensor(dtype, tuple(shape), hashlib.sha256(data).hexdigest()[:32])


@dataclass(frozen=True)
class Case:
    """One folder."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def json(self) -> dict:
        return json.loads((self.folder / "case.json").read_text())

    @property
    def functions(self) -> set[str]:
        return {call["function"] for call in self.json["calls"]}

    @property
    def is_ours(self) -> bool:
        """Whether this case is compared here."""
        return self.functions <= _TRANSLATIONS.keys()

    @property
    def is_known(self) -> bool:
        """Whether anybody compares this case."""
        elsewhere = all(any(function.startswith(known) for known in ELSEWHERE) for function in self.functions)
        return self.is_ours or elsewhere

    @property
    def needs_renaming(self) -> bool:
        return any(call["kwargs"].get("name_map") for call in self.json["calls"])

    def upload(self, base_url: str) -> str:
        """Put all inputs and strategies below a URL; return it."""
        base = open_target(base_url)
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder)
            if path.is_file() and name.parts[0] in ("in", "strategy"):
                base.store.put(base.child(name.as_posix()).key, path.read_bytes())
        return base_url

    def requests(self, base_url: str) -> list[dict]:
        """Arguments of ``reshard.convert`` that ask for the same as the case's calls."""
        return [_TRANSLATIONS[call["function"]](dict(call["kwargs"]), base_url) for call in self.json["calls"]]

    def expected(self) -> dict[str, Content]:
        """MindSpore's answer by key; of a .ckpt what ``case.json`` says, under the name of a safetensors object."""
        outputs = [name for name in self.json["files"] if name.startswith("expected/")]
        return {_key(name): self._expected(name, self.json["files"][name]) for name in outputs}

    def _expected(self, name: str, listed: dict) -> Content:
        if listed["format"] == "ckpt":
            return Content(
                {
                    name: Tensor(_CKPT_DTYPES[item["dtype"]], tuple(item["shape"]), item["sha256"])
                    for name, item in listed["tensors"].items()
                },
                {},
            )
        content = read_content((self.folder / name).read_bytes())
        assert content.tensors == {
            name: Tensor(item["dtype"], tuple(item["shape"]), item["sha256"])
            for name, item in listed["tensors"].items()
        }
        return content

    @property
    def writes_ckpt(self) -> bool:
        return any(item["format"] == "ckpt" for name, item in self.json["files"].items() if "expected/" in name)

    def truth_of(self, key: str) -> Mapping[str, Tensor]:
        """What training holds where MindSpore's tool is known to answer wrongly."""
        for (name, setting), tensors in KNOWN_WRONG.items():
            if name == self.name:
                rank = key.split("/")[0]
                slices = FOLDER / "training_slices" / "expected" / setting / rank / "net.safetensors"
                held = read_content(slices.read_bytes()).tensors
                return {tensor: held[tensor] for tensor in tensors}
        return {}


def _transform_checkpoints(kwargs: dict, base_url: str) -> dict:
    kwargs.pop("process_num", None)
    assert kwargs.pop("output_format", "ckpt") in ("safetensors", "ckpt")
    request = {
        "src": f"{base_url}/{kwargs.pop('src_checkpoints_dir')}",
        "dst": f"{base_url}/out{kwargs.pop('dst_checkpoints_dir').removeprefix('expected')}",
        "src_strategy": _url(base_url, kwargs.pop("src_strategy_file", None)),
        "dst_strategy": _url(base_url, kwargs.pop("dst_strategy_file", None)),
        "prefix": kwargs.pop("ckpt_prefix"),
    }
    assert not kwargs, f"arguments nobody translates: {kwargs}"
    return request


def _load_distributed_checkpoint(kwargs: dict, base_url: str) -> dict:
    assert kwargs.pop("network") is None
    assert kwargs.pop("format") == "safetensors"
    assert kwargs.pop("output_format", "safetensors") in ("safetensors", "ckpt")
    for name in ("max_process_num", "name_map"):
        kwargs.pop(name, None)
    strategy, rank = kwargs.pop("predict_strategy"), kwargs.pop("rank_id", None)
    request = {
        "src": f"{base_url}/{kwargs.pop('unified_safetensors_dir')}",
        "dst": f"{base_url}/out{kwargs.pop('dst_safetensors_dir').removeprefix('expected')}",
        "dst_strategy": _url(base_url, strategy),
        "prefix": "net.safetensors",
    }
    assert not kwargs, f"arguments nobody translates: {kwargs}"
    if strategy and rank is not None:
        request["ranks"] = [rank]
    assert strategy or not rank
    return request


_TRANSLATIONS = {
    "mindspore.transform_checkpoints": _transform_checkpoints,
    "mindspore.load_distributed_checkpoint": _load_distributed_checkpoint,
}


def _url(base_url: str, name: str | None) -> str | None:
    return f"{base_url}/{name}" if name else None


def _key(name: str) -> str:
    return name.removeprefix("expected/").removesuffix(".ckpt").removesuffix(".safetensors") + ".safetensors"


def cases() -> list[Case]:
    """Every case there is."""
    return [Case(path.parent) for path in sorted(FOLDER.glob("*/case.json"))]


def memory_url(name: str) -> str:
    """An empty place in memory."""
    MemoryStore(name).clear()
    return f"memory://{name}"


def outputs_of(url: str) -> dict[str, Content]:
    """Every object below a target but the manifest, by key."""
    found = objects_below(url)
    assert found.pop(MANIFEST_KEY)
    return {name: read_content(data) for name, data in found.items()}


def objects_below(url: str) -> dict[str, bytes]:
    """Every object below a place, whole, by its key there."""
    place = open_location(url)
    return {name: read_object(place.child(name)) for name, _ in place.named_objects()}


def check(case: Case, base_url: str) -> None:
    """Do what the case did, and compare every object with MindSpore's."""
    for request in case.requests(case.upload(base_url)):
        manifest = reshard.convert(**request)
        report = reshard.verify(request["dst"])
        assert report.is_ok, report.problems
        assert report.checked_bytes == report.total_bytes > 0
        assert report.object_count == len(manifest.receipts)
    compare(case, outputs_of(f"{base_url}/out"))


def compare(case: Case, found: Mapping[str, Content]) -> None:
    """Compare names of objects, and in each names, order, dtypes, shapes, bytes and metadata."""
    expected = case.expected()
    assert sorted(found) == sorted(expected)
    for key, content in expected.items():
        truth = case.truth_of(key)
        assert dict(found[key].tensors) == {**content.tensors, **truth}, key
        assert truth.keys() <= content.tensors.keys()
        if not case.writes_ckpt:
            assert found[key].order == content.order, key
            assert found[key].metadata == content.metadata == {"format": "ms"}, key
