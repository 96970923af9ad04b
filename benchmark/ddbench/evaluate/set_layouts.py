"""The layouts in which distilled sets are saved: one table, by which images, labels and what stands beside them are found."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddbench.errors import ConfigError, DataError
from ddbench.evaluate.set_files import MAX_SET_BYTES, SET_FILE, Content, Pictures, open_content
from ddbench.files import digest
from ddbench.ops.image_files import some

IMAGES = ("images", "image", "syn", "image_syn", "data", "arr_0")
LABELS = ("labels", "label", "label_syn", "targets", "arr_1")
RATES = ("learned_rate", "syn_lr")
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Found:
    """A set as it was saved, before anybody asks for which data set it is."""

    paths: tuple[Path, ...]
    images: Tensor
    labels: Tensor
    sha256: str  # of the file; of several, of their hashes
    experiment: int | None = None  # which of the file's sets it is; None where there is one only
    rate: Any = None  # that the set has learned
    class_names: tuple[str, ...] | None = None  # in the order in which the labels count them
    are_folders: bool = False  # the names are those of folders, which need not be names of classes
    meta: dict[str, Any] = field(default_factory=dict)  # what a file of ours says of itself; nothing of others
    zca_mean: Any = None  # that whitened the images
    zca_matrix: Any = None

    @property
    def name(self) -> str:
        """Of its file or files, for messages."""
        return name_of(self.paths)


def name_of(paths: Sequence[Path]) -> str:
    """Of files, in a sentence."""
    return " and ".join(map(str, paths))


@dataclass(frozen=True)
class _Parts:
    """What a layout finds in a file; nothing of it is checked."""

    images: Any
    labels: Any
    rate: Any = None
    more: dict[Any, Any] | None = None  # whatever else was saved beside them


@dataclass(frozen=True)
class Layout:
    """A way to save a set: whether it is this one, and where its parts are."""

    fits: Callable[[Any], bool]
    parts: Callable[[Any], _Parts]


def _is_sequence(value: Any, *lengths: int) -> bool:
    return isinstance(value, list | tuple) and len(value) in lengths


def _has_names(value: Any) -> bool:
    return isinstance(value, dict) and any(one in value for one in IMAGES) and any(one in value for one in LABELS)


def _by_names(value: dict[Any, Any]) -> _Parts:
    first = {what: next((one for one in names if one in value), None) for what, names in _ROLES.items()}
    return _Parts(value[first["images"]], value[first["labels"]], value.get(first["rate"]), value)


_ROLES = {"images": IMAGES, "labels": LABELS, "rate": RATES}
LAYOUTS = (
    Layout(lambda value: isinstance(value, Pictures), lambda value: _Parts(value.images, value.labels)),
    Layout(_has_names, _by_names),
    Layout(lambda value: _is_sequence(value, 2), lambda value: _Parts(*value)),
    Layout(lambda value: _is_sequence(value, 3), lambda value: _Parts(*value)),
)
"""The first that fits counts. Several files are a sequence of what they hold; of several experiments, one was chosen."""


def open_set(paths: Path | Sequence[Path], experiment: int | None = None) -> Found:
    """Open a set's file, its files of images, labels and learned rate in this order, or the folder of a store in which it lies;
    `experiment` chooses one of the sets of a file that has several. Raises ConfigError for what the caller must say or correct,
    DataError for what is wrong in a file."""
    given = [paths] if isinstance(paths, Path) else list(paths)
    paths = tuple(path / SET_FILE if (path / SET_FILE).is_file() else path for path in given)
    if not 1 <= len(paths) <= 3:
        raise ConfigError(f"a set is one file, or those of its images, labels and learned rate; got {len(paths)} paths.")
    contents = [open_content(path) for path in paths]
    name, first = name_of(paths), contents[0]
    value = first.value if len(contents) == 1 else [_bare(content) for content in contents]
    value, number = _chosen(name, value, experiment)
    layout = next((layout for layout in LAYOUTS if layout.fits(value)), None)
    if layout is None:
        raise _unknown(first, value)
    if isinstance(value, dict):
        _refuse_two(name, value)
    parts = layout.parts(value)
    sha256 = first.sha256 if len(contents) == 1 else digest([content.sha256 for content in contents])
    images, labels = _tensor(name, "images", parts.images), _tensor(name, "labels", parts.labels)
    more = parts.more or {}
    matrices = {what: _plain(name, what, more[what]) for what in ("zca_mean", "zca_matrix") if what in more}
    found = Found(paths, images, labels, sha256, number, parts.rate, meta=first.meta, **matrices)
    if isinstance(value, Pictures):
        return replace(found, class_names=_class_names(name, {"class_names": value.names}), are_folders=True)
    return replace(found, class_names=_class_names(name, first.meta or more))


def _bare(content: Content) -> Any:
    """What one of several files holds: a tensor by itself, or the only one under a name."""
    value = content.value
    if isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    if isinstance(value, dict | list | tuple | Pictures):
        told = "each must hold one tensor or array: images first, then labels, then the learned rate"
        raise DataError(f"{content.path} is one of several files, and {told}.")
    return value


def _chosen(name: str, value: Any, experiment: int | None) -> tuple[Any, int | None]:
    """Of a dictionary whose `data` are a list, as DC's code saves it, the pair of images and labels of an experiment."""
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(data, list | tuple) or _has_names(value):
        if experiment is not None:
            raise ConfigError(f"{name} holds one set: leave out --experiment.")
        return value, None
    if not data or not all(_is_sequence(one, 2) for one in data):
        raise DataError(f"{name}: its list 'data' must hold a pair of images and labels for each experiment, and does not.")
    if experiment is None and len(data) > 1:
        raise ConfigError(f"{name} holds the sets of {len(data)} experiments: add --experiment N, from 0 to {len(data) - 1}.")
    number = experiment or 0
    if not 0 <= number < len(data):
        raise ConfigError(f"{name} holds the sets of {len(data)} experiments, counted from 0: there is no --experiment {number}.")
    return data[number], number if len(data) > 1 else None


