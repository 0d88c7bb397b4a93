"""The training loop: transformers' ``Trainer``, whose batches come from a stream of rollouts and whose loss is a
divergence at the positions that predict an answer."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from gkt_plugins.distill.checkpoints import WRITE_ERRORS, Checkpoints
from gkt_plugins.distill.endpoint_loss import DraftWithScores
from gkt_plugins.distill.loss import DraftWithLoss
from gkt_plugins.distill.models import ModelPair
from gkt_plugins.distill.options import DistillOptions
from gkt_plugins.distill.stream import Part, SampleStream, parts_of
from gkt_plugins.errors import BackendError, GktError
from gkt_plugins.evaluation.statistics import Estimate

__all__ = ["DraftTrainer", "learning_rate_factor", "load_weights", "training_arguments"]

_log = logging.getLogger(__name__)

_EMPTY_STEPS = 20
"""So many steps in a row with nothing to train on are no accident."""
_CURVE_POINTS = 2000
"""Losses that are kept of a run, about."""


class DraftTrainer(Trainer):
    """Trains the draft of a pair. What a step does is a function of the seed and of the steps before it."""

    def __init__(self, module: DraftWithLoss | DraftWithScores, arguments: TrainingArguments, pair: ModelPair,
                 options: DistillOptions, stream: SampleStream, checkpoints: Checkpoints, *,
                 target_states: Callable[[Part], Any], measure: Callable[[Any], Estimate],
                 callbacks: Sequence[TrainerCallback] = ()) -> None:  # fmt: skip
        """
        :param arguments: from :func:`training_arguments`.
        :param target_states: what ``module`` takes of the target at a part's picked positions.
        :param measure: acceptance of a draft.
        """
        self._pair = pair
        self._stream = stream
        self._checkpoints = checkpoints
        self._target_states = target_states
        self._measure = measure
        self._options = options
        self.tokens = 0
        """Answer tokens trained on so far, by all processes."""
        self.skipped = 0
        """Batches in which there was nothing to train on."""
        self.acceptance: list[tuple[int, Estimate]] = []
        """Step and measurement."""
        super().__init__(module, arguments, train_dataset=[], eval_dataset=[])
        self.remove_callback(PrinterCallback)
        self.add_callback(_LogBeforeLeaving())
        for callback in callbacks:
            self.add_callback(callback)

    # ------------------------------------------------------------------------------------------------------ batches

    def get_train_dataloader(self) -> Any:
        """Nothing: :meth:`get_batch_samples` asks the stream."""
        return _Endless()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The parts of the next step, and in how many tokens they are to be averaged, over all processes."""
        for _ in range(_EMPTY_STEPS):
            samples = self._stream.step()
            total = self._over_processes(sum(len(sample.answer) for sample in samples))
            if total:
                self.tokens += total
                bounds = [len(samples) * i // num_batches for i in range(num_batches + 1)]
                pieces = [samples[a:b] for a, b in pairwise(bounds)]
                return [parts_of(piece, self._pair.pad_id, device) for piece in pieces], total
            self.skipped += 1
            _log.warning("step %d: no answer has a token to train on; other prompts are taken", self.state.global_step)
        raise BackendError(
            f"{_EMPTY_STEPS} batches in a row had no token to train on; look at the prompts and at data.policy"
        )

    def _over_processes(self, number: int) -> int:
        if self.args.world_size == 1:
            return number
        return int(self.accelerator.reduce(torch.tensor(number, device=self.args.device), "sum").item())

    # --------------------------------------------------------------------------------------------------------- steps

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """One forward and backward pass. The gradient is that of the mean over all tokens of the step."""
        model.eval()  # dropout off, whatever an architecture calls it
        states = [self._target_states(part) for part in inputs]
        assert num_items_in_batch
        scale = self.args.world_size / num_items_in_batch  # DDP averages gradients over processes
        loss: Tensor = model(inputs, states) * scale if inputs else self._nothing(model)
        self._refuse_infinite(loss, "loss")
        self.accelerator.backward(loss)
        return loss.detach()

    def _nothing(self, model: nn.Module) -> Tensor:
        """A pass that adds nothing: this process has no samples, and the others wait for its gradients."""
        ids = torch.zeros((1, 8), dtype=torch.int64, device=self.args.device)
        empty = Part((), ids, torch.zeros(1, dtype=torch.int64, device=self.args.device))
        loss: Tensor = model([empty], [self._target_states(empty)]) * 0.0
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        self._refuse_infinite(norm, "gradient")
        return norm

    def _refuse_infinite(self, value: Tensor, what: str) -> None:
        if not math.isfinite(value.detach().item()):
            last = self._checkpoints.latest()
            raise BackendError(
                f"the {what} of step {self.state.global_step + 1} is not a number or infinite, so training stopped; "
                + (f"the last good checkpoint is {last}, " if last else "there is no checkpoint yet, ")
                + "try a smaller learning rate or float32"
            )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Warm-up, constant, and down to a tenth."""
        if self.lr_scheduler is None:
            train = self._options.train
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer,  # type: ignore[arg-type]  # made before this is called
                lambda step: learning_rate_factor(step, train.steps, train.warmup_steps, train.constant_until),
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0

    # -------------------------------------------------------------------------------------------------- measurements

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Acceptance on the held-out samples, measured by the first process for all."""
        found: list[Any] = [None]
        if self.args.process_index == 0:
            found = [self._measure(self._module.draft)]
        if self.args.world_size > 1:
            broadcast_object_list(found)
        estimate: Estimate = found[0]
        self.acceptance.append((self.state.global_step, estimate))
        metrics = {
            f"{metric_key_prefix}_acceptance": estimate.value,
            f"{metric_key_prefix}_acceptance_low": estimate.low,
            f"{metric_key_prefix}_acceptance_high": estimate.high,
        }
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        better = bool(super()._determine_best_metric(metrics, trial))
        if better:
            self.control.should_save = True
        return better

    # --------------------------------------------------------------------------------------------------- checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        folder = self._checkpoints.folder / f".unfinished-{step}"
        self._together(lambda: self._checkpoints.begin(step), first_only=True)
        self._together(lambda: self._write_checkpoint(folder))
        keep = [self.state.best_global_step] if self.state.best_global_step else []
        self._together(lambda: self._checkpoints.complete(step, keep=keep), first_only=True)

    def _write_checkpoint(self, folder: Path) -> None:
        self.save_model(str(folder), _internal_call=True)
        self._save_optimizer_and_scheduler(str(folder))
        if self.args.should_save:
            self.state.save_to_json(str(folder / "trainer_state.json"))
        state = {
            "stream": self._stream.state(),
            "tokens": self.tokens,
            "skipped": self.skipped,
            "acceptance": [[step, [it.value, it.low, it.high, it.n]] for step, it in self.acceptance],
        }
        (folder / _state_name(self.args.process_index)).write_text(json.dumps(state))

    def _together(self, write: Callable[[], object], *, first_only: bool = False) -> None:
        """Let every process write, or the first; where one of them cannot, all end with the same sentence."""
        failure = ""
        try:
            if self.args.should_save or not first_only:
                write()
        except WRITE_ERRORS as exc:
            failure = str(exc) or type(exc).__name__
        failures = gather_object([failure]) if self.args.world_size > 1 else [failure]
        failure = next(filter(None, failures), "")
        if failure:
            raise self._checkpoints.writing_failed(self.state.global_step, failure)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The draft as ``from_pretrained`` takes it (with LoRA: the additions alone)."""
        if self.args.should_save:
            self._module.draft.save_pretrained(output_dir, max_shard_size="1000GB")
            self._pair.tokenizer.save_pretrained(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self._module.draft, Path(resume_from_checkpoint))

    def resume(self, checkpoint: Path) -> None:
        """Go on from ``checkpoint``, up to the last step."""
        path = checkpoint / _state_name(self.args.process_index)
        try:
            state = json.loads(path.read_text())
        except OSError as exc:
            raise GktError(
                f"{checkpoint} was written by fewer processes than now run ({path.name} is missing); run as many again"
            ) from exc
        self._stream.restore(state["stream"])
        self.tokens, self.skipped = state["tokens"], state["skipped"]
        self.acceptance = [(step, Estimate(*figures)) for step, figures in state["acceptance"]]
        reached = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if reached.global_step < self.args.max_steps:
            self.train(resume_from_checkpoint=str(checkpoint))
        else:  # only the result was left to write
            self.state = reached

    @property
    def _module(self) -> DraftWithLoss | DraftWithScores:
        module: DraftWithLoss | DraftWithScores = self.accelerator.unwrap_model(self.model)
        return module

    def _load_callback_state(self) -> None:
        """Callbacks here have no state; a controller's flags are those of the step at which it was saved."""


def load_weights(draft: Any, folder: Path) -> None:
    """Put the weights that :class:`DraftTrainer` saved in ``folder`` into ``draft``."""
    from safetensors.torch import load_file

    if hasattr(draft, "peft_config"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(draft, load_file(folder / "adapter_model.safetensors"))
    else:
        draft.load_state_dict(load_file(folder / "model.safetensors"), strict=False)  # tied weights are saved once


def learning_rate_factor(step: int, steps: int, warmup_steps: int | None, constant_until: float) -> float:
    """Of the learning rate, at ``step`` from 0: linear warm-up, constant, then a cosine down to 0.1.

    Source: Zhou et al. 2024 (DistillSpec), arXiv:2310.08461.
    """
    warmup = steps / 60 if warmup_steps is None else warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    begin = constant_until * steps
    if step <= begin:
        return 1.0
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, (step - begin) / (steps - begin))))


