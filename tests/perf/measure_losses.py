"""One step of every loss, each case in a process of its own, so that none inherits another's memory; then the tables.

    python tests/perf/measure_losses.py [FOLDER] [--only WORD ...] [--passes N]

Plain and batched of a loss follow one another. With several passes all cases are gone through as often, and the tables show
the fastest step of all. A case that is done (FOLDER, runs/perf-losses by default, holds its JSON) is not measured again. Give
it an idle machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from measure import HERE, in_a_process
from table import loss_cases, loss_tables, markdown

FILE = HERE / "test_loss_steps.py"


def cases() -> list[str]:
    """What pytest calls them, in the file's order."""
    words = [sys.executable, "-m", "pytest", "--override-ini=addopts=", "--collect-only", "-q", str(FILE)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return [line.partition("::")[2] for line in said.splitlines() if "::" in line]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/perf-losses"))
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="such as dm-1-plain, [dsa- or unrolled")
    parser.add_argument("--passes", type=int, default=1)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    chosen = [case for case in cases() if not given.only or any(word in case for word in given.only)]
    paths = []
    for number in range(given.passes):
        for case in chosen:
            path = given.folder / f"{case.partition('[')[2].rstrip(']')}-pass{number}.json"
            if not path.is_file():
                in_a_process(f"pass {number + 1}, {case}", path, f"{FILE}::{case}")
            paths.append(path)
    found = loss_cases(path for path in paths if path.is_file() and path.stat().st_size)
    if found:
        print(f"{found[0]['device']}, {found[0]['threads']} threads, torch {found[0]['torch']}")
    for table in loss_tables(found).values():
        print("\n" + markdown(table))
