"""Families from outside the package: used everywhere a family is named, and refused where a file is wrong."""

import json
import time

import numpy as np
import pytest
from support.stores import arrays_at, new_place, put, put_model

import reshard
from reshard.errors import FormatError, NotFound, PlanError, StrategyError, UsageError
from reshard.models.own_family import read_own_family
from reshard.planning.plan_json import decode_plan, encode_plan
from reshard.storage import open_location

MINE = """
family: mine
title: "A model of one's own"
detect: {model_type: [mine], architectures: [MineForCausalLM]}

parameters:
  layers: {config: num_hidden_layers}
  h: {config: hidden_size}
  f: {config: intermediate_size}
indices:
  i: {to: layers, description: "layer"}
options:
  joined: {values: [false, true], side: ms, detect: {"true": "*.gate_up.weight"}, description: "gate and up as one"}
namings:
  legacy:
    description: "its own network"
    rows:
      - hf: {gate: "net.{i}.gate.weight [f h]", up: "net.{i}.up.weight [f h]"}
        ms:
          - {when: {joined: false}, gate: "block.{i}.w1.weight", up: "block.{i}.w3.weight"}
          - {when: {joined: true}, gate_up: "block.{i}.gate_up.weight [(f (gate: | up:)) h]"}
      - {hf: "net.{i}.down.weight [h f]", ms: "block.{i}.w2.weight"}
      - {hf: "norm.weight [h]", ms: "ln.weight"}
layouts:
  legacy:
    stages: legacy
    use_legacy: true
    blocks: {layer: ["block.{i}."]}
    rules:
      - {in: layer, names: ["(w1|w3|gate_up).weight"], split: [mp]}
      - {in: layer, names: [w2.weight], split: ["", mp]}
      - {names: [ln.weight], optimizer: false, stage: last}
    outside: [global_step]
"""


def model(layers=2):
    numbers = np.random.default_rng(0)
    shapes = {"gate": (6, 4), "up": (6, 4), "down": (4, 6)}
    found = {f"net.{i}.{n}.weight": numbers.standard_normal(s) for i in range(layers) for n, s in shapes.items()}
    return {name: a.astype(np.float32) for name, a in found.items()} | {"norm.weight": np.ones(4, np.float32)}


@pytest.fixture
def base():
    place = new_place()
    put(f"{place}/mine.yaml", MINE.encode())
    put_model(f"{place}/hf", model())
    return place


def test_there_and_back(base):
    asked = {"family": f"{base}/mine.yaml"}
    reshard.convert(f"{base}/hf", f"{base}/ms", to="ms", option={"joined": True}, **asked)
    made = arrays_at(f"{base}/ms")
    assert np.array_equal(made["block.1.gate_up.weight"][1::2], model()["net.1.up.weight"])
    reshard.convert(f"{base}/ms", f"{base}/back", to="hf", **asked)
    back = arrays_at(f"{base}/back")
    assert back.keys() == model().keys()
    assert all(np.array_equal(back[name], array) for name, array in model().items())


def test_cut_by_numbers_and_strategies(base):
    asked = {"family": f"{base}/mine.yaml"}
    reshard.convert(f"{base}/hf", f"{base}/ranks", to="ms", parallel="mp=2,pp=2", **asked)
    held = arrays_at(f"{base}/ranks", ["rank_3/checkpoint_3.safetensors"])
    assert held.keys() == {"block.1.w1.weight", "block.1.w2.weight", "block.1.w3.weight", "ln.weight"}
    assert np.array_equal(held["block.1.w1.weight"], model()["net.1.gate.weight"][3:])
    reshard.api.make_strategy(f"{base}/s.ckpt", checkpoint=f"{base}/hf", parallel="mp=2,pp=2", to="ms", **asked)
    reshard.convert(f"{base}/ranks", f"{base}/back", src_strategy=f"{base}/s.ckpt", to="hf", **asked)
    assert arrays_at(f"{base}/back").keys() == model().keys()
    reshard.convert(f"{base}/hf", f"{base}/ms", to="ms", **asked)
    made = reshard.api.make_strategy(f"{base}/t.ckpt", checkpoint=f"{base}/ms", parallel="mp=2", **asked)
    assert made.rank_count == 2


def test_plans_and_manifests_need_no_other_file(base):
    made = reshard.plan(f"{base}/hf", f"{base}/ms", to="ms", family=f"{base}/mine.yaml")
    saved = encode_plan(made)
    place = open_location(f"{base}/mine.yaml")
    place.store.delete(place.key)
    put(f"{base}/plan.json", saved)
    reshard.convert(plan=f"{base}/plan.json")
    assert reshard.verify(f"{base}/ms").is_ok
    assert "block.0.w1.weight" in arrays_at(f"{base}/ms")


