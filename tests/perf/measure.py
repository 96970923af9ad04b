"""The evaluators' perf cases, each in a process of its own, so that none inherits another's memory; then their table.

    python tests/perf/measure.py [FOLDER] [--without NETWORK,SIDE,IPC ...] [--ways WAY ...]

A case that is done (FOLDER, runs/perf by default, holds its JSON) is not measured again. Give it an idle machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

from table import markdown, rows

from ddbench.grid.local import MALLOC

HERE = Path(__file__).parent
NETWORKS, SIDES, IPCS = ("convnet", "alexnet", "vgg11", "resnet18", "vit"), (32, 128), (1, 10)


def in_a_process(told: str, path: Path, *chosen: str) -> None:
    """Run these perf cases one after the other in a process of their own, with the memory allocator set as the runner sets it
    for its workers; their JSON goes to the path."""
    print(told, file=sys.stderr, flush=True)
    words = [sys.executable, "-m", "pytest", "-q", "--benchmark-only", f"--benchmark-json={path}", *chosen]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | MALLOC)
    if done.returncode:
        path.unlink(missing_ok=True)
        print(f"{told} failed:\n{done.stdout[-2000:]}", file=sys.stderr)
    print(*(line for line in done.stdout.splitlines() if line.startswith("SKIPPED")), sep="\n", end="", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/perf"))
    parser.add_argument("--without", nargs="*", default=[], metavar="NETWORK,SIDE,IPC")
    parser.add_argument("--ways", nargs="*", default=[], metavar="WORD", help="such as all widespread; default: every way")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    for side, ipc, name in product(SIDES, IPCS, NETWORKS):
        path = given.folder / f"{name}-{side}-{ipc}.json"
        if f"{name},{side},{ipc}" in given.without:
            continue
        if not path.is_file():
            chosen = f"{name} and {side}px and ipc{ipc}x" + (f" and ({' or '.join(given.ways)})" if given.ways else "")
            in_a_process(f"{name}, {side} px, IPC {ipc}", path, str(HERE / "test_evaluator_ways.py"), "-k", chosen)
        found.extend(rows(path) if path.is_file() else [])
    print(markdown(found))
