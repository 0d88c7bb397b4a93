"""A guided student's server beside the teacher's own, and what guidance costs beyond the two models.

The teacher is the expensive model on a vLLM server without the plugin, the student the packaged one of 0.3 M parameters
on a vLLM server whose section guides it by that teacher. 16 clients ask streams, closed loop, in turns.

- ``guided_rps_ratio``           requests per second, guided student / teacher alone
- ``…_rps``, ``…_first_p50_ms``  requests per second; until the first text, over all clients; also ``_p99_ms``
- ``guided_teacher_first_mean_ms``  what the teacher's server itself counts until its first token, while it guides
- ``…_accuracy``, ``…_cost_per_1000``  right answers to held-out problems, and what they cost
- ``guidance_overhead_p50_ms``   one client; guided answer − a client that makes both calls itself, to a teacher that
                                 takes 50 ms and to a student's server without the plugin
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import mean, median

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from benchmarks._models import held_out
from benchmarks._report import Report
from benchmarks.gateway._quantiles import quantile_estimate
from benchmarks.gateway._setting import Setting as GatewaySetting
from benchmarks.gateway._setting import upstream
from benchmarks.vllm._clients import Chat, ask, complete, message
from benchmarks.vllm._servers import GUIDANCE_TOKENS, guided, plain, ports, start
from benchmarks.vllm._setting import PACKAGES, Setting
from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import Problem
from gkt_plugins.evaluation.statistics import median_estimate, share_estimate

__all__ = ["run"]

CLIENTS = 16
TURNS, PROBLEMS = 3, 40
"""Turns, and problems of each."""
MAX_TOKENS = 384
PAIRS = 60
FIXED = "fixed-50"
"""Answers after 50 ms, whatever it is asked."""
STUDENT_TOKENS = 8


def run(setting: Setting) -> Report:
    """Both halves, on the same servers."""
    report = Report("guided", setting.quick, packages=PACKAGES)
    found = ports(["teacher", "student", "guided", "overhead"])
    urls = {name: f"http://127.0.0.1:{port}/v1" for name, port in found.items()}
    with ExitStack() as stack:
        fixed = stack.enter_context(upstream(GatewaySetting(setting.quick, setting.work, setting.work)))
        servers = [
            plain("teacher", setting.target),
            plain("student", str(model_dir("student"))),
            guided("guided", setting, urls["teacher"], "teacher"),
            guided("overhead", setting, fixed.url, FIXED, tokens=STUDENT_TOKENS, cut="raw"),
        ]
        start(stack, setting, {one.name: (one, found[one.name]) for one in servers})
        _overhead(report, urls["overhead"], urls["student"], fixed.url)
        asyncio.run(_load(report, urls))
    report.setup.update(
        clients=CLIENTS,
        turns=TURNS,
        problems=TURNS * PROBLEMS,
        max_tokens=MAX_TOKENS,
        guidance_tokens=GUIDANCE_TOKENS,
        pairs=PAIRS,
        overhead_tokens=STUDENT_TOKENS,
    )
    return report


async def _load(report: Report, urls: dict[str, str]) -> None:
    models = {"teacher": "teacher", "guided": "student", "student": "student"}
    problems = held_out(TURNS * PROBLEMS)
    rates: dict[str, list[float]] = {name: [] for name in models}
    chats: dict[str, list[list[Chat]]] = {name: [] for name in models}
    for name, model in models.items():
        await ask(urls[name], model, held_out(CLIENTS, first=10_000), clients=CLIENTS, max_tokens=32)  # warm
    guiding = FirstTokens()
    for turn in range(TURNS):
        part = problems[turn * PROBLEMS : (turn + 1) * PROBLEMS]
        names = list(models)[turn % len(models) :] + list(models)[: turn % len(models)]
        for name in names:
            before = _first_tokens(urls["teacher"])
            seconds, answers = await ask(urls[name], models[name], part, clients=CLIENTS, max_tokens=MAX_TOKENS)
            rates[name].append(len(part) / seconds)
            chats[name].append(answers)
            if name == "guided":
                guiding += _first_tokens(urls["teacher"]) - before
    report.put_ratio("guided_rps_ratio", rates["guided"], rates["teacher"])
    for name in models:
        first_ms = [[1000 * chat.first_s for chat in answers] for answers in chats[name]]
        every = [chat for answers in chats[name] for chat in answers]
        report.put_estimate(f"{name}_rps", median_estimate(rates[name]))
        for quantile in (50, 99):
            report.put_estimate(f"{name}_first_p{quantile}_ms", quantile_estimate(first_ms, quantile))
        _quality(report, name, problems, every)
    report.put("guided_first_mean_ms", 1000 * mean(chat.first_s for answers in chats["guided"] for chat in answers))
    report.put("guided_teacher_first_mean_ms", 1000 * guiding.seconds / guiding.requests)
    routes = [chat.route for answers in chats["guided"] for chat in answers]
    report.put("guided_share", sum(route in ("guided", "teacher") for route in routes) / len(routes))
    report.goal("guided_share", ">=", 1.0)


@dataclass(frozen=True)
class FirstTokens:
    """vLLM's own count of how long requests waited for their first token."""

    seconds: float = 0.0
    requests: float = 0.0

    def __add__(self, other: FirstTokens) -> FirstTokens:
        return FirstTokens(self.seconds + other.seconds, self.requests + other.requests)

    def __sub__(self, other: FirstTokens) -> FirstTokens:
        return FirstTokens(self.seconds - other.seconds, self.requests - other.requests)


