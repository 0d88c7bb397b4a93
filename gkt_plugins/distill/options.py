"""What a distillation is told: the sections of ``distill.toml``, every key with its type, range and default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from gkt_plugins._problems import Problem, problems_of
from gkt_plugins.config._source import ConfigSource
from gkt_plugins.config.sections import Section
from gkt_plugins.distill.divergences import DivergenceName
from gkt_plugins.distill.policies import PolicyName
from gkt_plugins.errors import ConfigError

__all__ = [
    "DataSection",
    "DistillOptions",
    "EndpointSection",
    "EvaluationSection",
    "LoraSection",
    "LossSection",
    "ModelsSection",
    "TrainSection",
    "load_options",
]

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(ge=0)]


class ModelsSection(Section):
    """``[models]``: who is imitated, and who learns."""

    target: str
    """Folder that ``save_pretrained`` wrote, relative to this file, or a hub id. It stays as it is. With ``[endpoint]``
    only its tokenizer is read; where that is not public, name the draft again."""
    draft: str
    """The draft to start from, likewise; with the target's vocabulary. It is never written to."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The target's precision; ``auto`` is as saved."""
    device: Literal["auto", "cpu"] = "auto"
    """``auto`` takes an accelerator when there is one."""
    trust_remote_code: bool = False
    """Run code that comes with the models."""


class DataSection(Section):
    """``[data]``: the prompts, and who writes the answers that are trained on."""

    prompts: str | None = None
    """JSON lines with ``prompt`` or ``messages``, and optional ``answer``, ``family`` and ``reference``."""
    held_out: str | OpenShare = 0.05
    """A file of the same kind for measuring acceptance, or the share of ``prompts`` that is kept from training."""
    policy: PolicyName = "draft"
    """``draft``: the draft's own answers, which is DistillSpec; ``target``: the target's; ``ground_truth``: the file's
    own; ``mixture``: draft and another; ``interleaved``: the draft proposes and the target replaces what it finds
    unlikely; ``correct_only``: answers of the target that ``scorer`` accepts."""
    draft_share: Annotated[Share, Field(alias="lambda")] = 0.5
    """Of ``mixture``: the share of answers that the draft writes."""
    rest: Literal["ground_truth", "target", "correct_only"] = "target"
    """Of ``mixture``: who writes the rest."""
    top_k: PositiveInt = 25
    """Of ``interleaved``: a drafted token outside the target's most likely ``top_k`` is replaced."""
    scorer: str | None = None
    """Of ``correct_only``: ``package.module:function`` that takes the prompt's item and an answer's text, and says
    whether it is right."""
    temperature: Temperature = 1.0
    """At which answers are sampled for training; the paper's is 1."""
    max_prompt_tokens: PositiveInt = 512
    """Longer prompts are left out."""
    max_new_tokens: PositiveInt = 256
    """Tokens of an answer, at most."""

    @model_validator(mode="after")
    def _scorer_goes_with_its_policy(self) -> DataSection:
        uses = self.policy == "correct_only" or (self.policy == "mixture" and self.rest == "correct_only")
        if uses and self.scorer is None:
            raise ValueError("has the policy correct_only, which needs a scorer: give one as 'package.module:function'")
        if self.scorer is not None and not uses:
            raise ValueError("has a scorer, which only the policy correct_only uses; remove it, or choose that policy")
        return self


class EndpointSection(Section):
    """``[endpoint]``: imitate a model behind an endpoint, which cannot be loaded; absent, ``models.target`` is."""

    engine: str
    """Name of an engine of ``config`` that speaks the OpenAI API."""
    config: str = "gkt.toml"
    """The configuration with ``[engines]``, ``[prices]`` and ``[ledger]``, relative to this file."""
    logprobs: NonNegativeInt = 20
    """Likeliest tokens whose probabilities are asked for at each token; 0 learns from the text alone, as SeqKD."""
    concurrency: PositiveInt = 16
    """Answers asked for at once."""


class LossSection(Section):
    """``[loss]``: how far draft and target are apart at one token."""

    divergence: DivergenceName = "forward_kl"
    """``tv`` is 1 - acceptance itself, with weak gradients far away; no divergence is best everywhere: try several."""
    beta: OpenShare = 0.5
    """Of ``jsd``: near 0 it behaves like ``forward_kl``, near 1 like ``reverse_kl``."""
    temperature: Temperature = 1.0
    """Divides both models' logits; the temperature that will be served is a good choice."""
    chunk_tokens: PositiveInt = 1024
    """Tokens whose vocabularies are held at once, which bounds memory."""
    keep: PositiveShare = 1.0
    """AdaSPEC: the share of tokens to train on, those on which ``reference`` leaves most behind the draft; 1 is all."""
    reference: str | None = None
    """AdaSPEC: folder of a draft distilled before, which tells what can be learnt."""

    @model_validator(mode="after")
    def _keep_and_reference_go_together(self) -> LossSection:
        if (self.keep < 1) != (self.reference is not None):
            raise ValueError(f"needs both keep < 1 and reference, or neither, got {self.keep} and {self.reference!r}")
        return self


