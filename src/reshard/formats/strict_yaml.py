"""YAML parsed safely: plain values only, every key once, no tags, no aliases.

Files for this package must be of that kind; in files of other tools everything else is read as text.
"""

from __future__ import annotations

import re

import yaml

from ..errors import FormatError
from .strict_json import shown

PlainValue = dict[str, "PlainValue"] | list["PlainValue"] | str | int | bool | None

# PyYAML needs some 30 microseconds a value: these keep the worst text within seconds.
_LARGEST_NBYTES = 4 * 2**20
_LARGEST_NODE_COUNT = 200_000
_LARGEST_DEPTH = 32
_TAG = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULLS = frozenset({"", "~", "null"})


class _Loader(yaml.SafeLoader):
    """Composes nodes only, so that no constructor ever sees hostile text; takes foreign aliases for text."""

    _depth = 0
    _count = 0
    foreign = False

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose one node; refuse aliases (a short text can expand to a huge value) and deep nesting."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if self.foreign and self.check_event(yaml.AliasEvent):
            self.get_event()  # type: ignore[no-untyped-call]
            return yaml.ScalarNode(_TAG + "str", f"*{event.anchor}", event.start_mark, event.end_mark)
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(None, None, "aliases are not allowed", event.start_mark)
        if self._depth >= _LARGEST_DEPTH:
            raise yaml.MarkedYAMLError(None, None, "nested too deeply", event.start_mark)
        self._depth, self._count = self._depth + 1, self._count + 1
        if self._count > _LARGEST_NODE_COUNT:
            raise yaml.MarkedYAMLError(None, None, f"more than {_LARGEST_NODE_COUNT} values", event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


def parse_yaml(data: bytes, where: str, *, foreign: bool = False) -> PlainValue:
    """Parse one YAML document of mappings, lists, strings, decimal integers, booleans and nulls, at most 4 MiB.

    In a ``foreign`` text, which another tool wrote, fractions, dates, tagged scalars and aliases are read as text,
    and no key is merged.

    Raises
    ------
    FormatError
        The text is not YAML, repeats a key, or, if it is not foreign, has tags, aliases or other numbers.

    Examples
    --------
    >>> parse_yaml(b"a: [1, x, null]", "layout.yaml")
    {'a': [1, 'x', None]}
    >>> parse_yaml(b"a: 1\\na: 2", "layout.yaml")
    Traceback (most recent call last):
    ...
    reshard.errors.FormatError: layout.yaml, line 2: repeated key: found 'a'
    """
    if len(data) > _LARGEST_NBYTES:
        raise FormatError("too long", where=where, expected=f"at most {_LARGEST_NBYTES} bytes", found=str(len(data)))
    try:
        loader = _Loader(data.decode())
        loader.foreign = foreign
        node = loader.get_single_node()
    except UnicodeDecodeError as error:
        raise FormatError("not text", where=f"{where}, byte {error.start}", expected="UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}, line {mark.line + 1}" if mark else where
        raise FormatError(f"invalid YAML ({error.problem})", where=place) from error
    except yaml.YAMLError as error:
        raise FormatError(f"invalid YAML ({shown(str(error))})", where=where) from error
    return None if node is None else _plain(node, where, foreign)


def _plain(node: yaml.Node, where: str, foreign: bool) -> PlainValue:
    if isinstance(node, yaml.MappingNode) and (foreign or node.tag == _TAG + "map"):
        mapping: dict[str, PlainValue] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value) if foreign else _plain(key_node, where, foreign)
            if not isinstance(key, str):
                raise _error("key", key_node, where, expected="a string", found=shown(key))
            if key in mapping:
                raise _error("repeated key", key_node, where, found=shown(key))
            mapping[key] = _plain(value_node, where, foreign)
        return mapping
    if isinstance(node, yaml.SequenceNode) and (foreign or node.tag == _TAG + "seq"):
        return [_plain(item, where, foreign) for item in node.value]
    try:
        return _scalar(node, where)
    except FormatError:
        if foreign:
            return str(node.value)
        raise


def _scalar(node: yaml.Node, where: str) -> PlainValue:
    tag, text = node.tag.removeprefix(_TAG), node.value
    if isinstance(node, yaml.ScalarNode):
        if tag == "str":
            return str(text)
        if tag == "null" and text.lower() in _NULLS:
            return None
        if tag == "bool" and text.lower() in _BOOLEANS:
            return _BOOLEANS[text.lower()]
        if tag == "int" and _INTEGER.fullmatch(text):
            return int(text)
    expected = "a string, a decimal integer, true, false or null (quote text that looks like anything else)"
    raise _error("value", node, where, expected=expected, found=shown(text if isinstance(text, str) else node.tag))


def _error(what: str, node: yaml.Node, where: str, expected: str = "", found: str = "") -> FormatError:
    line = node.start_mark.line + 1
    return FormatError(what, where=f"{where}, line {line}", expected=expected, found=found)
