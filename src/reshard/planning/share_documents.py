"""Keys of the documents that runs leave beside their outputs, and which ranks of a target they are about.

Several runs can write one target, each some of its ranks: its *share*. A share has a manifest and a run record of its
own; once all shares are there, the manifest of the whole takes the place of theirs for readers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import PlanError
from ..tensor.numbered_names import spans_of
from .conversion import MANIFEST_KEY
from .targets import Target
from .targets.rank_target import RankTarget

_MAX_SPANS = 32
_SHARE = re.compile(
    r"reshard-(?:manifest|run)-ranks_([0-9]{1,7}(?:-[0-9]{1,7})?(?:_[0-9]{1,7}(?:-[0-9]{1,7})?)*)\.json"
)


def manifest_key_of(target: Target) -> str:
    """Return the key of the manifest of a target of several objects, relative to the target's URL.

    Raise PlanError for a share of more spans of ranks than a key can name.
    """
    if not isinstance(target, RankTarget) or target.whole is target:
        return MANIFEST_KEY
    spans = spans_of(sorted(target.ranks))
    if len(spans) > _MAX_SPANS:
        raise PlanError(
            f"{len(spans)} separate spans of ranks: at most {_MAX_SPANS} are supported",
            hint="Write the ranks in several runs: their results are joined.",
        )
    return f"reshard-manifest-ranks_{'_'.join(spans)}.json"


def record_key_of(manifest_key: str) -> str:
    """Return the key of the record that a run keeps while it writes.

    Examples
    --------
    >>> record_key_of("reshard-manifest-ranks_0-7.json"), record_key_of("a.safetensors.manifest.json")
    ('reshard-run-ranks_0-7.json', 'a.safetensors.run.json')
    """
    return "run".join(manifest_key.rsplit("manifest", 1))


def is_record_key(key: str) -> bool:
    """Whether this is the key of the record of a run, of a share or of the whole.

    Examples
    --------
    >>> is_record_key("reshard-run-ranks_0-7.json"), is_record_key("reshard-manifest.json")
    (True, False)
    """
    return key.startswith("reshard-run")


def shared_ranks(key: str) -> tuple[range, ...]:
    """Return the ranks that a share's manifest or record is about; none for any other key.

    Examples
    --------
    >>> shared_ranks("reshard-manifest-ranks_0-7_16.json"), shared_ranks("reshard-manifest.json")
    ((range(0, 8), range(16, 17)), ())
    """
    found = _SHARE.fullmatch(key)
    spans = [span.partition("-") for span in found[1].split("_")] if found else []
    return tuple(range(int(first), int(last or first) + 1) for first, _, last in spans)


def written_ranks(ranks: Iterable[int]) -> str:
    """Write ranks for people, in spans.

    Examples
    --------
    >>> written_ranks([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    return ", ".join(spans_of(sorted(ranks)))
