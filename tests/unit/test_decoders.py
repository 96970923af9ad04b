"""Generators that are no GANs: decoders of the files that users bring, in every space, and what is told of wrong files."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import in_process
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import made_decoders
from ddbench.api import GeneratorConfig
from ddbench.cli import main
from ddbench.compute.run import DistillRun
from ddbench.errors import ConfigError, DataError
from ddbench.grid import runner
from ddbench.ops import encodings
from ddbench.ops.encodings import RealEncodings
from ddbench.ops.vision import load_torchvision
from ddbench.seeds import stream
from ddbench.testing import Skipped, prepared, space_checks, stages, toy_run
from ddbench.testing.devices import all_on, runs_ahead
from ddbench.testing.pretended import Pretended
from ddbench.testing.spaces import space_stays_on_its_device
from ddbench_plugins.diffusion.vae import build_network, read_config
from ddbench_plugins.generators.autoencoder_kl import AutoencoderKLDecoder
from ddbench_plugins.generators.dcgan import SHIPPED, Dcgan
from ddbench_plugins.generators.tiny_autoencoder import Autoencoder, TinyAutoencoder
from ddbench_plugins.spaces.layered import Layered, glad, hpd, w_plus
from made_decoders import KL


def brought(user_data: Path | None, root: Path, *names: str) -> None:
    """Copy published files out of the user's data into the weights of another folder, or skip."""
    (root / "weights").mkdir()
    for name in names:
        places = [user_data / folder / name for folder in ("weights", "generators")] if user_data else []
        found = next((path for path in places if path.is_file()), None)
        if found is None:
            pytest.skip(f"{name} is not in weights or generators under DDBENCH_DATA")
        shutil.copy(found, root / "weights")


def loaded(config: GeneratorConfig, run: DistillRun) -> DistillRun:
    """The run with that generator."""
    run = prepared(config, replace(run, loaded=None))
    return replace(run, loaded=config.load(run))


@pytest.fixture
def run(tmp_path: Path) -> DistillRun:
    """Three classes of 12 colour images of 16 px, and an untrained autoencoder."""
    config = TinyAutoencoder(**made_decoders.tiny(tmp_path))
    return loaded(config, replace(toy_run(channels=3, side=16), folder=tmp_path))


def pictures(space: Layered, run: DistillRun) -> list[Tensor]:
    """The images at the start of every stage."""
    with torch.no_grad():
        return [space.decode(state, torch.arange(6), run) for state in stages(space, run)]


# ---------------------------------------------------------------- encodings of real images


def test_codes_are_encodings_of_distinct_training_images_of_their_class(run: DistillRun) -> None:
    classes = torch.tensor([2, 0, 2, 2, 1, 0])
    drawing = RealEncodings(run, lambda pixels: pixels)
    w = drawing.draw(classes, stream("codes"))
    assert w.shape == (6, 1, 3 * 16 * 16)
    pixels = (255 * w.view(6, *run.spec.shape)).round().to(torch.uint8)
    assert isinstance(run.data.images, Tensor)
    found = pixels[:, None].eq(run.data.images).flatten(2).all(2)  # and none of those held out
    assert found.sum(1).tolist() == [1] * 6
    assert torch.equal(run.data.labels[found.int().argmax(1)], classes)
    assert len(pixels.unique(dim=0)) == 6
    many = drawing.draw(torch.zeros(30, dtype=torch.int64), stream("codes"))
    assert len(many.unique(dim=0)) == 12
    assert torch.equal(many[:12], many[12:24])


