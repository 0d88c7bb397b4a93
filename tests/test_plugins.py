"""Plugins: what they provide is merged, what is wrong with them is named, and none of them can hurt the host."""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from gkt_plugins import hookspecs
from gkt_plugins.contracts import BuildContext, Factory, Options, TraceEvent, Usage, UsageRecord
from gkt_plugins.errors import ConfigError, PluginLoadError
from gkt_plugins.hookspecs import hookimpl
from gkt_plugins.plugins import FAMILIES, load_plugins
from gkt_plugins.plugins._loading import OBSERVING_HOOKS
from gkt_plugins.testing.plugins import plugins_from

RECORD = UsageRecord("r", 0, "student", 0, "edge", "small", "final", Usage())
EVENT = TraceEvent("r", (1, 2), (2,), 1)


class EchoOptions(Options):
    text: str
    times: int = 1


def _echo(options: EchoOptions, context: BuildContext) -> str:
    return f"{context.name}: {options.text * options.times}"


class Everything:
    """Implements every hook there is."""

    GKT_CONTRACT = 1

    def __init__(self):
        self.seen = []

    def _one(self, name):
        return {name: Factory(_echo, EchoOptions, summary=name)}

    @hookimpl
    def gkt_engines(self):
        return self._one("an engine")

    @hookimpl
    def gkt_length_policies(self):
        return self._one("a length policy")

    @hookimpl
    def gkt_cutting_policies(self):
        return self._one("a cutting policy")

    @hookimpl
    def gkt_drafters(self):
        return self._one("a drafter")

    @hookimpl
    def gkt_verifiers(self):
        return self._one("a verifier")

    @hookimpl
    def gkt_leniency_rules(self):
        return self._one("a leniency rule")

    @hookimpl
    def gkt_exporters(self):
        return self._one("an exporter")

    @hookimpl
    def gkt_price_sources(self):
        return self._one("a price source")

    @hookimpl
    def gkt_usage(self, record):
        self.seen.append(record)

    @hookimpl
    def gkt_trace(self, event):
        self.seen.append(event)


class Engines:
    """Provides what it is given as ``gkt_engines``, under the contract it is given."""

    def __init__(self, provided, contract=1):
        self._provided = provided
        if contract is not None:
            self.GKT_CONTRACT = contract

    @hookimpl
    def gkt_engines(self):
        if isinstance(self._provided, BaseException):
            raise self._provided
        return self._provided


ONE_ENGINE = {"one": Factory(_echo, EchoOptions)}


def hooks() -> list[str]:
    """The hooks in the order of ``hookspecs.py``."""
    return [name for name in vars(hookspecs) if name.startswith("gkt_")]


# ----------------------------------------------------------------------------------------------------------- every hook


def test_every_collecting_hook_is_reached_through_the_method_of_its_name():
    plugins = plugins_from(Everything())
    assert [f"gkt_{family}" for family in FAMILIES] == [hook for hook in hooks() if hook not in OBSERVING_HOOKS]
    for family, noun in FAMILIES.items():
        article = "an" if family[0] == "e" else "a"
        name = f"{article} {noun.removesuffix(' adapter')}"
        provided = getattr(plugins, family)()
        assert provided is plugins.family(family)
        assert provided.build(name, {"text": "x", "times": 2}, BuildContext(name="here")) == "here: xx"
        assert provided.provider(name).name == "Everything"


def test_observers_are_told_in_order_and_off_the_callers_thread():
    plugin = Everything()
    threads = []
    plugin.seen = SimpleNamespace(append=lambda item: threads.append((item, threading.current_thread())))
    plugins = plugins_from(plugin, env={"GKT_TRACE": "on"})
    plugins.record_usage(RECORD)
    plugins.trace(EVENT)
    plugins.close()
    assert [item for item, _ in threads] == [RECORD, EVENT]
    assert {thread for _, thread in threads}.isdisjoint({threading.current_thread()})
    assert plugins.dropped == 0


def test_traces_are_off_unless_asked_for():
    plugin = Everything()
    plugins = plugins_from(plugin)
    assert not plugins.tracing
    plugins.trace(EVENT)
    plugins.close()
    assert plugin.seen == []
    assert plugins_from(plugin, env={"GKT_TRACE": "on"}).tracing


