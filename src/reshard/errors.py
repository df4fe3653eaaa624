"""What can go wrong, as one tree that a caller can catch at any height.

::

    ReshardError
    ├── UsageError             a request that contradicts itself              exit 2
    ├── SourceError            what the store holds is not what it says       exit 3
    │   ├── FormatError        bytes that break a file format
    │   ├── CatalogError       files that do not make one checkpoint
    │   └── SourceChanged      an object is no longer the one that was planned
    ├── PlanError              a conversion that must not start               exit 4
    │   ├── StrategyError      layouts that do not fit the tensors
    │   ├── OverBudget         more memory needed than allowed
    │   ├── TargetExists       outputs that are there already
    │   └── TargetInUse        another run is writing there
    ├── StorageError           the store refused or failed                    exit 5
    │   ├── NotFound           no such object or bucket
    │   ├── Denied             credentials missing, wrong or not enough
    │   ├── Unsupported        this store cannot do that
    │   ├── Damaged            bytes did not arrive as they are stored
    │   └── Transient          worth another try
    ├── VerifyError            outputs differ from their sources              exit 6
    └── Interrupted            stopped by the user                            exit 130

Every message says what, where, expected, found and what to do next. Errors of one kind are
collected and raised together: ``problems`` lists them all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

__all__ = [
    "CatalogError",
    "Damaged",
    "Denied",
    "FormatError",
    "Interrupted",
    "NotFound",
    "OverBudget",
    "PlanError",
    "ReshardError",
    "SourceChanged",
    "SourceError",
    "StorageError",
    "StrategyError",
    "TargetExists",
    "TargetInUse",
    "Transient",
    "Unsupported",
    "UsageError",
    "VerifyError",
    "add_problems",
    "as_argument",
    "as_field",
    "counted",
    "is_signed",
    "option",
    "raise_all",
    "redacted",
    "write_options",
]

_SHOWN_PROBLEMS = 20
"""Lines of problems in a message: with the rest of it they fit a terminal of 24."""
# Secrets in URLs: a user and a password (which may hold slashes, but "host:port/" is none), and signed queries.
_PASSWORD = re.compile(r"(?<=://)([^\s/:@?#'\"]*):(?!\d{1,5}(?:[/\s]|$))[^\s'\"]*@")
_TOKEN_AS_USER = re.compile(r"(?<=https://|.http://)[^\s/:@?#'\"]+@")
_SIGNED = re.compile(
    r"([?&;](?:[a-z-]*(?:signature|credential|token|secret|password|accesskeyid|access-key|apikey|api_key)|sig|key))"
    r"=[^&;\s'\"]*",
    re.IGNORECASE,
)
# Brackets that no key, tensor name or path of ours holds mark an option until someone writes the text for its reader.
_OPTION = re.compile("\u27e6([a-z_]+)(?:=([^\u27e7]*))?\u27e7")


def option(name: str, value: object = None) -> str:
    """Mark an option of a request in a message, so that each front end can spell it its own way.

    Examples
    --------
    >>> print(UsageError(f"{option('iteration')} needs {option('form', 'iteration')}."))
    `iteration` needs form='iteration'.
    """
    return f"\u27e6{name}\u27e7" if value is None else f"\u27e6{name}={value}\u27e7"


def as_argument(name: str, value: str | None) -> str:
    """Spell an option as an argument of the library."""
    return f"`{name}`" if value is None else f"{name}={value!r}"


def as_field(name: str, value: str | None) -> str:
    """Spell an option as a job file has it.

    Examples
    --------
    >>> print(as_field("dst_layout", "l.yaml"), as_field("memory", None))
    dst_layout: l.yaml memory
    """
    return name if value is None else f"{name}: {value}"


def redacted(text: str) -> str:
    """Return a text without the secrets of the URLs in it: passwords, tokens and signatures.

    Examples
    --------
    >>> redacted("s3://AKIA:se/cret@bucket/a"), redacted("https://host/a?X-Amz-Signature=ab12&x=1")
    ('s3://***@bucket/a', 'https://host/a?X-Amz-Signature=***&x=1')
    """
    if "://" in text and "@" in text:
        text = _TOKEN_AS_USER.sub("***@", _PASSWORD.sub("***@", text))
    return _SIGNED.sub(r"\1=***", text) if "=" in text and "?" in text else text


def _showable(text: str) -> str:
    """Return a text without secrets that every stream can encode: arguments may hold bytes that are no text."""
    return redacted(text if text.isascii() else text.encode("utf-8", "backslashreplace").decode())


def is_signed(url: str) -> bool:
    """Return whether a URL has a signature or a token in its query.

    Examples
    --------
    >>> is_signed("s3://b/a?X-Amz-Signature=12"), is_signed("s3://b/a?versionId=12")
    (True, False)
    """
    return _SIGNED.search(url) is not None


def write_options(text: str, spell: Callable[[str, str | None], str] = as_argument) -> str:
    """Spell every option that a text marks: ``spell`` takes its name and its value, if the text gives one.

    Examples
    --------
    >>> write_options(f"Raise {option('memory')}.", lambda name, value: f"--{name}")
    'Raise --memory.'
    """
    return _OPTION.sub(lambda match: spell(match[1], match[2]), text)


def counted(count: int, noun: str) -> str:
    """Write a number with its noun.

    Examples
    --------
    >>> counted(1, "rank"), counted(2, "rank")
    ('1 rank', '2 ranks')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


