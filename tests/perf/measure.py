"""The evaluators' perf cases, each in a process of its own, so that none inherits another's memory; then their table.

    python tests/perf/measure.py [FOLDER] [--without NETWORK,SIDE,IPC ...] [--ways WAY ...]

A case that is done (FOLDER, runs/perf by default, holds its JSON) is not measured again. Give it an idle machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from itertools import product
from pathlib import Path

from table import markdown, rows

HERE = Path(__file__).parent
NETWORKS, SIDES, IPCS = ("convnet", "alexnet", "vgg11", "resnet18", "vit"), (32, 128), (1, 10)


def measure(name: str, side: int, ipc: int, path: Path, ways: list[str]) -> None:
    """Run the case's ways one after the other: all of them, or those whose names hold one of these words."""
    words = [sys.executable, "-m", "pytest", "-q", "--benchmark-only", f"--benchmark-json={path}"]
    chosen = f"{name} and {side}px and ipc{ipc}x" + (f" and ({' or '.join(ways)})" if ways else "")
    done = subprocess.run([*words, str(HERE / "test_evaluator_ways.py"), "-k", chosen], capture_output=True, text=True)
    if done.returncode:
        path.unlink(missing_ok=True)
        print(f"{name}, {side} px, IPC {ipc} failed:\n{done.stdout[-2000:]}", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/perf"))
    parser.add_argument("--without", nargs="*", default=[], metavar="NETWORK,SIDE,IPC")
    parser.add_argument("--ways", nargs="*", default=[], metavar="WORD", help="such as all widespread; default: every way")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    found = []
    for side, ipc, name in product(SIDES, IPCS, NETWORKS):
        path = given.folder / f"{name}-{side}-{ipc}.json"
        if f"{name},{side},{ipc}" in given.without:
            continue
        if not path.is_file():
            print(f"{name}, {side} px, IPC {ipc}", file=sys.stderr, flush=True)
            measure(name, side, ipc, path, given.ways)
        found.extend(rows(path) if path.is_file() else [])
    print(markdown(found))
