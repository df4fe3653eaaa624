"""Keeps the settings of whoever runs the tests away from them."""

from __future__ import annotations

import os

import pytest

_SET_BY_USERS = ("AWS_", "OBS_", "S3_", "RESHARD_", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "MA_", "VC_")
_TOKENS = ("SECURITY_TOKEN", "SESSION_TOKEN")


def clear_settings(patch: pytest.MonkeyPatch) -> None:
    """Forget endpoints, keys and profiles, and look for none on this machine."""
    for name in list(os.environ):
        if name.startswith(_SET_BY_USERS) or name in _TOKENS:
            patch.delenv(name)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
