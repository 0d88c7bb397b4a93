"""Every hook, typed: the table of contents of the project.

Collecting hooks say what a plugin *provides*, by name; nothing is built yet, so that everything can be listed, checked
and documented. Observing hooks are told what happened. Loops call the objects that factories built, never a hook.

Common to the collecting hooks:

* They are called once, each time plugins are loaded; what they return is built later, and only what a configuration
  names. They import nothing heavy: a factory's ``build`` does that.
* They return a mapping from a name, as used in ``gkt.toml``, to a :class:`~gkt_plugins.contracts.Factory`.
* A plugin whose hook raises, returns anything else, or claims a name that another distribution already provides, is
  named in ``gkt plugins`` and left out as a whole; with ``strict`` it is a
  :class:`~gkt_plugins.errors.PluginLoadError`.

An implementation may leave out arguments that it does not need. Adding an argument to a hook is a compatible change;
renaming one is not.
"""

# Specifications have no body: pluggy reads their signatures and never calls them.
# mypy: disable-error-code="empty-body"

from __future__ import annotations

from collections.abc import Mapping

from pluggy import HookimplMarker, HookspecMarker

from gkt_plugins.contracts import (
    CuttingPolicy,
    Drafter,
    Engine,
    Exporter,
    Factory,
    LengthPolicy,
    LeniencyRule,
    PriceSource,
    TraceEvent,
    UsageRecord,
    Verifier,
)

__all__ = [
    "gkt_cutting_policies",
    "gkt_drafters",
    "gkt_engines",
    "gkt_exporters",
    "gkt_length_policies",
    "gkt_leniency_rules",
    "gkt_price_sources",
    "gkt_trace",
    "gkt_usage",
    "gkt_verifiers",
    "hookimpl",
    "hookspec",
]

hookspec = HookspecMarker("gkt")

hookimpl = HookimplMarker("gkt")
"""Marks a plugin's implementation of a hook."""


# -------------------------------------------------------------------------------------------------------------- engines


@hookspec
def gkt_engines() -> Mapping[str, Factory[Engine]]:
    """Name the engines that this plugin can talk to or run.

    :returns: name as used in ``[engines.NAME] adapter`` → factory; the other keys of that section are the factory's
        options. What it builds takes text and gives text, asynchronously, and serves as teacher or as student.
    """


# ------------------------------------------------------------------------------------------------------------- guidance


@hookspec
def gkt_length_policies() -> Mapping[str, Factory[LengthPolicy]]:
    """Name the policies that say how much guidance a prompt gets.

    :returns: name as used in ``[pipelines.NAME.guidance] length`` → factory; its options stand beside it. What it
        builds answers, once per request, a number of teacher tokens >= 0; 0 means that the student answers alone.

    Source of the idea of a fixed length: GKT, arXiv:2405.19635, section 3.
    """


@hookspec
def gkt_cutting_policies() -> Mapping[str, Factory[CuttingPolicy]]:
    """Name the policies that say how much of the teacher's text is certain to be handed over.

    :returns: name as used in ``[pipelines.NAME.guidance] cut`` → factory; its options stand beside it. What it builds
        is called each time that teacher text arrives, with all of it, and answers a prefix length in characters that
        never shrinks as the text grows.
    """


# ---------------------------------------------------------------------------------------------------------------- draft


@hookspec
def gkt_drafters() -> Mapping[str, Factory[Drafter]]:
    """Name the drafters that this plugin provides.

    :returns: name as used in ``[speculation] drafter`` → factory; its options stand beside it. What it builds is
        called by our decode loop, and by vLLM's ``custom_class``, once per block: ``propose`` up to gamma tokens for
        every row, then ``commit`` how many of them were kept.

    Source: Leviathan et al. 2023, arXiv:2211.17192.
    """


# --------------------------------------------------------------------------------------------------------------- verify


@hookspec
def gkt_verifiers() -> Mapping[str, Factory[Verifier]]:
    """Name the verifiers that decide how much of a drafted block is kept.

    :returns: name as used in ``[speculation] verifier`` → factory; its options stand beside it. What it builds is
        called by our own decode loop only, once per block, on the model's device.

    Source: Leviathan et al. 2023, arXiv:2211.17192, algorithm 1.
    """


@hookspec
def gkt_leniency_rules() -> Mapping[str, Factory[LeniencyRule]]:
    """Name the leniency rules that this plugin provides.

    :returns: name as used in ``[speculation] rule`` → factory; its options stand beside it. What it builds is
        ``f(p, epsilon)``, called by our decode loop and by engine adapters, once per block.
        ``p``: [k], target probability of each drafted token, in [0, 1], any array type.
        ``epsilon``: the leniency, dimensionless, in (0, 1]; 1 gives back ``p``.
        Result: [k], may exceed 1; token i passes with probability min(1, f_i / q_i).

    Source: Zhou et al. 2024 (DistillSpec), arXiv:2310.08461.
    """


# --------------------------------------------------------------------------------------------------------------- export


@hookspec
def gkt_exporters() -> Mapping[str, Factory[Exporter]]:
    """Name the serving stacks that this plugin can write a target and its draft for.

    :returns: name as used in ``gkt export --to`` → factory; its options are ``--set KEY=VALUE``. What it builds writes
        a folder that explains itself, and says how the stack loads it. What the stack cannot honour is refused, or is
        among its notes; nothing is dropped in silence.
    """


# ----------------------------------------------------------------------------------------------------------------- cost


@hookspec
def gkt_price_sources() -> Mapping[str, Factory[PriceSource]]:
    """Name the places that prices come from.

    :returns: name → factory. What it builds answers the price of a model in integer nano-units of a named currency,
        or None where it does not know it; an unknown price is never zero.
    """


@hookspec
def gkt_usage(record: UsageRecord) -> None:
    """Observe one engine call and attempt.

    Called once per record, after the ledger has it, on one background thread, in order. Raising is logged and hurts
    nobody; an observer that cannot keep up loses records, and the loss is counted and logged.

    :param record: tokens, seconds and cost of the call; None where unknown. It never carries text.
    """


# ---------------------------------------------------------------------------------------------------------------- trace


@hookspec
def gkt_trace(event: TraceEvent) -> None:
    """Observe one verified block of one row, or a row's last step, for example to watch where drafts fail.

    Off unless ``GKT_TRACE=on``, because token ids are text. To record traffic for training, ``[trace]`` in
    ``gkt.toml`` needs no plugin. Called like :func:`gkt_usage`: on the background thread,
    bounded, and harmless when it raises.

    :param event: the row's token ids, what was drafted, how much of it was accepted, and whether the answer is done.
    """
