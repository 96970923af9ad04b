"""A StyleGAN-XL's images and gradients, each case in a process of its own, so that none inherits another's memory; then a table.

    python tests/perf/measure_generator.py [FOLDER] [--width 1024] [--side 128] [--only WORD ...]

At full width the plain form takes 21 GiB of memory and two minutes an image on two cores: give it an idle machine. A case that is
done (FOLDER, runs/perf-generator by default, holds its JSON, by width and side) is not measured again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from measure import HERE, in_a_process
from table import generator_cases, generator_table, markdown

FILE = HERE / "test_generator_steps.py"
CASES = ("plain-float32-1-1", "fast-float32-1-1", "fast-float32-10-1")

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/perf-generator"))
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="such as fast or 10-1")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"DDBENCH_PERF_WIDTH": str(given.width), "DDBENCH_PERF_SIDE": str(given.side)}
    paths = []
    for case in CASES:
        path = given.folder / f"{case}-width{given.width}-side{given.side}.json"
        if not path.is_file() and (not given.only or any(word in case for word in given.only)):
            in_a_process(case, path, f"{FILE}::test_step[{case}]")
        paths += [path] if path.is_file() and path.stat().st_size else []
    found = generator_cases(paths)
    if found:
        print(f"{found[0]['device']}, {found[0]['threads']} threads, torch {found[0]['torch']}\n")
        print(markdown(generator_table(found)))