def test_every_hook_is_documented_in_the_order_of_the_specifications():
    page = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text(encoding="utf-8")
    headings = [
        line.removeprefix("### `").partition("(")[0] for line in page.splitlines() if line.startswith("### `gkt_")
    ]
    assert headings == hooks()


def test_every_hook_is_public_and_says_what_it_takes_and_returns():
    assert set(hooks()) | {"hookimpl", "hookspec"} == set(hookspecs.__all__)
    for name in hooks():
        text = getattr(hookspecs, name).__doc__
        assert ":param" in text if name in OBSERVING_HOOKS else ":returns:" in text


# -------------------------------------------------------------------------------------------------------- what is built


def test_an_unknown_name_is_answered_with_the_nearest_known_one():
    engines = plugins_from(Engines(ONE_ENGINE)).engines()
    with pytest.raises(ConfigError, match=r"^unknown engine adapter 'onee'; did you mean 'one'\?$"):
        engines.build("onee", {}, BuildContext())


def test_an_unknown_name_that_resembles_nothing_is_answered_with_all_that_are_known():
    with pytest.raises(ConfigError, match=r"^unknown cutting policy 'zzz'; known, nearest first: .*\bword\b"):
        plugins_from().cutting_policies().named("zzz")


def test_an_unknown_name_mentions_the_plugins_that_were_left_out():
    plugins = plugins_from(names={"broken": Engines(3)}, strict=False)
    with pytest.raises(ConfigError, match=r"left out: broken 0 \(plugin 'broken'\), see 'gkt plugins'"):
        plugins.engines().named("mine")


def test_options_are_validated_before_anything_is_built():
    engines = plugins_from(Engines(ONE_ENGINE)).engines()
    with pytest.raises(ConfigError) as caught:
        engines.build("one", {"texte": "x", "times": "many"}, BuildContext())
    assert str(caught.value).splitlines() == [
        "engine adapter 'one': text is missing",
        "engine adapter 'one': times must be a valid integer, unable to parse string as an integer, got 'many'",
        "engine adapter 'one': texte is not a known key; did you mean 'text'?",
    ]


def test_options_that_are_validated_already_are_taken_as_they_are():
    engines = plugins_from(Engines(ONE_ENGINE)).engines()
    assert engines.build("one", EchoOptions(text="y"), BuildContext(name="n")) == "n: y"


def test_provided_names_are_a_mapping_that_does_not_change():
    engines = plugins_from(Engines(ONE_ENGINE)).engines()
    assert engines["one"] is ONE_ENGINE["one"]
    assert "two" not in engines
    assert engines.get("two") is None
    with pytest.raises(TypeError):
        engines["two"] = ONE_ENGINE["one"]


# ------------------------------------------------------------------------------------------------------- broken plugins


class Misspelt:
    GKT_CONTRACT = 1

    @hookimpl
    def gkt_engine(self):
        return {}


class WrongArgument:
    GKT_CONTRACT = 1

    @hookimpl
    def gkt_usage(self, records):
        pass


class Wrapping:
    GKT_CONTRACT = 1

    @hookimpl(wrapper=True)
    def gkt_engines(self):
        return (yield)


