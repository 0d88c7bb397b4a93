"""Speculation against plain decoding: transformers' own loops and ours, same target, same draft, same prompts.

Sides, per batch size: transformers' ``generate``; its ``assistant_model`` (batch 1 only, the best of its own default
and the fixed draft lengths that our loop may choose from); our loop with speculation off; our loop with it on
(``gamma = "auto"``, exact verification, greedy). All sides of a turn answer the same prompts.

- ``vs_plain_bN``      time of transformers' ``generate`` / our loop speculating
- ``vs_own_plain_bN``  time of our loop with speculation off / our loop speculating; same refilling
- ``vs_assisted_b1``   time of ``assistant_model`` / our loop speculating
- ``of_limit_bN``      tokens per second of our loop at a fixed draft length / the limit, which is the same tokens
                       divided by bare forward calls of both models, block by block with the rows that were still
                       under way, timed outside our loop (with the same packed linear layers that our loop uses on a
                       CPU; transformers' own sides run without them)
- ``loop_share``       share of our loop's time outside the models' forward calls, at batch 1
- ``verify_ms_152k``   milliseconds to verify one sampled block: batch 8, gamma 5, vocabulary 152,064
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch
from transformers import DynamicCache

from benchmarks._models import (
    ForwardClock,
    chat_ids,
    describe,
    draft_model,
    expensive_target,
    held_out,
    tokenizer,
)
from benchmarks._report import Report, arguments, take_turns
from gkt_plugins.contracts import Noise, Proposal, Sampling
from gkt_plugins.evaluation.statistics import median_estimate
from gkt_plugins.speculation.counts import Counts
from gkt_plugins.speculation.draft_model import ModelDrafter
from gkt_plugins.speculation.gamma import GammaController
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.packed_linear import packed_linears
from gkt_plugins.speculation.replay import active_rows
from gkt_plugins.speculation.requests import DecodeRequest, DecodeResult
from gkt_plugins.speculation.sampling import RowOptions
from gkt_plugins.speculation.scores import BlockScores
from gkt_plugins.speculation.target import TransformersModel
from gkt_plugins.speculation.verifiers import ExactVerifier

GAMMAS = (1, 2, 3, 4, 5, 6, 8)
TURNS = 8
BATCHES = (1, 4, 8, 16)


class Bench:
    """Models, prompts and the ways of answering them."""

    def __init__(self, *, prompts: int, max_new_tokens: int) -> None:
        self.tokens = tokenizer("teacher")
        self.target = expensive_target()
        self.draft = draft_model()
        self.prompts = chat_ids(self.tokens, held_out(prompts))
        self.max_new_tokens = max_new_tokens
        self.served = TransformersModel(self.target)
        self.served_draft = TransformersModel(self.draft)
        self.controller = GammaController(GAMMAS)
        self.answers: dict[str, dict[int, list[int]]] = {}
        self.counts: dict[int, Counts] = {batch: Counts() for batch in BATCHES}

    def group(self, turn: int, size: int) -> list[int]:
        """Which prompts a turn answers; together the turns go through all of them."""
        return [(turn * size + i) % len(self.prompts) for i in range(size)]

    def keep(self, side: str, prompt: int, ids: Sequence[int]) -> None:
        self.answers.setdefault(side, {})[prompt] = list(ids)

    # ---------------------------------------------------------------------------------------------------- the sides

    def hf(self, turn: int, *, batch: int, size: int, assistant: dict[str, Any] | None = None) -> float:
        """transformers' ``generate`` over the turn's prompts; seconds.

        ``assistant``: settings of the draft's generation config, where it looks for them; None decodes plainly.
        """
        for name, value in (assistant or {}).items():
            setattr(self.draft.generation_config, name, value)
        extra = {} if assistant is None else {"assistant_model": self.draft}
        chosen = self.group(turn, size)
        begun = perf_counter()
        for first in range(0, size, batch):
            part = chosen[first : first + batch]
            inputs = self.tokens.pad({"input_ids": [self.prompts[i] for i in part]}, return_tensors="pt")
            with torch.inference_mode():
                output = self.target.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False, **extra)
            width = inputs["input_ids"].shape[1]
            for prompt, ids in zip(part, output[:, width:].tolist(), strict=True):
                end = ids.index(self.tokens.eos_token_id) + 1 if self.tokens.eos_token_id in ids else len(ids)
                self.keep("plain" if assistant is None else "assisted", prompt, ids[:end])
        return perf_counter() - begun

    def ours(self, turn: int, *, batch: int, size: int, speculate: bool) -> float:
        """Our loop over the turn's prompts; seconds."""
        chosen = self.group(turn, size)
        begun = perf_counter()
        drafter = ModelDrafter(self.served_draft, self.served.vocab_size) if speculate else None
        loop = DecodeLoop(self.served, drafter=drafter, gamma=self.controller, max_batch=batch, tokenizer=self.tokens)
        results = loop.run([self.request(i) for i in chosen])
        seconds = perf_counter() - begun
        for prompt, result in zip(chosen, results, strict=True):
            assert result.error is None, result.error
            self.keep("ours_on" if speculate else "ours_off", prompt, result.token_ids)
            if speculate:
                self.counts[batch] += result.counts
        return seconds

    def request(self, prompt: int) -> DecodeRequest:
        return DecodeRequest(
            self.prompts[prompt],
            sampling=Sampling(max_tokens=self.max_new_tokens),
            eos_ids=(self.tokens.eos_token_id,),
        )

    # ------------------------------------------------------------------------------------------- what holds them up

    def fixed(self, turn: int, *, batch: int, gamma: int) -> tuple[list[DecodeResult], float, float]:
        """Our loop at one draft length, rows entering together: results, seconds, and those of forward calls."""
        drafter = ModelDrafter(self.served_draft, self.served.vocab_size)
        loop = DecodeLoop(self.served, drafter=drafter, gamma=gamma, max_batch=batch, tokenizer=self.tokens)
        clock = ForwardClock()
        with clock.on(self.target, self.draft):
            results = loop.run([self.request(i) for i in self.group(turn, batch)])
        return results, loop.timings.total, clock.seconds

    def bare(self, *, batch: int, gamma: int, length: int, repeats: int = 3) -> float:
        """Seconds of one block's forward calls and nothing else: gamma of the draft, one of the target; the fastest."""
        seconds = [0.0] * repeats
        with torch.inference_mode(), packed_linears(self.target):
            for model, widths in ((self.draft, [1] * gamma), (self.target, [gamma + 1])):
                cache = DynamicCache(config=model.config)
                past = torch.zeros(batch, length, dtype=torch.int64)
                model(input_ids=past, past_key_values=cache, logits_to_keep=1)
                for repeat in range(repeats):
                    for width in widths:
                        ids = torch.zeros(batch, width, dtype=torch.int64)
                        begun = perf_counter()
                        model(input_ids=ids, past_key_values=cache)
                        seconds[repeat] += perf_counter() - begun
                        cache.crop(-width)
        return min(seconds)


