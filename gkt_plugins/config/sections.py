"""The sections of ``gkt.toml``: every key that is ours, its type, its range and its default.

Sections are frozen and refuse unknown keys. Where a key names something that plugins provide (``adapter = "openai"``),
the keys that are not the section's own are that factory's options, validated by its own model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    model_validator,
)

from gkt_plugins._problems import shown
from gkt_plugins._wording import suggestion
from gkt_plugins.accounting.money import parse_nano
from gkt_plugins.contracts import Options
from gkt_plugins.errors import ConfigError
from gkt_plugins.plugins import Family

__all__ = [
    "BudgetSection",
    "CacheSection",
    "ChoosingSection",
    "Config",
    "EngineSection",
    "GatewaySection",
    "GuidanceSection",
    "KeySection",
    "LedgerSection",
    "PipelineSection",
    "PriceSection",
    "PriceSourceSection",
    "RetriesSection",
    "Section",
    "SpeculationSection",
    "TraceSection",
    "VllmSection",
]


class Section(BaseModel):
    """A table of the configuration: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ChoosingSection(Section):
    """A table in which some keys name what plugins provide; their options stand beside them."""

    chooses: ClassVar[Mapping[str, tuple[Family, str]]]
    """Key → the family it names a member of, and the field that holds that member's validated options."""

    @classmethod
    def own_keys(cls) -> list[str]:
        """The keys that are the section's own, whatever is chosen."""
        held = {field for _, field in cls.chooses.values()}
        return [name for name in cls.model_fields if name not in held]


def _epsilon(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"must be in (0, 1], got {shown(value)}; 1 is lossless, smaller accepts more draft tokens")
    return value


def _share(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"must be in (0, 1], got {shown(value)}")
    return value


def _gamma(value: object) -> object:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"must be an integer of at least 1, or 'auto', got {shown(value)}")
    return value


def _amount(value: object) -> object:
    parse_nano(value)  # type: ignore[arg-type]  # it says what it expects when this is no string
    return value


