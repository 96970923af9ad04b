"""Statistics of leaderboards, against hand and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ddbench.leaderboard.statistics import accuracy, cross_accuracy, cross_mean, pooled_variance, t_quantile
from ddbench.leaderboard.tables import points, with_error


@pytest.mark.parametrize(
    ("probability", "df", "value"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 4, 2.7764), (0.99, 3, 4.5407), (0.975, math.inf, 1.9600)],
)
def test_t_quantiles_are_those_of_printed_tables(probability: float, df: float, value: float) -> None:
    assert t_quantile(probability, df) == pytest.approx(value, abs=5e-5)


@given(st.floats(0.5, 0.99999), st.integers(1, 200))
def test_t_quantile_is_scipys(probability: float, df: int) -> None:
    assert t_quantile(probability, df) == pytest.approx(scipy.stats.t.ppf(probability, df), rel=1e-6, abs=1e-9)


def test_accuracy_by_hand() -> None:
    """Seeds' means 0.61 and 0.67: std 0.06 / sqrt(2), half-width 12.7062 * 0.03; stds over networks 0.02 / sqrt(2)."""
    made = accuracy([[0.60, 0.62], [0.66, 0.68]], num_test=1000)
    assert made.mean == pytest.approx(0.64)
    assert made.by_seed == pytest.approx((0.61, 0.67))
    assert made.std_seeds == pytest.approx(0.06 / math.sqrt(2))
    assert made.half_width == pytest.approx(12.7062 * 0.03, rel=1e-5)
    assert made.std_networks == pytest.approx(0.02 / math.sqrt(2))
    assert made.test_error == pytest.approx(math.sqrt(0.64 * 0.36 / 1000))
    assert made.num_seeds == 2


def test_repeats_are_no_seeds() -> None:
    """Ten networks that agree on one set say nothing about other sets: the interval is over the two seeds alone."""
    few, many = (accuracy([[0.6] * repeats, [0.7] * repeats], 1000) for repeats in (1, 10))
    assert few.half_width == many.half_width == pytest.approx(12.7062 * 0.05, rel=1e-5)


def test_one_seed_has_no_interval() -> None:
    made = accuracy([[0.6, 0.7]], 1000)
    assert made.half_width is made.std_seeds is None
    assert with_error(made) == "65.0 ± 7.1 †"
    assert with_error(accuracy([[0.6]], 1000)) == "60.0 †"
    assert with_error(accuracy([[0.6, 0.61], [0.62, 0.63]], 1000)) == "61.5 ± 1.4"
    assert with_error(None) == "–"


shapes = st.tuples(st.integers(1, 4), st.integers(2, 5), st.integers(2, 5))


@given(shapes.flatmap(lambda shape: arrays(float, shape, elements=st.floats(0, 1))))
def test_cross_accuracy_is_numpys(values: np.ndarray) -> None:
    """[network, seed, repeat]: networks are averaged within each seed; stds are averaged, not pooled."""
    made = cross_accuracy(values.tolist(), 500)
    by_seed = values.mean((0, 2))
    interval = scipy.stats.t.interval(0.95, len(by_seed) - 1, by_seed.mean(), 1) if len(by_seed) > 1 else (0, 0)
    half_width = (interval[1] - interval[0]) / 2 * scipy.stats.sem(by_seed)
    assert made.mean == pytest.approx(values.mean(), abs=1e-12)
    assert made.std_seeds == pytest.approx(by_seed.std(ddof=1), abs=1e-9)
    assert made.half_width == pytest.approx(half_width, abs=1e-7)
    assert made.std_networks == pytest.approx(values.std(2, ddof=1).mean(), abs=1e-9)


@given(st.lists(arrays(float, st.integers(1, 5), elements=st.floats(0, 1)), max_size=5))
def test_pooled_variance_is_that_of_the_residuals(groups: list[np.ndarray]) -> None:
    residuals = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    df = sum(len(group) - 1 for group in groups)
    assert pooled_variance([group.tolist() for group in groups]) == (
        pytest.approx(residuals / max(df, 1), abs=1e-12),
        df,
    )


def test_a_difference_has_no_minus_zero() -> None:
    assert points(cross_mean([[[1e-9, -1e-9]]])) == "+0.0 ± 0.0 †"
    assert points(cross_mean([[[-1e-9, -1e-9]]])) == "+0.0 ± 0.0 †"
    assert points(None) == "–"
