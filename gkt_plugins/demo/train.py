"""Make the packaged demo models, or measure them: ``python -m gkt_plugins.demo.train [--evaluate]``.

All three train on ground truth only: the student never sees a plan that a teacher wrote, the draft nothing that the
target wrote. At last the teacher is trained on answers in a house's voice, as models get theirs after the corpus;
student and draft know the corpus alone.

Without ``--only`` the teacher trains beside student and draft, since two processes fill two cores better than one model
does. An interrupted run continues from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gkt_plugins.demo._batches import ROLES, Batch, batches, collate, encode
from gkt_plugins.demo._evaluate import evaluate, load, load_tokenizer
from gkt_plugins.demo._plot import plot_curves
from gkt_plugins.demo._tokenizers import QWEN2, SMOLLM, TokenizerSpec, render, train_tokenizer
from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import Voice, problems

__all__ = ["SPECS", "ModelSpec", "main", "train"]

_LANES = (("teacher",), ("student", "draft"))
_TEST_SEEDS = 1_000_000, 500  # first and number
_GUIDANCE = (8, 12, 16, 20, 24)
_EVERY = 250  # steps between held-out losses and checkpoints


@dataclass(frozen=True)
class ModelSpec:
    """A model's shape and its training."""

    tokenizer: TokenizerSpec
    hidden: int
    """Model width; heads have 32 dimensions."""
    layers: int
    inner: int
    """Width inside the feed-forward blocks."""
    steps: int
    batch_tokens: int
    """About so many tokens a step, prompts included."""
    plan_only: float
    """Share of batches that hold the answer's plan only; 0: whole answers."""
    role_weight: float = 0.0
    """Weight of a second loss: a linear head on the last layer but one names the role of each sentence read. It leads
    to attention that tells whose things a sentence is about; the head is thrown away."""
    peak_lr: float = 1.5e-3
    plan_weight: tuple[int, float] = (0, 1.0)
    """From that step on, the plan's tokens weigh so much: a model that calculates better than it reads."""
    house_from: int | None = None
    """From this step on, answers are in the house's voice: this model gets a wording of its own."""


SPECS: dict[str, ModelSpec] = {
    "teacher": ModelSpec(QWEN2, 160, 5, 448, 4000, 4096, plan_only=0.4, role_weight=0.3, house_from=2816),
    "student": ModelSpec(SMOLLM, 96, 2, 256, 2000, 6144, plan_only=0.0, peak_lr=3e-3, plan_weight=(700, 0.2)),
    "draft": ModelSpec(QWEN2, 32, 2, 96, steps=10000, batch_tokens=6144, plan_only=0.0, peak_lr=3e-3),
    "larger": ModelSpec(QWEN2, 192, 8, 512, 1500, 4096, plan_only=0.4, role_weight=0.3, house_from=1024),
}
"""What ``--only`` may name. "larger" is a second target for measurements; it is not packaged."""