def _unknown(content: Content, value: Any) -> DataError | ConfigError:
    """What to do about something that is no layout."""
    path = content.path
    if isinstance(value, Tensor | np.ndarray):
        (here, there) = ("images", "labels") if value.ndim > 2 else ("labels", "images")
        other = path.with_name(path.name.replace(here, there))
        both = (path, other if other != path else path.with_name(f"{there}{path.suffix}"))
        command = shlex.join(["ddbench", "evaluate", *map(str, both if here == "images" else both[::-1])])
        return ConfigError(f"{path} holds {here} alone: name the file of images, then that of labels, as in: {command}")
    if isinstance(value, dict):
        held = some(sorted(map(_word, value))) if value else "nothing"
        names = f"images (or {', '.join(IMAGES[1:-1])}) and labels (or {', '.join(LABELS[1:-1])})"
        return DataError(f"{path} must hold the tensors {names}; it holds {held}.")
    what = f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, list | tuple) else "")
    told = "a dictionary of images and labels, a pair of them, or a triple with the learned rate"
    return DataError(f"{path} must hold {told}, got {what}.")


def _word(key: Any) -> str:
    """A name in a file, in a sentence; a stranger wrote it."""
    return key[:40] if isinstance(key, str) and key.isprintable() else f"a {type(key).__name__}"


def _refuse_two(name: str, value: dict[Any, Any]) -> None:
    for names in (IMAGES, LABELS):
        if len(held := [one for one in names if one in value]) > 1:
            raise DataError(f"{name} holds {' and '.join(held)}, which mean the same: save only the one that counts.")


def _class_names(name: str, beside: dict[Any, Any]) -> tuple[str, ...] | None:
    names = beside.get("class_names")
    if names is None:
        return None
    fits = isinstance(names, list | tuple) and names and all(isinstance(one, str) and one.isprintable() for one in names)
    if not fits:
        raise DataError(f"{name}: class_names must be a list of words, in the order in which the labels count the classes.")
    if len(set(names)) < len(names):
        raise DataError(f"{name}: class_names name a class twice.")
    return tuple(names)


def _tensor(name: str, what: str, value: Any) -> Tensor:
    """A tensor of numbers. Raises DataError, saying how to save one."""
    if isinstance(value, list | tuple):
        how = "torch.stack(images)" if what == "images" else "torch.tensor(labels)"
        raise DataError(f"{name}: {what} is a list: save {how}, one tensor.")
    value = _plain(name, what, value)
    if not isinstance(value, Tensor):
        raise DataError(f"{name}: {what} must be a tensor, got {type(value).__name__}.")
    return value


def _plain(name: str, what: str, value: Any) -> Any:
    """An array as a tensor; a tensor, of numbers that can be computed with; anything else as it is."""
    if isinstance(value, np.ndarray):
        try:
            value = torch.from_numpy(np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="), copy=False)))
        except (TypeError, ValueError) as error:
            raise DataError(f"{name}: {what} are {value.dtype}, no numbers that torch knows: save them as float32.") from error
    if not isinstance(value, Tensor):
        return value
    if value.dtype not in (*INTEGERS, *FLOATS):
        how = "labels.long()" if what == "labels" else f"{what}.float()"
        raise DataError(f"{name}: {what} must be floats or integers of up to 64 bits, got {value.dtype}: save {how}.")
    if value.numel() * 4 > MAX_SET_BYTES:
        raise DataError(f"{name}: {what} {list(value.shape)} take more than {MAX_SET_BYTES} bytes: it is hardly a distilled set.")
    return value
