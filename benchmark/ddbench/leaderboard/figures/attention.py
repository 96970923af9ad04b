"""Class-activation maps over synthetic images, by a classifier of the real training images; no test image has a part in it.

Like Figure 9 of H-PD (Zhong et al., Hierarchical Features Matter, CVPR 2025).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ddbench.compute.attention import trained_classifier
from ddbench.compute.picture import WALK_COLUMNS
from ddbench.data.subsets import identify, load_training
from ddbench.errors import DataError
from ddbench.leaderboard.figures.drawing import Drawn
from ddbench.leaderboard.figures.pictures import as_tiles, class_names, sheet
from ddbench.leaderboard.join import Result
from ddbench.leaderboard.rows import Row
from ddbench.ops.attention import class_activation
from ddbench.refs import PluginRef
from ddbench.results.store import Store

SHARE = 0.55  # of the colour of a map in what is shown, where it is highest


@dataclass
class Classifiers:
    """Networks that look at sets: each is trained once for all sets of a subset."""

    network: PluginRef | None  # None: the backbone of each set
    epochs: int
    device: torch.device
    data_root: Path | None
    say: Callable[[str], None] = lambda told: None
    trained: dict[tuple[str, str], nn.Module] = field(default_factory=dict)

    def of(self, result: Result) -> tuple[nn.Module, PluginRef] | None:
        """That for a set; None where nothing names its architecture. Raises DataError where the training images are not those of
        the set."""
        ref = self.network or result.plan.backbone
        if ref is None:
            return None
        plan = result.plan
        known = plan.train_hash, ref.label
        if known not in self.trained:
            if identify(plan.dataset, self.data_root).train_hash != plan.train_hash:
                what = f"the training images of '{plan.dataset.label}' are not those that the sets were made from"
                raise DataError(f"{what}: use these, or leave out --cam.")
            self.say(f"training {ref.label} on the training images of {plan.dataset.label}, {self.epochs} epochs")
            data = load_training(plan.dataset, self.data_root, 0.0, self.device)
            self.trained[known] = trained_classifier(ref, data, self.device, self.epochs, plan.threads)
        return self.trained[known], ref


def attention_figure(store: Store, row: Row, result: Result, classifiers: Classifiers) -> Drawn | None:
    """Of a set; None where nothing names an architecture."""
    found = classifiers.of(result)
    if found is None:
        return None
    network, ref = found
    tensors, meta = store.read_set(result.key)
    labels = torch.arange(min(int(tensors["classes"].max()) + 1, WALK_COLUMNS))
    index = torch.searchsorted(tensors["classes"].contiguous(), labels)
    images = tensors["images"][index].to(classifiers.device)
    maps = class_activation(network, images, labels.to(classifiers.device)).cpu()
    right = [bool(same) for same in network(images).argmax(1).cpu() == labels]
    plain = as_tiles(tensors["images"], tensors["classes"], meta)
    over = [overlay(tile, map) for tile, map in zip(plain, maps, strict=True)]
    png, svg = sheet([plain, over], ["images", f"where {ref.label} looks"], class_names(result)[:WALK_COLUMNS])
    caption = (
        "Grad-CAM of the logit of each image's own class, over the first image of each class: blue is no support, yellow most "
        f"support. {ref.label} was trained for this picture, {classifiers.epochs} epochs on the real training images; it takes "
        f"{sum(right)} of these {len(right)} images for their class."
    )
    values = {"kind": "attention", "method": row.name, "seed": result.seed, "network": ref.label, "right": right}
    return Drawn(f"Class-activation maps: {row.name}, seed {result.seed}", caption, png, svg, values)


def overlay(tile: np.ndarray, map: Tensor) -> np.ndarray:
    """A map [H,W] in [0, 1] in colours over pixels [H,W,3] that are made grey, so that colour is the map's alone."""
    import matplotlib

    grey = tile.astype(float).mean(2, keepdims=True).repeat(3, 2)
    colours = matplotlib.colormaps["cividis"](map.numpy())[:, :, :3] * 255
    return np.asarray(((1 - SHARE) * grey + SHARE * colours).round(), dtype=np.uint8)
