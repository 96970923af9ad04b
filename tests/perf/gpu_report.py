"""What a card does with ddbench, part by part: `make gpu-report PART=tests`, then `evaluators`, `losses`, `generator`, `tables`.

    python tests/perf/gpu_report.py PART [--minutes 8.5] [--folder FOLDER] [--into FOLDER] [--rehearse]

Each part ends by itself within the minutes, and goes on where it was cut off when it is started again: what is done lies as JSON
in FOLDER (runs/gpu-report by default). It needs ddbench's dependencies and pytest-benchmark, and neither ddbench to be installed
nor anything from the network: where ddbench is not installed, its entry points are read from this clone. It writes its section of
docs/performance.md, a record with hardware and versions beside it (docs/gpu/), and, of the evaluators, the table that `auto`
reads (ways.json). The part `tables` takes CIFAR-10 where DDBENCH_DATA has it, else digits, and says which. With `--rehearse`
a CPU stands for the card and sizes are tiny; what is written then goes `--into` a folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "perf"
PARTS = ("tests", "evaluators", "losses", "generator", "tables")
RESERVE = 25  # seconds that reading a store and writing the page may take
LATE = -1  # the exit status of a command that was killed where the time was up
OURS = {"plain": "serial", "captured": "captured", "streams": "streams", "stacked": "stacked"}  # as `auto` calls them
NETWORKS = ("convnet", "alexnet", "vgg11", "resnet18", "vit")
CASES = [(name, side, ipc) for side, ipc in ((128, 1), (32, 1), (32, 10)) for name in NETWORKS]
TWO_FORMS = product(("dm", "dsa", "dc", "datadam"), (1, 10), ("plain", "batched"))
LOSSES = [f"test_matching[{loss}-{ipc}-{form}]" for loss, ipc, form in TWO_FORMS]
LOSSES += [f"test_matching[{loss}-1-default]" for loss in ("cafe", "krr", "dd", "bn-statistics")]
LOSSES += [f"test_unrolled[{loss}-1-20]" for loss in ("mtt", "tesla")]
LOSSES += [f"test_replayed[{loss}-1]" for loss in ("dm", "dsa", "dc", "datadam", "mtt", "tesla")]
GENERATOR = ["plain-float32-1-1", *(f"fast-{form}-{num}-{num}" for num in (1, 10) for form in ("float32", "float16", "bfloat16"))]
GENERATOR += ["plain-float32-10-1"]
SUITE = """
schema = 1
name = "on-the-card"
protocol = "smoke-1"
subsets = ["mnist-5k"]
losses = ["dm", "dsa", "dc"]
spaces = ["pixel", "hpd"]
generator = { name = "cvae", epochs = 2 }
backbone = { name = "convnet", width = 16 }
networks = [{ name = "convnet", width = 16 }, { name = "resnet18", width = 16 }]
[distill]
steps = 10
rank_epochs = 10
proxy_epochs = 2
rank_steps = "feature-distance"
rank_stages = "validation"
loss = { batch_real = 32 }
"""


class Report:
    """One run of a part."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.part, self.folder, self.rehearse = given.part, given.folder / given.part, given.rehearse
        self.into: Path = given.into or ROOT
        self.until = time.monotonic() + 60 * given.minutes
        around = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        self.environment = around | {"PYTHONPATH": os.pathsep.join(self._places())}
        if given.rehearse:
            self.environment |= {"DDBENCH_PERF_SECONDS": "0.01", "CUDA_VISIBLE_DEVICES": ""}
        else:
            self.environment.setdefault("DDBENCH_PERF_SECONDS", "2")
        self.folder.mkdir(parents=True, exist_ok=True)

    def _places(self) -> Iterator[str]:
        yield str(ROOT / "tests")
        try:
            metadata.distribution("ddbench")
        except metadata.PackageNotFoundError:
            yield from (str(ROOT / "benchmark"), str(ROOT / "plugins"), str(entry_points(self.folder / "installed")))
        yield from filter(None, [os.environ.get("PYTHONPATH")])

    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    def say(self, told: str) -> None:
        """What begins, and how much time the part has left."""
        print(f"{told} ({self.left() / 60:.1f} min left)", file=sys.stderr, flush=True)

    def call(self, *words: str, reserve: float = 0.0) -> subprocess.CompletedProcess[str]:
        """A command of this Python's, killed where the time is up, but for seconds that are kept back."""
        try:
            words = (sys.executable, *words)
            kept = {"capture_output": True, "text": True, "env": self.environment, "cwd": ROOT}
            return subprocess.run(words, timeout=max(1.0, self.left() - reserve), **kept)  # type: ignore[call-overload]
        except subprocess.TimeoutExpired as late:
            return subprocess.CompletedProcess(late.cmd, LATE, "", "the time was up: start the part again, and it goes on")

    def measure(self, told: str, path: Path, *chosen: str) -> bool:
        """A perf case in a process of its own, unless it is done; whether it is now."""
        if path.is_file():
            return True
        if self.left() < 20 and not self.rehearse:
            return False
        self.say(told)
        words = ("-m", "pytest", "-q", "--benchmark-only", "--override-ini=addopts=", f"--benchmark-json={path}", *chosen)
        done = self.call(*words)
        if done.returncode:
            path.unlink(missing_ok=True)
            (path.with_suffix(".txt")).write_text(done.stdout + done.stderr)
            print(f"{told} failed: {path.with_suffix('.txt')}", file=sys.stderr)
        return path.is_file()

    def about(self) -> dict[str, Any]:
        """The card, and with what it was measured."""
        words = "import json; from ddbench.compute import hardware as h; from ddbench.compute.run import pick_device; "
        words += "from msgspec import to_builtins; d = pick_device('auto'); p = h.place(d, 1, ()); "
        words += "print(json.dumps(to_builtins(p) | {'commit': h.commit()}))"
        done = self.call("-c", words)
        if done.returncode:
            sys.exit(f"ddbench cannot be used here:\n{done.stderr}")
        return dict(json.loads(done.stdout))

    # -------------------------------------------------------- the parts

    def tests(self, about: dict[str, Any]) -> dict[str, Any]:
        """The tests that need a card, and a small grid through the command line: workers, generator, rankers, judging."""
        self.say("looking for the tests that need a card" if self.rehearse else "the tests that need a card")
        ran = self.call("-m", "pytest", "-q", "-m", "gpu", "--override-ini=addopts=", "tests/unit", *(["--co"] * self.rehearse))
        suite = self.folder / "on-the-card.toml"
        small = SUITE.replace('"dm", "dsa", "dc"', '"dm"').replace('"pixel", "hpd"', '"pixel"')
        suite.write_text(small if self.rehearse else SUITE)
        self.say("a small grid, from its start to its records")
        started = time.monotonic()
        grid = self.call("-m", "ddbench", "run", str(suite), "--prepare", "--json", "--store", str(self.folder / "store"))
        seconds = time.monotonic() - started
        found = self.call("-m", "ddbench", "store", "verify", str(self.folder / "store"))
        (self.folder / "tests.txt").write_text(ran.stdout + ran.stderr)
        (self.folder / "grid.txt").write_text(grid.stdout + grid.stderr)
        told = json.loads(grid.stdout) if grid.returncode in (0, 1) and grid.stdout.startswith("{") else {}
        told_of_tests = (ran.stdout.strip().splitlines() or [ran.stderr[-300:]])[-1]
        return {
            "tests": f"found and not run: {told_of_tests}" if self.rehearse else told_of_tests,
            "grid": f"{len(told.get('computed', []))} of {told.get('total', 0)} computed, {len(told.get('failed', {}))} failed",
            "grid_seconds": round(seconds, 1),
            "store": found.stdout.strip(),
            "failed": told.get("failed", {"run": grid.stderr[-2000:]}),
        }

    def evaluators(self, about: dict[str, Any]) -> dict[str, Any]:
        """Every network by every way."""
        sys.path.insert(0, str(HERE))
        from table import rows

        found, best = [], dict[str, str]()
        for name, side, ipc in [("convnet", 32, 1)] if self.rehearse else CASES:
            path = self.folder / f"{name}-{side}-{ipc}.json"
            ways = ("plain", "widespread") if self.rehearse else ("plain", "widespread", "captured", "streams", "stacked")
            file = HERE / "test_evaluator_ways.py"
            parts = []  # each way in a process of its own: one that fails takes no other with it
            for way in ways:
                part = path.with_name(f"{path.stem}-{way}.json")
                case = f"{file}::test_evaluator[{name}-{side}px-ipc{ipc}x-{way}]"
                parts += [part] if self.measure(f"{name}, {side} px, IPC {ipc}, {way}", part, case) else []
            measured = [entry for part in parts for entry in json.loads(part.read_text())["benchmarks"]]
            if {"plain", "widespread"} <= {entry["extra_info"]["way"] for entry in measured}:
                path.write_text(json.dumps({"benchmarks": measured}))
                found += rows(path)
                best.setdefault(name, fastest(path))
        self.table(about, best)
        return {"rows": found, "fastest": best}

    def losses(self, about: dict[str, Any]) -> dict[str, Any]:
        """A step of every loss, plain and batched."""
        sys.path.insert(0, str(HERE))
        from table import loss_cases, loss_tables

        file, paths = HERE / "test_loss_steps.py", []
        for case in [case for case in LOSSES if "[krr-" in case] if self.rehearse else LOSSES:
            path = self.folder / f"{case.removeprefix('test_').translate(str.maketrans('[', '-', ']'))}.json"
            if self.measure(case, path, f"{file}::{case}"):
                paths.append(path)
        cases = loss_cases(paths)
        faster = replays(cases)
        self.table(about, {f"loss {loss}": "captured" for loss in faster})
        return {"tables": loss_tables(cases), "faster replayed": faster}

    def generator(self, about: dict[str, Any]) -> dict[str, Any]:
        """Images of a StyleGAN-XL of the published size and their gradients: both forms, half precision with its error."""
        sys.path.insert(0, str(HERE))
        from table import generator_cases, generator_table

        if self.rehearse:
            self.environment |= {"DDBENCH_PERF_WIDTH": "4", "DDBENCH_PERF_SIDE": "32"}
        file, paths = HERE / "test_generator_steps.py", []
        for case in [case for case in GENERATOR if "-1-1" in case] if self.rehearse else GENERATOR:
            path = self.folder / f"{case}.json"
            if self.measure(f"generator, {case}", path, f"{file}::test_step[{case}]"):
                paths.append(path)
        return {"rows": generator_table(generator_cases(paths))}

    def tables(self, about: dict[str, Any]) -> dict[str, Any]:
        """`ddbench run` of the reduced glad-table3 and hpd-table7, a loss after the other, as far as the time goes."""
        sys.path.insert(0, str(HERE))
        import grids

        data, store = ("digits" if self.rehearse else grids.data()), self.folder / "store"
        self.say(f"the reduced tables, on {grids.DATA[data]}")
        left_out, failed = list[str](), dict[str, str]()
        for name, only in grids.FEW if self.rehearse else grids.STEPS:
            told = f"{name}, {only.partition('=')[2]}"
            if self.left() < RESERVE + 20:
                left_out.append(told)
                continue
            self.say(told)
            words = (grids.suite(name, self.folder, data, self.rehearse), "--only", only, "--prepare", "--json")
            device = "cpu" if self.rehearse else "cuda"
            ran = self.call("-m", "ddbench", "run", *words, "--device", device, "--store", str(store), reserve=RESERVE)
            (self.folder / f"{name}-{only.replace('=', '-')}.txt").write_text(ran.stdout + ran.stderr)
            if ran.returncode == LATE:
                left_out.append(told)
            elif ran.returncode:
                failed |= {f"{told}: {job}": why for job, why in faults_of(ran).items()}
        for told in (*left_out, *failed):
            print(f"{told} {'is left out: the time is up' if told in left_out else 'failed'}", file=sys.stderr)
        sound = self.call("-m", "ddbench", "store", "verify", str(store))
        read = self.call(grids.__file__, str(store))
        found = json.loads(read.stdout) if read.returncode == 0 else {"accuracies": [], "seconds": []}
        about_store = sound.stdout.strip() or sound.stderr[-500:]
        return found | {"data": grids.DATA[data], "left out": left_out, "failed": failed, "store": about_store}

    def table(self, about: dict[str, Any], best: dict[str, str]) -> None:
        """Put the fastest ways into the table that `auto` reads; the other part's stay."""
        path = self.into / "benchmark" / "ddbench" / "compute" / "ways.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        card = about["hardware"]["device"]
        kept = {name: way for name, way in known.get(card, {}).items() if name.startswith("loss ") != (self.part == "losses")}
        known[card] = kept | best
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")

    def write(self, about: dict[str, Any], found: dict[str, Any]) -> None:
        """The record, and the section of docs/performance.md."""
        card = about["hardware"]["device"]
        slug = "".join(letter if letter.isalnum() else "-" for letter in card.lower())
        record = self.into / "docs" / "gpu" / f"{self.part}-{slug}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(about | {"part": self.part} | found, indent=1, sort_keys=True) + "\n")
        page = self.into / "docs" / "performance.md"
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
        page.write_text(with_section(text, f"{self.part}, {card}", section(self.part, about, found)), encoding="utf-8")
        print(record)


