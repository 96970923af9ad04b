"""The contract checks that every plugin must pass, and a toy run to pass them on: for our plugins and anybody else's.

In a test of your own package, without data, network or accelerator:

    run_checks("losses", MyLoss(), toy_run())

A check is a function `check(plugin, run)`. It returns where the plugin keeps that part of the contract, raises
AssertionError with a sentence where it does not, and `Skipped` where that part does not apply, such as the second
derivative of an architecture that says it has none. `run_checks` lists both, so that a skip cannot pass for green.
No plugin is named here: an exception belongs into the tests, with its reason.
"""

# ruff: noqa: PT018 (one sentence often covers two conditions)

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddbench import protocols
from ddbench.api import (
    PLUGIN_TYPES,
    Arch,
    Batch,
    Dataset,
    Generator,
    GeneratorConfig,
    Loss,
    Memory,
    Resource,
    Space,
    Spec,
    Split,
    State,
)
from ddbench.config import Plan, PluginRef
from ddbench.data.subsets import TrainingData, default_root
from ddbench.errors import ConfigError, DataError
from ddbench.files import read_tensors, tensors_to_bytes
from ddbench.ops.layers import Network
from ddbench.run import DistillRun
from ddbench.seeds import global_stream, stream

Check = Callable[[Any, DistillRun], None]

STEP = 1e-5  # of finite differences, in float64
TOLERANCE = 1e-5  # of a derivative against its finite difference, relative
CLOSE = 1e-5  # of float32 numbers that two orders of summation give


class Skipped(Exception):
    """A check that does not apply to a plugin, and why."""


@dataclass(frozen=True)
class Outcome:
    """What became of a plugin's checks."""

    met: tuple[str, ...]
    skipped: dict[str, str]  # name to reason


# ---------------------------------------------------------------- a toy run


@dataclass(frozen=True, eq=False)
class Given(PluginRef):
    """A reference to a plugin that is at hand, where a plan names an installed one."""

    plugin: Any = None

    @classmethod
    def of(cls, kind: str, plugin: Any, label: str = "toy") -> Given:
        """Without looking at any entry point."""
        return cls(kind, label, {}, "toy", "0", label, plugin)

    def make(self) -> Any:
        """The plugin itself."""
        return self.plugin


def toy_spec(num_classes: int = 3, channels: int = 1, side: int = 8) -> Spec:
    """Square images of a few classes."""
    names = tuple(f"class {label}" for label in range(num_classes))
    return Spec("toy", (channels, side, side), names, (0.5,) * channels, (0.25,) * channels)


