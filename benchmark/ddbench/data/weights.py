"""Files of trained weights that users bring: found by name, pinned by hash, read as data and never executed."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddbench.errors import ConfigError, DataError
from ddbench.files import sha256_file

FOLDER = "weights"  # of the data folder
MAX_BYTES = 16 << 30
MAX_DOCUMENT_BYTES = 1 << 20
INSIDE = ("state_dict", "model", "model_state_dict")  # where training scripts keep a network's tensors, beside other things


def find_weights(root: Path | None, file: str, sha256: str) -> Path:
    """The path of `weights/FILE` under the data folder; FILE may lie in one folder of its own there, `FOLDER/FILE`. Raises
    ConfigError for another path, DataError where the file is missing, too large, of another kind or not the one that the hash
    names."""
    path = _place(root, file, "weights")
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise DataError(f"the weights '{file}' must be a .safetensors, .pt or .pth file.")
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"the weights {path} are larger than {MAX_BYTES >> 30} GiB: name another file.")
    _check_hash(sha256_file(path), sha256, f"the weights {path} have")
    return path


def find_prepared(root: Path | None, file: str) -> Path:
    """The path of `weights/FILE` under the data folder, where `ddbench data prepare` has put it: a folder deep at most. Raises
    ConfigError for a name that leads elsewhere, DataError where the file is missing."""
    return _place(root, file, "prepared file")


def read_document(root: Path | None, file: str, sha256: str) -> bytes:
    """The bytes of a JSON file that describes weights and lies beside them. Raises as `find_weights`."""
    path = _place(root, file, "description")
    if path.suffix != ".json":
        raise DataError(f"the description '{file}' must be a .json file.")
    try:
        with path.open("rb") as opened:
            content = opened.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise DataError(f"the description {path} cannot be read: {error.strerror}.") from error
    if len(content) > MAX_DOCUMENT_BYTES:
        raise DataError(f"the description {path} is larger than {MAX_DOCUMENT_BYTES >> 20} MiB: it is hardly one.")
    _check_hash(hashlib.sha256(content).hexdigest(), sha256, f"the description {path} has")
    return content


def _place(root: Path | None, file: str, what: str) -> Path:
    """Where a file that the user was to bring lies."""
    parts = file.split("/")
    if not 1 <= len(parts) <= 2 or any(not part or Path(part).name != part or part.startswith(".") for part in parts):
        told = "must be named by file alone, or by one folder and a file, not by another path"
        raise ConfigError(f"the {what} {told}; got '{file}'.")
    if root is None:
        raise DataError(f"the {what} '{file}' must lie in the folder {FOLDER} of your data folder: set DDBENCH_DATA to that.")
    path = root / FOLDER / file
    if not path.is_file():
        raise DataError(f"the {what} '{file}' cannot be found: put this file at {path}.")
    return path


def _check_hash(found: str, wanted: str, what: str) -> None:
    if found != wanted.lower():
        told = f"{what} the SHA-256 {found}, not {wanted or 'an empty one'}"
        raise DataError(f"{told}: get the right file, or, if this is it, write that hash into the plan.")


def read_weights(root: Path | None, file: str, sha256: str) -> dict[str, Tensor]:
    """Its tensors on the CPU, by name; of a training script's checkpoint, those of the network. Raises as `find_weights`, and
    DataError where the file holds anything else than tensors under names."""
    path = find_weights(root, file, sha256)
    content = _read(path)
    for name in INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()) or not content:
        raise DataError(f"{path} must hold tensors under names, a state dict; save the network's state_dict() alone.")
    return {str(name): tensor for name, tensor in content.items()}


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        told = "holds more than tensors, and pickled code is never run"
        raise DataError(f"{path} {told}: save the network's state_dict() alone.") from error
    except Exception as error:  # damaged bytes can raise anything at all
        raise DataError(f"{path} cannot be read ({type(error).__name__}): get it anew.") from error
