"""Write a page for every family of models, from its data file, and one of all models.

Run it after a change of a data file::

    python docs/make_families.py
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from reshard.formats.strict_yaml import parse_yaml
from reshard.models.expansion import Leaf, leaves_of
from reshard.models.family import Case, Condition, Family, Index, Naming, Option, Parameter, Row
from reshard.models.family_file import family_names, load_family
from reshard.models.parallel_rules import load_layouts
from reshard.models.pattern import Expression
from reshard.models.serving_rules import served_families

FOLDER = Path(__file__).parent / "families"
MODELS = Path(__file__).parent / "mindspore_transformers.yaml"
CASES = Path(__file__).parents[1] / "tests" / "conformance" / "mindformers"

INTRODUCTION = """\
Every model that MindSpore Transformers 1.5 to 2.1 converts, trains or serves. Rules convert both ways, between Hugging
Face's names and each naming. A strategy comes from numbers (`--parallel`) for the namings in that column, and for `hf`,
as vLLM cuts; where nobody knows how a network cuts, it is refused. `--serve` writes ranks of serving networks: those of
MindSpore Transformers or, with `--form vllm`, of vLLM. The last column counts what the original code made, conversions
and strategy files, which tests compare with what the rules make."""

# Every operation that a row or a rule can express: what it does, and its inverse or why there is none.
OPERATIONS = {
    "rename": ("gives the same tensor another name", "rename"),
    "concat": ("joins parts one after another along an axis", "split"),
    "split": ("cuts an axis into parts", "concat"),
    "group interleave": ("joins parts in turn along an axis, a group of rows at a time", "group split"),
    "group split": ("separates parts that alternate along an axis", "group interleave"),
    "stack": ("joins tensors of one kind, one an expert, along a new factor", "unstack"),
    "unstack": ("makes a tensor for each position of a factor", "stack"),
    "permute": ("changes the order of axes", "permute"),
    "reshape by grouping": ("changes the order of an axis's factors (rotary pairs, say)", "reshape by grouping"),
    "cast": (
        "changes the dtype, rounding to nearest even; whole numbers must fit",
        "none: rounding loses information; of whole numbers, cast",
    ),
    "block dequantise": (
        "multiplies blocks by their scales, FP4 of two elements a byte too",
        "none: the result is rounded, and nothing quantises",
    ),
    "drop": ("leaves a tensor out", "none: the tensor is gone; what the network computes needs no inverse"),
    "tie": ("writes a copy of another tensor", "drop of the copy"),
}


def pages() -> Iterator[tuple[Path, str]]:
    """Yield every page with its text."""
    for name in family_names():
        yield FOLDER / f"{name}.md", page(load_family(name))
    yield FOLDER / "operations.md", _operations_page()
    yield FOLDER / "models.md", _models_page()


def page(family: Family) -> str:
    """Return the page of one family."""
    called = ", ".join(f"`{name}`" for name in (*family.model_types, *family.architectures))
    parts = [
        f"# {family.title}",
        f"Family `{family.name}`, named {called} in `config.json`.",
        "## Options",
        _table(("option", "values, the default first", "side", "meaning"), map(_option, family.options)),
        "## Parameters",
        _table(("name", "from `config.json`", "meaning"), map(_parameter, family.parameters)),
        "Indices in names:",
        _table(("index", "from", "below", "meaning"), map(_index, family.indices)),
        *(text for naming in family.namings for text in _naming(naming, family)),
    ]
    if family.quantised:
        block, packed = (" x ".join(map(str, b)) for b in (family.quantised.default, family.quantised.packed))
        weight, scale = f"X{family.quantised.of}", f"X{family.quantised.suffix}"
        parts += [
            "## Quantised sources",
            f"A one-byte tensor `{weight}` is multiplied by `{scale}`, a scale for each block of "
            f"`{family.quantised.block}` ({block} if `config.json` has none), in float32, and then cast."
            + f" One of whole numbers with scales is FP4 (E2M1), two elements a byte, in blocks of {packed}."
            * bool(packed),
        ]
    return "\n\n".join(parts) + "\n"


def _naming(naming: Naming, family: Family) -> Iterator[str]:
    yield f"## Naming `{naming.name}`"
    yield f"{naming.description}."
    lines = [line for row in naming.rows for line in _row(row, family)]
    yield _table(("Hugging Face", "MindSpore", "operations", "when"), lines)
    if naming.ties:
        yield "Tied tensors, written as copies and dropped when read:"
        yield _table(
            ("tensor", "copy of", "when", "written when"),
            ((_code(tie.name), _code(tie.of), _when(tie.when), _when(tie.write)) for tie in naming.ties),
        )
    if naming.drops:
        yield "Dropped:"
        yield _table(
            ("tensors", "when", "why"),
            ((_codes(map(str, drop.globs)), _when(drop.when), drop.why) for drop in naming.drops),
        )
    if naming.dtypes:
        yield "Fixed dtypes, whatever dtype is requested:"
        rules = naming.dtypes
        yield _table(
            ("tensors", "dtype", "when", "why"),
            ((_codes(r.globs), r.dtype.value, _when(r.when), r.why) for r in rules),
        )


def _row(row: Row, family: Family) -> Iterator[tuple[str, ...]]:
    for hf, ms in row.forms:
        one = Row((hf,), (ms,), row.when, row.optional)
        where = _when((*row.when, *hf.when, *ms.when))
        where += (", " * bool(where) + "if present") * row.optional
        yield _side(hf), _side(ms), ", ".join(operations(one, family)), where


def _side(case: Case) -> str:
    return "<br>".join(_code(f"{tensor.name} [{tensor.text}]") for tensor in case.tensors)


def operations(row: Row, family: Family) -> tuple[str, ...]:
    """Return the operations of a row from Hugging Face to MindSpore, in any of its forms."""
    indices = {index.name for index in family.indices}
    found = {operation for hf, ms in row.forms for operation in _between(hf, ms, indices)}
    return tuple(name for name in OPERATIONS if name in found) or ("rename",)


def _between(hf: Case, ms: Case, indices: set[str]) -> Iterator[str]:
    before, after = ({leaf.label: leaf for leaf in _leaves(case)} for case in (hf, ms))
    for label, leaf in after.items():
        yield from _moved(before[label], leaf, indices)
    yield from _joins(ms, hf, "concat", "group interleave")
    yield from _joins(hf, ms, "split", "group split")


def _leaves(case: Case) -> Iterator[Leaf]:
    for tensor in case.tensors:
        yield from leaves_of(tensor, dict.fromkeys(tensor.factors, 2))


def _moved(before: Leaf, after: Leaf, indices: set[str]) -> Iterator[str]:
    old, new = ({digit.factor: digit.axis for digit in leaf.digits} for leaf in (before, after))
    if new.keys() - old.keys() & indices:
        yield "stack"
    if old.keys() - new.keys() & indices:
        yield "unstack"
    order, now = ([name for name in one if name in old.keys() & new.keys()] for one in (old, new))
    if order != now:
        crossed = [old[name] for name in now] != sorted(old[name] for name in now)
        yield "permute" if crossed else "reshape by grouping"


def _joins(case: Case, other: Case, plain: str, in_turn: str) -> Iterator[str]:
    """Yield what joins parts on one side that are tensors of their own on the other."""
    apart = {tensor.label for tensor in other.tensors if tensor.labels == (tensor.label,)}
    for tensor in case.tensors:
        for axis in tensor.axes or ():
            if set(axis.labels) & apart:
                yield in_turn if not axis.alternatives[0].label else plain


def _option(option: Option) -> tuple[str, ...]:
    values = ", ".join(f"`{str(value).lower()}`" for value in option.values) or "`1`, or any count"
    side = {"hf": "Hugging Face", "ms": "MindSpore", "both": "both"}[option.side]
    found = "Names reveal it." if option.detect else "Names do not reveal it: set it."
    return f"`{option.name}`", values, side, f"{option.description}. {found}"


def _parameter(parameter: Parameter) -> tuple[str, ...]:
    if parameter.by:
        choices = ", ".join(f"{key}: `{value.text}`" for key, value in parameter.choices)
        return f"`{parameter.name}`", f"by `{parameter.by}`: {choices}", parameter.description
    default = parameter.default
    text = default.text if isinstance(default, Expression) else None if default is None else str(default).lower()
    keys = " or ".join(_code(key) for key in parameter.config)
    return f"`{parameter.name}`", ", else ".join(filter(None, [keys, text and _code(text)])), parameter.description


def _index(index: Index) -> tuple[str, ...]:
    step = f", every {index.step.text}" * (index.step.text != "1")
    excluded = f", without `{index.excluded}`" * bool(index.excluded)
    listed = f", where `{index.listed}` has {index.wanted}" * bool(index.listed)
    return f"`{index.name}`", index.start.text, f"{index.stop.text}{step}{excluded}{listed}", index.description


def _operations_page() -> str:
    lines = ((f"{name}", does, inverse) for name, (does, inverse) in OPERATIONS.items())
    table = _table(("operation", "effect", "inverse"), lines)
    return f"# Operations\n\nThe rules of all families are made of these operations and no others.\n\n{table}\n"


def _models_page() -> str:
    """Return the page of every model that MindSpore Transformers has had since 1.5."""
    listed = cast("list[dict[str, Any]]", parse_yaml(MODELS.read_bytes(), MODELS.name))
    titles = ("model", "in versions", "rules", "namings", "strategy from numbers", "`--serve`", "cases of the original")
    converted = [_model(one) for one in listed if "family" in one]
    others = ((one["model"], one["versions"]) for one in listed if "family" not in one)
    rest = "These have no rules. [A family is one data file](adding.md); `reshard family check` says what it covers."
    table = _table(("model", "in versions"), list(others))
    title = "# Models of MindSpore Transformers"
    return "\n\n".join([title, INTRODUCTION, _table(titles, converted), rest, table]) + "\n"


def _model(one: dict[str, Any]) -> tuple[str, ...]:
    name, family = one["family"], load_family(one["family"])
    namings = ", ".join(_code(naming.name) for naming in family.namings)
    cut = ", ".join(map(_code, load_layouts(name)))
    engines = {"mindspore": "MindSpore Transformers", "vllm": "vLLM"}
    served = ", ".join(title for engine, title in engines.items() if name in served_families(engine))
    cases = [path.parent.name for path in CASES.glob("*/case.json") if path.parent.name.startswith(tuple(one["cases"]))]
    cut_count = sum("strategy_" in case for case in cases)
    counts = ((len(cases) - cut_count, "of conversions"), (cut_count, "of strategies"))
    tests = ", ".join(f"{count} {what}" for count, what in counts if count)
    return one["model"], one["versions"], f"[{name}]({name}.md)", namings, cut, served or "-", tests


def _when(condition: Condition) -> str:
    return ", ".join(f"{name}: {str(value).lower()}" for name, value in condition)


def _code(value: object) -> str:
    return f"`{value}`".replace("|", r"\|")


def _codes(values: Iterable[str]) -> str:
    return ", ".join(map(_code, values))


def _table(titles: tuple[str, ...], lines: Iterator[tuple[str, ...]] | map[tuple[str, ...]] | list) -> str:
    rows = [titles, ("---",) * len(titles), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, text in pages():
        path.write_text(text)
