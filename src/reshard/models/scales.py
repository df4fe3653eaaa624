"""Finding the tensors of scales that block-quantised weights are multiplied by."""

from __future__ import annotations

from collections.abc import Mapping

from ..tensor import DType, Shape, TensorSpec
from .compiled import Scale
from .family import Quantised
from .settings import config_value

_QUANTISED = frozenset({DType.F8_E4M3, DType.F8_E5M2})
_SCALES = frozenset({DType.F32, DType.BF16, DType.F16, DType.F64})


def find_scales(
    quantised: Quantised | None, config: Mapping[str, object], specs: Mapping[str, TensorSpec]
) -> tuple[dict[str, Scale], list[str]]:
    """Pair every quantised tensor with its scales.

    Returns
    -------
    scales, problems
        The scale of each quantised tensor; scales that do not fit their tensor, in words.

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
    for spec in specs.values():
        if spec.dtype in _QUANTISED and spec.name + quantised.suffix in specs:
            scale, block = specs[spec.name + quantised.suffix], _block(quantised, config)
            scales[spec.name] = Scale(scale.name, block or ())
            problems += _misfits(spec, scale, block, quantised.block)
    return scales, problems


def _misfits(spec: TensorSpec, scale: TensorSpec, block: Shape | None, key: str) -> list[str]:
    if block is None or len(block) != len(spec.shape):
        return [f"{spec.name}: shape {spec.shape}, but {key} of config.json is no block of {len(spec.shape)} axes"]
    wanted = tuple(-(-extent // size) for extent, size in zip(spec.shape, block, strict=True))
    if scale.shape == wanted and scale.dtype in _SCALES:
        return []
    found = f"{scale.dtype} of shape {scale.shape}"
    return [f"{scale.name}: {found}, expected F32 of shape {wanted}: one for each block {block}"]


def _block(quantised: Quantised, config: Mapping[str, object]) -> Shape | None:
    found = config_value(config, quantised.block)
    if found is None:
        return quantised.otherwise
    sizes = found if isinstance(found, list) else []
    return tuple(sizes) if sizes and all(type(size) is int and size > 0 for size in sizes) else None
