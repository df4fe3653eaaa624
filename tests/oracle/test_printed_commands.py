"""What MindSpore Transformers' documentation prints, typed as it stands there but for places, and what comes of it.

The texts are in ``printed_commands.yaml``. Each case fills an empty store with what real tools were given, and
compares with what they made of it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from cli.runner import ok
from models.test_oracle_conversions import config_of
from oracle import test_lora_merges as lora
from oracle import test_mindformers_scripts as scripts
from oracle.cases import Case, Content, read_any, read_ckpt, read_content
from oracle.test_conversions import made_forwards
from support.ckpt_parser import parse_ckpt
from support.model_cases import FOLDER, read_answer, read_tensors, summary_of
from support.stores import arrays_at, new_place, objects_at, put, put_model

from reshard.api.strategies import read_strategy

PRINTED: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("printed_commands.yaml").read_text())
EIGHT = FOLDER / "strategy_llama_dp2mp2pp2_po"

Check = Callable[[str], None]


# --- what lies there, and what must come of it


def llama(base: str) -> Check:
    case = "llama_cli150_llama_bf16_nodtype"
    put_model(f"{base}/hf", read_tensors(case), config_of(case))

    def check(base: str) -> None:
        assert summary_of(arrays_at(f"{base}/out/llama.ckpt")) == read_answer(case, "mf")

    return check


def llama_reversed(base: str) -> Check:
    origin = "llama_cli150_llama_bf16_bf16"
    put_model(f"{base}/ms/llama.ckpt", made_forwards(origin), config_of(origin))

    def check(base: str) -> None:
        answer = read_answer("llama_cli150_reversed_llama_bf16_bf16_nodtype", "hf")
        assert summary_of(arrays_at(f"{base}/out")) == answer

    return check


def full_to_8(base: str) -> Check:
    """A full checkpoint, and the strategy files of eight ranks in two stages."""
    put(f"{base}/full/rank_0/model.ckpt", (EIGHT / "full_ckpt/rank_0/model.ckpt").read_bytes())
    for rank in range(8):
        data = (EIGHT / f"strategy/ckpt_strategy_rank_{rank // 4 * 4}.ckpt").read_bytes()
        put(f"{base}/strategy/ckpt_strategy_rank_{rank}.ckpt", data)

    def check(base: str) -> None:
        found = objects_at(f"{base}/out")
        assert found.keys() == {f"rank_{rank}/checkpoint_{rank}.ckpt" for rank in range(8)}
        for key, data in found.items():
            assert read_ckpt(data).tensors == read_ckpt((EIGHT / "sliced_ckpt" / key).read_bytes()).tensors

    return check


def full_to_16(base: str) -> Check:
    """The same with the page's sizes: two stages of dp 2 and mp 4, and an embedding that pipelines cut."""
    source = put(f"{base}/full/rank_0/model.ckpt", (EIGHT / "full_ckpt/rank_0/model.ckpt").read_bytes())
    parallel = ["--family", "llama", "--parallel", "dp=2,mp=4,pp=2,vocab_emb_dp=true"]
    ok("strategy", "make", f"{base}/strategy/ckpt_strategy_rank_0.ckpt", "--for", source, *parallel)
    whole = parse_ckpt((EIGHT / "full_ckpt/rank_0/model.ckpt").read_bytes()).values
    arrays = {name: np.frombuffer(value.data, np.float32).reshape(value.extents) for name, value in whole.items()}

    def axis_of(name: str) -> int | None:
        if "norm" in name:
            return None
        return 1 if name.endswith((".wo.weight", ".w2.weight")) else 0

    def check(base: str) -> None:
        assert objects_at(f"{base}/out").keys() == {f"rank_{rank}/checkpoint_{rank}.ckpt" for rank in range(16)}
        for rank in range(16):
            stage, place = rank // 8, rank % 4
            mine = re.compile((r"model\.(tok|layers\.0\.)", r"model\.(layers\.1\.|norm)|lm_head")[stage])
            expected = {
                name: array if (axis := axis_of(name)) is None else np.split(array, 4, axis)[place]
                for name, array in arrays.items()
                if mine.match(name)
            }
            found = arrays_at(f"{base}/out/rank_{rank}")
            assert found.keys() == expected.keys()
            assert all(np.array_equal(found[name], array) for name, array in expected.items())

    return check


def lora_full(base: str) -> Check:
    """Adapters of rank 4 with alpha 16, beside the configuration that says so."""
    case = "lora_merge160_mindpet_float32_float32"
    put_model(f"{base}/ckpt/lora.ckpt", lora.made_input(*lora.CASES[case][:3]))
    put(f"{base}/ckpt/adapter_config.json", b'{"lora_alpha": 16, "r": 4}')

    def check(base: str) -> None:
        assert objects_at(f"{base}/out").keys() == {"rank_0/checkpoint_0.ckpt"}
        lora.assert_merged(arrays_at(f"{base}/out"), read_answer(case, "mf", only="out/merged_lora.ckpt"))

    return check


def lora_ranks(base: str) -> Check:
    copied(lora.distributed(), base)
    put(f"{base}/ckpt/adapter_config.json", b'{"lora_alpha": 16, "r": 4}')

    def check(base: str) -> None:
        assert objects_at(f"{base}/out").keys() == {"rank_0/checkpoint_0.ckpt"}
        lora.assert_merged(arrays_at(f"{base}/out"), lora.answer_of_distributed())

    return check


