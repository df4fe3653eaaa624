"""How S3 services differ, as a table: one row per service, the first match wins.

Only differences that change requests are here. No row relies on conditional writes, multi-object deletes, or ETags
that are MD5s: services disagree on all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, cast
from urllib.parse import urlsplit

from ..errors import UsageError
from .protocol import StoreLimits

Addressing = Literal["auto", "virtual", "path"]
"""Bucket in the host name (``virtual``), in the path (``path``), or boto3's choice (``auto``)."""

ADDRESSING_VARIABLE = "RESHARD_S3_ADDRESSING"
AWS = "AWS S3"


@dataclass(frozen=True, slots=True)
class Allowance:
    """Bytes in both directions together, GETs and PUTs, a second; None where no figure is published."""

    bytes_s: float | None = None
    gets_s: float | None = None
    puts_s: float | None = None


@dataclass(frozen=True, slots=True)
class Provider:
    """One S3 service.

    Parameters
    ----------
    hosts
        Regular expression for the whole host of the endpoint; a group ``region`` is the signing
        region. The empty host means that no endpoint is set.
    region
        Signing region if the host does not contain it.
    limits
        Part sizes, and the objects that ranges are copied of. Rows keep the S3 minimum of 5 MiB even
        where smaller parts are allowed, except for OBS: the smaller the parts, the fewer bytes pass
        through the client beside those that the service copies. Every service here has UploadPartCopy
        with a range.
        Source: the services' own API references.
    unequal_parts
        Whether the parts of one upload may differ in length.
    list_version
        Version of ListObjects: 2 only where it is known to work. On OBS version 2 begins anew with
        each page, and OBS's file system buckets lack it; Ceph, Tencent COS and others added it late.
        S3 directory buckets have only version 2.
        Source: minio/minio-go issue 1703 and rclone/rclone pull request 6220 (both about OBS).
    upload_check
        What the service checks of a body that it receives: a CRC-32C in a header, which costs nothing and which it
        joins for the whole object, or Content-MD5 only. ``asked``: a first upload finds out
        (:func:`reshard.storage.s3_checksums.find_check`), as with servers that any address may name.
    takes_conditions
        Whether a PUT may have a condition (``If-None-Match``, ``If-Match``); the service keeps to it, or ignores it.
        OSS refuses such a request; OBS and COS do not document the headers.
    allowance
        What the service lets an account have at once, in all; of AWS it is what it lets a prefix have.

    Examples
    --------
    >>> PROVIDERS[1].region_of("obs.cn-north-4.myhuaweicloud.com")
    'cn-north-4'
    """

    name: str
    hosts: str
    addressing: Addressing
    region: str = ""
    limits: StoreLimits = field(default_factory=StoreLimits)
    unequal_parts: bool = True
    list_version: Literal[1, 2] = 1
    upload_check: Literal["crc32c", "md5", "asked"] = "asked"
    takes_conditions: bool = True
    allowance: Allowance = Allowance()

    @property
    def head_arguments(self) -> Mapping[str, str]:
        """Arguments of a HEAD that asks for an object's checksum, where the service may keep one."""
        return {} if self.upload_check == "md5" else {"ChecksumMode": "ENABLED"}

    def condition(self, replaces: str | None) -> Mapping[str, str]:
        """Arguments of a PUT that may replace one object only: that with an etag, or none if the etag is empty.

        Examples
        --------
        >>> PROVIDERS[0].condition(""), PROVIDERS[0].condition("7f00"), PROVIDERS[1].condition("7f00")
        ({'IfNoneMatch': '*'}, {'IfMatch': '"7f00"'}, {})
        """
        if replaces is None or not self.takes_conditions:
            return {}
        return {"IfMatch": f'"{replaces}"'} if replaces else {"IfNoneMatch": "*"}

    def region_of(self, host: str) -> str:
        """Return the signing region, or nothing if neither the host nor the row has one."""
        match = re.fullmatch(self.hosts, host)
        return (match.groupdict().get("region") if match else None) or self.region


