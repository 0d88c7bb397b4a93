"""In the frontend, once: reads ``gkt.toml``, fills in vLLM's own arguments, and freezes what workers are told.

What is configured and impossible stops the start: a server that quietly runs without it is the worst outcome.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gkt_plugins
from gkt_plugins.config import Config, SpeculationSection
from gkt_plugins.errors import ConfigError
from gkt_plugins.exporting import GAMMA_FOR_AUTO, model_config, same_vocabulary
from gkt_plugins.speculation.vocabulary import check_vocabularies
from gkt_vllm import SECTION
from gkt_vllm.counters import count_each_request
from gkt_vllm.frozen import FrozenFile, freeze
from gkt_vllm.launch import unloaded
from gkt_vllm.limits import (
    asks_for_second_runner,
    differences,
    refuse_dropped,
    refuse_idle,
    refuse_second_runner,
)
from gkt_vllm.pipelines import guided_pipeline
from gkt_vllm.section import DrafterSettings, GktSection, LeniencySettings, WorkerSettings
from gkt_vllm.versions import check_version, release

__all__ = ["Start", "decide"]

_log = logging.getLogger("vllm.gkt")


@dataclass
class Start:
    """What the configuration means for the engine that is about to start."""

    section: GktSection
    config: Config
    frozen: FrozenFile
    speculative_config: dict[str, Any] | None = None
    """vLLM's own argument; None: leave what the operator gave."""
    synchronous: bool = False
    """vLLM must not schedule a step before the one before it is done."""
    guidance: str = ""
    """For the banner, where a pipeline guides the requests of a server."""
    active: list[str] = field(default_factory=list)
    """For the banner: what is on."""
    notes: list[str] = field(default_factory=list)
    """For the banner: what is done differently from the configuration."""

    def additional_config(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """``given`` with the section as workers read it."""
        return dict(given) | {SECTION: self.section.model_dump(exclude_none=True)}

    def async_scheduling(self, given: bool | None) -> bool | None:
        """vLLM's own argument, ``given`` by the operator. :raises ConfigError: it asks for what our drafter cannot."""
        if self.synchronous and given:
            raise ConfigError(
                "vllm.drafts_by = 'gkt' needs each step's outcome before the next one; remove --async-scheduling"
            )
        return False if self.synchronous else given

    def check(self, vllm_config: Any, *, serves: bool, env: Mapping[str, str]) -> None:
        """After vLLM has made its configuration: is there anything that it will not do?

        :param serves: this is an HTTP server. ``env``: what it was started with.
        :raises ConfigError: leniency without drafts, guidance whose endpoint plugin vLLM will not load, or an argument
            that it left out.
        """
        if serves and (why := unloaded(env)):
            if self.guidance:
                raise ConfigError(f"requests would not be guided, because {why}")
            self.notes.append(f"requests are not on record, and no leniency is refused, because {why}")
        if self.guidance and not serves:
            self.active.remove(self.guidance)
            self.notes.append("what this engine is asked itself is not guided; a server, Pipeline and 'gkt run' guide")
        if self._leniency is not None and vllm_config.speculative_config is None:
            raise ConfigError("leniency needs drafts, and this engine has none; set speculation.draft, or remove it")
        refuse_dropped(self.config, self.speculative_config, vllm_config)
        self.notes += differences(self.config, self.speculative_config, vllm_config)
        if vllm_config.use_v2_model_runner and vllm_config.speculative_config is not None:
            method = vllm_config.speculative_config.rejection_sample_method
            if self._leniency is not None and method == "block":
                raise ConfigError("leniency and block verification exclude each other; remove one of them")

    def count_requests(self, vllm_config: Any) -> None:
        """Have each request's drafts counted, where there are any and this vLLM can."""
        if vllm_config.speculative_config is None:
            return
        if count_each_request(vllm_config):
            self.active.append("drafts counted by request")
        else:
            self.notes.append(
                "this vLLM does not count drafts by request: records have none of them, /metrics has their totals"
            )

    def announce(self, vllm_config: Any, version: str) -> None:
        """The banner."""
        runner = "V2" if vllm_config.use_v2_model_runner else "V1"
        active = "; ".join(self.active) or "nothing but accounting"
        _log.info("gkt-plugins %s in vLLM %s, model runner %s: %s", gkt_plugins.__version__, version, runner, active)
        for note in self.notes:
            _log.warning("gkt: %s", note)

    @property
    def _leniency(self) -> LeniencySettings | None:
        return None if self.section.workers is None else self.section.workers.leniency


def decide(section: GktSection, model: str | None, speculative_config: object, version: str) -> Start:
    """Read the file that ``section`` names, and decide.

    :param model: the target, as vLLM was given it: a folder, or a name on the Hub. None: it is not known yet.
    :param speculative_config: what the operator gave on vLLM's own command line; it goes before the file.
    :raises ConfigError: the file is wrong, or asks for what vLLM cannot do.
    :raises BackendError: this vLLM was not tried.
    """
    frozen = freeze(Path(section.config))
    config = frozen.config()
    refuse_idle(config)
    start = Start(section, config, frozen)
    if warning := check_version(version, allow_untested=config.vllm.allow_untested_version):
        start.notes.append(warning)
    leniency = None
    if config.speculation is not None:
        leniency = _leniency(config, config.speculation)
        target = Path(model) if model is not None and Path(model).is_dir() else None
        _draft(start, config, config.speculation, target, speculative_config, version)
        if leniency is not None:
            usual = "exact" if leniency.epsilon == 1 else f"epsilon {leniency.epsilon:g}"
            asked = f", down to {leniency.least:g} where a request asks" if leniency.least < leniency.epsilon else ""
            start.active.append(f"lenient verification by the rule {leniency.rule}: {usual}{asked}")
    if name := guided_pipeline(config, section):
        start.guidance = f"guidance, pipelines.{name} by {config.pipelines[name].teacher}"
        start.active.append(start.guidance)
    source = str((config.source or Path(section.config)).resolve())
    workers = WorkerSettings(leniency=leniency, drafter=_own_drafter(config, start))
    if config.trace is not None:
        if workers.drafter is not None:
            start.active.append(f"recording answers in {config.base_dir / config.trace.path}")
        else:
            start.notes.append("[trace] records what our own drafter drafts for; set vllm.drafts_by = 'gkt' to record")
    start.section = section.model_copy(update={"config": source, "workers": workers})
    return start


def _leniency(config: Config, speculation: SpeculationSection) -> LeniencySettings | None:
    """What workers have to know, where any request may be verified leniently."""
    if speculation.verifier not in ("exact", "block", "lenient"):
        raise ConfigError(
            f"vLLM verifies drafts itself and cannot run the verifier {speculation.verifier!r}; set "
            "speculation.verifier to 'exact', 'block' or 'lenient'"
        )
    lenient = speculation.verifier == "lenient"
    epsilon = speculation.epsilon if lenient else 1.0
    least = min(config.vllm.max_leniency, epsilon)
    if least == 1.0:
        return None
    options = speculation.rule_options.model_dump()
    return LeniencySettings(rule=speculation.rule, rule_options=options, epsilon=epsilon, least=least)


def _draft(
    start: Start,
    config: Config,
    speculation: SpeculationSection,
    target: Path | None,
    speculative_config: object,
    version: str,
) -> None:
    """vLLM's own speculation, filled in from the file."""
    if speculative_config is not None:
        start.active.append("drafts as --speculative-config says")
        start.notes.append("--speculative-config goes before [speculation]: its drafter and gamma are not used")
        return
    own = config.vllm.drafts_by == "gkt"
    gamma = speculation.gamma
    if gamma == "auto":
        gamma = GAMMA_FOR_AUTO
        if not own:
            note = f"gamma = 'auto' has no counterpart in vLLM: {gamma} is used; 'gkt plan' finds the best one"
            start.notes.append(note)
    filled: dict[str, Any] = {"num_speculative_tokens": gamma}
    options = speculation.drafter_options.model_dump()
    folder = _draft_folder(config, options["draft"]) if speculation.drafter == "model" else None
    if own:
        filled |= _own_method(start, version)
        if folder is not None:
            _check_sizes(target, folder)
    elif speculation.drafter == "model":
        if folder is not None and target is not None:
            same_vocabulary(target, folder, "vLLM")
        filled |= {"method": "draft_model", "model": str(folder or options["draft"])}
        filled |= {"draft_sample_method": "probabilistic"}
    elif speculation.drafter == "prompt_lookup":
        filled |= {"method": "ngram", "prompt_lookup_max": options["max_ngram"], "prompt_lookup_min": 1}
    else:
        raise ConfigError(
            f"vLLM has no drafter {speculation.drafter!r} of its own; set vllm.drafts_by = 'gkt', or "
            "speculation.drafter to 'model' or 'prompt_lookup'"
        )
    if speculation.verifier == "block":
        filled["rejection_sample_method"] = "block"
    if config.vllm.largest_batch is not None:
        # vLLM carries the last entry on to every larger batch.
        largest = config.vllm.largest_batch
        filled["num_speculative_tokens_per_batch_size"] = [[1, largest, gamma], [largest + 1, largest + 1, 0]]
    refuse_second_runner(filled["method"], version, os.environ)
    start.speculative_config = filled
    hub = f" {options['draft']} of the Hub" if speculation.drafter == "model" and folder is None else ""
    tokens = f"{gamma} tokens a block"
    if own and speculation.gamma == "auto":
        tokens = f"as many tokens a block as pay, {gamma} at most"
    if config.vllm.largest_batch is not None:
        tokens += f", none in batches of more than {config.vllm.largest_batch}"
    start.active.append(f"drafts by {speculation.drafter}{hub}, {tokens}")


def _own_method(start: Start, version: str) -> dict[str, Any]:
    """Which method of vLLM's our own drafter runs as, on the model runner that the environment asks for."""
    runner = "first"
    filled = {"method": "custom_class", "model": "gkt_vllm.own_drafter.OwnDrafter"}
    if asks_for_second_runner(os.environ):
        if release(version) in ("0.28", "0.31"):
            raise ConfigError(
                f"drafts_by = 'gkt' runs on the second model runner of vLLM 0.32, and this is {version}; unset "
                "VLLM_USE_V2_MODEL_RUNNER, or set vllm.drafts_by = 'vllm'"
            )
        start.synchronous = True
        runner = "second (experimental)"
        filled = {"method": "ngram_gpu"}  # of that runner's methods the one that loads nothing; ours takes its place
    start.notes.append(f"drafts_by = 'gkt' runs on vLLM's {runner} model runner, without asynchronous scheduling")
    return filled


def _own_drafter(config: Config, start: Start) -> DrafterSettings | None:
    """What workers build, where drafts are made here."""
    if config.speculation is None or start.speculative_config is None or config.vllm.drafts_by != "gkt":
        return None
    return DrafterSettings(
        drafter=config.speculation.drafter,
        drafter_options=config.speculation.drafter_options.model_dump(),
        base_dir=str(config.base_dir.resolve()),
        auto=config.speculation.gamma == "auto",
        trace=None if config.trace is None else config.trace.model_dump(exclude_unset=True),
    )


def _draft_folder(config: Config, draft: str) -> Path | None:
    """Where the draft is, below the configuration's folder; None: ``draft`` is a name on the Hub."""
    folder = config.base_dir / os.path.expanduser(draft)
    if not folder.is_dir():
        if draft.startswith((".", "~", os.sep)) or draft.count(os.sep) > 1:  # on the Hub it would be OWNER/MODEL
            raise ConfigError(f"speculation.draft names no folder: {str(folder)!r}; give the folder of a model")
        return None
    model_config(folder, "draft")
    return folder.resolve()


def _check_sizes(target: Path | None, draft: Path) -> None:
    """Our own drafter's, which pads or cuts a head; by the sizes, before any weight is loaded."""
    if target is None:
        return
    size, drafts = model_config(target, "target").get("vocab_size"), model_config(draft, "draft").get("vocab_size")
    if size and drafts:
        check_vocabularies(size, drafts)