def _first_tokens(url: str) -> FirstTokens:
    """Of all requests to the server so far."""
    page = httpx2.get(f"{url.removesuffix('/v1')}/metrics").raise_for_status().text
    name = "vllm:time_to_first_token_seconds"
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(page)
        if family.name == name
        for sample in family.samples
    }
    return FirstTokens(samples[f"{name}_sum"], samples[f"{name}_count"])


def _quality(report: Report, name: str, problems: list[Problem], chats: list[Chat]) -> None:
    hits = [chat.is_right(problem) for problem, chat in zip(problems, chats, strict=True)]
    report.put_estimate(f"{name}_accuracy", share_estimate(sum(hits), len(hits)))
    report.put(f"{name}_cost_per_1000", 1000 * mean(chat.cost for chat in chats))


def _overhead(report: Report, guided_url: str, student_url: str, teacher_url: str) -> None:
    """Both ways to the same answer length, by turns."""
    spent: dict[str, list[float]] = {"guided": [], "by_hand": []}
    teacher_ms, student_ms = [], []
    with httpx2.Client(timeout=60) as http:
        for number, problem in enumerate(held_out(PAIRS + 4)):
            asked = message(problem)
            for way in ("guided", "by_hand") if number % 2 else ("by_hand", "guided"):
                begun = time.perf_counter()
                if way == "guided":
                    complete(http, guided_url, "student", asked, 2 * STUDENT_TOKENS, ignore_eos=True)
                else:
                    said = complete(http, teacher_url, FIXED, asked, STUDENT_TOKENS)
                    between = time.perf_counter()
                    turn = [*asked, {"role": "assistant", "content": said}]
                    flags = {"add_generation_prompt": False, "continue_final_message": True, "ignore_eos": True}
                    complete(http, student_url, "student", turn, STUDENT_TOKENS, **flags)
                    teacher_ms.append(1000 * (between - begun))
                    student_ms.append(1000 * (time.perf_counter() - between))
                spent[way].append(1000 * (time.perf_counter() - begun))
    added = [a - b for a, b in zip(spent["guided"], spent["by_hand"], strict=True)][4:]
    report.put_estimate("guidance_overhead_p50_ms", median_estimate(added))
    report.goal("guidance_overhead_p50_ms", "<=", 10.0)
    report.put("overhead_guided_p50_ms", median(spent["guided"][4:]))
    report.put("overhead_teacher_p50_ms", median(teacher_ms[4:]))
    report.put("overhead_student_p50_ms", median(student_ms[4:]))
