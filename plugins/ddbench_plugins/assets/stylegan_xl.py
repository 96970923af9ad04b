"""Generators of StyleGAN-XL and StyleGAN3 from their official pickles: converted once, and the pickle is not opened again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ddbench.api import Asset, AssetFacts
from ddbench_plugins.stylegan.catalogue import FOLDER, NAME, checked_name, known
from ddbench_plugins.stylegan.pickles import opened
from ddbench_plugins.stylegan.prepared import check, convert


@dataclass(frozen=True)
class StyleganWeights(Asset):
    """stylegan-xl/NAME: the generator of an official pickle, as safetensors and a JSON description.

    NAME is one of the released checkpoints, of which some facts are checked, or any other for a file of your own. The pickle is
    read as data: nothing that it names is imported or called. Numbers are kept in the precision that they are stored in.
    Source: Sauer, Schwarz and Geiger, StyleGAN-XL, SIGGRAPH 2022; Karras et al., Alias-Free Generative Adversarial Networks,
    NeurIPS 2021. Raises: ConfigError for a name that cannot be a file's.
    """

    name: str

    def __post_init__(self) -> None:
        """Refuse a path."""
        checked_name(self.name)

    @classmethod
    def members(cls, root: Path | None) -> tuple[str, ...]:
        """The released ones, and others that lie where they belong, prepared or not."""
        folder = root / FOLDER if root else None
        paths = folder.iterdir() if folder and folder.is_dir() else ()
        there = sorted(path.stem for path in paths if path.suffix in (".pkl", ".safetensors") and NAME.fullmatch(path.stem))
        return tuple(dict.fromkeys((*known(), *there)))

    def facts(self) -> AssetFacts:
        """See Asset."""
        published, place = known().get(self.name), f"{FOLDER}/{self.name}"
        files = (f"{place}.json", f"{place}.safetensors")
        if published is None:
            return AssetFacts("a generator of your own, StyleGAN-XL or StyleGAN3", "yours to know", f"{place}.pkl", files)
        return AssetFacts(published.what, published.licence, f"{place}.pkl", files, published.address)

    def prepare(self, source: Path, sha256: str, root: Path) -> tuple[str, ...]:
        """See Asset."""
        published = known().get(self.name)
        with opened(source, sha256) as official:
            if published:
                published.check(official.description)
            made = convert(official, root / FOLDER / f"{self.name}.json")
            classes = f"{made.c_dim} classes" if made.c_dim else "unconditional"
            told = f"{self.name}: {made.depth} layers, {made.img_resolution} px, {classes}."
            return (*official.messages, told)

    def check(self, root: Path) -> None:
        """See Asset."""
        found, published = check(root / FOLDER / f"{self.name}.json"), known().get(self.name)
        if published:
            published.check(found)
