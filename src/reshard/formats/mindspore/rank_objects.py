"""The object of each ``rank_R/`` prefix that belongs to one checkpoint, when several are saved side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import cast

from ...errors import CatalogError, option, raise_all
from ..containers import Container
from ..findings import Findings
from ..strict_json import json_kind, parse_json_object, shown
from .rank_names import (
    base_of,
    epoch_step_of,
    fitting,
    label_of,
    last_two_numbers,
    natural,
    pattern_of,
    rank_container,
    same_but_for_rank,
    save_of,
    training_order,
)

# Where MindSpore Transformers puts ranks below an output prefix; checkpoint/ has the optimizer's state too.
_ROOTS = ("", "checkpoint/", "checkpoint_network/", "checkpoint_trainable/")
_RANK = "rank_(?P<rank>[0-9]{1,9})"
_IN_RANK = re.compile(rf"(?P<root>(?:.*/)?)(?P<prefix>{_RANK})/(?P<base>[^/]+)", re.DOTALL)

_WHERE = "Point to the prefix right above rank_0/, rank_1/, ..., or to the one above its checkpoint/."

_Names = Mapping[int, tuple[str, ...]]
_Metas = Mapping[int, "RankMeta"]


@dataclass(frozen=True, slots=True)
class RankObjects:
    """The objects of every rank that may hold tensors.

    ``root`` is the prefix before ``rank_R/``: empty, or ``checkpoint/`` and the like. Names have it; a rank that has
    other objects only has none. ``metas`` are the names of ``meta.json``; ``notes`` name the objects that were ignored.
    """

    root: str
    by_rank: Mapping[int, tuple[str, ...]]
    metas: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RankMeta:
    """The ``meta.json`` of a rank: the last checkpoint that this rank saved."""

    last_epoch: int
    last_step: int
    last_ckpt_file: str


@dataclass(frozen=True, slots=True)
class Chosen:
    """One object of every rank that has any, together one checkpoint; ``notes`` explain the choice in words."""

    container: Container
    by_rank: Mapping[int, str]
    notes: tuple[str, ...] = ()


def find_root(names: Iterable[str], container: Container | None = None) -> str:
    """Find the prefix before the ``rank_R/`` that hold a checkpoint; empty also when there is none.

    With a container, objects of others do not count.

    Source: MindSpore Transformers, output prefixes of ``CheckpointMonitor``.
    """
    found = _roots(names, container)
    return next((root for root in _ROOTS if root in found), "")


def find_rank_objects(names: Iterable[str], container: Container | None = None) -> RankObjects:
    """Sort the objects below a prefix by rank; with a container, those of others are left aside.

    Only objects right below ``rank_<digits>/`` count, and no names with a leading dot, which MindSpore does not see
    either. Raise CatalogError for ranks that have two prefixes, such as ``rank_1/`` and ``rank_01/`` (all are listed).

    Examples
    --------
    >>> found = find_rank_objects(["rank_0/net-1_2.ckpt", "rank_0/meta.json", "rank_10/net.ckpt", "rank_x/net.ckpt"])
    >>> found.by_rank, found.metas
    ({0: ('rank_0/net-1_2.ckpt',), 10: ('rank_10/net.ckpt',)}, {0: 'rank_0/meta.json'})
    >>> found.notes
    ('ignored: rank_x/ is not rank_ and a number',)
    """
    names = sorted(set(names))
    root = find_root(names, container)
    aside: list[str] = []
    prefixes: dict[int, set[str]] = {}
    by_rank: dict[int, list[str]] = {}
    metas: dict[int, str] = {}
    for name in names:
        match = _IN_RANK.fullmatch(name)
        if match is None or match["root"] != root:
            continue
        rank = int(match["rank"])
        prefixes.setdefault(rank, set()).add(f"{root}{match['prefix']}/")
        held, kind = by_rank.setdefault(rank, []), rank_container(name)
        if kind is not None:
            (held if container in (None, kind) else aside).append(name)
        if match["base"] == "meta.json":
            metas[rank] = name
    twice = [f"rank {rank}: {', '.join(sorted(found))}" for rank, found in prefixes.items() if len(found) > 1]
    raise_all(CatalogError, "some ranks have two prefixes", twice, "Remove the prefixes of other checkpoints.")
    notes = _ignored_at(root, names)
    if aside:
        notes += (f"ignored: {len(aside)} objects of the format that was not chosen, {_some(map(base_of, aside), 3)}",)
    return RankObjects(root, {rank: tuple(by_rank[rank]) for rank in sorted(by_rank)}, metas, notes)


def choose(objects: RankObjects, suffix: str | None = None, recorded: _Metas | None = None) -> Chosen:
    """Choose one object a rank, and check that together they are one checkpoint.

    A rank's only object is taken. Of several: the one with the ``suffix``; else the one that the
    ranks' ``meta.json`` name, if all name the same epoch and step; else the last in the order of
    training (:func:`.rank_names.training_order`). Where ranks' last saves differ, it is the last that
    all ranks have, and that no ``meta.json`` calls newer than its rank's last. All must be of one epoch
    and step, or have one name apart from the rank's number. Names that differ otherwise are accepted,
    with a note, where there was no choice: each rank's only object, or all that have the suffix.

    Parameters
    ----------
    suffix
        End of the names without the container's: ``[_]TASK-EPOCH_STEP``, ``[-]EPOCH_STEP`` or
        ``[_]STEP``; any other text that ends one name on each rank.

    Raises
    ------
    CatalogError
        No objects, several containers, no or several objects with the suffix on some ranks, or objects
        of different epochs and steps. All ranks concerned are listed.

    Examples
    --------
    >>> names = ["rank_0/net_0-1_20.ckpt", "rank_1/net_1-1_20.ckpt", "rank_1/net_1-1_10.ckpt"]
    >>> chosen = choose(find_rank_objects(names))
    >>> chosen.by_rank
    {0: 'rank_0/net_0-1_20.ckpt', 1: 'rank_1/net_1-1_20.ckpt'}
    >>> chosen.notes
    ('chose 1_20, the last by its numbers, among up to 2 objects a rank; ignored: 1_10',)

    Source: mindspore 2.10.0, ``parallel/transform_safetensors.py`` (``_collect_safetensor_files``,
    ``_find_most_matching_file``), ``parallel/checkpoint_transform.py`` (``_transform_checkpoints``).
    """
    container = _only_container(objects)
    several = {rank: names for rank, names in objects.by_rank.items() if names}
    if not several:
        raise CatalogError(f"no rank_R/ with {container} objects", problems=objects.notes, hint=_WHERE)
    without = [rank for rank, names in objects.by_rank.items() if not names]
    notes = [*objects.notes, *[f"no {container} object on {_ranks(without)}"] * bool(without)]
    if suffix is not None:
        by_rank = _by_suffix(objects.by_rank, suffix, container)
        # Like MindSpore, 1_20 takes 11_20 where it is a rank's only match.
        before = {base_of(name): base_of(name).removesuffix(f"{suffix}.{container}") for name in by_rank.values()}
        longer = [name for name, start in before.items() if suffix[:1].isdigit() and start[-1:].isdigit()]
        notes += [f"{shown(suffix)} is the end of a longer number in {_some(longer)}"] * bool(longer)
        why = f"which ends in {shown(suffix)}"
    else:
        by_rank, why, remarks = _by_default(several, recorded or {}, container)
        notes += remarks
    notes += _about_choice(several, by_rank, why)
    notes += _check_agreement(several, by_rank, recorded or {}, asked=suffix is not None)
    return Chosen(container, by_rank, tuple(notes))


def parse_meta(data: bytes, where: str) -> RankMeta:
    """Parse a rank's ``meta.json``; other keys than the three of ``RankMeta`` are ignored.

    Raise FormatError for anything but strict JSON, and for values that are missing or of the wrong kind (all are
    listed).

    Source: MindSpore Transformers ``CheckpointMonitor``.
    """
    document = parse_json_object(data, where)
    epoch, step, name = (document.get(key) for key in ("last_epoch", "last_step", "last_ckpt_file"))
    findings = Findings()
    for key, value in (("last_epoch", epoch), ("last_step", step)):
        if type(value) is not int or value < 0:
            found = shown(value) if isinstance(value, int | float) else json_kind(value)
            findings.add(key, "an integer, at least 0", found)
    if not isinstance(name, str) or not name:
        findings.add("last_ckpt_file", "a name", "an empty one" if name == "" else json_kind(name))
    expected = "last_epoch, last_step and last_ckpt_file"
    findings.raise_any("not a record of a checkpoint", where=where, expected=expected)
    return RankMeta(cast("int", epoch), cast("int", step), cast("str", name))


def encode_meta(meta: RankMeta) -> bytes:
    """Write a rank's ``meta.json``, from which training learns what it can resume.

    Examples
    --------
    >>> encode_meta(RankMeta(1, 20, "llama_rank_0-1_20.safetensors")).decode()
    '{"last_epoch": 1, "last_step": 20, "last_ckpt_file": "llama_rank_0-1_20.safetensors"}'
    """
    return json.dumps(asdict(meta), ensure_ascii=False).encode()


def _roots(names: Iterable[str], container: Container | None = None) -> set[str]:
    kinds = (container,) if container else tuple(Container)
    matches = (_IN_RANK.fullmatch(name) for name in names if rank_container(name) in kinds)
    return {match["root"] for match in matches if match}


def _ignored_at(root: str, names: Sequence[str]) -> tuple[str, ...]:
    below = {name[len(root) :].partition("/")[:2] for name in names if name.startswith(f"{root}rank_")}
    wrong = sorted(prefix for prefix, slash in below if slash and not re.fullmatch(_RANK, prefix))
    others = sorted(_roots(names) - {root})
    notes = [f"ignored: {_some(f'{root}{prefix}/' for prefix in wrong)} is not rank_ and a number"] * bool(wrong)
    notes += [f"ignored: ranks under {_some(other or '(the top)' for other in others)}"] * bool(others)
    return tuple(notes)


def _only_container(objects: RankObjects) -> Container:
    held = {c: [n for names in objects.by_rank.values() for n in names if rank_container(n) is c] for c in Container}
    found = {container: names for container, names in held.items() if names}
    if len(found) < 2:
        return next(iter(found), Container.SAFETENSORS)
    choices = " or ".join(str(option("load_ckpt_format", container.value)) for container in found)
    if len({frozenset(name.rpartition(".")[0] for name in names) for names in found.values()}) == 1:
        raise CatalogError(f"every rank's objects are there as .ckpt and as .safetensors: choose with {choices}")
    raise CatalogError(
        f"{' and '.join(found)} objects in one checkpoint",
        problems=[f"{container}: {len(names)} objects, {names[0]} first" for container, names in found.items()],
        hint=f"Choose one format with {choices}, or name one object.",
    )


def _by_suffix(held: _Names, suffix: str, container: Container) -> Mapping[int, str]:
    found = {rank: fitting(names, suffix, container) for rank, names in held.items()}
    problems = [
        f"rank {rank}: {len(fit) or 'none'} of {_some(map(base_of, fit or held[rank])) or 'nothing'}"
        for rank, fit in found.items()
        if len(fit) != 1
    ]
    hint = "Give the longest end that the names have in common on all ranks, such as 1_20 for epoch 1, step 20."
    raise_all(CatalogError, f"expected one {container} object a rank that ends in {shown(suffix)}", problems, hint)
    return {rank: fit[0] for rank, fit in found.items()}


def _by_default(several: _Names, recorded: _Metas, container: Container) -> tuple[Mapping[int, str], str, list[str]]:
    """Return the choice without a suffix, the reason for it, and notes."""
    last = {rank: max(names, key=training_order) for rank, names in several.items()}
    if all(len(names) == 1 for names in several.values()):
        return last, "the only one", []
    named, trouble = _recorded_objects(several, recorded, container)
    if not trouble:
        otherwise = [label_of(name, rank) for rank, name in last.items() if name != named[rank]]
        remark = f"the last by its numbers is {_some(otherwise)}: is it of an earlier run?"
        return named, "which meta.json names on all ranks", [remark] * bool(otherwise)
    remarks = [f"meta.json was not followed: {trouble}"] * bool(recorded)
    common = _last_common(several, recorded)
    if common and not _is_last_save(last, several, recorded):
        passed = _with_ranks({rank: name for rank, name in last.items() if name != common[rank]}, label_of)
        remarks += [f"passed over, as not every rank's last save: {_some(passed)}"]
        return common, "the last that all ranks have", remarks
    numbers = {rank: list(map(last_two_numbers, names)) for rank, names in several.items()}
    tied = [rank for rank, name in last.items() if numbers[rank].count(last_two_numbers(name)) > 1]
    remarks += [f"several names end in the same two numbers on {_ranks(tied)}: chose the last by name"] * bool(tied)
    return last, "the last by its numbers", remarks


def _is_last_save(by_rank: Mapping[int, str], several: _Names, recorded: _Metas) -> bool:
    """Return whether objects are of one save, and no rank's ``meta.json`` calls it newer than the rank's last."""
    saves, limit = {save_of(name) for name in by_rank.values()}, _last_recorded(several, recorded)
    if limit is not None and any(save is not None and save[:2] > limit for save in saves):
        return False
    return same_but_for_rank(by_rank) or (len(saves) == 1 and None not in saves)


def _last_common(several: _Names, recorded: _Metas) -> dict[int, str]:
    """Return the last save by epoch and step that all ranks have; empty if there is none.

    What is newer than the last save of some rank is of an earlier run, and counts only if nothing else is there.
    """
    held = {rank: {save_of(n): n for n in sorted(names, key=training_order)} for rank, names in several.items()}
    shared = set.intersection(*map(set, held.values())) - {None}
    names, limit = next(iter(held.values())), _last_recorded(several, recorded)
    kept = {save for save in shared if limit is None or (save is not None and save[:2] <= limit)} or shared
    if not kept:
        return {}
    best = max(kept, key=lambda save: training_order(names[save]))
    return {rank: found[best] for rank, found in held.items()}


def _last_recorded(several: _Names, recorded: _Metas) -> tuple[int, int] | None:
    """Return the earliest of the ranks' last saves by ``meta.json``; None unless all ranks have one."""
    if any(rank not in recorded for rank in several):
        return None
    return min((recorded[rank].last_epoch, recorded[rank].last_step) for rank in several)


