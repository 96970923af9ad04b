"""What the rows of the picture of a walk are: the stages of a distillation, by name."""

from __future__ import annotations

from ddbench.compute.picture import stages_shown
from ddbench.leaderboard.join import Result


def rows_of_walk(result: Result) -> list[str]:
    """A label for each, from the top: `layer 4, after step 160, score 0.31 (chosen)`; the score is the stage ranker's."""
    return [_label(result, number) for number in stages_shown(len(result.record.stages))]


def _label(result: Result, number: int) -> str:
    stage = result.record.stages[number]
    told = f"{stage.name or f'stage {number + 1}'}, after step {stage.chosen_step}"
    told += "" if stage.stage_score is None else f", score {stage.stage_score:.3g}"
    return told + (" (chosen)" if number == result.record.chosen_stage else "")