class _Endless:
    """A data loader that gives nothing, for ever."""

    def __iter__(self) -> Iterator[None]:
        return iter(())


class _LogBeforeLeaving(TrainerCallback):
    """Measures after the last step; logs the loss wherever a run may be continued, so that it then logs the same."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
        if control.should_save or control.should_evaluate:
            control.should_log = True


def _state_name(process: int) -> str:
    return f"distill-{process}.json"


def training_arguments(options: DistillOptions) -> TrainingArguments:
    """What transformers is told. Making it joins the other processes, where there are some."""
    train = options.train
    arguments = TrainingArguments(
        output_dir=str(options.output_dir / "checkpoints"),
        max_steps=train.steps,
        per_device_train_batch_size=train.batch_size // train.accumulation,
        gradient_accumulation_steps=train.accumulation,
        learning_rate=train.learning_rate,
        optim="adafactor" if train.optimizer == "adafactor" else "adamw_torch",
        max_grad_norm=train.max_grad_norm,
        bf16=train.precision == "bfloat16",
        seed=train.seed,
        use_cpu=options.models.device == "cpu",
        logging_steps=max(1, train.steps // _CURVE_POINTS),
        logging_nan_inf_filter=False,  # training_step stops at such a loss instead
        save_strategy="steps",
        save_steps=train.save_steps,
        eval_strategy="steps",
        eval_steps=options.evaluation.every,
        metric_for_best_model="acceptance",
        greater_is_better=True,
        ignore_data_skip=True,  # the stream knows where it was
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        report_to="none",
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # more than one is for `accelerate launch`
    return arguments
