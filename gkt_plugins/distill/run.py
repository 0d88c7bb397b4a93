"""One distillation, from options to a draft that can be served."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainingArguments

from gkt_plugins.distill.acceptance import HeldOut, measure_acceptance, target_samples
from gkt_plugins.distill.checkpoints import Checkpoints, publish
from gkt_plugins.distill.imitated import Imitated
from gkt_plugins.distill.loss import DraftWithLoss
from gkt_plugins.distill.models import Halves, ModelPair, add_lora, load_draft, load_pair
from gkt_plugins.distill.options import DistillOptions
from gkt_plugins.distill.policies import DataPolicy, build_policy, load_scorer
from gkt_plugins.distill.provenance import NAME, provenance
from gkt_plugins.distill.report import DistillReport, Progress
from gkt_plugins.distill.samples import PromptItem, read_prompts
from gkt_plugins.distill.stream import SampleStream
from gkt_plugins.distill.target_states import TargetStates
from gkt_plugins.distill.trainer import DraftTrainer, load_weights, training_arguments
from gkt_plugins.distill.watching import Observer
from gkt_plugins.errors import ConfigError
from gkt_plugins.evaluation.statistics import Estimate

__all__ = ["DistillReport", "Progress", "distill", "traffic_prompts"]

_ROLLOUT_ROWS = 256
"""Answers that are written side by side, at most."""


def distill(
    options: DistillOptions,
    *,
    prompts: Sequence[PromptItem] | None = None,
    held_out: Sequence[PromptItem] | None = None,
    resume: bool = False,
    observe: Callable[[Progress], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    command: Sequence[str] = (),
) -> DistillReport:
    """Train the draft, and write it with its tokenizer and ``provenance.json``.

    Under ``accelerate launch`` every process calls it; each holds the whole draft.

    :param prompts: stand in for ``data.prompts``.
    :param held_out: stand in for ``data.held_out``.
    :param resume: continue from the last checkpoint in the output folder, if there is one.
    :param observe: told after every step, by the first process; must be quick.
    :param command: for the provenance.
    :raises GktError: one sentence: options, prompts or models that cannot be used; a launch with FSDP; a loss that is
        not finite; a disk that is full.
    """
    _refuse_sharding()
    arguments = training_arguments(options)
    checkpoints = Checkpoints(options.output_dir / "checkpoints")
    _prepare_output(options, checkpoints, resume, first=arguments.process_index == 0)
    pair = load_pair(options)
    training, measured = _prompts(options, pair, prompts, held_out)
    pair.draft.to(arguments.device)
    imitated = _behind_endpoint(options, pair, training, measured) if options.endpoint else _loaded(
        options, pair, measured, arguments)  # fmt: skip
    measure = imitated.measure
    trainer = _trainer(options, pair, imitated, training, arguments, checkpoints, observe, callbacks)
    latest = checkpoints.latest() if resume else None
    begun = time.perf_counter()
    if latest is None:
        trainer.evaluate()
        trainer.train()
    else:
        trainer.resume(latest)
    seconds = time.perf_counter() - begun
    draft, report = _best(options, pair, trainer, checkpoints, measure, imitated.efficiency, seconds)
    report = replace(report, notes=imitated.notes())
    if arguments.process_index == 0:
        record = provenance(
            options,
            command=command,
            target=imitated.source,
            draft=pair.draft_source,
            training=training,
            held_out=measured,
            report=report,
            processes=arguments.world_size,
        )

        def write(folder: Path) -> None:
            draft.save_pretrained(folder)
            pair.tokenizer.save_pretrained(folder)
            (folder / NAME).write_text(json.dumps(record, indent=2) + "\n")

        publish(options.output_dir, write, last=NAME)
    trainer.accelerator.wait_for_everyone()
    return report


def _refuse_sharding() -> None:
    """Answers are written, and acceptance is measured, outside of the forward call that would gather the weights."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":  # what `accelerate launch --use_fsdp` sets
        raise ConfigError(
            "a draft cannot be distilled with FSDP, because every process writes answers with the whole of it; "
            "launch with --multi_gpu instead of --use_fsdp, and use [train.lora] where memory is short"
        )