def toy_data(spec: Spec, per_class: int = 12, validation: int = 4) -> TrainingData:
    """A pattern for each class with noise on it: normalised, sorted by class."""
    rng = stream("toy data", *spec.shape)
    num, sides = spec.num_classes, spec.shape
    patterns = 0.2 + 0.6 * torch.rand(num, *sides, generator=rng)

    def draw(each: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(num).repeat_interleave(each)
        noise = 0.2 * (torch.rand(len(labels), *sides, generator=rng) - 0.5)
        return spec.normalise((patterns[labels] + noise).clamp(0, 1)), labels

    images, labels = draw(per_class)
    starts = tuple(range(0, per_class * num + 1, per_class))
    return TrainingData(spec, images, labels, starts, *draw(validation))


def toy_network(spec: Spec) -> nn.Module:
    """Two convolutions with smooth activations and average pooling, so that finite differences are exact."""
    channels, height, width = spec.shape
    features = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.Softplus(), nn.AvgPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2),
    )  # fmt: skip
    return Network(features, nn.Identity(), nn.Linear(8 * (height // 4) * (width // 4), spec.num_classes))


TOY_ARCH = Arch(toy_network, lr=0.05, min_size=4)


class ToyGenerator(Generator):
    """A generator in memory: x -> x + 0.3 tanh((1 + a(w)) conv(x) + b(w)), the side doubled half-way, a sigmoid last.

    Features stay within [-5, 5]. F_0 is a function of the first layer's code.
    """

    def __init__(self, spec: Spec, depth: int = 13, features: int = 4, codes: int = 3) -> None:
        """Weights from one stream, equal for equal arguments."""
        if depth < 2 or spec.shape[1] % 2:
            raise ConfigError(f"the toy generator needs a depth of at least 2 and an even side, got {depth} and {spec.shape}.")
        rng = stream("toy generator", depth, features, codes, *spec.shape)
        self.depth, self.features, self.codes = depth, features, codes
        self.side = (spec.shape[1] // 2, spec.shape[2] // 2)
        self.embedding = torch.randn(spec.num_classes, codes, generator=rng)
        self.start = 0.5 * torch.randn(codes, features * self.side[0] * self.side[1], generator=rng)
        widths = [features] * (depth - 1) + [spec.shape[0]]
        self.kernels = [0.4 * torch.randn(width, features, 3, 3, generator=rng) for width in widths]
        self.styles = [0.5 * torch.randn(codes, 2 * width, generator=rng) for width in widths]

    def latents(self, classes: Tensor, rng: torch.Generator) -> Tensor:
        """[B] -> w [B,L,D]: the class's point and noise, equal in all layers."""
        w = self.embedding[classes] + 0.5 * torch.randn(len(classes), self.codes, generator=rng)
        return w[:, None].repeat(1, self.depth, 1)

    def synthesize(self, w: Tensor, hidden: Tensor | None, start: int, stop: int) -> Tensor:
        """F_start -> F_stop."""
        x = (w[:, 0] @ self.start).tanh().view(len(w), self.features, *self.side) if hidden is None else hidden
        for number in range(start, stop):
            if number == self.depth // 2:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            scale, shift = (w[:, number] @ self.styles[number])[:, :, None, None].chunk(2, 1)
            mixed = (1 + scale) * F.conv2d(x, self.kernels[number], padding=1) + shift
            x = mixed.sigmoid() if number == self.depth - 1 else x + 0.3 * mixed.tanh()
        return x


def toy_run(
    num_classes: int = 3, channels: int = 1, side: int = 8, ipc: int = 2, depth: int = 13, double: bool = False
) -> DistillRun:
    """A real run on made-up images, with a smooth network and a generator in memory; `double`: see `in_double`."""
    spec = toy_spec(num_classes, channels, side)
    backbone, generator = Given.of("architectures", TOY_ARCH), ToyGenerator(spec, depth)
    run = DistillRun(("toy",), toy_data(spec), backbone, ipc, torch.device("cpu"), {}, generator)
    return in_double(run) if double else run


def in_double(run: DistillRun) -> DistillRun:
    """The same run with images and networks in float64; its generator stays as it is."""
    data = replace(run.data, images=run.data.images.double(), validation_images=run.data.validation_images.double())
    if run.backbone is None:
        return replace(run, data=data)
    arch: Arch = run.backbone.make()
    doubled = replace(arch, build=partial(_build_double, arch.build))
    return replace(run, data=data, backbone=Given.of("architectures", doubled, run.backbone.label))


def _build_double(build: Callable[[Spec], nn.Module], spec: Spec) -> nn.Module:
    return build(spec).double()


def prepared(plugin: Any, run: DistillRun) -> DistillRun:
    """The run with what the plugin's `needs` declare, built; it refuses everything else."""
    needs: Sequence[Resource] = plugin.needs(run)
    built = {need: need.build(run.under("resource", number)) for number, need in enumerate(needs)}
    return replace(run, resources={**run.resources, **built})


def toy_plan(loss: Loss, space: Space, **changes: Any) -> Plan:
    """A small plan of plugins at hand: 2 steps a stage, a rate for every tensor."""
    protocol = replace(protocols.load("quick-1"), epochs=4, warmup_epochs=2, repeats=1)
    backbone = Given.of("architectures", TOY_ARCH)
    rates = dict.fromkeys((*space.tensors, *loss.learned, "labels"), 0.01)
    plan = Plan(
        Given.of("datasets", None), "0" * 64, protocol, (backbone,), backbone, ipc=2, seed=0,
        loss=Given.of("losses", loss, "toy loss"), space=Given.of("spaces", space, "toy space"), proxy=backbone,
        steps=2, rates=rates, rank_epochs=4, proxy_epochs=1, chunk=100,
    )  # fmt: skip
    return replace(plan, **changes)


def run_checks(kind: str, plugin: Any, run: DistillRun) -> Outcome:
    """Every check of a kind ("losses", "spaces", ...). Raises AssertionError at the first that is not met."""
    met, skipped = [], {}
    assert isinstance(plugin, PLUGIN_TYPES[kind]), (
        f"a plugin of kind {kind} must be a {PLUGIN_TYPES[kind].__name__}, got {plugin!r}."
    )
    for check in CHECKS[kind]:
        try:
            check(plugin, run)
            met.append(check.__name__)
        except Skipped as reason:
            skipped[check.__name__] = str(reason)
    return Outcome(tuple(met), skipped)


# ---------------------------------------------------------------- spaces


def _leaves(state: State) -> State:
    """As the engine makes them: every parameter a leaf of its own."""
    return State({name: t.detach().clone().requires_grad_() for name, t in state.params.items()}, state.fixed, state.stage)


def _run_of(space: Space, run: DistillRun) -> DistillRun:
    """What the space may ask for: no generator, unless it says that it needs one."""
    return prepared(space, run if space.needs_generator else replace(run, loaded=None))


def stages(space: Space, run: DistillRun) -> Iterator[State]:
    """The state at the start of every stage, as the engine enters it."""
    state = _leaves(space.init(run))
    yield state
    for stage in range(1, space.num_stages(run)):
        with torch.no_grad():
            state = _leaves(replace(space.advance(state, run), stage=stage))
        yield state


def _decode_all(space: Space, state: State, run: DistillRun) -> Tensor:
    with torch.no_grad():
        return space.decode(state, torch.arange(len(space.classes(state, run))), run)


def space_starts_the_same_every_time(space: Space, run: DistillRun) -> None:
    """`init` is a function of the run's streams, and leaves torch's global generator alone."""
    run, before = _run_of(space, run), torch.random.get_rng_state()
    first, second = space.init(run), space.init(run)
    assert torch.equal(before, torch.random.get_rng_state()), (
        "init draws from torch's global generator; take run.rng(name) or run.seeded(name)."
    )
    for a, b in ((first.params, second.params), (first.fixed, second.fixed)):
        assert a.keys() == b.keys(), f"init gives other tensors the second time: {sorted(a)} and {sorted(b)}."
        for name in a:
            assert torch.equal(a[name], b[name]), f"init gives another '{name}' the second time; draw from run.rng(name)."


def space_names_its_tensors(space: Space, run: DistillRun) -> None:
    """In every stage the parameters are floating-point tensors, named in `Space.tensors`."""
    run = _run_of(space, run)
    for state in stages(space, run):
        assert state.params, f"stage {state.stage} has no parameters: nothing could be optimised."
        extra = sorted(state.params.keys() - set(space.tensors))
        assert not extra, (
            f"stage {state.stage} has parameters that the class variable `tensors` does not name: {', '.join(extra)}."
        )
        for name, tensor in state.params.items():
            assert tensor.is_floating_point(), (
                f"parameter '{name}' of stage {state.stage} must be floating-point, got {tensor.dtype}."
            )


def space_sorts_its_classes(space: Space, run: DistillRun) -> None:
    """`classes` is int64, sorted, with equally many images of every class, at least IPC."""
    run = _run_of(space, run)
    for state in stages(space, run):
        classes = space.classes(state, run)
        assert classes.dtype == torch.int64, f"classes must be int64, got {classes.dtype}."
        assert torch.equal(classes, classes.sort().values), f"classes must be sorted, got {classes.tolist()}."
        counts = torch.bincount(classes, minlength=run.spec.num_classes).tolist()
        assert len(counts) == run.spec.num_classes, f"classes must lie in 0..{run.spec.num_classes - 1}, got {classes.tolist()}."
        assert min(counts) == max(counts) >= run.ipc, (
            f"every class must have the same number of images, at least {run.ipc}, got {counts}."
        )


def space_decodes_images(space: Space, run: DistillRun) -> None:
    """`decode` gives finite floating-point images of the data set's shape."""
    run = _run_of(space, run)
    for state in stages(space, run):
        images, num = _decode_all(space, state, run), len(space.classes(state, run))
        assert images.shape == (num, *run.spec.shape), f"decode must give {[num, *run.spec.shape]}, got {list(images.shape)}."
        assert images.is_floating_point(), f"decode must give floating-point images, got {images.dtype}."
        assert images.isfinite().all(), f"the images of stage {state.stage} are not all finite."


def space_decodes_by_index(space: Space, run: DistillRun) -> None:
    """The same index always gives the same image, whatever else is asked for with it."""
    run = _run_of(space, run)
    for state in stages(space, run):
        images = _decode_all(space, state, run)
        mixed = torch.cat([torch.randperm(len(images), generator=stream("order")), torch.tensor([0, 0])])
        with torch.no_grad():
            _assert_close(
                space.decode(state, mixed, run),
                images[mixed],
                "decode does not follow its index: a permuted index gives other images.",
            )
            single = torch.cat([space.decode(state, part, run) for part in torch.arange(len(images)).split(1)])
            later = space.decode(state, torch.arange(len(images)), run.at(run.step + 7))
        _assert_close(single, images, "decode does not follow its index: one image at a time gives other images.")
        _assert_close(later, images, "decode gives other images at another step.")


def space_state_survives_a_file(space: Space, run: DistillRun) -> None:
    """A state written to a file and read again decodes to equal images: nothing is stored elsewhere."""
    run = _run_of(space, run)
    for state in stages(space, run):
        tensors = {f"p.{name}": t for name, t in state.params.items()} | {f"f.{name}": t for name, t in state.fixed.items()}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "state.safetensors")
            path.write_bytes(tensors_to_bytes({name: tensor.clone() for name, tensor in tensors.items()}))
            read, _ = read_tensors(path, "state")
        params, fixed = ({n[2:]: t for n, t in read.items() if n.startswith(kind)} for kind in ("p.", "f."))
        again = _decode_all(space, State(params, fixed, state.stage), run)
        assert torch.equal(again, _decode_all(space, state, run)), (
            f"the images of stage {state.stage} change when its state is saved and read."
        )


def space_passes_gradients(space: Space, run: DistillRun) -> None:
    """Every parameter of every stage gets a finite gradient that is not zero."""
    run = _run_of(space, run)
    for state in stages(space, run):
        images = space.decode(state, torch.arange(len(space.classes(state, run))), run)
        assert images.requires_grad, f"decode in stage {state.stage} cuts the graph: the images want no gradient."
        images.backward(torch.randn(images.shape, generator=stream("cotangent")).to(images.dtype))
        for name, tensor in state.params.items():
            assert tensor.grad is not None, f"parameter '{name}' of stage {state.stage} gets no gradient."
            assert tensor.grad.isfinite().all(), f"the gradient of '{name}' in stage {state.stage} is not finite."
            assert tensor.grad.any(), f"the gradient of '{name}' in stage {state.stage} is zero."


def space_keeps_images_when_it_advances(space: Space, run: DistillRun) -> None:
    """`advance` gives other tensors that decode to the same images of the same classes."""
    run = _run_of(space, run)
    if space.num_stages(run) == 1:
        raise Skipped("the space has one stage")
    entered = list(stages(space, run))
    for before, after in pairwise(entered):
        what = f"advance from stage {before.stage} to {after.stage}"
        assert torch.equal(space.classes(before, run), space.classes(after, run)), f"{what} changes the classes."
        _assert_close(_decode_all(space, after, run), _decode_all(space, before, run), f"{what} changes the images.")


def space_projects_once(space: Space, run: DistillRun) -> None:
    """`project_` leaves tensors that decode to finite images, and a second time changes nothing."""
    run = _run_of(space, run)
    for state in stages(space, run):
        with torch.no_grad():
            for name, tensor in state.params.items():
                tensor.add_(torch.randn(tensor.shape, generator=stream("noise", name)).to(tensor.dtype))
            space.project_(state)
            once = {name: tensor.clone() for name, tensor in state.params.items()}
            space.project_(state)
        for name, tensor in state.params.items():
            assert torch.equal(tensor, once[name]), (
                f"project_ applied twice is not project_ applied once, for '{name}' in stage {state.stage}."
            )
        assert _decode_all(space, state, run).isfinite().all(), (
            f"after project_ the images of stage {state.stage} are not finite."
        )


def space_penalty_is_a_number(space: Space, run: DistillRun) -> None:
    """`penalty` is None, or 0-d and finite with a graph to the parameters."""
    run = _run_of(space, run)
    asked = [(state, space.penalty(state, run)) for state in stages(space, run)]
    if all(term is None for _, term in asked):
        raise Skipped("the space has no penalty")
    for state, term in asked:
        if term is not None:
            assert term.dim() == 0 and bool(term.isfinite()), f"the penalty must be 0-d and finite, got {term}."
            assert term.requires_grad, "the penalty has no graph: return None, or do not detach it."
            term.backward()
            assert any(tensor.grad is not None for tensor in state.params.values()), "the penalty reaches no parameter."


# ---------------------------------------------------------------- losses


def _toy_batch(run: DistillRun) -> Batch:
    """Noisy images and soft labels in float64, both leaves."""
    rng, num = stream("toy batch"), run.spec.num_classes
    classes = torch.arange(num).repeat_interleave(run.ipc)
    own = [run.real(label, run.ipc, run.rng("toy batch", label)) for label in range(num)]
    images = torch.cat(own).double() + 0.3 * torch.randn(len(classes), *run.spec.shape, generator=rng).double()
    labels = (3 * F.one_hot(classes, num).double() + torch.randn(len(classes), num, generator=rng)).softmax(1)
    return Batch(images.requires_grad_(), labels.requires_grad_(), classes)


def _fresh(loss: Loss, run: DistillRun) -> tuple[Batch, Memory, DistillRun]:
    """A run in float64 that holds what the loss needs, a batch, and a fresh memory whose learned tensors are leaves."""
    run = prepared(loss, in_double(run))
    return _toy_batch(run), loss.init(run), run


def loss_gradient_is_the_slope(loss: Loss, run: DistillRun) -> None:
    """The value's central difference along a random direction is the gradient, in float64: images, labels, params."""
    if not loss.exact:
        raise Skipped("the loss says exact = False: its gradient is a stated approximation")
    syn, memory, run = _fresh(loss, run)
    loss.backward(syn, memory, run)
    assert syn.images.grad is not None, "backward left no gradient on the images."
    wanted = {"images": syn.images.grad, "labels": syn.labels.grad} | {name: t.grad for name, t in loss.params(memory).items()}
    for name, grad in wanted.items():
        if grad is None:
            continue  # a loss may ignore labels
        assert grad.isfinite().all(), f"the gradient of the {name} is not finite."
        direction = torch.randn(grad.shape, generator=stream("direction", name)).to(grad.dtype)
        up, down = (_value_at(loss, run, name, sign * STEP * direction) for sign in (1, -1))
        slope, given = float((up - down) / (2 * STEP)), float((grad * direction).sum())
        assert abs(slope - given) <= TOLERANCE * max(abs(slope), abs(given), 1e-3), (
            f"the gradient of the {name} is wrong: along a random direction it says {given:.9g}, "
            f"and the value's finite difference {slope:.9g}."
        )


def _value_at(loss: Loss, run: DistillRun, name: str, shift: Tensor) -> Tensor:
    """The value with one tensor moved, from a fresh memory."""
    syn, memory = _toy_batch(run), loss.init(run)
    moved: dict[str, Tensor] = {"images": syn.images, "labels": syn.labels, **loss.params(memory)}
    with torch.no_grad():
        moved[name].add_(shift)
    return loss.backward(syn, memory, run).double()


def loss_gives_a_detached_number(loss: Loss, run: DistillRun) -> None:
    """The value is 0-d, finite and detached."""
    syn, memory, run = _fresh(loss, run)
    value = loss.backward(syn, memory, run)
    assert value.dim() == 0, f"backward must return a 0-d tensor, got shape {list(value.shape)}."
    assert not value.requires_grad, "backward must return a detached value."
    assert bool(value.isfinite()), f"the value is {float(value)} on harmless images."


def loss_repeats_itself(loss: Loss, run: DistillRun) -> None:
    """Equal run, step and images give the equal value and gradient, and torch's global generator stays as it was."""
    syn, memory, run = _fresh(loss, run)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        first = loss.backward(syn, memory, run)
        assert torch.equal(before, torch.random.get_rng_state()), (
            "backward draws from torch's global generator; take run.rng(name) or run.seeded(name)."
        )
        torch.manual_seed(2)
        again = _toy_batch(run)
        second = loss.backward(again, loss.init(run), run)
    assert torch.equal(first, second), f"the same seed gives {float(first)} and then {float(second)}."
    assert syn.images.grad is not None and again.images.grad is not None, "backward left no gradient on the images."
    assert torch.equal(syn.images.grad, again.images.grad), "the same seed gives another gradient the second time."


def loss_adds_to_gradients(loss: Loss, run: DistillRun) -> None:
    """`backward` adds to what `.grad` holds already."""
    syn, memory, run = _fresh(loss, run)
    loss.backward(syn, memory, run)
    other, memory = _toy_batch(run), loss.init(run)
    leaves = {"images": (syn.images, other.images), "labels": (syn.labels, other.labels)}
    for _, tensor in leaves.values():
        tensor.grad = torch.ones_like(tensor)
    loss.backward(other, memory, run)
    for name, (fresh, filled) in leaves.items():
        wanted = torch.ones_like(fresh) if fresh.grad is None else fresh.grad + 1
        assert filled.grad is not None, f"backward removes the .grad of the {name}."
        _assert_close(filled.grad, wanted, f"backward overwrites the .grad of the {name} instead of adding to it.")


def loss_touches_only_its_leaves(loss: Loss, run: DistillRun) -> None:
    """None but `syn.leaves` and `params(memory)` get a gradient; images, labels and real data keep their values."""
    syn, memory, run = _fresh(loss, run)
    images, labels, real = syn.images.detach().clone(), syn.labels.detach().clone(), run.data.images.clone()
    loss.backward(syn, memory, run)
    for name, tensor, kept in (
        ("images", syn.images, images),
        ("labels", syn.labels, labels),
        ("real images", run.data.images, real),
    ):
        assert torch.equal(tensor, kept), f"backward changes the {name} in place."
    allowed = {id(tensor) for tensor in loss.params(memory).values()}
    others = memory | {f"{need.describe()}: {name}": t for need, held in run.resources.items() for name, t in held.items()}
    for name, tensor in {**others, "real images": run.data.images}.items():
        assert tensor.grad is None or id(tensor) in allowed, (
            f"backward leaves a gradient on '{name}', which is none of its leaves."
        )
    hard = Batch(syn.images.detach().clone().requires_grad_(), syn.labels.detach(), syn.classes)
    loss.backward(hard, loss.init(run), run)
    assert hard.labels.grad is None, "backward leaves a gradient on labels that want none."


def loss_memory_is_tensors(loss: Loss, run: DistillRun) -> None:
    """`memory` holds named tensors only, after three steps too, and its learned ones are named in `Loss.learned`."""
    syn, memory, run = _fresh(loss, run)
    for step in range(3):
        loss.backward(syn, memory, run.at(step))
    for name, value in memory.items():
        assert isinstance(name, str) and isinstance(value, Tensor), (
            f"memory must hold tensors by name, and holds {name!r}: {type(value).__name__}."
        )
    for name, tensor in loss.params(memory).items():
        assert name in loss.learned, f"the class variable `learned` does not name '{name}', which params gives."
        assert memory.get(name) is tensor, (
            f"the learned tensor '{name}' must be memory['{name}'] itself, or a checkpoint loses it."
        )
        assert tensor.is_leaf and tensor.requires_grad, f"the learned tensor '{name}' must be a leaf that wants a gradient."


def loss_goes_on_from_a_checkpoint(loss: Loss, run: DistillRun) -> None:
    """The third step gives the equal value whether `memory` was kept or copied after the second."""
    syn, memory, run = _fresh(loss, run)
    for step in range(2):
        loss.backward(syn, memory, run.at(step))
    copied = {name: tensor.detach().clone() for name, tensor in memory.items()}
    for name in loss.params(copied):
        copied[name].requires_grad_()
    values = [loss.backward(syn, held, run.at(2)) for held in (memory, copied)]
    assert torch.equal(*values), (
        f"a copy of memory gives {float(values[1])} where memory itself gives {float(values[0])}: something is kept elsewhere."
    )


# ---------------------------------------------------------------- generators


def _loaded(config: GeneratorConfig, run: DistillRun) -> tuple[Generator, Tensor]:
    """The generator, and a code for two images of every class."""
    run = prepared(config, replace(run, loaded=None))
    generator = config.load(run)
    return generator, generator.latents(torch.arange(run.spec.num_classes).repeat_interleave(2), stream("codes"))


def generator_layers_compose(config: GeneratorConfig, run: DistillRun) -> None:
    """From 0 to L is from 0 to k, then from k to L, for every k."""
    generator, w = _loaded(config, run)
    with torch.no_grad():
        whole = generator.synthesize(w, None, 0, generator.depth)
        for k in range(generator.depth + 1):
            hidden = generator.synthesize(w, None, 0, k)
            parts = generator.synthesize(w, hidden, k, generator.depth)
            _assert_close(parts, whole, f"0 to {k} and then {k} to {generator.depth} is not 0 to {generator.depth}.")


def generator_gives_pixels(config: GeneratorConfig, run: DistillRun) -> None:
    """F_L is finite pixels in [0, 1] of the data set's shape, equal every time and for every image by itself."""
    generator, w = _loaded(config, run)
    with torch.no_grad():
        pixels, again = (generator.synthesize(w, None, 0, generator.depth) for _ in range(2))
        alone = torch.cat([generator.synthesize(code[None], None, 0, generator.depth) for code in w])
    assert pixels.shape == (len(w), *run.spec.shape), (
        f"the last layer must give {[len(w), *run.spec.shape]}, got {list(pixels.shape)}."
    )
    inside = bool(((pixels >= 0) & (pixels <= 1)).all())  # False for NaN too
    assert inside, f"pixels must lie in [0, 1], got {float(pixels.min()):g} to {float(pixels.max()):g}."
    assert torch.equal(pixels, again), "the same codes give other pixels the second time: is it in evaluation mode?"
    _assert_close(alone, pixels, "an image depends on the others of its batch: is it in evaluation mode?")


def generator_draws_codes_from_its_stream(config: GeneratorConfig, run: DistillRun) -> None:
    """`latents` is [B, L, D], equal for equal streams and other for others; loading twice gives the same generator."""
    generator, w = _loaded(config, run)
    classes = torch.arange(run.spec.num_classes).repeat_interleave(2)
    before = torch.random.get_rng_state()
    same, other = (generator.latents(classes, stream(name)) for name in ("codes", "others"))
    assert torch.equal(before, torch.random.get_rng_state()), "latents draws from torch's global generator, not from rng."
    assert w.dim() == 3 and w.shape[:2] == (len(classes), generator.depth), (
        f"latents must be [{len(classes)}, {generator.depth}, D], got {list(w.shape)}."
    )
    assert torch.equal(w, same), "the same stream gives other codes the second time."
    assert not torch.equal(w, other), "another stream gives the same codes: latents does not use rng."
    again, codes = _loaded(config, run)
    assert torch.equal(w, codes), "the generator loaded a second time gives other codes."
    with torch.no_grad():
        pictures = [each.synthesize(w, None, 0, each.depth) for each in (generator, again)]
    assert torch.equal(*pictures), "the generator loaded a second time gives other pixels."


def generator_is_frozen(config: GeneratorConfig, run: DistillRun) -> None:
    """Gradients reach codes and features, and no weight wants one."""
    generator, w = _loaded(config, run)
    w = w.detach().requires_grad_()
    middle = generator.depth // 2
    hidden = generator.synthesize(w.detach(), None, 0, middle).detach().requires_grad_()
    generator.synthesize(w, hidden, middle, generator.depth).square().sum().backward()
    for name, tensor in (("codes", w), ("features", hidden)):
        assert tensor.grad is not None and bool(tensor.grad.isfinite().all() and tensor.grad.any()), (
            f"the {name} get no gradient."
        )
    if isinstance(generator, nn.Module):
        thawed = [name for name, parameter in generator.named_parameters() if parameter.requires_grad]
        assert not thawed, f"weights of a loaded generator must not want gradients: {', '.join(thawed)}."
        assert not generator.training, "a loaded generator must be in evaluation mode."


# ---------------------------------------------------------------- architectures


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
    _assert_close(parts, logits, "forward is not forward_head of forward_features.")
    _assert_close(alone, logits, "in evaluation mode an image's logits depend on the others of its batch.")


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


# ---------------------------------------------------------------- data sets

SPLITS: tuple[Split, ...] = ("train", "test")


def _load(dataset: Dataset, split: Split) -> tuple[Tensor, Tensor]:
    try:
        data = dataset.load(split, default_root())
    except DataError as error:
        raise Skipped(str(error)) from error
    return data.images, data.labels


def dataset_spec_is_sound(dataset: Dataset, run: DistillRun) -> None:
    """Without a file: three positive sizes, distinct class names, a mean and a positive deviation for each channel."""
    spec = dataset.spec()
    assert spec == dataset.spec(), "spec gives something else the second time."
    assert len(spec.shape) == 3 and min(spec.shape) > 0, f"the shape must be C, H, W, got {spec.shape}."
    assert len(set(spec.class_names)) == len(spec.class_names) > 1, "class names must be distinct, and more than one."
    assert len(spec.mean) == len(spec.std) == spec.shape[0], (
        f"mean and std must have {spec.shape[0]} entries, got {spec.mean} and {spec.std}."
    )
    assert all(0 <= value <= 1 for value in spec.mean) and all(value > 0 for value in spec.std), (
        "mean lies in [0, 1], std above 0."
    )
    replace(run, data=replace(run.data, spec=spec)).augment.draw(stream("view"))


def dataset_fits_its_spec(dataset: Dataset, run: DistillRun) -> None:
    """Both splits: uint8 images [N,C,H,W] of the spec's shape, an int64 label for each."""
    for split in SPLITS:
        images, labels = _load(dataset, split)
        assert images.dtype == torch.uint8, f"the {split} images must be uint8, got {images.dtype}."
        assert tuple(images.shape[1:]) == dataset.spec().shape, (
            f"the {split} images are {list(images.shape)}, the spec says {dataset.spec().shape}."
        )
        assert labels.dtype == torch.int64 and labels.shape == images.shape[:1], (
            f"the {split} labels must be int64 [{len(images)}]."
        )


def dataset_covers_its_classes(dataset: Dataset, run: DistillRun) -> None:
    """Both splits have images of every class, and no other."""
    num = dataset.spec().num_classes
    for split in SPLITS:
        found = _load(dataset, split)[1].unique().tolist()
        assert found == list(range(num)), f"the {split} labels must be all of 0..{num - 1}, got {found}."


def dataset_loads_the_same_every_time(dataset: Dataset, run: DistillRun) -> None:
    """Both splits have the same images and labels in the same order, twice."""
    for split in SPLITS:
        for first, second in zip(_load(dataset, split), _load(dataset, split), strict=True):
            assert torch.equal(first, second), f"the {split} split is another the second time."
    assert isinstance(dataset.is_original(default_root()), bool), "is_original must say True or False."


# ----------------------------------------------------------------


def _assert_close(got: Tensor, wanted: Tensor, sentence: str) -> None:
    assert got.shape == wanted.shape, f"{sentence} Shapes: {list(got.shape)} and {list(wanted.shape)}."
    if wanted.numel() == 0:
        return
    gap = float((got - wanted).detach().abs().max())
    limit = CLOSE * max(1.0, float(wanted.detach().abs().max()))
    assert gap <= limit, f"{sentence} Largest difference: {gap:.3g}."


space_checks: list[Check] = [
    space_starts_the_same_every_time,
    space_names_its_tensors,
    space_sorts_its_classes,
    space_decodes_images,
    space_decodes_by_index,
    space_state_survives_a_file,
    space_passes_gradients,
    space_keeps_images_when_it_advances,
    space_projects_once,
    space_penalty_is_a_number,
]
loss_checks: list[Check] = [
    loss_gradient_is_the_slope,
    loss_gives_a_detached_number,
    loss_repeats_itself,
    loss_adds_to_gradients,
    loss_touches_only_its_leaves,
    loss_memory_is_tensors,
    loss_goes_on_from_a_checkpoint,
]
generator_checks: list[Check] = [
    generator_layers_compose,
    generator_gives_pixels,
    generator_draws_codes_from_its_stream,
    generator_is_frozen,
]
architecture_checks: list[Check] = [
    architecture_has_its_shapes,
    architecture_is_head_of_features,
    architecture_has_second_derivatives,
    architecture_refuses_smaller_images,
    architecture_starts_from_the_global_stream,
]
dataset_checks: list[Check] = [
    dataset_spec_is_sound,
    dataset_fits_its_spec,
    dataset_covers_its_classes,
    dataset_loads_the_same_every_time,
]
CHECKS: dict[str, list[Check]] = {
    "losses": loss_checks,
    "spaces": space_checks,
    "generators": generator_checks,
    "architectures": architecture_checks,
    "datasets": dataset_checks,
}
"""The checks of every kind."""
