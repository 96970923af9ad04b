"""Evaluation as the literature's scripts have it, for comparison: one network after the other, a DataLoader over ten images,
the loss and the accuracy read back from the device after every batch, an average kept tensor by tensor.

Written for this comparison from the description of such loops. Wall-clock seeding is left out, and augmentation is ddbench's
own, so that only the loop differs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ddbench.api import Recipe
from ddbench.compute.train import ema_decay, rate_at
from ddbench.ops.augment import SiameseAugment


def widespread(network: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, strategy: str) -> float:
    """Train one network; images [N,C,H,W] and labels [N] lie on the CPU, the network anywhere. The last epoch's mean loss."""
    device = next(network.parameters()).device
    loader = DataLoader(TensorDataset(images, labels), batch_size=recipe.batch, shuffle=True, num_workers=0)
    optimizer = torch.optim.SGD(network.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    criterion = nn.CrossEntropyLoss().to(device)
    augment, rng = SiameseAugment(strategy), torch.Generator().manual_seed(0)
    shadow = [parameter.detach().clone() for parameter in network.parameters()]
    mean = 0.0
    for epoch in range(recipe.epochs):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(epoch, recipe)
        total, correct, seen = 0.0, 0.0, 0
        network.train()
        for batch, targets in loader:
            batch, targets = batch.float().to(device), targets.long().to(device)
            batch = augment.draw(rng, len(batch))(batch)
            output = network(batch)
            loss = criterion(output, targets)
            correct += np.sum(np.equal(np.argmax(output.cpu().data.numpy(), axis=-1), targets.cpu().data.numpy()))
            total += loss.item() * len(batch)
            seen += len(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        decay = ema_decay(epoch, recipe.ema)
        for average, parameter in zip(shadow, network.parameters(), strict=True):
            average.sub_((1 - decay) * (average - parameter.data))
        mean = total / seen
    return mean
