"""``gkt plan``: would a draft make this target faster, here, on these prompts?"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gkt_plugins.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from gkt_plugins.config import Config
    from gkt_plugins.speculation.planner import Measurement, Plan

__all__ = ["register"]

_EXIT_CODES = {"enable": 0, "do not enable": 3}


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("plan")(plan)


def plan(
    target: Annotated[str, typer.Option("--target", help="Folder of the target model, or its name on the Hub.")],
    prompts: Annotated[
        Path, typer.Option("--prompts", help='JSON lines {"prompt": "…"} or {"messages": […]}, as in your traffic.')
    ],
    draft: Annotated[str | None, typer.Option("--draft", help="Folder of the draft model; or --config.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="gkt.toml whose [speculation] is planned for; or --draft.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Rows decoded together; may be repeated. [1, 4, 8]")
    ] = None,
    gamma_max: Annotated[int, typer.Option("--gamma-max", min=1, max=32, help="Most draft tokens per block.")] = 8,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="At which you serve; 0 is greedy.")] = 0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=2, help="Bound of an answer.")] = 256,
    budget_s: Annotated[float, typer.Option("--budget-s", min=1, help="Seconds that measuring may take.")] = 120,
    dtype: Annotated[
        str, typer.Option("--dtype", help="auto, float32, bfloat16, …; with --config, of the target only.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Measure both models on this machine and these prompts, and predict the speed-up of every gamma and batch size.

    Exit code 0: enable; 3: do not enable; 2: it could not be found out.
    """
    from gkt_plugins.speculation.planner import make_plan

    loaded = _configuration(config, draft, dtype)
    batches = batch or [1, 4, 8]
    measured = _measure(
        loaded, target, prompts, batches, gamma_max=gamma_max, temperature=temperature,
        max_tokens=max_tokens, budget_s=budget_s, dtype=dtype,
    )  # fmt: skip
    result = make_plan(measured, batches=batches, gamma_max=gamma_max)
    if as_json:
        typer.echo(json.dumps(result.as_json() | {"measured_in_s": round(measured.seconds, 1)}, indent=2))
    else:
        _show(result, measured)
    raise typer.Exit(_EXIT_CODES[result.decision])


