"""One vLLM engine as a process of its own: settings as its only argument, jobs and what came of them as JSON lines.

Jobs come on standard input, answers go to standard output, and everything else that is printed to standard error.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gkt_plugins.speculation.counts import Counts
from gkt_vllm.counters import counts_of

__all__ = ["OURS", "THEIRS", "EngineSettings", "Job", "Seen", "counters"]

THEIRS = "vllm:spec_decode_num_"
OURS = "gkt_speculation_"


@dataclass(frozen=True)
class EngineSettings:
    """How one engine is made."""

    arguments: Mapping[str, Any]
    """vLLM's own."""
    with_mend: bool = False
    """See :mod:`benchmarks.vllm._mended`."""


@dataclass(frozen=True)
class Job:
    """Prompts to answer."""

    prompts: Sequence[Sequence[int]]
    at_once: int
    """Requests in flight; the next begins when one ends."""
    temperature: float
    max_tokens: int


@dataclass
class Seen:
    """What came of a job."""

    seconds: float
    answers: list[list[int]]
    theirs: dict[str, list[float]] = field(default_factory=dict)
    """What vLLM's own counters of speculation gained: name → values, several only for counts by position."""
    ours: dict[str, list[float]] = field(default_factory=dict)
    """The same of the plugin's; empty where it counts nothing."""

    @property
    def tokens(self) -> int:
        return sum(map(len, self.answers))

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    @property
    def counts(self) -> Counts:
        """vLLM's counters, mapped."""
        found = {name: [round(value) for value in values] for name, values in self.theirs.items()}
        if not found.get("drafts"):
            return Counts()
        [drafts], [drafted], [accepted] = found["drafts"], found["draft_tokens"], found["accepted_tokens"]
        return counts_of(drafts, drafted, accepted, found["accepted_tokens_per_pos"])

    @property
    def own_counts(self) -> Counts | None:
        """The plugin's, as it shows them."""
        if not self.ours:
            return None
        return Counts(**{name.removesuffix("_tokens"): round(value) for name, [value] in self.ours.items()})


async def _answer(engine: Any, job: Job, number: int) -> list[list[int]]:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    places = asyncio.Semaphore(job.at_once)

    async def one(index: int, prompt: Sequence[int]) -> list[int]:
        params = SamplingParams(
            temperature=job.temperature, max_tokens=job.max_tokens, output_kind=RequestOutputKind.FINAL_ONLY
        )
        async with places:
            async for output in engine.generate({"prompt_token_ids": list(prompt)}, params, f"{number}-{index}"):
                last = output
            return list(last.outputs[0].token_ids)

    return await asyncio.gather(*(one(index, prompt) for index, prompt in enumerate(job.prompts)))


def counters(registry: Any, prefix: str) -> dict[str, list[float]]:
    """Prometheus counters whose names begin so: the rest of the name → values, several only for counts by position."""
    found: dict[str, dict[int, float]] = {}
    for metric in registry.collect():
        if metric.name.startswith(prefix):
            for sample in metric.samples:
                if sample.name.endswith("_total"):
                    values = found.setdefault(metric.name.removeprefix(prefix), {})
                    place = int(sample.labels.get("position", 0))
                    values[place] = values.get(place, 0.0) + sample.value
    return {name: [values[place] for place in sorted(values)] for name, values in found.items()}


async def _serve(settings: EngineSettings, replies: Any) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = dict(settings.arguments)
    if settings.with_mend:
        arguments["worker_extension_cls"] = "benchmarks.vllm._mended.Mended"
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    try:
        replies.write(json.dumps({"ready": True}) + "\n")
        loop = asyncio.get_running_loop()
        number = 0
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            number += 1
            job = Job(**json.loads(line))
            before, begun = await _settled(), time.perf_counter()
            answers = await _answer(engine, job, number)
            seconds = time.perf_counter() - begun
            after = await _settled()
            theirs, ours = (_gained(before[prefix], after[prefix]) for prefix in (THEIRS, OURS))
            replies.write(json.dumps(asdict(Seen(seconds, answers, theirs, ours))) + "\n")
    finally:
        engine.shutdown()


async def _settled() -> dict[str, dict[str, list[float]]]:
    """The counters once nothing is added any more: the last step's are recorded after its answers are handed out."""
    from prometheus_client import REGISTRY

    found: dict[str, dict[str, list[float]]] = {}
    while True:
        before, found = found, {prefix: counters(REGISTRY, prefix) for prefix in (THEIRS, OURS)}
        if found == before:
            return found
        await asyncio.sleep(0.05)


def _gained(before: Mapping[str, list[float]], after: Mapping[str, list[float]]) -> dict[str, list[float]]:
    return {
        name: [b - a for a, b in zip(before.get(name, [0.0] * len(values)), values, strict=True)]
        for name, values in after.items()
    }


def main() -> None:
    """Run the engine until standard input ends."""
    settings = EngineSettings(**json.loads(sys.argv[1]))
    with os.fdopen(os.dup(1), "w", buffering=1) as replies:
        os.dup2(2, 1)
        asyncio.run(_serve(settings, replies))


if __name__ == "__main__":
    main()
