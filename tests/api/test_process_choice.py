"""How many processes a conversion gets."""

import uuid

import pytest
from support.checkpoints import put_full, random_model

import reshard
from reshard.api import process_choice
from reshard.api.option_field import MOST_PROCESSES
from reshard.api.request import Request
from reshard.api.resolve import resolve
from reshard.errors import OverBudget, UsageError
from reshard.planning.limits import Limits
from reshard.storage import LocalStore, Location, MemoryStore, open_location

MODEL = random_model({f"{i}.w": ("F32", (256, 1024)) for i in range(8)})
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch):
    """And a conversion is large from one MiB on."""
    monkeypatch.setattr(process_choice, "core_count", lambda: 8)
    monkeypatch.setattr(process_choice, "_LEAST_TARGET_BYTES", MIB)
    monkeypatch.setattr(process_choice, "_LEAST_MEMORY_BYTES", 32 * MIB)


@pytest.fixture
def source(tmp_path):
    put_full(Location(LocalStore(tmp_path), "hf"), {"model.safetensors": MODEL})
    return str(tmp_path / "hf")


def count_of(source, target, **options):
    return reshard.plan(source, str(target), **options).limits.process_count


def test_cores_bytes_and_memory_bound_it(source, tmp_path, monkeypatch):
    assert count_of(source, tmp_path / "to") == 8
    assert count_of(source, tmp_path / "to", processes="auto", memory="100MiB") == 3
    monkeypatch.setattr(process_choice, "_LEAST_TARGET_BYTES", 3 * MIB)
    assert count_of(source, tmp_path / "to") == 2
    monkeypatch.setattr(process_choice, "core_count", lambda: 1)
    assert count_of(source, tmp_path / "to") == 1


def test_a_number_is_taken_as_it_is(source, tmp_path):
    assert count_of(source, tmp_path / "to", processes=3) == 3


def test_small_conversions_have_one(source, tmp_path, monkeypatch):
    monkeypatch.undo()
    assert count_of(source, tmp_path / "to") == 1


def test_stores_of_this_process_alone_have_one(source, tmp_path):
    assert count_of(source, f"memory://{uuid.uuid4().hex}/to") == 1
    name = uuid.uuid4().hex
    put_full(open_location(f"memory://{name}/hf"), {"model.safetensors": MODEL})
    assert count_of(f"memory://{name}/hf", tmp_path / "to") == 1
    assert MemoryStore(name).provider == "memory"


def test_rather_fewer_than_a_refusal(source, tmp_path, monkeypatch):
    """Each process needs room for a step."""
    monkeypatch.setattr(process_choice, "_LEAST_MEMORY_BYTES", 1)
    found = count_of(source, tmp_path / "to", memory="64MiB")
    assert 1 < found < 8
    with pytest.raises(OverBudget, match="8 processes"):
        count_of(source, tmp_path / "to", memory="64MiB", processes=8)


@pytest.mark.parametrize("value", ["0", "-1", "many", "257", "1.5", True])
def test_what_is_no_number_of_processes(source, tmp_path, value):
    with pytest.raises(UsageError, match="expected auto, or a number from 1 to 256"):
        count_of(source, tmp_path / "to", processes=value)


def test_plans_may_have_as_many_as_requests():
    assert Limits(process_count=MOST_PROCESSES).process_count == MOST_PROCESSES
    with pytest.raises(UsageError, match="process_count must be at most"):
        Limits(process_count=MOST_PROCESSES + 1)


def on_machines(source, target, *cores, processes=None, memory="256MiB"):
    """Of each machine of a cluster, the cores; the limits of the plan for it."""
    resolved = resolve(Request.of(src=source, dst=str(target), memory=memory))
    args = resolved.conversion, resolved.limits, resolved.copy_bases, processes, cores
    return process_choice.plan_for_processes(*args).limits


def test_each_machine_of_a_cluster_has_the_memory_of_the_limit(source, tmp_path, monkeypatch):
    found = on_machines(source, tmp_path / "to", 8, 8)
    assert (found.process_count, found.memory_bytes) == (8, 8 * 64 * MIB), "8 MiB to write, four on each"
    assert on_machines(source, tmp_path / "to", 8, 8, processes=3).memory_bytes == 3 * 128 * MIB
    monkeypatch.setattr(process_choice, "_LEAST_TARGET_BYTES", 1 << 30)
    assert on_machines(source, tmp_path / "to", 8, 1, 2).process_count == 3, "one on each at least"
    monkeypatch.setattr(process_choice, "_LEAST_TARGET_BYTES", 1)
    assert on_machines(source, tmp_path / "to", 1, 2).process_count == 3, "one for each core at most"
    monkeypatch.setattr(process_choice, "_LEAST_MEMORY_BYTES", 1)
    assert on_machines(source, tmp_path / "to", 8, 8, memory="64MiB").process_count in range(2, 16), "rather fewer"
    with pytest.raises(OverBudget):
        on_machines(source, tmp_path / "to", 8, 8, memory="64MiB", processes=16)
