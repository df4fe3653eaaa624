"""One object a rank of an engine that serves models: vLLM's ``sharded_state``, which SGLang reads too."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from .rank_target import RankTarget


@dataclass(frozen=True, slots=True)
class ServingTarget(RankTarget):
    """``model-rank-<rank>-part-0.safetensors``, flat, with the small objects of the model beside them.

    The engine finds parts by their names and reads no header metadata.
    """

    object_names: ClassVar[re.Pattern[str]] = re.compile(r"model-rank-\d+-part-\d+\.safetensors")
    format: ClassVar[str] = ""

    @property
    def has_companions(self) -> bool:
        """The engine reads ``config.json`` and the tokenizer from there."""
        return True