def _recorded_objects(several: _Names, recorded: _Metas, container: Container) -> tuple[dict[int, str], str]:
    """Return the object that each rank's meta.json names, or why they cannot be followed."""
    if lacking := [rank for rank in several if rank not in recorded]:
        return {}, f"{_ranks(lacking)} has none"
    saved = {(recorded[rank].last_epoch, recorded[rank].last_step) for rank in several}
    if len(saved) > 1:
        return {}, f"ranks name {_some(f'{epoch}_{step}' for epoch, step in sorted(saved))}"
    bases = {rank: base_of(recorded[rank].last_ckpt_file) for rank in several}
    # Converted in place, an object has the other format's suffix, and meta.json still has the first one's.
    bases = {r: b.rpartition(".")[0] + container.suffix if rank_container(b) else b for r, b in bases.items()}
    named = {rank: f"{names[0].rpartition('/')[0]}/{bases[rank]}" for rank, names in several.items()}
    wrong = [r for r, name in named.items() if name not in several[r] or epoch_step_of(name) not in {None, *saved}]
    return named, f"the object that it names is missing on {_ranks(wrong)}" if wrong else ""


def _about_choice(several: _Names, by_rank: Mapping[int, str], why: str) -> list[str]:
    most = max(map(len, several.values()))
    labels = {label_of(name, rank) for rank, name in by_rank.items()}
    rest = [(name, rank) for rank, names in several.items() for name in names if name != by_rank[rank]]
    left = {pattern_of(*each) if label_of(*each) in labels else label_of(*each) for each in rest}
    return [
        f"chose {_some(sorted(labels, key=natural))}, {why}, among up to {most} objects a rank; "
        f"ignored: {_some(sorted(left, key=natural, reverse=True))}"
    ] * (most > 1)


