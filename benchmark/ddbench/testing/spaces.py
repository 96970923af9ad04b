"""The contract of spaces."""

# ruff: noqa: PT018 (one sentence often covers two conditions)

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from ddbench.api import (
    GENERATOR,
    Budget,
    Space,
    State,
)
from ddbench.compute.distilled import Stored, bytes_of
from ddbench.compute.run import DistillRun
from ddbench.errors import ConfigError
from ddbench.files import read_tensors, tensors_to_bytes
from ddbench.seeds import stream
from ddbench.testing.checks import Check, Skipped, assert_close, assert_says_what_it_saw
from ddbench.testing.devices import all_on, runs_ahead
from ddbench.testing.pretended import Pretended
from ddbench.testing.toys import (
    prepared,
)

ROOMY = (4, 9, 16, 36)  # ipc that may do where another is too small for an item; squares, for wrappers


def _leaves(state: State) -> State:
    """As the engine makes them: every parameter a leaf of its own."""
    return State({name: t.detach().clone().requires_grad_() for name, t in state.params.items()}, state.fixed, state.stage)


def run_of(space: Space, run: DistillRun) -> DistillRun:
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
    run, before = run_of(space, run), torch.random.get_rng_state()
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
    run = run_of(space, run)
    for state in stages(space, run):
        assert state.params, f"stage {state.stage} has no parameters: nothing could be optimised."
        extra = sorted(state.params.keys() - set(space.tensors))
        assert not extra, f"stage {state.stage} has parameters that the space's `tensors` does not name: {', '.join(extra)}."
        for name, tensor in state.params.items():
            assert tensor.is_floating_point(), (
                f"parameter '{name}' of stage {state.stage} must be floating-point, got {tensor.dtype}."
            )


def space_sorts_its_classes(space: Space, run: DistillRun) -> None:
    """`classes` is int64, sorted, with equally many images of every class, at least IPC."""
    run = run_of(space, run)
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
    run = run_of(space, run)
    for state in stages(space, run):
        images, num = _decode_all(space, state, run), len(space.classes(state, run))
        assert images.shape == (num, *run.spec.shape), f"decode must give {[num, *run.spec.shape]}, got {list(images.shape)}."
        assert images.is_floating_point(), f"decode must give floating-point images, got {images.dtype}."
        assert images.isfinite().all(), f"the images of stage {state.stage} are not all finite."


def space_decodes_by_index(space: Space, run: DistillRun) -> None:
    """The same index always gives the same image, whatever else is asked for with it."""
    run = run_of(space, run)
    for state in stages(space, run):
        images = _decode_all(space, state, run)
        mixed = torch.cat([torch.randperm(len(images), generator=stream("order")), torch.tensor([0, 0])])
        with torch.no_grad():
            assert_close(
                space.decode(state, mixed, run),
                images[mixed],
                "decode does not follow its index: a permuted index gives other images.",
            )
            single = torch.cat([space.decode(state, part, run) for part in torch.arange(len(images)).split(1)])
            later = space.decode(state, torch.arange(len(images)), run.at(run.step + 7))
        assert_close(single, images, "decode does not follow its index: one image at a time gives other images.")
        assert_close(later, images, "decode gives other images at another step.")


def space_state_survives_a_file(space: Space, run: DistillRun) -> None:
    """A state written to a file and read again decodes to equal images: nothing is stored elsewhere."""
    run = run_of(space, run)
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
    run = run_of(space, run)
    for state in stages(space, run):
        images = space.decode(state, torch.arange(len(space.classes(state, run))), run)
        assert images.requires_grad, f"decode in stage {state.stage} cuts the graph: the images want no gradient."
        images.backward(torch.randn(images.shape, generator=stream("cotangent")).to(images.dtype))
        for name, tensor in state.params.items():
            assert tensor.grad is not None, f"parameter '{name}' of stage {state.stage} gets no gradient."
            assert tensor.grad.isfinite().all(), f"the gradient of '{name}' in stage {state.stage} is not finite."
            assert tensor.grad.any(), f"the gradient of '{name}' in stage {state.stage} is zero."


def space_keeps_images_when_it_advances(space: Space, run: DistillRun) -> None:
    """`advance` gives other tensors that decode to the same images of the same classes; every stage has a name, which may be
    empty."""
    run = run_of(space, run)
    if space.num_stages(run) == 1:
        raise Skipped("the space has one stage")
    entered = list(stages(space, run))
    names = [space.stage_name(state.stage, run) for state in entered]
    assert all(isinstance(name, str) for name in names), f"stage_name must give texts, got {names}."
    for before, after in pairwise(entered):
        what = f"advance from stage {before.stage} to {after.stage}"
        assert torch.equal(space.classes(before, run), space.classes(after, run)), f"{what} changes the classes."
        assert_close(_decode_all(space, after, run), _decode_all(space, before, run), f"{what} changes the images.")


