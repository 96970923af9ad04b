"""The marker of a store: the file that says that a folder is one, and of which schema."""

from __future__ import annotations

from pathlib import Path

from ddbench import schema
from ddbench.errors import DataError, command
from ddbench.files import read_json
from ddbench.schema import SCHEMA, StoreMarker

MARKER = "store.json"
OURS = ("sets", "judgements", "resources", "trials")  # folders that only stores have together with their marker


def open_root(root: Path, create: bool) -> None:
    """Check the marker of a store, or make it. Raises DataError for another schema, for a folder of other things, and for no
    folder where `create` is False."""
    marker = root / MARKER
    if marker.is_file():
        number = read_json(marker, "store marker", f'Write {{"schema": {SCHEMA}}} into it.').get("schema")
        if type(number) is not int or not 1 <= number <= SCHEMA:
            told = f"store {root} has schema {number!r}, this ddbench reads {SCHEMA}"
            raise DataError(f"{told}. Update ddbench, or name another store.")
        if number < SCHEMA:
            raise DataError(f"store {root} was written by ddbench 0.1, which can still read it; name another store.")
    elif root.is_dir() and any((root / name).is_dir() for name in OURS):
        what = f"{root} holds the folders of a store and no {MARKER}, which says that it is one"
        raise DataError(f'{what}. If it is, put the line {{"schema": {SCHEMA}}} into {marker}; else name another with --store.')
    elif not create:
        raise DataError(f"there is no store at {root}. Make one with: {command('run', 'SUITE', '--store', root)}")
    elif root.exists() and (not root.is_dir() or any(not _is_begun(path) for path in root.iterdir())):
        raise DataError(f"{root} holds other things and no store.json: name an empty or new folder with --store.")
    else:
        schema.write(marker, StoreMarker())


def _is_begun(path: Path) -> bool:
    """Whether a file is a store's marker that another process is about to write, or was when it was killed."""
    return path.name.startswith(f".{MARKER}.")
