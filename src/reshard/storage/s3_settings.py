"""The settings of a bucket, from environment variables; no connection is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from ..errors import UsageError
from .providers import AWS, Provider, provider_of

TRANSFERS_VARIABLE = "RESHARD_S3_TRANSFERS"
_DEFAULT_REGION = "us-east-1"  # what servers that have no regions expect in a signature


@dataclass(frozen=True, slots=True)
class Keys:
    """Credentials from variables that boto3 does not read, never shown; it finds others by itself.

    ``source`` names the variable that they came from.

    Examples
    --------
    >>> Keys("AK", "SK")
    Keys(...)
    """

    access_key: str
    secret_key: str
    session_token: str | None = None
    source: str = field(default="", compare=False)

    def __repr__(self) -> str:
        return "Keys(...)"


@dataclass(frozen=True, slots=True)
class S3Settings:
    """The settings of one bucket.

    Parameters
    ----------
    endpoint
        URL without the bucket; None for AWS's own.
    region
        Region for the signature; None for boto3's choice.
    keys
        None for the AWS chain: environment, profile, web identity, instance role.
    checks_certificate
        Whether the endpoint's certificate must be one that this machine trusts.
    read_timeout_s
        Longest silence on a connection.
    block_timeout_s
        Longest time for 64 KiB of a body.
    connection_count
        Connections kept open; more threads than this do not wait, but reconnect each time.
    transfers
        What sends the requests that carry objects' bytes: connections of our own, or boto3.

    Examples
    --------
    >>> obs_settings("models", {"OBS_ENDPOINT": "obs.cn-north-4.myhuaweicloud.com"}).endpoint
    'https://obs.cn-north-4.myhuaweicloud.com'
    """

    url: str
    bucket: str
    provider: Provider
    endpoint: str | None = None
    region: str | None = None
    keys: Keys | None = field(default=None, repr=False)
    checks_certificate: bool = True
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    block_timeout_s: float = 60.0
    connection_count: int = 64
    transfers: Literal["direct", "boto3"] = "direct"

    @property
    def place(self) -> str:
        """Service and address, for messages."""
        return f"{self.provider.name} at {self.endpoint}" if self.endpoint else self.provider.name

    @property
    def identity(self) -> str:
        """Service and bucket: equal for all URLs of one bucket, whatever their schemes.

        Examples
        --------
        >>> s3_settings("b", {}, "http://Store.example:80").identity, s3_settings("b", {}).identity
        ('s3@store.example/b', 's3@amazonaws.com/b')
        """
        if self.endpoint is None or self.provider.name == AWS:
            return f"s3@amazonaws.com/{self.bucket}"  # one name, one bucket, in whatever region
        parts = urlsplit(self.endpoint)
        port = f":{parts.port}" if parts.port not in (None, 80, 443) else ""
        return f"s3@{parts.hostname}{port}{parts.path}/{self.bucket}"

    @property
    def service(self) -> str:
        """The service alone: equal for all buckets of it.

        Examples
        --------
        >>> s3_settings("b", {}, "http://store.example").service
        's3@store.example'
        """
        return self.identity.removesuffix(f"/{self.bucket}")

    def reaches(self, other: S3Settings) -> bool:
        """Whether this service has the bucket of ``other``, and the same credentials open both.

        Examples
        --------
        >>> here = s3_settings("a", {}, "http://store.example")
        >>> here.reaches(s3_settings("b", {}, "http://store.example:80/"))
        True
        >>> here.reaches(s3_settings("b", {})), here.reaches(obs_settings("b", {"OBS_ENDPOINT": "http://other.example"}))
        (False, False)
        """
        mine, theirs = ((each.service, each.provider, each.region, each.keys) for each in (self, other))
        return mine == theirs


def s3_settings(bucket: str, environ: Mapping[str, str], endpoint: str = "", region: str = "") -> S3Settings:
    """Return the settings of ``s3://bucket``: what boto3 found in environment and profile, then the job service's.

    ``endpoint`` is the one that boto3 found. ``S3_ENDPOINT`` counts where boto3 was told none, ``ACCESS_KEY_ID`` where
    neither ``AWS_ACCESS_KEY_ID`` nor ``AWS_PROFILE`` is set.

    Examples
    --------
    >>> s3_settings("b", {}).provider.name, s3_settings("b", {}, "http://127.0.0.1:9000").region
    ('AWS S3', 'us-east-1')
    >>> s3_settings("b", {"S3_ENDPOINT": "10.0.0.1:9000", "S3_USE_HTTPS": "0"}).endpoint
    'http://10.0.0.1:9000'
    """
    name, url = "AWS_ENDPOINT_URL", _endpoint(endpoint, "AWS_ENDPOINT_URL") if endpoint else None
    # boto3 chooses AWS's own endpoints better by itself: it knows partitions and redirects.
    if url is None or provider_of(url, environ).name == AWS:
        url = None
        if environ.get(_SERVICE_ENDPOINT) and not any(map(environ.get, _AWS_ENDPOINTS)):
            name, url = _SERVICE_ENDPOINT, _service_endpoint(environ)
            url = None if provider_of(url, environ).name == AWS else url
    keys = None if any(map(environ.get, _AWS_KEYS)) else _keys(environ, _SERVICE_PAIR)
    made = _settings("s3", bucket, environ, url, region or environ.get("AWS_REGION"), keys)
    return replace(made, checks_certificate=_checks_certificate(environ, name))


def obs_settings(bucket: str, environ: Mapping[str, str], region: str | None = None) -> S3Settings:
    """Return the settings of ``obs://bucket``: OBS variables first, then those of a job service, then those of AWS.

    Read are ``OBS_ENDPOINT`` (else ``S3_ENDPOINT``, which ModelArts sets, or AWS's variables, or made from
    ``OBS_REGION``), and ``OBS_ACCESS_KEY_ID``, ``OBS_SECRET_ACCESS_KEY`` and ``OBS_SECURITY_TOKEN`` (else the same
    names without ``OBS_``). The ``region`` that boto3 found counts if neither ``OBS_REGION`` nor the endpoint says.
    Raise UsageError if the endpoint or one of a pair of keys is missing.

    Examples
    --------
    >>> settings = obs_settings("models", {"OBS_REGION": "cn-east-3", "OBS_ACCESS_KEY_ID": "A",
    ...                                    "OBS_SECRET_ACCESS_KEY": "S"})
    >>> settings.region, settings.endpoint
    ('cn-east-3', 'https://obs.cn-east-3.myhuaweicloud.com')
    """
    name = next((name for name in _OBS_ENDPOINTS if environ.get(name)), "")
    if name == _SERVICE_ENDPOINT:
        endpoint = _service_endpoint(environ)
    elif name:
        endpoint = _endpoint(environ[name], name)
    elif environ.get("OBS_REGION"):
        endpoint = _endpoint(f"https://obs.{environ['OBS_REGION']}.myhuaweicloud.com", "OBS_REGION")
    else:
        raise UsageError(
            f"No endpoint is known for obs://{bucket}.",
            hint="Set OBS_ENDPOINT, for example to https://obs.cn-north-4.myhuaweicloud.com.",
        )
    keys = _keys(environ, _OBS_PAIR) or _keys(environ, _SERVICE_PAIR)
    made = _settings("obs", bucket, environ, endpoint, environ.get("OBS_REGION"), keys, region)
    return replace(made, checks_certificate=_checks_certificate(environ, name))


_SERVICE_ENDPOINT = "S3_ENDPOINT"
"""What a job service presets, and what moxing and TensorFlow read."""

_AWS_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_OBS_ENDPOINTS = ("OBS_ENDPOINT", _SERVICE_ENDPOINT, *_AWS_ENDPOINTS)
_AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE")

# Variables of access key, secret key and session token.
_OBS_PAIR = ("OBS_ACCESS_KEY_ID", "OBS_SECRET_ACCESS_KEY", "OBS_SECURITY_TOKEN")
_SERVICE_PAIR = ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SECURITY_TOKEN", "SESSION_TOKEN")


def _keys(environ: Mapping[str, str], names: Sequence[str]) -> Keys | None:
    """Return the keys in these variables, if they are set; UsageError for half a pair."""
    access, secret = (environ.get(name) for name in names[:2])
    if bool(access) != bool(secret):
        raise UsageError(f"Only one of {names[0]} and {names[1]} is set.", hint="Set both or none.")
    token = next((environ[name] for name in names[2:] if environ.get(name)), None)
    return Keys(access, secret, token, names[0]) if access and secret else None


def _service_endpoint(environ: Mapping[str, str]) -> str:
    """Return the endpoint of a job service, which may lack a scheme."""
    is_secure = _truth(environ, "S3_USE_HTTPS")
    return _endpoint(environ[_SERVICE_ENDPOINT], _SERVICE_ENDPOINT, "https" if is_secure else "http")


def _checks_certificate(environ: Mapping[str, str], endpoint_variable: str) -> bool:
    """Whether certificates count: a job service's own endpoint may have none that is trusted."""
    if endpoint_variable != _SERVICE_ENDPOINT or environ.get("AWS_CA_BUNDLE"):
        return True
    return _truth(environ, "S3_VERIFY_SSL")


