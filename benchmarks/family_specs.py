"""The tensors of a family's checkpoint as published: names and shapes from its rows, dtypes by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from reshard.models.detecting import detect
from reshard.models.expansion import expand
from reshard.models.settings import resolve_settings
from reshard.tensor import DType, Shape, TensorSpec

Specs = Iterator[TensorSpec]
FP8_BLOCK, FP4_BLOCK = 128, 32


def deepseek_v4(config: Mapping[str, int]) -> Specs:
    """DeepSeek-V4's: experts in FP4, two elements a byte, other matrices of its layers in FP8, with their scales."""
    for name, shape in _shapes(config):
        if ".experts." in name:
            rows, columns = shape
            yield TensorSpec(name, DType.I8, (rows, columns // 2))
            yield _scales(name, (rows, columns // FP4_BLOCK))
        elif len(shape) == 2 and (".w" in name or "_proj" in name) and "compressor" not in name:
            yield TensorSpec(name, DType.F8_E4M3, shape)
            yield _scales(name, (-(-shape[0] // FP8_BLOCK), -(-shape[1] // FP8_BLOCK)))
        else:
            is_wide = any(part in name for part in ("hc_", "attn_sink", ".ape", "gate.bias"))
            dtype = DType.I64 if name.endswith("tid2eid") else DType.F32 if is_wide else DType.BF16
            yield TensorSpec(name, dtype, shape)


def glm4_moe(config: Mapping[str, int]) -> Specs:
    """GLM-4.5's, in bfloat16."""
    for name, shape in _shapes(config, mtp_layers="carry"):
        yield TensorSpec(name, DType.F32 if name.endswith("correction_bias") else DType.BF16, shape)


def _scales(name: str, shape: Shape) -> TensorSpec:
    return TensorSpec(name.removesuffix(".weight") + ".scale", DType.F8_E8M0, shape)


def _shapes(config: Mapping[str, object], **options: str) -> Iterator[tuple[str, Shape]]:
    family = detect(config, ["embed.weight", "model.norm.weight"]).family
    chosen = resolve_settings(family, config, options)
    for row in family.namings[0].rows:
        expansion = expand(row, "to_ms", chosen)
        seen: set[str] = set()
        for target in expansion.targets() if expansion else ():
            for part, _ in target.parts:
                if part.name not in seen and part.shape is not None:
                    seen.add(part.name)
                    yield part.name, part.shape