def test_the_family_is_the_given_one(base):
    """A family of the package may have the same name, or know config.json."""
    text = MINE.replace("family: mine", "family: llama")
    put(f"{base}/llama.yaml", text.encode())
    put(f"{base}/hf/config.json", b'{"model_type": "llama"}')
    made = reshard.plan(f"{base}/hf", f"{base}/ms", to="ms", family=f"{base}/llama.yaml")
    assert "block.0.w1.weight" in {tensor.spec.name for tensor in made.conversion.tensors}
    with pytest.raises(PlanError, match="not those of llama"):
        reshard.plan(f"{base}/hf", f"{base}/ms", to="ms")


def test_names_of_another_model(base):
    put_model(f"{base}/other", {"a": np.ones(3, np.float32)})
    with pytest.raises(PlanError, match="The tensor names are not those of mine: a"):
        reshard.plan(f"{base}/other", f"{base}/ms", to="ms", family=f"{base}/mine.yaml")


def test_no_file(base):
    with pytest.raises(NotFound):
        reshard.plan(f"{base}/hf", f"{base}/ms", to="ms", family=f"{base}/none.yaml")
    with pytest.raises(UsageError, match="Unknown family"):
        reshard.plan(f"{base}/hf", f"{base}/ms", to="ms", family="mine")


def test_a_family_without_layouts(base):
    put(f"{base}/bare.yaml", MINE[: MINE.index("layouts:")].encode())
    reshard.plan(f"{base}/hf", f"{base}/ms", to="ms", family=f"{base}/bare.yaml")
    with pytest.raises(UsageError, match="mine has no parallel layouts"):
        reshard.plan(f"{base}/hf", f"{base}/ms", to="ms", family=f"{base}/bare.yaml", parallel="mp=2")
    reshard.convert(f"{base}/hf", f"{base}/ms", to="ms", family=f"{base}/bare.yaml")
    reshard.convert(f"{base}/ms", f"{base}/back", to="hf", family=f"{base}/bare.yaml")
    assert arrays_at(f"{base}/back").keys() == model().keys()


def test_runs_by_an_option_that_nobody_gives(base):
    """Each rank holds [its gate, its up], also where that is the option's only value."""
    runs = (
        MINE.replace(
            "  f: {config: intermediate_size}\n",
            """\
  f: {config: intermediate_size}
  runs: {by: mlp_layout, contiguous: blocks}
  run_f: {is: f / runs}
""",
        )
        .replace(
            "options:\n",
            """options:
  mlp_layout: {values: [contiguous], side: ms, description: "gate and up of a rank"}
  blocks: {values: count, side: ms, description: "runs"}
""",
        )
        .replace(
            '{gate: "net.{i}.gate.weight [f h]", up: "net.{i}.up.weight [f h]"}',
            ('{gate: "net.{i}.gate.weight [(runs run_f) h]", up: "net.{i}.up.weight [(runs run_f) h]"}'),
        )
        .replace("[(f (gate: | up:)) h]", "[(runs (gate: run_f | up: run_f)) h]")
    )
    runs = runs.replace("    use_legacy: true\n", "    use_legacy: true\n    runs: {mlp_layout: contiguous}\n")
    put(f"{base}/runs.yaml", runs.encode())
    asked = {"family": f"{base}/runs.yaml", "option": {"joined": True}}
    reshard.convert(f"{base}/hf", f"{base}/ranks", to="ms", parallel="mp=2", **asked)
    held = arrays_at(f"{base}/ranks", ["rank_1/checkpoint_1.safetensors"])["block.0.gate_up.weight"]
    mine = [model()[f"net.0.{name}.weight"][3:] for name in ("gate", "up")]
    assert np.array_equal(held, np.concatenate(mine))


# Wrong files.


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("title:", "titel:", "unknown key 'titel'"),
        ("family: mine", "family: [mine]", "mine.yaml, family: text: expected text"),
        ("family: mine", "family: ../mine", "expected a name of letters"),
        ("[f h]", "[f q]", "q is not declared"),
        ("{to: layers,", "{to: 'layers **',", "mine.yaml, indices, i: expression"),
        ("joined: false}", "joind: false}", "condition on joind"),
        ("  h: {config: hidden_size}", "  h: {confg: hidden_size}", "mine.yaml, parameters, h: keys"),
        ('"norm.weight [h]"', '"norm.weight [h"', "legacy, row 3: tensor"),
        ("  h: {config: hidden_size}", "  h: *x", "line 8: invalid YAML (aliases are not allowed)"),
        ("  h: {config: hidden_size}", "  h: !!python/name:os.system {}", "line 8"),
        ("stages: legacy", "stages: none", "legacy, stages: expected legacy or mcore or even, found 'none'"),
        ("use_legacy: true", "use_legacy: 1", "legacy, use_legacy: expected true or false"),
        ("use_legacy: true", "extends: gpt", "legacy, extends: expected one of deepseek_v3"),
        ("use_legacy: true", "extends: qwen3", "legacy, extends: qwen3 has no layouts for this naming"),
        ("in: layer, names: [w2", "in: layers, names: [w2", "rule 2, in: expected one of blocks, found 'layers'"),
        ("split: [mp]}", "split: mp}", "rule 1, split: expected a list of texts"),
        ("split: [mp]}", "split: [tp]}", "split: expected dp, cp, mp, found 'tp'"),
        ("split: [mp]}", "slit: [mp]}", "rule 1: unknown key 'slit'"),
        ("(w1|w3|gate_up)", "(w1|w3|gate_up", "parentheses that do not match"),
        ("(w1|w3|gate_up)", "(a|a)(a|a)(a|a)(a|a)(a|a)(a|a)(a|a)", "at most 6 wildcards"),
        ("stage: last}", "stage: tail}", "stage tail: expected {j} in the names"),
        ("    outside: [global_step]", "    outside: 3", "legacy, outside: expected a list of texts"),
        ("layouts:\n  legacy:", "layouts:\n  - legacy:", "expected a mapping of namings"),
    ],
)
def test_what_is_wrong_is_named(old, new, told):
    assert old in MINE
    with pytest.raises(FormatError) as error:
        read_own_family(MINE.replace(old, new, 1).encode(), "mine.yaml")
    assert told in str(error.value)
    assert str(error.value).startswith("mine.yaml")


