"""Ranks sets by the class-relevant feature distance to the real images: H-PD's way to choose among the steps of a stage."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from ddbench.api import Batch, Gradients, Ranker, RankRun, Score
from ddbench.ops.gated import class_means, gated_features, layer_of, means_of_batches


@dataclass(frozen=True)
class FeatureDistance(Ranker):
    """sum_c || mean_i A(x_ci) - mean_j A(s_cj) ||^2, A the class-relevant features of the proxy, over all real images x.

    A(x) = ReLU(alpha_k F_k(x)), F_k the maps [B,D,h,w] of a layer, y_c the logit of the image's class, alpha_k the spatial mean
    of dy_c/dF_k ("grad-cam"); or ReLU(dy_c/dF * F) ("elementwise"). `metric` "l2": norms in the place of squared norms.
    `gradient` and `layer` unset: what the suite says for all rankers, `proxy_gradient` and `proxy_layer`, which are "grad-cam"
    and the last maps unless it says otherwise. The means of the real images are computed once.
    Source: Zhong et al., Hierarchical Features Matter, CVPR 2025 (H-PD). Departures: its equations are not legible in the
    published text, so this is a reconstruction; the proxy is the suite's, the paper's a ResNet-18 trained on ImageNet-1K.
    Raises: ConfigError, once the proxy is loaded, for a layer that it does not have or that gives no maps.
    """

    metric: Literal["squared", "l2"] = "squared"
    gradient: Gradients | None = None
    layer: str | None = None
    uses_proxy: ClassVar[bool] = True

    def open(self, run: RankRun) -> Score:
        """The distance to the class means of the real images, [K,D,h,w]."""
        proxy, num = run.proxy, run.spec.num_classes
        layer = layer_of(proxy, run.defaults.layer if self.layer is None else self.layer)
        features = partial(gated_features, proxy, gradient=self.gradient or run.defaults.gradient, layer=layer)
        real = means_of_batches(run.training_batches(), run.class_counts, features)

        def score(syn: Batch, step: int) -> Tensor:
            gaps = (class_means(features(syn.images, syn.classes), syn.classes, num) - real).square()
            return gaps.sum() if self.metric == "squared" else gaps.flatten(1).sum(1).sqrt().sum()

        return score
