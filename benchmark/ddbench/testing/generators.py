"""The contract of generators."""

# ruff: noqa: PT018 (one sentence often covers two conditions)

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ddbench.api import (
    Generator,
    GeneratorConfig,
)
from ddbench.compute.run import DistillRun
from ddbench.data.subsets import default_root
from ddbench.errors import DataError
from ddbench.seeds import stream
from ddbench.testing.checks import Check, Skipped, assert_close, assert_says_what_it_saw
from ddbench.testing.devices import all_on, runs_ahead
from ddbench.testing.pretended import Pretended
from ddbench.testing.toys import (
    prepared,
)


def _loaded(config: GeneratorConfig, run: DistillRun) -> tuple[Generator, Tensor]:
    """The generator, and a code for two images of every class."""
    run = prepared(config, replace(run, loaded=None))
    generator = _load(config, run)
    return generator, generator.latents(torch.arange(run.spec.num_classes).repeat_interleave(2), stream("codes"))


def _load(config: GeneratorConfig, run: DistillRun) -> Generator:
    """The generator; one whose files a user has to bring first is skipped where they are not there."""
    try:
        config.pins(default_root())
    except DataError as error:
        raise Skipped(str(error)) from error
    return config.load(run)


def generator_layers_compose(config: GeneratorConfig, run: DistillRun) -> None:
    """From 0 to L is from 0 to k, then from k to L, for every k."""
    generator, w = _loaded(config, run)
    with torch.no_grad():
        whole = generator.synthesize(w, None, 0, generator.depth)
        for k in range(generator.depth + 1):
            hidden = generator.synthesize(w, None, 0, k)
            parts = generator.synthesize(w, hidden, k, generator.depth)
            assert_close(parts, whole, f"0 to {k} and then {k} to {generator.depth} is not 0 to {generator.depth}.")


def generator_gives_pixels(config: GeneratorConfig, run: DistillRun) -> None:
    """F_L is finite pixels, about in [0, 1], of the data set's shape, equal every time and for every image by itself.

    About: nine in ten of them lie there and all within [-1, 2]. Published generators do not clamp what they make.
    """
    generator, w = _loaded(config, run)
    with torch.no_grad():
        pixels, again = (generator.synthesize(w, None, 0, generator.depth) for _ in range(2))
        alone = torch.cat([generator.synthesize(code[None], None, 0, generator.depth) for code in w])
    assert pixels.shape == (len(w), *run.spec.shape), (
        f"the last layer must give {[len(w), *run.spec.shape]}, got {list(pixels.shape)}."
    )
    inside, near = ((pixels >= 0) & (pixels <= 1)).float().mean(), bool(((pixels >= -1) & (pixels <= 2)).all())  # no NaN either
    found = f"{float(pixels.min()):g} to {float(pixels.max()):g}, {float(inside):.0%} of them inside"
    assert near and inside >= 0.9, f"pixels must lie about in [0, 1], got {found}."
    assert torch.equal(pixels, again), "the same codes give other pixels the second time: is it in evaluation mode?"
    assert_close(alone, pixels, "an image depends on the others of its batch: is it in evaluation mode?")


def generator_draws_codes_from_its_stream(config: GeneratorConfig, run: DistillRun) -> None:
    """`latents` is [B, num_codes, D], equal for equal streams, other for others, different within a call as far as there are so
    many; loading twice gives the same generator."""
    generator, w = _loaded(config, run)
    classes = torch.arange(run.spec.num_classes).repeat_interleave(2)
    before = torch.random.get_rng_state()
    same, other = (generator.latents(classes, stream(name)) for name in ("codes", "others"))
    assert torch.equal(before, torch.random.get_rng_state()), "latents draws from torch's global generator, not from rng."
    assert w.dim() == 3 and w.shape[:2] == (len(classes), generator.num_codes), (
        f"latents must be [{len(classes)}, {generator.num_codes}, D], got {list(w.shape)}."
    )
    assert torch.equal(w, same), "the same stream gives other codes the second time."
    assert not torch.equal(w, other), "another stream gives the same codes: latents does not use rng."
    for label in range(run.spec.num_classes):
        num = 12 if (limit := generator.num_latents(label)) is None else limit
        drawn = generator.latents(torch.full((num,), label), stream("codes", label))
        assert len(drawn.unique(dim=0)) == num, f"{num} codes of class {label} that are drawn at once must all be different."
    again, codes = _loaded(config, run)
    assert torch.equal(w, codes), "the generator loaded a second time gives other codes."
    with torch.no_grad():
        pictures = [each.synthesize(w, None, 0, each.depth) for each in (generator, again)]
    assert torch.equal(*pictures), "the generator loaded a second time gives other pixels."


