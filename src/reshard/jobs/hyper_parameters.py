"""Hyper-parameters: arguments that a job service starts a boot file with, and environment variables of their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..api.option_field import OptionField, read_nullable
from ..errors import UsageError

NPUS_PER_NODE = 8
"""What MindSpore Transformers takes a node to have unless told."""

WAIT_S = 7200.0
"""How long MindSpore Transformers waits for what other nodes convert."""

_GROUP = "Job"
_LONGEST_S = 10.0**7


def _read_seconds(value: object) -> float:
    try:
        found = float(str(value))
    except ValueError:
        found = -1.0
    if not 0 <= found <= _LONGEST_S:
        raise UsageError(f"expected seconds, like {WAIT_S:g}")
    return found


SERVICE_OPTIONS: Mapping[str, OptionField] = {
    "config": OptionField("Training YAML of MindSpore Transformers, or a job file.", "URL", _GROUP, read=read_nullable),
    "npu_num_per_node": OptionField("Ranks that each node writes.", "N", _GROUP, str(NPUS_PER_NODE), read_nullable),
    "wait": OptionField("Time limit for the shares of other nodes.", "SECONDS", _GROUP, f"{WAIT_S:g}", _read_seconds),
    "data_url": OptionField("Source, if no other hyper-parameter names one.", "URL", _GROUP, read=read_nullable),
    "train_url": OptionField("Place of the target, if no other names one.", "URL", _GROUP, read=read_nullable),
}
"""Options of a job that a job service starts, beside those of a request and the keys of a training YAML."""


@dataclass(frozen=True, slots=True)
class HyperParameters:
    """Hyper-parameters as texts, by name with ``_``; of a name that is given several times all texts, in order.

    ``from_environment`` are the names that no argument gave; ``strays`` are arguments that belong to no name.
    """

    texts: Mapping[str, tuple[str, ...]]
    from_environment: frozenset[str] = field(default=frozenset())
    strays: tuple[str, ...] = ()

    def __contains__(self, name: str) -> bool:
        return name in self.texts

    def text(self, name: str) -> str | None:
        """Return the last text of a name; None if it is not given, or given as ``None`` or nothing.

        Examples
        --------
        >>> given = parse_arguments(["--config=a.yaml", "--config=b.yaml", "--load_checkpoint=None"])
        >>> given.text("config"), given.text("load_checkpoint"), given.text("seed")
        ('b.yaml', None, None)
        """
        last = self.texts.get(name, ("",))[-1]
        return None if last in ("", "None") else last


def parse_arguments(arguments: Sequence[str]) -> HyperParameters:
    """Read ``--name=value``, ``--name value``, and ``--name`` alone, which means True.

    Names may be written with ``-``. Nothing is refused: what has no name is a stray.

    Examples
    --------
    >>> found = parse_arguments(["--auto_trans_ckpt=True", "--seed", "-1", "--dst-layout=l.yaml", "--overwrite", "x"])
    >>> dict(found.texts), found.strays
    ({'auto_trans_ckpt': ('True',), 'seed': ('-1',), 'dst_layout': ('l.yaml',), 'overwrite': ('x',)}, ())
    >>> parse_arguments(["train.py", "--eager", "--seed=7"]).strays
    ('train.py',)
    """
    texts: dict[str, tuple[str, ...]] = {}
    strays = []
    for name, text in _pairs(arguments):
        if name:
            texts[name] = (*texts.get(name, ()), text)
        else:
            strays.append(text)
    return HyperParameters(texts, strays=tuple(strays))


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield name and text of each argument; the name is empty where there is none."""
    waiting = ""
    for argument in arguments:
        if not argument.startswith("--") or argument == "--":
            yield waiting, argument
            waiting = ""
            continue
        if waiting:
            yield waiting, "True"
        name, equals, text = argument[2:].partition("=")
        waiting = name.strip().replace("-", "_")
        if equals:
            yield waiting, text
            waiting = ""
    if waiting:
        yield waiting, "True"


def read_hyper_parameters(
    arguments: Sequence[str], environ: Mapping[str, str], is_known: Callable[[str], bool]
) -> HyperParameters:
    """Join arguments and environment variables; an argument takes precedence over a variable of the same name.

    Of the environment only variables with known names count: everything else there is somebody else's.

    Examples
    --------
    >>> found = read_hyper_parameters(["--seed=7"], {"seed": "1", "config": "a.yaml", "HOME": "x"}, str.islower)
    >>> dict(found.texts), sorted(found.from_environment)
    ({'config': ('a.yaml',), 'seed': ('7',)}, ['config'])
    """
    given = parse_arguments(arguments)
    found = {name: (text,) for name, text in environ.items() if is_known(name) and name not in given}
    return HyperParameters({**found, **given.texts}, frozenset(found), given.strays)
