"""The contract of proxies. A proxy that is not there, for want of a file or a package, is skipped."""

# ruff: noqa: PT018 (one sentence often covers two conditions)

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ddbench.api import Proxy
from ddbench.compute.run import DistillRun
from ddbench.errors import BenchError
from ddbench.ops.gated import gated_features
from ddbench.testing.checks import Check, Skipped, assert_close, assert_says_what_it_saw
from ddbench.testing.devices import all_on, runs_ahead
from ddbench.testing.pretended import Pretended
from ddbench.testing.toys import prepared, toy_data, toy_spec

SIDE = 32  # px, of the data sets that checks make up


def _run(run: DistillRun) -> DistillRun:
    """A run on images of three colours and of ImageNet's classes, which most proxies know."""
    indices = tuple(range(7, 7 * run.spec.num_classes + 7, 7))
    spec = replace(toy_spec(run.spec.num_classes, channels=3, side=SIDE), class_indices=indices)
    return replace(run, data=toy_data(spec, per_class=2, validation=1))


def _loaded(proxy: Proxy, run: DistillRun) -> tuple[nn.Module, DistillRun]:
    """The proxy, and the run that it was loaded by. Raises Skipped where it is not there."""
    run = _run(run)
    try:
        proxy.check(run)
    except BenchError as error:
        raise Skipped(str(error)) from error
    run = prepared(proxy, run)
    return proxy.load(run), run


def _images(run: DistillRun) -> Tensor:
    return run.data.seen(run.data.images[:])


def proxy_names_the_classes(proxy: Proxy, run: DistillRun) -> None:
    """Maps [B,D,h,w], an embedding [B,D'] and finite logits [B,K]; `forward` is `forward_head` of `forward_features`, and gives
    each image the same alone."""
    network, run = _loaded(proxy, run)
    images = _images(run)
    with torch.no_grad():
        features = network.forward_features(images)  # type: ignore[operator]
        logits, embedding = network.forward_head(features), network.forward_head(features, pre_logits=True)  # type: ignore[operator]
        alone = torch.cat([network(image[None]) for image in images])
    num = len(images)
    assert features.dim() == 4 and len(features) == num, f"forward_features must give [B,D,h,w], got {list(features.shape)}."
    assert embedding.dim() == 2 and len(embedding) == num, f"pre_logits must be [B,D'], got {list(embedding.shape)}."
    wanted = [num, run.spec.num_classes]
    assert list(logits.shape) == wanted, f"forward_head must give the data set's classes, {wanted}, got {list(logits.shape)}."
    assert logits.isfinite().all(), "its logits are not finite."
    assert_close(alone, logits, "an image's logits depend on the others of its batch, or forward is not head of features.")


def proxy_follows_the_data_set(proxy: Proxy, run: DistillRun) -> None:
    """It sees the same pixels, whatever normalises them, and its logits are in the order of the data set's classes."""
    network, run = _loaded(proxy, run)
    spec = run.spec
    pixels, turned = spec.denormalise(_images(run)), slice(None, None, -1)
    other = replace(spec, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), class_indices=spec.class_indices[turned])
    other = replace(other, class_names=spec.class_names[turned])
    again = proxy.load(replace(run, data=replace(run.data, spec=other)))
    with torch.no_grad():
        logits, seen = network(spec.normalise(pixels)), again(other.normalise(pixels))
    assert_close(seen.flip(1), logits, "another normalisation or order of classes gives other logits of the same pixels.")


def proxy_is_the_same_every_time(proxy: Proxy, run: DistillRun) -> None:
    """Loaded twice it gives the same logits, and draws nothing from torch's global generator."""
    network, run = _loaded(proxy, run)
    torch.rand(3)
    before = torch.get_rng_state()
    again = proxy.load(run)
    assert torch.equal(torch.get_rng_state(), before), "loading draws from torch's global generator: use run.seeded(name)."
    with torch.no_grad():
        assert torch.equal(network(_images(run)), again(_images(run))), "loaded a second time it gives other logits."


def proxy_stays_on_its_device(proxy: Proxy, run: DistillRun) -> None:
    """Loaded there, it gives class-relevant features there."""
    run = _loaded(proxy, run)[1]
    with Pretended() as fake:
        there = fake.run(run)
        network = proxy.load(there).eval().requires_grad_(False)
        images, classes = there.data.seen(there.data.images[:]), there.data.labels
        for _ in range(2):
            with fake.counting() as counts:
                gated = gated_features(network, images, classes)
        all_on(fake.device, **{"the features": gated})
        runs_ahead(counts, "a feature distance")


def proxy_says_what_it_saw(proxy: Proxy, run: DistillRun) -> None:
    """Itself, and what it needs."""
    assert_says_what_it_saw(proxy, _run(run))


proxy_checks: list[Check] = [
    proxy_names_the_classes, proxy_follows_the_data_set, proxy_is_the_same_every_time, proxy_stays_on_its_device,
    proxy_says_what_it_saw,
]  # fmt: skip