def space_projects_once(space: Space, run: DistillRun) -> None:
    """`project_` leaves tensors that decode to finite images, and a second time changes nothing."""
    run = run_of(space, run)
    for state in stages(space, run):
        with torch.no_grad():
            for name, tensor in state.params.items():
                tensor.add_(torch.randn(tensor.shape, generator=stream("noise", name)).to(tensor.dtype))
            space.project_(state, run)
            once = {name: tensor.clone() for name, tensor in state.params.items()}
            space.project_(state, run)
        for name, tensor in state.params.items():
            assert torch.equal(tensor, once[name]), (
                f"project_ applied twice is not project_ applied once, for '{name}' in stage {state.stage}."
            )
        assert _decode_all(space, state, run).isfinite().all(), (
            f"after project_ the images of stage {state.stage} are not finite."
        )


def space_penalty_is_a_number(space: Space, run: DistillRun) -> None:
    """`penalty` is None, or 0-d and finite with a graph to the parameters."""
    run = run_of(space, run)
    memory = space.init_memory(run)
    asked = [(state, space.penalty(state, memory, run)) for state in stages(space, run)]
    if all(term is None for _, term in asked):
        raise Skipped("the space has no penalty")
    for state, term in asked:
        if term is not None:
            assert term.dim() == 0 and bool(term.isfinite()), f"the penalty must be 0-d and finite, got {term}."
            assert term.requires_grad, "the penalty has no graph: return None, or do not detach it."
            term.backward()
            assert any(tensor.grad is not None for tensor in state.params.values()), "the penalty reaches no parameter."


def space_heeds_the_budget(space: Space, run: DistillRun) -> None:
    """`num_images` says how many there are under both budgets; under that of bytes, no stage is delivered in more than IPC images
    take. `decoder` names tensors that are there, or the generator."""
    run = run_of(space, run)
    for budget in get_args(Budget):
        told = _with_room(space, replace(run, budget=budget))
        whole = bytes_of(told.spec.num_classes * told.ipc, told.spec)
        for state in stages(space, told):
            num, said = len(space.classes(state, told)), space.num_images(told)
            assert num == said, f"num_images says {said} under the budget of {budget}, and there are {num}."
            odd = sorted({*space.decoder(state)} - {GENERATOR, *state.params, *state.fixed})
            assert not odd, f"`decoder` names what is no tensor of stage {state.stage}: {', '.join(odd)}."
            taken = Stored.of(space, state, told).delivered(num, told.spec)
            assert budget == "images" or taken <= whole, (
                f"stage {state.stage} takes {taken} bytes, and ipc {told.ipc} allows {whole}: num_images must heed run.budget."
            )


def _with_room(space: Space, run: DistillRun) -> DistillRun:
    """With the first ipc that the space does not refuse."""
    for ipc in (run.ipc, *ROOMY):
        with suppress(ConfigError):
            space.num_images(replace(run, ipc=ipc))
            return replace(run, ipc=ipc)
    raise Skipped(f"the space refuses the budget of {run.budget} at ipc {run.ipc}, {', '.join(map(str, ROOMY))}")


def space_stays_on_its_device(space: Space, run: DistillRun) -> None:
    """Its tensors, and what a step asks of it, in every stage."""
    run = run_of(space, run)
    with Pretended() as fake:
        there = fake.run(run)
        memory = space.init_memory(there)
        all_on(fake.device, **{f"'{name}' of its memory": tensor for name, tensor in memory.items()})
        for state in stages(space, there):
            all_on(fake.device, **{f"'{name}'": tensor for name, tensor in (state.params | state.fixed).items()})
            classes = space.classes(state, there)
            index = torch.arange(len(classes), device=fake.device)
            all_on(fake.device, classes=classes)
            for _ in range(2):
                with fake.counting() as counts:
                    images = space.decode(state, index, there)
                    images.sum().backward()
                    space.penalty(state, memory, there)
                    with torch.no_grad():
                        space.project_(state, there)
                    space.after_step(state, memory, there)
            all_on(fake.device, **{"the decoded images": images})
            runs_ahead(counts, f"a step in stage {state.stage}")


def space_says_what_it_saw(space: Space, run: DistillRun) -> None:
    """Itself, and what it needs."""
    assert_says_what_it_saw(space, run)


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
    space_heeds_the_budget,
    space_stays_on_its_device,
    space_says_what_it_saw,
]
