"""Resampling of maps as matrix products along their two axes, without the zeros of their bands where that is faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

COLUMNS_AT_ONCE = 48  # on a CPU; a filter of 12 taps leaves most rows of so few columns at zero


@dataclass(frozen=True)
class Band:
    """Some columns of a matrix, and the rows in which they are not all zero."""

    rows: slice
    columns: slice
    values: Tensor


def bands(matrix: Tensor, num: int) -> list[Band]:
    """A matrix, `num` columns at a time."""
    found = []
    for first in range(0, matrix.shape[1], num):
        columns = slice(first, first + num)
        used = matrix[:, columns].abs().sum(1).nonzero().flatten().tolist() or [0]
        rows = slice(used[0], used[-1] + 1)
        found.append(Band(rows, columns, matrix[rows, columns].contiguous()))
    return found


class Axes:
    """m -> the sum over pairs of V m H: [N,h,w] -> [N,h',w'].

    The horizontal product, whose bands are used, is the one with more rows: the last where maps grow, else the first.
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]], device: torch.device, dtype: torch.dtype) -> None:
        """Pairs of V [h',h] and H [w,w'], float64 on the host."""
        vertical, horizontal = pairs[0]
        self.sides = (len(vertical), horizontal.shape[1])
        self.grows = len(vertical) > vertical.shape[1]
        num = COLUMNS_AT_ONCE if device.type == "cpu" else horizontal.shape[1]
        self.pairs = [(v.to(device, dtype), bands(h.to(device, dtype), num)) for v, h in pairs]

    def __call__(self, maps: Tensor, out: Tensor | None = None) -> Tensor:
        """`out`: where the result is to be, contiguous."""
        made = maps.new_empty(len(maps), *self.sides) if out is None else out
        for number, (vertical, horizontal) in enumerate(self.pairs):
            upright, is_first = vertical.expand(len(maps), -1, -1), number == 0
            if self.grows:
                _across(torch.bmm(upright, maps), horizontal, made, is_first)
                continue
            across = maps.new_empty(*maps.shape[:2], self.sides[1])
            _across(maps, horizontal, across, True)
            if is_first:
                torch.bmm(upright, across, out=made)
            else:
                made.baddbmm_(upright, across)
        return made


def _across(maps: Tensor, horizontal: list[Band], out: Tensor, is_first: bool) -> None:
    """m H of every map [N,h,w] into `out`, or on top of it where it is not the first."""
    rows, into = maps.reshape(-1, maps.shape[2]), out.view(-1, out.shape[2])
    for band in horizontal:
        part, given = into[:, band.columns], rows[:, band.rows]
        if is_first:
            torch.mm(given, band.values, out=part)
        else:
            part.addmm_(given, band.values)
