"""Files that users bring beside data sets and catalogued weights: who reads them, whether they are there and the right ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from ddbench.api import UserFile
from ddbench.data import assets
from ddbench.data.weights import FOLDER
from ddbench.entry_points import NOUNS
from ddbench.errors import BenchError
from ddbench.files import sha256_file
from ddbench.registry import baselines, generators, losses, proxies
from ddbench.settings import REQUIRED

READERS = (generators, proxies, losses, baselines)  # the kinds of plugins that read such files
KINDS = (".safetensors", ".pt", ".pth", ".json")  # that plugins read

RECORD = ".sha256.json"  # of the hash of a catalogued file
NOBODYS = "no installed plugin reads it by default; a suite may name it"


@dataclass(frozen=True)
class Brought:
    """Such a file, there or not."""

    file: UserFile
    readers: tuple[str, ...]  # `generator 'tiny-autoencoder'`; none of what merely lies there
    path: Path | None  # where it belongs, without a data folder under the name of its variable; None for a package

    @property
    def state(self) -> str:
        """`there`, `installed` or `missing`, by names alone."""
        if self.file.module:
            return "installed" if _is_installed(self.file.module) else "missing"
        return "there" if self.path and self.path.is_file() else "missing"

    def verify(self) -> tuple[str, list[str]]:
        """In a word, and in a sentence where it has not the hash that a plugin names; hashes it."""
        state = self.state
        if state != "there" or self.path is None:
            told = f"put it at {self.path}" if self.path else f"pip install '{self.file.file}'"
            return state, [f"{self.file.file} is missing: {told}."] * (state == "missing")
        found, wanted = sha256_file(self.path), self.file.sha256.lower()
        if wanted and found != wanted:
            readers = " and ".join(self.readers)
            return "another file", [f"{self.path} has the SHA-256 {found}, and {readers} reads {wanted}: get the right one."]
        return "as its reader names it" if wanted else f"there, SHA-256 {found}", []


def installed_readers() -> Iterator[tuple[str, Any]]:
    """Every plugin that may read such files, by what it is called, with its default settings; none that needs others, or is
    broken."""
    for registry in READERS:
        for name in registry.names():
            with suppress(BenchError):
                if all(setting.default is not REQUIRED for setting in registry.known(name).values()):
                    yield f"{NOUNS[registry.kind]} '{name}'", registry.make(name)


def user_files(root: Path | None, readers: Iterable[tuple[str, Any]]) -> list[Brought]:
    """What these plugins read, each file once for each hash, then whatever else lies in the folder of weights."""
    found: dict[tuple[str, ...], tuple[UserFile, list[str]]] = {}
    for reader, plugin in readers:
        for file in _brought_by(plugin):  # whatever words a plugin has for it: the first one's count
            found.setdefault((file.file, file.sha256.lower(), file.module), (file, []))[1].append(reader)
    named = [Brought(file, tuple(dict.fromkeys(by)), _path(file, root)) for file, by in found.values()]
    known = {one.path for one in named} | set(_of_assets(root))
    others = [path for path in _in_folder(root) if path not in known]
    return [*named, *(Brought(UserFile(path.relative_to(_folder(root)).as_posix(), NOBODYS), (), path) for path in others)]


def _brought_by(plugin: Any) -> tuple[UserFile, ...]:
    """Nothing of a plugin that cannot be asked: whoever uses it is told why."""
    try:
        return tuple(file for file in plugin.brings() if isinstance(file, UserFile) and _is_inside(file))
    except Exception:  # a stranger's code
        return ()


def _is_installed(module: str) -> bool:
    """Without importing it; what it lies in is imported, and may not be there either."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _is_inside(file: UserFile) -> bool:
    parts = PurePosixPath(file.file).parts
    return 1 <= len(parts) <= 3 and not {"..", "/"} & set(parts)


def _folder(root: Path | None) -> Path:
    return (root or Path("DDBENCH_DATA")) / FOLDER


def _path(file: UserFile, root: Path | None) -> Path | None:
    return None if file.module else _folder(root) / file.file


def _in_folder(root: Path | None) -> Iterator[Path]:
    """The files of the folder, of the folders in it and of those in these, by name."""
    folder = _folder(root)
    for path in sorted([*folder.glob("*"), *folder.glob("*/*"), *folder.glob("*/*/*")]) if root else ():
        if path.is_file() and path.suffix in KINDS and not path.name.startswith(".") and not path.name.endswith(RECORD):
            yield path


def _of_assets(root: Path | None) -> Iterator[Path]:
    """The files of catalogued weights, which have rows of their own."""
    for name in assets.names(root) if root else ():
        with suppress(BenchError):
            placed = assets.place(name, root)
            yield from (placed.source, *placed.files)
