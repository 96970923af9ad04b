"""What images of a ten-class subset of ImageNet cost: decoding, opening, serving; beside PIL's own and a network's step.

    python tests/perf/measure_images.py

13,000 JPEGs of 500x375 to train and 500 to test, made up from noise, at 128 px; they and the cache lie in a temporary folder. CPU
milliseconds an image, of all processes together, hold on a busy machine too; seconds by the clock do not. Three minutes on two
idle cores.
"""

from __future__ import annotations

import io
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ddbench.api import Recipe
from ddbench.compute.batches import one_by_one, order_of
from ddbench.compute.run import build_network
from ddbench.compute.train import Steps, cross_entropy
from ddbench.data.host import HostImages
from ddbench.data.subsets import identify, load_training
from ddbench.ops.augment import SiameseAugment
from ddbench.refs import PluginRef

TRAIN, TEST, DIFFERENT, SIZE, SIDE = 1300, 50, 20, (500, 375), 128
BATCH, BATCHES = 64, 40
CPU = torch.device("cpu")


def make_tree(base: Path, wnids: tuple[str, ...]) -> list[Path]:
    """An ImageNet of ten classes, DIFFERENT images of each many times over."""
    rng, number = np.random.default_rng(0), 0
    for wnid in wnids:
        contents = []
        for _ in range(DIFFERENT):
            small = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            image = np.asarray(Image.fromarray(small).resize(SIZE, Image.Resampling.BICUBIC), np.int16)
            grain = rng.integers(-12, 13, image.shape, dtype=np.int16)
            file = io.BytesIO()
            Image.fromarray((image + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
            contents.append(file.getvalue())
        for split, num in (("train", TRAIN), ("val", TEST)):
            (base / split / wnid).mkdir(parents=True)
            for at in range(num):
                number += 1
                name = f"{wnid}_{at}.JPEG" if split == "train" else f"ILSVRC2012_val_{number:08}.JPEG"
                (base / split / wnid / name).write_bytes(contents[at % DIFFERENT])
    return sorted((base / "train").rglob("*_1?.JPEG"))


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def say(what: str, num: int, action: Callable[[], object]) -> None:
    """CPU milliseconds an image, and seconds by the clock."""
    began, cpu = time.perf_counter(), cpu_seconds()
    action()
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - began
    print(f"| {what} | {1e3 * cpu / num:.3f} | {num / cpu:,.0f} | {wall:.2f} |", flush=True)


def decode_all(paths: list[Path], resize: bool) -> None:
    """As a plain loop does it."""
    short = (SIZE[0] * SIDE // SIZE[1], SIDE)
    for path in paths:
        with Image.open(path) as image:
            pixels = image.convert("RGB")
            if resize:
                pixels.resize(short, Image.Resampling.BILINEAR)


def measure(root: Path) -> None:
    """All of it."""
    torch.set_num_threads(1)
    ref = PluginRef.resolve("datasets", "imagenette", {"side": SIDE})
    plugin, total = ref.make(), 10 * (TRAIN + TEST)
    paths = make_tree(root / "imagenet", plugin.wnids)
    print("| what | CPU ms an image | images a CPU second | seconds by the clock |\n|:--|--:|--:|--:|")
    decode_all(paths, True)
    say("PIL alone, decoding", len(paths), lambda: decode_all(paths, False))
    say("PIL alone, decoding and resizing", len(paths), lambda: decode_all(paths, True))
    say("building the cache", total, lambda: plugin.prepare(root, lambda what, fraction: None))
    say("opening it", total, lambda: plugin.load("train", root))
    say("identity, hashing all pixels", total, lambda: identify(ref, root))
    time.sleep(2.5)  # identities of files that are just written are not kept
    identify(ref, root)
    say("identity, remembered", total, lambda: identify(ref, root))
    data = load_training(ref, root, 0.1, CPU)
    assert isinstance(data.images, HostImages)
    mapped, recipe, augment = data.images, Recipe(1, 0.01, BATCH), SiameseAugment(data.spec.augmentation)
    parts, resident = order_of(len(mapped), ("x",), 0).split(BATCH)[:BATCHES], mapped[:]
    num, epoch = BATCH * BATCHES, one_by_one(mapped, data.labels, recipe, ("x",), augment, data.seen, 0)
    say("a batch from the map", num, lambda: [mapped.gather(part) for part in parts])
    say("a batch from memory", num, lambda: [resident[part] for part in parts])
    say("a batch from the map, normalised and augmented", num, lambda: [next(epoch) for _ in parts])
    for width in (32, 128):
        network = build_network(PluginRef.resolve("architectures", "convnet", {"width": width, "depth": 5}), data.spec, CPU, "n")
        steps, batch = Steps(network, recipe, ("x",), cross_entropy, CPU, False), data.seen(mapped[:16])
        steps.step(batch, data.labels[:16], 0, 0)
        run = (lambda own, images: lambda: own.step(images, data.labels[:16], 0, 0))(steps, batch)
        say(f"a step of ConvNet-5 of width {width}", 16, run)


def main() -> None:
    """In a folder that goes away."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"DDBENCH_CACHE": f"{folder}/decoded", "XDG_CACHE_HOME": f"{folder}/own"}
        measure(Path(folder))


if __name__ == "__main__":
    main()
