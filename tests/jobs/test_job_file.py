"""Job files: what they say, and what is wrong with them, line by line."""

import io
import json
import sys

import jsonschema
import pytest
import yaml

from reshard.api.request import OPTIONS
from reshard.errors import FormatError, UsageError
from reshard.jobs import job_schema, parse_job_file, read_job_file
from reshard.storage import MemoryStore


def parse(text, settings=(), **environment):
    return parse_job_file(text.encode(), "job.yaml", environment, settings)


def mistakes(text, settings=(), **environment):
    with pytest.raises(UsageError) as caught:
        parse(text, settings, **environment)
    return list(caught.value.problems)


# What they say.


def test_one_job_is_the_options_of_a_request():
    text = """
        src: s3://a/model
        dst: s3://a/ranks
        dst_layout: l.yaml
        dtype: bf16
        ranks: [0, 1, 5]
        keep: model.*
        to: ms
        option: {qkv_concat: true}
        memory: 256MiB
        remove_redundancy: yes
        """
    (job,) = parse(text)
    request = job.request
    assert (request.src, request.dst, request.dst_layout, request.dtype) == (
        "s3://a/model", "s3://a/ranks", "l.yaml", "bf16",
    )  # fmt: skip
    assert (request.keep, request.memory, request.remove_redundancy) == (("model.*",), 256 << 20, True)
    assert [rank for span in request.ranks for rank in span] == [0, 1, 5]


def test_defaults_hold_for_every_job_that_does_not_say_otherwise():
    text = "{defaults: {src: s3://a/m, dtype: bf16}, jobs: {x: {dst: s3://a/x}, y: {dst: s3://a/y, dtype: fp16}}}"
    assert [(job.name, job.request.src, job.request.dtype) for job in parse(text)] == [
        ("x", "s3://a/m", "bf16"), ("y", "s3://a/m", "fp16"),
    ]  # fmt: skip


def test_a_matrix_is_a_job_of_every_combination():
    text = """
        jobs:
          cut:
            src: s3://a/m
            matrix:
              dst_layout: {four: s3://a/l4.yaml, eight: s3://a/l8.yaml}
              ranks: [0-1, 2-3]
            dst: s3://a/${job}/${matrix.dst_layout}
          many:
            matrix:
              src: [s3://a/one.safetensors, "s3://a/two/"]
              where: [x, z]
            dst: s3://b/${matrix.where}/${matrix.src}
        """
    jobs = {job.name: job.request for job in parse(text)}
    assert list(jobs) == [
        "cut/four/0-1", "cut/four/2-3", "cut/eight/0-1", "cut/eight/2-3",
        "many/one/x", "many/one/z", "many/two/x", "many/two/z",
    ]  # fmt: skip
    assert jobs["cut/eight/2-3"].dst == "s3://a/cut/eight/2-3/s3://a/l8.yaml"
    assert jobs["cut/eight/2-3"].ranks == (range(2, 4),)
    assert (jobs["many/two/z"].src, jobs["many/two/z"].dst) == ("s3://a/two/", "s3://b/z/s3://a/two/")


def test_variables_come_from_the_environment():
    text = "{src: 's3://${BUCKET}/m', dst: 's3://${OTHER:-spare}/${EMPTY}x', prefix: 'a$${b}', keep: ['${K}.*']}"
    (job,) = parse(text, BUCKET="in", EMPTY="", K="model")
    request = job.request
    assert (request.src, request.dst, request.prefix, request.keep) == (
        "s3://in/m", "s3://spare/x", "a${b}", ("model.*",),
    )  # fmt: skip


def test_a_variable_stands_for_any_type():
    (job,) = parse("{src: s3://a/m, dst: s3://a/n, concurrency: '${N}', overwrite: '${YES}'}", N="3", YES="true")
    assert (job.request.concurrency, job.request.overwrite) == (3, True)


def test_settings_take_precedence():
    one = "{src: s3://a/m, dst: s3://a/n, dtype: fp16}"
    (job,) = parse(one, ["dst=s3://b/n", "dtype=bf16", "option.qkv_concat=true", "to=ms"])
    assert (job.request.dst, job.request.dtype, job.request.option) == ("s3://b/n", "bf16", {"qkv_concat": "true"})
    batch = "{defaults: {src: s3://a/m}, jobs: {x: {dst: s3://a/x}, y: {dst: s3://a/y}}}"
    jobs = parse(batch, ["jobs.y.dtype=bf16", "defaults.memory=1GiB"])
    assert [(job.request.dtype, job.request.memory) for job in jobs] == [(None, 1 << 30), ("bf16", 1 << 30)]
    (only,) = parse("{jobs: {x: {src: s3://a/m, dst: s3://a/n}}}", ["dst=s3://c/n"])
    assert only.request.dst == "s3://c/n"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("dst", "dst: expected PATH=VALUE"),
        ("=x", "expected PATH=VALUE"),
        ("dst=s3://x", "the file has 2 jobs; name one, like jobs.x.dst"),
        ("jobs.z.dst=s3://x", "the file has no job z"),
    ],
)
def test_settings_that_name_nothing(setting, message):
    batch = "{defaults: {src: s3://a/m}, jobs: {x: {dst: s3://a/x}, y: {dst: s3://a/y}}}"
    assert message in mistakes(batch, [setting])[0]