def _sha256(digest: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError("must be 64 digits of lower-case hex, as `gkt keys new NAME` prints them; not the key itself")
    return digest


def _preset(name: str) -> str:
    from gkt_plugins.guidance.presets import PRESETS  # with the drivers that take them

    if name not in PRESETS:
        raise ValueError(f"must name a preset, got {name!r}; {suggestion(name, PRESETS)}")
    return name


Epsilon = Annotated[float, BeforeValidator(_epsilon)]
Share = Annotated[float, BeforeValidator(_share)]
Amount = Annotated[str, BeforeValidator(_amount)]
ChosenOptions = SerializeAsAny[Options]


class EngineSection(ChoosingSection):
    """``[engines.NAME]``: an engine to call or to run. The other keys are the adapter's own."""

    chooses = {"adapter": ("engines", "options")}

    adapter: str
    """Which kind of engine; ``gkt plugins`` lists what is installed."""
    options: ChosenOptions


class PriceSection(Section):
    """``[prices.MODEL]``: what a model costs, as decimal strings, which are exact."""

    currency: str = "USD"
    """Amounts in different currencies are never added."""
    input_per_million: Amount | None = None
    """Per million prompt tokens."""
    output_per_million: Amount | None = None
    """Per million generated tokens."""
    cached_input_per_million: Amount | None = None
    """Per million prompt tokens that the engine had cached; the input price where absent."""
    per_hour: Amount | None = None
    """Per hour of own hardware."""


class PriceSourceSection(ChoosingSection):
    """``[price_sources.NAME]``: where prices come from that ``[prices]`` does not give; asked in the file's order."""

    chooses = {"source": ("price_sources", "options")}

    source: str
    """Which kind of source; the other keys are its own."""
    options: ChosenOptions


class GuidanceSection(ChoosingSection):
    """``[pipelines.NAME.guidance]``: how much the teacher writes, and what of it is handed over."""

    chooses = {"length": ("length_policies", "length_options"), "cut": ("cutting_policies", "cut_options")}

    length: str = "fixed"
    """The length policy; its options stand beside it."""
    cut: str = "word"
    """The cutting policy; its options stand beside it."""
    on_teacher_error: Literal["student", "fail"] = "student"
    """When the teacher fails before any text was released: the student answers alone, or the request fails."""
    preset: Annotated[str, AfterValidator(_preset)] | None = None
    """Named generation settings of the GKT paper's own runs, such as ``paper-gsm8k``."""
    length_options: ChosenOptions
    cut_options: ChosenOptions


class PipelineSection(Section):
    """``[pipelines.NAME]``: who answers, and who guides. Without a teacher the student answers alone."""

    student: str
    """Name of an engine: it completes the answer."""
    teacher: str | None = None
    """Name of an engine: it writes the first tokens."""
    guidance: GuidanceSection


class SpeculationSection(ChoosingSection):
    """``[speculation]``: how blocks are drafted and accepted, for the engine that runs in this process."""

    chooses = {
        "drafter": ("drafters", "drafter_options"),
        "verifier": ("verifiers", "verifier_options"),
        "rule": ("leniency_rules", "rule_options"),
    }

    drafter: str
    """Who proposes; its options stand beside it."""
    gamma: Annotated[int | Literal["auto"], BeforeValidator(_gamma)] = "auto"
    """Draft tokens per block, at least 1; ``auto`` follows measured step costs and may switch speculation off."""
    verifier: str = "exact"
    """``exact`` and ``block`` keep the target's distribution."""
    rule: str = "exponential"
    """The leniency rule, for a lenient verifier."""
    epsilon: Epsilon = 1.0
    """The leniency in (0, 1], for a lenient verifier; 1 is lossless."""
    expected_acceptance: Share | None = None
    """The acceptance rate that `gkt acceptance` measured; when live traffic leaves it, one warning says so."""
    acceptance_band: Share = 0.05
    """How far from `expected_acceptance` the live rate may be."""
    acceptance_window: PositiveInt = 2048
    """Tested tokens that the live rate is taken over."""
    drafter_options: ChosenOptions
    verifier_options: ChosenOptions
    rule_options: ChosenOptions

    @model_validator(mode="after")
    def _band_of_something(self) -> SpeculationSection:
        without_effect = sorted({"acceptance_band", "acceptance_window"} & self.model_fields_set)
        if self.expected_acceptance is None and without_effect:
            raise ValueError(f"has {without_effect[0]} and no expected_acceptance; set both, or neither")
        return self


class TraceSection(Section):
    """``[trace]``: keeps answers as token ids, which are text, to distil from; absent, nothing is kept."""

    path: str
    """The file of JSON lines to append to, relative to the configuration's folder."""
    max_bytes: PositiveInt = 67108864
    """What is kept never takes more than this; inside vLLM, what each engine keeps."""
    when_full: Literal["stop", "rotate"] = "stop"
    """`stop` keeps the oldest answers, `rotate` the newest, the older half of them in a second file."""
    share: Share = 1.0
    """Share of the answers that is kept, drawn at random, in (0, 1]."""
    redact: Literal["none", "prompt"] = "none"
    """`prompt` keeps nothing of the prompt, and of the answer only a window before each rejected token."""
    window: PositiveInt = 32
    """Tokens of the answer kept before each rejected one, with `redact = "prompt"`."""

    @model_validator(mode="after")
    def _window_of_something(self) -> TraceSection:
        if self.redact == "none" and "window" in self.model_fields_set:
            raise ValueError("has a window and redact = 'none', which keeps everything; remove window, or redact")
        return self


class LedgerSection(Section):
    """``[ledger]``: the database that keeps one row per engine call."""

    url: str = "sqlite:///gkt.db"
    """SQLAlchemy URL without a password."""
    url_env: str | None = None
    """Environment variable that holds the URL, for one with a password; it replaces ``url``."""
    sync: Literal["second", "commit"] = "second"
    """What a power cut may cost: the last ``second``, or nothing, for which every ``commit`` waits for the disk."""

    @model_validator(mode="after")
    def _one_url(self) -> LedgerSection:
        if self.url_env is not None and "url" in self.model_fields_set:
            raise ValueError("has both url and url_env; keep one of them")
        return self

    def resolved_url(self, env: Mapping[str, str]) -> str:
        """The URL to connect to. :raises ConfigError: ``url_env`` names a variable that is not set."""
        if self.url_env is None:
            return self.url
        if not env.get(self.url_env):
            raise ConfigError(f"ledger.url_env names {self.url_env}, and that environment variable is not set")
        return env[self.url_env]


class RetriesSection(Section):
    """``[retries]``: what is done when an engine's call fails before any of its text arrived."""

    attempts: PositiveInt = 3
    """Calls made at most, the first included; each is on record."""
    wait_s: PositiveFloat = 0.2
    """Mean wait before the second attempt, doubled each time, with jitter."""
    max_wait_s: PositiveFloat = 5.0
    """No wait is longer, unless the endpoint asks for one that is."""
    breaker_failures: PositiveInt = 5
    """So many failures in a row, and the engine is left alone for a while."""
    breaker_pause_s: PositiveFloat = 15.0
    """For how long; then one call tries again."""


class CacheSection(Section):
    """``[cache]``: keeps the teacher's text per exact prompt and policy; absent, nothing is kept."""

    url: str = "sqlite:///guidance.db"
    """``sqlite:///FILE``, relative to the configuration's folder, or ``redis://HOST``."""
    url_env: str | None = None
    """Environment variable that holds the URL, for one with a password; it replaces ``url``."""
    max_age_s: PositiveInt | None = None
    """Older guidance is asked for anew; absent, guidance never ages."""

    @model_validator(mode="after")
    def _one_url(self) -> CacheSection:
        if self.url_env is not None and "url" in self.model_fields_set:
            raise ValueError("has both url and url_env; keep one of them")
        return self

    def resolved_url(self, env: Mapping[str, str]) -> str:
        """The URL to connect to. :raises ConfigError: ``url_env`` names a variable that is not set."""
        if self.url_env is None:
            return self.url
        if not env.get(self.url_env):
            raise ConfigError(f"cache.url_env names {self.url_env}, and that environment variable is not set")
        return env[self.url_env]


class BudgetSection(Section):
    """``[budget]``: what all requests together may cost; absent, there is no limit."""

    per_day: Amount
    """Per UTC day, reserved before a call; short of it guidance shrinks, then goes, then requests are refused."""
    currency: str = "USD"


class KeySection(Section):
    """``[gateway.keys.NAME]``: a client's key, its rights and its limits. ``gkt keys new NAME`` writes one."""

    sha256: Annotated[str, AfterValidator(_sha256)]
    """SHA-256 of the key, in hex; the key itself is kept nowhere."""
    admin: bool = False
    """May see ``/dashboard`` and ``/metrics``."""
    pipelines: tuple[str, ...] | None = None
    """Which pipelines it may use; absent, all."""
    requests_per_minute: PositiveInt | None = None
    """Of this key; beyond that it is told when to come back."""
    budget_per_day: Amount | None = None
    """As ``[budget] per_day``, for this key alone, in the currency of ``[budget]``, or USD."""


class GatewaySection(Section):
    """``[gateway]``: the OpenAI-compatible front door."""

    host: str = "127.0.0.1"
    """Address to listen on; beyond loopback only with keys."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8400
    """0 takes a free one."""
    keys: dict[str, KeySection] = {}
    """One section a client, as below; without any, programs and pages of this machine alone may ask."""
    max_body_bytes: PositiveInt = 4194304
    """Larger requests are refused."""
    request_timeout_s: PositiveFloat = 600.0
    """A request that takes longer is cancelled."""
    requests_per_minute: PositiveInt | None = None
    """Of all clients together."""
    tracing: bool = False
    """OpenTelemetry spans; where they go is up to the ``OTEL_…`` variables."""


class VllmSection(Section):
    """``[vllm]``: what holds inside vLLM only."""

    max_leniency: Epsilon = 1.0
    """Smallest epsilon that a request may ask for; 1 allows no leniency."""
    largest_batch: PositiveInt | None = None
    """Larger batches run without drafts; absent, every batch has them."""
    drafts_by: Literal["vllm", "gkt"] = "vllm"
    """`gkt` runs the drafter here, on vLLM's first model runner: gamma per request, `gamma = "auto"`."""
    allow_untested_version: bool = False
    """Start in a release of vLLM that these plugins were not tried on."""


class Config(Section):
    """A whole ``gkt.toml``, checked."""

    engines: dict[str, EngineSection] = {}
    prices: dict[str, PriceSection] = {}
    price_sources: dict[str, PriceSourceSection] = {}
    pipelines: dict[str, PipelineSection] = {}
    speculation: SpeculationSection | None = None
    ledger: LedgerSection = LedgerSection()
    gateway: GatewaySection = GatewaySection()
    retries: RetriesSection = RetriesSection()
    cache: CacheSection | None = None
    budget: BudgetSection | None = None
    vllm: VllmSection = VllmSection()
    trace: TraceSection | None = None
    base_dir: Annotated[Path, Field(exclude=True)]
    """Folder of the file: relative paths start here."""
    source: Annotated[Path | None, Field(exclude=True)] = None
    """The file; None for a text."""
