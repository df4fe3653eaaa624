"""Checksums of bodies that an S3 service receives: which it checks, how requests carry one, what answers confirm."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from botocore.exceptions import ClientError

from ..errors import ReshardError, StorageError, Transient
from .checksums import Algorithm, crc_of, joined_crc
from .protocol import Body, Checksum, KeptChecksum, Proof
from .s3_answers import bare_etag, told
from .s3_errors import RequestLabel, explain, status_of

_KEPT: tuple[tuple[str, Algorithm], ...] = (
    ("ChecksumCRC32C", "crc32c"),
    ("ChecksumCRC64NVME", "crc64nvme"),
    ("ChecksumCRC32", "crc32"),
)
_PROBES = 3
_PROBE = b"reshard asks which checksum is checked"


@dataclass(frozen=True, slots=True)
class UploadCheck:
    """What a service checks of the bodies that it receives.

    Parameters
    ----------
    by
        A CRC-32C, Content-MD5, or nothing. ``etag``: nothing, but the etag of a body is the MD5 of what was received,
        which shows as much.
    is_joined
        Whether it joins the CRC-32C of parts into that of the whole object, and keeps it.
    """

    by: Literal["crc32c", "md5", "etag", ""]
    is_joined: bool = False

    def of_upload(self) -> Mapping[str, str]:
        """Return the arguments that open a checked upload."""
        if self.by != "crc32c":
            return {}
        return {"ChecksumAlgorithm": "CRC32C", **({"ChecksumType": "FULL_OBJECT"} if self.is_joined else {})}


class LearnedCheck:
    """What a service checks: as its row in the table of providers says, or learned once. For many threads."""

    def __init__(self, known: Literal["crc32c", "md5", "asked"]) -> None:
        self._found = None if known == "asked" else UploadCheck(known, known == "crc32c")
        self._asking = threading.Lock()

    def get(self, ask: Callable[[], UploadCheck]) -> UploadCheck:
        """Return it; ``ask`` finds it out where it is not known yet."""
        with self._asking:
            self._found = self._found or ask()
            return self._found


class _Refused(StorageError):
    """A service does not take a request as it is."""


def explain_question(error: Exception, label: RequestLabel) -> ReshardError:
    """Translate an error of a request of :func:`find_check`."""
    if not isinstance(error, ClientError) or status_of(error) not in (400, 501):
        return explain(error, label)
    has_timed_out = error.response.get("Error", {}).get("Code") == "RequestTimeout"
    return explain(error, label) if has_timed_out else _Refused(f"{label}: refused.")


def find_check(send: Callable[..., Any], abort: Callable[..., Any]) -> UploadCheck:
    """Find out what a service checks, by parts with wrong checksums in an upload that is then aborted.

    Nothing becomes visible. A service may take every header and check none, or know none of them: so it must refuse a
    wrong checksum and take the right one. ``send`` sends an operation of boto3 about one key, with its other arguments,
    and raises what :func:`explain_question` returns; ``abort`` aborts an upload, however often it must try.
    """
    try:
        answer = send("create_multipart_upload", ChecksumAlgorithm="CRC32C", ChecksumType="FULL_OBJECT")
    except _Refused:
        answer = send("create_multipart_upload")
    upload = {"UploadId": told(answer, "UploadId", str, "Cannot ask which checksum is checked")}

    def part(**checksum: str) -> Any:
        return send("upload_part", PartNumber=1, Body=_PROBE, **upload, **checksum)

    def is_compared(name: str, wrong: str, right: str) -> bool:
        try:
            part(**{name: wrong})
            return False
        except _Refused:
            try:
                part(**{name: right})
            except _Refused:
                return False
        return True

    try:
        md5 = hashlib.md5(_PROBE, usedforsecurity=False)
        if is_compared("ChecksumCRC32C", encoded_crc(crc_of(_PROBE) ^ 1), encoded_crc(crc_of(_PROBE))):
            return UploadCheck("crc32c", answer.get("ChecksumType") == "FULL_OBJECT")
        if is_compared("ContentMD5", _base64(bytes(16)), _base64(md5.digest())):
            return UploadCheck("md5")
        # Several times: one of them may be damaged on its way, and that is no reason to prove nothing any more.
        return UploadCheck("etag" if any(bare_etag(part()) == md5.hexdigest() for _ in range(_PROBES)) else "")
    finally:
        with suppress(ReshardError):
            abort(**upload)


@dataclass(frozen=True, slots=True)
class CheckedBody:
    """A body on its way to a service that checks it."""

    check: UploadCheck
    checksum: Checksum | None
    md5: bytes = b""
    arguments: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, check: UploadCheck, checksum: Checksum | None, body: Body) -> CheckedBody:
        """Choose what is sent beside a body."""
        if checksum is None:
            return cls(UploadCheck(""), None)
        if check.by == "crc32c":
            return cls(check, checksum, arguments={"ChecksumCRC32C": encoded_crc(checksum.crc32c)})
        if not check.by or not checksum.may_hash:
            return cls(UploadCheck(""), checksum)
        md5 = hashlib.md5(body, usedforsecurity=False).digest()
        return cls(check, checksum, md5, {"ContentMD5": _base64(md5)} if check.by == "md5" else {})

    def confirm(self, answer: Mapping[str, Any], label: RequestLabel) -> Proof:
        """Return what an answer proves; raise Transient, so that the body goes again, if other bytes were received."""
        if self.check.by == "crc32c" and self.checksum is not None:
            found = answer.get("ChecksumCRC32C")
            if found not in (None, encoded_crc(self.checksum.crc32c)):
                raise _damaged(label)
            return "crc32c"
        if self.check.by == "etag" and bare_etag(answer) != self.md5.hex():
            raise _damaged(label)
        return "md5" if self.check.by else ""


def _damaged(label: RequestLabel) -> Transient:
    return Transient(
        f"{label}: the store has received other bytes than were sent.",
        hint="Something between here and the store changes bytes: a proxy, a network card, memory.",
    )


def kept_checksum(answer: Mapping[str, Any]) -> KeptChecksum | None:
    """Return the checksum of a whole object that an answer tells.

    A checksum of parts' checksums, with the number of parts at its end, says nothing without their lengths.

    Examples
    --------
    >>> kept_checksum({"ChecksumCRC32C": "yZRlqg=="})
    KeptChecksum(algorithm='crc32c', value=3381945770)
    >>> kept_checksum({"ChecksumCRC32C": "1J3PmQ==-2", "ChecksumType": "COMPOSITE"})
    """
    # Servers that tell no type mean that of a single PUT: of several parts they may tell either.
    kind = answer.get("ChecksumType") or ("" if "-" in bare_etag(answer) else "FULL_OBJECT")
    if kind != "FULL_OBJECT":
        return None
    for name, algorithm in _KEPT:
        text = str(answer.get(name) or "")
        if text and "-" not in text:
            with suppress(ValueError):
                value = base64.b64decode(text, validate=True)
                return KeptChecksum(algorithm, int.from_bytes(value, "big")) if len(value) in (4, 8) else None
    return None


def joined_parts(
    check: UploadCheck, parts: Sequence[tuple[int, str]], crcs: Mapping[int, tuple[int, int]]
) -> tuple[Mapping[str, Any], KeptChecksum | None]:
    """Return the arguments that join parts, and the checksum of the whole that the service is to find.

    ``crcs`` are CRC-32C and length of parts by number.
    """
    known = crcs if check.by == "crc32c" else {}
    listed = [
        {
            "PartNumber": number,
            "ETag": f'"{etag}"',
            **({"ChecksumCRC32C": encoded_crc(known[number][0])} if number in known else {}),
        }
        for number, etag in parts
    ]
    if not (check.is_joined and all(number in known for number, _ in parts)):
        return {"MultipartUpload": {"Parts": listed}}, None
    whole = joined_crc(known[number] for number, _ in parts)
    told = {"ChecksumCRC32C": encoded_crc(whole), "ChecksumType": "FULL_OBJECT"}
    return {"MultipartUpload": {"Parts": listed}, **told}, KeptChecksum("crc32c", whole)


def check_whole(label: RequestLabel, expected: KeptChecksum | None, found: KeptChecksum | None) -> None:
    """Raise StorageError if a service keeps another checksum of an object than that of its parts joined."""
    if expected and found and expected.algorithm == found.algorithm and expected != found:
        raise StorageError(
            f"{label}: expected an object with {expected}, found one with {found}.",
            hint="The store lost or changed bytes; convert again.",
        )


def encoded_crc(crc: int) -> str:
    """Write a CRC-32C as S3's headers have it.

    Examples
    --------
    >>> encoded_crc(crc_of(b"hello world"))
    'yZRlqg=='
    """
    return _base64(crc.to_bytes(4, "big"))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
