"""What people type, for the end of a command's help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

EXAMPLES: Mapping[str, Sequence[str]] = {
    "reshard inspect": [
        "reshard inspect s3://models/llama",
        "reshard inspect hf://HuggingFaceTB/SmolLM2-135M --tensors 0",
    ],
    "reshard cat": ["reshard cat s3://models/llama 'model.embed_tokens.weight[0:4, :]'"],
    "reshard plan": ["reshard plan s3://models/llama s3://models/ranks --parallel dp=2,mp=4"],
    "reshard convert": [
        "reshard convert s3://models/llama s3://models/ranks --to ms --parallel dp=2,mp=4",
        "reshard convert s3://models/ranks s3://models/again --to hf",
        "reshard convert obs://run/checkpoint obs://run/for-8 --src-strategy obs://run/strategy --dst-layout tp8.yaml",
    ],
    "reshard verify": ["reshard verify s3://models/ranks", "reshard verify s3://models/ranks --subset 1/10"],
    "reshard doctor": ["reshard doctor s3://models/scratch"],
}
