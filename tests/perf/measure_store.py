"""How long the commands take on a large store: 2,000 sets under five networks each, 10,000 judgements.

`make perf-store` writes the store, made up but for the suite's plans and keys, into a folder that goes afterwards, and prints a
line for each command, with its seconds by the clock and of the processor, and one for the scheduler. Give it an idle machine.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from stores import judgement, set_record

from ddbench.api import Job
from ddbench.cli.common import load_suite
from ddbench.files import tensors_to_bytes
from ddbench.grid.scheduler import Schedule
from ddbench.results.store import Store

SUITE = """
schema = 1
name = "large"
protocol = "smoke-1"
seeds = [{seeds}]
ipc = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
subsets = ["mnist-5k"]
losses = [{losses}]
spaces = ["pixel"]
networks = [{networks}]
baselines = []
"""


def suite_text(num_seeds: int) -> str:
    """A hundred cells a seed, five networks."""
    return SUITE.format(
        seeds=", ".join(map(str, range(num_seeds))),
        losses=", ".join(f'{{ name = "dm", batch_real = {num} }}' for num in range(10, 110, 10)),
        networks=", ".join(f'{{ name = "convnet", width = {width}, depth = 1 }}' for width in (4, 8, 16, 32, 64)),
    )


def write_store(suite: Path, root: Path) -> tuple[int, int]:
    """Every set and judgement of a suite, with numbers that are made up."""
    store, images = Store(root), torch.zeros(10, 1, 28, 28)
    content = tensors_to_bytes({"images": images, "labels": torch.eye(10), "classes": torch.arange(10)})
    contents = {"set.safetensors": content, "images.png": b"png"}
    num_sets = num_judgements = 0
    with patch("stores.set_contents", lambda plan, value=0.0: contents), patch("os.fsync"):
        for cell in load_suite(str(suite), None).planned.cells:
            record = set_record(cell.set)
            store.publish_set(cell.set, record, contents)
            num_sets += 1
            for number, judging in enumerate(cell.judgings):
                accuracy = 0.5 + 0.01 * number + 0.001 * cell.set.seed
                store.publish_judgement(judgement(cell.set, judging, [accuracy], set_sha256=record.set_sha256))
                num_judgements += 1
    return num_sets, num_judgements


def timed(*words: str) -> tuple[float, float]:
    """Seconds by the clock and of the processor that a command takes."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "ddbench", *words], stdout=subprocess.DEVNULL, env=os.environ)
    if done.returncode:
        sys.exit(f"ddbench {' '.join(words)} ended with {done.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, cpu


def seconds_of_scheduling(num_sets: int, num_networks: int) -> float:
    """Seconds a job: sets that need one resource, and networks that need their set, taken 36 at a time."""
    jobs = [Job("resource", "resource", "resource")]
    for number in range(num_sets):
        jobs.append(Job("set", f"set-{number}", "set", ("resource",)))
        jobs += [Job("judgement", f"judgement-{number}-{net}", "judgement", (f"set-{number}",)) for net in range(num_networks)]
    started = time.perf_counter()
    schedule, running = Schedule(jobs), list[Job]()
    while schedule.left:
        running += schedule.take(36 - len(running))
        schedule.finish(running.pop(0).name)
    return (time.perf_counter() - started) / len(jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="a hundred sets and five hundred judgements each")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        suite, root = Path(folder) / "large.toml", Path(folder) / "store"
        suite.write_text(suite_text(args.seeds))
        num_sets, num_judgements = write_store(suite, root)
        print(f"{num_sets} sets, {num_judgements} judgements")
        of_suite = (str(suite), "--store", str(root))
        for verb, *words in (("plan", *of_suite), ("run", *of_suite), ("leaderboard", str(root), "--out", f"{folder}/board")):
            for attempt in ("first", "again"):
                clock, cpu = timed(verb, *words)
                print(f"ddbench {verb} ({attempt}): {clock:.1f} s, {cpu:.1f} s of the processor", flush=True)
    print(f"scheduler: {1000 * seconds_of_scheduling(2000, 5):.3f} ms a job")


if __name__ == "__main__":
    main()