class LoraSection(Section):
    """``[train.lora]``: train low-rank additions alone; they are merged into the draft that is written."""

    rank: PositiveInt = 16
    """Of the additions."""
    alpha: PositiveFloat = 32.0
    """Their scale is alpha / rank."""
    modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers that get one; by default all but the head."""


class TrainSection(Section):
    """``[train]``: steps and optimiser."""

    steps: PositiveInt = 1000
    """Optimiser steps."""
    batch_size: PositiveInt = 32
    """Answers per step and process; the paper's is 32."""
    accumulation: PositiveInt = 1
    """Parts that a batch is worked through in, where memory is short; the result is the same."""
    steps_per_rollout: PositiveInt = 2
    """Steps whose answers are written at once. With 2, half of them are one step old, and writing is faster."""
    learning_rate: PositiveFloat = 3e-4
    """The paper's, after warm-up."""
    warmup_steps: NonNegativeInt | None = None
    """Steps of linear warm-up; by default a sixtieth of all, as in the paper."""
    constant_until: Share = 0.5
    """Share of the steps after which the learning rate falls, along a cosine, to a tenth."""
    optimizer: Literal["adafactor", "adamw"] = "adafactor"
    """``adafactor`` is the paper's and needs less memory."""
    max_grad_norm: PositiveFloat = 1.0
    """Longer gradients are shortened to this."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the draft's forward and backward pass; its weights are float32 while it learns."""
    seed: NonNegativeInt = 0
    """All randomness follows from it and from the step."""
    save_steps: PositiveInt = 200
    """Steps between checkpoints; a better draft than any before is kept as well."""
    lora: LoraSection | None = None
    """Additions to train instead of all weights; see below."""

    @model_validator(mode="after")
    def _divisible(self) -> TrainSection:
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"needs batch_size divisible by accumulation, got {self.batch_size} and {self.accumulation}"
            )
        return self


class EvaluationSection(Section):
    """``[evaluation]``: acceptance on held-out prompts, by which the best draft is chosen."""

    every: PositiveInt = 100
    """Steps between measurements."""
    prompts: PositiveInt = 64
    """Held-out prompts, at most."""
    temperature: Temperature = 0.0
    """The temperature that will be served."""
    gamma: PositiveInt = 7
    """Draft tokens per block that will be served, for the block efficiency in the report."""


class DistillOptions(Section):
    """A whole ``distill.toml``, checked."""

    models: ModelsSection
    data: DataSection = DataSection()
    loss: LossSection = LossSection()
    train: TrainSection = TrainSection()
    evaluation: EvaluationSection = EvaluationSection()
    endpoint: EndpointSection | None = None
    output: str
    """Folder to write: the draft with its tokenizer and ``provenance.json``, ``checkpoints/`` and ``runs/``."""
    base_dir: Annotated[Path, Field(exclude=True)] = Path()
    """Folder of the file: relative paths start here."""

    @model_validator(mode="after")
    def _endpoints_give_text_and_a_few_probabilities(self) -> DistillOptions:
        if self.endpoint is None:
            return self
        for key, value, needed in (
            ("data.policy", self.data.policy, "target"),
            ("loss.divergence", self.loss.divergence, "forward_kl"),
            ("loss.keep", self.loss.keep, 1.0),
            ("loss.temperature", self.loss.temperature, 1.0),
        ):
            if value != needed:
                raise ValueError(f"has an endpoint, which gives its own answers only, so {key} must be {needed!r}, "
                                 f"got {value!r}")  # fmt: skip
        return self

    @property
    def output_dir(self) -> Path:
        """The folder to write."""
        return self.base_dir / self.output

    def located(self, name: str) -> str:
        """A model's folder, where there is one of that name; otherwise ``name`` itself, as a hub id."""
        folder = self.base_dir / name
        return str(folder) if folder.is_dir() else name


def load_options(path: Path, overrides: Sequence[str] = ()) -> DistillOptions:
    """Read ``distill.toml``.

    :param overrides: ``dotted.key=value``, on top of the file.
    :raises ConfigError: everything that is wrong, one line each, with key, file and line.
    """
    if not path.is_file():
        raise ConfigError(f"there is no configuration at {str(path)!r}; write one there, or give its path")
    source = ConfigSource.read(path, None, overrides, {})
    data: Mapping[str, Any] = source.data
    if "base_dir" in data:
        raise source.report([Problem(("base_dir",), "is not a known key", "paths start in the file's folder")])
    try:
        return DistillOptions.model_validate({**data, "base_dir": path.parent.absolute()})
    except ValidationError as exc:
        raise source.report(problems_of(exc, DistillOptions, data)) from exc