def of_script(case: str) -> Callable[[str], Check]:
    """A case of the script, its shards renamed to the suffix that the pages have."""

    def fill(base: str) -> Check:
        for name, data in scripts.files_of(case).items():
            _, side, rest = name.split("/", 2) if name.startswith("mf/") else ("", "", "")
            if side == "in":
                folder, _, key = rest.partition("/")
                key = re.sub(r"-\d+_\d+\.", "-1_1.", key)
                put(f"{base}/{'ckpt' if folder == 'checkpoint' else folder}/{key}", data)

        def check(base: str) -> None:
            found = scripts.objects_below(f"{base}/out")
            expected = scripts.expected_of(case)
            if "adam" in case:
                expected = without_adam(expected, found)
            scripts.compare(found, expected)

        return check

    return fill


def without_adam(expected: Mapping[str, Content | object], found: Mapping[str, bytes]) -> dict[str, Content | object]:
    """Check the part and the map, which the script writes with the optimizer's states; return the rest."""
    whole = expected["part0.safetensors"].tensors
    left = {name: tensor for name, tensor in whole.items() if not name.startswith("adam_")}
    assert len(whole) > len(left) > 0
    assert read_content(found["part0.safetensors"]).tensors == left
    assert json.loads(found["param_name_map.json"])["weight_map"].keys() == left.keys()
    kept = {name: read_any(name, found[name]) for name in ("part0.safetensors", "param_name_map.json")}
    return {**expected, **kept}


def stages(base: str) -> Check:
    """The strategy files of the ranks of two stages."""
    case = Case.named("lds_pp2_ckpt")
    for rank in range(8):
        data = (case.folder / f"strategy/dp2mp2pp2_stages/strategy_rank_{rank}.ckpt").read_bytes()
        put(f"{base}/strategy/ckpt_strategy_rank_{rank}.ckpt", data)

    def check(base: str) -> None:
        merged = put(f"{base}/expected.ckpt", (case.folder / "strategy/dp2mp2pp2_merged.ckpt").read_bytes())
        assert read_strategy(f"{base}/merged/dst_strategy.ckpt") == read_strategy(merged)

    return check


def unified(base: str) -> Check:
    """A full checkpoint of two parts too."""
    merged, folder = stages(base), Case.named("lds_pp2_ckpt").folder
    for path in (folder / "in/unified").iterdir():
        put(f"{base}/unified/{path.name}", path.read_bytes())

    def check(base: str) -> None:
        merged(base)
        found = objects_at(f"{base}/out")
        assert found.keys() == {f"rank_{rank}/net.safetensors" for rank in range(8)}
        for rank in range(8):
            expected = Case.named("lds_pp2_ckpt").content(f"expected/rank_{rank}/net.ckpt").tensors
            assert read_content(found[f"rank_{rank}/net.safetensors"]).tensors == expected

    return check


def ckpt(base: str) -> Check:
    folder = Case.named("fmt_ckpt_to_safetensors").folder
    put(f"{base}/rank0/checkpoint_0.ckpt", (folder / "in/a.ckpt").read_bytes())

    def check(base: str) -> None:
        found = objects_at(f"{base}/out")
        assert found.keys() == {"checkpoint_0.safetensors"}
        expected = dict(read_content((folder / "expected/a.safetensors").read_bytes()).tensors)
        expected["t.float32"] = expected.pop("renamed.float32")  # the case gives a name map, the page none
        assert read_content(found["checkpoint_0.safetensors"]).tensors == expected

    return check


CASES: dict[str, Callable[[str], Check]] = {
    "llama": llama,
    "llama_reversed": llama_reversed,
    "full_to_8": full_to_8,
    "full_to_16": full_to_16,
    "lora_full": lora_full,
    "lora_ranks": lora_ranks,
    "ranks": of_script("unify160_full_redund_flag_True"),
    "ranks_without_redundancy": of_script("unify160_noredund_flag_True"),
    "ranks_with_adam": of_script("unify160_adam_all"),
    "stages": stages,
    "unified": unified,
    "ckpt": ckpt,
}


def copied(source: str, target: str) -> None:
    """Put every object of one place into another."""
    for key, data in scripts.objects_below(source).items():
        put(f"{target}/{key}", data)


# --- typing it


def words_of(printed: Mapping[str, Any], base: str) -> list[str]:
    """The words of a command line; what a synopsis has in brackets is given."""
    text = printed["printed"].replace("\\\n", " ")
    known = {word: f"{base}/{place}" for word, place in printed["places"].items()} | printed.get("words", {})
    found = [known.get(word, word) for word in shlex.split(text)]
    found = [known.get(word.strip("[]"), word.strip("[]")) for word in found]
    return [word for word in found if word]


def fragment_of(printed: Mapping[str, Any], base: str) -> str:
    """A piece of Python, for reshard's functions in place of MindSpore's."""
    text = printed["printed"].replace("import mindspore as ms", "from reshard import compat as ms")
    for word, place in printed["places"].items():
        text = re.sub(rf"""(["']){re.escape(word)}\1""", repr(f"{base}/{place}"), text)
    return text


@pytest.mark.parametrize("printed", PRINTED, ids=lambda one: f"{'+'.join(one['pages'])}-{one['case']}")
def test_as_printed(printed):
    base = new_place()
    check = CASES[printed["case"]](base)
    if printed["printed"].startswith("import"):
        exec(fragment_of(printed, base), {})
    else:
        ok(*words_of(printed, base))
    check(base)


def test_every_case_is_printed():
    assert {one["case"] for one in PRINTED} == CASES.keys()
    assert all(one.keys() <= {"pages", "printed", "case", "places", "words"} for one in PRINTED)


def test_what_the_places_are_called_is_all_that_differs():
    """Nothing else is left out or put in: the words are those that are printed, one for one."""
    for printed in PRINTED:
        if not printed["printed"].startswith("import"):
            typed, given = shlex.split(printed["printed"].replace("\\\n", " ")), words_of(printed, "memory://x")
            assert len(given) == len([word for word in typed if printed.get("words", {}).get(word) != ""])
