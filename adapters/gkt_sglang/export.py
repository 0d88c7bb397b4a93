"""A folder that ``sglang serve`` takes with the flags of a standalone draft.

Importing this loads no engine.
"""

from __future__ import annotations

from gkt_plugins.contracts import Exported, ExportRequest
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

__all__ = ["SglangExporter"]

_NEEDS = "sglang>=0.5.23"
_GREEDY = (
    "SGLang's standalone drafts are the draft's argmax at every temperature: answers are exact, and above temperature "
    "0 fewer tokens are accepted than gkt measures"
)


class SglangExporter:
    """``gkt export --to sglang``."""

    def export(self, request: ExportRequest) -> Exported:
        """Write the folder; it appears whole or not at all.

        :raises ConfigError: a folder is wrong, the output has something in it, the vocabularies differ in size, or
            the configuration asks for something else than an exact draft model.
        """
        model_config(request.target, "target")
        draft = draft_folder(request, "SGLang")
        refuse_leniency(request, "SGLang", lossless=("exact",))  # its block verification takes other drafts only
        same_vocabulary(request.target, draft, "SGLang")
        gamma, notes = fixed_gamma(request, "SGLang")
        # With one branch per step, the block that is verified holds the last kept token too: gamma + 1.
        command = (
            f"sglang serve --model-path {TARGET_FOLDER} --speculative-algorithm STANDALONE "
            f"--speculative-draft-model-path {DRAFT_FOLDER} --speculative-num-steps {gamma} "
            f"--speculative-eagle-topk 1 --speculative-num-draft-tokens {gamma + 1}"
        )
        exported = Exported(request.output, command, (*notes, _GREEDY))
        with staged(request) as folder:
            copy_model(request.target, folder / TARGET_FOLDER)
            copy_model(draft, folder / DRAFT_FOLDER)
            describe(folder, request, exported, stack="sglang", needs=_NEEDS)
        return exported
