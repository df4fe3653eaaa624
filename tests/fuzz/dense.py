"""Inputs of several MiB that are as dense as their format allows, each in a process of its own.

``python tests/fuzz/dense.py [CASE ...]`` prints a line of JSON for each; exit 1 if one takes more than five seconds of
the processor, or more memory than ten times its length and 64 MiB.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import reshard
from fuzz.limits import forget_peak, peak_bytes, resident_bytes, run_one
from fuzz.run import seeds_of
from fuzz.targets import TARGETS
from reshard.engine.manifest import encode_manifest
from reshard.planning.plan_json import encode_plan
from reshard.storage import open_target

_NBYTES = 8 << 20


def _filled(start: bytes, unit: bytes, end: bytes, nbytes: int = _NBYTES) -> bytes:
    return start + unit * ((nbytes - len(start) - len(end)) // len(unit)) + end


def _members(form: str, count: int) -> bytes:
    return ",".join(form.replace("#", str(number)) for number in range(count)).encode()


def _header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + _varint(value >> 7)


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _ckpt(count: int) -> bytes:
    tensor = b"\x08\x01" + _field(2, b"Int8") + _field(3, b"x")
    return b"".join(_field(1, _field(1, b"w%d" % number) + _field(2, tensor)) for number in range(count))


def _own(form: str, what: str, **options: str) -> bytes:
    """Make a plan or a manifest of many tensors without bytes."""
    source = open_target("memory://fuzz-dense/src/model.safetensors")
    text = b"{" + _members(form, 25_000) + b"}"
    source.writable_store().put(source.key, _header(text))
    if what == "plan":
        return encode_plan(reshard.plan("memory://fuzz-dense/src", "memory://fuzz-dense/dst", memory="4GiB", **options))
    return encode_manifest(
        reshard.convert("memory://fuzz-dense/src", "memory://fuzz-dense/dst", memory="4GiB", **options)
    )


_ANSWER = b"200\n\n<?xml version='1.0'?><ListBucketResult>#</ListBucketResult>"
_ERROR = b"400\n\n<Error><Message>"
_JOURNAL = b'{"format":"reshard-journal/1","entries":['
_KEYS = b"<Contents><Key>p/a</Key><Size>1</Size></Contents>"
_EMPTY = '"t#":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
_LONG = '"model.layers.0.mlp.experts.#.gate_proj.weight":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
_RULES = b"axes: {a: 2}\nrules:\n"

CASES: Mapping[str, tuple[str, Callable[[], bytes]]] = {
    "header_empty": ("safetensors", lambda: _header(b"{" + _members(_EMPTY, 1_000_000) + b"}")),
    "header_most": ("safetensors", lambda: _header(b"{" + _members(_LONG, 150_000) + b"}")),
    "header_axes": ("safetensors", lambda: _header(_filled(b'{"a":{"dtype":"U8","shape":[', b"1,", b"1]}}"))),
    "header_metadata": ("safetensors", lambda: _header(b'{"__metadata__":{' + _members('"#":"#"', 500_000) + b"}}")),
    "pickle_dictionaries": ("dcp_metadata", lambda: _filled(b"\x80\x04(", b"}", b".")),
    "pickle_memo": ("dcp_metadata", lambda: _filled(b"\x80\x04(", b"N\x94", b".", 4 << 20)),
    "json_members": ("index", lambda: _filled(b'{"weight_map":{"a":[', b'{"a":0},', b"0]}}")),
    "json_arrays": ("index", lambda: _filled(b'{"weight_map":{"a":[', b"[0],", b"0]}}")),
    "json_objects": ("plan", lambda: _filled(b'{"format":"reshard-plan/2","a":[', b"{},", b"0]}")),
    "json_names": ("index", lambda: b'{"weight_map":{' + _members('"#":"#"', 500_000) + b"}}"),
    "json_repeated": ("index", lambda: b"{" + _members('"#":1,"#":1', 300_000) + b"}"),
    "yaml_flow": ("layout", lambda: b"rules: [" + b"a," * 190_000 + b"]"),
    "yaml_block": ("training", lambda: b"a:\n" + b"- x\n" * 190_000),
    "yaml_aliases": ("training", lambda: b"a: &a [" + b"x," * 1000 + b"]\nb: [" + b"*a," * 190 + b"]"),
    "yaml_long": ("training", lambda: _filled(b'a: "', b"x\\n", b'"', 4 << 20)),
    "layout_rules": ("layout", lambda: _RULES + b"  - {match: 'x*', split: [a]}\n" * 7000),
    "layout_globs": ("layout", lambda: _RULES + b"  - match: [" + b"'x*a*b*'," * 40_000 + b"]\n    split: [a]"),
    "layout_ranks": ("layout", lambda: b"axes: {a: 1000000}\nrules: [{match: '*', split: []}]"),
    "strategy_fields": ("strategy_protobuf", lambda: b"\x50\x01" * (_NBYTES // 2)),
    "strategy_items": ("strategy_protobuf", lambda: _field(2, b"") * (_NBYTES // 2)),
    "ckpt_values": ("ckpt", lambda: _ckpt(280_000)),
    "parallel_long": ("parallel_text", lambda: b"mp=2," * (_NBYTES // 5)),
    "ranks_long": ("request", lambda: b"ranks=" + b"0-7," * (1 << 19) + b"1"),
    "plan_tensors": ("plan", lambda: _own(_EMPTY, "plan")),
    "plan_long_names": ("plan", lambda: _own(_LONG, "plan")),
    "manifest_tensors": ("manifest", lambda: _own(_EMPTY, "manifest")),
    "manifest_long_names": ("manifest", lambda: _own(_LONG, "manifest")),
    "journal_entries": (
        "journal",
        lambda: _filled(b'{"format":"reshard-journal/1","entries":[', b'["anew","a"],', b"0]}"),
    ),
    "answer_message": (
        "answer_head",
        lambda: _filled(b"400\n\n<Error><Message>", b"://a:", b"@</Message></Error>", 1 << 20),
    ),
    "answer_keys": ("answer_list", lambda: _ANSWER.replace(b"#", _KEYS * 10_000)),
    "url_secrets": ("url", lambda: _filled(b"", b"://a:", b"@", 1 << 17)),
    "terminal_secrets": ("terminal", lambda: _filled(b"", b"://a:", b"@", 1 << 17)),
    "terminal_queries": ("terminal", lambda: _filled(b"?=", b"&token", b"", 1 << 17)),
    "settings_deep": ("settings", lambda: b"jobs.a." + b"a." * 5000 + b"a=1"),
    "parallel_deep": ("parallel_text", lambda: b"offset=" + b"[" * 4900 + b"]" * 4900),
    "pattern_deep": ("pattern", lambda: b"(" * 100_000),
    "variables_long": ("variables", lambda: b"${" * (1 << 19)),
    "hyper_parameters_long": ("hyper_parameters", lambda: b"--a=b\n" * 20_000),
    "local_parts": ("local_record", lambda: b"1 0+300\n" * 200_000),
    "slow_expression": ("patterns", lambda: b"x=y\nregex:(a|aa)+$b=c"),
}
"""Every case: a target, and what makes its input."""


def measure(name: str, data: bytes) -> int:
    """Run one case in this process, and print what it took; return whether it broke a limit."""
    target = CASES[name][0]
    for seed in seeds_of(target):
        run_one(TARGETS[target], seed, sys.maxsize)
    forget_peak()
    outcome = run_one(TARGETS[target], data, max(resident_bytes(), peak_bytes()))
    seen = {"case": name, "bytes": len(data), "seconds": round(outcome.seconds, 2)}
    print(json.dumps({**seen, "mib": outcome.allocated_bytes >> 20, "end": outcome.kind, "problem": outcome.problem}))
    return int(bool(outcome.problem))


def main(names: Sequence[str]) -> int:
    """Run the cases, or all of them, each in a process of its own, and its input made in another."""
    if names[:1] == ["--make"]:
        sys.stdout.buffer.write(CASES[names[1]][1]())
        return 0
    if names[:1] == ["--here"]:
        return measure(names[1], sys.stdin.buffer.read())
    broken = 0
    for name in names or CASES:
        made = subprocess.run([sys.executable, __file__, "--make", name], stdout=subprocess.PIPE, check=True).stdout
        broken += subprocess.run([sys.executable, __file__, "--here", name], input=made, check=False).returncode
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