def test_a_job_needs_what_it_names_and_what_writes_its_source():
    text = """
        jobs:
          merge: {src: s3://a/ranks, dst: s3://a/full}
          cut: {src: s3://a/full/, dst: s3://a/cut, needs: check}
          check: {matrix: {src: [s3://a/p, s3://a/q]}, dst: "s3://a/checked/${matrix.src}"}
        """
    needs = {job.name: job.needs for job in parse(text)}
    assert needs == {"merge": (), "cut": ("merge", "check/p", "check/q"), "check/p": (), "check/q": ()}


def test_anchors_are_understood():
    text = "{defaults: &d {dtype: bf16}, jobs: {x: {<<: *d, src: s3://a/m, dst: s3://a/x}}}"
    assert parse(text)[0].request.dtype == "bf16"


def test_where_they_are_read(tmp_path, monkeypatch):
    data = b"{src: s3://a/m, dst: s3://a/n}"
    (tmp_path / "job.yaml").write_bytes(data)
    MemoryStore("jobs").put("x/job.yaml", data)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    for url in (str(tmp_path / "job.yaml"), "memory://jobs/x/job.yaml", "-"):
        assert read_job_file(url)[0].request.src == "s3://a/m"


# What is wrong with them.


def test_ten_mistakes_are_ten_lines():
    text = """defaults:
  memory: lots
  dtpye: bf16
jobs:
  one:
    src: s3://a/m
    dst: s3://a/x
    concurrency: 0
    dtype: fp32
    dtype: fp16
  two:
    src: s3://a/m
    ranks: 7-3
    needs: three
  bad name!: {src: a, dst: b}
  three:
    src: ${UNSET_VARIABLE}
    dst: s3://a/x
    option: [a]
    form: hff
"""
    assert mistakes(text) == [
        "line 2: memory: lots: expected bytes, or a number with KB, MB, GB, KiB, MiB or GiB, like 256MiB",
        "line 3: dtpye: unknown (did you mean dtype?)",
        "line 8: concurrency: 0: expected at least 1",
        "line 10: repeated key 'dtype'",
        "line 11: dst is missing in two",
        "line 13: ranks: 7-3: expected ranks and spans of ranks, like 0-7,16",
        "line 15: bad name!: a name has letters, digits, - and _, at most 64",
        "line 17: ${UNSET_VARIABLE}: this variable is not in the environment",
        "line 19: option: ['a']: expected NAME=VALUE",
        "line 20: form: hff: expected hf, mindspore, zarr, iteration, dcp or vllm",
    ]


def test_contradictions_between_options_are_mistakes():
    text = """jobs:
  a:
    src: s3://a/m
    dst: s3://a/n
    dst_layout: l.yaml
    parallel: dp=2
    iteration: 3
"""
    assert mistakes(text) == [
        "line 2: dst_layout: l.yaml and parallel: dp=2 cannot be used together. Choose one.",
        "line 2: iteration needs form: iteration.",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "line 1: expected a job or a batch, found None"),
        ("- a", "line 1: expected a job or a batch, found ['a']"),
        ("jobs: {}", "line 1: jobs: expected a mapping from names to jobs"),
        ("jobs: {a: 3}", "line 1: a: expected a mapping of options"),
        ("{defaults: 3, jobs: {a: {src: a, dst: b}}}", "line 1: defaults: expected a mapping of options"),
        ("{memory: 1GiB, jobs: {a: {src: a, dst: b}}}", "line 1: memory: unknown; in a batch, options are in defaults"),
        ("{src: a, dst: b, matrix: 3}", "line 1: matrix: expected a mapping"),
        ("{src: a, dst: b, matrix: {ranks: 3}}", "line 1: matrix.ranks: expected a list of values"),
        ("{src: a, dst: b, matrix: {x: [1, 2]}}", "line 1: job: matrix.x is no option, and no ${matrix.x} uses it"),
        ("{src: a, dst: '${matrix.y}'}", "line 1: ${matrix.y}: the matrix has no such key"),
        ("{src: a, dst: '${a b}'}", "line 1: ${a b}: expected ${NAME}"),
        ("{jobs: {a: {src: a, dst: b, needs: 3}}}", "line 1: needs: expected the names of other jobs"),
        ("{jobs: {ab: {src: a, dst: b}, c: {src: a, dst: c, needs: abc}}}", "c needs abc: unknown (did you mean ab?)"),
        ("{jobs: {a: {src: x, dst: b, needs: c}, c: {src: x, dst: d, needs: a}}}", "a can never start: it needs c"),
        ("{jobs: {a: {src: b, dst: c}, d: {src: c, dst: b}}}", "a can never start: it needs d"),
        ("{src: a, dst: b, matrix: {dtype: [fp16, fp16]}, prefix: x}", "job/fp16: the name of two combinations"),
    ],
)
def test_other_mistakes(text, expected):
    assert any(expected in problem for problem in mistakes(text)), mistakes(text)


