"""What lies beside the page: images/, plans/, suites/, copied from the store; and the commands that make a row again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ddbench import suites
from ddbench.errors import command
from ddbench.files import write_if_changed
from ddbench.leaderboard.join import Result
from ddbench.leaderboard.rows import Row
from ddbench.leaderboard.sections import LOOKS, Section
from ddbench.plan import short
from ddbench.results.layout import PICTURE, WALK
from ddbench.results.store import Store
from ddbench.schema import FailureRecord, JudgementRecord
from ddbench.suite import bases
from ddbench.suite.coordinates import coordinates, exact, plugin_at
from ddbench.suite.load import REDUCED, named
from ddbench.suite.reader import NAME


@dataclass(frozen=True)
class Surroundings:
    """What the page shows beside results."""

    images: frozenset[str] = frozenset()  # keys of the sets that have a grid
    suites: Mapping[str, Sequence[str]] = field(default_factory=dict)  # suite name -> its texts, files beside the page
    shipped: frozenset[str] = frozenset()  # those of these texts that come with ddbench, unchanged: a command needs no file
    failed: Sequence[tuple[str, FailureRecord]] = ()  # (job, last failure)
    num_faults: int = 0  # files that are left out
    num_unjudged: int = 0  # sets that no network has judged
    places: Mapping[str, Places] = field(default_factory=dict)  # of every suite
    reduced: Mapping[str, str] = field(default_factory=dict)  # suites that are another's reduced form -> that one's name
    chosen: Mapping[tuple[str, str], str] = field(default_factory=dict)  # (suite, set) -> its text, of suites that have several

    def text(self, suite: str, key: str) -> str | None:
        """The text of a suite that asked for a set; None where the store has none."""
        texts = self.suites.get(suite, ())
        return self.chosen.get((suite, key)) or (texts[0] if texts else None)


@dataclass(frozen=True)
class Places:
    """Where the sets of a suite lie in its grid."""

    subsets: frozenset[str]
    ipcs: frozenset[int]  # without full data, which have none
    budgets: frozenset[str] = frozenset()  # of distilled sets
    labels: Mapping[tuple[str, str], frozenset[str]] = field(default_factory=dict)  # of plugins, by key of --only and plain name


def places_of(results: Iterable[Result]) -> dict[str, Places]:
    """By suite."""
    subsets, ipcs = defaultdict[str, set[str]](set), defaultdict[str, set[int]](set)
    budgets = defaultdict[str, set[str]](set)
    labels = defaultdict[str, dict[tuple[str, str], set[str]]](dict)
    for result in results:
        for suite in (*result.suites, *(record.suite for record in result.looks)):
            subsets[suite].add(result.plan.dataset.label)
            ipcs[suite] |= set() if result.plan.everything else {result.plan.ipc}
            budgets[suite] |= {result.plan.budget} if result.plan.is_distilled else set()
            for key, name in coordinates(result.plan).items():
                if ref := plugin_at(result.plan, key):
                    labels[suite].setdefault((key, name), set()).add(ref.label)
    frozen = {suite: {at: frozenset(names) for at, names in own.items()} for suite, own in labels.items()}
    return {
        suite: Places(frozenset(subsets[suite]), frozenset(ipcs[suite]), frozenset(budgets[suite]), frozen.get(suite, {}))
        for suite in subsets
    }


def commands(row: Row, section: Section, around: Surroundings) -> list[str]:
    """What makes a row again, one for each suite and each text of it that asked for a part; subset and ipc are named where it has
    several, and plugins by their whole label where it has several of a name."""
    made = dict[str, None]()
    for result in row.results:
        records = result.looks if section.kind in LOOKS else result.judged
        for suite in {record.suite for record in records}:
            networks = [record for record in records if record.suite == suite]
            made[_command(row, section, suite, networks, around.text(suite, result.key), around)] = None
    return sorted(made)


def _command(
    row: Row, section: Section, suite: str, records: Sequence[JudgementRecord], text: str | None, around: Surroundings
) -> str:  # fmt: skip
    plan = row.plan
    if plan.imported or not suite:
        return _evaluation(row, section, records)
    places, where = around.places.get(suite), dict[str, str]()
    for key, name in coordinates(plan).items():
        ref, labels = plugin_at(plan, key), places.labels.get((key, name), ()) if places else ()
        where[key] = exact(ref) if ref and len(labels) > 1 else name
    del where["seed"]
    if places is None or len(places.subsets) < 2:
        del where["subset"]
    if plan.everything or places is None or len(places.ipcs) < 2:
        del where["ipc"]
    if places is None or len(places.budgets) < 2:
        where.pop("budget", None)
    order = sorted(where, key=("baseline", "loss", "space", "subset", "ipc", "budget").index)
    source = text if text and text not in around.shipped else around.reduced.get(suite, suite)
    source += f":{REDUCED}" if suite in around.reduced else ""
    return command("run", source, "--only", ",".join(f"{name}={where[name]}" for name in order))


def _evaluation(row: Row, section: Section, records: Sequence[JudgementRecord]) -> str:
    """What judges a set again that lies in a file, or in a store that is called STORE."""
    plan, judging = row.plan, records[0].judging
    networks = ",".join(sorted({record.judging.network.label for record in records}))
    repeats = max(repeat.repeat for record in records for repeat in record.repeats) + 1
    how = ["--protocol", section.protocol, "--archs", networks, "--repeats", repeats, "--threads", judging.threads]
    how += ["--seed", judging.draw] if judging.draw else []
    if plan.imported:
        told = ["--data", plan.dataset.written, "--images", plan.imported.images, "--labels", plan.imported.labels]
        told += [] if plan.imported.experiment is None else ["--experiment", str(plan.imported.experiment)]
        for name, values in (("mean", plan.imported.mean), ("std", plan.imported.std)):
            told += [f"--{name}={','.join(map(str, values))}"] if values else []
        return command("evaluate", "FILE", *told, *how)
    return command("evaluate", f"STORE/sets/{short(row.results[0].key)}", "--store", "STORE", *how)


def copy_image(store: Store, result: Result, out: Path) -> bool:
    """Copy a set's grid beside the page, where it has one, and the picture of its walk."""
    for name, copy in ((PICTURE, f"{short(result.key)}.png"), (WALK, f"{short(result.key)}-{WALK}")):
        if name in result.record.files:
            write_if_changed(out / "images" / copy, (store.folder(result.key) / name).read_bytes())
    return PICTURE in result.record.files


