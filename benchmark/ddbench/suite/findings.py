"""What reading a suite finds out: its faults, the plugins that are broken, and what the others answer. Each is asked once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ddbench.errors import BenchError, DataError, Faults, PluginError
from ddbench.refs import PluginRef
from ddbench.registry import REGISTRIES
from ddbench.settings import REQUIRED
from ddbench.suite import presets


class Findings:
    """Collected while a suite is read, so that a user mends all its faults at once."""

    def __init__(self, lenient: bool = False) -> None:
        """Nothing yet. `lenient`: what is missing is no fault, for a reader who only wants to see the grid."""
        self.lenient = lenient
        self.missing: dict[PluginRef, str] = {}  # a sentence for everything that cannot be looked at; only where that is no fault
        self.faults: list[str] = []
        self.broken: list[str] = []  # a sentence for every plugin that cannot be used; its cells are left out
        self._plugins: dict[str, PluginRef | None] = {}
        self._answers: dict[tuple[Any, ...], Any] = {}

    def fault(self, sentence: str | BenchError) -> None:
        """Remember it, once."""
        several = sentence.faults if isinstance(sentence, Faults) else (str(sentence),)
        self.faults.extend(one for one in several if one not in self.faults)

    def lacks(self, ref: PluginRef, error: DataError) -> None:
        """Files of a plugin are missing or damaged: a fault, unless lenient."""
        if self.lenient:
            self.missing.setdefault(ref, str(error))
        else:
            self.fault(error)

    def broke(self, error: PluginError) -> None:
        """Remember a broken plugin, once."""
        self.broken.extend([str(error)] if str(error) not in self.broken else [])

    @property
    def complete(self) -> bool:
        """Whether no cell of the grid was left out."""
        return not (self.faults or self.broken)

    def typed(self, value: Any, kind: type, where: str, default: Any) -> Any:
        """The value; the default, and a fault, where it is not of the type."""
        if fault := presets.misfit(value, kind, where):
            self.fault(fault)
            return default
        return float(value) if kind is float else value

    def plugin(self, kind: str, entry: Any, extra: Mapping[str, Any] | None = None) -> PluginRef | None:
        """A name, or a table of a name and settings; `extra` settings go on top. None, and remembered, where it cannot be made.
        The same settings give the same object."""
        table = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(table, dict) or not isinstance(table.get("name"), str):
            self.fault(f"an entry of {kind} must be a name or a table with a name, got {entry!r}.")
            return None
        settings = {key: value for key, value in table.items() if key != "name"} | dict(extra or {})
        key = repr((kind, table["name"], sorted(settings.items(), key=lambda item: item[0])))
        if key not in self._plugins:
            self._plugins[key] = self._guarded(lambda: PluginRef.resolve(kind, table["name"], settings))
        return self._plugins[key]

    def check_names(self, kind: str, entries: Sequence[Any]) -> None:
        """Look at entries that no cell is read of, so that their faults are told with the others: at names always, at settings
        where all that are required stand in the entry, for a place could give the others."""
        for entry in entries:
            table = {"name": entry} if isinstance(entry, str) else entry
            name = table.get("name") if isinstance(table, dict) else None
            known = self._guarded(partial(REGISTRIES[kind].known, name)) if isinstance(name, str) else {}
            if known is not None and all(setting.default is not REQUIRED or key in table for key, setting in known.items()):
                self.plugin(kind, entry)

    def answer(self, question: str, ref: PluginRef, ask: Callable[[Any], Any], *about: Any) -> Any:
        """What a plugin answers; None, and remembered, where it raises. `question` and `about` tell questions apart: the same one
        is asked once."""
        key = (question, ref, *about)
        if key not in self._answers:
            self._answers[key] = self._guarded(lambda: ref.ask(ask))
        return self._answers[key]

    def pinned(self, ref: PluginRef, root: Path | None) -> PluginRef | None:
        """A plugin with the settings that its files in the data folder decide; as it is where they are missing and the reader is
        lenient; None, and remembered, where that is a fault."""

        def pin() -> PluginRef | None:
            try:
                pins = ref.ask(lambda plugin: dict(plugin.pins(root)))
                return ref.pinned(pins) if pins else ref
            except DataError as error:
                self.lacks(ref, error)
                return ref if self.lenient else None

        key = ("pins", ref, root)
        if key not in self._answers:
            self._answers[key] = self._guarded(pin)
        return self._answers[key]

    def _guarded(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except PluginError as error:  # broken, not misnamed: it takes only its own cells with it
            self.broke(error)
        except BenchError as error:
            self.fault(error)
        return None
