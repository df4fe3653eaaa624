"""YAML parsed safely: plain values only, every key once, no tags, no aliases.

Files for this package must be of that kind. In files of other tools aliases and merge keys (``<<``) are followed, as
far as what they expand to stays small, and everything else is read as text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from ..errors import FormatError
from .strict_json import shown

YamlPath = tuple[str | int, ...]
PlainValue = dict[str, "PlainValue"] | list["PlainValue"] | str | int | bool | None

# PyYAML needs some 40 microseconds and 850 bytes a value: these keep the worst text within seconds and 64 MiB.
_LARGEST_NBYTES = 4 * 2**20
_LARGEST_NODE_COUNT = 50_000
_LARGEST_DEPTH = 32
_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULLS = frozenset({"", "~", "null"})
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """Composes nodes only, so that no constructor ever sees hostile text."""

    _depth = 0
    _count = 0
    foreign = False

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose one node; refuse deep nesting, and aliases in files that are not foreign.

        The node of an alias is that of its anchor, so a short text can expand to a huge value: who reads them counts.
        """
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent) and not self.foreign:
            raise yaml.MarkedYAMLError(None, None, "aliases are not allowed", event.start_mark)
        if self._depth >= _LARGEST_DEPTH:
            raise yaml.MarkedYAMLError(None, None, "nested too deeply", event.start_mark)
        self._depth, self._count = self._depth + 1, self._count + 1
        if self._count > _LARGEST_NODE_COUNT:
            raise yaml.MarkedYAMLError(None, None, f"more than {_LARGEST_NODE_COUNT} values", event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


@dataclass(frozen=True, slots=True)
class LinedYaml:
    """A document, and by the path of keys and positions of every value its line and, of a scalar, its text.

    ``problems`` are keys that are repeated, with their lines.
    """

    value: PlainValue
    lines: Mapping[YamlPath, int]
    texts: Mapping[YamlPath, str]
    problems: tuple[tuple[int, str], ...]


def parse_yaml(data: bytes, where: str, *, foreign: bool = False) -> PlainValue:
    """Parse one YAML document of mappings, lists, strings, decimal integers, booleans and nulls, at most 4 MiB.

    In a ``foreign`` text, which another tool wrote, aliases and merge keys are followed, and fractions, dates and
    tagged scalars are read as text.

    Raises
    ------
    FormatError
        The text is not YAML, repeats a key, or expands to too many values or to itself; or, if it is not foreign, has
        tags, aliases or other numbers.

    Examples
    --------
    >>> parse_yaml(b"a: [1, x, null]", "layout.yaml")
    {'a': [1, 'x', None]}
    >>> parse_yaml(b"a: &a {b: 1, c: 2}\\nd: {<<: *a, c: 3}", "train.yaml", foreign=True)
    {'a': {'b': 1, 'c': 2}, 'd': {'c': 3, 'b': 1}}
    >>> parse_yaml(b"a: 1\\na: 2", "layout.yaml")
    Traceback (most recent call last):
    ...
    reshard.errors.FormatError: layout.yaml, line 2: repeated key: found 'a'
    """
    node = _composed(data, where, foreign=foreign)
    return None if node is None else _PlainReader(where, foreign=foreign).read(node)


def parse_lined_yaml(data: bytes, where: str) -> LinedYaml:
    """Parse what people write by hand, as a foreign text, for someone who lists all mistakes of it.

    Raise FormatError as :func:`parse_yaml` does, but for repeated keys.

    Examples
    --------
    >>> found = parse_lined_yaml(b"a: [1, 2]\\nb:\\n  c: +3\\n  c: 4", "job.yaml")
    >>> found.lines["b", "c"], found.texts["b", "c"], found.problems
    (3, '+3', ((4, "repeated key 'c'"),))
    """
    node = _composed(data, where, foreign=True)
    reader = _PlainReader(where, foreign=True, is_lined=True)
    value = None if node is None else reader.read(node)
    return LinedYaml(value, reader.lines, reader.texts, tuple(reader.problems))


def _composed(data: bytes, where: str, *, foreign: bool) -> yaml.Node | None:
    if len(data) > _LARGEST_NBYTES:
        raise FormatError("too long", where=where, expected=f"at most {_LARGEST_NBYTES} bytes", found=str(len(data)))
    try:
        loader = _Loader(data.decode())
        loader.foreign = foreign
        return loader.get_single_node()
    except UnicodeDecodeError as error:
        raise FormatError("not text", where=f"{where}, byte {error.start}", expected="UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}, line {mark.line + 1}" if mark else where
        raise FormatError(f"invalid YAML ({error.problem})", where=place) from error
    except yaml.YAMLError as error:
        raise FormatError(f"invalid YAML ({shown(str(error))})", where=where) from error


class _PlainReader:
    """Makes plain values of nodes; counts what aliases repeat, too. If ``is_lined``, it notes where they are."""

    def __init__(self, where: str, *, foreign: bool, is_lined: bool = False) -> None:
        self._where = where
        self._foreign = foreign
        self._is_lined = is_lined
        self._path: YamlPath = ()
        self.lines: dict[YamlPath, int] = {}
        self.texts: dict[YamlPath, str] = {}
        self.problems: list[tuple[int, str]] = []
        self._depth = self._count = 0

    def read(self, node: yaml.Node) -> PlainValue:
        """Read one node, whatever it is."""
        # Composing has bounded what the text spells out; only aliases lead further.
        self._depth, self._count = self._depth + 1, self._count + 1
        if self._depth > _LARGEST_DEPTH:
            raise _error("an alias nests too deeply, perhaps within itself", node, self._where)
        if self._count > _LARGEST_NODE_COUNT:
            raise _error(f"aliases expand to more than {_LARGEST_NODE_COUNT} values", node, self._where)
        value = self._value(node)
        self._depth -= 1
        return value

    def _value(self, node: yaml.Node) -> PlainValue:
        if isinstance(node, yaml.MappingNode) and (self._foreign or node.tag == _TAG + "map"):
            return self._mapping(node)
        if isinstance(node, yaml.SequenceNode) and (self._foreign or node.tag == _TAG + "seq"):
            return [self._read_at(index, item, item) for index, item in enumerate(node.value)]
        try:
            return _scalar(node, self._where)
        except FormatError:
            if self._foreign and (not isinstance(node.value, str) or not _SURROGATE.search(node.value)):
                return str(node.value)
            raise

    def _mapping(self, node: yaml.MappingNode) -> dict[str, PlainValue]:
        mapping: dict[str, PlainValue] = {}
        # A mapping's own keys come first, then those of the mappings that it merges, in their order.
        merges = [value for key, value in node.value if self._foreign and key.tag == _MERGE]
        for key_node, value_node in node.value:
            if self._foreign and key_node.tag == _MERGE:
                continue
            key = _text(key_node, self._where) if self._foreign else self.read(key_node)
            if not isinstance(key, str):
                raise _error("key", key_node, self._where, expected="a string", found=shown(key))
            if key in mapping and self._is_lined:
                self.problems.append((key_node.start_mark.line + 1, f"repeated key {shown(key)}"))
                continue
            if key in mapping:
                raise _error("repeated key", key_node, self._where, found=shown(key))
            mapping[key] = self._read_at(key, key_node, value_node)
        for other in [each for value in merges for each in self._merged(value)]:
            for key, value in other.items():
                mapping.setdefault(key, value)
        return mapping

    def _read_at(self, step: str | int, place: yaml.Node, node: yaml.Node) -> PlainValue:
        """Read a value one step further down."""
        if not self._is_lined:
            return self.read(node)
        around = self._path
        self._path = (*around, step)
        self.lines.setdefault(self._path, place.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            self.texts.setdefault(self._path, str(node.value))
        value = self.read(node)
        self._path = around
        return value

    def _merged(self, node: yaml.Node) -> list[dict[str, PlainValue]]:
        """Read what a merge key names: a mapping, or a list of mappings."""
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found = [self.read(item) for item in items]
        mappings = [each for each in found if isinstance(each, dict)]
        if len(mappings) < len(found):
            raise _error("merge key", node, self._where, expected="a mapping or a list of mappings")
        return mappings


def _scalar(node: yaml.Node, where: str) -> PlainValue:
    tag, text = node.tag.removeprefix(_TAG), node.value
    if isinstance(node, yaml.ScalarNode):
        if tag == "str":
            return _text(node, where)
        if tag == "null" and text.lower() in _NULLS:
            return None
        if tag == "bool" and text.lower() in _BOOLEANS:
            return _BOOLEANS[text.lower()]
        if tag == "int" and _INTEGER.fullmatch(text):
            return int(text)
    expected = "a string, a decimal integer, true, false or null (quote text that looks like anything else)"
    raise _error("value", node, where, expected=expected, found=shown(text if isinstance(text, str) else node.tag))


def _text(node: yaml.Node, where: str) -> str:
    """Return a text; pairs of surrogates, as JSON escapes them, become one character."""
    text = str(node.value)
    if not _SURROGATE.search(text):
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _error("unpaired surrogate", node, where, expected="text that UTF-8 can encode") from None


def _error(what: str, node: yaml.Node, where: str, expected: str = "", found: str = "") -> FormatError:
    line = node.start_mark.line + 1
    return FormatError(what, where=f"{where}, line {line}", expected=expected, found=found)
