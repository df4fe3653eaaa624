"""The environment variables that stores are reached by, for processes on other machines."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

_CREDENTIALS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"),
    *("OBS_ACCESS_KEY_ID", "OBS_SECRET_ACCESS_KEY", "OBS_SECURITY_TOKEN"),
    *("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SECURITY_TOKEN", "SESSION_TOKEN"),
)
_SETTINGS = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_CA_BUNDLE"),
    *("OBS_ENDPOINT", "OBS_REGION", "S3_ENDPOINT", "S3_USE_HTTPS", "S3_VERIFY_SSL"),
    *("RESHARD_S3_ADDRESSING", "RESHARD_S3_TRANSFERS"),
)


def carried_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that say how stores are reached, secrets too.

    Examples
    --------
    >>> carried_variables({"OBS_REGION": "cn-east-3", "HOME": "/root"})
    {'OBS_REGION': 'cn-east-3'}
    """
    return {name: environ[name] for name in (*_CREDENTIALS, *_SETTINGS) if environ.get(name)}


def take_variables(environ: MutableMapping[str, str], carried: Mapping[str, str]) -> None:
    """Set variables as another machine has them. Credentials are taken all together, or those that are there stay.

    Examples
    --------
    >>> environ = {"AWS_ACCESS_KEY_ID": "A", "AWS_SESSION_TOKEN": "T", "AWS_REGION": "eu-west-1"}
    >>> take_variables(environ, {"AWS_ENDPOINT_URL": "http://store.example"})
    >>> sorted(environ)
    ['AWS_ACCESS_KEY_ID', 'AWS_ENDPOINT_URL', 'AWS_REGION', 'AWS_SESSION_TOKEN']
    >>> take_variables(environ, {"OBS_ACCESS_KEY_ID": "B", "OBS_SECRET_ACCESS_KEY": "S"})
    >>> sorted(environ)
    ['AWS_ENDPOINT_URL', 'AWS_REGION', 'OBS_ACCESS_KEY_ID', 'OBS_SECRET_ACCESS_KEY']
    """
    if any(name in carried for name in _CREDENTIALS):
        for name in _CREDENTIALS:
            environ.pop(name, None)
    environ.update(carried)
