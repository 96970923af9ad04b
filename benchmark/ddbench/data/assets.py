"""Files that users bring, such as published weights: where they belong, what was made of them, whether they are still the same.

The SHA-256 of a file is recorded beside where it belongs when it is first used, and checked from then on. What is made of it says
itself what it was made of, and is checked without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from ddbench import registry
from ddbench.api import Asset, AssetFacts
from ddbench.data.fetch import Progress, fetch
from ddbench.errors import BenchError, ConfigError, DataError, PluginError, did_you_mean
from ddbench.files import read_json, sha256_file, write_json
from ddbench.ops.steady import ChangedError, sha256_of, steady
from ddbench.settings import REQUIRED

RECORD_SCHEMA = 1
RECORD = ".sha256.json"  # behind the name of a file, is its record
MAX_MEMBERS = 1000  # of a family, that are listed
HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Placed:
    """An asset and where its files belong in a data folder."""

    name: str
    asset: Asset
    facts: AssetFacts
    root: Path

    @property
    def source(self) -> Path:
        """What the user brings."""
        return self.root / self.facts.source

    @property
    def files(self) -> tuple[Path, ...]:
        """What is made of it."""
        return tuple(self.root / file for file in self.facts.files)

    @property
    def record(self) -> Path:
        """What its hash was."""
        return self.source.with_name(self.source.name + RECORD)

    @property
    def state(self) -> str:
        """`prepared`, `there` (not yet prepared), or `missing`; by names alone."""
        if self.files and all(path.is_file() for path in self.files):
            return "prepared"
        return "there" if self.source.is_file() else "missing"

    @property
    def is_there(self) -> bool:
        """Whether there is anything of it."""
        return any(path.is_file() for path in (self.source, *self.files))


def names(root: Path | None) -> Iterator[str]:
    """Every asset by name; of a family its members. A plugin that cannot be asked is left out."""
    for name in registry.assets.names():
        with suppress(BenchError):
            target = registry.assets.target(name)
            if any(setting.default is REQUIRED for setting in registry.assets.known(name).values()):
                members = target.members(root) if isinstance(target, type) and issubclass(target, Asset) else ()
                yield from (f"{name}/{member}" for member in list(members)[:MAX_MEMBERS])
            else:
                yield name


def place(name: str, root: Path | None) -> Placed:
    """An asset by name. Raises ConfigError for an unknown one, or without a data folder; PluginError for one that is broken."""
    if root is None:
        raise ConfigError("set DDBENCH_DATA to the folder that holds your data, or name it with --root.")
    if name.partition("/")[0] not in registry.assets.names():
        known = list(names(root))
        near = did_you_mean(name, known) or next((f" Did you mean '{one}'?" for one in known if one.endswith(f"/{name}")), "")
        raise ConfigError(f"unknown asset '{name}'.{near} `ddbench data list` shows them all.")
    asset: Asset = registry.assets.make(name)
    facts = _asked(name, asset.facts)
    for path in (facts.source, *facts.files):
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts:
            raise PluginError(f"asset '{name}' names a file outside of the data folder: {path}.")
        if parts[-1].startswith(".") or parts[-1].endswith(RECORD):
            raise ConfigError(f"asset '{name}' would have the file {path}, a name that ddbench keeps for itself: choose another.")
    return Placed(name, asset, facts, root)


def prepare(placed: Placed, given: Path | None, download: bool, progress: Progress) -> tuple[str, ...]:
    """Make what runs read; gives what the user should know. `given` is a file to take instead of the one in its place, `download`
    fetches it if it is missing. Raises DataError or ConfigError."""
    if given is None and placed.state == "prepared":
        _asked(placed.name, lambda: placed.asset.check(placed.root))
        return (f"{placed.name} is prepared already.",)
    source = _source(placed, given, download, progress)
    with _alone(placed), _undone(placed), steady(source) as file:
        sha256 = sha256_of(file)
        recorded = _recorded(placed)
        if recorded not in ("", sha256):
            told = f"{source} has the SHA-256 {sha256}, and {recorded} when '{placed.name}' was first used"
            raise DataError(f"{told}: get the file anew, or remove {placed.record} if it is meant to be another.")
        messages = _asked(placed.name, lambda: tuple(placed.asset.prepare(source, sha256, placed.root)))
    if not recorded:
        about = {"name": placed.name, "sha256": sha256, "bytes": source.stat().st_size}
        write_json(placed.record, {"schema": RECORD_SCHEMA} | about)
    return messages


@contextmanager
def _alone(placed: Placed) -> Iterator[None]:
    """Nobody else prepares it meanwhile, so that what a killed process has left of its files, unfinished, can be removed."""
    lock = placed.record.with_name(f".{placed.record.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            try:
                for target in (*placed.files, placed.record):
                    for path in target.parent.glob(f".{escape(target.name)}.*.tmp"):
                        path.unlink(missing_ok=True)
                yield
            finally:
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise DataError(f"'{placed.name}' is being prepared by another process: wait for it.") from error


@contextmanager
def _undone(placed: Placed) -> Iterator[None]:
    """Where the source was swapped meanwhile, files that were not there before are removed: nobody knows what made them."""
    before = [path for path in placed.files if path.exists()]
    try:
        yield
    except ChangedError:
        for path in placed.files:
            if path not in before:
                path.unlink(missing_ok=True)
        raise


def _source(placed: Placed, given: Path | None, download: bool, progress: Progress) -> Path:
    if given is not None:
        if not given.is_file():
            raise DataError(f"{given} is no file: name the one that holds '{placed.name}'.")
        return given
    if placed.source.is_file():
        return placed.source
    address = placed.facts.address
    if download and address:
        fetch(address, placed.source, progress)
        return placed.source
    if download:
        raise ConfigError(f"ddbench knows no address of '{placed.name}': put it at {placed.source}, or name it with --from.")
    told = f" It is published at {address}; add --download to have it fetched." if address else ""
    raise DataError(f"'{placed.name}' is not there: put its file at {placed.source}, or name it with --from FILE.{told}")


def verify(placed: Placed) -> list[str]:
    """A sentence for each file of it that is not what it was; hashes them all."""
    if not placed.is_there:
        return [f"{placed.name} is missing: put its file at {placed.source}."]
    faults, recorded = [], ""
    try:
        recorded = _recorded(placed)
        if any(path.is_file() for path in placed.files):
            _asked(placed.name, lambda: placed.asset.check(placed.root))
    except BenchError as error:
        faults.append(f"{placed.name}: {error}")
    if recorded and placed.source.is_file() and (found := sha256_file(placed.source)) != recorded:
        told = f"has the SHA-256 {found}, and {recorded} when it was first used: get it anew"
        faults.append(f"{placed.name}: {placed.source} {told}.")
    return faults


def _recorded(placed: Placed) -> str:
    """The hash that the file had when it was first used; nothing where it was not. Raises DataError for a damaged record."""
    if not placed.record.is_file():
        return ""
    remedy = "Remove it: the hash is recorded again."
    found = read_json(placed.record, "record", remedy)
    sha256 = found.get("sha256")
    if found.get("schema") != RECORD_SCHEMA or not isinstance(sha256, str) or not HASH.fullmatch(sha256):
        raise DataError(f"record {placed.record} is none of ddbench's. {remedy}")
    return sha256


def _asked(name: str, question: Callable[[], Any]) -> Any:
    """What the plugin answers. Raises PluginError for whatever a stranger's code raises."""
    try:
        return question()
    except (BenchError, OSError):
        raise
    except Exception as error:
        told = " ".join(str(error).split())[:200]
        raise PluginError(f"asset '{name}' is broken: {type(error).__name__}: {told}.") from error
