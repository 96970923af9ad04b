"""Importing torchvision where its compiled part does not fit the installed torch."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
OPERATORS = {"nms": BOXES, "qnms": BOXES}  # torchvision describes these at import without asking whether they exist


def load_torchvision() -> ModuleType:
    """Import torchvision, or as much of it as is pure Python: data sets, image transforms and models.

    The published torchvision is built for the CUDA torch; beside a CPU-only torch its shared library cannot be loaded. It puts
    up with that, but goes on to describe two operators of that library, which nobody declared, and its import ends in
    "RuntimeError: operator torchvision::nms does not exist". On that error alone, this declares the two without an
    implementation, forgets the half-imported modules, and imports once more. `import timm`, which imports torchvision,
    works after it too. Calling one of the operators (box suppression, of no use here) still fails, and says why.

    Call it as often as you like: once torchvision is imported, nothing happens.
    Raises: whatever else is wrong with torchvision, unchanged.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    for name, schema in OPERATORS.items():
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", schema)
    return importlib.import_module("torchvision")
