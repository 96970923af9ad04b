"""Kills at random moments on a real Slurm and a real Ray: whether every store ends in the bytes of one local worker.

    python tests/cluster/campaign.py --kills 50 --on slurm ray --out tests/cluster/campaign.md

Each store is made under several kills of workers, batches' commands, the queue's jobs, daemons and drivers, drawn by a seed, then
finished by the same command, and compared byte for byte. Files of a store that the other lacks count as lost, or doubled. Ends
with code 1 where a store differs.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import psutil
from faults import batches, kill, kill_driver, workers
from grid_runs import Home, contents, finish, make_home, until
from real_slurm import RealSlurm, missing, real_slurm

OPTIONS = ("--executor-option", "poll_seconds=0.5", "--executor-option", "retries=20", "--checkpoint-seconds", "0")


@dataclass
class Tally:
    """What became of the kills on one kind of cluster."""

    kills: Counter[str] = field(default_factory=Counter)
    stores: int = 0
    equal: int = 0
    lost: int = 0
    doubled: int = 0
    seconds: float = 0.0


class Campaign:
    """Kills on one kind of cluster."""

    def __init__(self, home: Home, on: str, slurm: RealSlurm | None, draw: random.Random) -> None:
        self.home, self.on, self.slurm, self.draw = home, on, slurm, draw
        self.suite = home.suite("tiny", ['"dm"', home.scripted()], ("pixel", "hpd"), ("random",))
        self.tally = Tally()

    def victims(self, store: Path) -> dict[str, Callable[[subprocess.Popen[str]], bool]]:
        """What may be killed, and how; each says whether it was there."""
        both: dict[str, Callable[[subprocess.Popen[str]], bool]] = {
            "worker": lambda process: kill(workers(store)),
            "batch": lambda process: kill(batches(store)),
            "driver": kill_driver,
        }
        if self.slurm:
            return {**both, "job": lambda process: self.kill_job(), "slurmctld": self.kill_daemon, "slurmd": self.kill_node}
        ours = {"job": lambda process: kill([above for each in batches(store)[:1] if (above := each.parent())])}
        return {
            **both,
            **ours,
            "raylet": lambda process: kill(_named("raylet")),
            "gcs": lambda process: kill(_named("gcs_server")),
        }

    def kill_job(self) -> bool:
        """One that the queue runs, by the queue."""
        assert self.slurm
        jobs = self.slurm.ask("squeue", "--noheader", "--array", "--states=R", "--format=%i").split()
        if jobs:
            self.slurm.ask("scancel", "--signal=KILL", "--full", self.draw.choice(jobs))
        return bool(jobs)

    def kill_daemon(self, process: subprocess.Popen[str]) -> bool:
        """The queue, which comes again."""
        return self._restart("slurmctld")

    def kill_node(self, process: subprocess.Popen[str]) -> bool:
        """The node's daemon, which comes again."""
        return self._restart("slurmd")

    def _restart(self, name: str) -> bool:
        assert self.slurm
        self.slurm.kill(name)
        time.sleep(self.draw.uniform(0.0, 5.0))
        self.slurm.start(name)
        return True

    def run(self, kills: int, expected: dict[str, bytes], span: float) -> None:
        """Until so many kills are done."""
        began = time.monotonic()
        while self.tally.kills.total() < kills:
            store = self.home.root / f"{self.on}-{self.tally.stores}"
            self.harm(store, min(self.draw.randrange(3, 8), kills - self.tally.kills.total()), span)
            self.judge(store, expected)
            shutil.rmtree(store)
        self.tally.seconds = time.monotonic() - began

    def harm(self, store: Path, kills: int, span: float) -> None:
        """Kill so often at random moments, and finish."""
        process = self.start(store)
        while kills:
            with suppress(subprocess.TimeoutExpired):
                process.wait(self.draw.uniform(0.0, span / 3))
            if process.poll() is not None:  # it has ended, or died with a daemon: the same command goes on
                _, error, code = finish(process)
                if code == 0:
                    return
                process = self.start(store)
                continue
            victims = self.victims(store)
            name = self.draw.choice(sorted(victims))
            if victims[name](process):
                self.tally.kills[name] += 1
                kills -= 1
                print(f"{self.on}, store {self.tally.stores}: {name} killed", flush=True)
        for _ in range(5):
            if process.poll() is None:
                _, error, code = finish(process)
                if code == 0:
                    return
            process = self.start(store)
        raise RuntimeError(f"{store} does not end: {error}")

    def start(self, store: Path) -> subprocess.Popen[str]:
        """Once what an earlier Ray has left is gone."""
        if not self.slurm:
            until(lambda: not batches(store) and not _named("raylet") and not _named("gcs_server"))
        return self.home.start(self.suite, store, "--executor", self.on, *OPTIONS)

    def judge(self, store: Path, expected: dict[str, bytes]) -> None:
        """Compare a store."""
        made = contents(store)
        self.tally.stores += 1
        self.tally.equal += made == expected
        self.tally.lost += len(expected.keys() - made.keys())
        self.tally.doubled += len(made.keys() - expected.keys())
        print(
            f"{self.on}: {self.tally.equal} of {self.tally.stores} stores equal after {self.tally.kills.total()} kills",
            flush=True,
        )


def _named(name: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["name"]) if process.info["name"] == name]


def table(tallies: dict[str, Tally], seed: int) -> str:
    """Markdown, with how it was made."""
    head = (
        "| on | kills | of which | stores | equal | files lost | files doubled | minutes |\n|:--|--:|:--|--:|--:|--:|--:|--:|\n"
    )
    rows = []
    for on, tally in tallies.items():
        which = ", ".join(f"{number} {name}" for name, number in sorted(tally.kills.items()))
        numbers = (tally.stores, tally.equal, tally.lost, tally.doubled, f"{tally.seconds / 60:.0f}")
        rows.append(f"| {on} | {tally.kills.total()} | {which} | {' | '.join(map(str, numbers))} |\n")
    return f"# Kills at random moments\n\nMade by `make cluster-campaign`, seed {seed}.\n\n{head}{''.join(rows)}"


def main() -> int:
    """0: all stores are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--on", nargs="+", choices=("slurm", "ray"), default=["slurm", "ray"])
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if "slurm" in args.on and (why := missing()):
        print(why, file=sys.stderr)
        return 2
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory(prefix="ddbench-campaign-") as folder:
        home = make_home(Path(folder) / "home")
        for on in args.on:
            draw = random.Random(f"{args.seed} {on}")
            with real_slurm(Path(folder) / "slurm") if on == "slurm" else nullcontext() as slurm:
                campaign = Campaign(home, on, slurm, draw)
                _, error, code = finish(home.start(campaign.suite, home.root / "local", "--workers", "2"))
                began = time.monotonic()
                _, error, code = finish(campaign.start(home.root / "whole")) if code == 0 else ("", error, code)
                if code:
                    raise RuntimeError(error)
                campaign.run(args.kills, contents(home.root / "local"), time.monotonic() - began)
                shutil.rmtree(home.root / "whole")
            tallies[on] = campaign.tally
            text = table(tallies, args.seed)
            print(text)
            if args.out:
                args.out.write_text(text)
    return int(any(tally.equal < tally.stores for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