def test_two_jobs_that_write_one_place():
    text = "{src: s3://a/m, dst: s3://a/n, matrix: {dtype: [fp16, bf16]}}"
    assert mistakes(text) == ["line 1: job/bf16 and job/fp16 both write s3://a/n"]
    shares = "{src: s3://a/m, dst: s3://a/n, dst_layout: l.yaml, matrix: {ranks: [0-3, 4-7]}}"
    assert len(parse(shares)) == 2
    overlapping = "{src: s3://a/m, dst: s3://a/n, dst_layout: l.yaml, matrix: {ranks: [0-3, 3-7]}}"
    assert len(mistakes(overlapping)) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("out", "./out"),
        ("out", "out/"),
        ("memory://a/out", "memory://a//out"),
        ("memory://a/out", "memory://a/./out/"),
        ("s3://a/out", "obs://a/out"),
        ("S3://a/out", "s3://a/out"),
    ],
)
def test_one_place_is_known_however_it_is_spelled(one, other, clean_environ):
    for name in ("AWS_ENDPOINT_URL", "OBS_ENDPOINT"):
        clean_environ.setenv(name, "http://127.0.0.1:9")
    text = f"{{defaults: {{src: memory://a/m}}, jobs: {{x: {{dst: '{one}'}}, y: {{dst: '{other}'}}}}}}"
    assert mistakes(text) == [f"line 1: y and x both write {other}"]


@pytest.mark.parametrize(("outer", "inner"), [("out", "./out/x"), ("memory://a/out", "memory://a//out/x/y")])
def test_a_place_inside_another_job_s(outer, inner):
    text = f"defaults: {{src: memory://a/m}}\njobs:\n  x: {{dst: '{inner}'}}\n  y: {{dst: '{outer}'}}\n"
    assert mistakes(text) == [f"line 3: x writes {inner}, which is inside {outer} of y"]
    apart = "{defaults: {src: memory://a/m}, jobs: {x: {dst: memory://a/out}, y: {dst: memory://a/out2}}}"
    assert len(parse(apart)) == 2


@pytest.mark.parametrize(
    ("fields", "dst"),
    [
        ("src: memory://a//made/", "memory://a/made"),
        ("src: memory://a/made/rank_0", "memory://a/made"),
        ("src: ./made", "made"),
        ("src: memory://a/m, lora: memory://a/made/adapters", "memory://a/made"),
        ("src: memory://a/m, dst_layout: memory://a/made/l.yaml", "memory://a/made"),
    ],
)
def test_a_job_needs_what_writes_around_what_it_reads(fields, dst):
    text = f"{{jobs: {{second: {{{fields}, dst: memory://a/last}}, first: {{src: memory://a/x, dst: '{dst}'}}}}}}"
    assert {job.name: job.needs for job in parse(text)} == {"second": ("first",), "first": ()}


@pytest.mark.parametrize("value", ["${NOWHERE:-}", "${EMPTY}", "''"])
def test_a_place_that_is_empty(value):
    found = mistakes(f"src: s3://a/m\ndst: {value}\n", EMPTY="")
    assert found == ["line 2: dst is empty"]


def test_text_options_are_read_as_they_are_written():
    text = """
        src: s3://a/m
        dst: s3://a/n
        file_suffix: 1_10
        prefix: 007
        family: yes
        keep: [0x10, 1.50, no]
        dst_layout: l.yaml
        ranks: 3
        """
    request = parse(text)[0].request
    assert (request.file_suffix, request.prefix, request.family) == ("1_10", "007", "yes")
    assert request.keep == ("0x10", "1.50", "no")
    assert request.ranks == (range(3, 4),)
    batch = "{defaults: {src: a, prefix: +5}, jobs: {x: {dst: b, dst_layout: l, matrix: {file_suffix: [08, 1_10]}}}}"
    with pytest.raises(UsageError, match="both write b"):
        parse(batch)
    jobs = parse(batch.replace("dst: b", "dst: 'b/${matrix.file_suffix}'"))
    assert [(job.name, job.request.file_suffix, job.request.prefix) for job in jobs] == [
        ("x/08", "08", "+5"), ("x/1_10", "1_10", "+5"),
    ]  # fmt: skip
    merged = "{defaults: &d {prefix: 01}, jobs: {x: {<<: *d, src: s3://a/m, dst: s3://a/x, prefix: 02}}}"
    assert parse(merged)[0].request.prefix == "02"


