"""The contract of families of presets."""

from __future__ import annotations

from collections.abc import Iterator

from ddbench import protocols, registry
from ddbench.api import Presets
from ddbench.compute.run import DistillRun
from ddbench.errors import BenchError, PluginError
from ddbench.suite.presets import ROLES, Family, Preset, read
from ddbench.testing.checks import Check


def _read(family: Presets) -> Family:
    try:
        return read("the family", "family", family.text)
    except PluginError as error:
        raise AssertionError(str(error)) from error


def preset_family_can_be_read(family: Presets, run: DistillRun) -> None:
    """Its text is what `ddbench.suite.presets` describes, and says what it is."""
    assert _read(family).description, "the family needs a description."


def preset_fits_the_plugins(family: Presets, run: DistillRun) -> None:
    """Every entry names losses and spaces that are installed, and settings and rates that they take."""
    for entry in _read(family).entries:
        for fault in _misfits(entry):
            raise AssertionError(f"entry {entry.number}: {fault}")


def preset_names_a_known_protocol(family: Presets, run: DistillRun) -> None:
    """Where it says how the published numbers were judged, that is a protocol."""
    for entry in _read(family).entries:
        known = [*protocols.names(), ""]
        assert entry.protocol in known, f"entry {entry.number}: unknown protocol '{entry.protocol}'; leave it out, or name one."


def _misfits(entry: Preset) -> Iterator[str]:
    tensors = set()
    for role, kind in ROLES.items():
        asked = [name for table, _, name in (path.partition(".") for path in entry.unknown) if table == role]
        for name in entry.where.get(role, ()):
            source = registry.REGISTRIES[kind]
            try:
                settings = source.resolve(name, entry.set.get(role, {}))
                made = source.make(name, settings)
            except BenchError as error:
                yield str(error)
                continue
            yield from (
                f"'unknown' names '{role}.{key}', and {role} '{name}' has no such setting."
                for key in asked
                if key not in settings
            )
            tensors |= set(getattr(made, "tensors", ())) | set(getattr(made, "learned", ())) | set(getattr(made, "rates", ()))
    given = [*entry.set.get("rates", {}), *(path.removeprefix("rates.") for path in entry.unknown if path.startswith("rates."))]
    if {"loss", "space"} <= entry.where.keys():
        yield from (
            f"no tensor of its losses and spaces is called '{name}'." for name in given if name not in tensors | {"labels"}
        )


preset_checks: list[Check] = [preset_family_can_be_read, preset_fits_the_plugins, preset_names_a_known_protocol]
