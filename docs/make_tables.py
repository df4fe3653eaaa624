"""Writes the tables in these pages, and in the README, that repeat what the code or a benchmark's results say.

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``, whatever was there before.

Run it after a change of providers, dtypes, errors, limits, prices, keys of training or results::

    python docs/make_tables.py
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from unittest.mock import patch

import reshard
from reshard import errors
from reshard.formats.safetensors import plan_header
from reshard.jobs.training_keys import known_keys
from reshard.planning.cost.prices import built_in_prices
from reshard.planning.limits import Limits
from reshard.planning.steps.buffers import share_memory
from reshard.storage.providers import PROVIDERS
from reshard.tensor import DType, TensorSpec

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "benchmarks"))
import tables  # noqa: E402
from tables import table as _table  # noqa: E402

_REGION = re.compile(r"(?<=<!-- table )(?P<name>\w+)(?P<open> -->\n).*?(?=<!-- end -->)", re.DOTALL)
_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def rendered(page: str) -> str:
    """Return a page with its tables as they must be."""
    return _REGION.sub(lambda match: f"{match['name']}{match['open']}{_TABLES[match['name']]()}\n", page)


def pages() -> Iterator[Path]:
    """Yield every page that has such a table."""
    for path in (DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))):
        if _REGION.search(path.read_text()):
            yield path


def _providers() -> str:
    titles = (
        "service",
        "host of the endpoint",
        "bucket goes into",
        "region for the signature",
        "listed by",
        "largest object",
        "parts",
        "checks of what it receives",
    )
    rows = [
        (
            row.name,
            f"`{row.hosts}`".replace("|", r"\|"),
            {"virtual": "the host name", "path": "the path", "auto": "where boto3 puts it"}[row.addressing],
            "from the host" if "(?P<region>" in row.hosts else f"`{row.region}`" if row.region else "as configured",
            {1: "ListObjects", 2: "ListObjectsV2"}[row.list_version],
            _size(row.limits.max_object_bytes),
            "any lengths" if row.unequal_parts else "all equal: reading only",
            {"crc32c": "CRC-32C", "md5": "Content-MD5", "asked": "asked by a first upload"}[row.upload_check],
        )
        for row in PROVIDERS
    ]
    return _table(titles, rows)


def _dtypes() -> str:
    rows = [
        (f"`{d.value}`", d.bits, "whole only" if d.is_sub_byte else "yes")
        for d in sorted(DType, key=lambda d: -d.order)
    ]
    return _table(("dtype", "bits", "can be cut"), rows)


def _errors() -> str:
    rows = [
        (f"{'&nbsp;&nbsp;' * depth}`{error.__name__}`", error.exit_code, (error.__doc__ or "").splitlines()[0])
        for depth, error in _tree(errors.ReshardError, 0)
    ]
    return _table(("class", "exit code", "says"), rows)


def _tree(error: type[errors.ReshardError], depth: int) -> Iterator[tuple[int, type[errors.ReshardError]]]:
    yield depth, error
    for below in error.__subclasses__():
        if below.__module__ == errors.__name__:  # others stay inside their rooms
            yield from _tree(below, depth + 1)


def _limits() -> str:
    defaults, meanings = Limits(), _meanings(Limits.__doc__ or "")
    rows = []
    for item in fields(Limits):
        value = getattr(defaults, item.name)
        rows.append((f"`{item.name}`", _size(value) if item.name.endswith("_bytes") else value, meanings[item.name]))
    return _table(("limit", "default", "meaning"), rows)


def _buffers() -> str:
    rows = []
    for concurrency in (4, 8, 32):
        for size in (64, 256, 512, 2048):
            shared = share_memory(Limits(memory_bytes=size << 20, concurrency=concurrency))
            figures = (shared.limits.read_bytes, shared.fixed_bytes, max(0, shared.parts_bytes))
            rows.append((concurrency, _size(size << 20), *map(_size, figures)))
    return _table(("`--concurrency`", "`--memory`", "one read", "reads and clients", "left for parts"), rows)


_STORE = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip
_MATRICES = {"self_attn.q_proj": (4096, 4096), "mlp.up_proj": (11008, 4096), "mlp.down_proj": (4096, 11008)}
_LAYOUT = "axes: {mp: 8}\nrules:\n  - {match: '*down_proj*', split: [null, mp]}\n  - {match: '*', split: [mp]}\n"


def _least() -> str:
    """What plans ask for at least, of sources without bytes and a store that is not there."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, _STORE):
        base = Path(folder)
        (base / "mp8.yaml").write_text(_LAYOUT)
        _write_sources(base)
        conversions: list[tuple[str, str, dict[str, str]]] = [
            ("to Hugging Face's form, or to zarr", "plain", {"rename": "layers=blocks"}),
            ("to 8 ranks", "plain", {"dst_layout": str(base / "mp8.yaml")}),
            ("BF16 to FP32", "plain", {"dtype": "fp32"}),
            ("FP8 to BF16", "quantised", {"dtype": "bf16"}),
            ("adapters of rank 16 merged", "plain", {"lora": str(base / "adapters")}),
        ]
        for title, src, options in conversions:
            counts = (_least_bytes(str(base / src), concurrency, options) for concurrency in (4, 8, 32))
            rows.append((title, *(f"{-(-nbytes >> 20)} MiB" for nbytes in counts)))
    return _table(("conversion", *(f"`--concurrency {n}`" for n in (4, 8, 32))), rows)


