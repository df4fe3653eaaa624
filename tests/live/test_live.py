"""Fresh random cases: MindSpore's tools and reshard do the same, and every tensor is compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from live.calls import Step
from live.drawing import Drawn
from oracle.cases import read_content, tensor
from support.checkpoints import content_of as bytes_of
from support.checkpoints import header_in, list_ckpt

import reshard
import reshard.compat
from reshard.formats.containers import Container

pytestmark = [pytest.mark.oracle, pytest.mark.timeout(1000)]

WRITER_NOTES = {"crc_num", "remove_redundancy"}  # of the file itself, not of the model


def test_mindspore_took_every_call(made: Path):
    """Else rows below would compare nothing."""
    cases = {path.parent.name: json.loads(path.read_text()) for path in sorted(made.glob("*/done.json"))}
    assert len(cases) == len(list(made.iterdir()))
    assert [(case, *item) for case, done in cases.items() for item in done.items() if item[1]] == []
    assert [(case, step) for case, done in cases.items() for step in done if not answered(made / case, step)] == []


def answered(case: Path, step: str) -> bool:
    return any((case / ("in" if step == "prepare" else f"out/{step}")).rglob("*"))


def test_as_mindspore_does_it(made: Path, ours: Path, form: str, index: int, step: Step, drawn: Drawn):
    if not step.applies(drawn):
        pytest.skip("MindSpore is known to be wrong here")
    case, target = made / f"{form}-{index}", ours / f"{form}-{index}" / step.name
    expected = contents(case / "out" / step.name)
    arguments = located(case, step.reshard(drawn))
    if "function" in arguments:
        function = getattr(reshard.compat, arguments.pop("function"))
        function(arguments.pop("src"), str(target), **arguments)
    else:
        reshard.convert(dst=str(target), **arguments)
    assert reshard.verify(str(target)).is_ok
    found = contents(target)
    assert found.keys() == expected.keys()
    for key, content in expected.items():
        assert found[key] == content, key


def test_mindspore_loads_what_reshard_wrote(oracle, ours: Path, tmp_path: Path):
    """Everything that the tests before this one wrote."""
    oracle("read", ours, tmp_path / "answer.json")
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer
    for key, loaded in answer.items():
        tensors, texts, _ = content_of(ours / key)
        mine = {name: [t.dtype, list(t.shape), t.sha256] for name, t in tensors.items()}
        assert loaded == mine | texts, key


def located(case: Path, arguments: Mapping) -> dict:
    """Arguments whose paths lie below the case's folder."""
    paths = ("src", "src_strategy", "dst_strategy")
    return {name: str(case / value) if name in paths else value for name, value in arguments.items()}


def contents(folder: Path) -> dict[str, object]:
    """What the checkpoint in a folder says, by key; of MindSpore's full form by tensor, in whichever part."""
    found = {path.relative_to(folder).as_posix(): content_of(path) for path in checkpoints(folder)}
    index = folder / "param_name_map.json"
    if not index.exists():
        return found
    listed = json.loads(index.read_text())
    assert {name for key, (tensors, _, _) in found.items() if key.startswith("part") for name in tensors} == set(
        listed["weight_map"]
    )
    for name, key in listed["weight_map"].items():
        assert name in found[key][0], f"{name} is not in {key}, where the map has it"
    parts = [content for key, content in found.items() if key.startswith("part")]
    joined = {name: value for tensors, _, _ in parts for name, value in tensors.items()}
    hyper = {key: content for key, content in found.items() if not key.startswith("part")}
    return {"parts": (joined, {}, parts[0][2]), "map": listed, **hyper}


def checkpoints(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.suffix in (".ckpt", ".safetensors")]


def content_of(path: Path) -> tuple[dict, dict[str, str], dict[str, str]]:
    """Tensors by name, texts by name, and metadata."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        content = read_content(data)
        metadata = {key: value for key, value in content.metadata.items() if key not in WRITER_NOTES}
        return dict(content.tensors), {}, metadata
    header = header_in(data, Container.CKPT)
    tensors = {
        held.spec.name: tensor(held.spec.dtype.value, held.spec.shape, bytes_of(held, data)) for held in header.tensors
    }
    return tensors, dict(header.texts), {"types": list_ckpt(data)[2]}
