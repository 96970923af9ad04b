"""Data sets of image files: decoded once into one mapped file, from which they are read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

from ddbench.api import Dataset, LabelledImages, Split
from ddbench.ops import image_cache
from ddbench.ops.image_set import ImageSet


class ImageDataset(Dataset):
    """What such data sets share: all of it but their spec, and `image_set`, which says where the files are."""

    @abstractmethod
    def image_set(self, root: Path | None) -> ImageSet:
        """Its images. Raises DataError where they are not there."""

    def load(self, split: Split, root: Path | None) -> LabelledImages:
        """See Dataset. Builds the cache where there is none."""
        return image_cache.load(self.image_set(root), split, root)

    def files(self, root: Path | None) -> tuple[Path, ...]:
        """See Dataset."""
        return image_cache.source_files(self.image_set(root))

    def is_prepared(self, root: Path | None) -> bool:
        """See Dataset. Whether the cache is there, and of these very files."""
        return image_cache.is_built(self.image_set(root), root)

    def is_original(self, root: Path | None) -> bool:
        """Whether no image was skipped. What else a published data set must have, `image_set` asks for."""
        return image_cache.num_skipped(self.image_set(root), root) == 0

    def prepare(self, root: Path | None, progress: Callable[[str, float], None] | None = None) -> None:
        """See Dataset."""
        image_cache.prepare(self.image_set(root), root, progress)
