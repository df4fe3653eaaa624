"""FP4 of two elements a byte, dequantised, turned and stacked on the way to any layout, through the real engine."""

import ml_dtypes
import numpy as np
from engine.test_tiles import CASTS, FULL, Source, any_limits, check, few, outputs, strategies, tensor, verified
from hypothesis import given, settings
from hypothesis import strategies as st
from support.conversions import ranks_of
from support.model_cases import dequantise, unpacked

from reshard.planning.change import Change
from reshard.planning.plan_json import decode_plan, encode_plan
from reshard.tensor import DType

NUMPY_SCALE = np.dtype(ml_dtypes.float8_e8m0fnu)
FAMILY = """
family: packed
title: "Experts in FP4"
detect: {model_type: [packed], architectures: []}
parameters: {experts: {config: experts}, f: {config: f}, h: {config: h}}
indices: {e: {to: experts}}
options: {}
quantised: {suffix: .scale, of: .weight, block: block, default: [2, 5], packed: [1, 4]}
namings:
  n:
    description: "stacked"
    rows:
      - hf: {up: "{e}.up.weight [f h]", gate: "{e}.gate.weight [f h]"}
        ms: {both: "experts [e h (gate: f | up: f)]"}
      - {hf: "same.weight [f h]", ms: "same"}
      - {hf: "table [experts f]", ms: "table"}
    dtypes:
      - {ms: [table], dtype: I32, why: "a table"}
"""


@settings(few, max_examples=8)
@given(st.data(), st.sampled_from([(2, 4), (3, 6), (5, 10), (4, 18)]), st.sampled_from(CASTS))
def test_fp4_in_any_layout(data, shape, dtype):
    f, h = shape
    draw, model, wide = np.random.default_rng([f, h]), {}, {}
    for name in ("0.up", "1.up", "0.gate", "1.gate", "same"):
        codes = draw.integers(-128, 128, (f, h // 2), np.int8)
        scales = draw.integers(115, 141, (f, -(-h // 4)), np.uint8).view(NUMPY_SCALE)
        model[f"{name}.weight"], wide[name] = tensor(DType.I8, codes), dequantise(unpacked(codes), scales, (1, 4))
        model[f"{name}.scale"] = tensor(DType.F8_E8M0, scales)
    table = draw.integers(-99, 99, (2, f))
    model["table"] = tensor(DType.I64, table)
    gates, ups = (np.stack([wide[f"{e}.{part}"].T for e in range(2)]) for part in ("gate", "up"))
    stacked = np.concatenate([gates, ups], axis=2)
    expected = {"experts": tensor(dtype, stacked), "same": tensor(dtype, wide["same"])}
    expected["table"] = tensor(DType.I32, table.astype(np.int32))
    wanted = data.draw(st.none() | strategies(expected))
    config = {"experts": 2, "f": f, "h": h}
    change = Change("packed", "to_ms", "n", {}, config, dtype, family_file=FAMILY)
    source, wished = Source(model), FULL if wanted is None else ranks_of(wanted)
    made = [source.run(wished, data.draw(any_limits()), change) for _ in range(2)]
    check(made[0][2], expected, wanted)
    assert outputs(made[0][2]) == outputs(made[1][2])
    assert verified(source, *made[0]).is_ok
    assert decode_plan(encode_plan(made[0][0]), "plan") == made[0][0]