PROVIDERS: tuple[Provider, ...] = (
    # boto3's "auto" means virtual here, but a path for bucket names with dots, which no certificate covers.
    # Source of the allowance: "Optimizing Amazon S3 performance", S3 User Guide.
    Provider(
        AWS,
        r"|.*\.amazonaws\.com(?:\.cn)?",
        "auto",
        list_version=2,
        upload_check="crc32c",
        allowance=Allowance(gets_s=5500, puts_s=3500),
    ),
    # Path style on the public names was withdrawn from 2023-12-30 on: the answer is SecondLevelDomainForbidden, or a
    # misleading 404. A part has at least 100 KiB, the last one any length; at most 10 000 parts of 5 GiB: 48.8 TiB.
    # No shortest object to copy ranges of is documented; copies stay within a region, which is one endpoint.
    # Source: Huawei Cloud OBS API reference, "Initiating a Multipart Upload", "Copying a Part" and "Notes and
    # Constraints".
    Provider(
        "Huawei OBS",
        r"(?:.+\.)?obs(?:\.(?P<region>[a-z0-9-]+))?\.myhuaweicloud\.(?:com|eu)",
        "virtual",
        limits=StoreLimits(min_part_bytes=100 << 10, max_object_bytes=10_000 * (5 << 30), min_copy_source_bytes=1),
        # It documents Content-MD5 of a body and tells a CRC-64/XZ of objects; x-amz-checksum headers it does not know.
        # Source: Huawei Cloud OBS API reference, "PUT Object" and "Uploading a Part".
        upload_check="md5",
        takes_conditions=False,
        # 16 Gbit/s, unless an account has asked for more; read here as of both directions together.
        # Source: Huawei Cloud OBS user guide, "Notes and Constraints".
        allowance=Allowance(bytes_s=2e9, gets_s=10_000, puts_s=6000),
    ),
    # Source: "Accessing OSS with the AWS SDK", Alibaba Cloud: virtual host, no chunked encoding.
    Provider(
        "Alibaba OSS",
        r"(?:.+\.)?(?:s3\.)?oss-(?P<region>[a-z0-9-]+?)(?:-internal)?\.aliyuncs\.com",
        "virtual",
        upload_check="md5",
        takes_conditions=False,
    ),
    # Source: "COS Bucket Domain Security Management Notice", Tencent Cloud: no path style for buckets made since 2024.
    Provider(
        "Tencent COS",
        r"(?:.+\.)?cos\.(?P<region>[a-z0-9-]+)\.myqcloud\.com",
        "virtual",
        upload_check="md5",
        takes_conditions=False,
    ),
    # Source: "Multipart upload", Cloudflare R2 documentation: all parts but the last must be the same size.
    Provider("Cloudflare R2", r".+\.r2\.cloudflarestorage\.com", "path", region="auto", unequal_parts=False),
    # MinIO, Ceph, SeaweedFS, private OBS; IP addresses and private domains, where no wildcard DNS can be assumed.
    Provider("S3-compatible store", r".*", "path"),
)


UPLOAD_CHECKS: Mapping[str, str] = {
    "crc32c": "CRC-32C",
    "md5": "MD5",
    "asked": "CRC-32C or MD5",
}
"""What services check of bodies that they receive, in words."""


def provider_of(endpoint: str | None, environ: Mapping[str, str]) -> Provider:
    """Return the row of an endpoint (None for AWS's own), with the addressing that the environment requires.

    ``RESHARD_S3_ADDRESSING`` may be ``path`` or ``virtual``; anything else is a UsageError.

    Examples
    --------
    >>> provider_of("https://obs.cn-north-4.myhuaweicloud.com", {}).addressing
    'virtual'
    >>> provider_of("http://s3.lab.example", {"RESHARD_S3_ADDRESSING": "virtual"}).addressing
    'virtual'
    """
    host = (urlsplit(endpoint).hostname or "") if endpoint else ""
    row = next(row for row in PROVIDERS if re.fullmatch(row.hosts, host))
    wanted = environ.get(ADDRESSING_VARIABLE)
    if not wanted:
        return row
    if wanted not in ("path", "virtual"):
        raise UsageError(f"{ADDRESSING_VARIABLE} must be 'path' or 'virtual', not {wanted!r}.")
    return replace(row, addressing=cast("Addressing", wanted))
