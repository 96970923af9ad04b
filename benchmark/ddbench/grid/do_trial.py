"""A trial of rates: distilling a set at them, and scoring it on held-out training images. No test image is read."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from filelock import Timeout
from msgspec.structs import replace

from ddbench.compute import hardware
from ddbench.compute.score import ScoredSet, score
from ddbench.errors import DivergedError
from ddbench.grid.do import End, Report, Workplace, check_data, data_of
from ddbench.grid.do_set import make_set
from ddbench.plan import SetPlan
from ddbench.results import trials
from ddbench.results.layout import set_job
from ddbench.results.store import remove
from ddbench.schema import JobFile, TrialMeasured, TrialRecord
from ddbench.trials import Scoring, trial_key


def run_trial(file: JobFile, here: Workplace, report: Report) -> End:
    """Make the trial's set where it is not there, score it and publish that. One that diverges is a result too: the worst."""
    plan, scoring, store = file.plan, file.scoring, here.store
    assert scoring is not None
    if store.trial(trial_key(plan.key, scoring)).is_file():
        return "found"
    identity, started = check_data(plan, here), time.perf_counter()
    of_set = replace(file, kind="set", name=set_job(plan.key), scoring=None)
    try:
        with store.lock(of_set.name).acquire(timeout=0):
            end = make_set(of_set, here, report)
    except Timeout:
        return "busy"
    except DivergedError as error:
        took = {"distill": time.perf_counter() - started}
        found: dict[str, Any] = {"set_sha256": "", "errors": (1.0,) * scoring.repeats, "diverged": str(error)}
        found |= {"marks": here.marks(), "measured": _measured(here, took, {})}
        remove([store.work(of_set.name)])
    else:
        if end == "done" and here.is_stained:
            return "busy"  # what its plugins did to this process must not reach the scores: another goes on
        here.begin(plan.threads, plan.tf32)
        found = _scored(plan, scoring, here, report)
    data = data_of(plan.dataset, plan.train_hash, identity, tuple(identity.train_counts))
    record = TrialRecord(
        key=trial_key(plan.key, scoring), suite=file.suite, plan=plan, scoring=scoring, data=data,
        num_scored=len(here.scoring_data(plan)[1]), place=here.place(plan.threads, plan.refs), **found,
    )  # fmt: skip
    trials.publish_trial(store, record)
    return "done"


def _scored(plan: SetPlan, scoring: Scoring, here: Workplace, report: Report) -> dict[str, Any]:
    """What the record of a trial says of a set that is there."""
    of_set, (tensors, _) = here.store.read_record(plan.key), here.store.read_set(plan.key)
    rate = of_set.learned.get("student_rate")
    learned = float(rate) if isinstance(rate, int | float) else None
    made = ScoredSet(tensors["images"].to(here.device), tensors["labels"].to(here.device), learned)

    def tick(fraction: float) -> None:
        report("score", fraction)

    images, labels = here.scoring_data(plan)
    began = time.perf_counter()
    held_out = images.to(here.device), labels.to(here.device)
    errors, diverged = score(plan, scoring, made, held_out, plan.dataset.make().spec(), tick)
    took = of_set.measured.seconds | {"score": time.perf_counter() - began}
    measured = _measured(here, took, of_set.measured.resources, of_set.measured.peak_memory_bytes)
    marks = tuple(dict.fromkeys([*of_set.marks, *here.marks()]))
    return {
        "set_sha256": of_set.set_sha256, "errors": tuple(errors), "diverged": diverged, "marks": marks, "measured": measured,
    }  # fmt: skip


def _measured(here: Workplace, seconds: dict[str, float], resources: dict[str, float], peak: int = 0) -> TrialMeasured:
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    peak = max(peak, here.peak_memory_bytes())
    return TrialMeasured(
        seconds=seconds, resources=resources, peak_memory_bytes=max(peak, 0), commit=hardware.commit(), finished=finished
    )
