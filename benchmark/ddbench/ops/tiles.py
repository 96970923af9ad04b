"""Several small images in the place of one, row by row. Shapes: n images of f x f tiles [C,h,w] each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def tile_sides(sides: Sequence[int], factor: int) -> tuple[int, int]:
    """(height, width) of tiles that cover an image of these sides, rounded up."""
    height, width = (-(-side // factor) for side in sides)
    return height, width


def joined(tiles: Tensor, factor: int, sides: Sequence[int]) -> Tensor:
    """[n f f, C, h, w] -> [n, C, *sides]; where sides are no multiple of the factor, the last tiles lose what lies outside."""
    grid = tiles.unflatten(0, (-1, factor, factor))
    whole = grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)  # [n, C, f h, f w]
    return whole[:, :, : sides[0], : sides[1]].contiguous()


def cut(images: Tensor, factor: int, outside: Tensor) -> Tensor:
    """[n,C,H,W] -> [n, f f, C, h, w], with `outside` [C,1,1] where tiles reach over the right or the bottom edge."""
    height, width = tile_sides(images.shape[2:], factor)
    padded = outside.expand(len(images), -1, height * factor, width * factor)
    padded = torch.cat([images, padded[:, :, images.shape[2] :, : images.shape[3]]], 2)
    padded = torch.cat([padded, outside.expand(len(images), -1, height * factor, width * factor - images.shape[3])], 3)
    grid = padded.unflatten(3, (factor, width)).unflatten(2, (factor, height))  # [n, C, f, h, f, w]
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
