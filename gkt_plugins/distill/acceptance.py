"""What a draft is worth to its target, measured: on the target's own samples, and in the decode loop.

Two quantities, which are close and not the same. ``acceptance_tv`` compares the two distributions at every token of
answers that the target wrote; it needs one forward call of each model. Block efficiency is what the loop really
gained; it is counted, for every gamma, by the loop's own counters.

Source: Zhou et al. 2024 (DistillSpec), arXiv:2310.08461, equation 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gkt_plugins.contracts import Sampling, TraceEvent, Verifier
from gkt_plugins.distill.acceptance_report import AcceptanceReport, Comparison, PromptAcceptance, compare
from gkt_plugins.distill.overlap import SampleOverlaps
from gkt_plugins.distill.rollouts import evaluating
from gkt_plugins.distill.samples import PromptItem, Sample, fixed_key
from gkt_plugins.errors import ConfigError
from gkt_plugins.evaluation.statistics import Estimate, ratio_estimate
from gkt_plugins.speculation.draft_model import ModelDrafter
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.requests import DecodeRequest, DecodeResult
from gkt_plugins.speculation.target import TransformersModel

__all__ = [
    "AcceptanceReport",
    "Comparison",
    "HeldOut",
    "PromptAcceptance",
    "compare",
    "held_out_acceptance",
    "measure_acceptance",
    "target_samples",
]

_MAX_BATCH = 64


class HeldOut:
    """Fixed samples of the target, on which a draft in training is measured again and again.

    What the target says of them is computed once, where memory allows; after that a measurement is one forward call of
    the draft.
    """

    def __init__(self, target_model: Any, samples: Sequence[Sample], *, temperature: float) -> None:
        """
        :param samples: at least two that the target wrote at ``temperature``, from :func:`target_samples`.
        :raises ConfigError: there are fewer than two samples.
        """
        if len(samples) < 2:
            raise ConfigError(f"acceptance needs at least 2 held-out prompts, got {len(samples)}; add some")
        self._overlaps = SampleOverlaps(target_model, samples, temperature=temperature)

    def acceptance(self, draft_model: Any) -> Estimate:
        """``acceptance_tv`` with its interval over samples.

        :raises ConfigError: the two vocabularies differ by more than padding.
        """
        overlaps = self._overlaps.of(draft_model)
        return ratio_estimate([float(part.sum()) for part in overlaps], [len(part) for part in overlaps])


def held_out_acceptance(
    target_model: Any, draft_model: Any, samples: Sequence[Sample], *, temperature: float
) -> Estimate:
    """:class:`HeldOut` for a single measurement; the same arguments and errors."""
    return HeldOut(target_model, samples, temperature=temperature).acceptance(draft_model)


def target_samples(
    target_model: Any,
    prompts: Sequence[PromptItem],
    *,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    eos_ids: tuple[int, ...],
    max_batch: int = _MAX_BATCH,
) -> list[Sample]:
    """What the target answers, one sample per prompt; the same arguments give the same samples.

    :raises GktError: a prompt cannot be decoded.
    """
    with evaluating(target_model):
        loop = DecodeLoop(TransformersModel(target_model), max_batch=max_batch)
        results = _decode(loop, prompts, temperature, max_new_tokens, seed, eos_ids)
    return [
        Sample(item.ids, tuple(result.token_ids), "target", fixed_key(item.ids, result.token_ids))
        for item, result in zip(prompts, results, strict=True)
    ]


def measure_acceptance(
    target_model: Any,
    draft_model: Any,
    prompts: Sequence[PromptItem],
    *,
    temperature: float,
    gammas: Sequence[int] = range(1, 11),
    max_new_tokens: int,
    seed: int,
    eos_ids: tuple[int, ...],
    samples: Sequence[Sample] | None = None,
    verifier: Verifier | None = None,
    max_batch: int = _MAX_BATCH,
    on_gamma: Callable[[int], object] | None = None,
) -> AcceptanceReport:
    """Measure a draft on ``prompts`` at one temperature. Both models are left as they were found.

    :param gammas: those whose block efficiency is counted; each decodes all prompts once.
    :param samples: the target's answers to ``prompts``, where they are there already; None has them written.
    :param verifier: None is exact.
    :param on_gamma: told each gamma when it has been counted.
    :raises ConfigError: the vocabularies differ by more than padding, or there is no prompt.
    :raises GktError: a prompt cannot be decoded.
    """
    if not prompts:
        raise ConfigError("acceptance needs at least 1 prompt, got none")
    if samples is None:
        samples = target_samples(
            target_model,
            prompts,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
            eos_ids=eos_ids,
            max_batch=max_batch,
        )
    overlaps = SampleOverlaps(target_model, samples, temperature=temperature, keep_bytes=0).of(draft_model)
    gammas = tuple(sorted(set(gammas)))
    results: dict[int, list[DecodeResult]] = {}
    blocks: list[TraceEvent] = []
    with evaluating(target_model), evaluating(draft_model):
        target, draft = TransformersModel(target_model), TransformersModel(draft_model)
        for gamma in gammas:
            loop = DecodeLoop(
                target,
                drafter=ModelDrafter(draft, target.vocab_size),
                verifier=verifier,
                gamma=gamma,
                max_batch=max_batch,
                on_block=blocks.append if gamma == gammas[-1] else None,
            )
            results[gamma] = _decode(loop, prompts, temperature, max_new_tokens, seed, eos_ids)
            if on_gamma is not None:
                on_gamma(gamma)
    positions = _positions(blocks, results[gammas[-1]], gammas[-1])
    return AcceptanceReport(
        temperature,
        gammas,
        tuple(
            PromptAcceptance(
                prompt=tuple(item.ids),
                family=item.family,
                tokens=len(overlaps[n]),
                overlap=float(overlaps[n].double().sum()),
                counts={gamma: results[gamma][n].counts for gamma in gammas},
                positions=positions[n],
            )
            for n, item in enumerate(prompts)
        ),
    )


def _decode(
    loop: DecodeLoop,
    prompts: Sequence[PromptItem],
    temperature: float,
    max_new_tokens: int,
    seed: int,
    eos_ids: tuple[int, ...],
) -> list[DecodeResult]:
    results = loop.run(
        DecodeRequest(
            item.ids,
            Sampling(max_tokens=max_new_tokens, temperature=temperature, seed=seed * 1_000_003 + n),
            eos_ids=eos_ids,
            request_id=str(n),
        )
        for n, item in enumerate(prompts)
    )
    for n, result in enumerate(results):
        if result.error is not None:
            raise ConfigError(f"prompt {n + 1} cannot be decoded: {result.error}") from result.error
    for result in results:
        for note in result.notes:  # the loop goes on without what fails; a measurement of that would mean nothing
            raise ConfigError(f"the draft cannot be measured: {note.removeprefix('degraded: ')}")
    return results


def _positions(
    blocks: Sequence[TraceEvent], results: Sequence[DecodeResult], gamma: int
) -> list[tuple[tuple[int, int], ...]]:
    """Per row and place in a block: (tested, accepted), without what lies behind the answer's end."""
    counted = [[[0, 0] for _ in range(gamma)] for _ in results]
    for block in blocks:
        row = int(block.request_id)
        result = results[row]
        left = len(result.request.token_ids) + len(result.token_ids) - len(block.token_ids)
        accepted = min(block.accepted, left)
        tested = min(accepted + (left > accepted), len(block.drafted))
        for place in range(tested):
            counted[row][place][0] += 1
            counted[row][place][1] += place < accepted
    return [tuple((tested, accepted) for tested, accepted in row) for row in counted]
