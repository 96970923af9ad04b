"""The folder of figures: a PNG and an SVG of each, and figures.md, which shows them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ddbench.errors import ConfigError, DataError
from ddbench.files import write_if_changed
from ddbench.leaderboard.figures.attention import Classifiers, attention_figure
from ddbench.leaderboard.figures.curves import Losses, accuracy_figure, loss_figure
from ddbench.leaderboard.figures.drawing import Drawn, require_matplotlib
from ddbench.leaderboard.figures.pictures import beside_figure, walk_figure
from ddbench.leaderboard.figures.ranking import ranking_figure
from ddbench.leaderboard.join import results_of
from ddbench.leaderboard.page import title_of
from ddbench.leaderboard.rows import Row
from ddbench.leaderboard.sections import Section, sections
from ddbench.leaderboard.tables import escape
from ddbench.results.contents import Contents
from ddbench.results.losses import read_losses
from ddbench.results.store import Store

PAGE = "figures.md"
RESULTS = ("ranked", "untuned", "constants")  # kinds of sections whose rows are finished sets
NOTHING = """\
There is nothing to draw yet. Losses of steps and stages of walks are kept of sets that this ddbench distils; accuracy on the way
wants iterates, which a suite asks for with `iterates = { steps = [0, 100] }`.
"""


@dataclass
class _Gallery:
    """What is drawn of a store, section by section, and what could not be."""

    store: Store
    contents: Contents
    classifiers: Classifiers | None
    names: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    def name(self, section: Section, what: str) -> str:
        """A file's name that no other figure has."""
        plain = re.sub("[^a-z0-9]+", "-", f"{what} {section.test.label} ipc {section.ipc} {section.labels}".lower())[:80].strip(
            "-"
        )
        numbers = (f"{plain}-{number}" for number in range(1, len(self.names) + 2))
        name = next(each for each in numbers if each not in self.names)
        self.names.add(name)
        return name

    def of(self, section: Section) -> Iterator[Drawn]:
        """All figures of a section."""
        title = title_of(section)
        if section.kind == "trajectory":
            yield from _some(accuracy_figure(section, self.name(section, "accuracy"), f"Accuracy on the way: {title}"))
            kept = {key: one.iterates for key, one in self.contents.sets.items()}
            for row in section.rows:
                yield from _some(ranking_figure(row, kept, self.name(section, "ranking")))
        if section.kind in RESULTS:
            rows = [row for row in section.rows if row.is_distilled]
            yield from self._losses(section, rows, title)
            for row in rows:
                yield from self._walk(section, row)
            for alike in _one_generator(rows):
                yield from _some(beside_figure(self.store, alike, self.name(section, "beside")))
            for row in rows if self.classifiers else ():
                assert self.classifiers
                yield from _some(
                    attention_figure(self.store, row, row.results[0], self.classifiers, self.name(section, "attention"))
                )

    def _losses(self, section: Section, rows: Sequence[Row], title: str) -> Iterator[Drawn]:
        by_loss: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            by_loss[row.label("loss") or ""].append(row)
        for loss, own in by_loss.items():
            losses = {}
            for result in (result for row in own for result in row.results):
                try:
                    found = read_losses(self.store, result.record)
                except DataError as error:
                    self.faults.append(str(error))
                    continue
                if found:
                    losses[result.key] = Losses(found.every, found.values.numpy())
            yield from _some(loss_figure(own, losses, loss, self.name(section, "loss"), f"Loss of steps: {loss}, {title}"))

    def _walk(self, section: Section, row: Row) -> Iterator[Drawn]:
        try:
            yield from _some(walk_figure(self.store, row, row.results[0], self.name(section, "walk")))
        except DataError as error:
            self.faults.append(str(error))


def _some(drawn: Drawn | None) -> Iterator[Drawn]:
    if drawn is not None:
        yield drawn


def _one_generator(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows of one loss and generator, which several spaces share."""
    groups: dict[tuple[str | None, str | None], list[Row]] = defaultdict(list)
    for row in rows:
        if row.plan.generator and row.plan.space:
            groups[row.label("loss"), row.label("generator")].append(row)
    yield from groups.values()


@dataclass(frozen=True)
class Figures:
    """What was drawn."""

    page: Path
    drawn: list[Drawn]
    faults: list[str]  # a sentence for each file that is left out


def write_figures(store: Store, contents: Contents, out: Path, classifiers: Classifiers | None = None) -> Figures:
    """Draw all figures of a store into a folder. Raises ConfigError without matplotlib, or where that cannot be written."""
    require_matplotlib()
    results, _ = results_of(contents)
    gallery = _Gallery(store, contents, classifiers, faults=[fault.sentence for fault in contents.faults])
    parts, every = ["# Figures", ""], list[Drawn]()
    try:
        for section in sections(results):
            drawn = list(gallery.of(section))
            parts += [f"## {title_of(section)}", ""] if drawn else []
            for each in drawn:
                parts += [f"### {escape(each.title)}", "", f"![{escape(each.title)}]({each.name}.png)", ""]
                parts += [f"{escape(each.caption)} ([SVG]({each.name}.svg))", ""]
                for name, content in each.files.items():
                    write_if_changed(out / name, content)
            every += drawn
        write_if_changed(out / PAGE, "\n".join(parts if every else [*parts, NOTHING]).encode())
    except OSError as error:
        raise ConfigError(
            f"the figures cannot be written to {out}: {error}. Make room there, or name another folder by --out."
        ) from error
    return Figures(out / PAGE, every, gallery.faults)