def test_an_encoder_is_given_few_images_at_a_time_and_a_whole_class_once(
    run: DistillRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def encode(pixels: Tensor) -> Tensor:
        sizes.append(len(pixels))
        return pixels

    data = replace(run.data, images=run.data.images.repeat(5, 1, 1, 1), starts=(0, 180, 180, 180))
    run = replace(run, data=data)
    drawing = RealEncodings(run, encode)
    for _ in range(2):
        drawing.draw(torch.zeros(100, dtype=torch.int64), stream("codes"))
    assert sizes == 2 * [32, 32, 32, 4]
    first, second = (drawing.draw(torch.zeros(180, dtype=torch.int64), stream("codes")) for _ in range(2))
    assert len(sizes) == 8 + 6
    assert torch.equal(first, second)
    monkeypatch.setattr(encodings, "KEPT_BYTES", first.nbytes - 1)
    drawing = RealEncodings(run, encode)
    assert torch.equal(drawing.draw(torch.zeros(180, dtype=torch.int64), stream("codes")), first)
    drawing.draw(torch.zeros(180, dtype=torch.int64), stream("codes"))
    assert len(sizes) == 8 + 6 + 12


def test_averages_share_out_the_images_of_a_class(run: DistillRun) -> None:
    """No image is in two averages, and none is asked for more often than it is there."""
    asked: list[int] = []

    class Counting(Autoencoder):
        def latents(self, classes: Tensor, rng: torch.Generator) -> Tensor:
            asked.append(len(classes))
            return RealEncodings(run, lambda pixels: pixels).draw(classes, rng)

    run = replace(run, loaded=Counting(run).eval(), ipc=2)
    averages = w_plus("average", 1000).init(run).params["w"]
    assert asked == [12, 12, 12]
    whole = run.spec.denormalise(run.data.seen(run.data.images)).flatten(1).view(3, 12, -1).mean(1)
    torch.testing.assert_close(averages.view(3, 2, -1).mean(1), whole)
    assert not torch.equal(averages[0], averages[1])
    asked.clear()
    assert w_plus("average", 7).init(replace(run, ipc=3)).params["w"].shape == (9, 1, 768)
    assert asked == [6, 6, 6]
    asked.clear()
    w_plus("average", 1).init(replace(run, ipc=12))
    assert asked == [12, 12, 12]  # one an image
    with pytest.raises(ConfigError, match="has 12 codes of class 0, and ipc 13 would make images of it equal"):
        w_plus("average", 1).init(replace(run, ipc=13))


# ---------------------------------------------------------------- spaces in a decoder whose layers read no codes


@pytest.mark.parametrize("layer", [0, 5, 11, 12])
def test_features_alone_are_kept(run: DistillRun, layer: int) -> None:
    state = glad(layer).init(run)
    assert set(state.params) == ({"pixels"} if layer == 12 else {"f"})
    torch.testing.assert_close(pictures(glad(layer), run)[0], pictures(w_plus(), run)[0])


def test_its_bytes_are_those_of_the_decoder_alone(run: DistillRun) -> None:
    """No image needs the encoder; weights are float32 here, whatever the file has."""
    generator = run.generator
    assert isinstance(generator, nn.Module)
    own = [tensor.numel() for name, tensor in generator.state_dict().items() if name.startswith("decoder.")]
    assert generator.bytes_stored == 4 * sum(own) > 0
    assert sum(tensor.nbytes for tensor in generator.state_dict().values()) > generator.bytes_stored


def test_the_latent_itself_is_optimised_in_w_plus(run: DistillRun) -> None:
    state = w_plus().init(run)
    assert state.params["w"].shape == (6, 1, 32 * 2 * 2)
    assert torch.equal(glad(0).init(run).params["f"].flatten(1), state.params["w"][:, 0])


@pytest.mark.parametrize("space", [w_plus(), glad(0), glad(5), hpd(step=4, samples=4)], ids=["w-plus", "F0", "F5", "hpd"])
def test_spaces_keep_their_contract(run: DistillRun, space: Layered) -> None:
    for check in space_checks:
        if check is not space_stays_on_its_device:  # which moves a loaded generator: one that keeps its run is loaded there
            with suppress(Skipped):
                check(space, run)


@pytest.mark.parametrize("space", [w_plus("average", 4), glad(5)], ids=["w-plus", "F5"])
def test_a_step_stays_on_its_device(tmp_path: Path, space: Layered) -> None:
    config = TinyAutoencoder(**made_decoders.tiny(tmp_path))
    run = prepared(config, replace(toy_run(channels=3), folder=tmp_path, loaded=None))
    with Pretended() as fake:
        there = fake.run(run)
        there = replace(there, loaded=config.load(there))
        state = space.init(there).clone()
        all_on(fake.device, **state.params)
        with fake.counting() as counts:
            space.decode(state, torch.arange(6, device=fake.device), there).sum().backward()
        runs_ahead(counts, "a step")


def test_the_walk_ends_in_pixels(run: DistillRun) -> None:
    space = hpd(step=4, samples=4)
    assert [set(state.params) for state in stages(space, run)] == [{"f"}, {"f"}, {"f"}, {"pixels"}]
    first, *later = pictures(space, run)
    for images in later:
        torch.testing.assert_close(images, first)


# ---------------------------------------------------------------- tiny-autoencoder


@pytest.mark.parametrize(
    ("channels", "side", "sentence"),
    [(1, 16, r"makes colour images, and those of 'toy' have 1 channel"), (3, 12, r"multiples of 8, .*'toy' have 12 x 12 px")],
)
def test_images_that_it_cannot_make_are_told(channels: int, side: int, sentence: str) -> None:
    run = toy_run(channels=channels, side=side)
    with pytest.raises(ConfigError, match=sentence):
        TinyAutoencoder().depth(run)
    with pytest.raises(ConfigError, match=sentence):
        TinyAutoencoder().load(run)
    assert TinyAutoencoder().depth(toy_run(channels=3, side=40)) == 12


def test_another_networks_weights_are_told(tmp_path: Path) -> None:
    settings = made_decoders.tiny(tmp_path)
    run = replace(toy_run(channels=3), folder=tmp_path)
    TinyAutoencoder(**settings).check(run)
    turned = {"decoder": settings["encoder"], "decoder_sha256": settings["encoder_sha256"]}
    with pytest.raises(DataError, match=r"the weights 'encoder\.safetensors' do not fit the network"):
        TinyAutoencoder(**settings | turned).check(run)
    with pytest.raises(DataError, match="have the SHA-256"):
        TinyAutoencoder(**settings | {"decoder_sha256": "0" * 64}).check(run)
    with pytest.raises(DataError, match=r"taef2-decoder\.safetensors' cannot be found: put this file at"):
        TinyAutoencoder().check(run)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "published"), [(32, 21.6), (64, 24.0), (128, 26.3)])
