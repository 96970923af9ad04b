"""Files that appear whole or not at all, and reading of untrusted JSON, TOML and tensors within bounds."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tomllib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ddbench.errors import DataError

MAX_JSON_BYTES = 256 << 20
REMEDY = "Remove it, then run again to make it anew."
MAX_DEPTH = 32  # of tables and lists in one another, in a text that a user has written
MAX_INTEGER = 1 << 63
_LONG_KEY = re.compile(rf"(?<![\w\"'-])(?:[\w\"'-]+[ \t]*\.[ \t]*){{{MAX_DEPTH}}}")  # tomllib takes a minute for one of thousands


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces. Raises ValueError for numbers that are not finite."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """The SHA-256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def write_bytes(path: Path, content: bytes, durable: bool = True) -> None:
    """Write beside the target, flush to disc if it must outlive a power cut, then rename over it. Raises DataError if a folder is
    in its place."""
    if path.is_dir():
        raise DataError(f"{path} is a folder and must be a file: name another path.")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_if_changed(path: Path, content: bytes) -> None:
    """Write what can be made again at any time; nothing where the file already holds it."""
    if not (path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content):
        write_bytes(path, content, durable=False)


def write_json(path: Path, value: Any) -> None:
    """Indented, sorted by key, ending in a newline."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path, what: str, remedy: str = REMEDY) -> dict[str, Any]:
    """An object from a JSON file. Raises DataError, naming the file, if it is missing, too large, cut short or no object;
    `remedy` ends the sentence."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a device or a pipe may never end
            raise DataError(f"{what} {path} is no regular file: name another.")
        if about.st_size > MAX_JSON_BYTES:
            raise DataError(f"{what} {path} is larger than {MAX_JSON_BYTES} bytes: it is not one of ddbench's. Move it away.")
        value = parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{what} {path} is missing. {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} {path} is damaged or cut short ({error}). {remedy}") from error
    if not isinstance(value, dict):
        raise DataError(f"{what} {path} holds no JSON object. {remedy}")
    return value


def parse_json(content: bytes | str) -> Any:
    """JSON without lone surrogates, which no UTF-8 holds: whoever writes them on fails. Raises ValueError and RecursionError."""
    value = json.loads(content)
    if (b"\\ud" if isinstance(content, bytes) else "\\ud") in content.lower():  # type: ignore[operator]
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("a text in it has half of a surrogate pair") from error
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """TOML that a user has written. Raises ValueError, with what is wrong in it, for what is no TOML, for deep nesting, for an
    integer that 64 bits do not hold, and for a text with a null byte, which no path may have."""
    if _LONG_KEY.search(text):
        raise ValueError(f"a key has more than {MAX_DEPTH} parts")
    try:
        values = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it nests too deep") from error
    except ValueError as error:
        if isinstance(error, tomllib.TOMLDecodeError):
            raise
        raise ValueError("a number in it is out of range") from error
    _check_plain(values, MAX_DEPTH)
    return values


def _check_plain(value: Any, depth: int) -> None:
    if depth < 0:
        raise ValueError(f"it nests deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_plain(item, depth - 1)
    elif isinstance(value, int) and not -MAX_INTEGER <= value < MAX_INTEGER:
        raise ValueError("an integer in it has more than 64 bits")
    elif isinstance(value, str) and "\0" in value:
        raise ValueError("a text in it has a null byte")


def tensors_to_bytes(tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> bytes:
    """Safetensors with a JSON object as the one metadata entry `ddbench`; equal input gives equal bytes.

    One entry only, because the library writes several in no fixed order. Tensors that share memory (tied weights), which
    the library refuses, are written once each.
    """
    from safetensors.torch import save

    text = json.dumps(meta or {}, sort_keys=True)
    own, seen = dict[str, Tensor](), set[int]()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        start = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone() if start in seen else tensor
        seen.add(start)
    return save(own, {"ddbench": text})


def read_tensors(path: Path, what: str, remedy: str = REMEDY) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON object of `tensors_to_bytes`. Raises DataError, naming the file, if it is missing or damaged;
    `remedy` ends the sentence."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            meta = parse_json((file.metadata() or {}).get("ddbench", "{}"))
    except FileNotFoundError as error:
        raise DataError(f"{what} {path} is missing. {remedy}") from error
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise DataError(f"{what} {path} is damaged or cut short ({error}). {remedy}") from error
    return tensors, meta


def sha256_file(path: Path) -> str:
    """The file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_tensors(path: Path) -> str:
    """Of a safetensors file's tensors alone, without its metadata: equal for equal tensors under equal names; empty for a file
    that is none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length)) if length <= MAX_JSON_BYTES else None
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict):
            return ""
        described = {name: value for name, value in header.items() if name != "__metadata__"}
        sha = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def publish(folder: Path, target: Path) -> bool:
    """Rename a finished folder to its place in one step; False, and the folder is removed, if another got there first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for each in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        _sync(each)
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(folder)
        return False
    _sync(target.parent)
    return True


def _sync(folder: Path) -> None:
    """Flush a folder's list of names to disc, so that a power cut cannot show the folder without its files."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
