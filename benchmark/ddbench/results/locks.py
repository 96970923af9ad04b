"""Locks between processes: held by whoever computes something, and freed by the system when that process dies."""

from __future__ import annotations

import errno
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from ddbench.errors import DataError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)


class StoreLock(FileLock):
    """A lock file. Use it as a context, or `acquire(timeout=0)`, which raises `filelock.Timeout` where another holds it."""

    def acquire(self, *args: Any, **kwargs: Any) -> Any:
        """Take it. Raises DataError where the file system refuses, and Timeout."""
        try:
            return super().acquire(*args, **kwargs)
        except Timeout:
            raise
        except (OSError, NotImplementedError) as error:
            raise _refused(Path(self.lock_file), error) from error


class Locks:
    """A folder of locks, by the name of what they guard. Whether the file system gives any is tried once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tried = folder, False

    def lock(self, name: str) -> BaseFileLock:
        """The lock of that name; it is not taken yet. Raises DataError where the file system gives none."""
        if not self.tried:
            check_locks(self.folder)
            self.tried = True
        return StoreLock(self.folder / f"{name}.lock")


def check_locks(folder: Path) -> None:
    """Take a lock that nobody else can hold. Raises DataError where the file system gives none: some versions of filelock wait
    for ever there."""
    try:
        import fcntl
    except ImportError:  # Windows, which always locks
        return
    path = folder / f".probe.{uuid.uuid4().hex}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(handle)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _refused(path: Path, error: Exception) -> Exception:
    """What to do where the file system gives no lock, or its user no right to make one; the error itself where it is something
    else, such as a full disc."""
    why = getattr(error, "strerror", None) or str(error)
    if isinstance(error, OSError) and error.errno in _NO_RIGHT:
        return no_right(path.parent, error)
    if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
        return error
    what = f"this file system gives no locks ({why}: {path})"
    return DataError(f"{what}: name a store on a local disc or on one that is mounted with locks, with --store.")


def is_without_right(error: OSError, root: Path) -> bool:
    """Whether it says that something under a store may not be written, or read."""
    return error.errno in _NO_RIGHT and isinstance(error.filename, str) and root in Path(error.filename).parents


def no_right(path: Path, error: OSError) -> DataError:
    """What to do where a store may not be written to."""
    if error.errno == errno.EROFS:
        return DataError(f"{path} is mounted to be read only: name a store elsewhere with --store.")
    what = f"you have no right to write in {path} ({error.strerror})"
    return DataError(
        f"{what}. Whoever owns it can let their group in (chmod -R g+rwX, and umask 002 for what comes); or name another --store."
    )
