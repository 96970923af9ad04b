"""Weights that users bring: found by name, pinned by hash, read as data, and fitted to a network by name and shape."""

from __future__ import annotations

import os
import pickle
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ddbench.api import Spec
from ddbench.compute.run import DistillRun
from ddbench.data import weights
from ddbench.data.weights import read_document, read_weights
from ddbench.errors import ConfigError, DataError
from ddbench.files import sha256_file
from ddbench.ops.checkpoints import fit_state
from ddbench.ops.vision import load_torchvision
from ddbench.refs import PluginRef
from ddbench.seeds import global_stream
from ddbench.testing import toy_run
from ddbench_plugins.losses.bn_statistics import BatchNormStatistics

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}


def put(root: Path, name: str, content: Any) -> str:
    """Save into the folder of weights; give the hash."""
    path = root / "weights" / name
    path.parent.mkdir(exist_ok=True)
    save_file(content, path) if name.endswith(".safetensors") else torch.save(content, path)
    return sha256_file(path)


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_tensors_come_back(tmp_path: Path, name: str) -> None:
    sha256 = put(tmp_path, name, TENSORS)
    assert same(read_weights(tmp_path, name, sha256), TENSORS)
    assert same(read_weights(tmp_path, name, sha256.upper()), TENSORS)


@pytest.mark.parametrize("inside", ["state_dict", "model"])
def test_a_training_scripts_checkpoint_gives_its_network(tmp_path: Path, inside: str) -> None:
    """Whatever else lies beside it: classes of the script, tensors of other kinds."""
    beside = {"epoch": 7, "optimizer": {"lr": 0.1}, "args": Namespace(lr=0.1), "mask": torch.eye(2).to_sparse()}
    sha256 = put(tmp_path, "w.pt", {**beside, inside: TENSORS})
    assert same(read_weights(tmp_path, "w.pt", sha256), TENSORS)


def test_both_formats_of_torch_are_read(tmp_path: Path) -> None:
    network = small()
    for zipped in (True, False):
        (tmp_path / "weights").mkdir(exist_ok=True)
        path = tmp_path / "weights" / "w.pth"
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=zipped)
        assert same(read_weights(tmp_path, "w.pth", sha256_file(path)), dict(network.state_dict()))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_file_that_is_swapped_while_it_is_read_does_not_pass(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256, path = put(tmp_path, name, TENSORS), tmp_path / "weights" / name
    other = tmp_path / "other"
    good, genuine = path.read_bytes(), weights.sha256_of
    swaps: dict[str, Callable[[], Any]] = {
        "another file": lambda: other.replace(path),
        "written to": lambda: path.write_bytes(other.read_bytes()),
        "time set back": lambda: (path.write_bytes(other.read_bytes()), os.utime(path, ns=(stamp, stamp))),
        "gone": path.unlink,
    }
    for swap in swaps.values():
        path.write_bytes(good)
        stamp = path.stat().st_mtime_ns
        put(tmp_path, f"b{name}", {name: tensor + 1 for name, tensor in TENSORS.items()})
        (tmp_path / "weights" / f"b{name}").replace(other)

        def hashed(file: Any, swap: Callable[[], Any] = swap) -> str:
            found = genuine(file)
            swap()
            return found

        monkeypatch.setattr(weights, "sha256_of", hashed)
        with pytest.raises(DataError, match=r"was changed while it was read: run again|cannot be read"):
            read_weights(tmp_path, name, sha256)


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (print, ("executed",))


def test_pickled_code_is_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "weights").mkdir()
    path = tmp_path / "weights" / "w.pt"
    for write in (lambda: torch.save({"a": Evil()}, path), lambda: path.write_bytes(pickle.dumps(Evil()))):
        write()
        with pytest.raises(DataError, match=r"(more than tensors \(\w+\.print\), and pickled code is never run|cannot be read)"):
            read_weights(tmp_path, "w.pt", sha256_file(path))
    with pytest.raises(DataError, match=r"tensors \(torch\.nn\.modules\.linear\.Linear\), and pickled code is never run"):
        read_weights(tmp_path, "w.pt", put(tmp_path, "w.pt", nn.Linear(2, 2)))
    assert "executed" not in capsys.readouterr().out


