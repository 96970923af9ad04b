"""The regression gate: has an accuracy fallen by more than noise can explain since a baseline was written?

Compared are rows (plans without seed, plugin versions and threads), network by network, on the baseline's own
seeds: S of them, with the baseline's R networks each; further ones of the store do not count. A seed mean is the mean
accuracy of the R networks that judged one distilled set. Then

    change                   = mean over seeds of (seed mean now - seed mean in the baseline)
    smallest detectable drop = t(1 - alpha', df) * sqrt(2 v / S)                 fallen: change < -drop

- v is the variance of a seed mean, one number for all rows of a network (on the same data, by the same protocol), for the
  seeds of one row alone know little; but another for baselines of a few images a class, which vary more than all else.
  v = sum (S - 1) s^2 / df, df = sum (S - 1).
- v is never below p (1 - p) / (n R), the binomial variance of n test images at the baseline's accuracy p: rows that
  happen to agree to the last image are no proof that there is no noise.
- v is estimated twice, from the baseline alone and from baseline and store together, which has twice the df; the
  smaller drop counts. So a few seeds detect something, and a store whose seeds have come apart cannot hide behind
  its own spread. How much shows depends on the network, and the printed table says it: where the seeds of a network
  differ by two points, a drop of ten shows reliably from about four rows of two seeds on; an AlexNet on ten images
  differs by ten points and more from seed to seed, and only its collapse shows. More seeds are the remedy.
- alpha' = alpha / (2 m), for m comparisons and two estimates (Bonferroni). If the rows of a network vary alike, a
  check whose every number was drawn anew, by other seeds and no worse code, gives a false alarm in at most
  alpha = 1 % of cases. In truth the seeds are the same, and another CPU moves results less than another seed does.
- Where no row of a network has two seeds, v is the variance over the networks of a seed, divided by R (noise from
  "networks"); where no seed has two networks either, it is the binomial one with the normal quantile ("test set").
  Neither knows how much distillation itself varies.

Sets that repeat a habit of published code are neither compared nor written to a baseline.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ddbench.leaderboard.baseline import BaselineRow, entries
from ddbench.leaderboard.join import Result
from ddbench.leaderboard.statistics import pooled_variance, t_quantile

ALPHA = 0.01  # one-sided, for a whole check


@dataclass(frozen=True)
class Comparison:
    """What became of an entry of the baseline."""

    before: BaselineRow
    now: BaselineRow
    detectable: float  # the smallest drop that is not taken for noise
    basis: str  # what the noise was estimated from: seeds, networks or test set
    df: float

    @property
    def change(self) -> float:
        """Of the mean over the same seeds."""
        return self.now.mean - self.before.mean

    @property
    def fell(self) -> bool:
        """Whether the gate fires."""
        return self.change < -self.detectable

    def to_json(self) -> dict[str, Any]:
        """As plain values; accuracies are fractions."""
        return {
            "row": self.now.name,
            "network": self.now.network,
            "protocol": self.now.protocol,
            "data": self.now.data,
            "seeds": list(self.now.seeds),
            "sets": list(self.now.keys),
            "baseline": self.before.mean,
            "now": self.now.mean,
            "change": self.change,
            "smallest_detectable_drop": self.detectable,
            "noise_from": self.basis,
            "df": None if math.isinf(self.df) else self.df,
            "fell": self.fell,
        }


@dataclass(frozen=True)
class Report:
    """Every comparison, and what could not be compared."""

    comparisons: tuple[Comparison, ...]
    faults: tuple[str, ...]
    num_new: int  # entries of the store that the baseline does not know
    num_unranked: int  # judged sets of the store that repeat a habit of published code; none of them is compared

    @property
    def fallen(self) -> tuple[Comparison, ...]:
        """Those that make the gate fire."""
        return tuple(each for each in self.comparisons if each.fell)


def compare(baseline: Sequence[BaselineRow], results: Sequence[Result], alpha: float = ALPHA) -> Report:
    """Hold a store against a baseline. A row that is in the store under several versions is compared under each."""
    store = entries(results)
    pairs, faults = [], []
    for before in baseline:
        found = [entry for entry in store if entry.identity == before.identity]
        faults += [] if found else [_why_missing(before, store)]
        for now in found:
            lacking = [str(seed) for seed in before.seeds if seed not in now.seeds]
            if lacking or now.only(before.seeds, before.num_repeats).num_repeats < before.num_repeats:
                what = f"seed {', '.join(lacking)}" if lacking else f"the {before.num_repeats} repeats"
                faults.append(f"{_place(now)}: the store lacks {what} of the baseline. Run the suite to its end.")
            else:
                pairs.append((before.only(before.seeds, before.num_repeats), now.only(before.seeds, before.num_repeats)))
    known = {before.identity for before in baseline}
    num_new = sum(entry.identity not in known for entry in store)
    return Report(judge(pairs, alpha), tuple(faults), num_new, sum(not result.is_ranked for result in results))


def _place(entry: BaselineRow) -> str:
    return f"'{entry.name}' on {entry.network}"


def _why_missing(before: BaselineRow, store: Sequence[BaselineRow]) -> str:
    """A sentence: the row is there with other data or by another protocol, or not at all."""
    for entry in store:
        if (entry.group, entry.network) == (before.group, before.network):
            both = (entry, before)
            ours, theirs = (f"protocol {each.protocol} {each.protocol_hash[:8]}" for each in both)
            if entry.data_hash != before.data_hash:
                ours, theirs = (f"data {each.data} {each.data_hash[:8]}" for each in both)
            return f"{_place(before)}: the store has {ours}, the baseline {theirs}. They do not compare."
    return f"{_place(before)} is in the baseline and not in the store. Run its suite, or write the baseline anew."


def judge(pairs: Sequence[tuple[BaselineRow, BaselineRow]], alpha: float) -> tuple[Comparison, ...]:
    """Compare entries of the baseline with those of the store, seed for seed the same."""
    pools: dict[tuple[object, ...], list[tuple[BaselineRow, BaselineRow]]] = {}
    for pair in pairs:
        pools.setdefault(pair[0].pool, []).append(pair)
    estimates = {}
    for name, pool in pools.items():
        alone = list(dict.fromkeys(before for before, _ in pool))  # a row under two versions has one baseline
        estimates[name] = (noise(alone), noise(alone + [now for _, now in pool]))
    made = []
    for before, now in pairs:
        drops = []
        for variance, df, basis in estimates[before.pool]:
            error = math.sqrt(2 * max(variance, before.floor) / len(before.seeds))
            drops.append((t_quantile(1 - alpha / (2 * len(pairs)), df) * error, basis, df))
        made.append(Comparison(before, now, *min(drops)))
    return tuple(made)


def noise(sample: Sequence[BaselineRow]) -> tuple[float, float, str]:
    """The variance of a seed mean, pooled over the entries of a pool; its degrees of freedom; what it comes from."""
    variance, df = pooled_variance([entry.means for entry in sample])
    if df:
        return variance, df, "seeds"
    squares = [spread**2 for entry in sample for spread in entry.stds if spread is not None]
    if squares:
        repeats = sample[0].num_repeats
        return statistics.fmean(squares) / repeats, len(squares) * (repeats - 1), "networks"
    return 0.0, math.inf, "test set"
