"""Accuracies to numbers that say how sure one may be of them.

A distilled set (one distillation seed) is judged by several networks (repeats). Networks of one set are no sample
of sets: they are averaged first, and the interval is one over the seeds. All standard deviations have ddof = 1.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95


def t_quantile(probability: float, df: float) -> float:
    """Student's t quantile; df may be infinite, which is the normal one."""
    return float(stdtrit(df, probability))


def std(values: Sequence[float]) -> float | None:
    """The sample's standard deviation, ddof = 1; None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def half_width(values: Sequence[float]) -> float | None:
    """Of the t-interval of the mean: t(df = n - 1) s / sqrt(n); None for fewer than two values."""
    if len(values) < 2:
        return None
    return t_quantile((1 + CONFIDENCE) / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def binomial_error(accuracy: float, num_test: int) -> float:
    """The standard error that n test images leave, sqrt(p (1 - p) / n). Averaging networks does not remove it."""
    return math.sqrt(accuracy * (1 - accuracy) / num_test)


@dataclass(frozen=True)
class Mean:
    """A row's accuracy, or a difference of two, as fractions."""

    mean: float  # over seeds of the mean over networks
    half_width: float | None  # of the 95 % t-interval over seeds; None with one seed
    std_seeds: float | None  # of the seeds' means
    std_networks: float | None  # the mean over seeds of the std over networks; None with one network a seed
    by_seed: tuple[float, ...]

    @property
    def num_seeds(self) -> int:
        """Of distillation."""
        return len(self.by_seed)


@dataclass(frozen=True)
class Accuracy(Mean):
    """A row's accuracy on a test set."""

    test_error: float


def accuracy(by_seed: Sequence[Sequence[float]], num_test: int) -> Accuracy:
    """From one network's accuracies, by seed and repeat."""
    return cross_accuracy([by_seed], num_test)


def cross_accuracy(by_network: Sequence[Sequence[Sequence[float]]], num_test: int) -> Accuracy:
    """From accuracies by network, seed and repeat: their cross_mean, and the error of the test set."""
    made = cross_mean(by_network)
    return Accuracy(**vars(made), test_error=binomial_error(made.mean, num_test))


def cross_mean(by_network: Sequence[Sequence[Sequence[float]]]) -> Mean:
    """From values by network, seed and repeat: the unweighted mean over networks, taken within each seed.

    std_networks is the mean over networks too, of what each has alone: the papers' "mean of stds".
    """
    means = [[statistics.fmean(repeats) for repeats in seeds] for seeds in by_network]  # [network][seed]
    by_seed = tuple(statistics.fmean(seed) for seed in zip(*means, strict=True))
    stds = [spread for seeds in by_network for repeats in seeds if (spread := std(repeats)) is not None]
    within = statistics.fmean(stds) if stds else None
    return Mean(statistics.fmean(by_seed), half_width(by_seed), std(by_seed), within, by_seed)


def pooled_variance(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Of groups with different means: sum (n - 1) s^2 / sum (n - 1), and that last sum; (0, 0) where it is 0."""
    parts = [(len(group) - 1, statistics.variance(group)) for group in groups if len(group) > 1]
    df = sum(num for num, _ in parts)
    return (sum(num * variance for num, variance in parts) / df, df) if df else (0.0, 0)


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """The rank correlation, ties with their mean ranks; None for fewer than three pairs, or where all of a side are equal."""
    if len(one) < 3:
        return None
    first, second = _ranks(one), _ranks(other)
    if first.min() == first.max() or second.min() == second.max():
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1 on; equal values share the mean of theirs."""
    array = np.asarray(values, dtype=float)
    order = np.sort(array)
    return (np.searchsorted(order, array, "left") + np.searchsorted(order, array, "right") + 1) / 2
