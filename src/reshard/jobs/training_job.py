"""What a MindSpore Transformers job needs before it can load its weights, and how that is made.

A decision is made of the configuration and of what lies in the store; it follows the pages of MindSpore Transformers,
and where they are silent its code. ``docs/howto/training-yaml.md`` has it in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..api.request import RUN_OPTIONS, Request
from ..api.resolve import Resolved, resolve
from ..engine.events import Listener, ignore
from ..engine.sources.saved_point import resumable_name
from ..errors import UsageError, counted, option, raise_all
from ..planning.targets.iteration_target import IterationTarget
from ..planning.targets.rank_target import RankTarget
from ..storage import shared_connections
from ..tensor import Strategy
from .places import is_within
from .training_checks import contradictions_with, contradictions_within, refusals
from .training_config import TrainingConfig
from .training_layouts import find_mismatch
from .training_options import changes_format, conversion_options, full_options, sharded_options, strategy_place
from .training_source import SourceKind, TrainingSource, family_of, find_source

# Options that say what a configuration says, and the key that does; without a key nothing there does.
_DECIDED = {
    "src": "load_checkpoint",
    "src_strategy": "src_strategy_path_or_dir",
    "src_layout": "src_strategy_path_or_dir",
    "src_parallel": "src_strategy_path_or_dir",
    "dst": "output_dir",
    "dst_strategy": "parallel_config",
    "dst_layout": "parallel_config",
    "parallel": "parallel_config",
    "form": "checkpoint",
    "to": "use_legacy",
}
_OF_RUNS = (*RUN_OPTIONS, "memory", "concurrency", "processes", "copy", "staging", "staging_url")
"""Options that say how to convert, not into what."""
_DECIDED_OF_CONVERSIONS = {"src": "input_path", "dst": "output_path"}

# Where a target would go that is compared with its source, or described, and never written.
_NOWHERE = "memory://nowhere/ranks"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """A decision: what to make for a job, and why.

    Parameters
    ----------
    verdict
        The decision in one sentence.
    contradictions
        What the configuration says against itself or its source, each with what was done about it.
    options
        Options of the conversion; None if there is nothing to convert.
    strategy_url
        Prefix that the job's strategy files are written to; None if none are.
    strategy_options
        Options of the request whose target the strategy files describe.
    notes
        Remarks for people.
    """

    config: TrainingConfig
    verdict: str
    contradictions: tuple[str, ...] = ()
    options: Mapping[str, Any] | None = None
    strategy_url: str | None = None
    strategy_options: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    resolved: Resolved | None = field(default=None, repr=False, compare=False)

    @property
    def request(self) -> Request | None:
        """The request of the conversion; None if there is nothing to convert."""
        return None if self.options is None else Request.of(None, **self.options)


@shared_connections()
def decide(config: TrainingConfig, /, *, on_event: Listener = ignore, **given: Any) -> TrainingJob:
    """Decide what a job needs, from its configuration and the headers of its source; nothing is written.

    Parameters
    ----------
    given
        More options of the conversion, such as ``memory``; they take precedence. Those that the configuration decides
        are refused.

    Raises
    ------
    UsageError
        The configuration contradicts itself, or the source does not fit the job and ``auto_trans_ckpt`` is not set;
        all contradictions are listed.
    ReshardError
        The source cannot be read, as the tree in :mod:`reshard.errors` says.
    """
    _refuse_decided(config, given)
    if config.conversions:
        return _conversion(config, given)
    raise_all(UsageError, f"{config.where}: the configuration contradicts itself", list(refusals(config)))
    return _Decision(config, given, on_event).make()


def target_strategy(resolved: Resolved) -> Strategy:
    """Return the strategy that cuts the target of a resolved request."""
    target = resolved.conversion.target
    assert isinstance(target, RankTarget | IterationTarget)
    return target.strategy


def _refuse_decided(config: TrainingConfig, given: Mapping[str, Any]) -> None:
    """Refuse options that the configuration decides: the decision would be about something else than the conversion."""
    keys = _DECIDED_OF_CONVERSIONS if config.conversions else _DECIDED
    found = [f"{option(name, given[name])}: set {key}" for name, key in keys.items() if given.get(name)]
    hint = "Or leave the training configuration and its keys out: then options alone describe the conversion."
    message = f"{config.where}: the training configuration decides what these options say"
    raise_all(UsageError, message, found, hint)


def _conversion(config: TrainingConfig, given: Mapping[str, Any]) -> TrainingJob:
    """Decide on a file that holds arguments of conversions."""
    filled = {
        model: arguments
        for model, arguments in config.conversions.items()
        if arguments.get("input_path") and arguments.get("output_path")
    }
    if not filled:
        verdict = "Nothing to convert: the file holds arguments of conversions, and no input_path with an output_path."
        return TrainingJob(config=config, verdict=verdict)
    if len(filled) > 1:
        hint = "Leave one of them filled in; a job file runs several."
        raise UsageError(f"{config.where}: arguments of {len(filled)} conversions", problems=list(filled), hint=hint)
    (model, arguments), *_ = filled.items()
    notes: list[str] = []
    options = conversion_options(arguments, notes) | {**given}
    request = Request.of(None, **options)
    found, _ = family_of(config, TrainingSource(url=request.src, name=model, kind=SourceKind.FULL), notes)
    if found is None:
        raise UsageError(f"{config.where}: {request.src} holds tensors of no family that is known")
    to = found.direction.removeprefix("to_")
    options |= {"to": to}
    other = {"ms": "MindSpore Transformers'", "hf": "Hugging Face's"}[to]
    verdict = f"Convert {request.src} to {other} names ({found.family.name})."
    return TrainingJob(config=config, verdict=verdict, options=options, notes=(*found.reasons, *notes))


@dataclass
class _Decision:
    """A decision while it is made."""

    config: TrainingConfig
    given: Mapping[str, Any]
    on_event: Listener
    conflicts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def make(self) -> TrainingJob:
        config = self.config
        self.conflicts += contradictions_within(config)
        if config.use_parallel is None and config.rank_count > 1:
            reason = f"the sizes are those of {config.rank_count} ranks"
            self.notes.append(f"use_parallel is not given, and taken for True: {reason}")
        source = find_source(config)
        if source is None:
            return self._without_source()
        self.conflicts += contradictions_with(config, source)
        if config.load_checkpoint and config.pretrained_model_dir:
            self.notes.append("pretrained_model_dir gives config.json alone: load_checkpoint takes precedence")
        if config.only_save_strategy:
            return self._strategies_alone(source)
        if config.is_iteration:
            return self._for_iterations(source)
        if config.rank_count == 1:
            return self._for_one_card(source)
        if source.is_full:
            return self._of_full_weights(source)
        return self._of_shards(source)

    def _without_source(self) -> TrainingJob:
        if self.config.only_save_strategy:
            hint = "Set load_checkpoint or pretrained_model_dir: names and shapes are read there, and no weights."
            raise UsageError("only_save_strategy: no checkpoint tells which tensors the model has", hint=hint)
        return self._nothing("the job names no weights, so they are initialised at random")

    def _strategies_alone(self, source: TrainingSource) -> TrainingJob:
        self._need_strategy(source)
        options = sharded_options(self.config, source, self.notes) | {**self.given, "dst": _NOWHERE}
        resolved = resolve(Request.of(None, **options), self.on_event)
        count = target_strategy(resolved).rank_count
        url = strategy_place(self.config)
        _keep_strategy(source, url)
        verdict = f"Write the strategy files of {count} ranks, and nothing else: only_save_strategy is True."
        return self._job(verdict, strategy_url=url, strategy_options=options, resolved=resolved)

    def _for_iterations(self, source: TrainingSource) -> TrainingJob:
        if source.kind is SourceKind.ITERATION:
            return self._nothing("the job cuts iterations anew while it loads them")
        if source.is_full and self._is_hugging_face(source):
            return self._nothing("the job reads Hugging Face's files as they are")
        if not self.config.auto_trans_ckpt:
            self._refuse_mismatch(f"the job loads iterations (iteration_N/), and the source is {source.kind}")
        self._need_strategy(source)
        options = sharded_options(self.config, source, self.notes) | {**self.given}
        ranks = self.config.rank_count
        return self._job(f"Write the {source.kind} as an iteration of {ranks} ranks.", options=options)

    def _for_one_card(self, source: TrainingSource) -> TrainingJob:
        config = self.config
        if source.is_full:
            if changes_format(config, source):
                options = full_options(config, source) | {**self.given}
                return self._job("Write the full weights as safetensors; one card has nothing to cut.", options=options)
            return self._nothing("the source is full, and the job runs on one card: there is nothing to cut")
        if not config.auto_trans_ckpt:
            count = counted(source.rank_count, "rank") if source.kind is SourceKind.RANKS else "an iteration"
            self._refuse_mismatch(f"the source is {count}, and the job runs on one card")
        self._need_strategy(source)
        options = full_options(config, source) | {**self.given}
        what = counted(source.rank_count, "rank") if source.kind is SourceKind.RANKS else "the iteration"
        return self._job(f"Merge {what} into full weights for one card.", options=options)

    def _of_full_weights(self, source: TrainingSource) -> TrainingJob:
        config = self.config
        is_serving = config.run_mode == "predict" and config.use_legacy is False
        if (is_serving or config.resume_training) and self._is_hugging_face(source):
            if is_serving:
                return self._nothing("each rank of the serving network reads its part of Hugging Face's files")
            hint = "Set resume_training: False, or name a checkpoint of the run."
            raise UsageError("resume_training: Hugging Face's weights are no state to resume from", hint=hint)
        if not config.auto_trans_ckpt:
            self._refuse_mismatch(f"the source is full, and the job runs on {config.rank_count} ranks")
        return self._cut(source, f"Cut the full weights for {config.rank_count} ranks.")

    def _of_shards(self, source: TrainingSource) -> TrainingJob:
        config = self.config
        ranks = source.rank_count
        if not source.knows_strategy and not config.auto_trans_ckpt:
            if ranks != config.rank_count and not config.remove_redundancy:
                self._refuse_mismatch(
                    f"the source is {counted(ranks, 'rank')}, and the job runs on {config.rank_count}"
                )
            if changes_format(config, source):
                self._need_strategy(source)
            self.notes.append(f"the layouts were not compared: no strategy at {' or '.join(source.looked_at)}")
            return self._nothing(f"each of {ranks} ranks loads its own shard")
        self._need_strategy(source)
        what = "the iteration" if source.kind is SourceKind.ITERATION else counted(ranks, "rank")
        return self._cut(source, f"Cut {what} anew for {config.rank_count} ranks.")

    def _cut(self, source: TrainingSource, verdict: str) -> TrainingJob:
        """Cut a source for the job's ranks, unless it is cut so already."""
        config = self.config
        options = sharded_options(config, source, self.notes) | {**self.given}
        is_in_place = is_within(options["dst"], source.url) or is_within(source.url, options["dst"])
        compared = options | ({"dst": _NOWHERE} if is_in_place else {})
        resolved = resolve(Request.of(None, **compared), self.on_event)
        url: str | None = strategy_place(config)
        mismatch = "" if source.is_full else find_mismatch(resolved.conversion.catalog, target_strategy(resolved))
        if mismatch and not config.auto_trans_ckpt:
            self._refuse_mismatch(f"the source is cut another way than the job ({mismatch})")
        if mismatch:
            self.notes.append(f"why: {mismatch}")
        elif not source.is_full:
            if not changes_format(config, source):
                return self._nothing(f"the {config.rank_count} ranks are cut as the job needs them")
            verdict = f"Write the {config.rank_count} ranks as safetensors: they are cut as the job needs them."
            url = None  # the source's strategy is that of the target
        _keep_strategy(source, url)
        if is_in_place:
            hint = "Choose another output_dir."
            raise UsageError(f"{options['dst']}: the source lies where the ranks of the job go", hint=hint)
        name = resumable_name(resolved.conversion.catalog) if config.resume_training else None
        if name is not None and "prefix" not in self.given:  # training looks for epoch and step in names
            options["prefix"] = name
            resolved = resolve(Request.of(None, **options), self.on_event)
        strategies = {} if url is None else {"strategy_url": url, "strategy_options": options}
        return self._job(verdict, options=options, resolved=resolved, **strategies)

    def _is_hugging_face(self, source: TrainingSource) -> bool:
        found, _ = family_of(self.config, source, [])
        return found is not None and found.direction == "to_ms"

    def _refuse_mismatch(self, why: str) -> None:
        hint = "Set auto_trans_ckpt: True to have it converted, or load what fits the job."
        raise UsageError(
            f"{self.config.where}: {why}, but auto_trans_ckpt is not True", hint=hint, problems=self.conflicts
        )

    def _need_strategy(self, source: TrainingSource) -> None:
        if source.kind is SourceKind.RANKS and not source.knows_strategy:
            hint = "Set src_strategy_path_or_dir to the strategy files of the run that wrote the shards."
            places = list(source.looked_at)
            raise UsageError(f"{source.url}: no strategy says how these shards are cut", problems=places, hint=hint)

    def _nothing(self, why: str) -> TrainingJob:
        return self._job(f"Nothing to do: {why}.")

    def _job(self, verdict: str, **made: Any) -> TrainingJob:
        if made.get("options") is None and "strategy_options" not in made:
            lost = [option(name, value) for name, value in self.given.items() if value and name not in _OF_RUNS]
            self.conflicts += [f"{text} has no effect: nothing is converted" for text in lost]
        job = TrainingJob(config=self.config, verdict=verdict, contradictions=tuple(self.conflicts), **made)
        options = job.options
        if options is not None:
            if "://" in str(options["src"]) and "://" not in str(options["dst"]):
                self.notes.append(f"output_dir {self.config.output_dir} is a folder of this machine")
            form = f"load_checkpoint: {options['dst']}, auto_trans_ckpt: False"
            if "format" in options:
                form += f", load_ckpt_format: {options['format']}"
            self.notes.append(f"to train with it: {form}")
        return replace(job, notes=tuple(self.notes))


def _keep_strategy(source: TrainingSource, url: str | None) -> None:
    """Refuse to write strategy files where the source's lie; MindSpore Transformers removes those."""
    if url is not None and source.strategy_url is not None and is_within(source.strategy_url, url):
        hint = "Choose another output_dir, or move them and set src_strategy_path_or_dir."
        raise UsageError(f"{url}: the source's strategy files lie where those of the job go", hint=hint)
