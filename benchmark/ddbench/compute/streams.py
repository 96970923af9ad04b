"""Several networks of one architecture trained side by side on a CUDA device: each by its own recorded steps, on its own stream.

The numbers are those of each network alone; what is gained is that small steps of several networks fill the device together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ddbench.api import Augment, Objective, Recipe
from ddbench.compute.batches import Seen, ahead, epochs_ahead
from ddbench.compute.train import Average, Steps, cross_entropy, finite
from ddbench.seeds import StreamName


def train_on_streams(
    networks: Sequence[nn.Module], images: Tensor, targets: Tensor, recipe: Recipe, names: Sequence[StreamName],
    augment: Augment | None, objective: Objective = cross_entropy, on_epoch: Callable[[int], None] | None = None,
    view: Seen = None,
) -> list[float]:  # fmt: skip
    """Train networks in place, each as `train` trains it under its name with recorded steps. Gives the mean losses of the last
    epoch. The networks and the objective must be such as can be recorded. Raises UntrainableError where a loss is not finite."""
    device = images.device
    averages = [Average(network, recipe.ema) if recipe.ema else None for network in networks]
    steps = [Steps(network.train(), recipe, name, objective, device, True) for network, name in zip(networks, names, strict=True)]
    streams, main = [torch.cuda.Stream(device) for _ in networks], torch.cuda.current_stream(device)
    per_epoch, at_once = -(-len(images) // recipe.batch), max(1, epochs_ahead(images, recipe, len(networks)))
    losses: list[list[Tensor]] = []
    for first in range(0, recipe.epochs, at_once):
        epochs = range(first, min(first + at_once, recipe.epochs))
        batches = list(ahead(images, targets, recipe, names, augment, epochs, view))
        for stream in streams:
            stream.wait_stream(main)
        for place, epoch in enumerate(epochs):
            of_epoch = batches[place * per_epoch : (place + 1) * per_epoch]
            losses = []
            for number, (own, stream) in enumerate(zip(steps, streams, strict=True)):
                mine = [(batch[number], wanted[number]) for batch, wanted in of_epoch]
                with torch.cuda.stream(stream):
                    own.begin(epoch)
                    losses.append([own.step(batch, wanted, epoch, at) for at, (batch, wanted) in enumerate(mine)])
                    average = averages[number]
                    if average:
                        average.update()
            if on_epoch:
                on_epoch(epoch)
        for stream in streams:
            main.wait_stream(stream)  # before the batches go, whose memory is the main stream's
    for network, average in zip(networks, averages, strict=True):
        if average:
            average.copy_()
        network.eval()
    return [finite(float(torch.stack(own).mean()), recipe) for own in losses]