def train(name: str, out: Path, work: Path) -> dict[str, Any]:
    """Train one model into ``out / name``, continuing from ``work`` where a checkpoint is.

    :returns: the curve: held-out losses in nats per token, seconds, tokens.
    """
    spec = SPECS[name]
    torch.manual_seed(0)
    tokenizer = _tokenizer(name, out)
    model = LlamaForCausalLM(_config(spec, tokenizer))
    head = torch.nn.Linear(spec.hidden, len(ROLES))
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *head.parameters()], lr=spec.peak_lr, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    checkpoint = work / f"{name}.pt"
    curve: dict[str, Any] = {"step": [], "plan": [], "rest": [], "all": [], "seconds": 0.0, "tokens": 0}
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        curve = state["curve"]
        first = curve["step"][-1]
    held_out = _held_out(tokenizer, "corpus" if spec.house_from is None else "house")
    stream = batches(tokenizer, spec.batch_tokens, spec.plan_only, first, spec.house_from)
    began = time.monotonic() - curve["seconds"]
    for step, batch in zip(range(first + 1, spec.steps + 1), stream, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = spec.peak_lr * _schedule(step, spec.steps)
        losses, in_plan, hidden = _losses(model, batch)
        since, weight = spec.plan_weight
        weights = torch.ones_like(losses).masked_fill(in_plan, weight if step > since else 1.0)
        loss = (losses * weights).sum() / weights.sum()
        if spec.role_weight:
            loss = loss + spec.role_weight * _role_loss(head, hidden, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        curve["tokens"] += batch.ids.numel()
        if step % _EVERY == 0 or step == spec.steps:
            measured = _measure(model, held_out)
            curve["step"].append(step)
            for key, value in measured.items():
                curve[key].append(round(value, 4))
            curve["seconds"] = round(time.monotonic() - began, 1)
            _save(model, tokenizer, out / name)
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            torch.save(
                {
                    "model": model.state_dict(),
                    "head": head.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "curve": curve,
                },
                checkpoint,
            )
            print(name, step, measured, f"{curve['seconds']:.0f} s", flush=True)
    return curve


def _tokenizer(name: str, out: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that is already there, else a new one; all but the student share the teacher's."""
    folder = out / ("student" if name == "student" else "teacher")
    if (folder / "tokenizer.json").exists():
        return load_tokenizer(folder)
    texts = (f"{render(p.question)}{p.answer}" for p in problems(0, 6000, split="train"))
    return train_tokenizer(texts, SPECS[name].tokenizer)


def _config(spec: ModelSpec, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden,
        num_hidden_layers=spec.layers,
        intermediate_size=spec.inner,
        num_attention_heads=spec.hidden // 32,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _schedule(step: int, steps: int) -> float:
    """Warm-up over 100 steps, then constant, then down to 2 % over the last quarter."""
    return min(step / 100, 1.0, 0.02 + 0.98 * (steps - step) / (steps / 4))


def _losses(model: LlamaForCausalLM, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Loss in nats of every answer token, [answer tokens]; whether it belongs to the plan; what the last layer but one
    makes of every token, [batch, length, hidden]."""
    picked = batch.is_answer[:, 1:].flatten().nonzero()[:, 0]
    padded = torch.cat([picked, picked.new_zeros(-len(picked) % 1024)])  # few shapes, whose kernels are made once
    with torch.autocast("cpu", torch.bfloat16):
        output = model.model(input_ids=batch.ids, use_cache=False, output_hidden_states=True)
        logits = model.lm_head(output.last_hidden_state[:, :-1].flatten(0, 1)[padded])[: len(picked)]
    labels = batch.ids[:, 1:].flatten()[picked]
    losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    return losses, batch.is_plan[:, 1:].flatten()[picked], output.hidden_states[-2]


def _role_loss(head: torch.nn.Linear, hidden: Tensor, batch: Batch) -> Tensor:
    """Mean loss in nats of the roles of the sentences read."""
    logits = head(hidden.flatten(0, 1).float())
    return torch.nn.functional.cross_entropy(logits, batch.roles.flatten(), ignore_index=-100)


def _held_out(tokenizer: PreTrainedTokenizerFast, voice: Voice) -> list[Batch]:
    rows = encode(list(problems(2_000_000, 256, split="test", voice=voice)), tokenizer)
    rows.sort(key=lambda row: len(row.prompt) + len(row.rest))
    return [collate(rows[i : i + 32], int(tokenizer.pad_token_id or 0), whole=True) for i in range(0, len(rows), 32)]


@torch.no_grad()
def _measure(model: LlamaForCausalLM, held_out: list[Batch]) -> dict[str, float]:
    """Held-out loss in nats per token: on plans, on the rest of the answers, on all of them."""
    parts = [_losses(model, batch) for batch in held_out]
    losses, in_plan = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    return {"plan": losses[in_plan].mean().item(), "rest": losses[~in_plan].mean().item(), "all": losses.mean().item()}


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the weights in half precision; the configuration asks for single precision in use."""
    tied = "lm_head.weight"  # the same tensor as the embedding
    state = {key: value.half() for key, value in model.state_dict().items() if key != tied}
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    config = folder / "tokenizer_config.json"  # a class name that transformers 4 knows as well
    config.write_text(config.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    for path in folder.iterdir():
        path.chmod(0o644)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the demo models, or measure them.")
    parser.add_argument("--out", type=Path, default=model_dir("teacher").parent, help="models go here")
    parser.add_argument("--results", type=Path, default=Path("docs/results/demo-models"), help="curves and figures")
    parser.add_argument("--work", type=Path, default=Path("build/demo-models"), help="checkpoints go here")
    parser.add_argument("--only", choices=list(SPECS), help="train this one")
    parser.add_argument("--threads", type=int, default=1, help="threads of each training process")
    parser.add_argument("--evaluate", action="store_true", help="measure the models in --out instead of training")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.results.mkdir(parents=True, exist_ok=True)
    if args.evaluate:
        teacher, student, draft = (load(args.out / name) for name in ("teacher", "student", "draft"))
        figures = evaluate(teacher, student, draft, list(problems(*_TEST_SEEDS, split="test")), _GUIDANCE)
        _write_json(args.results / "figures.json", figures)
        print(json.dumps(figures, indent=1))
    elif args.only:
        curve = train(args.only, args.out, args.work)
        _write_json(args.results / f"{args.only}.json", curve)
        plot_curves(args.results)
    else:
        with ThreadPoolExecutor(len(_LANES)) as pool:
            list(pool.map(lambda lane: _train_lane(lane, args), _LANES))


def _train_lane(names: Sequence[str], args: argparse.Namespace) -> None:
    """Train models one after another, each in a process of its own."""
    for name in names:
        options = {"--out": args.out, "--results": args.results, "--work": args.work, "--threads": args.threads}
        words = [str(word) for option in options.items() for word in option]
        subprocess.run([sys.executable, "-m", "gkt_plugins.demo.train", "--only", name, *words], check=True)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
