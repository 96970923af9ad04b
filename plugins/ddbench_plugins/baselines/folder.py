"""Images that others have made, in a folder of class folders: the door for methods that are not built in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddbench.api import UNKNOWN, Baseline, Batch, Run, Saw
from ddbench.errors import ConfigError, DataError
from ddbench.ops.class_images import decode_pictures, find_folder, folders_of, hash_of_classes, list_classes
from ddbench.ops.image_files import Folder
from ddbench.ops.moves import send
from ddbench.ops.selecting import labelled


@dataclass(frozen=True)
class ImagesOfOthers(Baseline):
    """folder: images of others by class, such as Minimax or D4M make them: IPC of each class, drawn by the seed.

    `folder`, below the data folder, holds a folder of images for each class, named by the data set's class names, its class ids
    or its numbers from 0 on; folders of other names are passed over where names or ids are found. Where a class has exactly IPC
    images, all seeds take them all. Images are resized and cropped as the real images of a data set of files are
    (`ddbench.ops.pictures`); labels are hard. `saw`: what the images, and whatever made them, have seen; unknown if not given.
    `sha256` of the whole content is found when a suite is read, and a folder that changes is another set.
    Source: none; the folder is the user's. Departures: none.
    Raises: ConfigError where a class has fewer than IPC images; DataError for a folder that is missing, was changed, lacks a
    class, or holds an image that cannot be read.
    """

    folder: str
    saw: Saw = UNKNOWN
    sha256: str = ""

    def pins(self, root: Path | None) -> Mapping[str, Any]:
        """The hash; and what the images saw, which has a place of its own on boards."""
        found = hash_of_classes(list_classes(find_folder(root, self.folder)))
        if self.sha256 and self.sha256 != found:
            told = f"the images in '{self.folder}' have the SHA-256 {found}, not {self.sha256}"
            raise DataError(f"{told}: put back those that were meant, or name that hash.")
        return {"sha256": found, "saw": sorted(self.saw)}

    def check(self, run: Run) -> None:
        """Whether the data set has such images, and each of its classes enough of them."""
        channels, height, width = run.spec.shape
        if height != width or channels not in (1, 3):
            told = f"'{run.spec.name}' has images of {channels} x {height} x {width}"
            raise ConfigError(f"{told}, and files of images give square ones, grey or in colour.")
        folders = self._folders(run, list_classes(run.user_folder(self.folder)))
        fewest = min(folders, key=lambda folder: len(folder.names))
        if len(fewest.names) < run.ipc:
            num = len(fewest.names)
            raise ConfigError(f"ipc {run.ipc} is more than the {num} images in {fewest.path}: lower it, or put more there.")

    def _folders(self, run: Run, held: Mapping[str, Folder]) -> list[Folder]:
        return folders_of(held, run.spec, run.user_folder(self.folder))

    def build(self, run: Run) -> Batch:
        """Images of class c by the stream ("folder", c), in the order of their names."""
        self.check(run)
        held = list_classes(run.user_folder(self.folder))
        if self.sha256 and hash_of_classes(held) != self.sha256:
            raise DataError(f"the images in {run.user_folder(self.folder)} have changed since they were planned: plan anew.")
        chosen = []
        for label, folder in enumerate(self._folders(run, held)):
            places = torch.randperm(len(folder.names), generator=run.rng("folder", label))[: run.ipc].sort().values
            pictures = folder.pictures(label)
            chosen += [pictures[place] for place in places.tolist()]
        pixels = torch.from_numpy(decode_pictures(chosen, run.spec.shape[1], run.spec.shape[0]))
        return labelled(run.spec.normalise(send(pixels, run.device)), run)
