"""Checking a family's file against a model: what authors of such files ask."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UsageError, option
from ..models import family_file
from ..models.detecting import detect
from ..models.family_coverage import FamilyCoverage, FamilyFile, cover
from ..models.family_file import OwnFamily, load_family
from .contents import inspect, load_config, load_family_key


def check_family(
    family: str,
    config: str | Mapping[str, object],
    url: str | None = None,
    *,
    naming: str | None = None,
    options: Mapping[str, object] | None = None,
) -> FamilyCoverage:
    """Say what a family's file covers of a model, reading headers only.

    Parameters
    ----------
    family
        The file, its URL or path ending in ``.yaml``, or the name of a family of the package.
    config
        The model's ``config.json``: its URL, its content, or keys and values as text.
    url
        A checkpoint of either side; without it, one is imagined that has every tensor of Hugging Face's that
        the rows expect.
    naming, options
        As in :func:`reshard.convert`; by default what names reveal, else the family's own.

    Raises
    ------
    FormatError
        The file breaks the format or contradicts itself.
    UsageError
        The naming or an option is unknown, or config.json lacks a size that rows need.
    SourceError
        No checkpoint is at the URL.
    """
    key = load_family_key(family)
    if key is None:
        raise UsageError("no family is given")
    rules, content = load_family(key), load_config(config, "")
    known = [each.name for each in rules.namings]
    if naming is not None and naming not in known:
        raise UsageError(f"{option('naming', naming)}: {rules.name} has {', '.join(known)}")
    text = key.text if isinstance(key, OwnFamily) else family_file.read_text(key)
    file = FamilyFile(key, rules, text)
    if url is None:
        return cover(file, "to_ms", naming or known[0], options or {}, content)
    specs = {entry.spec.name: entry.spec for entry in inspect(url).entries}
    found = detect(content, list(specs), family=key, naming=naming)
    return cover(file, found.direction, found.naming, {**dict(found.options), **(options or {})}, content, specs)
