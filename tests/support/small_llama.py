"""A llama with random weights, small enough to convert in a moment."""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]


def small_llama(
    *, heads: int = 4, groups: int = 2, hidden: int = 32, inner: int = 48, words: int = 64, family: str = "llama"
) -> tuple[Arrays, dict[str, object]]:
    """Weights with the names of Hugging Face, and their config.json; qwen3 has norms of heads as well."""
    numbers = np.random.default_rng(heads * hidden)
    size = hidden // heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (words, hidden)}
    for layer in range(2):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{name}_proj.weight": (groups * size, hidden) for name in "kv"}
        shapes |= {f"{at}self_attn.{name}_proj.weight": (hidden, hidden) for name in "qo"}
        shapes |= {f"{at}mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (hidden, inner)}
        shapes |= {f"{at}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        if family == "qwen3":
            shapes |= {f"{at}self_attn.{name}_norm.weight": (size,) for name in "qk"}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (words, hidden)}
    config: dict[str, object] = {
        "model_type": family, "num_hidden_layers": 2, "hidden_size": hidden, "num_attention_heads": heads,
        "num_key_value_heads": groups, "intermediate_size": inner, "vocab_size": words, "tie_word_embeddings": False,
        "head_dim": size,
    }  # fmt: skip
    return {name: numbers.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}, config


def layout_of(axes: str, *more: str) -> bytes:
    """A layout file that cuts such a model over mp; ``more`` are rules that come first."""
    rules = [
        *more,
        "{match: ['*o_proj.weight', '*down_proj.weight'], split: [null, mp]}",
        "{match: ['*_proj.weight', '*embed_tokens.weight', 'lm_head.weight'], split: [mp]}",
        "{match: '*', split: []}",
    ]
    return "\n- ".join([f"axes: {{{axes}}}\nrules:", *rules]).encode()
