"""The conversions that MindSpore Transformers made, read as data, and our rules applied by numpy."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import deserialize
from support.patches import lay

from reshard.models.compiling import CompiledRules, CompiledTarget
from reshard.tensor import DType, TensorSpec

FOLDER = Path(__file__).parents[1] / "conformance" / "mindformers"

NUMPY = {
    DType.F32: np.float32, DType.F16: np.float16, DType.BF16: ml_dtypes.bfloat16,
    DType.F8_E4M3: ml_dtypes.float8_e4m3fn,
    DType.F8_E5M2: ml_dtypes.float8_e5m2, DType.F64: np.float64, DType.I64: np.int64, DType.I32: np.int32,
    DType.F8_E8M0: ml_dtypes.float8_e8m0fnu, DType.I8: np.int8,
}  # fmt: skip
_CKPT_DTYPES = {"Float32": "F32", "Float16": "F16", "BFloat16": "BF16"}


@cache
def _places() -> dict[str, str]:
    return json.loads((FOLDER / "conversion_copies.json").read_text())


def read_tensors(case: str) -> dict[str, np.ndarray]:
    """Every tensor on the Hugging Face side of a case."""
    own = {path.relative_to(FOLDER).as_posix() for path in (FOLDER / case / "hf").glob("*")}
    paths = {path for path in (*_places(), *own) if path.startswith(f"{case}/hf/")}
    found = [_read(FOLDER / _places().get(path, path)) for path in sorted(paths)]
    return {name: array for tensors in found for name, array in tensors.items()}


def _read(path: Path) -> dict[str, np.ndarray]:
    found = deserialize(path.read_bytes())
    return {name: np.frombuffer(t["data"], NUMPY[DType(t["dtype"])]).reshape(t["shape"]) for name, t in found}


@cache
def _files(case: str) -> dict:
    return json.loads((FOLDER / case / "case.json").read_text())["files"]


def case_names() -> set[str]:
    """Every conversion there is data for."""
    kinds = ("llama_", "qwen", "mixtral_", "deepseek", "glm4_", "online", "fp8_")
    return {folder.name for folder in FOLDER.iterdir() if folder.name.startswith(kinds)}


def read_rank(case: str, rank: str) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """Dtype, shape and hash of every tensor that the real loader gave one rank."""
    told = json.loads((FOLDER / case / "ranks.json").read_text())[rank]
    return {name: (dtype, tuple(shape), sha) for name, (dtype, shape, sha) in told.items()}


def read_answer(case: str, side: str, only: str = "") -> dict[str, tuple[str, tuple[int, ...], str]]:
    """Dtype, shape and hash of every tensor that the real code wrote."""
    files = {name: file for name, file in _files(case)[side].items() if only in ("", name)}
    tensors = {k: v for file in files.values() for k, v in file.get("tensors", {}).items()}
    return {name: (_dtype(one["dtype"]), tuple(one["shape"]), one["sha256"]) for name, one in tensors.items()}


def _dtype(name: str) -> str:
    known = {"torch.bfloat16": "BF16", "torch.float32": "F32", "torch.float16": "F16", **_CKPT_DTYPES}
    return known.get(name, name)


def read_config(case: str, side: str = "hf") -> dict:
    """The config.json of a case."""
    return _files(case)[side]["config.json"]["json"]


def specs_of(tensors: dict[str, np.ndarray]) -> dict[str, TensorSpec]:
    """The tensors without their bytes."""
    dtypes = {np.dtype(kind): dtype for dtype, kind in NUMPY.items()}
    return {name: TensorSpec(name, dtypes[array.dtype], array.shape) for name, array in tensors.items()}


def apply(compiled: CompiledRules, sources: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Make every target tensor."""
    return {target.spec.name: _made(target, sources) for target in compiled.targets}


def _made(target: CompiledTarget, sources: dict[str, np.ndarray]) -> np.ndarray:
    made = np.zeros(target.spec.shape, NUMPY[target.spec.dtype])
    filled = np.zeros(target.spec.shape, np.uint8)
    for part in target.parts:
        source = sources[part.source]
        if part.scale:
            codes = unpacked(source) if part.scale.packed == 2 else source
            source = dequantise(codes, sources[part.scale.tensor], part.scale.block)
        lay(made, part.patch, source if source.dtype == made.dtype else cast(source, made.dtype))
        once = np.zeros_like(filled)
        lay(once, part.patch, np.ones(source.shape, np.uint8))
        filled += once
    assert (filled == 1).all(), f"{target.spec.name}: elements not filled exactly once"
    return made


def cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round to the nearest even, once; whole numbers are exact."""
    if values.dtype.kind == "i":
        return values.astype(dtype)
    return values.astype(np.float32).astype(dtype) if dtype != np.float64 else values.astype(dtype)


def unpacked(codes: np.ndarray) -> np.ndarray:
    """FP4 of two elements a byte, the lower half first."""
    pairs = np.stack([codes.view(np.uint8) % 16, codes.view(np.uint8) // 16], -1)
    return pairs.reshape(*codes.shape[:-1], -1).view(ml_dtypes.float4_e2m1fn)


def dequantise(values: np.ndarray, scales: np.ndarray, block: tuple[int, ...]) -> np.ndarray:
    """Multiply every block by its scale, in float32."""
    spread = scales.astype(np.float32)
    for axis, size in enumerate(block):
        spread = spread.repeat(size, axis)
    return values.astype(np.float32) * spread[tuple(slice(extent) for extent in values.shape)]


def summary_of(tensors: dict[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """The same as ``read_answer``, of tensors that we made."""
    return {
        name: (specs_of({name: array})[name].dtype.value, array.shape, _hash(array)) for name, array in tensors.items()
    }


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
