"""Time: the expensive target with the distilled draft against the same with the undistilled one, one prompt at a time.

Both drafts answer the same prompts in turns, each with ``gamma = "auto"`` and a controller of its own that has met some
prompts before anything is counted. Seconds are per token, since answers at temperature 1 differ in length.

- ``wallclock_gain_t0``, ``wallclock_gain_t1``     seconds per token, undistilled / distilled
- ``speedup_undistilled_tN``, ``…distilled…``      plain decoding of the same loop / speculation, on some of the prompts
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks._models import describe
from benchmarks._report import Report
from benchmarks.distillation._setting import (
    MAX_NEW_TOKENS,
    TEMPERATURES,
    Seeds,
    Setting,
    eos_of,
    held_out,
    load,
)
from gkt_plugins.contracts import Sampling
from gkt_plugins.demo.expensive import make_expensive
from gkt_plugins.distill.samples import PromptItem
from gkt_plugins.evaluation.statistics import ratio_estimate
from gkt_plugins.speculation.counts import Counts
from gkt_plugins.speculation.draft_model import ModelDrafter
from gkt_plugins.speculation.gamma import GammaController
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.requests import DecodeRequest, DecodeResult
from gkt_plugins.speculation.target import TransformersModel

__all__ = ["Side", "run"]

WARM_UP = 3
"""Prompts that are answered before time counts."""


class Side:
    """One way of answering, one prompt at a time."""

    def __init__(self, model: Any, target: TransformersModel, draft: Path | None) -> None:
        """``draft``: None decodes plainly."""
        self._eos = eos_of(model)
        self._target = target
        self._draft = TransformersModel(load(draft)) if draft else None
        self._gamma = GammaController()
        self.counts = Counts()

    def answer(self, item: PromptItem, *, temperature: float, seed: int = 0,
               limit: int = MAX_NEW_TOKENS) -> tuple[float, DecodeResult]:  # fmt: skip
        """Seconds, and the answer."""
        drafter = ModelDrafter(self._draft, self._target.vocab_size) if self._draft else None
        loop = DecodeLoop(self._target, drafter=drafter, gamma=self._gamma, max_batch=1)
        sampling = Sampling(max_tokens=limit, temperature=temperature, seed=seed)
        begun = perf_counter()
        [result] = loop.run([DecodeRequest(item.ids, sampling, eos_ids=self._eos)])
        seconds = perf_counter() - begun
        assert result.error is None, result.error
        self.counts += result.counts
        return seconds, result


def run(setting: Setting) -> Report:
    """Both temperatures."""
    report = Report("wallclock", setting.quick)
    model = make_expensive(load(setting.target))
    target = TransformersModel(model)
    prompts = held_out(Seeds.SPEED, 8 if setting.quick else 20, setting.target)
    warm = held_out(Seeds.SPEED + 1000, WARM_UP, setting.target)
    limit = 96 if setting.quick else MAX_NEW_TOKENS
    for temperature in TEMPERATURES:
        sides = {
            "plain": Side(model, target, None),
            "undistilled": Side(model, target, setting.draft),
            "distilled": Side(model, target, setting.served),
        }
        for name, side in sides.items():
            for item in warm[:1] if name == "plain" else warm:
                side.answer(item, temperature=temperature, limit=limit)
            side.counts = Counts()
        per_token: dict[str, list[float]] = {name: [] for name in sides}
        for number, item in enumerate(prompts):
            names = list(sides)[number % 3 :] + list(sides)[: number % 3]
            for name in names:
                if name != "plain" or number < max(2, len(prompts) // 4):
                    seconds, result = sides[name].answer(item, temperature=temperature, seed=number, limit=limit)
                    per_token[name].append(seconds / len(result.token_ids))
        key = f"t{temperature:.0f}"
        gain = ratio_estimate(per_token["undistilled"], per_token["distilled"])
        report.put_estimate(f"wallclock_gain_{key}", gain, at_least=1.10)
        for name in ("undistilled", "distilled"):
            report.put_estimate(f"speedup_{name}_{key}", _speedup(per_token["plain"], per_token[name]))
            report.put(f"speed_block_efficiency_{name}_{key}", sides[name].counts.block_efficiency)
    report.setup.update(describe(model, "target"), prompts=len(prompts), max_new_tokens=limit, gamma="auto", batch=1,
                        draft=setting.served.name)  # fmt: skip
    return report


def _speedup(plain: Sequence[float], other: Sequence[float]) -> Any:
    return ratio_estimate(plain, other[: len(plain)])