def test_what_cannot_be_used_is_told(tmp_path: Path) -> None:
    good = put(tmp_path, "w.pt", TENSORS)
    for name in ("", "../w.pt", "/etc/passwd", ".hidden.pt", "a/b/weights/w.pt"):
        with pytest.raises(ConfigError, match="named by file alone"):
            read_weights(tmp_path, name, good)
    with pytest.raises(DataError, match=r"'w\.pt' must lie in the folder weights of your data folder: set DDBENCH_DATA"):
        read_weights(None, "w.pt", good)
    with pytest.raises(DataError, match=r"'v\.pt' cannot be found: put this file at .*weights/v\.pt"):
        read_weights(tmp_path, "v.pt", good)
    with pytest.raises(DataError, match=f"have the SHA-256 {good}, not 0000: get the right file, or"):
        read_weights(tmp_path, "w.pt", "0000")
    with pytest.raises(DataError, match=f"SHA-256 {good}, not an empty one"):
        read_weights(tmp_path, "w.pt", "")
    (tmp_path / "weights" / "w.bin").write_bytes(b"x")
    with pytest.raises(DataError, match=r"must be a \.safetensors, \.pt or \.pth file"):
        read_weights(tmp_path, "w.bin", good)
    for content in ([torch.ones(1)], {"a": 3}, {}):
        with pytest.raises(DataError, match="must hold tensors under names"):
            read_weights(tmp_path, "x.pt", put(tmp_path, "x.pt", content))
    (tmp_path / "weights" / "cut.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0{")
    with pytest.raises(DataError, match="cannot be read"):
        read_weights(tmp_path, "cut.safetensors", sha256_file(tmp_path / "weights" / "cut.safetensors"))


def test_weights_may_lie_in_a_folder_of_their_own_with_a_description(tmp_path: Path) -> None:
    (tmp_path / "weights" / "vae").mkdir(parents=True)
    sha256 = put(tmp_path, "vae/w.safetensors", TENSORS)
    assert same(read_weights(tmp_path, "vae/w.safetensors", sha256), TENSORS)
    path = tmp_path / "weights" / "vae" / "config.json"
    path.write_bytes(b"{}")
    good = sha256_file(path)
    assert read_document(tmp_path, "vae/config.json", good) == b"{}"
    with pytest.raises(DataError, match=f"has the SHA-256 {good}, not 0000"):
        read_document(tmp_path, "vae/config.json", "0000")
    with pytest.raises(DataError, match=r"must be a \.json file"):
        read_document(tmp_path, "vae/w.safetensors", sha256)
    for name in ("vae/../vae/config.json", "../weights/config.json", "vae//config.json", "/vae/config.json"):
        with pytest.raises(ConfigError, match="the description must be named by file alone, or by one folder"):
            read_document(tmp_path, name, good)
    path.write_bytes(b" " * (1 << 20) + b"{}")
    with pytest.raises(DataError, match="larger than 1 MiB"):
        read_document(tmp_path, "vae/config.json", sha256_file(path))


# ---------------------------------------------------------------- fitting


def small() -> nn.Module:
    with global_stream("small"):
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def test_names_may_have_a_wrappers_prefix_and_lack_counts() -> None:
    network = small()
    wanted = network.state_dict()
    for prefix in ("", "module.", "model."):
        given = {prefix + name: tensor.double() for name, tensor in wanted.items() if not name.endswith("tracked")}
        fitted = fit_state(network, given, (), "the weights")
        assert same(fitted, wanted)
        assert fitted["0.weight"].dtype == torch.float32
    wrapped = nn.Sequential()
    wrapped.add_module("model", network)
    assert fit_state(wrapped, wanted, (), "the weights").keys() == wrapped.state_dict().keys()


