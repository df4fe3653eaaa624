"""A boto3 client set up for moving large objects, on AWS and on stores that support less than AWS."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import threading
import warnings
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import boto3
import botocore.loaders
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.utils import parse_timestamp

from ..errors import UsageError
from .body_watch import BodyWatch
from .request_log import log_as_told, log_client
from .s3_settings import S3Settings, obs_settings, s3_settings

if TYPE_CHECKING:
    from .s3_direct import DirectClient


class Connection:
    """The client of one bucket, for many threads, and the watch over what it reads.

    A client is made again once its credentials have expired: those of a file that has changed since are read anew.
    What boto3 refreshes by itself needs none of this, until a token ends before its time.
    """

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self.client = make_client(settings)
        self._direct: tuple[Any, DirectClient] | None = None
        self.watch = BodyWatch(settings.block_timeout_s)

    def send_bytes(self, client: Any, operation: str, **arguments: Any) -> Any:
        """Send a request that carries an object's bytes, by a client of boto3 or in its place; raise what it raises."""
        if self._settings.transfers == "boto3":
            return getattr(client, operation)(**arguments)
        with self._lock:
            if self._direct is None or self._direct[0] is not client:
                from .s3_direct import DirectClient

                self._direct = client, DirectClient(client, self._settings)
            direct = self._direct[1]
        return direct.send(operation, **arguments)

    def renew(self, expired: Any) -> bool:
        """Replace a client whose credentials have expired, unless that is done; False if nothing new can be read."""
        if self._settings.keys:  # from the environment, which does not change
            return False
        with self._lock:
            if self.client is expired:
                self.client = make_client(self._settings)
        return True


def find_settings(scheme: str, bucket: str) -> S3Settings:
    """Gather the settings of a bucket from the environment, profiles and AWS's configuration files.

    Raise UsageError if a setting is missing or contradicts another.
    """
    session = _session()
    if scheme == "obs":
        return obs_settings(bucket, os.environ, session.region_name)
    # boto3 finds the endpoint in environment, profile and service sections, in its own order.
    endpoint = str(_client(session, region_name=session.region_name or "us-east-1").meta.endpoint_url)
    return s3_settings(bucket, os.environ, endpoint, session.region_name or "")


def make_client(settings: S3Settings) -> Any:
    """Make the client for one bucket, for many threads; raise UsageError if boto3 does not accept the settings."""
    keys = settings.keys
    secrets = (
        {
            "aws_access_key_id": keys.access_key,
            "aws_secret_access_key": keys.secret_key,
            "aws_session_token": keys.session_token,
        }
        if keys
        else {}
    )
    verify = None if settings.checks_certificate else False  # None: as AWS_CA_BUNDLE and the profile say
    if verify is False:
        warnings.filterwarnings("ignore", message="Unverified HTTPS request")  # one for every request
    client = _client(_session(), endpoint_url=settings.endpoint, config=_config(settings), verify=verify, **secrets)
    log_as_told()
    log_client(client)
    return client


def credentials_source(settings: S3Settings) -> str:
    """Name where the credentials of a bucket come from, without showing them.

    boto3 may have to ask a machine's role, as it does before a request. Raise UsageError if its configuration cannot be
    used.
    """
    if settings.keys:
        return settings.keys.source
    session = _session()
    try:
        found = session.get_credentials()
    except BotoCoreError as error:
        raise UsageError(f"The AWS configuration cannot be used: {error}") from error
    if found is None:
        return "nowhere: none were found"
    named = _SOURCES.get(found.method, found.method)
    return f"{named}, profile {session.profile_name}" if found.method in _OF_PROFILES else str(named)


_SOURCES = {
    "env": "AWS_ACCESS_KEY_ID",
    "shared-credentials-file": "the shared credentials file",
    "config-file": "AWS's configuration file",
    "boto-config": "boto's configuration file",
    "assume-role": "a role that a profile assumes",
    "assume-role-with-web-identity": "a web identity",
    "custom-process": "a profile's credential_process",
    "sso": "a profile's single sign-on",
    "container-role": "the container's role",
    "iam-role": "the machine's role",
}
"""Words for what botocore calls the methods of its chain."""

_OF_PROFILES = ("shared-credentials-file", "config-file", "assume-role", "custom-process", "sso")


def _config(settings: S3Settings) -> Config:
    return Config(
        region_name=settings.region,
        user_agent_extra=f"reshard/{package_version()}",
        max_pool_connections=settings.connection_count,
        connect_timeout=settings.connect_timeout_s,
        read_timeout=settings.read_timeout_s,
        # One try here: retry.py repeats, with one policy for requests and bodies, and asks should_stop while it waits.
        # Standard mode still follows AWS's region redirects.
        retries={"mode": "standard", "total_max_attempts": 1},
        signature_version="s3v4",
        # OBS and most older stores refuse checksum trailers, the default since boto3 1.36.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # Hashing a part for the signature costs three times as much CPU as sending it.
        s3={"addressing_style": settings.provider.addressing, "payload_signing_enabled": False},
    )


def _session() -> boto3.session.Session:
    try:
        session = botocore.session.Session()
        session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
        return boto3.session.Session(botocore_session=session)
    except BotoCoreError as error:  # a profile that does not exist, a configuration file that cannot be read
        raise UsageError(f"The AWS configuration cannot be used: {error}") from error


def _timestamp(text: Any) -> datetime | None:
    """Read a date of an answer; one that cannot be read is no reason to refuse the rest."""
    # Botocore's own reader guesses at texts, and takes ten times as long, for every key that is listed.
    readers = (datetime.fromisoformat, parsedate_to_datetime) if isinstance(text, str) else (parse_timestamp,)
    for read in readers:
        with suppress(ValueError, TypeError, ArithmeticError, RuntimeError, LookupError):
            return read(text)
    return None


@functools.lru_cache
def _loader(data_path: str | None) -> botocore.loaders.Loader:
    """Keep boto3's descriptions of services: parsing them takes most of the time of making a client."""
    return botocore.loaders.create_loader(data_path)


def _client(session: boto3.session.Session, **arguments: Any) -> Any:
    try:
        return session.client("s3", **arguments)
    except BotoCoreError as error:
        raise UsageError(f"The AWS configuration cannot be used: {error}") from error
    except ValueError as error:
        raise UsageError(
            "The configured endpoint is not a URL.", hint="AWS_ENDPOINT_URL must begin with https:// or http://."
        ) from error


def package_version() -> str:
    """Return the version of reshard that is installed; 0 if none is."""
    try:
        return importlib.metadata.version("reshard")
    except importlib.metadata.PackageNotFoundError:
        return "0"
