"""Looks at everything that a configuration needs before a request does: keys, endpoints, prices, ledger, cache."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gkt_plugins._wording import suggestion
from gkt_plugins.contracts import BuildContext, Examinable, Finding, Price, PriceSource
from gkt_plugins.errors import ConfigError, GktError

if TYPE_CHECKING:
    from gkt_plugins.config import Config
    from gkt_plugins.contracts import Engine
    from gkt_plugins.plugins import Plugins

__all__ = ["PREFIX_ROUTE", "Examination", "Part", "examine"]

PREFIX_ROUTE = "prefix route"
"""What an engine calls its finding of how an answer is continued; it matters to students that are guided."""


@dataclass(frozen=True, slots=True)
class Part:
    """An engine, or another thing that the configuration names, and what was found."""

    kind: str
    """``engine``, ``pipeline``, ``ledger``, ``cache`` or ``vllm``."""
    name: str
    findings: tuple[Finding, ...] = ()
    error: str = ""
    """Why it cannot be used; empty where it can."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found of all parts."""

    parts: tuple[Part, ...]

    @property
    def ok(self) -> bool:
        """Every part can be used; some may work less well than they could."""
        return not any(part.error for part in self.parts)


async def examine(
    config: Config,
    plugins: Plugins,
    env: Mapping[str, str],
    *,
    engines: Sequence[str] = (),
    refresh: bool = False,
    around: str | None = None,
) -> Examination:
    """Look at ``engines``, or at all of them and at everything else.

    :param env: stands in for ``os.environ``.
    :param refresh: ask endpoints again that have been asked before.
    :param around: an adapter whose engines are the server that everything runs in; they are not made for a look.
    :raises ConfigError: there is no engine of that name.
    """
    for name in engines:
        if name not in config.engines:
            raise ConfigError(f"there is no engine {name!r}; {suggestion(name, config.engines)}")
    names = list(engines or config.engines)
    prices = await asyncio.to_thread(_prices, config, plugins, env)
    parts = list(
        await asyncio.gather(
            *(
                _around(name, around)
                if config.engines[name].adapter == around
                else _engine(name, config, plugins, env, prices, refresh=refresh)
                for name in names
            )
        )
    )
    if not engines:
        by_name = {part.name: part for part in parts}
        parts += [_pipeline(name, config, by_name) for name in config.pipelines]
        parts.append(await _ledger(config, env))
        if config.cache is not None:
            parts.append(await _cache(config, env))
    return Examination(tuple(parts))


async def _around(name: str, adapter: str) -> Part:
    return Part("engine", name, (Finding("adapter", adapter), Finding("is", "the server around it", True)))


async def _engine(
    name: str,
    config: Config,
    plugins: Plugins,
    env: Mapping[str, str],
    prices: PriceSource | GktError,
    *,
    refresh: bool,
) -> Part:
    section = config.engines[name]
    context = BuildContext(
        name=name, base_dir=config.base_dir, env=env, resources={"config": config, "plugins": plugins}
    )
    findings = [Finding("adapter", section.adapter)]
    key_env = getattr(section.options, "api_key_env", None)
    if key_env is not None:
        there = bool(env.get(key_env))
        findings.append(Finding("key", f"in {key_env}" if there else f"{key_env} is not set", there))
    engine: Engine | None = None
    try:
        engine = await asyncio.to_thread(plugins.engines().build, section.adapter, section.options, context)
        findings.append(_price(engine.model, prices))
        if isinstance(engine, Examinable):
            guided = any(one.teacher and one.student == name for one in config.pipelines.values())
            for finding in await engine.examine(refresh=refresh):
                matters = guided or finding.name != PREFIX_ROUTE
                findings.append(finding if matters else replace(finding, good=None))
        else:
            findings.append(Finding("loads", "yes", True))
    except GktError as exc:
        return Part("engine", name, tuple(findings), str(exc))
    finally:
        if engine is not None:
            await engine.aclose()
    return Part("engine", name, tuple(findings))


def _prices(config: Config, plugins: Plugins, env: Mapping[str, str]) -> PriceSource | GktError:
    from gkt_plugins.accounting.accountant import price_sources

    try:
        return price_sources(config, plugins, env)
    except GktError as exc:
        return exc


def _price(model: str, prices: PriceSource | GktError) -> Finding:
    if isinstance(prices, GktError):
        return Finding("price", "unknown", False, str(prices))
    price = prices.price(model)
    if price is None:
        return Finding("price", "unknown", False, f"give one in [prices.{_key(model)}], or costs stay unknown")
    return Finding("price", _shown(price), True)


def _shown(price: Price) -> str:
    from gkt_plugins.accounting.money import format_nano

    amounts = [
        f"{format_nano(amount)} {what}"
        for amount, what in (
            (price.input_nano, "in"),
            (price.output_nano, "out, per million tokens"),
            (price.hour_nano, "per hour"),
        )
        if amount is not None
    ]
    return f"{price.currency} {', '.join(amounts)} ({price.source})"


def _key(model: str) -> str:
    """``model`` as a key of TOML."""
    return model if model.replace("-", "").replace("_", "").isalnum() else f'"{model}"'


def _pipeline(name: str, config: Config, engines: Mapping[str, Part]) -> Part:
    section = config.pipelines[name]
    lame = [one for one in (section.teacher, section.student) if one and engines[one].error]
    findings = [
        Finding("answers", f"{section.teacher} guides, {section.student} completes", not lame)
        if section.teacher
        else Finding("answers", f"{section.student} alone, without guidance", not lame)
    ]
    route = next((one for one in engines[section.student].findings if one.name == PREFIX_ROUTE), None)
    if route is not None and section.teacher:
        findings.append(replace(route, name="guidance goes in as"))
    teacher_lame, student_lame = section.teacher in lame, section.student in lame
    if student_lame:
        error = f"its student {section.student} cannot be used"
    elif teacher_lame and section.guidance.on_teacher_error == "fail":
        error = f"its teacher {section.teacher} cannot be used, and on_teacher_error is 'fail'"
    else:
        error = ""
        if teacher_lame:
            findings.append(
                Finding("guidance", "none while the teacher cannot be used; the student answers alone", False)
            )
    return Part("pipeline", name, tuple(findings), error)


async def _ledger(config: Config, env: Mapping[str, str]) -> Part:
    from gkt_plugins.accounting.ledger import Ledger
    from gkt_plugins.accounting.location import Location

    try:
        url = config.ledger.resolved_url(env)
        where = str(Location.of(url, config.base_dir))
        ledger = await asyncio.to_thread(Ledger.open, url, base_dir=config.base_dir)
        await ledger.aclose()
    except GktError as exc:
        return Part("ledger", "", (), str(exc))
    return Part("ledger", "", (Finding("opens", where, True),))


async def _cache(config: Config, env: Mapping[str, str]) -> Part:
    from gkt_plugins.guidance.cache import open_cache

    assert config.cache is not None
    try:
        cache = open_cache(config.cache, config.base_dir, env)
        try:
            await cache.check()
        finally:
            await cache.aclose()
    except GktError as exc:
        return Part("cache", "", (), str(exc))
    return Part("cache", "", (Finding("reads and writes", "yes", True),))