def _least_bytes(src: str, concurrency: int, options: dict[str, str]) -> int:
    try:
        reshard.plan(src, "s3://none/target", memory=1, concurrency=concurrency, **options)  # type: ignore[arg-type]
    except errors.OverBudget as refusal:
        return refusal.needed_bytes
    raise AssertionError("a plan that needs no memory")


def _write_sources(base: Path) -> None:
    plain, quantised, adapters = [], [], []
    for name, (rows, columns) in _MATRICES.items():
        full = f"layers.0.{name}"
        plain.append(TensorSpec(f"{full}.weight", DType.BF16, (rows, columns)))
        quantised.append(TensorSpec(f"{full}.weight", DType.F8_E4M3, (rows, columns)))
        quantised.append(TensorSpec(f"{full}.weight_scale_inv", DType.F32, (rows // 128, columns // 128)))
        adapters.append(TensorSpec(f"base_model.model.{full}.lora_A.weight", DType.F32, (16, columns)))
        adapters.append(TensorSpec(f"base_model.model.{full}.lora_B.weight", DType.F32, (rows, 16)))
    for name, specs in (("plain", plain), ("quantised", quantised), ("adapters", adapters)):
        (base / name).mkdir()
        header = plan_header(specs, {"format": "pt"})
        with (base / name / "model.safetensors").open("wb") as file:
            file.write(header.data)
            file.truncate(header.nbytes)
    told = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": ["q_proj"]}
    (base / "adapters" / "adapter_config.json").write_text(json.dumps(told))


def _prices() -> str:
    titles = ("table", "for", "1000 GETs", "1000 PUTs, parts, copies, listings", "GiB to the internet", "of")
    rows = []
    for name, table in built_in_prices().items():
        currency = "" if table.is_free else f"{table.currency} "
        assert table.put.price == table.copy.price == table.list.price
        amounts = (f"{currency}{each.price:g}" for each in (table.get, table.put, table.internet))
        rows.append((f"`{name}`", ", ".join(table.providers), *amounts, table.as_of))
    return _table(titles, rows)


def _meanings(docstring: str) -> dict[str, str]:
    """What a numpydoc section says of each parameter."""
    section = inspect.cleandoc(docstring).partition("----------\n")[2].partition("\nExamples")[0]
    entries = re.findall(r"^(\w[\w, ]*)\n((?:^    .*\n?)+)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def _size(nbytes: int) -> str:
    """An exact number of bytes, in the largest unit that it is a whole number of."""
    exact = (f"{nbytes // unit:,} {name}" for unit, name in _UNITS if nbytes and nbytes % unit == 0)
    return next(exact, f"{nbytes:,} bytes")


def _training_keys(section: str) -> str:
    """List the keys of a section; those with the same meaning are one row."""
    meanings: dict[str, list[str]] = {}
    for known in known_keys():
        if known.section == section:
            names = " or ".join(f"`{name}`" for name in known.config_names)
            meanings.setdefault(f"{names} of `config.json`" if names else known.note, []).append(f"`{known.pattern}`")
    return _table(("key", "meaning"), [(", ".join(keys), meaning) for meaning, keys in meanings.items()])


_TABLES: dict[str, Callable[[], str]] = {
    "providers": _providers,
    "dtypes": _dtypes,
    "errors": _errors,
    "limits": _limits,
    "prices": _prices,
    "buffers": _buffers,
    "least": _least,
    **{
        f"training_{name}": partial(_training_keys, section)
        for name, section in {
            "used": "used",
            "sizes": "sizes",
            "config": "config",
            "alone": "training",
            "no_effect": "no_effect",
            "conversions": "conversions",
            "conversions_no_effect": "conversions_no_effect",
        }.items()
    },
    **tables.TABLES,
}


if __name__ == "__main__":
    for page in pages():
        page.write_text(rendered(page.read_text()))
