"""Writes a page for every family of models, from its data.

Run it after a change of a data file::

    python docs/make_families.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from reshard.models.checking import shaped
from reshard.models.describing import OPERATIONS, operations
from reshard.models.expression import Expression
from reshard.models.family import Case, Condition, Family, Index, Naming, Option, Parameter, Row
from reshard.models.loading import family_names, load_family
from reshard.models.pattern import TensorPattern

FOLDER = Path(__file__).parent / "families"


def pages() -> Iterator[tuple[Path, str]]:
    """Yield every page with its text."""
    for name in family_names():
        yield FOLDER / f"{name}.md", page(load_family(name))
    yield FOLDER / "operations.md", _operations_page()


def page(family: Family) -> str:
    """Return the page of one family."""
    called = ", ".join(f"`{name}`" for name in (*family.model_types, *family.architectures))
    parts = [
        f"# {family.title}",
        f"Family `{family.name}`. Found by `config.json`: {called}.",
        "## Options",
        _table(("option", "values, the default first", "about", "what it says"), map(_option, family.options)),
        "## Parameters",
        _table(("name", "from `config.json`", "what it is"), map(_parameter, family.parameters)),
        "Numbers in names:",
        _table(("index", "from", "below", "what it is"), map(_index, family.indices)),
        *(text for naming in family.namings for text in _naming(naming, family)),
    ]
    if family.quantised:
        block = " x ".join(map(str, family.quantised.otherwise))
        parts += [
            "## Quantised sources",
            f"A one-byte tensor `X` is multiplied by `X{family.quantised.suffix}`, a scale for each block of "
            f"`{family.quantised.block}` ({block} where `config.json` says nothing), in float32, and then cast.",
        ]
    return "\n\n".join(parts) + "\n"


def _naming(naming: Naming, family: Family) -> Iterator[str]:
    yield f"## Naming `{naming.name}`"
    yield f"{naming.says}."
    lines = [line for row in naming.rows for line in _row(row, family)]
    yield _table(("Hugging Face", "MindSpore", "operations", "where"), lines)
    if naming.ties:
        yield "Copies, dropped when they are read:"
        yield _table(
            ("tensor", "copy of", "where", "written where"),
            ((_code(tie.name), _code(tie.of), _when(tie.when), _when(tie.write)) for tie in naming.ties),
        )
    if naming.drops:
        yield "Dropped:"
        yield _table(("tensors", "why"), ((_codes(drop.globs), drop.why) for drop in naming.drops))
    if naming.dtypes:
        yield "Kept in a dtype of their own when one is stated:"
        rules = naming.dtypes
        yield _table(
            ("tensors", "dtype", "where", "why"),
            ((_codes(r.globs), r.dtype.value, _when(r.when), r.why) for r in rules),
        )


def _row(row: Row, family: Family) -> Iterator[tuple[str, ...]]:
    for hf in row.hf:
        for ms in row.ms:
            one = Row((hf,), (ms,), row.when, row.optional)
            where = _when((*row.when, *hf.when, *ms.when))
            where += (", " * bool(where) + "if there") * row.optional
            yield _side(hf, ms), _side(ms, hf), ", ".join(operations(one, family)), where


def _side(case: Case, other: Case) -> str:
    return "<br>".join(_tensor(shaped(tensor, other)) for tensor in case.tensors)


def _tensor(tensor: TensorPattern) -> str:
    return _code(f"{tensor.name} [{tensor.text}]")


def _option(option: Option) -> tuple[str, ...]:
    values = ", ".join(f"`{str(value).lower()}`" for value in option.values) or "`1`, or any count"
    side = {"hf": "Hugging Face", "ms": "MindSpore"}[option.side]
    found = "Told by names." if option.found else "Names do not tell: state it."
    return f"`{option.name}`", values, side, f"{option.says}. {found}"


def _parameter(parameter: Parameter) -> tuple[str, ...]:
    if parameter.by:
        choices = ", ".join(f"{key}: `{value.text}`" for key, value in parameter.choices)
        return f"`{parameter.name}`", f"by `{parameter.by}`: {choices}", parameter.says
    otherwise = parameter.otherwise
    text = (
        otherwise.text if isinstance(otherwise, Expression) else None if otherwise is None else str(otherwise).lower()
    )
    keys = " or ".join(_code(key) for key in parameter.config)
    return f"`{parameter.name}`", ", else ".join(filter(None, [keys, text and _code(text)])), parameter.says


def _index(index: Index) -> tuple[str, ...]:
    step = f", every {index.step.text}" * (index.step.text != "1")
    excluded = f", without `{index.excluded}`" * bool(index.excluded)
    return f"`{index.name}`", index.start.text, f"{index.stop.text}{step}{excluded}", index.says


def _operations_page() -> str:
    lines = ((f"{name}", does, inverse) for name, (does, inverse) in OPERATIONS.items())
    table = _table(("operation", "what it does", "its inverse"), lines)
    return f"# Operations\n\nRows of the families are made of these and of no others.\n\n{table}\n"


def _when(condition: Condition) -> str:
    return ", ".join(f"{name}: {str(value).lower()}" for name, value in condition)


def _code(value: object) -> str:
    return f"`{value}`".replace("|", r"\|")


def _codes(values: tuple[str, ...]) -> str:
    return ", ".join(map(_code, values))


def _table(titles: tuple[str, ...], lines: Iterator[tuple[str, ...]] | map[tuple[str, ...]] | list) -> str:
    rows = [titles, ("---",) * len(titles), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, text in pages():
        path.write_text(text)
