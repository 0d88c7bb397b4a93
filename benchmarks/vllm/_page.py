"""The page of the figures: what each one is, its interval, its goal, and how to get the same from a GPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["page"]

_PARTS = {
    "off": (
        "Installed, without a section",
        'Against vLLM that loads no plugin (`VLLM_PLUGINS=""`). The model is the packaged teacher as small as it is, '
        "so that the Python around it weighs most; {turns} turns of each of {batches} requests in flight, "
        "{max_new_tokens} tokens each, temperature 0. Our logger of acceptance is the one thing that vLLM loads in "
        "any case; its presence turns vLLM's statistics on, also under `--disable-log-stats`, which is the second "
        "figure.",
    ),
    "speculation": (
        "On",
        "The expensive target with the packaged draft, γ = {gamma}, {turns} turns at each of two temperatures and of "
        "{batches} requests in flight, {max_new_tokens} tokens each. *Native* is vLLM's own `draft_model` given by "
        "hand, without the plugin; *on* the same from `gkt.toml`, with our hooks and no leniency; *custom* our own "
        'drafter, `drafts_by = "gkt"`. At temperature 0 all sides write the same tokens; at 1 each draws its own, so '
        "that their ratio has the noise of acceptance in it.",
    ),
    "distilled": (
        "A distilled draft",
        "The packaged draft before and after distillation, in front of the expensive target; {alone} prompts one at a "
        "time and {turns} turns of 16 prompts, {at_once} at once, {max_new_tokens} tokens each. Both are asked for "
        "{gamma} tokens a block; for the speed, the undistilled draft also ran with {short_gamma}, and the better of "
        "the two is what the distilled one is held against. Block efficiencies are vLLM's own counters, mapped to our "
        "terms. The demo target has a wording of its own, which only the distilled draft has seen; a target without "
        "one leaves far less to gain ([results](README.md), `plain_target_gain`).",
    ),
    "guided": (
        "A guided student",
        "The teacher is the expensive target on a vLLM server without the plugin; the student is the packaged one, on "
        "a vLLM server that the section guides by that teacher, with {guidance_tokens} tokens. {clients} clients ask "
        "streams, each at once after its last, {problems} held-out problems in {turns} turns, temperature 0, at most "
        "{max_tokens} tokens. Teacher and student share two cores, as the clients do. Guided clients "
        "come back so much sooner that the teacher reads several times as many prompts per second, and their first "
        "text waits for that: compare the two means, of the clients and of the teacher's own counter. Prices are those "
        "of `gkt demo`. Overhead: {pairs} pairs, one client, {overhead_tokens} tokens of a teacher that takes 50 ms "
        "and {overhead_tokens} of the student, against a client that makes both calls itself, the second to the "
        "student's model on a server without the plugin.",
    ),
}

_NOTES = {
    r"off_ratio": "tokens per second, installed / not loaded",
    r"off_ratio_no_stats": "the same with `--disable-log-stats`",
    r"on_vs_native": "tokens per second, all pairs",
    r"custom_vs_native": "tokens per second, all pairs",
    r"(on|custom)_vs_native_t0": "the same tokens on both sides",
    r"(on|custom)_greedy_equal": "share of prompts that got vLLM's own tokens, at temperature 0",
    r"distilled_block_efficiency_gain_t.": "tokens per target call, distilled / undistilled, both with γ = 7",
    r"distilled_throughput_gain_t.": "tokens per second, distilled / the better of two undistilled",
    r"undistilled_gamma_t.": "which of the two that was",
    r"undistilled_short_block_efficiency_t.": "with γ = 4",
    r"counters_equal": "share of runs in which our counters on vLLM's metrics page are vLLM's own, mapped",
    r"guidance_overhead_p50_ms": "guided answer − both calls made by hand, median of pairs",
    r"guided_rps_ratio": "requests per second, guided student / teacher alone",
    r"(teacher|guided|student)_first_p50_ms": "until a client has the first text",
    r"(teacher|guided|student)_cost_per_1000": "currency units",
    r"guided_first_mean_ms": "until a client of the guided server has the first text",
    r"guided_teacher_first_mean_ms": "of that, until the teacher's server has its first token, by its own counter",
    r"guided_share": "of the guided server's answers, those that the teacher began",
}

_GPU = """\
## On a GPU

Nothing here was run on one. The same program does it, with other models; the engines of a part are alive at the same
time, so that each gets its share of the memory:

```
pip install 'vllm==0.32.0' 'gkt-plugins[vllm]' psutil
python -m benchmarks.vllm --only off --only speculation --target Qwen/Qwen3-8B --draft Qwen/Qwen3-0.6B \\
    --engine-arguments '{"dtype": "bfloat16", "enforce_eager": false, "gpu_memory_utilization": 0.22}'
```

`--distilled FOLDER --only distilled` adds a draft that `gkt distill` made for the target. For a guided server beside
its teacher's, start both, the teacher of `gkt.toml` at `http://127.0.0.1:8000/v1`, and put vLLM's own load on each:

```
vllm serve Qwen/Qwen3-8B --port 8000 --gpu-memory-utilization 0.6
gkt vllm serve Qwen/Qwen3-0.6B --port 8001 --gpu-memory-utilization 0.25 --gkt gkt.toml
vllm bench serve --backend openai-chat --endpoint /v1/chat/completions --base-url http://127.0.0.1:8000 \\
    --model Qwen/Qwen3-8B --dataset-name hf --dataset-path philschmid/mt-bench --max-concurrency 16 --num-prompts 256
```

and the last once more with port 8001 and the student's name."""


def page(payload: Mapping[str, Any]) -> str:
    """Markdown from the JSON object that the benchmark prints."""
    setup = payload["setup"]
    versions = setup["versions"]
    lines = [
        "# vLLM",
        "",
        f"`.venv-vllm/bin/python -m benchmarks.vllm` · [vllm.json](vllm.json) · {setup['date']} · vLLM "
        f"{versions['vllm']}, torch {versions['torch']} · {setup['machine']}, "
        f"{setup['processors']} processors · {setup['seconds']} s",
        "",
        "The CPU build of vLLM, first model runner, float32, without compilation, one "
        "thread for each engine's arithmetic. All engines of a part are alive at the same time and one at a time "
        "computes, in rotating order; every ratio is the median over pairs that ran next to each other, with its "
        "bootstrap interval. The expensive target is the packaged teacher at 117 M parameters, with the same logits. "
        "Above temperature 0, vLLM's CPU build samples from uninitialised memory where it drafts; the plugin mends "
        "that function, and vLLM alone was given the same, since its acceptance would be that of chance otherwise.",
    ]
    for name, (title, text) in _PARTS.items():
        part = setup.get(name)
        if part is None:
            continue
        batches = " and ".join(map(str, part.get("batches", ())))
        lines += ["", f"## {title}", "", text.format_map({**part, "batches": batches}), ""]
        lines += ["| figure | value | 95 % interval | goal | |", "|---|---|---|---|---|"]
        for figure in part["figures"]:
            interval = payload["intervals"].get(figure)
            between = " – ".join(map(_shown, interval)) if interval else ""
            goal = payload["goals"].get(figure, "")
            lines.append(
                f"| `{figure}` | {_shown(payload['figures'][figure])} | {between} | {goal} | {_note(figure)} |"
            )
    return "\n".join(lines) + "\n\n" + _GPU + "\n"


def _note(figure: str) -> str:
    return next((text for pattern, text in _NOTES.items() if re.fullmatch(pattern, figure)), "")


def _shown(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:,.0f}" if abs(value) >= 1000 or isinstance(value, int) else f"{value:.4g}"
