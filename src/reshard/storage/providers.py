"""How S3 services differ, as a table: one row a service, first match wins.

Only differences that change what is sent are here. What no row relies on: conditional writes
(``If-None-Match`` on PUT or Complete), multi-object deletes, checksums kept by the store, and
ETags that are MD5s; services disagree on all of them.
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
class Provider:
    """One S3 service.

    Parameters
    ----------
    name
        For messages.
    hosts
        Regular expression for the whole host of the endpoint; a group ``region`` is the signing
        region. The empty host means that no endpoint is set.
    addressing
        Where the bucket's name goes.
    region
        Signing region, where the host does not tell.
    limits
        Part sizes, and what may be copied by ranges. Rows stay at the S3 floor of 5 MiB even where
        less is allowed; but for OBS, because the smaller parts may be, the less passes through the
        client beside what the service copies. Every service here has UploadPartCopy with a range.
        Source: the services' own API references.
    unequal_parts
        Whether the parts of one upload may differ in length.
    list_version
        Which listing to ask for: 2 only where it is known to be right. On OBS the second kind
        begins anew with each page, and its file system buckets do not have it; Ceph, Tencent COS
        and others came late to it too. S3 directory buckets have no other.
        Source: minio/minio-go issue 1703 and rclone/rclone pull request 6220 (both about OBS).

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

    def matches(self, host: str) -> bool:
        """Whether an endpoint of this host belongs to this row."""
        return re.fullmatch(self.hosts, host) is not None

    def region_of(self, host: str) -> str:
        """Signing region, or nothing if neither the host nor the row tells."""
        match = re.fullmatch(self.hosts, host)
        return (match.groupdict().get("region") if match else None) or self.region


PROVIDERS: tuple[Provider, ...] = (
    # boto3's "auto" means virtual here, but a path for bucket names with dots, which no certificate covers.
    Provider(AWS, r"|.*\.amazonaws\.com(?:\.cn)?", "auto", list_version=2),
    # Path style on the public names was withdrawn from 2023-12-30 on: the answer is SecondLevelDomainForbidden, or a
    # misleading 404. A part has 100 KiB at least, the last one any length; at most 10 000 parts of 5 GiB: 48.8 TiB.
    # Of no object is it said that it is too short for a range of it to be copied; copies stay within a region, which is
    # one endpoint.
    # Source: Huawei Cloud OBS API reference, "Initiating a Multipart Upload", "Copying a Part" and "Notes and
    # Constraints".
    Provider(
        "Huawei OBS",
        r"(?:.+\.)?obs(?:\.(?P<region>[a-z0-9-]+))?\.myhuaweicloud\.(?:com|eu)",
        "virtual",
        limits=StoreLimits(min_part_bytes=100 << 10, max_object_bytes=10_000 * (5 << 30), min_copy_source_bytes=1),
    ),
    # Source: "Accessing OSS with the AWS SDK", Alibaba Cloud: virtual host, no chunked encoding.
    Provider("Alibaba OSS", r"(?:.+\.)?(?:s3\.)?oss-(?P<region>[a-z0-9-]+?)(?:-internal)?\.aliyuncs\.com", "virtual"),
    # Source: "COS Bucket Domain Security Management Notice", Tencent Cloud: no path style for buckets made since 2024.
    Provider("Tencent COS", r"(?:.+\.)?cos\.(?P<region>[a-z0-9-]+)\.myqcloud\.com", "virtual"),
    # Source: "Multipart upload", Cloudflare R2 documentation: all parts but the last must be the same size.
    Provider("Cloudflare R2", r".+\.r2\.cloudflarestorage\.com", "path", region="auto", unequal_parts=False),
    # MinIO, Ceph, SeaweedFS, private OBS; IP addresses and domains of one's own, where no wildcard DNS can be assumed.
    Provider("S3-compatible store", r".*", "path"),
)


def provider_of(endpoint: str | None, environ: Mapping[str, str]) -> Provider:
    """Find the row of an endpoint, with the addressing that the environment insists on.

    Parameters
    ----------
    endpoint
        URL with its scheme; None for AWS's own.
    environ
        ``RESHARD_S3_ADDRESSING`` may be ``path`` or ``virtual``.

    Raises
    ------
    UsageError
        The variable says something else.

    Examples
    --------
    >>> provider_of("https://obs.cn-north-4.myhuaweicloud.com", {}).addressing
    'virtual'
    >>> provider_of("http://127.0.0.1:9000", {}).addressing
    'path'
    >>> provider_of("http://s3.lab.example", {"RESHARD_S3_ADDRESSING": "virtual"}).addressing
    'virtual'
    """
    host = (urlsplit(endpoint).hostname or "") if endpoint else ""
    row = next(row for row in PROVIDERS if row.matches(host))
    wanted = environ.get(ADDRESSING_VARIABLE)
    if not wanted:
        return row
    if wanted not in ("path", "virtual"):
        raise UsageError(f"{ADDRESSING_VARIABLE} must be 'path' or 'virtual', not {wanted!r}.")
    return replace(row, addressing=cast("Addressing", wanted))
