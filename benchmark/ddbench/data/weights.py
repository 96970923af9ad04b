"""Files of trained weights that users bring: found by name, pinned by hash, read as data and never executed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor

from ddbench.errors import ConfigError, DataError
from ddbench.ops.pickles.records import Thing, printable
from ddbench.ops.pickles.torch_files import read_torch
from ddbench.ops.steady import sha256_of, steady

FOLDER = "weights"  # of the data folder
MAX_BYTES = 16 << 30
MAX_DOCUMENT_BYTES = 1 << 20
INSIDE = ("state_dict", "model", "model_state_dict")  # where training scripts keep a network's tensors, beside other things


def find_prepared(root: Path | None, file: str) -> Path:
    """The path of `weights/FILE` under the data folder, where `ddbench data prepare` has put it: two folders deep at most. Raises
    ConfigError for a name that leads elsewhere, DataError where the file is missing."""
    return _place(root, file, "prepared file")


def read_document(root: Path | None, file: str, sha256: str) -> bytes:
    """The bytes of a JSON file that describes weights and lies beside them. Raises as `read_weights`."""
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
    if not 1 <= len(parts) <= 3 or any(not part or Path(part).name != part or part.startswith(".") for part in parts):
        told = "must be named by file alone, or by one folder or two and a file, not by another path"
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
    """The tensors of `weights/FILE` under the data folder, on the CPU, by name; of a training script's checkpoint, those of the
    network. FILE may lie in a folder of its own there, `FOLDER/FILE`, or in
    one in that.

    Raises ConfigError for another path, DataError where the file is missing, too large, of another kind or not the one that the
    hash names, and where it holds anything else than tensors under names.
    """
    path = _place(root, file, "weights")
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise DataError(f"the weights '{file}' must be a .safetensors, .pt or .pth file.")
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"the weights {path} are larger than {MAX_BYTES >> 30} GiB: name another file.")
    with steady(path) as opened:
        _check_hash(sha256_of(opened), sha256, f"the weights {path} have")
        is_torchs = path.suffix != ".safetensors"
        content = read_torch(opened, str(path), _network, strict=False) if is_torchs else _safetensors(path)
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"{path} {_other(content)}; save the network's state_dict() alone.")
    return content


def _network(content: Any) -> Any:
    """Of what a training script keeps, the tensors of its network."""
    inside = (content.get(name) for name in INSIDE) if isinstance(content, dict) else ()
    return next((part for part in inside if isinstance(part, dict)), content)


def _other(content: Any) -> str:
    """What is wrong with a file that holds something else than tensors under names."""
    things = [content, *content.values()] if isinstance(content, dict) else [content]
    thing = next((value for value in things if isinstance(value, Thing)), None)
    if thing is None:
        return "must hold tensors under names, a state dict"
    name = printable(thing.of.full) if thing.of else "an object"
    return f"holds more than tensors ({name}), and pickled code is never run"


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}): get it anew.") from error
