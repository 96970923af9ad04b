"""The contract of architectures."""

# ruff: noqa: PT018 (one sentence often covers two conditions)

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench.api import (
    Arch,
)
from ddbench.compute.run import DistillRun
from ddbench.errors import ConfigError
from ddbench.ops.moves import send_network
from ddbench.seeds import global_stream
from ddbench.testing.checks import Check, Skipped, assert_close
from ddbench.testing.devices import all_on, runs_ahead
from ddbench.testing.pretended import Pretended


def _built(arch: Arch, run: DistillRun, scale: int = 1, *name: str) -> tuple[nn.Module, Tensor]:
    """A network for images of `scale` times its smallest side, and a batch of three."""
    side = arch.min_size * scale
    spec = replace(run.spec, shape=(run.spec.shape[0], side, side))
    with global_stream("toy", *name):
        return arch.build(spec), torch.randn(3, *spec.shape)


def architecture_has_its_shapes(arch: Arch, run: DistillRun) -> None:
    """At its smallest side and at twice that: logits [B,K], maps [B,D,h,w], an embedding [B,D'], all finite."""
    for scale in (1, 2):
        network, images = _built(arch, run, scale)
        with torch.no_grad():
            features = network.eval().forward_features(images)  # type: ignore[operator]
            logits, embedding = network.forward_head(features), network.forward_head(features, pre_logits=True)  # type: ignore[operator]
        assert features.dim() == 4 and len(features) == 3, f"forward_features must give [B,D,h,w], got {list(features.shape)}."
        assert logits.shape == (3, run.spec.num_classes), (
            f"forward_head must give [3, {run.spec.num_classes}], got {list(logits.shape)}."
        )
        assert embedding.dim() == 2 and len(embedding) == 3, (
            f"forward_head(pre_logits=True) must give [B,D'], got {list(embedding.shape)}."
        )
        assert logits.isfinite().all(), f"the logits of a fresh network at {images.shape[-1]} px are not finite."


def architecture_is_head_of_features(arch: Arch, run: DistillRun) -> None:
    """In evaluation mode `forward` is `forward_head` of `forward_features`, and gives each image the same alone."""
    network, images = _built(arch, run)
    with torch.no_grad():
        logits = network.eval()(images)
        parts = network.forward_head(network.forward_features(images))  # type: ignore[operator]
        alone = torch.cat([network(image[None]) for image in images])
    assert_close(parts, logits, "forward is not forward_head of forward_features.")
    assert_close(alone, logits, "in evaluation mode an image's logits depend on the others of its batch.")


def architecture_has_second_derivatives(arch: Arch, run: DistillRun) -> None:
    """In training mode, the gradient of the squared norm of the weights' gradient reaches the images."""
    if not arch.double_backward:
        raise Skipped("the architecture says double_backward = False")
    network, images = _built(arch, run, 2)
    images.requires_grad_()
    loss = F.cross_entropy(network.train()(images), torch.arange(3) % run.spec.num_classes)
    first = torch.autograd.grad(loss, list(network.parameters()), create_graph=True, allow_unused=True)
    try:
        torch.stack([grad.square().sum() for grad in first if grad is not None]).sum().backward()
    except RuntimeError as error:
        raise AssertionError(f"it cannot be differentiated twice ({error}): say double_backward = False.") from error
    assert images.grad is not None and bool(images.grad.isfinite().all()), "the second derivative is missing or not finite."
    assert images.grad.any(), "the second derivative is zero: say double_backward = False."


def architecture_refuses_smaller_images(arch: Arch, run: DistillRun) -> None:
    """One pixel below `min_size` is a ConfigError, not a crash and not a network; its rate is positive."""
    assert arch.lr > 0, f"lr must be positive, got {arch.lr}."
    if arch.min_size == 1:
        raise Skipped("min_size is 1: there are no smaller images")
    side = arch.min_size - 1
    spec = replace(run.spec, shape=(run.spec.shape[0], side, side))
    try:
        arch.build(spec)
    except ConfigError:
        return
    except Exception as error:
        raise AssertionError(
            f"below min_size build must raise ConfigError, and raises {type(error).__name__}: {error}."
        ) from error
    raise AssertionError(f"min_size is {arch.min_size}, and build takes {side} x {side} px as well.")


def architecture_starts_from_the_global_stream(arch: Arch, run: DistillRun) -> None:
    """Equal seeds of torch's global generator give equal weights, others give others."""
    first, second, other = (_built(arch, run, 1, name)[0].state_dict() for name in ("a", "a", "b"))
    assert first.keys() == second.keys(), "the same seed builds another network the second time."
    for name in first:
        assert torch.equal(first[name], second[name]), f"the same seed gives another '{name}' the second time."
    assert any(not torch.equal(first[name], other[name]) for name in first), "another seed gives the same weights."


def architecture_stays_on_its_device(arch: Arch, run: DistillRun) -> None:
    """A training step, and a prediction."""
    spec = replace(run.spec, shape=(run.spec.shape[0], arch.min_size, arch.min_size))
    with Pretended() as fake, global_stream("toy"):
        network = send_network(arch.build(spec), fake.device).train()
        images = torch.randn(3, *spec.shape, device=fake.device)
        labels = torch.zeros(3, dtype=torch.int64, device=fake.device)
        optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9, fused=True)
        for _ in range(2):
            with fake.counting() as counts:
                F.cross_entropy(network(images), labels).backward()
                optimizer.step()
        runs_ahead(counts, "a training step")
        with fake.counting() as counts, torch.no_grad():
            logits = network.eval()(images)
        all_on(fake.device, **{"the logits": logits})
        runs_ahead(counts, "a prediction")


architecture_checks: list[Check] = [
    architecture_has_its_shapes,
    architecture_is_head_of_features,
    architecture_has_second_derivatives,
    architecture_refuses_smaller_images,
    architecture_starts_from_the_global_stream,
    architecture_stays_on_its_device,
]