def copy_plan(store: Store, result: Result, out: Path) -> None:
    """Copy a set's plan beside the page, as it lies in the store."""
    content = (store.folder(result.key) / "plan.json").read_bytes()
    write_if_changed(out / "plans" / f"{short(result.key)}.json", content)


def copy_suites(store: Store, out: Path) -> tuple[dict[str, list[str]], frozenset[str], dict[str, str]]:
    """Copy the suites' texts beside the page; tell which come with ddbench, unchanged, and which suites are reduced forms."""
    texts: dict[str, list[str]] = {}
    shipped, reduced, come_with_us = set(), dict[str, str](), set(suites.shipped())
    for path in sorted((store.root / "suites").glob("*.toml")):
        name = path.stem.rpartition("-")[0]
        if not NAME.fullmatch(name):  # no suite of ours has it, and it would be a link on the page
            continue
        whole = name.removesuffix(f"-{REDUCED}")
        if whole != name and named(path) == whole:  # the text is that of the whole suite
            reduced[name] = whole
        write_if_changed(out / "suites" / path.name, path.read_bytes())
        texts.setdefault(name, []).append(f"suites/{path.name}")
        ours = reduced.get(name, name)
        if ours in come_with_us and bases.whole(ours)[1].encode() == path.read_bytes():
            shipped.add(f"suites/{path.name}")
    return texts, frozenset(shipped), reduced