def generator_is_frozen(config: GeneratorConfig, run: DistillRun) -> None:
    """Gradients reach codes and features, and no weight wants one."""
    generator, w = _loaded(config, run)
    w = w.detach().requires_grad_()
    generator.synthesize(w, None, 0, generator.depth).square().sum().backward()
    middle = generator.depth // 2
    hidden = generator.synthesize(w.detach(), None, 0, middle).detach().requires_grad_()
    generator.synthesize(w.detach(), hidden, middle, generator.depth).square().sum().backward()
    for name, tensor in (("codes", w), ("features", hidden)):
        assert _has_gradient(tensor), f"the {name} get no gradient."
    if isinstance(generator, nn.Module):
        thawed = [name for name, parameter in generator.named_parameters() if parameter.requires_grad]
        assert not thawed, f"weights of a loaded generator must not want gradients: {', '.join(thawed)}."
        assert not generator.training, "a loaded generator must be in evaluation mode."


def _has_gradient(tensor: Tensor) -> bool:
    return tensor.grad is not None and bool(tensor.grad.isfinite().all() and tensor.grad.any())


def generator_says_where_codes_are_read(config: GeneratorConfig, run: DistillRun) -> None:
    """From a layer where `reads_codes` is true, codes get a gradient; from one where it is not, features alone do as well, and
    so they do from every later one."""
    generator, w = _loaded(config, run)
    reads = [generator.reads_codes(layer) for layer in range(generator.depth)]
    assert reads == sorted(reads, reverse=True), f"where no layer from one on reads codes, none does later: got {reads}."
    for layer, is_read in enumerate(reads):
        codes = w.detach().requires_grad_()
        hidden = generator.synthesize(w, None, 0, layer).detach()
        if is_read:
            generator.synthesize(codes, hidden, layer, generator.depth).square().sum().backward()
            assert _has_gradient(codes), f"codes get no gradient from layer {layer} on, which says that it reads them."
        else:
            wanted = generator.synthesize(w, hidden, layer, generator.depth)
            alone = generator.synthesize(w.new_empty(len(w), 0, 0), hidden, layer, generator.depth)
            assert torch.equal(alone, wanted), f"layers from {layer} on say that they read no codes, and do."


def generator_stays_on_its_device(config: GeneratorConfig, run: DistillRun) -> None:
    """Loaded there, it draws codes and makes pixels there."""
    run = prepared(config, replace(run, loaded=None))
    with Pretended() as fake:
        generator = _load(config, fake.run(run))
        classes = torch.arange(run.spec.num_classes, device=fake.device)
        w = generator.latents(classes, stream("codes"))
        all_on(fake.device, **{"the codes": w})
        w = w.detach().requires_grad_()
        for _ in range(2):
            with fake.counting() as counts:
                pixels = generator.synthesize(w, None, 0, generator.depth)
                pixels.sum().backward()
        all_on(fake.device, **{"the pixels": pixels})
        runs_ahead(counts, "synthesize")


def generator_says_what_it_saw(config: GeneratorConfig, run: DistillRun) -> None:
    """Itself, and what it needs."""
    assert_says_what_it_saw(config, run)


generator_checks: list[Check] = [
    generator_layers_compose,
    generator_gives_pixels,
    generator_draws_codes_from_its_stream,
    generator_is_frozen,
    generator_says_where_codes_are_read,
    generator_stays_on_its_device,
    generator_says_what_it_saw,
]
