"""The rules of networks that serve models: each rank's tensors, from those of Hugging Face.

They are data, one file an engine in ``serving/``: blocks of rows, and for each family the blocks that its networks
consist of. A rank's fused tensor ([its q, its k, its v]) is a box of a tensor of all ranks' parts, one after another,
so the ranks are cut as a strategy says, and everything else is as for other targets.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import PlanError, UsageError, option, raise_all
from ..formats.strict_yaml import parse_yaml
from .family import Condition, Family, Naming, Row
from .family_file import family_names, load_document, make_family
from .pattern import NamePattern, parse_expression, parse_name
from .settings import Settings, resolve_settings

_DATA = Path(__file__).parent / "serving"
_MOST_RANKS = 4096
_VERSION = re.compile(r"v?(\d{1,4})\.(\d{1,4})(\..*)?")

VLLM, MINDSPORE = "vllm", "mindspore"
ENGINES = (VLLM, MINDSPORE)


@dataclass(frozen=True, slots=True)
class Serving:
    """The networks that a checkpoint is to be served by.

    ``tp`` ranks share every layer. With ``ep`` they share out whole experts, else they cut each of them. A ``version``
    is the engine's; empty for the one whose names are the default.
    """

    engine: str
    family: str
    tp: int
    ep: int = 1
    version: str = ""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES or not 1 <= self.tp <= _MOST_RANKS:
            raise PlanError(
                f"{self.engine} on tp = {self.tp}: expected 1 to {_MOST_RANKS} ranks of {', '.join(ENGINES)}"
            )
        if self.ep not in (1, self.tp):
            sizes = option("serve", f"tp={self.tp},ep={self.ep}")
            message = f"{sizes}: expected ep={self.tp}, so that each rank has whole experts of its own, or no ep"
            hint = "With data parallelism more ranks share out experts, but they have no files of their own."
            raise UsageError(message, hint=hint)


@dataclass(frozen=True, slots=True)
class Constant:
    """A 0-d tensor that a network has and no checkpoint, of F32."""

    name: NamePattern
    value: int


@dataclass(frozen=True, slots=True)
class ServingBlock:
    """Part of an engine's networks: rows to it from Hugging Face's tensors, and what else holds for it.

    ``divides`` are parameters that the number of ranks must divide, when a condition holds. Names, as expressions:
    ``float32`` of tensors that the network keeps in that dtype, ``rotated`` of those whose rows are of all experts, of
    which a rank that has some of them keeps its own first, then those behind them, and then those before.
    """

    naming: Naming
    divides: tuple[tuple[str, Condition], ...] = ()
    float32: tuple[re.Pattern[str], ...] = ()
    rotated: tuple[re.Pattern[str], ...] = ()
    constants: tuple[Constant, ...] = ()


@dataclass(frozen=True, slots=True)
class Beyond:
    """Layers that a network does not have: those whose number after ``prefix`` is ``count``, a parameter, or more."""

    prefix: str
    count: str
    why: str


@dataclass(frozen=True, slots=True)
class ServingRules:
    """How one engine serves one family, under the names of one version.

    ``padded`` are names of tensors whose rows are filled up to ``multiple``; of ``same`` each is a parameter, the
    expression that it must be equal to, and why.
    """

    family: Family
    blocks: tuple[ServingBlock, ...]
    settings: Settings
    padded: tuple[str, ...] = ()
    multiple: int = 1
    beyond: Beyond | None = None

    @property
    def naming(self) -> Naming:
        """All rows as one."""
        parts = [block.naming for block in self.blocks]
        return Naming(
            "serving",
            "",
            tuple(row for part in parts for row in part.rows),
            tuple(tie for part in parts for tie in part.ties),
            tuple(drop for part in parts for drop in part.drops),
        )

    @property
    def shares_experts(self) -> bool:
        """Whether each rank has whole experts."""
        return self.settings.values["experts_by"] == "ep"

    def cut_axes(self) -> dict[str, int]:
        """Return the axis that ranks cut, of each tensor that has one, by the key of its name."""
        leading = {"tp", "kv_parts"} | ({"e"} if self.shares_experts else set())
        found = dict.fromkeys(self.padded, 0)
        for row in self.naming.rows:
            for tensor, axes in _written(row, self.settings):
                cut = (number for number, axis in enumerate(axes) if axis.leading in leading)
                axis = next(cut, None)
                if axis is not None:
                    found[tensor.key] = axis
        return found


def _written(row: Row, settings: Settings) -> Iterator[tuple[NamePattern, Any]]:
    """Yield name and axes of each tensor that a row writes."""
    hf, to = (next((case for case in side if settings.holds(case.when)), None) for side in (row.hf, row.ms))
    if hf is not None and to is not None and settings.holds(row.when):
        yield from ((tensor.name, tensor.axes or ()) for tensor in to.completed(hf).tensors)


@cache
def _document(engine: str) -> dict[str, Any]:
    found = parse_yaml((_DATA / f"{engine}.yaml").read_bytes(), f"{engine}.yaml")
    assert isinstance(found, dict)
    return found


def served_families(engine: str) -> tuple[str, ...]:
    """Return the families whose networks an engine has rules for, sorted.

    Examples
    --------
    >>> "mixtral" in served_families("vllm"), "mixtral" in served_families("mindspore")
    (True, False)
    """
    known = family_names()
    return tuple(sorted(name for name in _document(engine)["families"] if base_family(engine, name) in known))


def base_family(engine: str, name: str) -> str:
    """Return the family whose sizes and layers a model has that is served; itself unless only the engine knows it.

    Examples
    --------
    >>> base_family("vllm", "mistral"), base_family("vllm", "qwen3")
    ('llama', 'qwen3')
    """
    return str(_document(engine)["families"].get(name, {}).get("base", name))


def names_of_version(engine: str, version: str) -> str:
    """Return the name of the rules for a version of an engine; UsageError if its names are not known.

    Examples
    --------
    >>> names_of_version("vllm", ""), names_of_version("vllm", "0.27.1"), names_of_version("vllm", "0.11")
    ('0.24', '0.24', '0.11')
    """
    document = _document(engine)
    known: Mapping[str, list[str]] = document["versions"]
    text = version or document["default"]
    for name, (first, last) in known.items():
        if _number(first) <= _number(text) <= (_number(last) if last else (10_000, 0)) and _number(text) > (0, 0):
            return name
    if not known:
        return ""
    ways = ", ".join(first if last else f"{first} and newer" for first, last in known.values())
    raise UsageError(f"{option(engine, version)}: the names of its modules are known of {ways}")


def _number(version: str) -> tuple[int, int]:
    match = _VERSION.fullmatch(version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def load_rules(serving: Serving, config: Mapping[str, object]) -> ServingRules:
    """Choose the rules for networks of these sizes.

    Raises
    ------
    UsageError
        The engine has no rules for the family, or none of this version.
    PlanError
        The ranks cannot share the model as the engine does; all reasons are listed.
    """
    document, families = _document(serving.engine), served_families(serving.engine)
    if serving.family not in families:
        raise UsageError(
            f"there are no rules for {serving.family} in the {document['title']}",
            hint=f"There are for {', '.join(families)}.",
        )
    entry = document["families"][serving.family]
    names = names_of_version(serving.engine, serving.version)
    family, blocks = _blocks(serving.engine, serving.family, names)
    options: dict[str, object] = {"tp": serving.tp, "kv_copies": 1, "experts_by": "ep" if serving.ep > 1 else "tp"}
    options |= {serving.engine: names} if names else {}
    known = resolve_settings(family, config, options)
    problems = [*_indivisible(blocks, known, serving.tp), *_unequal(entry.get("same", []), known)]
    if serving.ep > 1 and not any(what == "ef" for block in blocks for what, _ in block.divides):
        problems.append(f"ep = {serving.ep}: the model has no experts")
    groups = known.numbers.get("g", serving.tp)
    if max(groups, serving.tp) % max(1, min(groups, serving.tp)):
        problems.append(f"{groups} key/value heads: neither they nor {serving.tp} divide by the other")
    what = f"{serving.family} cannot be served on tp = {serving.tp} by the {document['title']}"
    raise_all(PlanError, what, problems, f"Give another number of ranks: {option('serve', 'tp=N')}.")
    options["kv_copies"] = max(1, serving.tp // max(1, groups))
    settings = resolve_settings(family, config, options)
    padded = [block["padded"] for block in map(document["blocks"].get, entry["blocks"]) if "padded" in block]
    rows, multiple = (padded[0]["names"], padded[0]["multiple"]) if padded else ((), 1)
    beyond = Beyond(**entry["beyond"]) if "beyond" in entry else None
    return ServingRules(family, blocks, settings, tuple(rows), multiple, beyond)


@cache
def _blocks(engine: str, name: str, names: str) -> tuple[Family, tuple[ServingBlock, ...]]:
    """Make a family whose namings are an engine's blocks, and these blocks."""
    document = _document(engine)
    entry, parts = document["families"][name], {}
    base_name = base_family(engine, name)
    for block in document["families"][name]["blocks"]:
        part = _placed(document["blocks"][block], entry.get("places", {}))
        if names not in part.get("versions", [names]):
            raise UsageError(
                f"the names of {name}'s modules in version {names} of the {document['title']} are not known",
                hint=f"They are of {' and '.join(part['versions'])}.",
            )
        parts[block] = part
    base: dict[str, Any] = dict(load_document(base_name))  # type: ignore[arg-type]
    count: dict[str, Any] = {"values": "count", "side": "ms", "description": ""}
    options: dict[str, Any] = {"tp": count, "kv_copies": count, "experts_by": {**count, "values": ["tp", "ep"]}}
    options |= {engine: {**count, "values": [*document["versions"]]}} if document["versions"] else {}
    family = make_family(
        {
            **base,
            "options": {**base["options"], **options},
            "parameters": {**base["parameters"], **entry.get("parameters", {}), **_known(document, base, entry)},
            "namings": {block: _naming_of(part) for block, part in parts.items()},
        },
        f"{engine}.yaml, {name}",
    )
    return family, tuple(_block(family, block, part, names) for block, part in parts.items())


