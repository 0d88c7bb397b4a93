"""One of TRL's trainers for a number of seconds. Run by the interpreter of ``.venv-trl``: nothing of ours is imported.

It gets its best settings: no gradient checkpointing (it would turn the key-value cache of its rollouts off), no
logging, no saving while it trains, and no evaluation. Generated tokens are counted where it makes them: the answer
tokens that its own mask keeps, end-of-sequence included.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer


class Clock(TrainerCallback):
    """Stops the training when its time is over, and holds the count of sampled tokens."""

    def __init__(self, seconds: float) -> None:
        self.limit = seconds
        self.begun = 0.0
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.begun
        if self.seconds >= self.limit:
            control.should_training_stop = True


class CountingGKDTrainer(GKDTrainer):  # type: ignore[misc]
    """GKDTrainer, unchanged but for a count of the tokens that its draft samples."""

    sampled_tokens = 0

    @staticmethod
    def generate_on_policy_outputs(model: Any, inputs: Any, generation_config: Any) -> Any:
        ids, attention, labels = GKDTrainer.generate_on_policy_outputs(model, inputs, generation_config)
        CountingGKDTrainer.sampled_tokens += int((labels != -100).sum())
        return ids, attention, labels


class CountingDistillationTrainer(DistillationTrainer):  # type: ignore[misc]
    """DistillationTrainer, likewise."""

    sampled_tokens = 0

    def _generate(self, prompts: list[Any]) -> Any:
        generated = super()._generate(prompts)
        CountingDistillationTrainer.sampled_tokens += sum(len(ids) for ids in generated[1])
        return generated


def main() -> None:
    """One JSON object of settings on standard input; one of figures, the last line of standard output."""
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["draft"])
    conversations = [json.loads(line) for line in Path(job["prompts"]).read_text().splitlines()]
    clock = Clock(job["seconds"])
    common = {
        "output_dir": job["output"],
        "beta": job["beta"],
        "temperature": 1.0,
        "per_device_train_batch_size": job["batch"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "max_grad_norm": 1.0,
        "max_steps": 1_000_000,
        "seed": job["seed"],
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if job["trainer"] == "gkd":
        kind: Any = CountingGKDTrainer
        args = GKDConfig(lmbda=1.0, max_new_tokens=job["max_new_tokens"], max_length=job["max_length"], **common)
        rows = [{"messages": conversation} for conversation in conversations]
    else:
        kind = CountingDistillationTrainer
        args = DistillationConfig(max_completion_length=job["max_new_tokens"], **common)
        rows = [{"prompt": conversation[:-1]} for conversation in conversations]
    trainer = kind(
        model=AutoModelForCausalLM.from_pretrained(job["draft"], dtype=torch.float32),
        teacher_model=AutoModelForCausalLM.from_pretrained(job["target"], dtype=torch.float32),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    trainer.save_model(job["output"])
    print(json.dumps({"seconds": clock.seconds, "steps": trainer.state.global_step, "tokens": kind.sampled_tokens}))


if __name__ == "__main__":
    main()