def faults_of(ran: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """What failed of a run, by job."""
    told = json.loads(ran.stdout) if ran.returncode == 1 and ran.stdout.startswith("{") else {}
    return dict(told.get("failed") or {"run": ran.stderr[-2000:]})


def entry_points(folder: Path) -> Path:
    """The metadata of an installed ddbench, from this clone's pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "benchmark" / "ddbench" / "__init__.py").read_text(encoding="utf-8").splitlines()
    version = next(line.split('"')[1] for line in lines if line.startswith("__version__"))
    made = folder / f"ddbench-{version}.dist-info"
    made.mkdir(parents=True, exist_ok=True)
    (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ddbench\nVersion: {version}\n")
    lines = []
    for group, names in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in names.items())]
    (made / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def fastest(path: Path) -> str:
    """Of ddbench's ways that have a place in one process."""
    found = {entry["extra_info"]["way"]: entry["stats"]["min"] for entry in json.loads(path.read_text())["benchmarks"]}
    return OURS[min((way for way in found if way in OURS), key=lambda way: found[way])]


def replays(cases: list[dict[str, Any]]) -> list[str]:
    """The losses whose replayed step at IPC 1 is faster than their fastest other one."""
    found: dict[str, dict[bool, float]] = {}
    for case in cases:
        if case["ipc"] == 1:
            of_loss, is_replayed = found.setdefault(case["loss"], {}), case.get("form") == "replayed"
            of_loss[is_replayed] = min(of_loss.get(is_replayed, case["ms"]), case["ms"])
    return sorted(loss for loss, of_loss in found.items() if len(of_loss) == 2 and of_loss[True] < of_loss[False])


def section(part: str, about: dict[str, Any], found: dict[str, Any]) -> str:
    """Markdown."""
    sys.path.insert(0, str(HERE))
    from table import markdown

    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    rehearsed = " **A rehearsal in tiny sizes: these figures say nothing.**" if about.get("rehearsal") else ""
    lines = [f"### {about['hardware']['device']}: {part}", "", f"`make gpu-report PART={part}`, {versions}:{rehearsed}", ""]
    if part == "tests":
        lines += [f"- {name}: {found[name]}" for name in ("tests", "grid", "grid_seconds", "store")]
    elif part == "tables":
        lines += of_tables(found)
    elif part in ("evaluators", "generator"):
        lines += [markdown(found["rows"]) if found["rows"] else "Nothing was measured."]
    else:
        lines += ["\n\n".join(markdown(rows) for rows in found["tables"].values()) or "Nothing was measured."]
    return "\n".join(lines)


def of_tables(found: dict[str, Any]) -> list[str]:
    """What stands in the section of the reduced tables."""
    from grids import tables
    from table import markdown

    lines = [f"The reduced glad-table3 and hpd-table7 on {found['data']}. Seconds are means over sets; *of glad* is distilling"]
    lines += ["and ranking, over those of `glad` under the same loss, at the number of steps that comes nearest.", ""]
    lines += ["\n\n".join(markdown(table) for table in tables(found) if table) or "Nothing was judged.", ""]
    if found["left out"]:
        left_out = "; ".join(found["left out"])
        lines += [f"Left out, for the time was up: {left_out}. Started again, the part goes on with them.", ""]
    if found["failed"]:
        lines += [f"Failed: {'; '.join(found['failed'])}.", ""]
    return [*lines, f"Store: {found['store']}"]


def with_section(text: str, name: str, content: str) -> str:
    """The page with a section between marks of its own, in the place of an earlier one or at the end."""
    begin, end = f"<!-- gpu-report: {name} -->", f"<!-- end: {name} -->"
    block = f"{begin}\n{content}\n{end}\n"
    if begin in text and end in text:
        before, _, rest = text.partition(begin)
        return before + block + rest.partition(f"{end}\n")[2]
    return f"{text.rstrip()}\n\n{block}".lstrip()


def main() -> None:
    """One part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--minutes", type=float, default=8.5, help="that the part may take, 1 at least (default: 8.5)")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "gpu-report", help="for what is done (runs/gpu-report)")
    parser.add_argument("--into", type=Path, help="the folder that pages and tables are written into (default: this clone)")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, in tiny sizes; needs --into")
    given = parser.parse_args()
    if not given.minutes >= 1:
        parser.error(f"--minutes must be at least 1, got {given.minutes:g}")
    if given.rehearse and given.into is None:
        parser.error("--rehearse writes nothing into this clone: name a folder with --into")
    report = Report(given)
    about = report.about() | {"rehearsal": given.rehearse}
    if about["hardware"]["kind"] != "cuda" and not given.rehearse:
        words = f"python tests/perf/gpu_report.py {given.part} --rehearse --into FOLDER"
        parser.exit(2, f"no CUDA device is visible. Rehearse on a CPU with: {words}\n")
    report.write(about, getattr(report, report.part)(about))


if __name__ == "__main__":
    main()