def identical(bench: Bench) -> tuple[int, int]:
    """(prompts whose tokens differ between any two sides, prompts compared)."""
    plain = bench.answers["plain"]
    differing = {
        prompt
        for side, answers in bench.answers.items()
        for prompt, ids in answers.items()
        if prompt in plain and ids != plain[prompt]
    }
    return len(differing), len(plain)


def limit(bench: Bench, batch: int, gamma: int, turns: int) -> tuple[list[float], list[float]]:
    """Per turn: speed of our loop as a share of the bare forward calls' speed, and its time outside forward calls."""
    shares, outside = [], []
    for turn in range(turns):
        results, seconds, forward = bench.fixed(turn, batch=batch, gamma=gamma)
        rows = active_rows([result.counts.blocks for result in results])
        length = sum(len(r.request.token_ids) + len(r.token_ids) // 2 for r in results) // len(results)
        bare = {size: bench.bare(batch=size, gamma=gamma, length=length) for size in set(rows)}
        prefill = bare_prefill(bench, results)
        shares.append((sum(bare[size] for size in rows) + prefill) / seconds)
        outside.append(1 - forward / seconds)
    return shares, outside


def bare_prefill(bench: Bench, results: Sequence[DecodeResult]) -> float:
    """Seconds of the prompts' own forward calls."""
    inputs = bench.tokens.pad({"input_ids": [list(r.request.token_ids) for r in results]}, return_tensors="pt")
    best = []
    with torch.inference_mode(), packed_linears(bench.target):
        for _ in range(2):
            begun = perf_counter()
            bench.target(**inputs, logits_to_keep=1)
            bench.draft(**inputs, logits_to_keep=1)
            best.append(perf_counter() - begun)
    return min(best)


def verify_milliseconds(*, vocabulary: int = 152_064, batch: int = 8, gamma: int = 5, repeats: int = 15) -> list[float]:
    """Time to turn one sampled block's logits into a verdict."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, gamma + 1, vocabulary, generator=generator) * 3
    q = torch.softmax(logits[:, :gamma] + torch.randn(batch, gamma, vocabulary, generator=generator), dim=-1)
    ids = torch.multinomial(q.flatten(0, 1), 1, generator=generator).view(batch, gamma)
    noise = Noise(torch.rand(batch, gamma, generator=generator), torch.rand(batch, generator=generator))
    options = RowOptions.pack([Sampling(temperature=1.0)] * batch, [()] * batch, torch.device("cpu"))
    past = torch.zeros(batch, 1, dtype=torch.int64)
    milliseconds = []
    for _ in range(repeats):
        begun = perf_counter()
        scores = BlockScores(logits, options, past, [1] * batch, ids)
        ExactVerifier().verify(Proposal(ids, q), scores, noise)
        milliseconds.append((perf_counter() - begun) * 1000)
    return milliseconds


def main(argv: Sequence[str] | None = None) -> None:
    options = arguments(__doc__ or "", argv)
    quick = options.quick
    bench = Bench(prompts=32 if quick else 64, max_new_tokens=24 if quick else 256)
    report = Report("decoding", quick)
    report.setup.update(
        describe(bench.target, "teacher"),
        prompts=len(bench.prompts),
        max_new_tokens=bench.max_new_tokens,
        turns=TURNS,
        gammas=list(GAMMAS),
        verifier="exact, temperature 0",
    )
    sizes = {1: 2, 4: 8, 8: 16, 16: 16} if quick else {1: 8, 4: 8, 8: 16, 16: 16}
    # Not counted: allocations, and what a server has learned about its costs by the time anybody measures it.
    for batch in BATCHES:
        for turn in range(1 if quick else 2):
            bench.ours(turn, batch=batch, size=sizes[batch], speculate=True)
        bench.hf(0, batch=batch, size=batch)
    bench.counts = {batch: Counts() for batch in BATCHES}
    assistant, assistant_name = fastest_assistant(bench, quick)
    report.setup["assistant_settings"] = assistant_name

    worst: tuple[float, str] = (float("inf"), "")
    for batch in BATCHES:
        size = sizes[batch]
        sides: dict[str, Callable[[int], float]] = {
            "plain": partial(bench.hf, batch=batch, size=size),
            "own_plain": partial(bench.ours, batch=batch, size=size, speculate=False),
            "on": partial(bench.ours, batch=batch, size=size, speculate=True),
        }
        if batch == 1:
            sides["assisted"] = partial(bench.hf, batch=1, size=size, assistant=assistant)
        seconds = take_turns(sides, TURNS)
        goals = {1: 1.5, 8: 1.1}
        report.put_ratio(f"vs_plain_b{batch}", seconds["plain"], seconds["on"])
        report.put_ratio(f"vs_own_plain_b{batch}", seconds["own_plain"], seconds["on"], at_least=goals.get(batch))
        if batch == 1:
            report.put_ratio("vs_assisted_b1", seconds["assisted"], seconds["on"], at_least=1.0)
        counts = bench.counts[batch]
        report.put(f"block_efficiency_b{batch}", counts.block_efficiency)
        report.put(f"acceptance_rate_b{batch}", counts.acceptance_rate)
        value = float(report.figures[f"vs_own_plain_b{batch}"] or 0)
        worst = min(worst, (value, f"batch {batch}"))
    report.put("worst_vs_own_plain", worst[0])
    report.goal("worst_vs_own_plain", ">=", 0.97)
    report.setup["worst_at"] = worst[1]

    for batch in (1, 8):
        gamma = max(1, min(GAMMAS, key=lambda g: -bench.controller.expected_speedup(batch, g)))
        shares, outside = limit(bench, batch, gamma, TURNS)
        report.setup[f"limit_gamma_b{batch}"] = gamma
        report.put_estimate(f"of_limit_b{batch}", median_estimate(shares), at_least=0.90)
        if batch == 1:
            report.put_estimate("loop_share", median_estimate(outside))
            report.goal("loop_share", "<=", 0.10)
    report.put_estimate("verify_ms_152k", median_estimate(verify_milliseconds()))
    differing, compared = identical(bench)
    report.put("prompts_compared", compared)
    report.put("prompts_differing", differing)
    report.finish(json_only=options.json, output=options.output)


def fastest_assistant(bench: Bench, quick: bool) -> tuple[dict[str, Any], str]:
    """The settings with which transformers' assisted generation is fastest on a few prompts: it gets its best."""
    names = ("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold")
    default = {name: getattr(bench.draft.generation_config, name) for name in names}
    settings = {"its own default": default}
    for gamma in GAMMAS[1::2] if quick else GAMMAS:
        settings[f"gamma {gamma}"] = dict(zip(names, (gamma, "constant", 0.0), strict=True))
    size = 1 if quick else 2
    bench.hf(0, batch=1, size=1, assistant=default)
    seconds = {name: bench.hf(0, batch=1, size=size, assistant=setting) for name, setting in settings.items()}
    best = min(seconds, key=lambda name: seconds[name])
    return settings[best], best


if __name__ == "__main__":
    main()