def _known(document: Mapping[str, Any], base: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engine's parameters that follow from what the family declares."""
    declared = {*base["parameters"], *entry.get("parameters", {}), "tp", "kv_copies"}
    found = {}
    for name, value in document["parameters"].items():
        if parse_expression(value["is"], name).names <= declared:
            found[name] = value
            declared.add(name)
    return found


def _naming_of(part: Mapping[str, Any]) -> dict[str, Any]:
    rows = [{("ms" if key == "to" else key): value for key, value in row.items()} for row in part["rows"]]
    return {"description": "", "rows": rows, "ties": part.get("ties", []), "drops": part.get("drops", [])}


def _block(family: Family, name: str, part: Mapping[str, Any], names: str) -> ServingBlock:
    constants = (item for item in part.get("constants", []) if names in item["versions"])
    return ServingBlock(
        family.naming(name),
        tuple((item["what"], tuple(item.get("when", {}).items())) for item in part.get("divides", [])),
        tuple(re.compile(translate(glob)) for glob in part.get("float32", [])),
        tuple(re.compile(translate(glob)) for glob in part.get("rotated", [])),
        tuple(Constant(parse_name(text, name), item["value"]) for item in constants for text in item["names"]),
    )


def _placed(value: Any, places: Mapping[str, str]) -> Any:
    """Put a family's own names where a block has ``<place>``."""
    if isinstance(value, dict):
        return {key: _placed(each, places) for key, each in value.items()}
    if isinstance(value, list):
        return [_placed(each, places) for each in value]
    return re.sub(r"<(\w+)>", lambda match: places[match[1]], value) if isinstance(value, str) else value


def _indivisible(blocks: Collection[ServingBlock], settings: Settings, ranks: int) -> Iterator[str]:
    for block in blocks:
        indices = {
            name for row in block.naming.rows for case in row.hf for one in case.tensors for name in one.name.names
        }
        if any(not settings.positions(name) for name in indices & settings.indices.keys()):
            continue  # the model has no such layers
        for what, when in block.divides:
            value = settings.numbers.get(what)
            if value is not None and settings.holds(when) and value % ranks:
                yield f"{settings.sources[what]} = {value} does not divide by {ranks}"


def _unequal(same: list[Mapping[str, str]], settings: Settings) -> Iterator[str]:
    for item in same:
        expression = parse_expression(item["as"], "serving")
        if item["what"] in settings.numbers and expression.names <= settings.numbers.keys():
            found, expected = settings.numbers[item["what"]], expression.value(settings.numbers)
            if found != expected:
                yield f"{settings.sources[item['what']]} is {found}, expected {item['as']} = {expected}: {item['why']}"


def float32_names(serving: Serving, names: Collection[str]) -> frozenset[str]:
    """Return those of Hugging Face's names whose tensors the networks keep in F32, whatever dtype is asked for."""
    document = _document(serving.engine)
    globs = [
        glob
        for block in document["families"][serving.family]["blocks"]
        for glob in document["blocks"][block].get("float32", [])
    ]
    pattern = re.compile("|".join(map(translate, globs)) or "(?!)")
    return frozenset(filter(pattern.match, names))