def test_defaults_are_options_alone():
    text = "defaults:\n  needs: a\n  matrix: {dtype: [fp16]}\njobs: {a: {src: s3://a/m, dst: s3://a/n}}\n"
    assert mistakes(text) == ["line 2: defaults: needs belongs to a job", "line 3: defaults: matrix belongs to a job"]


@pytest.mark.parametrize(
    "text",
    [
        "src: [",
        "\x00",
        "a: &a [*a]",
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
    ],
    ids=["syntax", "control", "cycle", "bomb"],
)
def test_what_is_no_yaml_and_bombs_are_refused(text):
    with pytest.raises(FormatError):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{axes: {mp: 2}, rules: []}", "this is a layout file, not a job file of reshard"),
        ("{load_checkpoint: x, parallel_config: {model_parallel: 2}}", "this is the configuration of a training job"),
    ],
)
def test_files_of_other_kinds(text, message):
    with pytest.raises(FormatError, match=message):
        parse(text)


def test_too_many_combinations():
    values = ", ".join(f'"{n}"' for n in range(200))
    text = f"{{src: a, dst: 'b/${{matrix.x}}/${{matrix.y}}', matrix: {{x: [{values}], y: [{values}]}}}}"
    assert "matrix: 40000 combinations; at most 10000 are supported" in mistakes(text)[0]


# The schema.

VALID = [
    "{src: s3://a, dst: s3://b, dst_layout: l.yaml, dtype: bf16}",
    "{defaults: {memory: 1GiB, if_exists: skip}, jobs: {a: {src: s3://a, dst: s3://b, ranks: 3, needs: [b]}}}",
    "{src: a, dst: b, concurrency: '${N}', keep: [x, z], option: {a: 1}, lora: l, lora_scaling: 16/8, overwrite: true}",
    "{matrix: {src: [a, b], ranks: {low: 0-7}}, dst: '${matrix.src}'}",
]


@pytest.mark.parametrize("text", VALID)
def test_the_schema_takes_what_is_right(text):
    jsonschema.validate(yaml.safe_load(text), job_schema())


@pytest.mark.parametrize(
    "text",
    [
        "{src: s3://a, dts: s3://b}",
        "{src: s3://a, dst: s3://b, dtype: float}",
        "{src: s3://a, dst: s3://b, concurrency: 0}",
        "{jobs: {'a b': {src: s3://a, dst: s3://b}}}",
        "{jobs: {a: {src: s3://a, dst: s3://b, needs: 3}}}",
        "{jobs: {a: {src: s3://a, dst: s3://b}}, memory: 3}",
        "{defaults: {dtype: bf16}}",
    ],
)
def test_the_schema_refuses_what_is_wrong(text):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), job_schema())


@pytest.mark.parametrize(
    "field",
    [
        "dtype: null", "dtype: bf16", "dtype: float", "dtype: 3", "file_suffix: 1_10", "file_suffix: 110",
        "prefix: yes", "prefix: [a]", "keep: 3", "keep: [a, 3]", "keep: {a: b}", "concurrency: 3",
        "concurrency: '3'", "concurrency: 0", "concurrency: three", "overwrite: yes", "overwrite: 'true'",
        "overwrite: maybe", "overwrite: null", "memory: 1GiB", "memory: 17", "needs: 3", "ranks: 3",
        "ranks: [0, 1]", "ranks: 0-3", "lora_scaling: 0.5", "lora_scaling: 16/8", "option: {a: 1}", "option: 3",
        "matrix: {keep: [a]}", "matrix: {keep: a}",
    ],
)  # fmt: skip
def test_the_schema_and_the_reader_agree(field):
    more = ", dst_layout: l" * field.startswith("ranks") + ", lora: l" * field.startswith("lora_")
    more += ", to: ms" * field.startswith("option")
    text = f"{{src: memory://a/m, dst: memory://a/n{more}, {field}}}"

    def is_read() -> bool:
        try:
            return bool(parse(text))
        except UsageError:
            return False

    validator = jsonschema.Draft202012Validator(job_schema())
    assert validator.is_valid(yaml.safe_load(text)) == is_read()


@pytest.mark.parametrize("key", ["needs: a", "matrix: {dtype: [fp16]}"])
def test_the_schema_refuses_in_defaults_what_belongs_to_a_job(key):
    text = f"{{defaults: {{{key}}}, jobs: {{a: {{src: s3://a/m, dst: s3://a/n}}}}}}"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), job_schema())


def test_the_schema_knows_every_option():
    schema = job_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$defs"]["options"]["properties"].keys() == OPTIONS.keys()
    assert json.loads(json.dumps(schema)) == schema
