"""The keys of MindSpore Transformers' configurations, and what each is for; ``training_keys.yaml`` lists them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Literal, cast

from ..formats.strict_yaml import PlainValue, parse_yaml

Use = Literal["used", "no effect", "training", "unknown"]

CALLBACKS = "callbacks"
"""The section whose items are told apart by their type."""

_FILE = "training_keys.yaml"
_UNKNOWN = "no such key is known"


@dataclass(frozen=True, slots=True)
class KeyUse:
    """One key of a configuration, and whether a conversion uses it; the note says what for."""

    path: str
    value: PlainValue
    use: Use
    note: str


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A pattern of keys: what it is for, and in which section of the data file it stands."""

    pattern: str
    section: str
    note: str
    config_names: tuple[str, ...] = ()

    @property
    def use(self) -> Use:
        """Whether a conversion uses keys of this pattern."""
        if self.section in ("no_effect", "conversions_no_effect"):
            return "no effect"
        return "training" if self.section == "training" else "used"

    @property
    def is_of_conversions(self) -> bool:
        """Whether only files that hold arguments of conversions have such keys."""
        return self.section.startswith("conversions")


@cache
def known_keys() -> tuple[KnownKey, ...]:
    """Read the patterns of the data file, in its order."""
    document = parse_yaml((Path(__file__).parent / _FILE).read_bytes(), _FILE)
    found = []
    for section, patterns in cast("Mapping[str, Mapping[str, PlainValue]]", document).items():
        for pattern, value in patterns.items():
            names = tuple(map(str, value)) if isinstance(value, list) else ()
            note = f"size of the model: {names[0]} of config.json" if names else str(value)
            found.append(KnownKey(pattern, section, note, names))
    return tuple(found)


def find_known(path: str, *, is_conversion: bool = False) -> KnownKey | None:
    """Find the pattern that a key fits.

    Parameters
    ----------
    is_conversion
        Whether the file holds arguments of conversions, which have keys of their own.

    Examples
    --------
    >>> find_known("optimizer.betas").use, find_known("load_checkpoint").use, find_known("load_chekpoint")
    ('training', 'used', None)
    """
    patterns = _patterns(is_conversion)
    if path in patterns.whole:
        return patterns.whole[path]
    parts = path.split(".")
    for depth in range(len(parts), 0, -1):
        if (section := ".".join(parts[:depth])) in patterns.sections:
            return patterns.sections[section]
    return next((known for known in patterns.globs if fnmatchcase(path, known.pattern)), None)


@dataclass(frozen=True, slots=True)
class _Patterns:
    """Patterns by kind, so that a text of very many keys costs little: names, sections with all below, globs."""

    whole: Mapping[str, KnownKey]
    sections: Mapping[str, KnownKey]
    globs: tuple[KnownKey, ...]


@cache
def _patterns(is_conversion: bool) -> _Patterns:
    chosen = [known for known in known_keys() if is_conversion or not known.is_of_conversions]
    whole = {known.pattern: known for known in chosen if "*" not in known.pattern}
    sections = {known.pattern[:-3]: known for known in chosen if known.pattern.endswith(".**")}
    globs = tuple(known for known in chosen if "*" in known.pattern and not known.pattern.endswith(".**"))
    return _Patterns(whole, sections, globs)


def flatten(value: PlainValue, path: str = "") -> Iterator[tuple[str, PlainValue]]:
    """Yield the keys that hold values, with their sections before them; items of ``callbacks`` go by their type.

    Examples
    --------
    >>> document = {"model": {"b": [1]}, "callbacks": [{"type": "CheckpointMonitor", "prefix": "a"}]}
    >>> [path for path, _ in flatten(document)]
    ['model.b', 'callbacks.CheckpointMonitor.type', 'callbacks.CheckpointMonitor.prefix']
    """
    if path == CALLBACKS and isinstance(value, list):
        for item in value:
            kind = item.get("type") if isinstance(item, dict) else None
            yield from flatten(item, f"{CALLBACKS}.{kind}" if kind else f"{CALLBACKS}.?")
    elif isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{path}.{key}" if path else key)
    elif path:
        yield path, value


def sort_keys(document: Mapping[str, PlainValue], *, is_conversion: bool = False) -> tuple[KeyUse, ...]:
    """Sort every key of a document by what it is for."""
    sorted_keys = []
    for path, value in flatten(dict(document)):
        known = find_known(path, is_conversion=is_conversion)
        use, note = ("unknown", _UNKNOWN) if known is None else (known.use, known.note)
        sorted_keys.append(KeyUse(path, value, cast("Use", use), note))
    return tuple(sorted_keys)
