"""Where a network looks: Grad-CAM.

Shapes: B images, D channels, h and w the sides of maps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def class_activation(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Class-activation maps of images [B,C,H,W] for the classes [B], each in [0, 1] with its largest value 1: [B,H,W].

    ReLU(sum_k alpha_k F_k), alpha_k the spatial mean of d y_c / d F_k; F are the maps before the head, y_c is the logit of the
    class; brought to the images' size bilinearly. A map that is nowhere above 0 is all 0.
    Source: Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017, eqs. 1
    and 2. Departures: none.
    """
    with torch.no_grad():
        features = network.forward_features(images)  # type: ignore[operator]
    with torch.enable_grad():
        logits = network.forward_head(features.requires_grad_())  # type: ignore[operator]
        (slope,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), features)
    maps = (slope.mean((2, 3), keepdim=True) * features.detach()).sum(1, keepdim=True).relu()
    maps = F.interpolate(maps, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    highest = maps.amax((1, 2), keepdim=True)
    return torch.where(highest > 0, maps / highest.clamp(min=1e-30), 0.0)