def _configuration(config: Path | None, draft: str | None, dtype: str) -> Config:
    from gkt_plugins.config import load_config

    if (config is None) == (draft is None):
        raise ConfigError("expected either --draft or --config, got both or neither; --config names the draft itself")
    if config is None:
        keys = {"drafter": "model", "draft": draft, "dtype": dtype}
        return load_config(text="[speculation]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items()))
    loaded = load_config(config)
    if loaded.speculation is None:
        raise ConfigError(f"{loaded.source} has no [speculation] section; add one, or name a --draft")
    return loaded


def _measure(
    config: Config, target_name: str, prompts: Path, batches: list[int], *, gamma_max: int, temperature: float,
    max_tokens: int, budget_s: float, dtype: str,
) -> Measurement:  # fmt: skip
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from gkt_plugins.errors import require

    for module in ("torch", "transformers"):
        require(module, extra="transformers")
    from transformers.utils import logging

    from gkt_plugins.contracts import BuildContext
    from gkt_plugins.distill.samples import read_prompts
    from gkt_plugins.plugins import load_plugins
    from gkt_plugins.speculation.loading import end_ids
    from gkt_plugins.speculation.measuring import measure
    from gkt_plugins.speculation.target import TransformersModel

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    section = config.speculation
    assert section is not None
    model, tokenizer = _load_target(target_name, dtype)
    target = TransformersModel(model)
    items = read_prompts(prompts, tokenizer, max_prompt_tokens=max(1, target.context - max_tokens))
    plugins = load_plugins()
    resources = {"config": config, "target": target, "tokenizer": tokenizer}
    context = BuildContext(base_dir=config.base_dir, env=os.environ, resources=resources)
    rule = plugins.leniency_rules().build(section.rule, section.rule_options, context)
    lending_rule = replace(context, resources={**resources, "rule": rule})
    verifier = plugins.verifiers().build(section.verifier, section.verifier_options, lending_rule)
    drafter = plugins.drafters().build(section.drafter, section.drafter_options, context)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("Measuring", total=1.0)
        return measure(
            target,
            drafter,
            [item.ids for item in items],
            batches=batches,
            gamma_max=gamma_max,
            max_new_tokens=max_tokens,
            temperature=temperature,
            eos_ids=end_ids(model, tokenizer),
            verifier=verifier,
            budget_s=budget_s,
            on_progress=lambda share: progress.update(task, completed=share),
        )


def _load_target(name: str, dtype: str) -> tuple[Any, Any]:
    """The model on its device, and its tokenizer."""
    import torch

    from gkt_plugins.speculation.loading import load_causal_model, load_tokenizer

    known = getattr(torch, dtype, None)
    if dtype != "auto" and not (isinstance(known, torch.dtype) and known.is_floating_point):
        raise ConfigError(f"--dtype must be auto, float32, float16 or bfloat16, got {dtype!r}")
    model = load_causal_model(name, key="--target", dtype=dtype if known is None else known)
    tokenizer = load_tokenizer(name)
    if tokenizer is None:
        raise ConfigError(f"--target: {name!r} has no tokenizer that can be loaded; save one beside the model")
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def _show(result: Plan, measured: Measurement) -> None:
    from rich.console import Console

    console = Console()
    console.print(_speedups(result))
    console.print(_costs(result))
    cut = f", {result.unfinished} of them cut off by the budget" if result.unfinished else ""
    console.print(
        f"{result.answers} answers{cut}, measured in {measured.seconds:.0f} s. Intervals are 95 %; break-even is the "
        "acceptance rate at which both take the same time.\n",
        style="dim",
    )
    style = "bold green" if result.decision == "enable" else "bold red"
    console.print(f"[{style}]{result.decision}[/]: {result.reason}", highlight=False)


def _speedups(result: Plan) -> Table:
    from rich.table import Table

    table = Table(title="Speed against plain decoding, predicted", title_justify="left")
    table.add_column("gamma", justify="right")
    table.add_column("acceptance", justify="right")
    table.add_column("tokens/call", justify="right")
    for batch in result.batches:
        table.add_column(f"batch {batch}", justify="right")
        table.add_column("break-even", justify="right", style="dim")
    for acceptance in result.acceptance:
        cells = []
        for batch in result.batches:
            cell = result.cell(batch, acceptance.gamma)
            text = f"{cell.speedup.value:.2f} ({cell.speedup.low:.2f}–{cell.speedup.high:.2f})"
            if cell == result.best(batch):
                text = f"[bold green]▸ {text}[/]" if result.pays(batch) else f"[bold]▸ {text}[/]"
            cells += [text, "none" if cell.break_even is None else f"{cell.break_even:.2f}"]
        table.add_row(
            str(acceptance.gamma),
            f"{acceptance.acceptance_rate.value:.3f}",
            f"{acceptance.block_efficiency.value:.2f}",
            *cells,
        )
    return table


def _costs(result: Plan) -> Table:
    from rich.table import Table

    table = Table(title="What steps cost here", title_justify="left")
    table.add_column("batch", justify="right")
    table.add_column("plain step, ms", justify="right")
    table.add_column("c: draft step / target step", justify="right")
    table.add_column("verifying γ tokens, in plain calls: γ = 1, 2, …")
    for batch in result.batches:
        costs = result.costs
        curve = [costs.verify(batch, a.gamma) / costs.verify(batch, 0) for a in result.acceptance]
        table.add_row(
            str(batch),
            f"{1000 * costs.block(batch, 0, behind=False):.1f}",
            f"{costs.cost_ratio(batch):.3f}",
            "  ".join(f"{value:.2f}" for value in curve),
        )
    return table
