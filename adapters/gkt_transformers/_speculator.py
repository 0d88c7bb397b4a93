"""From a ``[speculation]`` section to a decode loop over a loaded model."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gkt_plugins.config import Config, SpeculationSection
from gkt_plugins.contracts import BuildContext
from gkt_plugins.distill.traffic import TrafficRecorder
from gkt_plugins.errors import ConfigError
from gkt_plugins.plugins import Plugins, load_plugins
from gkt_plugins.speculation.alarm import AcceptanceAlarm
from gkt_plugins.speculation.counts import Counts
from gkt_plugins.speculation.factories import LOSSLESS_VERIFIERS
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.requests import DecodeRequest, DecodeResult
from gkt_plugins.speculation.target import TransformersModel
from gkt_transformers._loading import load_tokenizer
from gkt_transformers.report import Report

__all__ = ["Speculator", "build_loop", "lenient_note"]

_MAX_BATCH = 256
"""Rows of one ``generate`` call that are decoded together; more wait for a place."""


def build_loop(
    model: Any,
    section: SpeculationSection | None,
    context: BuildContext,
    *,
    tokenizer: Any = None,
    max_batch: int = _MAX_BATCH,
) -> DecodeLoop:
    """A loop over ``model``, a ``PreTrainedModel``; without ``section`` it decodes plainly.

    Its blocks are traced where ``context.resources["config"]`` has a ``[trace]`` section, or a plugin observes them.

    :param tokenizer: the target's, to compare the draft's with; None compares sizes only.
    :raises ConfigError: the architecture, the draft or an option does not fit.
    """
    target = TransformersModel(model)
    plugins = context.resources.get("plugins") or load_plugins()
    assert isinstance(plugins, Plugins)
    config = context.resources.get("config")
    recorders = {}
    if config is not None and config.trace is not None:
        recorder = TrafficRecorder.from_section(config.trace, config.base_dir, target=model.name_or_path)
        recorders = {f"[trace] {recorder.path}": recorder}
    on_block = plugins.tracer(recorders)
    if section is None:
        return DecodeLoop(target, max_batch=max_batch, on_block=on_block)
    resources = {**context.resources, "target": target, "tokenizer": tokenizer}
    rule = plugins.leniency_rules().build(section.rule, section.rule_options, context)
    verifier = plugins.verifiers().build(
        section.verifier, section.verifier_options, replace(context, resources={**resources, "rule": rule})
    )
    drafter = plugins.drafters().build(section.drafter, section.drafter_options, replace(context, resources=resources))
    return DecodeLoop(
        target,
        drafter=drafter,
        verifier=verifier,
        gamma=section.gamma,
        max_batch=max_batch,
        on_block=on_block,
    )


def lenient_note(section: SpeculationSection | None) -> tuple[str, ...]:
    """What every answer says when its verifier may accept more than the target would."""
    if section is None or section.verifier in LOSSLESS_VERIFIERS:
        return ()
    if section.verifier == "lenient":
        return (f"lenient: drafted tokens passed by the rule {section.rule!r} with epsilon {section.epsilon:g}",)
    return (f"lenient: drafted tokens passed by the verifier {section.verifier!r}, which may not be exact",)


class Speculator:
    """One model with its drafter and verifier, for calls of ``generate``. Calls from several threads take turns."""

    def __init__(self, loop: DecodeLoop, notes: tuple[str, ...] = (), *, alarm: AcceptanceAlarm | None = None) -> None:
        """``notes`` are part of every report; so is what ``alarm`` says while it is raised."""
        self._alarm = alarm
        self._loop = loop
        self._notes = notes
        self._lock = threading.Lock()

    @classmethod
    def for_model(cls, model: Any, config: Config) -> Speculator:
        """What ``config.speculation`` says, for ``model``.

        :raises ConfigError: there is no such section, or it does not fit the model.
        """
        section = config.speculation
        if section is None:
            raise ConfigError(f"{config.source or 'the configuration'} has no [speculation] section; add one")
        context = BuildContext(base_dir=config.base_dir, env=os.environ, resources={"config": config})
        loop = build_loop(model, section, context, tokenizer=_tokenizer_beside(model))
        return cls(loop, lenient_note(section), alarm=AcceptanceAlarm.from_section(section))

    def decode(
        self, requests: Sequence[DecodeRequest], *, on_tokens: Callable[[int, Sequence[int]], None] | None = None
    ) -> tuple[list[DecodeResult], Report]:
        """Decode all; ``on_tokens`` gets a request's place and its new tokens after each step.

        :raises GktError: the first row that failed.
        """
        with self._lock:
            before = self._loop.timings.total
            results = self._loop.run(requests, on_tokens=on_tokens)
            seconds = self._loop.timings.total - before
        for result in results:
            if result.error is not None:
                raise result.error
        notes = dict.fromkeys([*self._notes, *(note for result in results for note in self._notes_of(result))])
        if self._alarm is not None:
            for result in results:
                self._alarm.observe(result.counts)
            if self._alarm.note is not None:
                notes[f"alarm: {self._alarm.note}"] = None
        report = Report(
            rows=len(results),
            tokens=sum(len(result.token_ids) for result in results),
            seconds=seconds,
            counts=sum((result.counts for result in results), Counts()),
            notes=tuple(notes),
        )
        return results, report

    def _notes_of(self, result: DecodeResult) -> tuple[str, ...]:
        budget, context = result.request.sampling.max_tokens, self._loop.target.context
        if result.finish_reason == "length" and len(result.token_ids) < budget:
            return (*result.notes, f"cut: a row reached the model's context of {context} tokens")
        return result.notes


def _tokenizer_beside(model: Any) -> Any:
    """The tokenizer in the folder that ``model`` came from; None where there is none."""
    folder = Path(model.name_or_path)
    if not model.name_or_path or not folder.is_dir() or not any(folder.glob("tokenizer*")):
        return None
    return load_tokenizer(str(folder))
