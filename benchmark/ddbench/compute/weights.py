"""Files of trained weights that users bring: found by name, pinned by hash, read as data and never executed."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddbench.errors import ConfigError, DataError
from ddbench.files import sha256_file

FOLDER = "weights"  # of the data folder
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")  # of a file or a folder
MAX_BYTES = 16 << 30
INSIDE = ("state_dict", "model", "model_state_dict")  # where training scripts keep a network's tensors, beside other things


def find_weights(root: Path | None, file: str, sha256: str) -> Path:
    """The path of `weights/FILE` under the data folder. Raises ConfigError for a name that is a path, DataError where the file is
    missing, too large, of another kind or not the one that the hash names."""
    if not file or Path(file).name != file or file.startswith("."):
        raise ConfigError(f"weights are named by their file alone, such as resnet18.safetensors, not by a path; got '{file}'.")
    if root is None:
        raise DataError(f"the weights '{file}' belong into the folder {FOLDER} of your data folder: set DDBENCH_DATA to that.")
    path = root / FOLDER / file
    if not path.is_file():
        raise DataError(f"the weights '{file}' are not there: put them at {path}.")
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise DataError(f"the weights '{file}' must be a .safetensors, .pt or .pth file.")
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"the weights {path} are larger than {MAX_BYTES >> 30} GiB: name another file.")
    found = sha256_file(path)
    if found != sha256.lower():
        told = f"the weights {path} have the SHA-256 {found}, not {sha256 or 'an empty one'}"
        raise DataError(f"{told}: get the right file, or, if this is it, write that hash into the plan.")
    return path


def find_prepared(root: Path | None, file: str) -> Path:
    """The path of `weights/FILE` under the data folder, where `ddbench data prepare` has put it: a folder deep at most. Raises
    ConfigError for a name that leads elsewhere, DataError where the file is missing."""
    parts = file.split("/")
    if not 1 <= len(parts) <= 2 or not all(NAME.fullmatch(part) for part in parts):
        raise ConfigError(f"prepared files have names such as stylegan-xl/imagenet128.json, got '{file}'.")
    if root is None:
        raise DataError(f"the prepared file '{file}' belongs into {FOLDER} of your data folder: set DDBENCH_DATA to that.")
    path = root.joinpath(FOLDER, *parts)
    if not path.is_file():
        raise DataError(f"the prepared file {path} is not there: `ddbench data list` says what is.")
    return path


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