def _check_agreement(several: _Names, by_rank: Mapping[int, str], recorded: _Metas, *, asked: bool) -> list[str]:
    """Check that the chosen objects are one checkpoint's; MindSpore would mix epochs and steps silently."""
    if same_but_for_rank(by_rank):
        return []
    found = {save_of(name) for name in by_rank.values()}
    nothing_to_choose = asked or all(len(names) == 1 for names in several.values())
    if len(found - {None}) <= 1 and (None not in found or nothing_to_choose):
        return [f"names differ between ranks: {_some(_with_ranks(by_rank, pattern_of))}"]
    problems = _with_ranks(by_rank, label_of)
    hint = "No epoch and step is on all ranks. Copy the objects of one checkpoint to every rank."
    for rank, name in _last_common(several, recorded).items():
        hint = f"The newest on all ranks is {option('file_suffix', label_of(name, rank))}."
    raise CatalogError("the ranks' objects are of different checkpoints", problems=problems, hint=hint)


def _with_ranks(by_rank: Mapping[int, str], describe: Callable[[str, int], str]) -> list[str]:
    ranks: dict[str, list[int]] = {}
    for rank, name in by_rank.items():
        ranks.setdefault(describe(name, rank), []).append(rank)
    return [f"{text} on {_ranks(ranks[text])}" for text in sorted(ranks, key=natural, reverse=True)]


def _ranks(ranks: Sequence[int]) -> str:
    """Write ranks as spans: rank 0-7, 9."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    return "rank " + _some(f"{first}-{last}" if last > first else str(first) for first, last in spans)


def _some(texts: Iterable[str], most: int = 8) -> str:
    texts = list(dict.fromkeys(texts))
    return ", ".join(texts[:most]) + (f", ... ({len(texts)} in all)" if len(texts) > most else "")