def _loaded(
    options: DistillOptions, pair: ModelPair, measured: Sequence[PromptItem], arguments: TrainingArguments
) -> Imitated:
    """A target that is loaded: whole distributions, and a decode loop to count in."""
    pair.target.to(arguments.device)
    samples = target_samples(
        pair.target,
        measured,
        temperature=options.evaluation.temperature,
        max_new_tokens=options.data.max_new_tokens,
        seed=options.train.seed,
        eos_ids=pair.eos_ids,
    )
    target = Halves(pair.target)

    def module(draft: Any) -> DraftWithLoss:
        reference = None
        if options.loss.reference is not None:
            model, _ = load_draft(options.located(options.loss.reference))
            reference = Halves(model.to(arguments.device).requires_grad_(False))
        return DraftWithLoss(draft, target, reference, options.loss)

    def efficiency(draft: Any) -> Estimate:
        return measure_acceptance(
            pair.target,
            draft,
            measured,
            temperature=options.evaluation.temperature,
            gammas=[options.evaluation.gamma],
            max_new_tokens=options.data.max_new_tokens,
            seed=options.train.seed,
            eos_ids=pair.eos_ids,
            samples=samples,
        ).block_efficiency(options.evaluation.gamma)

    return Imitated(
        source=pair.target_source,
        module=module,
        policy=lambda draft: _policy(options, pair, draft),
        states=TargetStates(pair.target, target, pair.pad_id).states,
        measure=HeldOut(pair.target, samples, temperature=options.evaluation.temperature).acceptance,
        efficiency=efficiency,
    )


def _behind_endpoint(
    options: DistillOptions, pair: ModelPair, training: Sequence[PromptItem], measured: Sequence[PromptItem]
) -> Imitated:
    from gkt_plugins.distill.endpoint_run import imitated_endpoint  # loads the configuration and its engines

    return imitated_endpoint(options, pair, training, measured)


def _trainer(
    options: DistillOptions,
    pair: ModelPair,
    imitated: Imitated,
    prompts: Sequence[PromptItem],
    arguments: TrainingArguments,
    checkpoints: Checkpoints,
    observe: Callable[[Progress], None] | None,
    callbacks: Sequence[TrainerCallback],
) -> DraftTrainer:
    draft = pair.draft if options.train.lora is None else add_lora(pair.draft, options.train.lora, options.train.seed)
    stream = SampleStream(
        prompts,
        imitated.policy(draft),
        batch_size=options.train.batch_size,
        steps_per_rollout=options.train.steps_per_rollout,
        seed=options.train.seed,
        process=arguments.process_index,
        processes=arguments.world_size,
    )

    trainer = DraftTrainer(
        imitated.module(draft),
        arguments,
        pair,
        options,
        stream,
        checkpoints,
        target_states=imitated.states,
        measure=imitated.measure,
        callbacks=callbacks,
    )
    if observe is not None and arguments.process_index == 0:
        trainer.add_callback(Observer(trainer, observe))
    return trainer


def _policy(options: DistillOptions, pair: ModelPair, draft: Any) -> DataPolicy:
    data, train = options.data, options.train
    return build_policy(
        data.policy,
        draft_model=draft,
        target_model=pair.target,
        tokenizer=pair.tokenizer,
        eos_ids=pair.eos_ids,
        max_new_tokens=data.max_new_tokens,
        max_batch=min(_ROLLOUT_ROWS, train.batch_size * train.steps_per_rollout),
        temperature=data.temperature,
        draft_share=data.draft_share,
        rest=data.rest,
        scorer=None if data.scorer is None else load_scorer(data.scorer),
        top_k=data.top_k,
        seed=train.seed,
    )


