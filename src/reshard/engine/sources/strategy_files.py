"""Reads strategies, layout files and other small documents from a store."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ...errors import CatalogError, FormatError, NotFound, SourceError
from ...formats.layout_file import parse_layout_file
from ...formats.layout_rules import LayoutRules
from ...formats.mindspore.strategy_file import StrategyFile
from ...formats.mindspore.strategy_merge import parse_strategy_file, to_strategy
from ...models.training_names import is_counter
from ...storage import Location, read_object
from ...tensor import Shape, Strategy, TensorSpec
from ..workers import working

_MAX_STRATEGY_BYTES = 32 << 20
_EXPECTED = (
    "Expected a MindSpore strategy file: JSON if its name ends in .json, else protobuf. Layout files end in .yaml."
)
_STRATEGY_SUFFIXES = (".ckpt", ".json")


@dataclass(frozen=True, slots=True)
class StrategySource:
    """A strategy as its files give it; some forms need the tensors to become one."""

    files: tuple[StrategyFile, ...] = ()
    rules: LayoutRules | None = None

    def strategy(self, specs: Mapping[str, TensorSpec], *, local: bool, others: Collection[str] = ()) -> Strategy:
        """Make the strategy of these tensors, by name: as one rank holds them if ``local``, else whole.

        ``others`` are names of tensors that are left out. Rules of a layout file have no say about training counters,
        whatever their globs match: as in MindSpore's own strategies these have no layout. Raise StrategyError if the
        files do not make one of these tensors.
        """
        shapes: dict[str, Shape] = {name: spec.shape for name, spec in specs.items()}
        if self.rules is not None:
            counters = {name for name, shape in shapes.items() if is_counter(name, shape)}
            cut = {name: shape for name, shape in shapes.items() if name not in counters}
            return self.rules.strategy(cut, (*others, *counters))
        return to_strategy(self.files, shapes, local=local)


def read_layout_file(location: Location) -> StrategySource:
    """Read a layout file; see :func:`reshard.formats.layout_file.parse_layout_file`."""
    return StrategySource(rules=parse_layout_file(read_object(location), location.url))


def read_strategy_files(location: Location, concurrency: int) -> StrategySource:
    """Read a strategy file, or every strategy file directly below a prefix.

    Raise NotFound if there is none, CatalogError if files of both forms are side by side, and FormatError for a file of
    another format.
    """
    try:
        return StrategySource((_parse(read_object(location, _MAX_STRATEGY_BYTES), location),))
    except NotFound:
        names = [name for name, _ in location.named_objects() if "/" not in name and name.endswith(_STRATEGY_SUFFIXES)]
    if not names:
        raise NotFound(
            f"{location.url}: no strategy there",
            hint="Name a strategy file (.ckpt or .json), or a prefix that holds those of all stages.",
        )
    if len({name.rsplit(".", 1)[-1] for name in names}) > 1:
        raise CatalogError(f"{location.url}: strategy files of both forms, expected only .ckpt or only .json")
    contents: dict[str, bytes] = {}

    def read(name: str) -> None:
        contents[name] = read_object(location.child(name), _MAX_STRATEGY_BYTES)

    with working(concurrency, location.store) as workers:
        workers.map(read, names)
    # All ranks of a stage write the same bytes: each content is parsed once.
    first = {contents[name]: name for name in reversed(names)}
    return StrategySource(
        tuple(_parse(contents[name], location.child(name)) for name in names if first[contents[name]] == name)
    )


def _parse(data: bytes, location: Location) -> StrategyFile:
    if not data:
        raise SourceError(f"{location.url}: the strategy file is empty", hint=_EXPECTED)
    try:
        return parse_strategy_file(data, location.url)
    except FormatError as error:
        error.marked_hint = error.marked_hint or _EXPECTED
        raise
