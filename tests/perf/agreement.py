"""Do the evaluators agree? The same set, seeds and networks by the plain evaluator and by the stacked one, over many repeats.

    python tests/perf/agreement.py SET [--repeats 20] [--protocol quick-1] [--archs ...] [--device ...]

Prints, for each network, the mean difference in accuracy, paired by repeat, with its 95 % t-interval. (Side by side needs no
such table: it gives the plain evaluator's numbers to the bit, and a test says so.)
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
from typing import Any

from scipy.stats import t

from ddbench.cli import main

ARCHS = "convnet(width=32),alexnet(width=32),vgg11(width=16),resnet18(width=16),vit(width=64,depth=3)"


def accuracies(way: str, network: str, given: argparse.Namespace) -> list[float]:
    """Of every repeat."""
    words = ["evaluate", given.set, "--protocol", given.protocol, "--repeats", str(given.repeats), "--archs", network]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main([*words, "--way", way, "--workers", "1", "--device", given.device, "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(said.getvalue())["evaluations"]
    return [entry["accuracy"] for entry in found]


def line(network: str, given: argparse.Namespace) -> list[str]:
    """A network's row."""
    plain, stacked = (accuracies(way, network, given) for way in ("serial", "stacked"))
    differences = [100 * (b - a) for a, b in zip(plain, stacked, strict=True)]
    mean, num = statistics.fmean(differences), len(differences)
    half = float(t.ppf(0.975, num - 1)) * statistics.stdev(differences) / num**0.5
    equal = sum(difference == 0 for difference in differences)
    inside = "yes" if abs(mean) <= half or mean == 0 else "no"
    both = [f"{100 * statistics.fmean(values):.2f}" for values in (plain, stacked)]
    return [network, str(num), *both, f"{mean:+.3f} ± {half:.3f}", inside, str(equal)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("set")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--protocol", default="quick-1")
    parser.add_argument("--archs", default=ARCHS)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    from ddbench.cli.evaluate import networks_of

    columns = ["network", "repeats", "plain %", "stacked %", "stacked - plain, points, 95 %", "holds zero", "equal repeats"]
    print("| " + " | ".join(columns) + " |\n|:--|" + "--:|" * (len(columns) - 1))
    for ref in networks_of(given.archs):
        print("| " + " | ".join(line(ref.label, given)) + " |", flush=True)
