"""What answers of S3 services tell: any server can send one, so what is missing or impossible is an error."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from ..errors import StorageError
from .protocol import ObjectInfo, PartInfo


def bare_etag(answer: Mapping[str, Any]) -> str:
    """Return the etag of an answer without quotes; empty if the store sent none.

    Examples
    --------
    >>> bare_etag({"ETag": '"0123-4"'}), bare_etag({})
    ('0123-4', '')
    """
    return str(answer.get("ETag") or "").strip('"')


T = TypeVar("T", int, str)


def told(answer: Mapping[str, Any], name: str, kind: type[T], label: object) -> T:
    """Return what an answer must tell, a length or a name.

    Raise StorageError if it does not, tells a negative number, or something else: botocore makes a list of an element
    that is there twice.

    Examples
    --------
    >>> told({"Size": 3}, "Size", int, "Cannot list s3://b")
    3
    >>> told({}, "Size", int, "Cannot list s3://b")
    Traceback (most recent call last):
    ...
    reshard.errors.StorageError: Cannot list s3://b: the store's answer has no Size.
    """
    found = answer.get(name)
    if found is None or found == "":
        raise StorageError(f"{label}: the store's answer has no {name}.")
    if not isinstance(found, kind) or (isinstance(found, int) and found < 0):
        raise StorageError(f"{label}: the store's answer has a {name} that is none.")
    return found


def age_of(answer: Mapping[str, Any]) -> float | None:
    """Return the seconds between when an object was written and when the store answered, both by its clock."""
    try:
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return float((now - answer["LastModified"]).total_seconds())
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return None


def listed_objects(found: Iterable[Mapping[str, Any]], prefix: str, label: object) -> Sequence[ObjectInfo]:
    """Return the objects of a listing whose keys begin with a prefix, by key.

    Stores that keep keys as trees list a/b before a.txt.
    """
    infos = (
        ObjectInfo(told(each, "Key", str, label), told(each, "Size", int, label), bare_etag(each)) for each in found
    )
    return sorted((info for info in infos if info.key.startswith(prefix)), key=lambda info: info.key)


def listed_parts(found: Iterable[Mapping[str, Any]], label: object) -> Sequence[PartInfo]:
    """Return the parts of a listing, by number."""
    parts = set[PartInfo]()
    for each in found:
        number, nbytes = (told(each, name, int, label) for name in ("PartNumber", "Size"))
        parts.add(PartInfo(number, bare_etag(each), nbytes, decoded_crc(each.get("ChecksumCRC32C"))))
    # SeaweedFS lists every part that was sent under a number, in no order.
    counts = Counter(part.number for part in parts)
    return sorted((part for part in parts if counts[part.number] == 1), key=lambda part: part.number)


def decoded_crc(text: str | None) -> int | None:
    """Read a CRC-32C of S3's answers; None if there is none.

    Examples
    --------
    >>> decoded_crc("yZRlqg=="), decoded_crc("yZRl"), decoded_crc(None)
    (3381945770, None, None)
    """
    with suppress(ValueError, TypeError):
        value = base64.b64decode(text or "", validate=True)
        return int.from_bytes(value, "big") if len(value) == 4 else None
    return None