class ReshardError(Exception):
    """Base of every error this package raises on purpose.

    Examples
    --------
    >>> print(ReshardError("2 tensors are missing", hint="Check the index.", problems=["a", "b"]))
    2 tensors are missing
      - a
      - b
    Check the index.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", problems: Sequence[str] = ()) -> None:
        # With options still marked: an error that carries this one's text on is spelled later, for its reader.
        self.marked_message = _showable(message)
        self.marked_hint = _showable(hint)
        self.marked_problems = tuple(map(_showable, problems))
        super().__init__(write_options(self.marked_message))

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (type(self), self.args, self.__dict__)

    @property
    def message(self) -> str:
        """What went wrong and where, with options spelled as arguments."""
        return write_options(self.marked_message)

    @property
    def hint(self) -> str:
        """What the reader can do about it, with options spelled as arguments."""
        return write_options(self.marked_hint)

    @property
    def problems(self) -> tuple[str, ...]:
        """Every single finding, if there are several of a kind, with options spelled as arguments."""
        return tuple(map(write_options, self.marked_problems))

    def __str__(self) -> str:
        return self.text(as_argument)

    def text(self, spell: Callable[[str, str | None], str], *, is_whole: bool = False, more: str = "") -> str:
        """Return message, problems and hint, with options spelled by ``spell``; see :func:`write_options`.

        Problems that are alike in many layers, experts or ranks are one line. Unless the text is to be whole, what
        fills more than a screen is left out; ``more`` says where the rest is.
        """
        from .folding import folded  # seldom needed

        lines, hint = folded(self.marked_problems), self.marked_hint
        shown = [f"  - {line}" for line in (lines if is_whole else lines[:_SHOWN_PROBLEMS])]
        if len(lines) > len(shown):
            shown.append(f"  ... and {len(lines) - len(shown)} more{more}")
        return write_options("\n".join([self.marked_message, *shown, *([hint] if hint else [])]), spell)


def _remade(kind: type[ReshardError], args: tuple[Any, ...], state: dict[str, Any]) -> ReshardError:
    """Make an error again that comes from another process, whatever its constructor asks for."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class UsageError(ReshardError):
    """A request that contradicts itself or names something impossible."""

    exit_code = 2


class SourceError(ReshardError):
    """What the store holds is not a checkpoint that can be read."""

    exit_code = 3


class FormatError(SourceError):
    """Bytes that break a file format.

    The message says which rule, in which object, and at which tensor or byte offset if known.

    Examples
    --------
    >>> print(FormatError("header too long", where="model.safetensors", expected="<= 100000000 bytes", found="2**40"))
    model.safetensors: header too long: expected <= 100000000 bytes, found 2**40
    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        expected: str = "",
        found: str = "",
        hint: str = "",
        problems: Sequence[str] = (),
    ) -> None:
        self.what, self.where, self.expected, self.found = what, where, expected, found
        sides = [f"expected {expected}"] * bool(expected) + [f"found {found}"] * bool(found)
        message = ": ".join(part for part in (where, what, ", ".join(sides)) if part)
        super().__init__(message, hint=hint, problems=problems)

    def at(self, where: str) -> FormatError:
        """Return the same error with ``where`` put before its place (an object's URL, say)."""
        place = ": ".join(part for part in (where, self.where) if part)
        sides = {"expected": self.expected, "found": self.found}
        return type(self)(self.what, where=place, **sides, hint=self.marked_hint, problems=self.marked_problems)


class CatalogError(SourceError):
    """Files that are each readable but do not make one checkpoint."""


class SourceChanged(SourceError):
    """An object is no longer the one that the plan was made from."""


class PlanError(ReshardError):
    """A conversion that must not start; nothing has been written."""

    exit_code = 4


class StrategyError(PlanError):
    """Layouts that do not fit the tensors, the ranks or each other."""


class OverBudget(PlanError):
    """The plan needs more memory than it may use.

    ``needed_bytes`` is the smallest limit that would be accepted.
    """

    def __init__(self, message: str, *, needed_bytes: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.needed_bytes = needed_bytes


class TargetExists(PlanError):
    """Outputs that are in the store already."""


class TargetInUse(PlanError):
    """Another run that lives is writing to the same target."""


class StorageError(ReshardError):
    """The store refused or failed."""

    exit_code = 5


class NotFound(StorageError, FileNotFoundError):
    """No such object or bucket."""


class Denied(StorageError, PermissionError):
    """Credentials are missing, wrong or not enough."""


class Unsupported(StorageError):
    """This store cannot do what was asked."""


class Damaged(StorageError):
    """Bytes did not arrive as they are stored."""


class Transient(StorageError):
    """A failure that is worth another try; raised to the user when tries ran out."""


class VerifyError(ReshardError):
    """Outputs differ from what their sources say they must be."""

    exit_code = 6


class Interrupted(ReshardError):
    """Stopped by the user; nothing half-written was left."""

    exit_code = 130


def add_problems(error: BaseException, problems: Sequence[str]) -> None:
    """Have an error on its way list more problems; an error of another package gets a note."""
    if isinstance(error, ReshardError):
        error.marked_problems = (*error.marked_problems, *map(_showable, problems))
    elif problems:
        error.add_note("\n".join(problems))


def raise_all(error: type[ReshardError], message: str, problems: Sequence[str], hint: str = "") -> None:
    """Raise one ``error`` that lists ``problems``, or return when there are none."""
    if problems:
        raise error(message, problems=problems, hint=hint)
