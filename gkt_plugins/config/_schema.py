"""The JSON schema of ``gkt.toml``, with the options of everything that is installed.

It uses JSON Schema draft 7 words only, so that TOML editors understand it. Where ranges depend on each other it is
wider than :func:`gkt_plugins.config.load_config`, which has the last word.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gkt_plugins._problems import option_keys
from gkt_plugins.config.sections import ChoosingSection, Config
from gkt_plugins.plugins import Family, Plugins

__all__ = ["config_schema"]


def config_schema(plugins: Plugins) -> dict[str, Any]:
    """Everything that may be written, as one JSON schema."""
    choosing = {section.__name__: section for section in ChoosingSection.__subclasses__()}
    families: list[Family] = [family for section in choosing.values() for family, _ in section.chooses.values()]
    options = {factory.options for family in families for factory in plugins.family(family).values()}
    models: list[type[BaseModel]] = [Config, *sorted(options, key=lambda model: (model.__module__, model.__qualname__))]
    refs, schema = models_json_schema([(model, "validation") for model in models])
    names = {model: refs[model, "validation"]["$ref"].removeprefix("#/$defs/") for model in models}
    definitions = schema["$defs"]
    # The options stand flat beside the section's own keys, so their models' schemas are merged into the sections'.
    option_schemas = {model: definitions[names[model]] for model in options}
    for name, section in choosing.items():
        _open_up(definitions[name], section, plugins, option_schemas)
    definitions["PipelineSection"]["required"].remove("guidance")  # every section has it once loaded, written or not
    root = definitions.pop(names[Config])
    root["properties"] = {
        key: value for key, value in root["properties"].items() if not Config.model_fields[key].exclude
    }
    root.pop("required")
    used = _reachable(root, definitions)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **root,
        "title": "gkt.toml",
        "$defs": {name: definition for name, definition in sorted(definitions.items()) if name in used},
    }


def _open_up(
    schema: dict[str, Any],
    section: type[ChoosingSection],
    plugins: Plugins,
    option_schemas: dict[type[Any], dict[str, Any]],
) -> None:
    """Let ``section`` take the options of whatever it chooses, one condition for each factory."""
    own = section.own_keys()
    properties = {key: value for key, value in schema["properties"].items() if key in own}
    conditions: list[dict[str, Any]] = []
    for key, (family, _) in section.chooses.items():
        provided = plugins.family(family)
        properties[key] = properties[key] | {"enum": sorted(provided)}
        for name, factory in sorted(provided.items()):
            chosen = option_schemas[factory.options]
            then: dict[str, Any] = {
                "title": f'{key} = "{name}"',
                "description": factory.summary,
                "properties": {
                    option: value for option, value in chosen.get("properties", {}).items() if option not in own
                },
                "required": [option for option in chosen.get("required", []) if option not in own],
            }
            if len(section.chooses) == 1:
                then["propertyNames"] = {"enum": [*own, *then["properties"]]}
            is_default = section.model_fields[key].default == name
            matches = {"properties": {key: {"const": name}}} | ({} if is_default else {"required": [key]})
            conditions.append({"if": matches, "then": then})
            properties |= {option: {} for option in option_keys(factory.options) if option not in properties}
    schema["properties"] = properties
    schema["required"] = [key for key in schema.get("required", []) if key in own]
    schema["allOf"] = conditions


def _reachable(schema: dict[str, Any], definitions: dict[str, Any]) -> set[str]:
    """Names of the definitions that ``schema`` refers to, directly or not."""
    found: set[str] = set()
    todo: list[Any] = [schema]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            name = str(node.get("$ref", "")).removeprefix("#/$defs/")
            if name and name not in found:
                found.add(name)
                todo.append(definitions[name])
            todo.extend(node.values())
        elif isinstance(node, list):
            todo.extend(node)
    return found
