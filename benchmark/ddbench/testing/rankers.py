"""The contract of rankers."""

# ruff: noqa: PT018 (one sentence often covers two conditions)

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ddbench.api import Batch, Ranker, Score
from ddbench.compute.rank import RankingRun, needs, open_ranker
from ddbench.compute.run import DistillRun
from ddbench.plan import SetPlan
from ddbench.refs import require
from ddbench.testing.checks import Check, Skipped, assert_says_what_it_saw
from ddbench.testing.devices import all_on, runs_ahead
from ddbench.testing.pretended import Pretended
from ddbench.testing.toys import TOY_RECIPE, Given, prepared

STEP = 3  # at which sets are ranked
EACH = 2  # images of a class


def _plan(ranker: Ranker, run: DistillRun) -> SetPlan:
    """A plan whose steps it ranks; the backbone is its proxy."""
    backbone = require(run.backbone, "backbone")
    return SetPlan(
        dataset=Given.of("datasets", None), train_hash="0" * 64, ipc=EACH, seed=0, held_out=0.1, backbone=backbone,
        proxy=backbone, proxy_epochs=1, rank_steps=Given.of("rankers", ranker), rank_epochs=20, ranking=TOY_RECIPE,
    )  # fmt: skip


def _ready(ranker: Ranker, run: DistillRun) -> DistillRun:
    """The run with what the ranker and the proxy need, built; it refuses everything else."""
    run = prepared(ranker, run)
    built = {need: need.build(run.under("proxy")) for need in needs(_plan(ranker, run)) if ranker.uses_proxy}
    return replace(run, resources={**run.resources, **built})


def _opened(ranker: Ranker, run: DistillRun) -> Score:
    return open_ranker(ranker, _plan(ranker, run), run)


def _set(run: DistillRun) -> Batch:
    """The first real images of every class."""
    data, num = run.data, run.spec.num_classes
    places = torch.cat([start + torch.arange(EACH) for start in data.starts[:-1]]).to(run.device)
    classes = torch.arange(num, device=run.device).repeat_interleave(EACH)
    return Batch(data.seen(data.images[places]), F.one_hot(classes, num).float(), classes)


def ranker_scores_a_set(ranker: Ranker, run: DistillRun) -> None:
    """A finite number, 0-d, without a graph."""
    run = _ready(ranker, run)
    value = ranker.open(RankingRun.of(run, _plan(ranker, run), ranker))(_set(run), STEP)
    assert isinstance(value, Tensor) and value.dim() == 0, f"a score must be a tensor [], got {value!r}."
    assert value.is_floating_point() and bool(value.isfinite()), f"a score must be a finite number, got {value}."
    assert not value.requires_grad, "a score must have no graph: compute it without, or detach it."


def ranker_tells_sets_apart(ranker: Ranker, run: DistillRun) -> None:
    """Real images, those of other classes, grey ones and noise do not all have one score."""
    run = _ready(ranker, run)
    syn, score = _set(run), _opened(ranker, run)
    noise = torch.randn(syn.images.shape, generator=run.rng("noise")).to(syn.images)
    others = (syn.images, syn.images.roll(EACH, 0), torch.zeros_like(syn.images), 3 * noise)
    values = {float(score(replace(syn, images=images), STEP)) for images in others}
    assert len(values) > 1, f"very different sets all have the score {values.pop()}: it ranks nothing."


def ranker_repeats_itself(ranker: Ranker, run: DistillRun) -> None:
    """The same set at the same step has the same score: asked again after another step, and opened again, as a process does that
    goes on from a checkpoint; nothing is drawn from torch's global generator."""
    run = _ready(ranker, run)
    syn, score = _set(run), _opened(ranker, run)
    first = score(syn, STEP)
    score(replace(syn, images=syn.images.flip(3)), STEP + 1)
    torch.rand(3)
    before = torch.get_rng_state()
    again, opened = score(syn, STEP), _opened(ranker, run)(syn, STEP)
    assert torch.equal(torch.get_rng_state(), before), "it draws from torch's global generator: use run.rng(name)."
    assert torch.equal(again, first), "asked again, it gives another score: a score must remember nothing between steps."
    assert torch.equal(opened, first), "opened again, it gives another score: draw from run.rng(name) only."


def ranker_leaves_images_alone(ranker: Ranker, run: DistillRun) -> None:
    """Neither the set nor the real images are changed in place."""
    run = _ready(ranker, run)
    syn = _set(run)
    before = (syn.images.clone(), syn.labels.clone(), run.data.images[:].clone())
    _opened(ranker, run)(syn, STEP)
    for name, now, then in zip(("images", "labels"), (syn.images, syn.labels), before, strict=False):
        assert torch.equal(now, then), f"it has changed the set's {name}."
    assert torch.equal(run.data.images[:], before[2]), "it has changed the real images."


def ranker_stays_on_its_device(ranker: Ranker, run: DistillRun) -> None:
    """The score is there, and the host need not wait for it."""
    run = _ready(ranker, run)
    with Pretended() as fake:
        there = fake.run(run)
        score, syn = _opened(ranker, there), _set(there)
        score(syn, STEP)
        with fake.counting() as counts:
            value = score(syn, STEP + 1)
        all_on(fake.device, **{"the score": value})
    if ranker.uses_held_out:
        raise Skipped("its score is there; training networks on the set makes the host wait, which it may.")
    runs_ahead(counts, "a score")


def ranker_says_what_it_saw(ranker: Ranker, run: DistillRun) -> None:
    """Itself, and what it needs."""
    assert_says_what_it_saw(ranker, run)


ranker_checks: list[Check] = [
    ranker_scores_a_set, ranker_tells_sets_apart, ranker_repeats_itself, ranker_leaves_images_alone, ranker_stays_on_its_device,
    ranker_says_what_it_saw,
]  # fmt: skip
