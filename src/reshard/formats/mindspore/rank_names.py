"""Names of ranks' objects, taken apart: container, epoch and step, the rank itself, and the suffixes that fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..containers import Container, container_of

_RESUMABLE = re.compile(r"rank_\{rank\}(?:_[0-9]+)?-([0-9]{1,18})_([0-9]{1,18})$")
_DIGITS = re.compile(r"([0-9]+)")
_EPOCH_STEP = re.compile(r"-([0-9]{1,18})_([0-9]{1,18})$")  # nobody counts further: a bound for hostile names
_OF_RANK = re.compile(r"rank_([0-9]+)")
# A run that finds names of an earlier one counts up behind the rank: rank_0-1_20, then rank_0_1-1_20.
_TASK = re.compile(r"rank_[0-9]+_([0-9]{1,18})-")
_NETWORK = re.compile(r"-(network|trainable_params)-[0-9]+_[0-9]+$")
_TASK_FORM = re.compile("_?[0-9]+-[0-9]+_[0-9]+")
_FORMS = ((_TASK_FORM, "_"), (re.compile("-?[0-9]+_[0-9]+"), "-"), (re.compile("_?[0-9]+"), "_"))


@dataclass(frozen=True, slots=True, order=True)
class SavedAt:
    """When training saved a checkpoint: its epoch, and the step within it."""

    epoch: int
    step: int

    def __str__(self) -> str:
        return f"{self.epoch}_{self.step}"

    def is_after(self, epoch_count: int, step_count: int) -> bool:
        """Return whether a run may be here when it has counted so many epochs, the current one too, and steps in all.

        Every epoch has as many steps.

        Examples
        --------
        >>> SavedAt(3, 20).is_after(3, 220), SavedAt(3, 20).is_after(3, 221), SavedAt(3, 20).is_after(2, 220)
        (True, False, False)
        """
        before, whole = step_count - self.step, self.epoch - 1
        if epoch_count != self.epoch or self.step < 1:
            return False
        return before == 0 if whole == 0 else before % whole == 0 and before // whole >= self.step


def resumable(name: str) -> SavedAt | None:
    """Return epoch and step of a name under which training finds a checkpoint to resume from, with ``{rank}`` in it.

    Examples
    --------
    >>> resumable("llama_rank_{rank}-1_20.safetensors"), resumable("checkpoint_{rank}.safetensors")
    (SavedAt(epoch=1, step=20), None)

    Source: MindSpore Transformers ``CheckpointMonitor``, ``{prefix}_rank_{rank}[_{task}]-{epoch}_{step}``.
    """
    match = _RESUMABLE.search(_stem(name))
    return SavedAt(int(match[1]), int(match[2])) if match else None


def base_of(name: str) -> str:
    """Return a name without the prefix before it."""
    return name.rpartition("/")[2]


def rank_container(name: str) -> Container | None:
    """Return the container of a rank's object; None for others, and for names with a leading dot, as in MindSpore."""
    return None if base_of(name).startswith(".") else container_of(name)


def epoch_step_of(name: str) -> tuple[int, int] | None:
    """Return the epoch and step at the end of a name, if it has them.

    Examples
    --------
    >>> epoch_step_of("rank_3/llama_rank_3-1_20.safetensors"), epoch_step_of("rank_3/llama_3.ckpt")
    ((1, 20), None)

    Source: mindspore 2.10.0 ``ModelCheckpoint``, MindSpore Transformers ``CheckpointMonitor``.
    """
    match = _EPOCH_STEP.search(_stem(name))
    return (int(match[1]), int(match[2])) if match else None


def save_of(name: str) -> tuple[int, int, str] | None:
    """Return which save an object is of: epoch, step, and what of the network it holds; empty for everything.

    Examples
    --------
    >>> save_of("rank_3/llama_rank_3_1-1_20.ckpt"), save_of("rank_3/llama_rank_3-network-1_20.ckpt")
    ((1, 20, ''), (1, 20, 'network'))

    Source: MindSpore Transformers ``CheckpointMonitor``, ``save_network_params`` and ``save_trainable_params``.
    """
    numbers, kind = epoch_step_of(name), _NETWORK.search(_stem(name))
    return (*numbers, kind[1] if kind else "") if numbers else None


def label_of(name: str, rank: int) -> str:
    """Name an object in a message, the same for all ranks: by task, epoch and step, or else by ``pattern_of``.

    Examples
    --------
    >>> label_of("rank_3/llama_rank_3-1_20.ckpt", 3), label_of("rank_3/llama_rank_3_1-1_20.ckpt", 3)
    ('1_20', '1-1_20')
    >>> label_of("rank_3/llama_rank_3-network-1_20.ckpt", 3), label_of("rank_3/llama3.ckpt", 3)
    ('network-1_20', 'llama{rank}.ckpt')
    """
    numbers = epoch_step_of(name)
    if numbers is None:
        return pattern_of(name, rank)
    task, kind = _task_of(name), _NETWORK.search(_stem(name))
    return f"{task}{'-' * bool(task)}{kind[1] + '-' if kind else ''}{numbers[0]}_{numbers[1]}"