BROKEN = {
    "hook raises": (Engines(RuntimeError("boom")), r"gkt_engines raised RuntimeError\('boom'\)"),
    "no mapping": (Engines(["one"]), "gkt_engines must return a mapping from name to Factory, got list"),
    "nothing": (Engines(None), "gkt_engines must return a mapping from name to Factory, got NoneType"),
    "no factory": (Engines({"one": print}), r"gkt_engines\['one'\] must be a Factory, got builtin_function_or_method"),
    "no name": (Engines({1: ONE_ENGINE["one"]}), "gkt_engines must name each Factory with a string, got 1"),
    "no options": (
        Engines({"one": Factory(_echo, dict)}),
        r"the options of gkt_engines\['one'\] must be a subclass of gkt_plugins.contracts.Options",
    ),
    "no contract": (Engines({}, contract=None), "states no contract version; add 'GKT_CONTRACT = 1' to it"),
    "a newer contract": (Engines({}, contract=2), "written for contract 2 and this gkt-plugins knows up to 1; upgrade"),
    "contract of text": (Engines({}, contract="1"), "GKT_CONTRACT must be an integer from 1 to 1, got '1'"),
    "misspelt hook": (Misspelt(), r"there is no hook 'gkt_engine'; did you mean 'gkt_engines'\?"),
    "unknown argument": (WrongArgument(), "its hooks do not fit: .*records"),
    "wrapper": (Wrapping(), "gkt_engines is a wrapper, and hooks here only collect or observe"),
    "no hooks": (
        SimpleNamespace(GKT_CONTRACT=1),
        "implements no hook; mark its functions with gkt_plugins.hookspecs.hookimpl",
    ),
    "a name that is taken": (
        Engines({"transformers": ONE_ENGINE["one"]}),
        r"engine adapter 'transformers' is already provided by gkt-plugins .* \(plugin 'transformers'\); "
        "block one of the two with GKT_PLUGINS_BLOCK",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_named_and_left_out_and_the_others_work(kind, caplog):
    broken, reason = BROKEN[kind]
    with caplog.at_level(logging.WARNING):
        plugins = plugins_from(names={"broken": broken, "sound": Engines(ONE_ENGINE)}, strict=False)
    infos = {info.name: info for info in plugins.infos}
    assert (infos["broken"].status, infos["sound"].status) == ("failed", "loaded")
    assert set(plugins.engines()) == {"one", "openai", "tgi", "transformers", "vllm"}
    assert plugins.engines().provider("transformers").distribution == "gkt-plugins"
    assert re.search(reason, infos["broken"].reason)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == f"broken 0 (plugin 'broken') is left out: {infos['broken'].reason}"


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_fatal_when_strict(kind):
    broken, reason = BROKEN[kind]
    with pytest.raises(PluginLoadError, match=rf"^broken 0 \(plugin 'broken'\) is left out: .*{reason}"):
        plugins_from(names={"broken": broken})


def test_a_plugin_that_fails_in_one_hook_gives_nothing_in_the_others():
    broken = type("Half", (Everything,), {"gkt_verifiers": hookimpl(lambda self: 3)})()
    plugins = plugins_from(names={"half": broken}, strict=False)
    assert "an engine" not in plugins.engines()
    plugins.record_usage(RECORD)
    plugins.close()
    assert broken.seen == []


# ------------------------------------------------------------------------------------------------- what may load at all


def test_off_keeps_what_ships_and_nothing_else():
    plugins = plugins_from(Engines(ONE_ENGINE), env={"GKT_PLUGINS": "off"})
    shipping = dict.fromkeys(("core", "llamacpp", "openai", "sglang", "tgi", "transformers", "vllm"), "loaded")
    assert {info.name: info.status for info in plugins.infos} == shipping | {"Engines": "blocked"}
    assert plugins.infos[-1].reason == "GKT_PLUGINS=off"
    assert set(plugins.engines()) == {"openai", "tgi", "transformers", "vllm"}


@pytest.mark.parametrize("written", ["Engines", " engines ,", "other,ENGINES"])
def test_a_blocked_plugin_stays_out(written):
    plugins = plugins_from(Engines(ONE_ENGINE), env={"GKT_PLUGINS_BLOCK": written}, strict=False)
    assert (plugins.infos[-1].status, plugins.infos[-1].reason) == ("blocked", "GKT_PLUGINS_BLOCK")
    assert "one" not in plugins.engines()


def test_a_blocked_name_that_is_not_installed_is_said_not_ignored(caplog):
    plugins_from(env={"GKT_PLUGINS_BLOCK": "trnsformers"}, strict=False)
    assert "GKT_PLUGINS_BLOCK names 'trnsformers', and no such plugin is installed" in caplog.text
    with pytest.raises(PluginLoadError, match="names 'trnsformers'"):
        plugins_from(env={"GKT_PLUGINS_BLOCK": "trnsformers"})


@pytest.mark.parametrize("name", ["GKT_PLUGINS", "GKT_TRACE"])
def test_a_switch_that_is_neither_on_nor_off_is_refused(name):
    with pytest.raises(ConfigError, match=rf"^{name} must be 'on' or 'off', got 'none'$"):
        plugins_from(env={name: "none"})


def test_loading_twice_gives_two_that_do_not_share_anything():
    first, second = load_plugins(env={}), load_plugins(env={})
    first.close()
    assert {family: set(first.family(family)) for family in FAMILIES} == {
        family: set(second.family(family)) for family in FAMILIES
    }
    assert first.engines() is not second.engines()
