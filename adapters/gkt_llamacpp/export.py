"""A folder that ``llama-server`` takes: both models in its own format, GGUF, or the commands that convert them.

llama.cpp converts with a script of its own, ``convert_hf_to_gguf.py``, which comes with its source and not through a
package index. Importing this loads no engine.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

from gkt_plugins.contracts import BuildContext, Exported, ExportRequest, Options
from gkt_plugins.errors import BackendError, ConfigError
from gkt_plugins.exporting import (
    DRAFT_FOLDER,
    TARGET_FOLDER,
    copy_model,
    describe,
    draft_folder,
    fixed_gamma,
    model_config,
    refuse_leniency,
    staged,
)

__all__ = ["LlamaCppExportOptions", "LlamaCppExporter"]

_NEEDS = "llama.cpp with --spec-type (since May 2026)"
_CONVERTER = "convert_hf_to_gguf.py"
_SAMPLING = "llama-server drafts greedily and verifies by comparing tokens: above temperature 0 fewer are accepted"


class LlamaCppExportOptions(Options):
    """``gkt export --to llama.cpp --set …``."""

    converter: str | None = None
    """Path of llama.cpp's ``convert_hf_to_gguf.py``; without it the folder says how to convert."""
    outtype: Literal["auto", "f32", "f16", "bf16", "q8_0"] = "auto"
    """The converter's ``--outtype``."""


class LlamaCppExporter:
    """``gkt export --to llama.cpp``."""

    def __init__(self, options: LlamaCppExportOptions, context: BuildContext) -> None:
        """:raises ConfigError: the converter is not there."""
        self._outtype = options.outtype
        self._converter = Path(options.converter).absolute() if options.converter else None
        if self._converter is not None and not self._converter.is_file():
            raise ConfigError(f"converter must be the path of llama.cpp's {_CONVERTER}, got {options.converter!r}")

    def export(self, request: ExportRequest) -> Exported:
        """Write the folder; it appears whole or not at all.

        :raises ConfigError: a folder is wrong, the output has something in it, or the configuration asks for
            something else than an exact draft model.
        :raises BackendError: the converter failed.
        """
        model_config(request.target, "target")
        draft = draft_folder(request, "llama.cpp")
        refuse_leniency(request, "llama.cpp", lossless=("exact",))
        gamma, notes = fixed_gamma(request, "llama.cpp")
        models = {TARGET_FOLDER: request.target, DRAFT_FOLDER: draft}
        command = (
            f"llama-server -m {TARGET_FOLDER}.gguf -md {DRAFT_FOLDER}.gguf --spec-type draft-simple "
            f"--spec-draft-n-max {gamma}"
        )
        if self._converter is None:
            converting = [
                f"python {_CONVERTER} {name} --outfile {name}.gguf --outtype {self._outtype}" for name in models
            ]
            command = "\n".join([*converting, command])
            notes += (f"{_CONVERTER} comes with llama.cpp's source; --set converter=PATH runs it while exporting",)
        exported = Exported(request.output, command, (*notes, _SAMPLING))
        with staged(request) as folder:
            for name, source in models.items():
                if self._converter is None:
                    copy_model(source, folder / name)
                else:
                    self._convert(source, folder / f"{name}.gguf")
            describe(folder, request, exported, stack="llama.cpp", needs=_NEEDS)
        return exported

    def _convert(self, source: Path, output: Path) -> None:
        command = [sys.executable, str(self._converter), str(source), "--outfile", str(output)]
        done = subprocess.run([*command, "--outtype", self._outtype], capture_output=True, text=True, check=False)
        if done.returncode or not output.is_file():
            said = done.stderr.strip().splitlines()
            raise BackendError(
                f"{self._converter} could not convert {str(source)!r}: {said[-1] if said else 'it said nothing'}; "
                "export without converter, and convert by hand"
            )
