"""Do the two ways agree? The same set, seeds and networks one repeat after the other and stacked, over many repeats.

    python tests/perf/agreement.py SET [--repeats 20] [--protocol quick-1] [--archs ...] [--device ...]

SET is a file that ddbench wrote. Prints, for each network, the mean difference in accuracy, paired by repeat, with its 95 %
t-interval. (Several processes need no such table: they give the numbers of one to the bit, and a test says so.)
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from scipy.stats import t

from ddbench import protocols
from ddbench.compute.hardware import num_cores
from ddbench.compute.run import be_deterministic, pick_device
from ddbench.data.sealed import open_test
from ddbench.data.subsets import default_root
from ddbench.evaluate.asked import networks_of
from ddbench.evaluate.evaluator import Asked, Evaluator, Subject, evaluate_block
from ddbench.evaluate.set_layouts import open_set
from ddbench.evaluate.sets import read_set
from ddbench.plan import Judging
from ddbench.refs import PluginRef

ARCHS = "convnet(width=32),alexnet(width=32),vgg11(width=16),resnet18(width=16),vit(width=64,depth=3)"


def evaluator_of(network: PluginRef, given: argparse.Namespace) -> Evaluator:
    """Of a network on the set."""
    device, numbers = pick_device(given.device), protocols.load(given.protocol).judging
    threads = num_cores() if device.type == "cpu" else 1
    be_deterministic(threads, numbers.tf32)
    dataset = PluginRef.resolve("datasets", open_set(given.set).meta["dataset"], {})
    spec = dataset.make().spec()
    made = read_set(given.set, spec)
    subject = Subject(made.images.to(device), made.labels.to(device), "", learned_rate=made.learned_rate)
    judging = Judging(network=network, numbers=numbers, dataset=dataset, test_hash="", threads=threads)
    return Evaluator(judging, spec, subject, open_test(dataset, default_root(), device))


def accuracies(way: Asked, evaluator: Evaluator, repeats: int) -> list[float]:
    """Of every repeat."""
    finished = evaluate_block(evaluator, 0, repeats - 1, [], lambda finished: None, lambda fraction: None, way)
    return [one.repeat.accuracy for one in finished]


def line(network: PluginRef, given: argparse.Namespace) -> list[str]:
    """A network's row."""
    evaluator = evaluator_of(network, given)
    plain, stacked = (accuracies(way, evaluator, given.repeats) for way in ("serial", "stacked"))
    differences = [100 * (b - a) for a, b in zip(plain, stacked, strict=True)]
    mean, num = statistics.fmean(differences), len(differences)
    half = float(t.ppf(0.975, num - 1)) * statistics.stdev(differences) / num**0.5
    equal = sum(difference == 0 for difference in differences)
    inside = "yes" if abs(mean) <= half or mean == 0 else "no"
    both = [f"{100 * statistics.fmean(values):.2f}" for values in (plain, stacked)]
    return [network.label, str(num), *both, f"{mean:+.3f}", f"{mean - half:+.3f} to {mean + half:+.3f}", inside, str(equal)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("set", type=Path)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--protocol", default="quick-1")
    parser.add_argument("--archs", default=ARCHS)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    columns = ["network", "repeats", "plain %", "stacked %", "stacked - plain, points", "95 % interval", "holds zero"]
    columns.append("equal repeats")
    print("| " + " | ".join(columns) + " |\n|:--|" + "--:|" * (len(columns) - 1))
    for ref in networks_of(given.archs):
        print("| " + " | ".join(line(ref, given)) + " |", flush=True)
