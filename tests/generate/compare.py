"""Does a model that went to MindSpore Transformers' ranks and back still say the same?

``make test-generate`` runs it: SmolLM2-135M (see ``demo/smollm2.py``) becomes rank shards and Hugging Face's form
again, and ``transformers``, in an environment of its own, generates from the original and from what came back.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "demo"))

from smollm2 import upload_checkpoint  # noqa: E402

from reshard import api, convert  # noqa: E402

PROMPT = [1, 504, 3575, 282, 4649, 314]
GENERATE = """
import json, sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
with torch.no_grad():
    made = model.generate(torch.tensor([json.loads(sys.argv[2])]), max_new_tokens=32, do_sample=False, pad_token_id=0)
print(json.dumps(made[0].tolist()))
"""


def main(python: str) -> None:
    """Convert there and back, generate from both, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        upload_checkpoint(SimpleNamespace(put_object=lambda **call: _put(place, **call)), "", "hf", 3)
        hf, ranks, back, strategy = (str(place / name) for name in ("hf", "ranks", "back", "strategy.ckpt"))
        numbers, options = "mp=3,pp=2", {"qkv_concat": "true"}
        convert(hf, ranks, to="ms", parallel=numbers, option=["qkv_concat=true"])
        api.make_strategy(strategy, checkpoint=hf, to="ms", parallel=numbers, option=options)
        convert(ranks, back, src_strategy=strategy, to="hf", config=f"{hf}/config.json")
        before, after = (_generated(python, path) for path in (hf, back))
    if before != after or before[: len(PROMPT)] != PROMPT:
        raise SystemExit(f"other text: {before} before, {after} after")
    print(f"the same {len(before) - len(PROMPT)} tokens from both: {before[len(PROMPT) :]}")


def _put(place: Path, Key: str, Body: bytes, **_: object) -> None:  # noqa: N803 - boto3's names
    path = place / Key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(Body)


def _generated(python: str, path: str) -> list[int]:
    command = [python, "-c", GENERATE, path, json.dumps(PROMPT)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=600, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main(sys.argv[1])
