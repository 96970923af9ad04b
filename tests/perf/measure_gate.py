"""What the regression gate sees in the quickstart: runs that differ in their seeds alone, and runs with a fault planted.

`make measure-gate` runs the quickstart's grid with the seeds of many runs (an hour or two on two cores; a second call goes on
where the first stopped), takes the first run for the baseline, and prints for each row what later runs changed and whether the
gate would have fired. The planted faults are rates of the wrong size, as a lost factor makes them: those of every row, scaled.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from msgspec.structs import replace

from ddbench.leaderboard.baseline import BaselineRow, entries
from ddbench.leaderboard.gate import ALPHA, judge
from ddbench.leaderboard.join import results_of
from ddbench.results.contents import read_contents
from ddbench.results.store import Store
from ddbench.suite.bases import whole


def compute(store: Path, text: str, name: str, workers: int) -> Store:
    """Run a suite into a store, and open it."""
    suite = store.parent / f"{name}.toml"
    suite.parent.mkdir(parents=True, exist_ok=True)
    suite.write_text(f'base = "quickstart"\nname = "{name}"\n{text}')
    told = [sys.executable, "-m", "ddbench", "run", str(suite), "--store", str(store), "--workers", str(workers)]
    subprocess.run(told, check=True)
    return Store(store, create=False)


def rows_of(store: Store) -> list[BaselineRow]:
    """Its entries, one a row and network."""
    return entries(results_of(read_contents(store))[0])


def rates_text(store: Store, factor: float) -> str:
    """Overrides that multiply the rates of every place."""
    rates = {}
    for stored in read_contents(store).sets.values():
        if stored.plan.loss and stored.plan.space:
            rates[stored.plan.loss.name, stored.plan.space.name] = stored.plan.rates
    own = whole("quickstart")[0].get("override", [])
    blocks = [f"[[override]]\nwhere = {_inline(table['where'])}\nset = {_inline(table['set'])}\n" for table in own]
    for (loss, space), values in rates.items():
        scaled = {name: rate * factor for name, rate in values.items()}
        blocks.append(f'[[override]]\nwhere = {{ loss = "{loss}", space = "{space}" }}\nset = {{ rates = {_inline(scaled)} }}\n')
    return "\n".join(blocks)


def _inline(table: dict[str, object]) -> str:
    values = (f"{key} = {_inline(value) if isinstance(value, dict) else _scalar(value)}" for key, value in table.items())
    return "{ " + ", ".join(values) + " }"


def _scalar(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def show(title: str, before: list[BaselineRow], now: list[BaselineRow]) -> tuple[int, float]:
    """Compare two runs row by row; how many fell, and the largest detectable drop of a distilled row."""
    pairs = list(zip(before, now, strict=True))
    compared = judge(pairs, ALPHA)
    distilled = [each for each in compared if " / " in each.before.name]
    fallen = [each for each in compared if each.fell]
    changes = [100 * each.change for each in distilled]
    worst = 100 * max(each.detectable for each in distilled)
    moved = f"distilled rows {min(changes):+.1f} to {max(changes):+.1f} points"
    print(f"{title}: {moved}; detectable at most {worst:.1f}; fell: {len(fallen)}", flush=True)
    return len(fallen), worst


def main() -> None:
    """Compute, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("runs/gate/store"))
    parser.add_argument("--runs", type=int, default=20, help="beside the baseline's")
    parser.add_argument("--factors", type=float, nargs="*", default=[0.3, 0.1])
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    num = len(whole("quickstart")[0]["seeds"])
    seeds = list(range(num * (args.runs + 1)))
    store = compute(args.store, f"seeds = {seeds}\n", "gate", args.workers)
    parts = [seeds[at : at + num] for at in range(0, len(seeds), num)]
    rows = [row for row in rows_of(store) if len(row.seeds) == len(seeds)]
    runs = [[row.only(part, row.num_repeats) for row in rows] for part in parts]
    same = [[replace(row, seeds=first.seeds) for row, first in zip(run, runs[0], strict=True)] for run in runs]
    told = [show(f"run {number}", same[0], run) for number, run in enumerate(same[1:], start=1)]
    fired, worst = sum(bool(fell) for fell, _ in told), max(worst for _, worst in told)
    print(f"{fired} of {args.runs} runs fired; detectable at most {worst:.1f}")
    for factor in args.factors:
        text = f"seeds = {parts[0]}\n{rates_text(store, factor)}"
        faulty = compute(args.store.parent / f"rates-{factor:g}", text, f"rates-{factor:g}", args.workers)
        by_name = {(row.name, row.network): row for row in rows_of(faulty)}
        both = [(row, by_name[row.name, row.network]) for row in same[0] if (row.name, row.network) in by_name]
        show(f"rates times {factor:g}", [before for before, _ in both], [now for _, now in both])
        for each in judge(both, ALPHA):
            print(f"  {each.before.name} on {each.before.network}: {100 * each.change:+.1f} {'FELL' if each.fell else ''}")


if __name__ == "__main__":
    main()
