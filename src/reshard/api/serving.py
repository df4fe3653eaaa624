"""Requests for networks that serve a model: which they are, and what they cannot serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..errors import PlanError, UsageError, option
from ..models.detecting import detect
from ..models.family_file import OwnFamily
from ..models.lora import is_adapter_name
from ..models.serving_rules import MINDSPORE, VLLM, Serving, base_family
from ..planning.catalog import Catalog
from ..planning.change import Change, make_tensors
from ..planning.serving import model_of, with_fills
from ..tensor import Strategy, TensorSpec
from .contents import load_family_key
from .request import Request


def serving_of(
    request: Request, config: Mapping[str, object], specs: Mapping[str, TensorSpec]
) -> tuple[Serving, str | None]:
    """Find the networks that a request asks for, and the side whose names the source must get before, if any.

    Raises
    ------
    PlanError
        The family is not known, or the engine would take the tensors for quantised ones.
    UsageError
        Options contradict each other, or there are no rules for such networks.
    """
    assert request.serve is not None
    key = load_family_key(request.family)
    if isinstance(key, OwnFamily):
        raise UsageError(f"{option('serve')}: there are no rules for {request.family}, a family of your own")
    engine = VLLM if request.form == "vllm" else MINDSPORE
    called = str(config.get("model_type"))
    is_only_served = key is None and base_family(engine, called) != called  # and so has no names but Hugging Face's
    found = (
        None if is_only_served else detect(config, [name for name in specs if not is_adapter_name(name)], family=key)
    )
    sizes, family = request.serve, called if found is None else found.family.name
    serving = Serving(engine, family, sizes["tp"], sizes.get("ep", 1), request.vllm or "")
    if engine == VLLM and config.get("quantization_config"):
        raise PlanError(
            "config.json has a quantization_config: vLLM would look for quantised weights",
            hint=f"Convert to a Hugging Face checkpoint with {option('dtype', 'bf16')}, take that key out of its "
            "config.json, and serve it.",
        )
    if found is not None and found.direction == "to_hf":
        return serving, "hf"
    given = [option(name) for name in ("naming", "option") if getattr(request, name)]
    if given:
        raise UsageError(f"{' and '.join(given)}: about MindSpore's names, but the source has Hugging Face's")
    return serving, None


def with_serving(catalog: Catalog, renamed: Mapping[str, str], change: Change) -> tuple[Catalog, Strategy | None]:
    """Add to a catalog what the networks have besides, and make the strategy that cuts the target for them."""
    if change.serving is None:
        return catalog, None
    tensors = make_tensors(catalog, renamed, replace(change, serving=None)).tensors
    model = model_of(tensors, change.serving, change.config)
    return with_fills(catalog, model.fills), model.strategy
