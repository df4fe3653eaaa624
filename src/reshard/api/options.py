"""What a conversion can be told, by name; the library's statements and the command line share it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from ..errors import UsageError

Size = int | str


class Options(TypedDict, total=False):
    """How to convert; everything may be left out.

    Parameters
    ----------
    src_strategy, dst_strategy
        URLs of MindSpore strategy files, or of a prefix that holds those of all stages.
    src_layout, dst_layout
        URLs of layout files, instead.
    file_suffix
        Where ranks of the source have several objects: the end of the names to take, without the
        format, like ``1_10``. By default the last of each rank, if they belong together.
    check_crc
        Whether ``.ckpt`` objects of the source that end in a checksum are read whole first and
        compared with it.
    keep, drop
        Patterns of names to take and to leave out: a glob, ``prefix:TEXT`` or ``regex:EXPR``.
    rename
        Rules ``OLD=NEW``, ``prefix:OLD=NEW`` or ``regex:EXPR=NEW``; the first that matches decides.
    name_map
        New names by old, or the URL of a JSON file that holds them; goes before the rules.
    keep_rank
        Whose copy to take of tensors outside the source's strategy that differ between ranks.
    to
        ``ms`` to bring Hugging Face's names and layouts to MindSpore Transformers', ``hf`` for the other way.
    family, naming, option
        Whose rules, which of its namings, and its options as ``NAME=VALUE``; by default what
        ``config.json`` and the names tell, and the family's defaults.
    config
        URL of the model's ``config.json``, or what it says; by default the one beside the source.
    dtype
        ``fp32``, ``fp16`` or ``bf16`` for floating-point tensors; FP8 is multiplied by its scales.
    keep_dtype
        Patterns of the target's names that keep their dtype.
    merge_lora, lora
        Whether to merge adapters that the source holds; or the URL of adapters that are stored apart.
    lora_scaling
        What their product is multiplied by; by default what ``adapter_config.json`` says.
    parallel
        Numbers to cut the target by, like ``dp=2,mp=4,pp=2``, or the URL of a training job's YAML.
    form
        For a full checkpoint ``hf`` (``model-0000i-of-0000n.safetensors`` with an index, the default),
        ``mindspore`` (``part<i>.safetensors`` with ``param_name_map.json`` and
        ``hyper_param.safetensors``) or ``zarr`` (one array a tensor; the default where ``dst`` ends in
        ``.zarr``); for rank shards ``iteration``, the newer layout of MindSpore Transformers.
    format
        ``safetensors``, the default, or ``ckpt``.
    iteration
        Number of the folder that ``form="iteration"`` writes; by default the source's ``global_step``.
    prefix
        Start of rank shards' names, before the rank's number; ``checkpoint_`` by default. May
        contain ``{rank}`` elsewhere, or be the whole name if it ends in the format's suffix.
    ranks
        Ranks to write, like ``0-7,16``; all by default.
    remove_redundancy
        Whether what several ranks own is written by one of them only, as MindSpore does.
    part_size
        Largest object of a full checkpoint, in bytes or like ``4GB``; in zarr about the size of a chunk.
    memory
        Limit for all buffers, in bytes or like ``256MiB``.
    concurrency
        Requests in flight at once.
    copy
        ``auto``, the default, to leave to the store what it can copy by itself; ``never`` to move every byte
        through the client, which then knows the checksum of each object.
    staging
        ``auto``, the default, to write tensors to a zarr store first where reading them twice costs less than
        streaming them in one pass; ``never``; or ``always``, for all that are cut across their rows.
    staging_url
        Where that store goes; by default beside the target.
    """

    src_strategy: str | None
    src_layout: str | None
    dst_strategy: str | None
    dst_layout: str | None
    file_suffix: str | None
    check_crc: bool
    keep: Iterable[str] | None
    drop: Iterable[str] | None
    rename: Iterable[str] | None
    name_map: Mapping[str, str] | str | None
    keep_rank: int | None
    to: str | None
    family: str | None
    naming: str | None
    option: Iterable[str] | None
    config: Mapping[str, object] | str | None
    dtype: str | None
    keep_dtype: Iterable[str] | None
    merge_lora: bool
    lora: str | None
    lora_scaling: float | None
    parallel: str | None
    form: str | None
    format: str | None
    iteration: int | None
    prefix: str | None
    ranks: str | Iterable[int] | None
    remove_redundancy: bool
    part_size: Size | None
    memory: Size | None
    concurrency: int | None
    copy: str | None
    staging: str | None
    staging_url: str | None


def listed(texts: Iterable[str] | str | None) -> tuple[str, ...]:
    """Several texts; a single one stands for itself.

    Examples
    --------
    >>> listed("a.*"), listed(None), listed(["a", "b"])
    (('a.*',), (), ('a', 'b'))
    """
    return (texts,) if isinstance(texts, str) else tuple(texts or ())


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that do not exist, or that one cannot have together.

    Raises
    ------
    TypeError
        An unknown option.
    UsageError
        Options that contradict each other.
    """
    unknown = sorted(options.keys() - Options.__annotations__.keys())
    if unknown:
        raise TypeError(f"unknown options: {', '.join(unknown)}")
    is_cut = bool(options.get("dst_strategy") or options.get("dst_layout") or options.get("parallel"))
    if options.get("parallel") and (options.get("dst_strategy") or options.get("dst_layout")):
        raise UsageError("--parallel and a target strategy or layout are both given", hint="Give one of them.")
    if options.get("to") not in (None, "ms", "hf"):
        raise UsageError(f"--to {options['to']}: expected ms or hf")
    if options.get("lora_scaling") is not None and not (options.get("lora") or options.get("merge_lora")):
        raise UsageError("--lora-scaling needs --lora or --merge-lora")
    if options.get("option") and not options.get("to"):
        raise UsageError("--option is of a family's rules: it needs --to")
    form, of_ranks = options.get("form"), (None, "iteration")
    if form not in (None, "hf", "mindspore", "zarr", "iteration"):
        raise UsageError(f"--form {form}: expected hf, mindspore, zarr or iteration")
    if options.get("format") not in (None, "safetensors", "ckpt"):
        raise UsageError(f"--format {options['format']}: expected safetensors or ckpt")
    if is_cut and form not in of_ranks:
        raise UsageError(f"--form {form} is of a full checkpoint, but a target strategy asks for rank shards")
    if not is_cut:
        for name, needs in (("ranks", None), ("remove_redundancy", False)):
            if options.get(name) not in (None, needs):
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} needs a target strategy or layout", hint="A full checkpoint has no ranks.")
        if form == "iteration":
            raise UsageError("--form iteration needs a target strategy or layout", hint="It is one object a rank.")
    if options.get("copy") not in (None, "auto", "never"):
        raise UsageError(f"--copy {options['copy']}: expected auto or never")
    if options.get("staging") not in (None, "auto", "never", "always"):
        raise UsageError(f"--staging {options['staging']}: expected auto, never or always")
    _check_objects(options, form, is_cut=is_cut)


def _check_objects(options: Mapping[str, Any], form: str | None, *, is_cut: bool) -> None:
    """Refuse what contradicts itself about the objects that are written."""
    if options.get("iteration") is not None and form != "iteration":
        raise UsageError("--iteration needs --form iteration")
    if form == "iteration" and options.get("ranks") is not None:
        raise UsageError("--ranks with --form iteration would leave out what its metadata.json promises")
    if form is not None and options.get("prefix") is not None and form != "iteration":
        raise UsageError(f"--prefix names rank shards, but --form {form} has names of its own")
    if options.get("part_size") is not None and (is_cut or options.get("format") == "ckpt" or options.get("prefix")):
        raise UsageError("--part-size is for full checkpoints of several objects")
    if form == "zarr" and options.get("format"):
        raise UsageError(f"--form zarr is made of plain chunks, but --format says {options['format']}")
    if form is not None and options.get("format") == "ckpt":
        raise UsageError(f"--form {form} is made of safetensors, but --format says ckpt")
