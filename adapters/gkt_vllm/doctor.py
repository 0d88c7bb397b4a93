"""What ``gkt doctor --vllm`` looks at: will a vLLM that is started here load the plugins, and do what is configured?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata

from gkt_plugins.config import Config
from gkt_plugins.contracts import Finding
from gkt_vllm.frontend import decide
from gkt_vllm.launch import RUST_FRONTEND, plugins_variable, uses_rust
from gkt_vllm.section import GktSection
from gkt_vllm.versions import check_version, installed_version

__all__ = ["examine_vllm"]

_GROUPS = ("vllm.general_plugins", "vllm.endpoint_plugins", "vllm.stat_logger_plugins")


def examine_vllm(config: Config, env: Mapping[str, str]) -> Sequence[Finding]:
    """Nothing is started, and vLLM is not imported.

    :raises GktError: it is not installed, was not tried, or cannot do what is configured.
    """
    version = installed_version()
    warning = check_version(version, allow_untested=config.vllm.allow_untested_version)
    findings = [Finding("version", version, warning is None, warning or "")]
    findings += [_entry_point(group) for group in _GROUPS]
    section = GktSection(config=str(config.source or "gkt.toml"))
    given = decide(section, None, None, version)
    findings.append(_variable(env, guides=bool(given.guidance)))
    if uses_rust(env):
        findings.append(Finding(RUST_FRONTEND, "set: that frontend loads no plugins", False, "unset it"))
    findings.append(Finding("turns on", "; ".join(given.active) or "nothing but accounting", True))
    findings += [Finding("differs", note, False) for note in given.notes if note != warning]
    return findings


def _entry_point(group: str) -> Finding:
    there = any(point.name == "gkt" for point in metadata.entry_points(group=group))
    advice = "" if there else "install gkt-plugins into the environment that vLLM runs in"
    return Finding(group.removeprefix("vllm."), "gkt" if there else "gkt is not among them", there, advice)


def _variable(env: Mapping[str, str], *, guides: bool) -> Finding:
    given = env.get("VLLM_PLUGINS")
    if "gkt" in (given or "").split(","):
        return Finding("VLLM_PLUGINS", given or "", True)
    advice = f"set VLLM_PLUGINS={plugins_variable(env)}, or start with gkt vllm serve, which does"
    if given is not None:
        value = f"{given!r}: unless gkt vllm serve adds gkt, nothing of ours loads"
        return Finding("VLLM_PLUGINS", value, False, advice)
    missing = "a server does not start" if guides else "requests are not on record"
    value = f"not set: unless gkt vllm serve sets it, {missing}"
    return Finding("VLLM_PLUGINS", value, False if guides else None, advice)
