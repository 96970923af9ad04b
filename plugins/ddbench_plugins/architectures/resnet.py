"""ResNet-18 with instance normalisation and the small stem."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from ddbench.api import Arch, Spec
from ddbench.ops.layers import Form, Network, check_at_least, check_side, form_of, instance_norm

LOW_MIN_SIZE = 25  # px: a last map of 4x4, the window of the low form
HIGH_MIN_SIZE = 9  # px: a last map of 2x2; instance norm makes a constant of a single pixel


def resnet18(width: int = 64, form: Form = "auto") -> Arch:
    """Stem conv 3x3 -> instance norm -> ReLU; four stages of two blocks with 1, 2, 4, 8 times `width` channels; linear.

    features: [B,C,H,W] -> [B, 8 width, H/8, W/8], rounded up: the maps before pooling;  logits: [B,K].
    `form` decides the embedding. "low": windows of 4x4 are averaged and flattened. "high": the whole map is averaged
    to 8 width features. Both are the same network from 25 to 32 px; at 64 px low keeps a 2x2 grid (2048 features).
    "auto": low up to a side of 64 px. The stem never reduces the resolution, in neither form, which makes the first
    stage slow on large images.
    Source: He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition, CVPR 2016, in the low form of Zhao,
    Mopuri and Bilen, Dataset Condensation with Gradient Matching, ICLR 2021, and the high form of Cazenavette et al.,
    Generalizing Dataset Distillation via Deep Generative Prior, CVPR 2023. Departures from these: none up to 56 px
    and from 65 px on; between, the low form of the source does not run, as its linear layer expects a single window.
    Raises: ConfigError for a width below 1, for images below 25 px (9 px in the high form).
    """
    check_at_least("resnet18", 1, width=width)
    min_size = HIGH_MIN_SIZE if form == "high" else LOW_MIN_SIZE
    return Arch(partial(_build, width=width, form=form, min_size=min_size), lr=0.001, min_size=min_size)


def _build(spec: Spec, width: int, form: Form, min_size: int) -> nn.Module:
    check_side("resnet18", spec, min_size)
    channels, *sides = spec.shape
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False), instance_norm(width), nn.ReLU()]
    channels = width
    for wider, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        layers += [BasicBlock(channels, wider, stride), BasicBlock(wider, wider, 1)]
        channels = wider
    low = form_of(form, spec) == "low"
    height, breadth = ((side + 7) // 8 // 4 if low else 1 for side in sides)
    pool = nn.AvgPool2d(4) if low else nn.AdaptiveAvgPool2d(1)
    return Network(nn.Sequential(*layers), pool, nn.Linear(channels * height * breadth, spec.num_classes))


class BasicBlock(nn.Module):
    """ReLU(conv-norm-ReLU-conv-norm of x, plus x): [B,C,H,W] -> [B, channels, H/stride, W/stride], rounded up.

    Where the shape changes, x goes through a conv 1x1 and a norm on its way round.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        """The first conv has the stride."""
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False),
            instance_norm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            instance_norm(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), instance_norm(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """[B,C,H,W] -> [B, channels, H/stride, W/stride]."""
        return F.relu(self.residual(maps) + self.shortcut(maps))
