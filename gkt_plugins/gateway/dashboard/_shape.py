"""Slices as the JSON that the page draws. Unknown is null; money is an exact decimal string; rates are fractions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, get_args

from gkt_plugins.accounting.counterfactual import ASSUMPTIONS
from gkt_plugins.accounting.money import format_nano
from gkt_plugins.contracts import Role
from gkt_plugins.gateway.dashboard._seconds import percentiles
from gkt_plugins.gateway.dashboard._slices import PARTS, Alone, Slice, added
from gkt_plugins.gateway.dashboard.ranges import Range

__all__ = ["shape"]

_MOST_ROWS = 20
"""Of a table that the page shows; what does not fit is counted."""
_MOST_BINS = 16

_ASSUMPTIONS = (*ASSUMPTIONS, "a teacher token is worth a student token: the ratio of the pair was not measured")


def shape(
    asked: Range, slices: Sequence[Mapping[str, Slice]], pipeline: str | None, pipelines: Iterable[str], now: float
) -> dict[str, Any]:
    """``slices``: of ``asked``, in order, by pipeline. ``pipeline``: the one to tell about; None: all together."""
    names = sorted({*pipelines, *(name for each in slices for name in each)})
    by_pipeline = {name: added(each[name] for each in slices if name in each) for name in names}
    chosen = [added(part for name, part in each.items() if pipeline in (None, name)) for each in slices]
    total = added(chosen)
    return {
        "now": now,
        "since": asked.since,
        "until": asked.until,
        "slice_s": asked.width_s,
        "pipeline": pipeline,
        "pipelines": names,
        "money": _money(total),
        "requests": _requests(total),
        "guidance": _guidance(total.guidance_tokens),
        "latency": _latency(total),
        "acceptance": _acceptance(total),
        "errors": _errors(total),
        "series": _series(asked, chosen),
        "by_pipeline": [_row(name, each) for name, each in by_pipeline.items()],
    }


def _money(total: Slice) -> dict[str, Any]:
    currencies = sorted({currency for currency, _ in total.spent_nano})
    unknown = total.unknown_cost.most_common(_MOST_ROWS)
    return {
        "spent": [
            {
                "currency": currency,
                "amount": format_nano(_spent(total, currency)),
                "by_role": {
                    role: format_nano(total.spent_nano[currency, role])
                    for role in get_args(Role)
                    if (currency, role) in total.spent_nano
                },
            }
            for currency in currencies
        ],
        "calls": total.calls,
        "open_calls": total.open_calls,
        "estimated_calls": total.estimated_calls,
        "unknown_calls": total.unknown_cost.total(),
        "unknown": [{"model": model, "why": why, "calls": calls} for (model, why), calls in unknown],
        "teacher_alone": {
            "estimate": True,
            "assumptions": list(_ASSUMPTIONS),
            "by_currency": [
                {"currency": currency, **_alone(sums), "teachers": _teachers(total, currency)}
                for currency, sums in _alone_by_currency(total).items()
            ],
            "not_compared": [
                {"reason": reason, "requests": requests} for reason, requests in total.not_compared.most_common()
            ],
        },
    }


def _alone_by_currency(total: Slice) -> dict[str, Alone]:
    """The most compared currency first."""
    sums: dict[str, Alone] = {}
    for (_, currency), alone in total.alone.items():
        sums.setdefault(currency, Alone()).__iadd__(alone)
    return dict(sorted(sums.items(), key=lambda item: (-item[1].requests, item[0])))


def _alone(sums: Alone) -> dict[str, Any]:
    saved = sums.estimate_nano - sums.actual_nano
    return {
        "requests": sums.requests,
        "actual": format_nano(sums.actual_nano),
        "estimate": format_nano(sums.estimate_nano),
        "saved": format_nano(saved),
        "saving": float(Fraction(saved, sums.estimate_nano)) if sums.estimate_nano else None,
    }


def _teachers(total: Slice, currency: str) -> list[str]:
    return sorted(teacher for teacher, c in total.alone if c == currency)


def _spent(total: Slice, currency: str) -> int:
    return sum(nano for (c, _), nano in total.spent_nano.items() if c == currency)


def _requests(total: Slice) -> dict[str, Any]:
    return {
        "total": total.requests,
        "ok": total.answered,
        "error": total.statuses["error"],
        "refused": total.statuses["refused"],
        "cancelled": total.statuses["cancelled"],
        "guided": total.guided,
        "share_guided": _share(total.guided, total.answered),
        "routes": dict(total.routes.most_common()),
        "degraded": total.degraded,
        "cached": total.cached,
        "retried": total.retried,
        "streamed": total.streamed,
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _guidance(lengths: Counter[int]) -> dict[str, Any]:
    requests = lengths.total()
    if not requests:
        return {"requests": 0, "median": None, "mean": None, "longest": None, "bins": []}
    longest = max(lengths)
    width = next(w for w in _bin_widths() if -(-longest // w) <= _MOST_BINS)
    bins = Counter[int]()
    for tokens, count in lengths.items():
        bins[(tokens - 1) // width] += count
    return {
        "requests": requests,
        "median": _median(lengths),
        "mean": sum(tokens * count for tokens, count in lengths.items()) / requests,
        "longest": longest,
        "bins": [
            {"from": number * width + 1, "to": (number + 1) * width, "requests": bins[number]}
            for number in range(max(bins) + 1)
        ],
    }


def _bin_widths() -> Iterable[int]:
    unit = 1
    while True:
        yield from (unit, 2 * unit, 5 * unit)
        unit *= 10


def _median(lengths: Counter[int]) -> int:
    """By nearest rank."""
    rank, seen = -(-lengths.total() // 2), 0
    for tokens in sorted(lengths):
        seen += lengths[tokens]
        if seen >= rank:
            return tokens
    raise AssertionError("the median of nothing was asked for")


def _latency(total: Slice) -> dict[str, Any]:
    n = total.split_requests
    return {
        "percentiles_s": {
            part: {**percentiles(total.seconds[part]), "requests": int(total.seconds[part].sum())} for part in PARTS
        },
        "mean_s": {part: total.split_s[part] / n for part in PARTS[1:]} if n else None,
        "split_requests": n,
    }


def _acceptance(total: Slice) -> dict[str, Any]:
    return {
        "drafted": total.drafted,
        "accepted": total.accepted,
        "draft_acceptance_rate": _share(total.accepted, total.drafted),
    }


def _errors(total: Slice) -> dict[str, Any]:
    shown = total.errors.most_common(_MOST_ROWS)
    return {
        "rows": [{"status": status, "code": code, "requests": n} for (status, code), n in shown],
        "others": total.errors.total() - sum(n for _, n in shown),
    }


def _series(asked: Range, chosen: Sequence[Slice]) -> dict[str, Any]:
    totals = [percentiles(each.seconds["total"]) for each in chosen]
    firsts = [percentiles(each.seconds["first_token"]) for each in chosen]
    spent = sorted({currency for each in chosen for currency, _ in each.spent_nano})
    alone = sorted({currency for each in chosen for _, currency in each.alone})
    return {
        "start": [number * asked.width_s for number in range(asked.first, asked.last + 1)],
        "guided": [each.guided for each in chosen],
        "unguided": [each.answered - each.guided for each in chosen],
        "not_answered": [each.requests - each.answered for each in chosen],
        "first_token_p50_s": [each["p50"] for each in firsts],
        "total_p50_s": [each["p50"] for each in totals],
        "total_p95_s": [each["p95"] for each in totals],
        "total_p99_s": [each["p99"] for each in totals],
        "spent": {currency: [format_nano(_spent(each, currency)) for each in chosen] for currency in spent},
        "compared": {
            currency: {
                "actual": [format_nano(_compared(each, currency).actual_nano) for each in chosen],
                "estimate": [format_nano(_compared(each, currency).estimate_nano) for each in chosen],
            }
            for currency in alone
        },
    }


def _compared(each: Slice, currency: str) -> Alone:
    sums = Alone()
    for (_, c), alone in each.alone.items():
        if c == currency:
            sums += alone
    return sums


def _row(name: str, each: Slice) -> dict[str, Any]:
    return {
        "pipeline": name,
        "requests": each.requests,
        "not_answered": each.requests - each.answered,
        "share_guided": _share(each.guided, each.answered),
        "total_p50_s": percentiles(each.seconds["total"])["p50"],
        "total_p95_s": percentiles(each.seconds["total"])["p95"],
        "spent": {
            currency: format_nano(_spent(each, currency)) for currency in sorted({c for c, _ in each.spent_nano})
        },
        "unknown_calls": each.unknown_cost.total(),
        "teacher_alone": {currency: _alone(sums) for currency, sums in _alone_by_currency(each).items()},
    }
