"""The sealed test split. Only the evaluation of a finished set imports this module; a test walks the imports to prove it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddbench.data.host import HostImages, Images, stays
from ddbench.data.subsets import load_split
from ddbench.refs import PluginRef


@dataclass(frozen=True)
class TestData:
    """The official evaluation split on a device, as bytes: a quarter of the memory; batches are normalised when they are read.
    Images that are mapped from a file, or too many for the device, stay on the host and are read in batches."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    images: Images  # uint8 [N,C,H,W]
    labels: Tensor  # [N] int64

    @property
    def num_bytes(self) -> int:
        """What they take; nothing for images that stay on the host."""
        return self.images.nbytes + self.labels.nbytes


def open_test(ref: PluginRef, root: Path | None, device: torch.device) -> TestData:
    """Load it. Raises DataError where it is missing."""
    data = load_split(ref, "test", root)
    images: Images = data.images
    if stays(data.images, data.mapped, device):
        images = HostImages(data.images, torch.arange(len(data.images)), device)
    return TestData(images.to(device), data.labels.to(device))
