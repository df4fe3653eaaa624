"""The boot file of a job: what it understands, what its log tells, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli.runner import Done, run
from docs.model import put_llama
from support.s3_servers import S3Server

import reshard

CASES = Path(__file__).parents[1] / "conformance" / "mindspore"
FULL = str(CASES / "split_mp4/in/full")
STRATEGY = str(CASES / "split_mp4/strategy/mp4.ckpt")
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (INFO|WARNING|ERROR) node (?:\?|\d+/\d+): [^\x00-\x1f\x7f]*")


@pytest.fixture(autouse=True)
def _clean(clean_environ: pytest.MonkeyPatch) -> None:
    """No variable of a job around the tests."""


def job(*arguments: str) -> Done:
    """Run the boot file; its log must be plain lines, all on stdout."""
    done = run("modelarts", *arguments)
    assert done.err == ""
    lines = done.out.splitlines()
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    assert re.search(rf"exit code {done.code} after \d", lines[-1])
    return done


def on_node(patch: pytest.MonkeyPatch, index: int, count: int) -> None:
    patch.setenv("MA_NUM_HOSTS", str(count))
    patch.setenv("VC_TASK_INDEX", str(index))


def told(done: Done, text: str) -> list[str]:
    return [line for line in done.out.splitlines() if text in line]


def cut(dst: Path, *more: str) -> Done:
    return job(f"--src={FULL}", f"--dst={dst}", f"--dst_strategy={STRATEGY}", *more)


def ranks_in(dst: Path) -> list[str]:
    return sorted(path.parent.name for path in dst.glob("rank_*/*"))


def test_one_node_writes_all(tmp_path: Path) -> None:
    done = cut(tmp_path / "out", "--npu_num_per_node=2")
    assert done.code == 0
    assert ranks_in(tmp_path / "out") == [f"rank_{rank}" for rank in range(4)]
    assert told(done, "a target of 4 ranks: all of it is this node's")
    assert reshard.verify(str(tmp_path / "out")).is_ok


def test_started_again_it_leaves_what_is_there(tmp_path: Path) -> None:
    assert cut(tmp_path / "out").code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    done = cut(tmp_path / "out")
    assert done.code == 0
    assert told(done, "found 4 objects")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_two_nodes_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_node(monkeypatch, 0, 2)
    first = cut(tmp_path / "out", "--npu_num_per_node=2", "--wait=0")
    assert first.code == 5
    assert ranks_in(tmp_path / "out") == ["rank_0", "rank_1"]
    assert told(first, "ERROR node 0/2: after 0 s the destination is not complete: ranks 2-3 of node 1 are missing")
    on_node(monkeypatch, 1, 2)
    second = cut(tmp_path / "out", "--npu_num_per_node=2", "--wait=0")
    assert second.code == 0
    assert told(second, "ranks 2-3 are this node's")
    on_node(monkeypatch, 0, 2)
    again = cut(tmp_path / "out", "--npu_num_per_node=2", "--wait=0")
    assert again.code == 0
    assert told(again, "found 2 objects")
    assert reshard.verify(str(tmp_path / "out")).is_ok


def test_a_node_beyond_the_target_has_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_node(monkeypatch, 1, 2)
    done = cut(tmp_path / "out", "--wait=0")
    assert done.code == 5
    assert told(done, "nothing of it is this node's")
    assert not (tmp_path / "out").exists()
    on_node(monkeypatch, 0, 2)
    assert cut(tmp_path / "out", "--wait=0").code == 0
    on_node(monkeypatch, 1, 2)
    assert cut(tmp_path / "out", "--wait=0").code == 0


def test_a_full_target_is_the_first_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = f"--src={FULL}", f"--dst={tmp_path / 'out'}", "--wait=0"
    on_node(monkeypatch, 1, 2)
    assert job(*where).code == 5
    on_node(monkeypatch, 0, 2)
    assert job(*where).code == 0
    on_node(monkeypatch, 1, 2)
    done = job(*where)
    assert done.code == 0
    assert told(done, "a full target: nothing of it is this node's")


@pytest.mark.parametrize(
    ("environ", "arguments", "code", "message"),
    [
        ({"MA_NUM_HOSTS": "2", "VC_TASK_INDEX": "2"}, (), 2, "VC_TASK_INDEX: expected a number below 2"),
        ({"MA_NUM_HOSTS": "2"}, (), 2, "VC_TASK_INDEX does not say which"),
        ({}, ("--npu_num_per_node=0",), 2, "--npu_num_per_node: expected a whole number of at least 1, found '0'"),
        ({}, ("--npu_num_per_node=many",), 2, "found 'many'"),
        (
            {"MA_NUM_HOSTS": "2", "VC_TASK_INDEX": "0"},
            ("--npu_num_per_node=1",),
            2,
            "2 nodes of 1 NPU are for 2 ranks, but the target has 4",
        ),
        ({}, ("--wait=soon",), 2, "--wait=soon: expected seconds"),
        ({}, ("--dtype=bf17",), 2, "--dtype=bf17: expected fp32, fp16 or bf16"),
        ({}, ("--memory=much",), 2, "--memory=much: expected bytes"),
        ({}, ("--dst_layout=l.yaml",), 2, "cannot be used together"),
        ({"MA_NUM_HOSTS": "2", "VC_TASK_INDEX": "0"}, ("--ranks=0-1",), 2, "--ranks is for one node"),
        ({}, ("--src=/nonexistent/model",), 3, "ERROR node 0/1"),
        ({}, ("--memory=1KiB",), 4, "ERROR node 0/1"),
    ],
)
def test_what_cannot_be_done(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    done = cut(tmp_path / "out", *arguments)
    assert done.code == code
    assert told(done, message), done.out
    assert not ranks_in(tmp_path / "out")


def test_neither_source_nor_target() -> None:
    done = job("--dtype=bf16")
    assert done.code == 2
    assert told(done, "ERROR")


def test_variables_are_hyper_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"src": FULL, "dst": "obs://elsewhere/x", "dst_strategy": STRATEGY, "overwrite": "1"}.items():
        monkeypatch.setenv(name, value)
    done = job(f"--dst={tmp_path / 'out'}", "--keep", "*")
    assert done.code == 0
    assert told(done, f"INFO node 0/1: src={FULL} (environment)")
    assert told(done, f"INFO node 0/1: dst={tmp_path / 'out'}")
    assert not told(done, "elsewhere")


def test_unknown_ones_are_told_without_their_values(tmp_path: Path) -> None:
    done = cut(tmp_path / "out", "--my_token=SECRET", "--eager", "train.py")
    assert done.code == 0
    assert len(told(done, "WARNING node 0/1: my_token")) == 1
    assert len(told(done, "WARNING node 0/1: eager")) == 1
    assert "SECRET" not in done.out


def test_channels_are_source_and_target(tmp_path: Path) -> None:
    done = job("--data_url", FULL, "--train_url", str(tmp_path / "out"))
    assert done.code == 0
    assert told(done, "is complete")
    assert reshard.verify(str(tmp_path / "out")).is_ok


def test_staged_channels_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    staged = "/home/ma-user/modelarts"
    on_node(monkeypatch, 0, 2)
    done = job(f"--data_url={staged}/inputs/data_url_0", f"--train_url={staged}/outputs/train_url_0/")
    assert done.code == 2
    assert told(done, "inside each node's own container")
    on_node(monkeypatch, 0, 1)
    done = job(f"--data_url={staged}/inputs/data_url_0", f"--train_url={staged}/outputs/train_url_0/")
    assert len(told(done, "WARNING node 0/1:")) == 2
    assert told(done, "data_url=/home/ma-user/modelarts/inputs/data_url_0 is a copy inside the container")


def test_the_number_of_npus_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_node(monkeypatch, 0, 2)
    monkeypatch.setenv("MA_NUM_GPUS", "16")
    assert told(cut(tmp_path / "out"), "this node has 16 NPUs (MA_NUM_GPUS), but each node writes 8 ranks")


def test_who_opens_the_store_is_told(moto_url: S3Server, clean_environ: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bucket = moto_url.make_bucket("modelarts")
    host = moto_url.endpoint.removeprefix("http://")
    for name, value in {
        "S3_ENDPOINT": host, "S3_USE_HTTPS": "0", "S3_VERIFY_SSL": "0", "ACCESS_KEY_ID": "AKSHOWN",
        "SECRET_ACCESS_KEY": "SKSHOWN", "SECURITY_TOKEN": "TKSHOWN",
    }.items():  # fmt: skip
        clean_environ.setenv(name, value)
    done = job(f"--src={FULL}", f"--dst=obs://{bucket}/out")
    assert done.code == 0
    assert told(done, f"S3-compatible store at {moto_url.endpoint}, credentials from ACCESS_KEY_ID")
    assert not re.search("AKSHOWN|SKSHOWN|TKSHOWN", done.out)


def test_python_m_is_the_same_and_stops_at_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "reshard.modelarts", f"--src={FULL}", f"--dst={tmp_path / 'out'}"]
    environ = os.environ | {"MA_NUM_HOSTS": "2", "VC_TASK_INDEX": "1"}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if "waiting for the other nodes" in line:
                break
        process.send_signal(signal.SIGTERM)
        sent_s = time.monotonic()
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - sent_s < 10
    finally:
        process.kill()
        process.communicate()
    lines += out.splitlines()
    assert (process.returncode, err) == (130, "")
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    assert re.search(r"ERROR node 1/2: interrupted: .*; exit code 130 after", lines[-1])


def test_a_batch_that_waits_for_another_node_stops_at_sigterm(tmp_path: Path) -> None:
    (tmp_path / "batch.yaml").write_text(
        f"jobs:\n"
        f"  one: {{src: {FULL}, dst: '{tmp_path}/one'}}\n"
        f"  two: {{src: '{tmp_path}/one', dst: '{tmp_path}/two'}}\n"
    )
    command = [sys.executable, "-m", "reshard.modelarts", f"--config={tmp_path}/batch.yaml"]
    environ = os.environ | {"MA_NUM_HOSTS": "2", "VC_TASK_INDEX": "1"}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert any("waiting for the other nodes" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        sent_s = time.monotonic()
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - sent_s < 15
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, err) == (130, "")
    assert "WARNING node 1/2: 0 of 2 jobs are done and stay; nothing of the others was left behind" in out
    assert not (tmp_path / "one").exists()


def test_no_control_character_reaches_the_log(tmp_path: Path) -> None:
    done = cut(tmp_path / "out", "--keep=\x1b[2J\nINFO forged*", "--\x1b[31mname=1", "\x07")
    assert done.code == 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", done.out)
    assert all(re.match(r"\d{4}-\d\d-\d\d ", line) for line in done.out.splitlines())


def test_help_lists_what_belongs_to_the_job() -> None:
    done = run("modelarts", "--help")
    assert done.code == 0
    for name in ("--config URL", "--npu_num_per_node N", "--wait SECONDS", "--data_url URL", "--train_url URL"):
        assert name in done.out


TRAINING = """
load_checkpoint: ''
load_ckpt_format: safetensors
auto_trans_ckpt: False
use_parallel: True
output_dir: ./output
seed: 7
parallel_config: {data_parallel: 2, model_parallel: 2}
"""


@pytest.fixture
def training(tmp_path: Path) -> Place:
    """A training YAML, and a Llama that it may load."""
    put_llama(str(tmp_path))
    (tmp_path / "train.yaml").write_text(TRAINING)
    return Place(tmp_path)


@dataclass(frozen=True)
class Place:
    path: Path

    @property
    def given(self) -> list[str]:
        return [
            f"--config={self.path}/train.yaml",
            f"--load_checkpoint={self.path}/llama",
            "--auto_trans_ckpt=True",
            f"--output_dir={self.path}/job",
        ]

    @property
    def target(self) -> Path:
        return self.path / "job/transformed_checkpoint/llama"


def test_a_training_yaml_with_hyper_parameters(training: Place) -> None:
    done = job(*training.given, "--transform_process_num=2", "--dtype=fp32", "--seed=8")
    assert done.code == 0, done.out
    assert told(done, "INFO node 0/1: Cut the full weights for 4 ranks.")
    assert told(done, "to train with it: load_checkpoint:")
    assert not told(done, "WARNING")
    assert ranks_in(training.target) == [f"rank_{rank}" for rank in range(4)]
    assert len(list((training.path / "job/strategy").iterdir())) >= 4
    assert {each.dtype.value for each in tensors_in(training.target)} == {"F32"}
    assert reshard.verify(str(training.target)).is_ok


def tensors_in(target: Path) -> list:
    return [entry.spec for entry in reshard.inspect(str(target / "rank_0")).entries]


def weights_in(target: Path) -> set[str]:
    """The data types of tensors of several axes: counters of training keep theirs."""
    specs = [entry.spec for entry in reshard.inspect(str(target)).entries]
    return {spec.dtype.value for spec in specs if len(spec.shape) > 1}


def test_sizes_as_hyper_parameters(training: Place) -> None:
    done = job(*training.given, "--parallel_config.model_parallel=4", "--parallel_config.data_parallel", "1")
    assert done.code == 0, done.out
    assert told(done, "Cut the full weights for 4 ranks.")


@pytest.mark.parametrize("truth", ["True", "true", "1"])
def test_truths(training: Place, truth: str) -> None:
    assert job(*training.given, f"--auto_trans_ckpt={truth}").code == 0


def test_without_auto_trans_ckpt_a_mismatch_is_refused(training: Place) -> None:
    done = job(*training.given, "--auto_trans_ckpt=False")
    assert done.code == 2
    assert told(done, "auto_trans_ckpt is not True")


def test_nothing_to_do(training: Place) -> None:
    done = job(*training.given, "--use_parallel=False")
    assert done.code == 0
    assert told(done, "Nothing to do: the source is full, and the job runs on one card")
    assert "nothing to do; exit code 0" in done.out.splitlines()[-1]
    assert not (training.path / "job").exists()


def test_nodes_of_a_training_job(training: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in (1, 0):
        on_node(monkeypatch, index, 2)
        done = job(*training.given, "--npu_num_per_node=2", "--wait=0")
        assert done.code == (0 if index == 0 else 5)
        assert (training.path / "job/strategy").exists() == (index == 0)  # the first node writes the strategies
    assert reshard.verify(str(training.target)).is_ok
    for index in (0, 1):
        on_node(monkeypatch, index, 2)
        again = job(*training.given, "--npu_num_per_node=2", "--wait=0")
        assert again.code == 0
        assert told(again, "found 2 objects")


def test_the_number_of_npus_may_stand_in_the_yaml(training: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with (training.path / "train.yaml").open("a") as file:
        file.write("npu_num_per_node: 2\n")
    on_node(monkeypatch, 1, 2)
    assert told(job(*training.given, "--wait=0"), "ranks 2-3 are this node's")


def test_strategies_alone(training: Place) -> None:
    done = job(*training.given, "--only_save_strategy=True")
    assert done.code == 0, done.out
    assert told(done, "wrote ")
    assert not training.target.exists()
    assert len(list((training.path / "job/strategy").iterdir())) >= 4


def test_strategies_of_a_run_that_was_broken_off_are_completed(training: Place) -> None:
    given = [*training.given, "--only_save_strategy=True", "--parallel_config.pipeline_stage=2"]
    assert job(*given).code == 0
    whole = {path.name: path.read_bytes() for path in (training.path / "job/strategy").iterdir()}
    for name in ("ckpt_strategy_rank_1.ckpt", "ckpt_strategy_rank_6.ckpt", "merged_ckpt_strategy.ckpt"):
        (training.path / "job/strategy" / name).unlink()
    done = job(*given)
    assert done.code == 0, done.out
    assert {path.name: path.read_bytes() for path in (training.path / "job/strategy").iterdir()} == whole
    assert job(*given).code == 0
    done = job(*training.given, "--only_save_strategy=True")
    assert done.code == 4
    assert told(done, "strategy files of another job are there")


def test_channels_of_a_training_job(training: Place) -> None:
    done = job(
        training.given[0],
        "--auto_trans_ckpt=1",
        f"--data_url={training.path}/llama",
        f"--train_url={training.path}/job",
    )
    assert done.code == 0, done.out
    assert ranks_in(training.target)


def test_keys_that_are_unknown(training: Place) -> None:
    with (training.path / "train.yaml").open("a") as file:
        file.write("auto_trans_chpt: True\n")
    done = job(*training.given, "--load_chekpoint=obs://SECRET/x")
    assert done.code == 0
    assert told(done, "WARNING node 0/1: auto_trans_chpt is no key that is known")
    assert told(done, "WARNING node 0/1: load_chekpoint")
    assert "SECRET" not in done.out


def test_keys_of_encryption_are_not_shown(training: Place) -> None:
    done = job(*training.given, "--callbacks.CheckpointMonitor.enc_key=SECRET")
    assert done.code == 0, done.out
    assert told(done, "callbacks.CheckpointMonitor.enc_key=(not shown)")
    assert "SECRET" not in done.out


def test_training_keys_without_a_yaml(training: Place) -> None:
    done = job(*training.given[1:], "--use_parallel=True", "--parallel_config.model_parallel=2")
    assert done.code == 0, done.out
    assert told(done, "Cut the full weights for 2 ranks.")


def test_a_yaml_that_is_not_there(training: Place) -> None:
    assert job(*training.given[1:], f"--config={training.path}/none.yaml").code == 5


def test_a_job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job.yaml").write_text(f"{{src: {FULL}, dst: {tmp_path}/out, dst_strategy: {STRATEGY}, memory: 64MiB}}")
    on_node(monkeypatch, 0, 2)
    done = job(f"--config={tmp_path}/job.yaml", "--npu_num_per_node=2", "--wait=0", "--dtype=bf16")
    assert done.code == 5
    assert told(done, "ranks 2-3 of node 1 are missing")
    assert told(done, "is a path: it must be one folder that all 2 nodes share")
    assert ranks_in(tmp_path / "out") == ["rank_0", "rank_1"]
    assert {"BF16"} < weights_in(tmp_path / "out/rank_0") <= {"BF16", "I32", "I8"}
    assert {"F16", "F32"} <= weights_in(Path(FULL))


def test_a_job_file_may_leave_its_places_to_hyper_parameters(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(f"{{src: {FULL}, dst_strategy: {STRATEGY}}}")
    done = job(f"--config={tmp_path}/job.yaml", f"--dst={tmp_path}/out", "--auto_trans_ckpt=True")
    assert done.code == 0, done.out
    assert ranks_in(tmp_path / "out") == [f"rank_{rank}" for rank in range(4)]
    assert told(done, "WARNING node 0/1: auto_trans_ckpt is a key of training configurations: it has no effect")
    (tmp_path / "options.yaml").write_text("dtype: bf16")
    done = job(f"--config={tmp_path}/options.yaml", f"--src={FULL}", f"--dst={tmp_path}/full", "--keep=*")
    assert done.code == 0, done.out
    assert {"BF16"} < weights_in(tmp_path / "full") <= {"BF16", "I32", "I8"}
    assert job(f"--config={tmp_path}/job.yaml").code == 2


@pytest.mark.parametrize("option", ["--src=x", "--dst=x", "--parallel=mp=2", "--dst_layout=x", "--dst_strategy=x"])
def test_options_that_a_training_yaml_decides_are_refused(training: Place, option: str) -> None:
    name, _, value = option[2:].partition("=")
    with_yaml, keys_alone = training.given, training.given[1:]
    for given in [with_yaml] if name == "src" else [with_yaml, keys_alone]:
        done = job(*given, option)
        assert done.code == 2
        assert told(done, "the training configuration decides what these options say")
        assert told(done, f"--{name}={value}: set ")
    assert not (training.path / "job").exists()


def test_keys_that_are_options_too_are_keys_beside_a_training_yaml(training: Place) -> None:
    done = job(*training.given, "--load_ckpt_format=ckpt", "--remove_redundancy=True")
    assert done.code == 0, done.out
    assert told(done, "WARNING node 0/1: load_ckpt_format is ckpt, but safetensors lies at")
    assert ranks_in(training.target) == [f"rank_{rank}" for rank in range(4)]


def test_the_source_that_a_yaml_names_is_not_replaced_afterwards(training: Place) -> None:
    file = training.path / "train.yaml"
    file.write_text(file.read_text().replace("load_checkpoint: ''", f"load_checkpoint: {training.path}/llama"))
    done = job(*(each for each in training.given if "load_checkpoint" not in each), f"--src={FULL}")
    assert done.code == 2
    assert told(done, "--src=")


def test_what_a_conversion_notes_is_in_the_log(tmp_path: Path) -> None:
    done = cut(tmp_path / "out", "--npu_num_per_node=2")
    assert told(done, "INFO node 0/1: note: 3 tensors have no layout in the target strategy")
    assert told(cut(tmp_path / "out", "--npu_num_per_node=2"), "note: 3 tensors have no layout")


def test_strategies_of_another_job_are_replaced_with_its_ranks_alone(
    training: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job(*training.given).code == 0
    before = {path: path.read_bytes() for path in (training.path / "job").rglob("*") if path.is_file()}
    other = [*training.given, "--parallel_config.model_parallel=4", "--parallel_config.data_parallel=1"]
    assert job(*other).code == 4
    with monkeypatch.context() as patch:  # another node than the one that writes them looks at them, too
        on_node(patch, 1, 2)
        assert job(*other, "--npu_num_per_node=2", "--wait=0", f"--output_dir={training.path}/job").code == 4
    assert job(*other, "--if_exists=replace", "--memory=1KiB").code == 4
    assert {path: path.read_bytes() for path in before} == before
    assert job(*other, "--if_exists=replace").code == 0
    strategy = training.path / "job/strategy/ckpt_strategy_rank_0.ckpt"
    assert strategy.read_bytes() != before[strategy]


def test_a_batch_out_of_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "batch.yaml").write_text(
        f"jobs:\n"
        f"  last: {{src: '{tmp_path}/full', dst: '{tmp_path}/last', form: mindspore}}\n"
        f"  full: {{src: '{tmp_path}/ranks', src_strategy: {STRATEGY}, dst: '{tmp_path}/full'}}\n"
        f"  ranks: {{src: {FULL}, dst: '{tmp_path}/ranks', dst_strategy: {STRATEGY}}}\n"
        f"  lost: {{src: '{tmp_path}/nothing', dst: '{tmp_path}/lost'}}\n"
        f"  after: {{src: '{tmp_path}/lost', dst: '{tmp_path}/after'}}\n"
    )
    done = job(f"--config={tmp_path}/batch.yaml")
    assert done.code == 3
    order = [line.rpartition("job ")[2] for line in done.out.splitlines() if re.search(r": job \w+$", line)]
    assert sorted(order) == ["full", "last", "lost", "ranks"]
    assert order.index("ranks") < order.index("full") < order.index("last")
    assert told(done, "ERROR node 0/1: job lost failed: ")
    assert told(done, "ERROR node 0/1: job after blocked: needs lost")
    assert told(done, "failed: lost, after; ")
    for name in ("ranks", "full", "last"):
        assert reshard.verify(str(tmp_path / name)).is_ok
    on_node(monkeypatch, 1, 2)  # a node waits for what the other has to write before it reads it
    done = job(f"--config={tmp_path}/batch.yaml", "--npu_num_per_node=2", "--wait=0")
    assert [line for line in done.out.splitlines() if "is complete" in line]


def test_a_batch_is_done_job_by_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "batch.yaml").write_text(
        f"defaults: {{src: {FULL}}}\n"
        f"jobs:\n"
        f"  ranks: {{dst: '{tmp_path}/ranks', dst_strategy: {STRATEGY}}}\n"
        f"  full: {{dst: '{tmp_path}/full'}}\n"
    )
    given = f"--config={tmp_path}/batch.yaml", "--npu_num_per_node=2"
    assert job(*given).code == 0
    assert reshard.verify(str(tmp_path / "ranks")).is_ok
    assert reshard.verify(str(tmp_path / "full")).is_ok
    on_node(monkeypatch, 1, 2)
    done = job(*given)
    assert (done.code, len(told(done, "is complete"))) == (0, 1)
    done = job(*given, "--dtype=bf16")
    assert done.code == 2
    assert told(done, "--dtype cannot be given beside a batch of 2 jobs")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{src: a, dst: b, dtpye: bf16}", "dtpye: unknown"),
        ("axes: {mp: 2}\nrules: []", "layout file"),
        ("- 1", "expected a mapping"),
        ("a: &a [*a]", "ERROR"),
    ],
)
def test_a_config_that_is_something_else(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    done = job(f"--config={tmp_path}/x.yaml")
    assert done.code in (2, 3)
    assert told(done, message), done.out


def test_config_json_belongs_to_a_conversion(training: Place, tmp_path: Path) -> None:
    done = job(
        f"--src={training.path}/llama", f"--dst={tmp_path}/ms", "--to=ms", f"--config={training.path}/llama/config.json"
    )
    assert done.code == 0, done.out
