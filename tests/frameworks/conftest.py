"""Tests beside torch and MindSpore: only a run that asks for one of these tiers sees them."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave each file to ``-m torch`` or ``-m mindspore``."""
    tier = config.option.markexpr
    return None if collection_path.is_dir() or collection_path.stem == f"test_{tier}" else True
