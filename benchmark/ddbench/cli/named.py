"""Plugins as the command line names them: `convnet(width=32)`, and lists of these."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddbench.refs import PluginRef


def networks_of(text: str) -> list[PluginRef]:
    """`convnet,alexnet(width=32)`, as tables write networks, to architectures. Raises ConfigError."""
    from ddbench.errors import ConfigError
    from ddbench.refs import PluginRef

    entries = re.split(r",(?![^(]*\))", text)
    refs = [PluginRef.resolve("architectures", *name_and_settings(entry, "--archs")) for entry in entries]
    if len({ref.label for ref in refs}) < len(refs):
        raise ConfigError(f"--archs names a network twice: {text}.")
    return refs


def name_and_settings(entry: str, where: str) -> tuple[str, dict[str, Any]]:
    """`convnet(width=32)` in its parts; `where` begins the message. Raises ConfigError."""
    from ddbench.errors import ConfigError

    match = re.fullmatch(r"\s*([^(),\s]+)(?:\((.*)\))?\s*", entry)
    if not match:
        names = "names such as convnet or convnet(width=32), separated by commas"
        raise ConfigError(f"{where} takes {names}; got '{entry}'.")
    settings: dict[str, Any] = {}
    for part in filter(None, (match[2] or "").split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"{where}: '{part}' in '{entry}' must be name=value.")
        settings[key.strip()] = _value(value.strip(), where)
    return match[1], settings


def _value(text: str, where: str) -> Any:
    """A TOML value; a bare word is text. Raises ConfigError."""
    from ddbench.errors import ConfigError
    from ddbench.files import parse_toml

    try:
        return parse_toml(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except ValueError as error:
        raise ConfigError(f"{where}: {error}, in '{text[:60]}'.") from error
