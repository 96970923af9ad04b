"""What lies beside the page: images/, plans/, suites/, copied from the store; and the commands that make a row again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from ddbench.files import sha256_file, write_if_changed
from ddbench.leaderboard.join import Result
from ddbench.leaderboard.rows import Row
from ddbench.leaderboard.sections import LOOKS, Section
from ddbench.plan import short
from ddbench.results.store import Store
from ddbench.schema import FailureRecord
from ddbench.suite.coordinates import coordinates
from ddbench.suite.load import REDUCED, named


@dataclass(frozen=True)
class Surroundings:
    """What the page shows beside results."""

    images: frozenset[str] = frozenset()  # keys of the sets that have a grid
    suites: Mapping[str, Sequence[str]] = field(default_factory=dict)  # suite name -> its texts, files beside the page
    shipped: frozenset[str] = frozenset()  # suites that come with ddbench, unchanged: a command needs no file
    failed: Sequence[tuple[str, FailureRecord]] = ()  # (job, last failure)
    num_faults: int = 0  # files that are left out
    num_unjudged: int = 0  # sets that no network has judged
    places: Mapping[str, Places] = field(default_factory=dict)  # of every suite
    reduced: Mapping[str, str] = field(default_factory=dict)  # suites that are another's reduced form -> that one's name


@dataclass(frozen=True)
class Places:
    """Where the sets of a suite lie in its grid."""

    subsets: frozenset[str]
    ipcs: frozenset[int]  # without full data, which have none


def places_of(results: Iterable[Result]) -> dict[str, Places]:
    """By suite."""
    subsets, ipcs = defaultdict[str, set[str]](set), defaultdict[str, set[int]](set)
    for result in results:
        for suite in (*result.suites, *(record.suite for record in result.looks)):
            subsets[suite].add(result.plan.dataset.written)
            ipcs[suite] |= set() if result.plan.everything else {result.plan.ipc}
    return {suite: Places(frozenset(subsets[suite]), frozenset(ipcs[suite])) for suite in subsets}


def commands(row: Row, section: Section, around: Surroundings) -> list[str]:
    """What makes a row again, one for each suite that asked for a part of it; subset and ipc are named where it has several."""
    records = [record for result in row.results for record in (result.looks if section.kind in LOOKS else result.judged)]
    return [_command(row, section, suite, around) for suite in sorted({record.suite for record in records})]


def _command(row: Row, section: Section, suite: str, around: Surroundings) -> str:
    plan = row.plan
    if plan.imported:
        how = f"--data {plan.dataset.written} --images {plan.imported.images} --labels {plan.imported.labels}"
        how += "" if plan.imported.experiment is None else f" --experiment {plan.imported.experiment}"
        for name, values in (("mean", plan.imported.mean), ("std", plan.imported.std)):
            how += f" --{name}={','.join(map(str, values))}" if values else ""
        return f"ddbench evaluate FILE {how} --protocol {section.protocol}"
    if not suite:
        return f"ddbench evaluate STORE/sets/{short(row.results[0].key)} --store STORE --protocol {section.protocol}"
    where = {name: value for name, value in coordinates(plan).items() if name != "seed"}
    places = around.places.get(suite)
    if places is None or len(places.subsets) < 2:
        del where["subset"]
    if plan.everything or places is None or len(places.ipcs) < 2:
        del where["ipc"]
    order = sorted(where, key=("baseline", "loss", "space", "subset", "ipc").index)
    texts = around.suites.get(suite, ())
    source = texts[0] if len(texts) == 1 and suite not in around.shipped else around.reduced.get(suite, suite)
    source += f":{REDUCED}" if suite in around.reduced else ""
    return f"ddbench run {source} --only " + ",".join(f"{name}={where[name]}" for name in order)


def copy_image(store: Store, result: Result, out: Path) -> bool:
    """Copy a set's grid beside the page, where it has one."""
    name = "images.png"
    if name in result.record.files:
        write_if_changed(out / "images" / f"{short(result.key)}.png", (store.folder(result.key) / name).read_bytes())
    return name in result.record.files


def copy_plan(store: Store, result: Result, out: Path) -> None:
    """Copy a set's plan beside the page, as it lies in the store."""
    content = (store.folder(result.key) / "plan.json").read_bytes()
    write_if_changed(out / "plans" / f"{short(result.key)}.json", content)


def copy_suites(store: Store, out: Path) -> tuple[dict[str, list[str]], frozenset[str], dict[str, str]]:
    """Copy the suites' texts beside the page; tell which of them come with ddbench, unchanged, and which are reduced forms."""
    texts: dict[str, list[str]] = {}
    shipped, reduced = set(), dict[str, str]()
    for path in sorted((store.root / "suites").glob("*.toml")):
        name = path.stem.rpartition("-")[0]
        whole = name.removesuffix(f"-{REDUCED}")
        if whole != name and named(path) == whole:  # the text is that of the whole suite
            reduced[name] = whole
        write_if_changed(out / "suites" / path.name, path.read_bytes())
        texts.setdefault(name, []).append(f"suites/{path.name}")
        ours = Path(str(files("ddbench.suites"))) / f"{reduced.get(name, name)}.toml"
        if ours.is_file() and sha256_file(ours) == sha256_file(path):
            shipped.add(name)
    return texts, frozenset(shipped), reduced
