"""Stratified splits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddbench.errors import ConfigError
from ddbench.ops.split import stratified_split


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(4, 12), min_size=1, max_size=6),
    part=st.one_of(st.integers(0, 3), st.floats(0, 0.75)),
    seed=st.integers(0, 2**32 - 1),
)
def test_split_is_a_partition_with_equal_classes(counts, part, seed):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=rng(seed))]
    kept, held_out = stratified_split(labels, part, rng(seed))
    assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(len(labels)))
    assert torch.equal(kept, kept.sort().values)
    assert torch.equal(held_out, held_out.sort().values)
    num = part if isinstance(part, int) else max(round(part * min(counts)), int(part > 0))
    assert labels[held_out].bincount(minlength=len(counts)).tolist() == [num] * len(counts)
    assert labels[kept].bincount(minlength=len(counts)).tolist() == [count - num for count in counts]


def test_seed_decides():
    labels = torch.arange(10).repeat(50)
    one, two, other = (stratified_split(labels, 0.2, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[1], other[1])


def test_every_image_of_a_class_is_equally_likely():
    labels, stream = torch.arange(2).repeat(10), rng()
    counts = torch.zeros(20)
    for _ in range(1000):
        counts[stratified_split(labels, 3, stream)[1]] += 1
    assert (counts - 300).abs().max() < 5 * (1000 * 0.3 * 0.7) ** 0.5


def test_labels_may_skip_numbers():
    kept, held_out = stratified_split(torch.tensor([7, 2, 7, 2, 7]), 1, rng())
    assert len(kept) == 3
    assert len(held_out) == 2


@pytest.mark.parametrize("part", [2, 3, 0.9])
def test_a_class_must_keep_something(part):
    with pytest.raises(ConfigError, match="class 1 has 2 and must keep some"):
        stratified_split(torch.tensor([0, 0, 0, 0, 1, 1]), part, rng())


@pytest.mark.parametrize("part", [-1, -0.5, 1.0, 1.5])
def test_senseless_part(part):
    with pytest.raises(ConfigError, match=r"a fraction in \[0, 1\) or a count of at least 0"):
        stratified_split(torch.tensor([0, 0, 1, 1]), part, rng())