def bombs():
    deep = "(" * 5000
    places = "".join(f"      p{n}: [{', '.join(['{hf: a, ms: b}'] * 50)}]\n" for n in range(6))
    used = "".join(f"<p{n}>" for n in range(6))
    yield "size", MINE + "#" * (1 << 20)
    yield "nesting", MINE.replace("{to: layers", f"{{to: '{deep}layers'")
    yield "axes", MINE.replace("[f h]", f"[{deep}f h]")
    yield "product", MINE.replace("{to: layers", "{to: '" + "9999999 * " * 5000 + "9'")
    yield (
        "places",
        MINE.replace("    rows:\n", f"    places:\n{places}    rows:\n      - {{hf: '{used}', ms: '{used}'}}\n"),
    )
    runs = " ".join(f"({' | '.join(f'a{n}{k}:' for k in range(9))})" for n in range(9))
    yield "parts", MINE.replace('"norm.weight [h]"', f'"norm.weight [{runs}]"')
    yield "yaml", "[" * 100_000
    yield "bytes", "\0\ufffe"


@pytest.mark.parametrize(("kind", "text"), list(bombs()), ids=[kind for kind, _ in bombs()])
def test_hostile_files_end_in_an_error_at_once(kind, text):
    started = time.monotonic()
    with pytest.raises(FormatError):
        read_own_family(text.encode("utf-8", "replace"), "mine.yaml")
    assert time.monotonic() - started < 5


def test_many_names_of_hostile_sizes_are_refused(base):
    tie = "    ties:\n      - {ms: 'x.{i}.{k}', of: 'ln.weight'}\n"
    text = MINE.replace("layouts:", f"{tie}layouts:").replace("options:", "  k: {to: layers}\noptions:", 1)
    put(f"{base}/wide.yaml", text.encode())
    config = {"num_hidden_layers": 65536}
    with pytest.raises(PlanError, match="more than any model has"):
        reshard.plan(f"{base}/hf", f"{base}/ms", to="ms", family=f"{base}/wide.yaml", config=config)


@pytest.mark.parametrize("text", ["", "x", "family: other", MINE.replace("family: mine", "family: yours"), "[" * 9999])
def test_a_forged_plan_is_refused(base, text):
    made = reshard.plan(f"{base}/hf", f"{base}/ms", to="ms", family=f"{base}/mine.yaml")
    body = json.loads(encode_plan(made))
    body["conversion"]["change"]["family_file"] = text
    with pytest.raises(FormatError):
        decode_plan(json.dumps(body).encode(), "plan.json")


def test_layouts_may_extend_those_of_the_package(base):
    text = f"{MINE[: MINE.index('layouts:')]}layouts:\n  legacy: {{extends: llama, rules: [{{names: ['block.**']}}]}}\n"
    put(f"{base}/extending.yaml", text.encode())
    asked = {"to": "ms", "family": f"{base}/extending.yaml", "rename": "norm.weight=norm.weight"}
    with pytest.raises(StrategyError, match=r"ln\.weight: no rule matches this name"):
        reshard.plan(f"{base}/hf", f"{base}/ms", parallel="mp=2", **asked)
    put(f"{base}/extending.yaml", text.replace("ln.weight", "model.norm_out.weight").encode())
    assert reshard.plan(f"{base}/hf", f"{base}/ms", parallel="mp=2", **asked).conversion.target.strategy.rank_count == 2


def test_problems_of_a_hostile_family_have_an_end(base):
    rows = "".join(f"      - {{hf: 'a{n}.{{i}}', ms: 'b{n}.{{i}}'}}\n" for n in range(1000))
    text = f"{MINE[: MINE.index('layouts:')]}{rows}"
    put(f"{base}/many.yaml", text.encode())
    started = time.process_time()
    config = {"num_hidden_layers": 1 << 14, "hidden_size": 4, "intermediate_size": 6}
    with pytest.raises(PlanError, match="does not fit"):
        reshard.plan(f"{base}/hf", f"{base}/ms", to="ms", family=f"{base}/many.yaml", config=config)
    assert time.process_time() - started < 20
