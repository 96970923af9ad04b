"""GLaD's and H-PD's latents in StyleGAN-XL: their size at every layer, and what presets set of them, as published."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from ddbench.suite import presets
from ddbench.testing import toy_run
from ddbench_plugins.generators.stylegan_random import random_stylegan_xl
from ddbench_plugins.spaces.layered import glad, hpd, w_plus
from ddbench_plugins.stylegan.schedule import describe, stylegan_xl

OF_128 = [
    *[(1024, 36)] * 10, *[(1024, 52)] * 5, *[(1024, 84)] * 5, (1024, 148), (861, 148), (724, 148), (609, 148), (512, 148),
    (512, 128), (3, 128),
]  # fmt: skip
"""Channels and side of F_0 to F_26 of the model for 128 px."""
OF_CIFAR = [*[(1024, 36)] * 6, *[(1024, 52)] * 5, (1024, 32), (3, 32)]
MILLIONS = {12: 2.77, 16: 7.23, 20: 22.4}  # numbers an image at the layers of GLaD's losses


@pytest.mark.parametrize(("side", "classes", "stem", "wanted"), [(128, 1000, 10, OF_128), (32, 10, 6, OF_CIFAR)])
def test_features_have_the_published_sizes(side: int, classes: int, stem: int, wanted: list[tuple[int, int]]) -> None:
    """A layer's name ends in the side and the channels of what it gives."""
    of = describe(stylegan_xl(side, classes, 1024, 3, stem))
    named = [tuple(map(int, layer.name.split("_")[1:])) for layer in of.layers]
    assert [(channels, size) for size, channels in named] == wanted[1:]
    assert (of.num_ws, of.w_dim, of.z_dim) == (len(wanted), 512, 64)
    if side == 128:
        sizes = {layer: wanted[layer][0] * wanted[layer][1] ** 2 / 1e6 for layer in MILLIONS}
        assert sizes == pytest.approx(MILLIONS, rel=0.002)


@pytest.mark.slow
def test_latents_of_every_layer_are_those_sizes() -> None:
    """Of a narrow generator of the same layers, as the spaces hold them: F_n, and one code more than there are layers."""
    run = toy_run(num_classes=2, channels=3, side=128, ipc=1)
    run = replace(run, loaded=random_stylegan_xl(width=4).load(run))
    depth = run.generator.depth
    assert depth == 26
    for layer, (channels, side) in enumerate(OF_128[:-1]):
        state = glad(layer).init(run)
        assert tuple(state.params["f"].shape[2:]) == (side, side)
        assert state.params["f"].shape[1] <= max(channels, 4)
        assert tuple(state.params["w"].shape) == (2, 27, 512)
        assert {tensor.dtype for tensor in state.params.values()} == {torch.float32}
    assert set(glad(26).init(run).params) == {"pixels"}
    assert set(w_plus().init(run).params) == {"w"}
    assert hpd().layers(depth) == (2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26)


LATENT = {"dsa": 1.0, "dc": 1.0, "dm": 10.0, "tesla": 10_000.0, "mtt": 10_000.0}  # rates of features, and of pixels of a walk
CODES = {"dsa": 0.001, "dc": 0.001, "dm": 0.01, "tesla": 10.0, "mtt": 10.0}
LAYERS = {"dsa": 16, "dc": 16, "dm": 20, "tesla": 12, "mtt": 12}
TESLA = {"syn_steps": 20, "expert_epochs": 3, "max_start_epoch": 5, "student_lr": 0.01}
SUBSETS = [f"imagenet-{name}" for name in ("a", "b", "c", "d", "e", "birds", "fruits", "cats")] + ["imagenette", "imagewoof"]


@pytest.mark.parametrize(("loss", "subset"), [*product(LATENT, SUBSETS)])
def test_presets_have_the_published_numbers(loss: str, subset: str) -> None:
    families = {name: presets.load(name) for name in ("glad", "hpd", "hpd-equal")}

    def entry(family: str, space: str) -> presets.Preset:
        place = {"loss": loss, "space": space, "subset": subset, "side": "128", "ipc": "1"}
        return presets.choose([families[family]], place)

    student = {"student_rate": 1e-6} if loss in ("tesla", "mtt") else {}
    one = entry("glad", "glad")
    assert one.set["rates"] == {"f": LATENT[loss], "w": CODES[loss]} | student
    assert one.set["space"]["layer"] == LAYERS[loss]
    assert "test images" in one.marks["space.layer"]
    assert (one.set["steps"], one.set["momentum"]) == (1000, 0.5)
    for family, steps in (("hpd", {"steps": 20 if loss == "dm" else 100}), ("hpd-equal", {"total_steps": 1000})):
        walk = entry(family, "hpd")
        assert walk.set["rates"] == {"f": LATENT[loss], "w": CODES[loss], "pixels": LATENT[loss]} | student
        assert {key: walk.set[key] for key in ("steps", "total_steps") if key in walk.set} == steps
        assert (walk.set["rank_steps"], walk.set["rank_stages"]) == ("feature-distance", "validation")
        settings: dict[str, Any] = walk.set["space"]
        assert hpd(**settings).layers(26) == (*range(2, 26, 2), 26)
        assert settings["init_from"] == "average"
    for found in (one, entry("hpd", "hpd")):
        own = found.set["loss"]
        assert own.items() >= TESLA.items() if student else own["batch_real"] == 256
    assert entry("hpd", "hpd").set["loss"].get("num_experts", 200) == 200
    assert one.set["loss"].get("num_experts", 100) == 100
