"""Checking a whole store: sets and judgements, what they share, the suites, and what is nothing of a store's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from ddbench.errors import DataError
from ddbench.results.contents import Contents, read_contents
from ddbench.results.folders import Fault, fault_of, stranger
from ddbench.results.layout import FOLDERS, entries, is_key16
from ddbench.results.log import NAME as LOG
from ddbench.results.log import OLDER as OLDER_LOG
from ddbench.results.marker import MARKER
from ddbench.results.store import Store

BESIDE = (MARKER, "leaderboard", LOG, OLDER_LOG)  # what else lies in a store: the page that `ddbench run` renders, and the log


@dataclass(frozen=True)
class Verified:
    """What a store holds, and all that is wrong with it."""

    contents: Contents
    resources: tuple[str, ...]  # short keys of the sound ones
    suites: tuple[str, ...]  # names of the sound files
    faults: tuple[Fault, ...]  # those of the contents among them


def verify(store: Store) -> Verified:
    """Read every byte."""
    contents = read_contents(store)
    faults = list(contents.faults)
    faults += [stranger(path) for path in entries(store.root) if path.name not in (*FOLDERS, *BESIDE)]
    resources = tuple(_resources(store, faults))
    suites = tuple(_suites(store, faults))
    faults.sort(key=lambda fault: (str(fault.path), fault.sentence))
    return Verified(contents, resources, suites, tuple(faults))


def _resources(store: Store, faults: list[Fault]) -> Iterator[str]:
    for folder in entries(store.root / "resources"):
        if not is_key16(folder.name) or not folder.is_dir():
            faults.append(stranger(folder))
            continue
        try:
            store.resources.read(folder.name)
            yield folder.name
        except (DataError, OSError) as error:
            faults.append(fault_of(folder, error))


def _suites(store: Store, faults: list[Fault]) -> Iterator[str]:
    for path in entries(store.root / "suites"):
        try:
            if path.stem.endswith(f"-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}") and path.suffix == ".toml":
                yield path.name
            else:
                what = f"suite {path} is not the text that its name was made of"
                faults.append(Fault(path, f"{what}. Remove it: results do not hang on it."))
        except OSError as error:
            faults.append(fault_of(path, error))
