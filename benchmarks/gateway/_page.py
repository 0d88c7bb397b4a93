"""The page of the figures: what each one is, its interval, its goal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["page"]

_PARTS = {
    "latency": (
        "What a request costs in time",
        "Open loop: {rate:g} requests/s, beginning at random moments, beside {streams} concurrent streams of "
        "{seconds:g} seconds; {turns} turns of each side, {requests} requests a side. The upstream answers after "
        "{upstream_ms} ms; its streams write a token every 200 ms. A guided answer is two calls of the upstream, and "
        "is held against a client that makes both itself. Every token carries the moment it was written.",
    ),
    "throughput": (
        "How much one process answers",
        "Closed loop: {clients} clients, upstream {upstream_ms} ms, {turns} turns of {seconds_each:g} s of each side. "
        "LiteLLM's proxy {litellm_version} runs as its documentation advises for production, with one key, no database "
        "and no callbacks: it keeps no record. Ours has one key too, and keeps its ledger: a call is in it before it "
        "goes out, its end before the answer's last byte, the request right after. Best: {processes} processes each, "
        "LiteLLM with `{litellm_best}`.",
    ),
    "streams": (
        "How many streams it holds",
        "{streams} streams at the same time, one token per second each, {tokens} tokens, begun within {ramp_s:g} s; "
        "one gateway process.",
    ),
    "ledger": (
        "What the ledger costs",
        "SQLite on this disk, every row durable when it is inserted and when it is closed. Alone: {at_once} calls at a "
        "time. Beside: {beside_per_s} calls per second from within the gateway's own process, while it serves "
        "{streams} streams of {tokens_per_s_each} tokens per second, off and on by turns.",
    ),
}

_NOTES = {
    "added_p50_ms": "median through the gateway − median of the direct path",
    "added_p99_ms": "the same of the 99th percentile",
    "guided_added_p50_ms": "guided, over two calls made by the client itself",
    "first_byte_ms": "from the upstream writing the first releasable character to the client having it, median",
    "first_byte_p99_ms": "the same, 99th percentile",
    "first_byte_direct_ms": "median without a gateway",
    "token_p50_ms": "the same way of all further tokens",
    "answer_p50_ms": "the whole request",
    "answer_direct_p50_ms": "the same without a gateway",
    "guided_first_byte_ms": "the teacher's first releasable character",
    "guided_token_p50_ms": "of teacher and student",
    "generator_late_p99_ms": "how late the load generator itself was: all sides suffer from it alike",
    "vs_litellm_rps": "requests/s, one process each, gateway / LiteLLM",
    "vs_litellm_added_p50": "median over the direct path, one process each, gateway / LiteLLM",
    "vs_litellm_best_rps": "requests/s, {processes} processes each; 50 clients and 50 ms allow 1,000 at most",
    "gateway_guided_rps": "two calls of the upstream each: at most 500",
    "streams_held": "open at the same time, complete, no token lost",
    "streams_rss_mb": "most memory of the gateway's process, in 10⁶ bytes",
    "streams_idle_rss_mb": "before the first stream",
    "streams_lost_tokens": "of those that the upstream wrote",
    "streams_token_p50_ms": "from the upstream writing a token to the client having it",
    "streams_cpu_s": "processor time of the gateway over the whole run",
    "ledger_inserts_per_s": "calls opened and closed: two committed writes each",
    "ledger_inserts_beside_per_s": "the same in the gateway's process, beside its streams",
    "ledger_token_added_p50_ms": "what the writing adds to a token's way through the gateway, median",
    "ledger_token_added_p99_ms": "the same of the 99th percentile",
}


def page(payload: Mapping[str, Any]) -> str:
    """Markdown from the JSON object that the benchmark prints."""
    setup = payload["setup"]
    lines = [
        "# Gateway",
        "",
        f"`python -m benchmarks.gateway` · [gateway.json](gateway.json) · {setup['date']} · {setup['machine']}, "
        f"{setup['processors']} processors, shared by load generator, upstream and gateway · {setup['seconds']} s",
        "",
        "Everything runs on loopback, each program in a process of its own, and all sides get the same requests from "
        "the same load generator, in turns. Intervals are bootstrap intervals over turns. The ledger is an SQLite file "
        'with the default `sync = "second"`: its commits are safe from a killed process and do not wait for the disk. '
        f'With `sync = "commit"` a plain request waits twice, a guided one three times, for a disk that here takes '
        f"{setup['disk_sync_ms']:g} ms (median) until 4 kB are there for good.",
    ]
    for name, (title, text) in _PARTS.items():
        part = setup.get(name)
        if part is None:
            continue
        lines += ["", f"## {title}", "", text.format_map(part), ""]
        lines += ["| figure | value | 95 % interval | goal | |", "|---|---|---|---|---|"]
        for figure in part["figures"]:
            interval = payload["intervals"].get(figure)
            between = " – ".join(map(_shown, interval)) if interval else ""
            note = _NOTES.get(figure, "").format_map(part)
            value = payload["figures"][figure]
            lines.append(f"| `{figure}` | {_shown(value)} | {between} | {payload['goals'].get(figure, '')} | {note} |")
    return "\n".join(lines) + "\n"


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or isinstance(value, int) else f"{value:.4g}"
