"""The contract of baselines."""

from __future__ import annotations

import torch

from ddbench.api import Baseline, Batch
from ddbench.compute.run import DistillRun
from ddbench.data.subsets import default_root
from ddbench.errors import DataError
from ddbench.testing.checks import Check, Skipped, assert_says_what_it_saw
from ddbench.testing.pretended import Pretended
from ddbench.testing.toys import prepared


def _ready(baseline: Baseline, run: DistillRun) -> DistillRun:
    """The run with what the baseline needs. Raises Skipped for one that builds nothing, or whose files a user has to bring."""
    if baseline.everything:
        raise Skipped("it is all real training images, and builds nothing.")
    try:
        baseline.pins(run.folder or default_root())
        baseline.check(run)
    except DataError as error:
        raise Skipped(str(error)) from error
    return prepared(baseline, run)


def _built(baseline: Baseline, run: DistillRun) -> Batch:
    return baseline.build(_ready(baseline, run))


def baseline_builds_a_set(baseline: Baseline, run: DistillRun) -> None:
    """Float images of the data set's shape, a row of probabilities and a class for each, nothing that is no number."""
    made, spec = _built(baseline, run), run.spec
    num = len(made.images)
    assert num, "it must build at least one image."
    assert tuple(made.images.shape[1:]) == spec.shape, f"images must be [N, {spec.shape}], got {list(made.images.shape)}."
    assert made.images.is_floating_point(), f"images must be normalised floats, got {made.images.dtype}."
    assert made.images.isfinite().all(), "its images hold NaN or infinite values."
    assert made.labels.shape == (num, spec.num_classes), f"labels must be [N, K], got {list(made.labels.shape)}."
    sums = made.labels.sum(1)
    assert bool(((sums - 1).abs() < 1e-3).all() & (made.labels >= 0).all()), "labels must be probabilities."
    assert made.classes.shape == (num,), f"classes must be [N], got {list(made.classes.shape)}."


def baseline_sorts_its_classes(baseline: Baseline, run: DistillRun) -> None:
    """The class of every image is one of the data set's, in ascending order."""
    classes = _built(baseline, run).classes
    assert bool((classes.diff() >= 0).all()), "classes must be sorted."
    known = range(run.spec.num_classes)
    assert {int(classes.min()), int(classes.max())} <= set(known), "a class is none of the data set's."


def baseline_repeats_itself(baseline: Baseline, run: DistillRun) -> None:
    """The same run gives the same set, whatever torch's global generator has drawn meanwhile, and leaves that where it was."""
    first = _built(baseline, run)
    torch.rand(3)
    before = torch.get_rng_state()
    again = _built(baseline, run)
    assert torch.equal(torch.get_rng_state(), before), "it draws from torch's global generator: use run.rng(name)."
    assert torch.equal(first.images, again.images), "the same run gives other images: draw from run.rng(name) only."
    assert torch.equal(first.labels, again.labels), "the same run gives other labels."


def baseline_keeps_the_real_images(baseline: Baseline, run: DistillRun) -> None:
    """It changes no real image in place."""
    before = run.data.images[:].clone()
    _built(baseline, run)
    assert torch.equal(run.data.images[:], before), "it has changed the real images."


def baseline_stays_on_its_device(baseline: Baseline, run: DistillRun) -> None:
    """It builds a set there."""
    run = _ready(baseline, run)
    with Pretended() as fake:
        baseline.build(fake.run(run))


def baseline_says_what_it_saw(baseline: Baseline, run: DistillRun) -> None:
    """Itself, and what it needs."""
    assert_says_what_it_saw(baseline, run)


baseline_checks: list[Check] = [
    baseline_builds_a_set, baseline_sorts_its_classes, baseline_repeats_itself, baseline_keeps_the_real_images,
    baseline_stays_on_its_device,
    baseline_says_what_it_saw,
]  # fmt: skip