def _truth(environ: Mapping[str, str], name: str) -> bool:
    found = _TRUTHS.get(environ.get(name, "").strip().lower())
    if found is None:
        raise UsageError(f"{name} must be 0 or 1, not {environ[name]!r}.")
    return found


_TRUTHS = {"": True, "1": True, "true": True, "0": False, "false": False}


def _settings(
    scheme: str,
    bucket: str,
    environ: Mapping[str, str],
    endpoint: str | None,
    region: str | None,
    keys: Keys | None = None,
    fallback_region: str | None = None,
) -> S3Settings:
    if not bucket:
        raise UsageError(f"{scheme}:// needs the name of a bucket.", hint=f"Write {scheme}://bucket/key.")
    provider = provider_of(endpoint, environ)
    host = (urlsplit(endpoint).hostname or "") if endpoint else ""
    region = region or provider.region_of(host) or fallback_region or (_DEFAULT_REGION if endpoint else None)
    if endpoint and provider.addressing == "virtual":
        endpoint = endpoint.replace(f"//{bucket}.", "//", 1)  # people paste the bucket's own domain name
    return S3Settings(f"{scheme}://{bucket}", bucket, provider, endpoint, region, keys, transfers=_transfers(environ))


def _transfers(environ: Mapping[str, str]) -> Literal["direct", "boto3"]:
    match environ.get(TRANSFERS_VARIABLE, "").strip().lower():
        case "" | "direct":
            return "direct"
        case "boto3":
            return "boto3"
    raise UsageError(f"{TRANSFERS_VARIABLE} must be direct or boto3, not {environ[TRANSFERS_VARIABLE]!r}.")


def _endpoint(text: str, source: str, scheme: str = "https") -> str:
    """Normalise an endpoint to ``https://host[:port][/path]``; ``scheme`` is for one that has none."""
    try:
        parts = urlsplit(text if "://" in text else f"{scheme}://{text}")
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a bracket that is not closed, a port that is no number
        parts, valid = urlsplit(""), False
    if not valid or "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"{source} is not the address of a store.", hint="It must look like https://host or http://host:port."
        )
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
