"""The parser of the command line: a wrong word is answered with the near ones, and shells can complete the right ones."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from ddbench.errors import did_you_mean


class Parser(argparse.ArgumentParser):
    """argparse's, which also names the verb or the option that was probably meant."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Nothing is left over: what a parser does not know is a mistake, told by the verb that was given it."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}{self._near(rest)}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        """The usage, and the sentence. Ends the process with code 2."""
        if wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)$", message):
            message += did_you_mean(wrong[1], re.findall(r"[\w./-]+", wrong[2]))
        super().error(message)

    def _near(self, rest: Sequence[str]) -> str:
        """The options that unknown ones are probably meant for."""
        names = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        told = (did_you_mean(word.partition("=")[0], names) for word in rest if word.startswith("-"))
        return "".join(f".{text}" for text in told if text).rstrip(".")


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks how words can go on, where argcomplete is installed, and end; nothing otherwise."""
    if "_ARGCOMPLETE" in os.environ:
        with suppress(ImportError):
            import argcomplete

            argcomplete.autocomplete(parser)


def completed_by(action: argparse.Action, names: Callable[[], Iterable[str]], *endings: str) -> None:
    """Have shells complete the values of an argument: names, and the files of these endings."""

    def completer(prefix: str, **_: object) -> list[str]:
        import argcomplete

        files = argcomplete.FilesCompleter(endings)(prefix) if endings else []
        return [*names(), *files]

    action.completer = completer  # type: ignore[attr-defined]
