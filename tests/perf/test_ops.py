"""Speed as ratios within one run: `make perf`. Nothing here asserts seconds; the groups' tables are read by people."""

from __future__ import annotations

import pytest
import torch

from ddbench.ops.augment import SiameseAugment

STRATEGY = "color_crop_cutout_flip_scale_rotate"


@pytest.fixture(params=[10, 256], ids=["10 images", "256 images"])
def images(request):
    return torch.rand(request.param, 3, 32, 32)


@pytest.mark.benchmark(group="augmentation, own parameters for every image")
@pytest.mark.parametrize("way", ["batched", "a loop over images"])
def test_augmentation(benchmark, images, way):
    augment = SiameseAugment(STRATEGY)
    views = [augment.draw(torch.Generator().manual_seed(seed), len(images)) for seed in range(12)]
    single = [[augment.draw(torch.Generator().manual_seed(seed), 1) for _ in images] for seed in range(12)]

    def batched():
        for view in views:
            view(images)

    def loop():
        for row in single:
            torch.cat([view(images[number : number + 1]) for number, view in enumerate(row)])

    benchmark(batched if way == "batched" else loop)
