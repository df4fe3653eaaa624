"""How fast the kernels are, in bytes of inputs and outputs a second, on one thread and on several.

Run ``python benchmarks/kernels.py [--mib 64] [--threads 2]``. Times are the best of three.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from reshard.engine.kernels.compute import Cast, DenseBox, Dequantise, Kernel, MergeLora, cast, scale_box
from reshard.models.lora import adapter_boxes
from reshard.tensor import Box, DType

COLUMNS = 4096
CASTS = [
    (DType.F32, DType.BF16),
    (DType.BF16, DType.F32),
    (DType.F32, DType.F16),
    (DType.F16, DType.F32),
    (DType.BF16, DType.F16),
    (DType.F64, DType.BF16),
    (DType.BF16, DType.F8_E4M3),
    (DType.F32, DType.F8_E4M3),
    (DType.F8_E4M3, DType.BF16),
]


def main() -> None:
    """Measure every kernel on a tensor of the size asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=64, help="size of the tensor that is read, in MiB")
    parser.add_argument("--threads", type=int, default=2, help="threads of the second column")
    options = parser.parse_args()
    print(f"{'kernel':<34}{'1 thread':>12}{f'{options.threads} threads':>12}")
    for name, kernel, inputs, out in cases(options.mib << 20):
        speeds = [best(kernel, inputs, out, count) for count in (1, options.threads)]
        print(f"{name:<34}" + "".join(f"{speed:>7.2f} GB/s" for speed in speeds), flush=True)


def cases(nbytes: int) -> Iterator[tuple[str, Kernel, Sequence[DenseBox], DenseBox]]:
    """Every kernel with its inputs: numbers as weights have them, 0.02 and less."""
    for source, target in CASTS:
        box = Box((0, 0), (nbytes // source.itemsize // COLUMNS, COLUMNS))
        yield f"cast {source} {target}", Cast(), [weights(box, source)], empty(box, target)
    box = Box((0, 0), (nbytes // COLUMNS, COLUMNS))
    for target in (DType.BF16, DType.F32):
        scales = weights(scale_box(box, (128, 128)), DType.F32)
        yield (
            f"dequantise 128x128 {target}",
            Dequantise((128, 128)),
            [weights(box, DType.F8_E4M3), scales],
            empty(box, target),
        )
    for dtype in (DType.BF16, DType.F32):
        box = Box((0, 0), (nbytes // dtype.itemsize // COLUMNS, COLUMNS))
        for rank in (8, 16, 64):
            a, b = (weights(part, DType.F32) for part in adapter_boxes(box, rank))
            yield f"merge {dtype} rank {rank}", MergeLora(2.0, rank), [weights(box, dtype), a, b], empty(box, dtype)


def weights(box: Box, dtype: DType) -> DenseBox:
    """Fill a box with numbers."""
    drawn = np.random.default_rng(0).standard_normal(box.element_count, np.float32) * np.float32(0.02)
    tile = empty(box, dtype)
    cast(memoryview(drawn.tobytes()), DType.F32, tile.data, dtype)
    return tile


def empty(box: Box, dtype: DType) -> DenseBox:
    """Make room for a box."""
    return DenseBox(box, dtype, memoryview(bytearray(dtype.nbytes(box.element_count))))


def best(kernel: Kernel, inputs: Sequence[DenseBox], out: DenseBox, threads: int) -> float:
    """Bytes a nanosecond when every thread does the whole work."""
    nbytes = threads * (sum(tile.data.nbytes for tile in inputs) + out.data.nbytes)
    outs = [out] + [empty(out.box, out.dtype) for _ in range(threads - 1)]
    times = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            start = time.perf_counter()
            list(pool.map(lambda one: kernel.run(inputs, one), outs))
            times.append(time.perf_counter() - start)
    return nbytes / min(times) / 1e9


if __name__ == "__main__":
    main()