def test_the_published_weights_reconstruct_real_images(
    user_data: Path | None, tmp_path: Path, side: int, published: float
) -> None:
    """Mean PSNR over 20 images of another choice than the published figure's: within 2 dB of it."""
    brought(user_data, tmp_path, "taef2-decoder.safetensors", "taef2-encoder.safetensors")
    assert user_data is not None
    folders = sorted(user_data.glob("imagenette-224-subset/val/*"))
    files = [path for folder in folders for path in sorted(folder.glob("*.JPEG"))[:2]]
    if not files:
        pytest.skip("imagenette-224-subset is not under DDBENCH_DATA")
    images = [Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for path in files]
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]).float() / 255
    run = replace(toy_run(channels=3, side=side), folder=tmp_path)
    generator: Any = loaded(TinyAutoencoder(), run).generator
    with torch.no_grad():
        w = torch.cat([generator.encoder(part) for part in pixels.split(4)]).flatten(1)[:, None]
        made = torch.cat([generator.synthesize(part, None, 0, 12) for part in w.split(4)])
    psnr = -10 * (made - pixels).square().mean((1, 2, 3)).log10().mean()
    assert len(files) == 20
    assert abs(float(psnr) - published) < 2
    assert -0.5 < float(made.min()) < 0.1
    assert 0.9 < float(made.max()) < 1.5


# ---------------------------------------------------------------- dcgan


def test_the_shipped_description_is_the_one_that_the_default_pins() -> None:
    content = (SHIPPED / f"{Dcgan.description}.json").read_bytes()
    assert hashlib.sha256(content).hexdigest() == Dcgan.description_sha256
    assert Dcgan().depth(toy_run(num_classes=10, side=28)) == 3