def test_rows_are_the_classes_in_their_order() -> None:
    network = small()
    given = dict(network.state_dict()) | {"2.weight": torch.arange(50.0).view(10, 5), "2.bias": torch.arange(10.0)}
    fitted = fit_state(network, given, (7, 0, 3), "the weights")
    assert fitted["2.bias"].tolist() == [7, 0, 3]
    assert fitted["2.weight"][:, 0].tolist() == [35, 0, 15]
    for rows in ((7, 0), (7, 0, 10), (-1, 0, 3)):
        with pytest.raises(DataError, match=r"'2\.(weight|bias)' has 10 rows, of which . are named: name 3, one for each class"):
            fit_state(network, given, rows, "the weights")
    with pytest.raises(DataError, match="Say which 3 of its 10 outputs are the data set's classes"):
        fit_state(network, given, (), "the weights")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_another_network_is_refused() -> None:
    network = small()
    for odd, sentence in (
        (torch.ones(3, dtype=torch.complex64), "complex"),
        (torch.ones(3).to_sparse(), "sparse"),
        (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised"),
        (torch.empty(3, device="meta"), "a meta tensor, without numbers"),
        (torch.ones(1).expand(3), "expanded, more numbers than are stored"),
    ):
        with pytest.raises(DataError, match=rf"the weights: '2\.bias' is {sentence}: store plain dense tensors"):
            fit_state(network, dict(network.state_dict()) | {"2.bias": odd}, (), "the weights")
    lacking = {name: tensor for name, tensor in network.state_dict().items() if name != "0.bias"}
    with pytest.raises(DataError, match=r"the weights do not fit the network: they lack '0\.bias'"):
        fit_state(network, lacking, (), "the weights")
    with pytest.raises(DataError, match=r"it has no '9\.bias'"):
        fit_state(network, dict(network.state_dict()) | {"9.bias": torch.ones(1)}, (), "the weights")
    with pytest.raises(DataError, match=r"'0\.weight' is \[5, 9\], and the network's is \[5, 4\]"):
        fit_state(network, dict(network.state_dict()) | {"0.weight": torch.ones(5, 9)}, (), "the weights")


# ---------------------------------------------------------------- as SRe2L's teacher

CLASSES = (0, 217, 482)


def imagenet_run(root: Path) -> DistillRun:
    """A toy run of three classes of 40 px images with torchvision's network as its backbone."""
    run = toy_run(channels=3, side=40)
    backbone = PluginRef.resolve("architectures", "resnet18-bn", {"stem": "imagenet"})
    return replace(run, backbone=backbone, folder=root)


@pytest.mark.slow
def test_a_checkpoint_of_torchvision_is_the_teacher(tmp_path: Path) -> None:
    with global_stream("a checkpoint"):
        theirs = load_torchvision().models.resnet18(num_classes=1000).eval()
    sha256 = put(tmp_path, "resnet18.pth", theirs.state_dict())
    run = imagenet_run(tmp_path)
    loss = BatchNormStatistics(teacher_weights="resnet18.pth", teacher_sha256=sha256, teacher_classes=CLASSES)
    loss.check(6, run)
    (need,) = loss.needs(run)
    run = replace(run, resources={need: need.build(run)})
    images = run.data.seen(run.data.images[:4])
    with torch.no_grad():
        wanted = theirs(images)[:, list(CLASSES)].softmax(1)
        torch.testing.assert_close(loss.relabel(images, {}, run), wanted)
    with pytest.raises(DataError, match="Say which 3 of its 1000 outputs are the data set's classes"):
        replace(loss, teacher_classes=()).check(6, run)
    with pytest.raises(DataError, match="have the SHA-256"):
        replace(loss, teacher_sha256="1" * 64).check(6, run)
    with pytest.raises(DataError, match="do not fit the network"):
        loss.check(6, replace(run, backbone=PluginRef.resolve("architectures", "convnet", {"norm": "batch"})))


def test_a_checkpoint_of_timm_is_the_teacher(tmp_path: Path) -> None:
    load_torchvision()
    import timm

    with global_stream("a checkpoint"):
        theirs = timm.create_model("resnet10t", num_classes=3).eval()
    sha256 = put(tmp_path, "r.safetensors", theirs.state_dict())
    run = replace(imagenet_run(tmp_path), backbone=PluginRef.resolve("architectures", "timm/resnet10t", {}))
    loss = BatchNormStatistics(teacher_weights="r.safetensors", teacher_sha256=sha256)
    (need,) = loss.needs(run)
    run = replace(run, resources={need: need.build(run)})
    images = run.data.seen(run.data.images[:2])
    with torch.no_grad():
        torch.testing.assert_close(loss.relabel(images, {}, run), theirs(images).softmax(1))


def test_settings_of_a_file_need_a_file() -> None:
    for wrong in ({"teacher_sha256": "0" * 64}, {"teacher_classes": (1, 2)}):
        with pytest.raises(ConfigError, match="name it as 'teacher_weights'"):
            BatchNormStatistics(**wrong)


def test_the_spec_of_the_toy_is_what_these_tests_think() -> None:
    spec: Spec = imagenet_run(Path()).spec
    assert (spec.shape, spec.num_classes) == ((3, 40, 40), len(CLASSES))
