"""ImageNet (ILSVRC 2012) as people keep it: folders or tars of its classes, and its official validation images."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddbench.api import Split
from ddbench.errors import DataError
from ddbench.ops.image_files import Folder, Found, Picture, in_folders, list_folder, some, tar_members

BASES = ("imagenet", "ILSVRC2012", "imagenet/ILSVRC/Data/CLS-LOC", ".")  # in the data folder; the third is Kaggle's
TRAIN_TAR, VALIDATION_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
COUNTS: dict[Split, tuple[int, int]] = {"train": (732, 1300), "test": (50, 50)}  # images of a class, least and most
FOLDERS: dict[Split, str] = {"train": "train", "test": "val"}
NAMES: dict[Split, str] = {"train": r"{wnid}_\d+\.JPEG", "test": r"ILSVRC2012_val_\d{{8}}\.JPEG"}
NUM_VALIDATION = 50_000
MAX_LABEL_BYTES = 16 << 20

# What says of the 50,000 validation images which class each shows.
SOLUTION = "LOC_val_solution.csv"  # Kaggle's: ILSVRC2012_val_00000001,n01751748 111 108 ...
WNIDS = "imagenet_2012_validation_synset_labels.txt"  # an id a line
TRUTH = "ILSVRC2012_validation_ground_truth.txt"  # the development kit's: a number a line, which its meta.mat explains
KIT = ("ILSVRC2012_devkit_t12/data", ".")


@dataclass(frozen=True)
class ImageNetTree:
    """Some classes of ImageNet under a data folder, by their WordNet ids, in label order."""

    name: str  # of the data set, for messages
    root: Path
    wnids: tuple[str, ...]

    @property
    def base(self) -> Path:
        """The folder that holds either split. Raises DataError."""
        for base in (self.root / place for place in BASES):
            if self._train_folders(base) or self._train_tars(base) or self._has_validation(base):
                return base
        first = f"imagenet/train/{self.wnids[0]}/ and {len(self.wnids) - 1} more folders, and the same in imagenet/val/"
        tars = f"imagenet/{TRAIN_TAR} and imagenet/{VALIDATION_TAR}"
        raise DataError(
            f"dataset '{self.name}' is not under DDBENCH_DATA: expected {first}, or {tars}, in {self.root}. "
            "docs/data.md says how to put ImageNet there."
        )

    def find(self, split: Split) -> Found:
        """A split. Raises DataError where a class is missing or is not as it was published."""
        return self._train(self.base) if split == "train" else self._validation(self.base)

    # ------------------------------------------------------------ training images

    def _train(self, base: Path) -> Found:
        above = self._train_folders(base)
        if above:
            return in_folders(self._listed(above, "train"))
        tars = self._train_tars(base)
        if not tars:
            raise self._expected(f"training images in {base}: {FOLDERS['train']}/{self.wnids[0]}/ and so on, or {TRAIN_TAR}")
        missing = [f"{wnid}.tar" for wnid in self.wnids if wnid not in tars]
        if missing and "" not in tars:
            raise self._expected(f"the training images of every class in {base}, and misses {some(missing)}")
        return Found(tuple(tars.values()), lambda: self._in_tars(tars))

    def _train_folders(self, base: Path) -> Path | None:
        """The folder with the class folders: `train`, or the base itself."""
        return next((above for above in (base / "train", base) if any((above / wnid).is_dir() for wnid in self.wnids)), None)

    def _train_tars(self, base: Path) -> dict[str, Path]:
        """A tar for each class, or, under the empty name, the one of all."""
        for above in (base / "train", base):
            own = {wnid: above / f"{wnid}.tar" for wnid in self.wnids if (above / f"{wnid}.tar").is_file()}
            if own:
                return own
        return {"": base / TRAIN_TAR} if (base / TRAIN_TAR).is_file() else {}

    def _in_tars(self, tars: dict[str, Path]) -> list[Picture]:
        """Their members, sorted by name, as folders are."""
        parts = {wnid: (path, 0, path.stat().st_size) for wnid, path in tars.items()}
        if "" in tars:
            path = tars[""]
            parts = {name.removesuffix(".tar"): (path, start, size) for name, start, size in tar_members(path)}
        missing = [wnid for wnid in self.wnids if wnid not in parts]
        if missing:
            raise self._expected(f"{some([f'{wnid}.tar' for wnid in missing])} in {tars['']}")
        pictures = []
        for label, wnid in enumerate(self.wnids):
            path, begin, whole = parts[wnid]
            members = sorted(tar_members(path, begin, whole))
            self._check("train", wnid, [name for name, _, _ in members], path)
            pictures += [Picture((str(path), start, size), label, f"{wnid}/{name}") for name, start, size in members]
        return pictures

    # ------------------------------------------------------------ validation images

    def _has_validation(self, base: Path) -> bool:
        flat, tar = base / "val" / f"ILSVRC2012_val_{1:08}.JPEG", base / VALIDATION_TAR
        return flat.is_file() or tar.is_file() or any((base / "val" / wnid).is_dir() for wnid in self.wnids)

    def _validation(self, base: Path) -> Found:
        above = base / "val"
        if any((above / wnid).is_dir() for wnid in self.wnids):
            return in_folders(self._listed(above, "test"))
        flat = (above / f"ILSVRC2012_val_{1:08}.JPEG").is_file()
        if not flat and not (base / VALIDATION_TAR).is_file():
            folders = f"{above}/{self.wnids[0]}/ and so on"
            raise self._expected(f"the official validation images in {folders}, or {base / VALIDATION_TAR}")
        shown, sources = self._labels(base)
        label_of = {wnid: label for label, wnid in enumerate(self.wnids)}
        wanted = sorted((label_of[wnid], f"ILSVRC2012_val_{at:08}.JPEG") for at, wnid in enumerate(shown, 1) if wnid in label_of)
        if flat:
            files = tuple(above / name for _, name in wanted)
            missing = [path.name for path in files if not path.is_file()]
            if missing:
                raise self._expected(f"{some(missing)} in {above}")
            return Found(
                (*files, *sources),
                lambda: [
                    Picture((str(path), 0, path.stat().st_size), label, f"val/{path.name}")
                    for path, (label, _) in zip(files, wanted, strict=True)
                ],
            )
        return Found((base / VALIDATION_TAR, *sources), lambda: self._in_validation_tar(base / VALIDATION_TAR, wanted))

    def _in_validation_tar(self, path: Path, wanted: Sequence[tuple[int, str]]) -> list[Picture]:
        there = {name: (str(path), start, size) for name, start, size in tar_members(path)}
        missing = [name for _, name in wanted if name not in there]
        if missing:
            raise self._expected(f"{some(missing)} in {path}")
        return [Picture(there[name], label, name) for label, name in wanted]

    def _labels(self, base: Path) -> tuple[list[str], tuple[Path, ...]]:
        """The class of each validation image by its number, and the files that say so."""
        places = dict.fromkeys((base, base / "val", self.root / "imagenet", self.root))
        for place in places:
            if (path := place / SOLUTION).is_file():
                rows = sorted(row for row in csv.reader(_lines(path)) if row and row[0].startswith("ILSVRC2012_val_"))
                return self._all([row[1].split(" ")[0] for row in rows], path), (path,)
            if (path := place / WNIDS).is_file():
                return self._all(_lines(path), path), (path,)
            for kit in KIT:
                path, meta = place / kit / TRUTH, place / kit / "meta.mat"
                if path.is_file() and meta.is_file():
                    ids = _kit_ids(meta)
                    return self._all([ids.get(line, "") for line in _lines(path)], path), (path, meta)
        raise self._expected(f"a file that says what validation images show: {SOLUTION}, {WNIDS}, or {KIT[0]}/, in {base}")

    def _all(self, wnids: list[str], path: Path) -> list[str]:
        counts = Counter(wnids)
        if len(wnids) != NUM_VALIDATION or any(counts[wnid] != COUNTS["test"][0] for wnid in self.wnids):
            raise self._expected(f"{path} to name {NUM_VALIDATION} images, {COUNTS['test'][0]} of every class")
        return wnids

    # ------------------------------------------------------------ what was published

    def _listed(self, above: Path, split: Split) -> list[Folder]:
        missing = [f"{wnid}/" for wnid in self.wnids if not (above / wnid).is_dir()]
        if missing:
            raise self._expected(f"a folder of every class in {above}, and misses {some(missing)}")
        folders = [list_folder(above / wnid) for wnid in self.wnids]
        for wnid, folder in zip(self.wnids, folders, strict=True):
            self._check(split, wnid, folder.names, folder.path)
        return folders

    def _check(self, split: Split, wnid: str, names: Sequence[str], where: Path) -> None:
        """As many images of a class, and of such names, as ImageNet has."""
        least, most = COUNTS[split]
        pattern = re.compile(NAMES[split].format(wnid=wnid))
        strange = [name for name in names if not pattern.fullmatch(name)]
        if strange:
            told = f"ImageNet's own {FOLDERS[split]} images in {where}, and finds {some(strange)}"
            hint = "is it another split, as fastai's archives are? Those are fastai-imagenette, fastai-imagewoof or image-folder"
            raise self._expected(f"{told}: {hint}")
        if not least <= len(names) <= most:
            wanted = f"{least} to {most}" if least < most else str(least)
            raise self._expected(f"{wanted} images in {where}, and finds {len(names)}")

    def _expected(self, what: str) -> DataError:
        return DataError(f"dataset '{self.name}' expected {what}. docs/data.md says how ImageNet is kept.")


def _lines(path: Path) -> list[str]:
    if path.stat().st_size > MAX_LABEL_BYTES:
        raise DataError(f"{path} has more than {MAX_LABEL_BYTES} bytes: it is no list of labels.")
    return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] or [""]


def _kit_ids(meta: Path) -> dict[str, str]:
    """The development kit's numbers 1..1000, as text, to WordNet ids."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in synsets}
    except Exception as error:  # damaged bytes can raise anything at all
        raise DataError(f"{meta} cannot be read: {error}. Unpack the development kit again.") from error
