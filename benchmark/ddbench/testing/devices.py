"""The contract of plugins that compute: on a CUDA device, a pretended one, they mix no devices and do not make the host wait."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.api import Arch, Baseline, Batch, GeneratorConfig, Loss, Space
from ddbench.compute.run import DistillRun
from ddbench.ops.moves import send_network
from ddbench.seeds import global_stream, stream
from ddbench.testing.checks import Skipped
from ddbench.testing.pretended import Counts, Pretended, device_of
from ddbench.testing.spaces import run_of, stages
from ddbench.testing.toys import prepared


def _on(device: torch.device, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        where = device_of(tensor)
        assert where == device, f"{name} must be on the run's device, {device}, and is on {where}."


def _runs_ahead(counts: Counts, what: str) -> None:
    """The host did not have to wait."""
    assert not counts.waits, f"{what} makes the host wait for the device: {', '.join(dict.fromkeys(counts.waits))}."
    lines = ", ".join(dict.fromkeys(counts.blocking))
    assert not counts.blocking, f"{what} waits for copies to the device ({lines}): use ddbench.ops.moves.send."


def _batch(run: DistillRun) -> Batch:
    """A few real images as synthetic ones, with labels that want a gradient too."""
    own = [run.real(label, run.ipc, run.rng("toy batch", label)) for label in range(run.spec.num_classes)]
    classes = torch.arange(run.spec.num_classes, device=run.device).repeat_interleave(run.ipc)
    labels = F.one_hot(classes, run.spec.num_classes).float()
    return Batch(torch.cat(own).requires_grad_(), labels.requires_grad_(), classes)


def loss_stays_on_its_device(loss: Loss, run: DistillRun) -> None:
    """A step of it."""
    run = prepared(loss, run)
    with Pretended() as fake:
        there = fake.run(run)
        memory = loss.init(there)
        for step in range(2):  # what is made once is there after the first
            syn = _batch(there.at(step))
            with fake.counting() as counts:
                value = loss.backward(syn, memory, there.at(step))
        assert syn.images.grad is not None, "backward left no gradient on the images."
        _on(fake.device, **{"the value": value, "the images' gradient": syn.images.grad})
        _runs_ahead(counts, "a step")


def space_stays_on_its_device(space: Space, run: DistillRun) -> None:
    """Its tensors, and what a step asks of it, in every stage."""
    run = run_of(space, run)
    with Pretended() as fake:
        there = fake.run(run)
        for state in stages(space, there):
            _on(fake.device, **{f"'{name}'": tensor for name, tensor in (state.params | state.fixed).items()})
            classes = space.classes(state, there)
            index = torch.arange(len(classes), device=fake.device)
            _on(fake.device, classes=classes)
            for _ in range(2):
                with fake.counting() as counts:
                    images = space.decode(state, index, there)
                    images.sum().backward()
                    space.penalty(state, there)
                    with torch.no_grad():
                        space.project_(state)
            _on(fake.device, **{"the decoded images": images})
            _runs_ahead(counts, f"a step in stage {state.stage}")


def generator_stays_on_its_device(config: GeneratorConfig, run: DistillRun) -> None:
    """Loaded there, it draws codes and makes pixels there."""
    run = prepared(config, replace(run, loaded=None))
    with Pretended() as fake:
        generator = config.load(fake.run(run))
        classes = torch.arange(run.spec.num_classes, device=fake.device)
        w = generator.latents(classes, stream("codes"))
        _on(fake.device, **{"the codes": w})
        w = w.detach().requires_grad_()
        for _ in range(2):
            with fake.counting() as counts:
                pixels = generator.synthesize(w, None, 0, generator.depth)
                pixels.sum().backward()
        _on(fake.device, **{"the pixels": pixels})
        _runs_ahead(counts, "synthesize")


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
        _runs_ahead(counts, "a training step")
        with fake.counting() as counts, torch.no_grad():
            logits = network.eval()(images)
        _on(fake.device, **{"the logits": logits})
        _runs_ahead(counts, "a prediction")


def baseline_stays_on_its_device(baseline: Baseline, run: DistillRun) -> None:
    """It builds a set there."""
    if baseline.everything:
        raise Skipped("it is all real training images, and builds nothing.")
    run = prepared(baseline, run)
    with Pretended() as fake:
        baseline.build(fake.run(run))