def pattern_of(name: str, rank: int) -> str:
    """Return a name, for a message, with ``{rank}`` for its rank.

    That is the number behind ``rank_``, or else the last number before epoch and step that is the rank's.

    Examples
    --------
    >>> pattern_of("rank_3/llama3_rank_3-3_20.safetensors", 3), pattern_of("rank_1/llama_rank_1_1-1_2.ckpt", 1)
    ('llama3_rank_{rank}-3_20.safetensors', 'llama_rank_{rank}_1-1_2.ckpt')
    """
    base, match = base_of(name), _EPOCH_STEP.search(_stem(name))
    end = match.start() if match else len(_stem(name))
    for found in _OF_RANK.finditer(base[:end]):
        if _number(found[1]) == _number(str(rank)):
            return f"{base[: found.start(1)]}{{rank}}{base[found.end(1) :]}"
    parts = _DIGITS.split(base[:end])
    mentions = [place for place in range(1, len(parts), 2) if _number(parts[place]) == _number(str(rank))]
    for place in mentions[-1:]:
        parts[place] = "{rank}"
    return "".join(parts) + base[end:]


def training_order(name: str) -> tuple[object, ...]:
    """Return the sort key that puts the objects of one rank in the order in which training wrote them.

    Epoch and step count, as the last two numbers do in any other name; then the task, since a later run that finds
    names of an earlier one counts it up. Of one save, weights alone come before weights with their optimizer states.

    Examples
    --------
    >>> names = ["rank_0/a_rank_0-1_10.ckpt", "rank_0/a_rank_0-1_9.ckpt", "rank_0/a_rank_0_1-1_9.ckpt"]
    >>> sorted(names, key=training_order)
    ['rank_0/a_rank_0-1_9.ckpt', 'rank_0/a_rank_0_1-1_9.ckpt', 'rank_0/a_rank_0-1_10.ckpt']
    """
    kind = _NETWORK.search(_stem(name))
    completeness = ("trainable_params", "network").index(kind[1]) if kind else 2
    return last_two_numbers(name), _number(_task_of(name)), completeness, natural(base_of(name)), name


def natural(text: str) -> list[str | tuple[int, str]]:
    """Return the sort key that orders the numbers within texts as numbers: 1_9, 1_10, 1_a."""
    # Text is at even places and numbers at odd ones, so a text is never compared with a number.
    return [_number(part) if place % 2 else part for place, part in enumerate(_DIGITS.split(text))]


def last_two_numbers(name: str) -> list[tuple[int, str]]:
    """Return the key by which MindSpore sorts safetensors of one rank.

    It uses the last two numbers of the whole path, so a name with one number borrows its rank's, and
    a name without numbers another from the path before ``rank_R/``; that one is left out here.

    Examples
    --------
    >>> last_two_numbers("rank_3/net_7.ckpt") > last_two_numbers("rank_3/net-2_10.ckpt")
    True

    Source: mindspore 2.10.0, ``parallel/transform_safetensors.py``, ``_extract_last_two_numbers``.
    """
    prefix = name.split("/")[-2]
    return [_number(digits) for digits in _DIGITS.findall(f"{prefix}/{_stem(name)}")[-2:]]


def fitting(names: Sequence[str], suffix: str, container: Container) -> list[str]:
    """Return the names that MindSpore finds for a suffix; the suffix decides only if one name is left.

    If several names end in the suffix, it is completed with the sign in front that belongs to its form,
    and the shortest of the names that end in that are taken.

    Examples
    --------
    >>> names = ["rank_0/a_rank_0-1_20.ckpt", "rank_0/a_rank_0-11_20.ckpt", "rank_0/a_rank_0_1-1_20.ckpt"]
    >>> fitting(names, "1_20", Container.CKPT), fitting(names, "1-1_20", Container.CKPT)
    (['rank_0/a_rank_0-1_20.ckpt'], ['rank_0/a_rank_0_1-1_20.ckpt'])

    Source: mindspore 2.10.0, ``parallel/transform_safetensors.py``, ``_find_most_matching_file``.
    """
    ends = [name for name in names if base_of(name).endswith(f"{suffix}.{container}")]
    sign = next((sign for form, sign in _FORMS if form.fullmatch(suffix)), None)
    if len(ends) < 2 or sign is None:
        return ends
    full = sign + suffix.removeprefix(sign)
    fit = [name for name in ends if name.endswith(f"{full}.{container}")]
    if _TASK_FORM.fullmatch(suffix):  # in rank_1-10_20 the 1 is a rank, not a task
        fit = [name for name in fit if not name.endswith(f"rank{full}.{container}")]
    shortest = min((len(base_of(name)) for name in fit), default=0)
    return [name for name in fit if len(base_of(name)) == shortest]


def same_but_for_rank(by_rank: Mapping[int, str]) -> bool:
    """Return whether all ranks have one name, in which each number is the same everywhere or each rank's own.

    Examples
    --------
    >>> same_but_for_rank({0: "rank_0/llama3_0.ckpt", 3: "rank_3/llama3_3.ckpt"})
    True
    >>> same_but_for_rank({0: "rank_0/llama3_7.ckpt", 3: "rank_3/llama3_8.ckpt"})
    False
    """
    split = [_DIGITS.split(_stem(name)) for name in by_rank.values()]
    if len({len(parts) for parts in split}) > 1:
        return False
    own = [_number(str(rank)) for rank in by_rank]
    return all(
        len(set(parts)) == 1 or (place % 2 == 1 and [_number(part) for part in parts] == own)
        for place, parts in enumerate(zip(*split, strict=True))
    )


def _task_of(name: str) -> str:
    """Return the digits of the task in a name; empty without one."""
    match = _TASK.search(_stem(name))
    return match[1] if match else ""


def _stem(name: str) -> str:
    return base_of(name).rpartition(".")[0]


def _number(digits: str) -> tuple[int, str]:
    """Return a sort key for digits of any length; int() refuses thousands of them."""
    digits = digits.lstrip("0")
    return len(digits), digits
