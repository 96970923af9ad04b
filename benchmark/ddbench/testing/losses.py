"""The contract of losses."""

# ruff: noqa: PT018 (one sentence often covers two conditions)

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.api import (
    Batch,
    Loss,
    Memory,
)
from ddbench.compute.decoding import picked_index
from ddbench.compute.run import DistillRun
from ddbench.errors import PluginError
from ddbench.seeds import stream
from ddbench.testing.checks import STEP, TOLERANCE, Check, Skipped, assert_close, assert_says_what_it_saw
from ddbench.testing.devices import all_on, runs_ahead
from ddbench.testing.pretended import Pretended
from ddbench.testing.toys import (
    in_double,
    prepared,
)


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
        assert_close(filled.grad, wanted, f"backward overwrites the .grad of the {name} instead of adding to it.")


def loss_touches_only_its_leaves(loss: Loss, run: DistillRun) -> None:
    """None but `syn.leaves` and `params(memory)` get a gradient; images, labels and real data keep their values."""
    syn, memory, run = _fresh(loss, run)
    images, labels, real = syn.images.detach().clone(), syn.labels.detach().clone(), run.data.images[:].clone()
    loss.backward(syn, memory, run)
    for name, tensor, kept in (
        ("images", syn.images, images),
        ("labels", syn.labels, labels),
        ("real images", run.data.images[:], real),
    ):
        assert torch.equal(tensor, kept), f"backward changes the {name} in place."
    allowed = {id(tensor) for tensor in loss.params(memory).values()}
    others = memory | {f"{need.describe()}: {name}": t for need, held in run.resources.items() for name, t in held.items()}
    for name, tensor in {**others, "real images": run.data.images[:]}.items():
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


def loss_teacher_gives_labels(loss: Loss, run: DistillRun) -> None:
    """`relabel` gives every image probabilities, the same every time; it is there where `relabels` says so, and only there."""
    if loss.relabels == "never":
        assert type(loss).relabel is Loss.relabel, "the loss has a relabel, and says relabels = never, so nobody asks it."
        return
    assert type(loss).relabel is not Loss.relabel, f"the loss says relabels = {loss.relabels} and has no relabel."
    syn, memory, run = _fresh(loss, run)
    with torch.no_grad():
        labels = loss.relabel(syn.images.detach(), memory, run)
        again = loss.relabel(syn.images.detach(), memory, run)
    wanted = (len(syn.images), run.spec.num_classes)
    assert labels.shape == wanted, f"relabel must give {list(wanted)} probabilities, and gives {list(labels.shape)}."
    assert bool((labels >= 0).all()), "relabel gives negative probabilities."
    assert_close(labels.sum(1), torch.ones_like(labels[:, 0]), "the probabilities that relabel gives do not sum to 1.")
    assert torch.equal(labels, again), "relabel gives other labels the second time."


def loss_picks_what_it_needs(loss: Loss, run: DistillRun) -> None:
    """Where `picks` names images, these alone give the value and the gradients that the whole set gives, and the others none."""
    syn, memory, run = _fresh(loss, run)
    num = len(syn.classes)
    try:
        index = picked_index(loss, num, run)
    except PluginError as error:
        raise AssertionError(str(error)) from error
    if index is None:
        return
    again = loss.picks(num, run)
    assert again is not None and torch.equal(index, again), "picks names other images the second time."
    value = loss.backward(syn, memory, run)
    images, labels = (tensor.detach()[index].requires_grad_() for tensor in (syn.images, syn.labels))
    own = loss.init(run)
    alone = loss.backward(Batch(images, labels, syn.classes[index], num), own, run)
    assert_close(alone, value, "the images that picks names give another value than the whole set.")
    whole = {"images": syn.images, "labels": syn.labels, **loss.params(memory)}
    for name, tensor in {"images": images, "labels": labels, **loss.params(own)}.items():
        wanted, got = (torch.zeros_like(one) if one.grad is None else one.grad for one in (whole[name], tensor))
        if name in ("images", "labels"):
            got = torch.zeros_like(wanted).index_copy(0, index, got)
        assert_close(got, wanted, f"the gradient of the {name} is another for the images that picks names.")


def _batch_there(run: DistillRun) -> Batch:
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
            syn = _batch_there(there.at(step))
            with fake.counting() as counts:
                value = loss.backward(syn, memory, there.at(step))
        assert syn.images.grad is not None, "backward left no gradient on the images."
        all_on(fake.device, **{"the value": value, "the images' gradient": syn.images.grad})
        runs_ahead(counts, "a step")


def loss_says_what_it_saw(loss: Loss, run: DistillRun) -> None:
    """Itself, and what it needs."""
    assert_says_what_it_saw(loss, run)


loss_checks: list[Check] = [
    loss_gradient_is_the_slope,
    loss_gives_a_detached_number,
    loss_repeats_itself,
    loss_adds_to_gradients,
    loss_touches_only_its_leaves,
    loss_memory_is_tensors,
    loss_goes_on_from_a_checkpoint,
    loss_teacher_gives_labels,
    loss_picks_what_it_needs,
    loss_stays_on_its_device,
    loss_says_what_it_saw,
]
