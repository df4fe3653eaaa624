"""Scales of quantised tensors: which tensor holds them, and the block of elements that shares one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..tensor import DType, Shape, TensorSpec
from .family import Quantised
from .settings import config_value

_SCALES = frozenset({DType.F64, DType.F32, DType.F16, DType.BF16, DType.F8_E8M0})
_QUANTISED = frozenset({DType.F8_E4M3, DType.F8_E5M2})
_PACKED = frozenset({DType.I8, DType.U8})


@dataclass(frozen=True, slots=True)
class Scale:
    """The source tensor with the scales of a quantised one, and the extent of a block on every axis.

    Element (r, c) is multiplied by scale (r // block[0], c // block[1]); the last block of an axis may be shorter.
    ``packed`` elements are in a byte.
    """

    tensor: str
    block: Shape
    packed: int = 1


def find_scales(
    quantised: Quantised | None, config: Mapping[str, object], specs: Mapping[str, TensorSpec]
) -> tuple[dict[str, Scale], list[str]]:
    """Pair every quantised tensor with its scales; also return the scales that do not fit, in words.

    Examples
    --------
    >>> specs = {"w": TensorSpec("w", DType.F8_E4M3, (300, 200)), "w_s": TensorSpec("w_s", DType.F32, (3, 2))}
    >>> find_scales(Quantised("_s", "quantization_config.weight_block_size", (128, 128)), {}, specs)
    ({'w': Scale(tensor='w_s', block=(128, 128), packed=1)}, [])
    """
    scales: dict[str, Scale] = {}
    problems: list[str] = []
    if quantised is None:
        return scales, problems
    stated = _block(quantised, config)
    for name, spec in unpack(quantised, specs).items():
        packed = 1 if spec is specs[name] else 2
        if (spec.dtype not in _QUANTISED and packed == 1) or quantised.scale_of(name) not in specs:
            continue
        scale = specs[quantised.scale_of(name)]
        block = quantised.packed if packed == 2 else stated
        scales[name] = Scale(scale.name, block or (), packed)
        if block is None or len(block) != len(spec.shape):
            key = f"{quantised.block} of {len(spec.shape)} axes"
            problems.append(f"{name}: shape {spec.shape}, but config.json has no {key}")
            continue
        expected = tuple(-(-extent // size) for extent, size in zip(spec.shape, block, strict=True))
        if scale.shape != expected or scale.dtype not in _SCALES:
            found = f"{scale.dtype} of shape {scale.shape}"
            problems.append(
                f"{scale.name}: {found}, expected floating numbers of shape {expected}: one for each block {block}"
            )
    return scales, problems


def unpack(quantised: Quantised | None, specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
    """Return specs in which weights of FP4 that lie two in a byte, and have scales, are what they stand for.

    Examples
    --------
    >>> specs = {"w": TensorSpec("w", DType.I8, (4, 16)), "w_s": TensorSpec("w_s", DType.F8_E8M0, (4, 1))}
    >>> unpack(Quantised("_s", "", (), packed=(1, 32)), specs)["w"]
    TensorSpec(name='w', dtype=<DType.F4: 'F4'>, shape=(4, 32))
    """
    if quantised is None or not quantised.packed:
        return specs
    packed = (spec for spec in specs.values() if spec.dtype in _PACKED and spec.shape)
    wide = {
        spec.name: TensorSpec(spec.name, DType.F4, (*spec.shape[:-1], 2 * spec.shape[-1]))
        for spec in packed
        if quantised.scale_of(spec.name) in specs and spec.name != quantised.scale_of(spec.name)
    }
    return {**specs, **wide} if wide else specs


def _block(quantised: Quantised, config: Mapping[str, object]) -> Shape | None:
    found = config_value(config, quantised.block)
    if found is None:
        return quantised.default
    sizes = found if isinstance(found, list) else []
    return tuple(sizes) if sizes and all(type(size) is int and size > 0 for size in sizes) else None
