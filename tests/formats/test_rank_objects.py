"""Which objects of the ranks make one checkpoint: as MindSpore chooses, and an error where it would mix two."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.errors import CatalogError, FormatError
from reshard.formats.containers import Container
from reshard.formats.mindspore.rank_names import epoch_step_of, last_two_numbers
from reshard.formats.mindspore.rank_objects import RankMeta, choose, find_rank_objects, find_root, parse_meta

# Made once with MindSpore 2.10.0: the names were files in rank_R/ of a directory without digits in its path, given to
# mindspore.parallel.transform_safetensors._collect_safetensor_files (ckpt: the loop of checkpoint_transform
# ._transform_checkpoints). Container, rank, suffix, names without container, answer; None is no object, ERROR a
# ValueError. TIE: the answer hangs on the order in which the directory is listed (seen by shuffling the list for
# _find_most_matching_file); ours stands behind it. 6000 more rows of random names agreed.
MINDSPORE = [
    ("safetensors", 0, None, "net", "net"),
    ("safetensors", 3, None, "llama_rank_3-1_20 meta.json", "llama_rank_3-1_20"),
    ("safetensors", 0, None, "meta.json", None),
    ("safetensors", 0, None, ".net-1_2", None),
    ("safetensors", 0, None, ".net-9_9 net-1_2", "net-1_2"),
    ("safetensors", 0, None, "ckpt-1_10 ckpt-2_1", "ckpt-2_1"),
    ("safetensors", 0, None, "ckpt-1_9 ckpt-1_10", "ckpt-1_10"),
    ("safetensors", 0, None, "ckpt-9_1 ckpt-10_1", "ckpt-10_1"),
    ("safetensors", 0, None, "ckpt-2_1 ckpt-1_10 ckpt-1_2", "ckpt-2_1"),
    ("safetensors", 0, None, "ckpt-01_5 ckpt-1_40", "ckpt-1_40"),
    ("safetensors", 7, None, "llama_rank_7-1_20 llama_rank_7-1_100 llama_rank_7-1_3", "llama_rank_7-1_100"),
    ("safetensors", 7, None, "llama_rank_7_1-1_20 llama_rank_7-2_1", "llama_rank_7-2_1"),
    ("safetensors", 0, None, "a-5_5_breakpoint a-6_1", "a-6_1"),
    ("safetensors", 0, None, "a-5_5_breakpoint_7 a-6_1", "a-6_1"),
    ("safetensors", 0, None, "a-1_2-network-3_4 b-3_3", "a-1_2-network-3_4"),
    ("safetensors", 0, None, "z-1_2 a-1_3", "a-1_3"),
    ("safetensors", 0, None, "llama3-1_2 llama2-1_3", "llama2-1_3"),
    ("safetensors", 0, None, "v1.5-2 v1.4-9", "v1.5-2"),
    ("safetensors", 0, None, "net net_2", "net_2"),
    ("safetensors", 3, None, "net net_2", "net_2"),
    ("safetensors", 3, None, "net_7 net-1_20", "net_7"),
    ("safetensors", 0, None, "net_7 net-1_20", "net-1_20"),
    ("safetensors", 3, None, "net_7 net-3_6", "net_7"),
    ("safetensors", 3, None, "net_7 net-3_8", "net-3_8"),
    ("safetensors", 3, None, "net_7 net_8", "net_8"),
    ("safetensors", 12, None, "net_9 net_10", "net_10"),
    ("safetensors", 5, None, "a b-1_2", "a"),
    ("safetensors", 5, None, "a b-6_2", "b-6_2"),
    ("safetensors", 5, None, "3 a-5_2", "3"),
    ("safetensors", 5, None, "7-8 a-7_9", "a-7_9"),
    ("safetensors", 0, None, "a-1_2 b-1_2", "TIE", "b-1_2"),
    ("safetensors", 0, None, "llama_rank_0-1_20 llama_rank_0_1-1_20", "TIE", "llama_rank_0_1-1_20"),
    ("safetensors", 0, None, "llama_rank_0_9-1_20 llama_rank_0_10-1_20", "TIE", "llama_rank_0_10-1_20"),
    ("safetensors", 3, None, "a b", "TIE", "b"),
    ("safetensors", 0, None, "a-1_2 a-01_2", "TIE", "a-1_2"),
    ("ckpt", 0, None, "ckpt-1_10 ckpt-1_9", "ckpt-1_9"),
    ("ckpt", 0, None, "ckpt-1_10 ckpt-2_1", "ckpt-2_1"),
    ("ckpt", 0, None, "a-9_9 b-1_1", "b-1_1"),
    ("ckpt", 3, None, "llama_rank_3-10_1 llama_rank_3-9_1", "llama_rank_3-9_1"),
    ("ckpt", 3, None, "llama_rank_3-1_1 llama_rank_3_1-1_1", "llama_rank_3_1-1_1"),
    ("ckpt", 0, None, "net net-1_1", "net"),
    ("ckpt", 0, None, ".net a", "a"),
    ("ckpt", 0, None, "B a", "a"),
    ("safetensors", 0, "1_20", "net-1_20", "net-1_20"),
    ("safetensors", 0, "1_20", "net-11_20", "net-11_20"),
    ("safetensors", 0, "1_20", "net-1_20 net-11_20", "net-1_20"),
    ("safetensors", 0, "-1_20", "net-1_20 net-11_20", "net-1_20"),
    ("safetensors", 0, "1_20", "net-2_20", "ERROR"),
    ("safetensors", 0, "1_20", "meta.json", "ERROR"),
    ("safetensors", 0, "1_20", "net-11_20 net-21_20", "ERROR"),
    ("safetensors", 0, "1_20", "net_1_20 net-11_20", "ERROR"),
    ("safetensors", 0, "_1_20", "net_1_20", "net_1_20"),
    ("safetensors", 0, "_1_20", "net_1_20 a_1_20", "ERROR"),
    ("safetensors", 0, "1_20", "llama_rank_0-1_20 llama_rank_0_1-1_20", "llama_rank_0-1_20"),
    ("safetensors", 0, "1_20", "a-1_20 b-1_20", "ERROR"),
    ("safetensors", 0, "1_20", "ab-1_20 b-1_20", "b-1_20"),
    ("safetensors", 1, "1-1_20", "llama_rank_1-1_20 llama_rank_1_1-1_20", "llama_rank_1_1-1_20"),
    ("safetensors", 1, "_1-1_20", "llama_rank_1-1_20 llama_rank_1_1-1_20", "llama_rank_1_1-1_20"),
    ("safetensors", 1, "1-1_20", "llama_rank_1-1_20", "llama_rank_1-1_20"),
    ("safetensors", 11, "1-1_20", "llama_rank_11-1_20 llama_rank_11_1-1_20", "llama_rank_11_1-1_20"),
    ("safetensors", 11, "1-1_20", "llama_rank_11-1_20 x_rank_11-1_20", "ERROR"),
    ("safetensors", 0, "20", "net-1_20 net-1_120", "net-1_20"),
    ("safetensors", 0, "_20", "net-1_20 net-2_20", "ERROR"),
    ("safetensors", 0, "_20", "net-1_20 net-11_20", "net-1_20"),
    ("safetensors", 0, "0", "net-1_20 net-1_10", "ERROR"),
    ("safetensors", 0, "final", "net-final net-1_20", "net-final"),
    ("safetensors", 0, "final", "a-final b-final", "ERROR"),
    ("safetensors", 0, "", "net-1_20", "net-1_20"),
    ("safetensors", 0, "", "net-1_20 net-2_20", "ERROR"),
    ("safetensors", 0, "-20", "a-20 bc-20", "ERROR"),
    ("safetensors", 0, "1_20", ".net-1_20 a-1_20", "a-1_20"),
    ("safetensors", 0, "01_20", "net-01_20 net-101_20", "net-01_20"),
    ("safetensors", 0, "network-1_20", "a-network-1_20 a-1_20", "a-network-1_20"),
]


def tree(*names, ranks=range(4), prefix="rank_{r}/"):
    """Names on each rank; ``{r}`` is the rank."""
    return [(prefix + name).replace("{r}", str(rank)) for rank in ranks for name in names]


def chosen_from(names, suffix=None, recorded=None):
    return choose(find_rank_objects(names), suffix, recorded)


def picked(chosen):
    """The one name on all ranks, with the rank taken out."""
    (name,) = {name.replace(f"rank_{rank}", "rank_{r}") for rank, name in chosen.by_rank.items()}
    return name


def picked_bases(chosen):
    return [name.rpartition("/")[2] for name in chosen.by_rank.values()]


def metas(epoch, step, name, ranks=range(4)):
    return {rank: RankMeta(epoch, step, name.replace("{r}", str(rank))) for rank in ranks}


# ---- one rank: MindSpore's answers, but that numbers count in .ckpt too


BY_NUMBER = {
    "ckpt-1_10 ckpt-1_9": "ckpt-1_10",
    "a-9_9 b-1_1": "a-9_9",
    "llama_rank_3-10_1 llama_rank_3-9_1": "llama_rank_3-10_1",
    "net net-1_1": "net-1_1",
}
"""What is chosen where MindSpore sorts the names of .ckpt as text."""


@pytest.mark.parametrize("row", MINDSPORE, ids=lambda row: "-".join(map(str, row[:4])).replace(" ", "+"))
def test_as_mindspore(row):
    container, rank, suffix, stems, answer, *ours = row
    bases = [stem if stem.endswith(".json") else f"{stem}.{container}" for stem in stems.split()]
    names = [f"rank_{rank}/{base}" for base in bases]
    if answer in {None, "ERROR"}:
        with pytest.raises(CatalogError):
            chosen_from(names, suffix)
        return
    expected = ours[0] if answer == "TIE" else answer
    expected = BY_NUMBER.get(stems, expected) if container == "ckpt" else expected
    assert chosen_from(names, suffix).by_rank == {rank: f"rank_{rank}/{expected}.{container}"}


def test_numbers_before_the_ranks_do_not_count():
    # Below a directory such as run9/ MindSpore takes net, whose last two numbers are then 9 and 1.
    names = ["run9/rank_1/net.ckpt", "run9/rank_1/net_2.ckpt"]
    assert max(names, key=last_two_numbers) == "run9/rank_1/net_2.ckpt"


def test_a_tie_is_told():
    chosen = chosen_from(tree("llama_rank_{r}-1_20.safetensors", "llama_rank_{r}_1-1_20.safetensors"))
    assert picked(chosen) == "rank_{r}/llama_rank_{r}_1-1_20.safetensors"
    assert chosen.notes == (
        "several names end in the same two numbers on rank 0-3: chose the last by name",
        "chose 1-1_20, the last by its numbers, among up to 2 objects a rank; ignored: 1_20",
    )


@pytest.mark.parametrize("container", Container)
@pytest.mark.parametrize(
    ("earlier", "last"),
    [
        ("net_{r}-1_9", "net_{r}-1_10"),
        ("net_{r}-9_1", "net_{r}-10_1"),
        ("llama_1-2", "llama_1-10"),
        ("llama_rank_{r}_9-1_20", "llama_rank_{r}_10-1_20"),
        ("llama_rank_{r}_10-1_20", "llama_rank_{r}_9-1_21"),
        ("llama_rank_{r}-network-1_9", "llama_rank_{r}-network-1_10"),
        ("llama_rank_{r}-trainable_params-9_1", "llama_rank_{r}-trainable_params-10_1"),
        ("llama_rank_{r}-trainable_params-1_20", "llama_rank_{r}-network-1_20"),
        ("llama_rank_{r}-network-1_20", "llama_rank_{r}-1_20"),
    ],
)
def test_epochs_and_steps_are_numbers(container, earlier, last):
    names = tree(f"{earlier}.{container}", f"{last}.{container}")
    assert chosen_from(names).by_rank[3] == f"rank_3/{last.replace('{r}', '3')}.{container}"


def test_a_task_is_not_the_rank():
    chosen = chosen_from(tree("llama_rank_{r}-1_2.ckpt", "llama_rank_{r}_1-1_2.ckpt", "llama_rank_{r}_1-1_10.ckpt"))
    assert picked(chosen) == "rank_{r}/llama_rank_{r}_1-1_10.ckpt"
    assert chosen.notes == ("chose 1-1_10, the last by its numbers, among up to 3 objects a rank; ignored: 1_2, 1-1_2",)


def test_a_suffix_that_ends_a_longer_number_is_told():
    chosen = chosen_from(tree("net-11_20.safetensors"), "1_20")
    assert chosen.notes == ("'1_20' is the end of a longer number in net-11_20.safetensors",)
    assert chosen_from(tree("net-11_20.safetensors"), "-11_20").notes == ()


def test_a_number_of_thousands_of_digits():
    long, longer = "9" * 5000, "1" + "0" * 5000
    names = tree(f"net-1_{long}.safetensors", f"net-1_{longer}.safetensors")
    assert picked(chosen_from(names)) == f"rank_{{r}}/net-1_{longer}.safetensors"


# ---- all ranks: one checkpoint


def test_one_object_a_rank():
    chosen = chosen_from(tree("llama_rank_{r}-1_20.safetensors", "meta.json", "notes.txt", ranks=range(12)))
    assert list(chosen.by_rank) == list(range(12))
    assert chosen.by_rank[10] == "rank_10/llama_rank_10-1_20.safetensors"
    assert (chosen.container, chosen.notes) == (Container.SAFETENSORS, ())


def test_the_last_of_several():
    names = tree(*(f"llama_rank_{{r}}-{end}.safetensors" for end in ("1_20", "2_5", "1_100")))
    chosen = chosen_from(names)
    assert picked(chosen) == "rank_{r}/llama_rank_{r}-2_5.safetensors"
    assert chosen.notes == ("chose 2_5, the last by its numbers, among up to 3 objects a rank; ignored: 1_100, 1_20",)


def test_order_of_names_does_not_matter():
    names = tree("a-1_20.ckpt", "a-1_3.ckpt")
    assert chosen_from(names) == chosen_from(names[::-1]) == chosen_from(names * 2)


def test_ranks_of_different_steps():
    names = tree("net_{r}-1_10.safetensors", "net_{r}-1_5.safetensors", "net_{r}-1_20.safetensors")
    names = [name for name in names if name not in {"rank_2/net_2-1_20.safetensors", "rank_3/net_3-1_20.safetensors"}]
    chosen = chosen_from(names)
    assert chosen.by_rank == {rank: f"rank_{rank}/net_{rank}-1_10.safetensors" for rank in range(4)}
    assert chosen.notes == (
        "passed over, as not every rank's last save: 1_20 on rank 0-1",
        "chose 1_10, the last that all ranks have, among up to 3 objects a rank; ignored: 1_20, 1_5",
    )


def test_a_rank_without_the_last_save_of_all_weights():
    names = tree("a_rank_{r}-network-1_10.ckpt", "a_rank_{r}-network-1_20.ckpt", ranks=range(3))
    names += ["rank_3/a_rank_3-network-1_10.ckpt", "rank_3/a_rank_3-1_20.ckpt"]
    assert picked(chosen_from(names)) == "rank_{r}/a_rank_{r}-network-1_10.ckpt"


def test_ranks_with_no_step_in_common():
    with pytest.raises(CatalogError, match="different checkpoints") as caught:
        chosen_from(["rank_0/a-1_1.ckpt", "rank_1/a-1_2.ckpt"])
    assert caught.value.hint.startswith("No epoch and step is on all ranks.")


def test_a_suffix_for_all_but_one_rank():
    # MindSpore takes 11_20 for 1_20 on rank 1 and says nothing.
    with pytest.raises(CatalogError, match="different checkpoints") as caught:
        chosen_from(["rank_0/a-1_20.ckpt", "rank_0/a-11_20.ckpt", "rank_1/a-11_20.ckpt"], "1_20")
    assert caught.value.problems == ("11_20 on rank 1", "1_20 on rank 0")


def test_a_name_of_one_number_among_epochs_and_steps():
    # By its last two numbers MindSpore takes net_7 on rank 3, for the 3 of its directory, and net-1_20 on rank 0.
    chosen = chosen_from(tree("net_7.safetensors", "net-1_20.safetensors"))
    assert picked(chosen) == "rank_{r}/net-1_20.safetensors"
    assert chosen.notes[0] == "passed over, as not every rank's last save: net_7.safetensors on rank 2-3"


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint_{r}.safetensors",
        "net{r}.ckpt",
        "llama1_rank_{r}.ckpt",
        "{r}.ckpt",
        "net.ckpt",
        "{r}_of_4_{r}.ckpt",
        "p-1_{r}.ckpt",
        "llama3.1-8b_rank_{r}_100.ckpt",
    ],
)
def test_the_same_name_but_for_the_rank(name):
    assert chosen_from(tree(name)).notes == ()
    assert picked_bases(chosen_from(tree(name))) == [name.replace("{r}", str(rank)) for rank in range(4)]


def test_other_runs_of_one_step():
    # Who restarts with files of an earlier run in the way gets _1 on those ranks only.
    chosen = chosen_from(["rank_0/llama_rank_0_1-1_20.ckpt", "rank_1/llama_rank_1-1_20.ckpt"])
    assert chosen.notes == (
        "names differ between ranks: llama_rank_{rank}_1-1_20.ckpt on rank 0, llama_rank_{rank}-1_20.ckpt on rank 1",
    )


def test_different_names_with_nothing_to_choose():
    names = ["rank_0/head.safetensors", "rank_1/tail.safetensors"]
    assert chosen_from(names).notes == (
        "names differ between ranks: tail.safetensors on rank 1, head.safetensors on rank 0",
    )
    assert chosen_from([*names, "rank_2/net-1_2.safetensors"]).by_rank[2] == "rank_2/net-1_2.safetensors"
    with pytest.raises(CatalogError, match="different checkpoints"):
        chosen_from([*names, "rank_0/a.safetensors"])
    with pytest.raises(CatalogError, match="different checkpoints"):
        chosen_from([*names, "rank_2/net-1_2.safetensors", "rank_3/net-1_3.safetensors"])


def test_different_names_that_were_asked_for():
    names = ["rank_0/a-best.ckpt", "rank_1/b-best.ckpt", "rank_0/a.ckpt", "rank_1/b.ckpt"]
    chosen = chosen_from(names, "best")
    assert picked_bases(chosen) == ["a-best.ckpt", "b-best.ckpt"]
    assert chosen.notes[-1] == "names differ between ranks: b-best.ckpt on rank 1, a-best.ckpt on rank 0"


def test_every_rank_without_the_suffix_is_named():
    names = [*tree("a-1_20.ckpt", ranks=range(5)), "rank_4/b-1_20.ckpt", "rank_5/a-1_3.ckpt", "rank_6/meta.json"]
    with pytest.raises(CatalogError, match=r"expected one ckpt object a rank that ends in '1_20'") as caught:
        chosen_from(names, "1_20")
    assert caught.value.problems == (
        "rank 4: 2 of a-1_20.ckpt, b-1_20.ckpt",
        "rank 5: none of a-1_3.ckpt",
        "rank 6: none of nothing",
    )


def test_a_suffix_ends_the_name_not_the_prefix():
    with pytest.raises(CatalogError, match="'0/net'"):
        chosen_from(["rank_0/net.ckpt"], "0/net")


# ---- meta.json


RESTARTED = tree("net_rank_{r}-9_10.safetensors", "net_rank_{r}-2_10.safetensors", "net_rank_{r}-1_10.safetensors")


def test_meta_json_decides():
    chosen = chosen_from(RESTARTED, recorded=metas(2, 10, "net_rank_{r}-2_10.safetensors"))
    assert picked(chosen) == "rank_{r}/net_rank_{r}-2_10.safetensors"
    assert chosen.notes == (
        "the last by its numbers is 9_10: is it of an earlier run?",
        "chose 2_10, which meta.json names on all ranks, among up to 3 objects a rank; ignored: 9_10, 1_10",
    )


def test_meta_json_with_a_path():
    chosen = chosen_from(RESTARTED, recorded=metas(2, 10, "./output/rank_{r}/net_rank_{r}-2_10.safetensors"))
    assert picked(chosen).endswith("-2_10.safetensors")


def test_meta_json_that_agrees_with_the_names():
    chosen = chosen_from(RESTARTED, recorded=metas(9, 10, "net_rank_{r}-9_10.safetensors"))
    assert len(chosen.notes) == 1
    assert "which meta.json names" in chosen.notes[0]


@pytest.mark.parametrize(
    ("recorded", "why", "taken"),
    [
        (metas(2, 10, "net_rank_{r}-2_10.safetensors", range(3)), "rank 3 has none", "9_10"),
        (
            metas(2, 10, "net_rank_{r}-2_10.safetensors", range(3)) | {3: RankMeta(1, 10, "a")},
            "ranks name 1_10, 2_10",
            "1_10",
        ),
        (metas(3, 10, "net_rank_{r}-3_10.safetensors"), "the object that it names is missing on rank 0-3", "2_10"),
        (metas(2, 10, "net_rank_{r}-1_10.safetensors"), "the object that it names is missing on rank 0-3", "2_10"),
        (metas(0, 10, "net_rank_{r}-0_10.safetensors"), "the object that it names is missing on rank 0-3", "9_10"),
    ],
)
def test_meta_json_that_cannot_decide(recorded, why, taken):
    chosen = chosen_from(RESTARTED, recorded=recorded)
    assert picked(chosen).endswith(f"-{taken}.safetensors")
    assert chosen.notes[0] == f"meta.json was not followed: {why}"


def test_meta_json_of_objects_that_were_converted_in_place():
    chosen = chosen_from(RESTARTED, recorded=metas(2, 10, "net_rank_{r}-2_10.ckpt"))
    assert picked(chosen).endswith("-2_10.safetensors")


def test_a_suffix_goes_before_meta_json():
    chosen = chosen_from(RESTARTED, "1_10", metas(2, 10, "net_rank_{r}-2_10.safetensors"))
    assert picked(chosen).endswith("-1_10.safetensors")


def test_meta_json_does_not_matter_for_only_objects():
    chosen = chosen_from(tree("a-1_10.ckpt"), recorded=metas(2, 10, "a-2_10.ckpt"))
    assert chosen.notes == ()


def test_the_last_common_save_is_not_newer_than_any_ranks_last():
    names = [name for name in RESTARTED if name != "rank_3/net_rank_3-2_10.safetensors"]
    names += tree("net_rank_{r}-10_1.safetensors", ranks=[0])
    recorded = metas(2, 10, "net_rank_{r}-2_10.safetensors") | {3: RankMeta(1, 10, "net_rank_3-1_10.safetensors")}
    chosen = chosen_from(names, recorded=recorded)
    assert picked(chosen).endswith("-1_10.safetensors")
    assert chosen.notes[1].startswith("passed over, as not every rank's last save: 10_1 on rank 0, 9_10 on rank 1-3")


def test_parse_meta():
    data = {"last_epoch": 0, "last_step": 7, "last_ckpt_file": "a-0_7.ckpt", "other": [1]}
    assert parse_meta(json.dumps(data).encode(), "meta.json") == RankMeta(0, 7, "a-0_7.ckpt")


@pytest.mark.parametrize(
    ("data", "problem_count"),
    [
        ({}, 3),
        ({"last_epoch": True, "last_step": -1, "last_ckpt_file": ""}, 3),
        ({"last_epoch": 1.0, "last_step": "1", "last_ckpt_file": "a"}, 2),
        ({"last_epoch": 1, "last_step": 1, "last_ckpt_file": None}, 1),
        ({"last_epoch": 1, "last_step": None, "last_ckpt_file": "a"}, 1),
    ],
)
def test_parse_meta_refuses(data, problem_count):
    with pytest.raises(FormatError, match=r"rank_0/meta\.json") as caught:
        parse_meta(json.dumps(data).encode(), "rank_0/meta.json")
    assert len(caught.value.problems) == problem_count


@pytest.mark.parametrize("data", [b"", b"[]", b'{"last_epoch": 1', b'{"last_epoch": 1, "last_epoch": 2}', b"\xff"])
def test_parse_meta_refuses_broken_json(data):
    with pytest.raises(FormatError):
        parse_meta(data, "meta.json")


# ---- containers


def test_both_containers():
    names = tree("a-1_2.ckpt", "a-1_2.safetensors", "a-1_3.ckpt")
    with pytest.raises(CatalogError, match="safetensors and ckpt") as caught:
        chosen_from(names)
    assert caught.value.problems == (
        "safetensors: 4 objects, rank_0/a-1_2.safetensors first",
        "ckpt: 8 objects, rank_0/a-1_2.ckpt first",
    )
    assert "load_ckpt_format='ckpt'" in str(caught.value)


def test_both_containers_with_the_same_names():
    with pytest.raises(CatalogError) as caught:
        chosen_from(tree("a-1_2.ckpt", "a-1_2.safetensors"))
    assert str(caught.value) == (
        "every rank's objects are there as .ckpt and as .safetensors: "
        "choose with load_ckpt_format='safetensors' or load_ckpt_format='ckpt'"
    )


@pytest.mark.parametrize("container", Container)
def test_a_container_that_is_asked_for(container):
    names = tree("a-1_2.ckpt", "a-1_2.safetensors", "a-1_3.ckpt")
    found = find_rank_objects([*names, "checkpoint/rank_0/b.ckpt"], container)
    assert {n.rpartition(".")[2] for held in found.by_rank.values() for n in held} == {container.value}
    assert found.notes[-1].startswith(f"ignored: {4 if container is Container.CKPT else 8} objects of the format that")
    assert choose(found).container is container


def test_a_root_with_the_other_container_only():
    found = find_rank_objects(["rank_0/a.ckpt", "checkpoint/rank_0/b.safetensors"], Container.SAFETENSORS)
    assert (found.root, found.by_rank) == ("checkpoint/", {0: ("checkpoint/rank_0/b.safetensors",)})


def test_ranks_without_the_container_are_told():
    chosen = chosen_from([*tree("a.safetensors"), "rank_4/a.txt", "rank_5/meta.json"])
    assert list(chosen.by_rank) == [0, 1, 2, 3]
    assert chosen.notes == ("no safetensors object on rank 4-5",)


@pytest.mark.parametrize("names", [[], ["a.safetensors"], ["rank_0/meta.json"], ["rank_0/sub/a.ckpt"]])
def test_nothing_there(names):
    with pytest.raises(CatalogError, match="no rank_R/ with safetensors objects") as caught:
        chosen_from(names)
    assert "Point to the prefix" in caught.value.hint


# ---- where the ranks lie


TRANSFORMERS = [
    *tree("llama_rank_{r}-1_20.safetensors", "meta.json", prefix="checkpoint/rank_{r}/"),
    *tree("llama_rank_{r}-network-1_20.safetensors", prefix="checkpoint_network/rank_{r}/"),
    *tree("llama_rank_{r}-trainable_params-1_20.safetensors", prefix="checkpoint_trainable/rank_{r}/"),
    "strategy/ckpt_strategy_rank_0.ckpt",
    "resume_record/latest_checkpointed_iteration.txt",
]


def test_roots_in_order():
    names = [*TRANSFORMERS, "rank_0/a.ckpt"]
    roots = []
    while names:
        roots.append(find_root(names))
        names = [name for name in names if not name.startswith(f"{roots[-1]}rank_")]
        if not any("rank_0/" in name for name in names):
            break
    assert roots == ["", "checkpoint/", "checkpoint_network/", "checkpoint_trainable/"]
    assert find_root([]) == find_root(["rank_0/meta.json", "other/rank_0/a.ckpt"]) == ""
    assert find_root(["rank_0/meta.json", "checkpoint/rank_0/a.ckpt"]) == "checkpoint/"


def test_output_of_mindspore_transformers():
    objects = find_rank_objects(TRANSFORMERS)
    assert objects.root == "checkpoint/"
    assert objects.metas[3] == "checkpoint/rank_3/meta.json"
    assert objects.notes == ("ignored: ranks under checkpoint_network/, checkpoint_trainable/",)
    assert choose(objects).by_rank[2] == "checkpoint/rank_2/llama_rank_2-1_20.safetensors"
    network = choose(find_rank_objects([name for name in TRANSFORMERS if not name.startswith("checkpoint/")]))
    assert network.by_rank[0] == "checkpoint_network/rank_0/llama_rank_0-network-1_20.safetensors"


def test_other_ranks_are_told():
    objects = find_rank_objects(["rank_0/a.ckpt", "rank_0/rank_1/a.ckpt", "run/rank_0/a.ckpt", "run/rank_0/meta.json"])
    assert objects.by_rank == {0: ("rank_0/a.ckpt",)}
    assert objects.notes == ("ignored: ranks under rank_0/, run/",)


def test_ranks_elsewhere_are_named_when_there_are_none():
    with pytest.raises(CatalogError) as caught:
        chosen_from(["run/rank_0/a.ckpt"])
    assert caught.value.problems == ("ignored: ranks under run/",)


def test_ranks_in_the_order_of_numbers():
    assert list(find_rank_objects(tree("a.ckpt", ranks=(10, 9, 2, 100))).by_rank) == [2, 9, 10, 100]


def test_the_same_rank_twice():
    with pytest.raises(CatalogError, match="two prefixes") as caught:
        find_rank_objects(["rank_1/a.ckpt", "rank_01/a.ckpt", "rank_2/a.ckpt", "rank_00/meta.json", "rank_0/a.ckpt"])
    assert caught.value.problems == ("rank 0: rank_0/, rank_00/", "rank 1: rank_01/, rank_1/")


def test_a_rank_with_zeros_in_front():
    chosen = chosen_from(["rank_00/net_0.ckpt", "rank_01/net_1.ckpt"])
    assert (chosen.by_rank, chosen.notes) == ({0: "rank_00/net_0.ckpt", 1: "rank_01/net_1.ckpt"}, ())


def test_prefixes_that_are_no_ranks():
    odd = [
        "rank_x/a.ckpt",
        "rank_1a/a.ckpt",
        "rank_/a.ckpt",
        "rank_-1/a.ckpt",
        "rank_²/a.ckpt",
        "rank_1234567890/a.ckpt",
    ]
    objects = find_rank_objects([*odd, "rank_0/a.ckpt", "rank_table.json", "ranking/a.ckpt", "rank_0rank_5/a.ckpt"])
    assert list(objects.by_rank) == [0]
    (note,) = objects.notes
    assert note.endswith("is not rank_ and a number")
    assert all(name.partition("/")[0] + "/" in note for name in [*odd, "rank_0rank_5/"])
    assert "table" not in note


# ---- properties


ENDS = st.sampled_from(["-1_5", "-1_10", "-2_1", "-11_5", "", "_7", "_1-1_5"])
HEADS = st.sampled_from(["net", "net_rank_{r}", "llama3_rank_{r}"])
CONTAINERS = st.sampled_from(Container)


@st.composite
def trees(draw):
    container = draw(CONTAINERS)
    heads = draw(st.lists(HEADS, min_size=1, max_size=2, unique=True))
    names = st.lists(st.tuples(st.sampled_from(heads), ENDS), min_size=1, max_size=4)
    ranks = draw(st.lists(st.integers(0, 12), min_size=1, max_size=4, unique=True))
    return [
        f"rank_{rank}/{head}{end}.{container}".replace("{r}", str(rank)) for rank in ranks for head, end in draw(names)
    ]


@given(trees())
def test_one_object_of_each_rank_and_one_step_on_all(names):
    try:
        chosen = chosen_from(names)
    except CatalogError:
        return
    assert list(chosen.by_rank) == sorted({int(name.split("/")[0].removeprefix("rank_")) for name in names})
    assert all(name in names and name.startswith(f"rank_{rank}/") for rank, name in chosen.by_rank.items())
    assert len({epoch_step_of(name) for name in chosen.by_rank.values()} - {None}) <= 1


@given(st.lists(st.lists(ENDS, max_size=3), min_size=2, max_size=4), CONTAINERS, ENDS)
def test_a_save_that_all_ranks_have_is_found(extras, container, common):
    names = [f"rank_{r}/net_rank_{r}{end}.{container}" for r, ends in enumerate(extras) for end in {common, *ends}]
    if epoch_step_of(f"net{common}.{container}") is None:
        return
    chosen = chosen_from(names)
    (found,) = {epoch_step_of(name) for name in chosen.by_rank.values()}
    held = [{epoch_step_of(name) for name in names if name.startswith(f"rank_{r}/")} for r in range(len(extras))]
    assert found is None or found == max(each for each in set.intersection(*held) if each)


@given(st.lists(st.text("rank_/0123-.ckptx", max_size=24), max_size=12), st.none() | st.text("_-01", max_size=5))
def test_any_names(names, suffix):
    try:
        chosen = chosen_from(names, suffix)
    except CatalogError:
        return
    assert set(chosen.by_rank.values()) <= set(names)
