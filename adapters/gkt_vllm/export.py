"""A folder that ``vllm serve`` takes with one argument more.

vLLM's method ``draft_model`` wants an equal vocabulary size, a fixed number of draft tokens, and the draft in the
target's data type. Importing this loads no engine.
"""

from __future__ import annotations

import json
import shlex
from typing import Any, Literal

from gkt_plugins.contracts import BuildContext, Exported, ExportRequest, Options
from gkt_plugins.exporting import (
    DRAFT_FOLDER,
    TARGET_FOLDER,
    copy_model,
    describe,
    draft_folder,
    fixed_gamma,
    model_config,
    refuse_leniency,
    same_vocabulary,
    staged,
)

__all__ = ["VllmExportOptions", "VllmExporter"]

_NEEDS = "vllm>=0.28"
"""The first release that was tried with these keys; 0.31 is the first to run drafts on its second model runner."""


class VllmExportOptions(Options):
    """``gkt export --to vllm --set …``."""

    draft_sample_method: Literal["probabilistic", "greedy"] = "probabilistic"
    """``probabilistic`` draws drafts from the draft's own distribution, as it was distilled for; ``greedy`` takes its
    argmax at every temperature, which needs less memory and is accepted less often. Both are exact."""


class VllmExporter:
    """``gkt export --to vllm``."""

    def __init__(self, options: VllmExportOptions, context: BuildContext) -> None:
        self._draft_sample_method = options.draft_sample_method

    def export(self, request: ExportRequest) -> Exported:
        """Write the folder; it appears whole or not at all.

        :raises ConfigError: a folder is wrong, the output has something in it, the vocabularies differ in size, or
            the configuration asks for something else than an exact draft model.
        """
        config = model_config(request.target, "target")
        draft = draft_folder(request, "vLLM")
        refuse_leniency(request, "vLLM", lossless=("exact", "block"))
        same_vocabulary(request.target, draft, "vLLM")
        gamma, notes = fixed_gamma(request, "vLLM")
        speculative: dict[str, Any] = {
            "method": "draft_model",
            "model": DRAFT_FOLDER,
            "num_speculative_tokens": gamma,
            "draft_sample_method": self._draft_sample_method,
        }
        if request.speculation.verifier == "block":
            speculative["rejection_sample_method"] = "block"
            notes += ("vLLM's first model runner verifies token by token instead, which is exact too",)
        dtype = getattr(request.speculation.drafter_options, "dtype", "auto")
        if dtype != "auto":
            notes += (f"vLLM runs the draft in the target's data type: dtype = {dtype!r} is not carried along",)
        if "float32" in (config.get("dtype"), config.get("torch_dtype")):
            notes += ("vLLM runs a target saved in float32 in half precision; --dtype float32 keeps its own answers",)
        argument = shlex.quote(json.dumps(speculative))
        exported = Exported(request.output, f"vllm serve {TARGET_FOLDER} --speculative-config {argument}", notes)
        with staged(request) as folder:
            copy_model(request.target, folder / TARGET_FOLDER)
            copy_model(draft, folder / DRAFT_FOLDER)
            describe(folder, request, exported, stack="vllm", needs=_NEEDS)
        return exported
