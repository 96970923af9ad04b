"""Downloads that the user asked for: whole or not at all, gone on with where they were cut off."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from ddbench.errors import ConfigError, DataError

MAX_BYTES = 16 << 30
CHUNK = 1 << 20
SECONDS = 60.0  # without a byte
AGAIN = "The same command goes on from there."

Progress = Callable[[int, int | None], None]
"""(bytes that are there, bytes in all; None: unknown)."""


def fetch(address: str, target: Path, progress: Progress) -> None:
    """Download into `target`, which appears once it is whole; what has come lies beside it, hidden, for another time. Raises
    ConfigError for an address that is none of the web's, DataError where the file cannot be had whole."""
    if urlsplit(address).scheme not in ("http", "https"):
        raise ConfigError(f"'{address}' is no address of a file on the web.")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(_beside(target, "lock"), timeout=0):
            _fetch(address, target, progress)
    except Timeout as error:
        raise DataError(f"{target} is being downloaded by another process: wait for it.") from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # urllib's are OSErrors; ValueError: addresses, chunk sizes
        told = " ".join(str(getattr(error, "reason", error)).split())[:200]
        raise DataError(f"{address} cannot be downloaded ({type(error).__name__}: {told}). {AGAIN}") from error


def _beside(target: Path, suffix: str) -> Path:
    """A hidden file, so that it is none that an asset may be: `x.pkl.part` can be one's name."""
    return target.with_name(f".{target.name}.{suffix}")


def _fetch(address: str, target: Path, progress: Progress) -> None:
    part, mark = _beside(target, "part"), _beside(target, "part.json")
    there = part.stat().st_size if part.is_file() else 0
    version = _version_of(mark, address) if there else ""
    request = urllib.request.Request(address, headers={"Accept-Encoding": "identity", "User-Agent": "ddbench"})
    if there and version:
        request.add_header("Range", f"bytes={there}-")
        request.add_header("If-Range", version)  # another version is sent whole
    try:
        answer = urllib.request.urlopen(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there is nothing behind what has come
            part.unlink(missing_ok=True)
            raise DataError(f"{address} is another file than the one that was begun: run the same command again.") from error
        raise
    with answer:
        start, total = _place(answer, part, there if version else 0, version)
        if total is not None and total > MAX_BYTES:
            raise DataError(f"{address} has {total} bytes, more than {MAX_BYTES >> 30} GiB: it is hardly what was meant.")
        told = {"address": address, "version": _version_in(answer)}
        mark.write_text(json.dumps(told))
        size = _receive(answer, part, start, total, progress)
    if total is not None and size != total:
        raise DataError(f"{address} ended after {size} of {total} bytes. {AGAIN}")
    if not size:
        part.unlink()
        raise DataError(f"{address} answers with nothing (status {answer.status}).")
    part.replace(target)
    mark.unlink(missing_ok=True)
    _beside(target, "lock").unlink(missing_ok=True)


def _version_of(mark: Path, address: str) -> str:
    """What the server called the version that was begun; nothing where it cannot be gone on with."""
    with contextlib.suppress(OSError, ValueError):
        told = json.loads(mark.read_text())
        if isinstance(told, dict) and told.get("address") == address and isinstance(told.get("version"), str):
            return "" if told["version"].startswith("W/") else told["version"]
    return ""


def _version_in(answer: Any) -> str:
    """What the server calls the version that it sends."""
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""


def _place(answer: Any, part: Path, there: int, version: str) -> tuple[int, int | None]:
    """Where the answer begins in the file, and how long the file is. Raises DataError for an answer that was not asked for."""
    length = answer.headers.get("Content-Length", "")
    num = int(length) if re.fullmatch(r"[0-9]{1,15}", length) else None
    if answer.status != 206:
        return 0, num
    found = re.fullmatch(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15})", answer.headers.get("Content-Range", ""))
    if not found or int(found[1]) != there or _version_in(answer) not in ("", version):
        raise DataError(f"{answer.url} answers with another part of the file than the one asked for: remove {part}.")
    return there, int(found[2])


def _receive(answer: Any, part: Path, start: int, total: int | None, progress: Progress) -> int:
    """Write what comes behind `start`; gives the size that the file has then."""
    with part.open("r+b" if start else "wb") as file:
        file.seek(start)
        size = start
        progress(size, total)
        while chunk := answer.read(CHUNK):
            size += len(chunk)
            if size > MAX_BYTES:
                raise DataError(f"{answer.url} has more than {MAX_BYTES >> 30} GiB: it is hardly what was meant.")
            file.write(chunk)
            progress(size, total)
        file.truncate()
    return size