def _prompts(
    options: DistillOptions,
    pair: ModelPair,
    prompts: Sequence[PromptItem] | None,
    held_out: Sequence[PromptItem] | None,
) -> tuple[list[PromptItem], list[PromptItem]]:
    """Those to train on, and those to measure on."""
    data = options.data

    def read(path: str) -> list[PromptItem]:
        return read_prompts(options.base_dir / path, pair.tokenizer, max_prompt_tokens=data.max_prompt_tokens)

    if prompts is None:
        if data.prompts is None:
            raise ConfigError("data.prompts is missing; give a file of JSON lines with a prompt each")
        prompts = read(data.prompts)
    if held_out is None and isinstance(data.held_out, str):
        held_out = read(data.held_out)
    training = list(prompts)
    if held_out is None:
        assert isinstance(data.held_out, float)
        order = np.random.default_rng(options.train.seed).permutation(len(training))
        size = max(2, round(data.held_out * len(training)))
        held_out = [training[i] for i in order[:size]]
        training = [training[i] for i in sorted(order[size:])]
    measured = list(held_out)[: options.evaluation.prompts]
    if not training or len(measured) < 2:
        raise ConfigError(
            f"there are {len(training)} prompts to train on and {len(measured)} to measure on, and at least 1 "
            "and 2 are needed; give more prompts, or data.held_out"
        )
    return training, measured


def _prepare_output(options: DistillOptions, checkpoints: Checkpoints, resume: bool, *, first: bool) -> None:
    """Refuse a folder that another run has used, or the options of another run."""
    record = options.output_dir / "options.json"
    written = options.model_dump(mode="json", by_alias=True)
    if resume and record.exists():
        before = json.loads(record.read_text())
        for key in _differences(before, written):
            raise ConfigError(
                f"--resume needs the options of the run that it continues, and {key} is another than in {record}; "
                "set it back, or choose another output"
            )
    elif not resume and (checkpoints.steps() or (options.output_dir / NAME).exists()):
        raise ConfigError(
            f"{options.output_dir} has a run already; continue it with --resume, or choose another output"
        )
    if first and not (resume and record.exists()):
        options.output_dir.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(written, indent=2) + "\n")


def _differences(before: Any, now: Any, key: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        names = [*before, *(name for name in now if name not in before)]
        return [d for n in names for d in _differences(before.get(n), now.get(n), f"{key}.{n}" if key else n)]
    return [] if before == now else [key]


def _best(
    options: DistillOptions,
    pair: ModelPair,
    trainer: DraftTrainer,
    checkpoints: Checkpoints,
    measure: Callable[[Any], Estimate],
    efficiency: Callable[[Any], Estimate],
    seconds: float,
) -> tuple[Any, DistillReport]:
    """The draft with the weights of the best step, as it will be written, and what came of it."""
    before = trainer.acceptance[0][1]
    best_step, best = max(trainer.acceptance, key=lambda found: found[1].value)
    if best.value <= before.value:
        best_step = 0
    draft, _ = load_draft(pair.draft_source, trust_remote_code=options.models.trust_remote_code)
    draft.to(pair.draft_dtype).to(trainer.args.device)
    efficiency_before = efficiency(draft)
    if best_step:
        draft.float()
        if options.train.lora is not None:
            draft = add_lora(draft, options.train.lora, options.train.seed)
        load_weights(draft, checkpoints.path(best_step))
        if options.train.lora is not None:
            draft = draft.merge_and_unload()
        draft.to(pair.draft_dtype)
    report = DistillReport(
        output=options.output_dir,
        steps=trainer.state.global_step,
        best_step=best_step,
        before=before,
        after=measure(draft),
        gamma=options.evaluation.gamma,
        efficiency_before=efficiency_before,
        efficiency_after=efficiency(draft) if best_step else efficiency_before,
        losses=tuple((int(entry["step"]), entry["loss"]) for entry in trainer.state.log_history if "loss" in entry),
        acceptance=tuple(trainer.acceptance),
        tokens=trainer.tokens,
        seconds=seconds,
        skipped=trainer.skipped,
    )
    return draft, report


def traffic_prompts(path: Path) -> list[PromptItem]:
    """Prompts and answers that were recorded while serving.

    :raises ConfigError: the file cannot be read, or has nothing to train on.
    """
    from gkt_plugins.distill.traffic import read_traffic

    return [PromptItem(sample.prompt, "", sample.answer) for sample in read_traffic(path)]