def test_images_classes_and_descriptions_that_do_not_fit_are_told(tmp_path: Path) -> None:
    run = replace(toy_run(), folder=tmp_path)
    for config, sentence in (
        (Dcgan(), r"makes images \[1, 28, 28\], and those of 'toy' are \[1, 8, 8\]"),
        (Dcgan(description="mnist-cond-wgan"), r"there is no description 'mnist-cond-wgan'. Did you mean 'mnist-cond-wgan-gp'\?"),
        (Dcgan(**made_decoders.digits(tmp_path, made_decoders.DIGITS | {"classes": {"num": 2, "size": 4, "embedding": "table"}})),
         "knows 2 classes, and 'toy' has 3"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=sentence):
            config.depth(run)
    with pytest.raises(DataError, match=r"the shipped description 'mnist-cond-wgan-gp' has the SHA-256 .*, not an empty one"):
        Dcgan(description_sha256="").depth(run)
    with pytest.raises(DataError, match=r"the description 'mine\.json' cannot be found: put this file at .*weights/mine\.json"):
        Dcgan(description="mine.json").depth(run)
    settings = made_decoders.digits(tmp_path)
    Dcgan(**settings).check(run)
    tensors = load_file(tmp_path / "weights" / "digits.safetensors")
    sha256 = made_decoders.save(tmp_path, "digits.safetensors", {n: t for n, t in tensors.items() if n != "first.weight"})
    with pytest.raises(DataError, match=r"'digits\.safetensors' do not fit their description: they lack 'first\.weight'"):
        Dcgan(**settings | {"sha256": sha256}).check(run)


def test_without_classes_every_class_has_the_same_distribution(tmp_path: Path) -> None:
    content = made_decoders.DIGITS | {"classes": None, "noise": {"size": 9}}
    run = loaded(Dcgan(**made_decoders.digits(tmp_path, content)), replace(toy_run(), folder=tmp_path))
    drawn = [run.generator.latents(torch.full((2,), label), stream("codes")) for label in range(3)]
    assert torch.equal(drawn[0], drawn[2])


class LeNet(nn.Module):
    """The digit classifier that tells what was made."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.tensors = tensors

    def forward(self, x: Tensor) -> Tensor:
        """[B,1,32,32] -> [B,10]."""
        t = self.tensors
        for name, pools in (("c1", True), ("c3", True), ("c5", False)):
            x = F.conv2d(x, t[f"convnet.{name}.weight"], t[f"convnet.{name}.bias"]).relu()
            x = F.max_pool2d(x, 2) if pools else x
        x = F.linear(x.flatten(1), t["fc.f6.weight"], t["fc.f6.bias"]).relu()
        return F.linear(x, t["fc.f7.weight"], t["fc.f7.bias"])


@pytest.mark.slow
def test_published_digits_are_those_that_were_asked_for(user_data: Path | None, tmp_path: Path) -> None:
    """61.5 % of 2,000 of another draw were; a tenth is by chance."""
    brought(user_data, tmp_path, "mnist-cond-wgan-gp.safetensors", "mnist-lenet5.safetensors")
    run = loaded(Dcgan(), replace(toy_run(num_classes=10, side=28), folder=tmp_path))
    classes = torch.arange(10).repeat_interleave(100)
    with torch.no_grad():
        w = run.generator.latents(classes, stream("digits"))
        pixels = torch.cat([run.generator.synthesize(part, None, 0, 3) for part in w.split(100)])
        classifier = LeNet(load_file(tmp_path / "weights" / "mnist-lenet5.safetensors"))
        told = classifier(F.interpolate(pixels, size=32, mode="bilinear"))
    assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1
    right = (told.argmax(1) == classes).float()
    assert 0.56 < float(right.mean()) < 0.68
    assert float(right.view(10, 100).mean(1).min()) > 0.15


# ---------------------------------------------------------------- autoencoder-kl


def needs_diffusers() -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'ddbench[diffusers]'")


@pytest.mark.slow
def test_layers_together_are_the_decoder_of_diffusers(tmp_path: Path) -> None:
    needs_diffusers()
    run = loaded(AutoencoderKLDecoder(**made_decoders.kl(tmp_path)), replace(toy_run(channels=3), folder=tmp_path))
    generator: Any = run.generator
    assert generator.depth == AutoencoderKLDecoder(**made_decoders.kl(tmp_path)).depth(run) == 4
    classes = torch.arange(3)
    w = generator.latents(classes, stream("codes"))
    images = torch.cat([run.real(label, 1, rng) for rng in [stream("codes")] for label in range(3)])
    with torch.no_grad():
        theirs = generator.network.encode(2 * run.spec.denormalise(images) - 1).latent_dist.mode()
        torch.testing.assert_close(w.view_as(theirs), theirs)
        wanted = (generator.network.decode(theirs).sample + 1) / 2
        torch.testing.assert_close(generator.synthesize(w, None, 0, 4), wanted)
    needed = [t for name, t in generator.network.state_dict().items() if name.startswith(("decoder.", "post_quant_conv."))]
    assert generator.bytes_stored == sum(tensor.nbytes for tensor in needed)


@pytest.mark.slow
def test_older_files_name_attention_otherwise(tmp_path: Path) -> None:
    needs_diffusers()
    run, pixels = replace(toy_run(channels=3), folder=tmp_path), []
    for old_names in (False, True):
        generator = loaded(AutoencoderKLDecoder(**made_decoders.kl(tmp_path, old_names)), run).generator
        w = generator.latents(torch.arange(3), stream("codes"))
        pixels.append(generator.synthesize(w, None, 0, 4))
    names = load_file(tmp_path / "weights" / "vae" / "diffusion_pytorch_model.safetensors").keys()
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in names
    assert torch.equal(*pixels)


@pytest.mark.slow
def test_a_wrong_autoencoder_is_told(tmp_path: Path) -> None:
    needs_diffusers()
    run, settings = replace(toy_run(channels=3), folder=tmp_path), made_decoders.kl(tmp_path)
    AutoencoderKLDecoder(**settings).check(run)
    assert build_network(read_config(json.dumps(KL).encode(), "config.json"), "a test").config.latent_channels == 3
    with pytest.raises(DataError, match=r"vae/config\.json has the SHA-256 .*, not an empty one: .* write that hash"):
        AutoencoderKLDecoder("vae").depth(run)
    with pytest.raises(DataError, match=r"the weights 'vae/other\.safetensors' cannot be found"):
        AutoencoderKLDecoder(**settings, file="other.safetensors").check(run)
    sha256 = made_decoders.write(tmp_path, "vae/config.json", KL | {"latent_channels": 5})
    with pytest.raises(DataError, match="do not fit the network"):
        AutoencoderKLDecoder(**settings | {"config_sha256": sha256}).check(run)
    for folder in ("../vae", "a/b/c", ""):
        with pytest.raises(ConfigError, match="must be named by file alone, or by one folder"):
            AutoencoderKLDecoder(folder).depth(run)


def test_without_diffusers_it_is_told_before_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    config_sha256 = made_decoders.write(tmp_path, "vae/config.json", KL)
    run = replace(toy_run(channels=3), folder=tmp_path)
    config = AutoencoderKLDecoder("vae", "0" * 64, config_sha256)
    assert config.depth(run) == 4
    with pytest.raises(ConfigError, match=r"the package diffusers, which cannot be imported: pip install 'ddbench\[diffusers\]'"):
        config.check(run)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"_class_name": "UNet2DModel"}, "it is of the class 'UNet2DModel'"),
        ({"up_block_types": ["os.system", "UpDecoderBlock2D"]}, r"Invalid enum value 'os\.system'"),
        ({"block_out_channels": [8, 9]}, "'block_out_channels' must be multiples of 'norm_num_groups'"),
        ({"block_out_channels": [8]}, "must be equally many"),
        ({"block_out_channels": [10**6, 8]}, "`int` <= 4096"),
        ({"in_channels": 1}, "Invalid enum value 1"),
        ({"more": 1}, "unknown field `more`"),
    ],
)
def test_a_config_of_something_else_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=rf"^'config\.json' does not describe an AutoencoderKL: .*{sentence}.*\.$"):
        read_config(json.dumps(KL | change).encode(), "config.json")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"a":' * 50_000])
def test_a_config_that_is_no_json_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^'config\.json' does not describe an AutoencoderKL: .*\.$"):
        read_config(content, "config.json")


def test_a_config_takes_what_diffusers_writes() -> None:
    more = {"_diffusers_version": "0.4.2", "sample_size": 256, "scaling_factor": 0.18215, "force_upcast": True, "act_fn": "silu"}
    config = read_config(json.dumps(KL | more).encode(), "config.json")
    assert (config.factor, config.latent_channels) == (2, 3)


# ---------------------------------------------------------------- whole grids

SUITE = """
schema = 1
name = "decoded"
protocol = "smoke-1"
seeds = [0]
subsets = ["{dataset}"]
losses = [{{ name = "dm", batch_real = 4 }}]
spaces = [{spaces}]
generator = {generator}
backbone = {{ name = "convnet", width = 2, depth = 2 }}
networks = [{{ name = "convnet", width = 2, depth = 2 }}]
repeats = 1
baselines = []
[distill]
steps = 1
rank_steps = "loss"
rank_stages = "validation"
rank_epochs = 1
rates = {{ pixels = 1.0, f = 0.1, w = 0.1 }}
chunk = 4
"""
WALKS = '"pixel", { name = "glad", layer = 2 }, { name = "hpd", step = 5, samples = 4 }'


def toml(name: str, settings: dict[str, Any]) -> str:
    entries = {"name": name} | settings
    return "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in entries.items()) + " }"


def put_cifar(root: Path) -> None:
    """A made-up CIFAR-10 of eight images a class to train on."""
    folder, rng = root / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir()
    for name, each in [*((f"data_batch_{number}", 2) for number in range(1, 6)), ("test_batch", 1)]:
        labels = list(range(10)) * each
        content = {"data": rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8), "labels": labels}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes, "num_vis": 3072}, protocol=2))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with made-up images, and commands that do their jobs in this process."""
    put_cifar(tmp_path)
    in_process.be_light(monkeypatch)
    monkeypatch.setattr(runner, "run", in_process.run)
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(generator: str, dataset: str, *words: str, spaces: str = WALKS) -> int:
    Path("suite.toml").write_text(SUITE.format(generator=generator, dataset=dataset, spaces=spaces))
    return main([words[0] if words else "run", "suite.toml", *words[1:]])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-autoencoder", "autoencoder-kl"])
def test_a_grid_in_an_autoencoder(home: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "autoencoder-kl":
        needs_diffusers()
        load_torchvision()
    settings = (made_decoders.tiny if name == "tiny-autoencoder" else made_decoders.kl)(home)
    assert command(toml(name, settings), "cifar10", "run", "--json") == 0
    assert len(list(Path("runs/decoded/sets").iterdir())) == 3
    assert len(list(Path("runs/decoded/resources").glob("*/resource.json"))) == 1
    capsys.readouterr()
    assert command(toml(name, settings), "cifar10", "run", "--json") == 0


@pytest.mark.slow
def test_a_grid_in_described_digits(home: Path) -> None:
    description = json.loads((SHIPPED / "mnist-cond-wgan-gp.json").read_text())
    settings = made_decoders.digits(home, description)
    assert command(toml("dcgan", settings), "mnist-5k", spaces='"w-plus", ' + WALKS.replace("step = 5", "step = 1")) == 0
    assert len(list(Path("runs/decoded/sets").iterdir())) == 4


@pytest.mark.slow
def test_missing_files_are_told_once_and_before_anything_is_computed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb, code in (("plan", 1), ("run", 2)):
        assert command('"tiny-autoencoder"', "cifar10", verb) == code
        told = capsys.readouterr()[code - 1]  # a plan lists it among its results
        assert told.count("the weights 'taef2-decoder.safetensors' cannot be found: put this file at") == 1
    assert command('{ name = "dcgan", description = "mine.json" }', "mnist-5k") == 2
    assert "the description 'mine.json' cannot be found" in capsys.readouterr().err
    assert command('"dcgan"', "mnist-5k") == 2
    assert "the weights 'mnist-cond-wgan-gp.safetensors' cannot be found" in capsys.readouterr().err
    assert command('"dcgan"', "cifar10") == 2
    assert "makes images [1, 28, 28], and those of 'cifar10' are [3, 32, 32]" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_grey_data_set_is_told(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert command('"tiny-autoencoder"', "mnist-5k") == 2
    assert "makes colour images, and those of 'mnist-5k' have 1 channel" in capsys.readouterr().err
