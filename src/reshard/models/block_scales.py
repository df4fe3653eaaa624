"""Scales of quantised tensors: which tensor holds them, and the block of elements that shares one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..tensor import DType, Shape, TensorSpec
from .family import Quantised
from .settings import config_value

_FLOATS = frozenset({DType.F64, DType.F32, DType.F16, DType.BF16})
_QUANTISED = frozenset({DType.F8_E4M3, DType.F8_E5M2})


@dataclass(frozen=True, slots=True)
class Scale:
    """The source tensor with the scales of a quantised one, and the extent of a block on every axis.

    Element (r, c) is multiplied by scale (r // block[0], c // block[1]); the last block of an axis may be shorter.
    """

    tensor: str
    block: Shape


def find_scales(
    quantised: Quantised | None, config: Mapping[str, object], specs: Mapping[str, TensorSpec]
) -> tuple[dict[str, Scale], list[str]]:
    """Pair every quantised tensor with its scales; also return the scales that do not fit, in words.

    Examples
    --------
    >>> specs = {"w": TensorSpec("w", DType.F8_E4M3, (300, 200)), "w_s": TensorSpec("w_s", DType.F32, (3, 2))}
    >>> find_scales(Quantised("_s", "quantization_config.weight_block_size", (128, 128)), {}, specs)
    ({'w': Scale(tensor='w_s', block=(128, 128))}, [])
    """
    scales: dict[str, Scale] = {}
    problems: list[str] = []
    if quantised is None:
        return scales, problems
    block = _block(quantised, config)
    for spec in specs.values():
        if spec.dtype not in _QUANTISED or spec.name + quantised.suffix not in specs:
            continue
        scale = specs[spec.name + quantised.suffix]
        scales[spec.name] = Scale(scale.name, block or ())
        if block is None or len(block) != len(spec.shape):
            key = f"{quantised.block} of {len(spec.shape)} axes"
            problems.append(f"{spec.name}: shape {spec.shape}, but config.json has no {key}")
            continue
        expected = tuple(-(-extent // size) for extent, size in zip(spec.shape, block, strict=True))
        if scale.shape != expected or scale.dtype not in _FLOATS:
            found = f"{scale.dtype} of shape {scale.shape}"
            problems.append(f"{scale.name}: {found}, expected F32 of shape {expected}: one for each block {block}")
    return scales, problems


def _block(quantised: Quantised, config: Mapping[str, object]) -> Shape | None:
    found = config_value(config, quantised.block)
    if found is None:
        return quantised.default
    sizes = found if isinstance(found, list) else []
    return tuple(sizes) if sizes and all(type(size) is int and size > 0 for size in sizes) else None
