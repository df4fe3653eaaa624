"""Keys as a user writes them, brought into one form that cannot climb out of where it starts."""

from __future__ import annotations

from ..errors import UsageError


def normal_key(text: str) -> str:
    """Drop the slashes at both ends, doubled ones and ``.`` segments.

    Raises
    ------
    UsageError
        A ``..`` segment or a NUL character.

    Examples
    --------
    >>> normal_key("/models//llama/./v1/")
    'models/llama/v1'
    >>> normal_key("a/../../etc")
    Traceback (most recent call last):
    ...
    reshard.errors.UsageError: 'a/../../etc' is not a key: it has a '..' segment.
    Name objects below their root without '..'.
    """
    segments = [segment for segment in text.split("/") if segment not in ("", ".")]
    if ".." in segments:
        raise UsageError(
            f"{text!r} is not a key: it has a '..' segment.", hint="Name objects below their root without '..'."
        )
    if "\0" in text:
        raise UsageError(f"{text!r} is not a key: it has a NUL character.")
    return "/".join(segments)


def join_key(prefix: str, name: str) -> str:
    """Put ``name`` below ``prefix``; either may be empty.

    Raises
    ------
    UsageError
        As for :func:`normal_key`.

    Examples
    --------
    >>> join_key("models", "rank_0/checkpoint.safetensors")
    'models/rank_0/checkpoint.safetensors'
    """
    return normal_key(f"{prefix}/{name}")
