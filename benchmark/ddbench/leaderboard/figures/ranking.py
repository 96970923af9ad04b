"""The step ranker's score, and the loss, of kept iterates against their accuracy, with the rank correlation.

Like Figure 5 of H-PD (Zhong et al., Hierarchical Features Matter, CVPR 2025).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ddbench.leaderboard.figures.drawing import COLOURS, MARKERS, Drawn, Kept, plain, rendered
from ddbench.leaderboard.join import Accuracies, Result
from ddbench.leaderboard.rows import Row
from ddbench.leaderboard.statistics import spearman
from ddbench.results.iterates import step_at

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST = 3  # points, for a correlation


def ranking_figure(row: Row, kept: Kept) -> Drawn | None:
    """Of a row whose iterates were judged; None where nothing is known of them but their accuracy."""
    ranker = getattr(row.plan.rank_steps, "label", row.plan.rank_steps)
    measures = {"step_score": f"score of the step ranker {ranker}", "loss": f"loss {row.label('loss')} of the step"}
    if ranker == "loss":  # whose score it is
        del measures["step_score"]
    points = _points(row, kept)
    panels = {measure: _panel(points, measure) for measure in measures}
    panels = {measure: panel for measure, panel in panels.items() if len(panel["points"]) >= LEAST}
    if not panels:
        return None
    judged_by = row.backbone if row.same and row.backbone else "mean over networks"

    def draw(figure: Figure) -> None:
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, (measure, panel) in zip(grid, panels.items(), strict=True):
            for number, seed in enumerate(sorted({point["seed"] for point in panel["points"]})):
                own = [point for point in panel["points"] if point["seed"] == seed]
                axis.scatter(
                    [point[measure] for point in own], [100 * point["accuracy"] for point in own], s=22, label=f"seed {seed}",
                    color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)],
                )  # fmt: skip
            axis.locator_params(axis="x", nbins=5)
            axis.set_title(told(panel), fontsize=9)
            axis.set_xlabel(plain(measures[measure]))
        grid[0].set_ylabel(f"accuracy (%)\n{plain(judged_by)}")
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)

    caption = (
        "Each point is a kept iterate. Smaller scores and losses are better, so a measure that finds good iterates has a "
        "correlation near -1. It is Spearman's over the points of all seeds together. Points of one distillation hang together: "
        "so many points are fewer independent ones. "
    ) + _within(panels, measures)
    png, svg = rendered((4.8 * len(panels) if len(panels) > 1 else 5.6, 3.9), draw)
    values = {"kind": "ranking", "method": row.name, "judged_by": judged_by, "panels": panels}
    return Drawn(f"Scores and accuracy of iterates: {row.name}", caption, png, svg, values)


def told(panel: Mapping[str, Any]) -> str:
    """`Spearman -0.71 (n = 12)`."""
    found, num = panel["spearman"], len(panel["points"])
    return f"Spearman {'undefined' if found is None else f'{found:.2f}'} (n = {num})"


def _points(row: Row, kept: Kept) -> list[dict[str, Any]]:
    """The judged iterates of all seeds, each once, though it was asked for by steps and by seconds."""
    points = []
    for result in row.results:
        for step, accuracies in sorted(_judged(result).items()):
            iterate, accuracy = kept.get(result.key, {}).get(step), _accuracy(row, accuracies)
            if iterate and accuracy is not None:
                known = {"step_score": iterate.step_score, "loss": iterate.loss, "accuracy": accuracy}
                points.append({"seed": result.seed, "step": step} | known)
    return points


def _judged(result: Result) -> dict[int, Accuracies]:
    """By step, whether steps or seconds were asked for."""
    by_seconds = {step_at(result.plan, result.record, seconds): each for seconds, each in result.by_seconds.items()}
    return {step: each for step, each in by_seconds.items() if step is not None} | dict(result.iterates)


def _accuracy(row: Row, judged: Accuracies) -> float | None:
    """Of the backbone, where it has judged sets of the row; else the mean over networks."""
    names = [row.backbone] if row.same and row.backbone else sorted(judged)
    if not names or any(name not in judged for name in names):
        return None
    return statistics.fmean(statistics.fmean(judged[name]) for name in names)


def _panel(points: Sequence[Mapping[str, Any]], measure: str) -> dict[str, Any]:
    own = [point for point in points if point[measure] is not None]
    by_seed = {}
    for seed in sorted({point["seed"] for point in own}):
        by_seed[str(seed)] = _correlation([point for point in own if point["seed"] == seed], measure)
    return {"points": own, "spearman": _correlation(own, measure), "spearman_by_seed": by_seed}


def _correlation(points: Sequence[Mapping[str, Any]], measure: str) -> float | None:
    return spearman([point[measure] for point in points], [point["accuracy"] for point in points])


def _within(panels: Mapping[str, Mapping[str, Any]], measures: Mapping[str, str]) -> str:
    """The mean correlation within a seed, which no difference between seeds can make."""
    parts = []
    for measure, panel in panels.items():
        found = [value for value in panel["spearman_by_seed"].values() if value is not None]
        if len(panel["spearman_by_seed"]) > 1 and found:
            parts.append(f"{measures[measure]} {statistics.fmean(found):.2f} (mean of {len(found)} seeds)")
    return f"Within a seed: {'; '.join(parts)}." if parts else ""
