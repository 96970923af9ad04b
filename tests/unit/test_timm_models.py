"""Networks by their timm name: adapted to the images, told apart in keys and tables, refused in a sentence, imported late."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddbench import testing
from ddbench.api import Arch, Spec
from ddbench.cli import main
from ddbench.cli.named import networks_of
from ddbench.data.subsets import identify
from ddbench.errors import ConfigError, Faults
from ddbench.files import canonical
from ddbench.ops.vision import load_torchvision
from ddbench.refs import PluginRef
from ddbench.registry import architectures
from ddbench.suite.load import load
from ddbench_plugins.architectures.timm_models import TimmNetwork, timm_model

load_torchvision()  # before timm, which imports torchvision

import timm  # noqa: E402

CONV, TOKENS = "resnet10t", "vit_tiny_patch16_224"
DEPTH, WIDTH = 12, 192  # of TOKENS


def spec(side: int, channels: int = 3, num_classes: int = 10) -> Spec:
    names = tuple(map(str, range(num_classes)))
    return Spec(f"toy-{side}", (channels, side, side), names, (0.5,) * channels, (0.25,) * channels)


def build(model: str, of: Spec, seed: int = 0, **settings: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm_model(model, **settings).build(of)


def images_of(of: Spec, num: int = 2) -> Tensor:
    return torch.randn(num, *of.shape, generator=torch.Generator().manual_seed(1))


def refusal(model: str, of: Spec, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build(model, of, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The network


@pytest.mark.parametrize(("side", "channels", "num_classes"), [(32, 3, 10), (64, 1, 7)])
def test_sides_channels_and_classes_are_the_images_own(side: int, channels: int, num_classes: int) -> None:
    toy = spec(side, channels, num_classes)
    conv, tokens = build(CONV, toy), build(TOKENS, toy)
    num_tokens = (side // 16) ** 2 + 1
    assert conv.forward_features(images_of(toy)).shape == (2, 512, side // 32, side // 32)
    assert tokens.forward_features(images_of(toy)).shape == (2, WIDTH, num_tokens, 1)
    for network, features in ((conv, 512), (tokens, WIDTH)):
        assert network.training
        assert network(images_of(toy)).shape == (2, num_classes)
        maps = network.forward_features(images_of(toy))
        assert network.forward_head(maps, pre_logits=True).shape == (2, features)
    # Patches, class token, positions, blocks (two norms, attention, MLP of four times the width), last norm, head.
    block = 4 * WIDTH + (WIDTH + 1) * 3 * WIDTH + (WIDTH + 1) * WIDTH + (WIDTH + 1) * 4 * WIDTH + (4 * WIDTH + 1) * WIDTH
    rest = (channels * 16 * 16 + 1) * WIDTH + WIDTH + num_tokens * WIDTH + 2 * WIDTH + (WIDTH + 1) * num_classes
    assert sum(parameter.numel() for parameter in tokens.parameters()) == DEPTH * block + rest


@pytest.mark.parametrize("model", [CONV, TOKENS])
def test_it_is_timms_own_network(model: str) -> None:
    toy = spec(32)
    network = build(model, toy).eval()
    more = {"img_size": 32} if model == TOKENS else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = timm.create_model(model, num_classes=10, **more).eval()
        after = torch.get_rng_state()
        torch.manual_seed(0)
        timm_model(model).build(toy)
        assert torch.equal(torch.get_rng_state(), after), "the trial draws nothing"
    state = network.state_dict()
    assert state.keys() == {f"model.{name}" for name in own.state_dict()}
    assert all(torch.equal(state[f"model.{name}"], tensor) for name, tensor in own.state_dict().items())
    logits = network(images_of(toy))
    torch.testing.assert_close(logits, own(images_of(toy)))
    embedding = network.forward_head(network.forward_features(images_of(toy)), pre_logits=True)
    torch.testing.assert_close(logits, own.get_classifier()(embedding))


def test_fused_attention_is_off_here_and_as_it_was_elsewhere() -> None:
    before = timm.layers.use_fused_attn()
    layers = [layer for layer in build(TOKENS, spec(32)).modules() if hasattr(layer, "fused_attn")]
    assert [layer.fused_attn for layer in layers] == [False] * DEPTH
    assert timm.layers.use_fused_attn() == before
    if before:
        assert timm.create_model(TOKENS, img_size=32).blocks[0].attn.fused_attn


@pytest.mark.parametrize("model", [CONV, TOKENS])
def test_a_promised_second_derivative_is_kept(model: str) -> None:
    """Neither says so by default, as nobody has looked at a thousand networks; these two can."""
    assert not timm_model(model).double_backward
    promised = timm_model(model, double_backward=True)
    testing.architectures.architecture_has_second_derivatives(promised, testing.toy_run(channels=3))


def test_batch_norm_takes_batches_of_ten_and_of_two() -> None:
    toy = spec(32)
    network = build(CONV, toy).train()
    for num in (10, 2):
        network(images_of(toy, num)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


class Strange(nn.Module):
    """Features of any shape; its head wants them as they were."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward_features(self, images: Tensor) -> Tensor:
        return torch.arange(float(len(images) * torch.Size(self.shape).numel())).reshape(len(images), *self.shape)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        assert torch.equal(features, self.forward_features(features))
        return features.flatten(1)


@pytest.mark.parametrize(
    ("layout", "shape", "maps"),
    [
        ("maps", (5, 2, 3), (5, 2, 3)),
        ("last", (2, 3, 5), (5, 2, 3)),
        ("tokens", (7, 5), (5, 7, 1)),
        ("vector", (5,), (5, 1, 1)),
    ],
)
def test_every_layout_is_brought_to_maps_and_back(layout: Any, shape: tuple[int, ...], maps: tuple[int, ...]) -> None:
    network = TimmNetwork(Strange(shape), layout)
    features = network.forward_features(torch.zeros(4, 1, 1, 1))
    assert features.shape == (4, *maps)
    assert network.forward_head(features).shape == network(torch.zeros(4, 1, 1, 1)).shape


def test_a_network_with_its_channels_last_gives_maps() -> None:
    with torch.device("meta"):
        network = timm_model("swin_tiny_patch4_window7_224").build(spec(64))
        assert network.forward_features(torch.zeros(2, 3, 64, 64)).shape == (2, 768, 2, 2)


# What is refused


def test_an_unknown_network_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        architectures.make("timm/resnet10")
    assert str(caught.value).startswith(f"architecture 'timm': timm {timm.__version__} has no network 'resnet10'. The nearest: ")
    assert "resnet10t" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("timm", {}, "architecture 'timm' needs setting 'model', which has no default. Write timm/MODEL. It takes: model, lr, "),
        ("timm/resnet10t.c3_in1k", {}, "timm's 'resnet10t.c3_in1k' has trained weights and ours start fresh: write 'resnet10t'."),
        ("timm/-", {}, "has no network '-'. Its names: python -c 'import timm; print(timm.list_models())'."),
        ("timm/hf-hub:timm/resnet10t", {}, "has no network 'hf-hub:timm/resnet10t'. "),
        ("timm/resnet10t", {"lr": 0}, "architecture 'timm' needs a learning rate lr above 0, got 0.0."),
        ("timm/resnet10t", {"min_size": 0}, "architecture 'timm' needs min_size of at least 1, got 0."),
    ],
)
def test_wrong_names_and_settings(name: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        architectures.make(name, settings)
    assert sentence in str(caught.value)
    assert str(caught.value).count("architecture 'timm'") == 1


@pytest.mark.slow
def test_images_that_a_network_cannot_take() -> None:
    assert refusal(CONV, spec(31)).startswith("architecture 'timm/resnet10t' needs images of at least 32 x 32 px and data set ")
    assert refusal(TOKENS, spec(40)) == (
        f"architecture 'timm/{TOKENS}' cannot take the images 3 x 40 x 40 of data set 'toy-40' (ValueError: a side of 40 px is "
        "no multiple of its patches of 16 px). Use other images or another network."
    )
    assert refusal(TOKENS, spec(28), min_size=28).count("a side of 28 px") == 1
    with torch.device("meta"):
        assert "(RuntimeError: " in refusal("crossvit_9_240", spec(64))  # its second branch wants another side
        assert "(ValueError: its features are not one tensor of maps or tokens)" in refusal("coat_tiny", spec(64))


# Names, labels and keys


def ref(name: str, **settings: Any) -> PluginRef:
    return PluginRef.resolve("architectures", name, settings)


def test_both_ways_of_writing_it_are_one_network() -> None:
    short, long = ref("timm/resnet10t"), ref("timm", model="resnet10t")
    assert short == long
    assert (short.name, short.label, short.written) == ("timm", "timm/resnet10t", "timm/resnet10t")
    assert short.settings == {"model": "resnet10t", "lr": 0.001, "min_size": 32, "double_backward": False}
    assert canonical(short.settings) == canonical(ref("timm/resnet10t", lr=0.001).settings)
    other = ref("timm/resnet10t", lr=0.01, min_size=28)
    assert (other.label, other.written) == ("timm/resnet10t(lr=0.01, min_size=28)", "timm/resnet10t")
    assert len({short, long, other, ref("timm/resnet14t")}) == 3
    assert isinstance(short.make(), Arch)


def test_the_command_line_takes_the_name_and_the_label() -> None:
    named = networks_of("convnet(width=4), timm/resnet10t(lr=0.01,min_size=28),timm/vit_tiny_patch16_224")
    labels = ["convnet(width=4)", "timm/resnet10t(lr=0.01, min_size=28)", "timm/vit_tiny_patch16_224"]
    assert [entry.label for entry in named] == labels
    assert [entry.label for entry in networks_of(",".join(labels))] == labels
    with pytest.raises(ConfigError, match="names a network twice"):
        networks_of("timm/resnet10t,timm(model=resnet10t)")


SUITE = """
schema = 1
name = "timm"
protocol = "smoke-1"
subsets = ["mnist-5k"]
losses = ["dm"]
spaces = ["pixel"]
backbone = { name = "timm/resnet10t", min_size = 28 }
networks = [NETWORKS]
[distill]
steps = 1
"""


def plan_of(tmp_path: Path, networks: str) -> Any:
    path = tmp_path / "suite.toml"
    path.write_text(SUITE.replace("NETWORKS", networks))
    return load(str(path), identify, None).cells


def test_a_suite_plans(tmp_path: Path) -> None:
    cells = plan_of(tmp_path, '"convnet", { name = "timm/resnet10t", min_size = 28, lr = 0.01 }')
    assert len(cells) == 3
    assert {cell.set.backbone.label for cell in cells if cell.set.backbone} == {"timm/resnet10t(min_size=28)"}
    assert [judging.network.label for judging in cells[0].judgings] == ["convnet", "timm/resnet10t(lr=0.01, min_size=28)"]
    assert [cell.set.backbone.settings["model"] for cell in cells if cell.set.backbone] == ["resnet10t"]
    written = plan_of(tmp_path, '"convnet", { name = "timm", model = "resnet10t", min_size = 28, lr = 0.01 }')
    assert [cell.set.key for cell in cells] == [cell.set.key for cell in written]
    assert [judging.key for judging in cells[0].judgings] == [judging.key for judging in written[0].judgings]


def test_the_version_of_timm_is_in_the_key() -> None:
    """It defines the networks; no other version is in a key."""
    what = PluginRef.resolve("architectures", "timm/resnet10t", {}).what
    assert what["software"] == [f"timm {timm.__version__}"]
    assert PluginRef.resolve("architectures", "convnet", {}).what["software"] == []


def test_every_fault_is_found_when_planning(tmp_path: Path) -> None:
    small = '{ name = "timm/vit_tiny_patch16_224", min_size = 28 }'
    with pytest.raises(Faults) as caught:
        plan_of(tmp_path, f'"timm/resnet10", "timm", "timm/resnet14t", {small}')
    told = [fault.partition("': ")[2] for fault in caught.value.faults]
    assert [fault[:57] for fault in told] == [
        f"architecture 'timm': timm {timm.__version__} has no network 'resnet10'."[:57],
        "architecture 'timm' needs setting 'model', which has no d",
        "architecture 'timm/resnet14t' needs images of at least 32",
        "architecture 'timm/vit_tiny_patch16_224' cannot take the ",
    ]


def test_a_network_that_cannot_be_built_without_memory_is_built_in_earnest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = []

    def build(of: Spec) -> nn.Module:
        made = nn.Linear(of.num_classes, 1)
        devices.append(made.weight.device.type)
        return made.requires_grad_(made.weight.sum().item() > -1e9)  # a meta tensor has no number to look at

    monkeypatch.setattr(architectures, "make", lambda name, settings=None: Arch(build, 0.1, 1))
    assert len(plan_of(tmp_path, '"convnet"')) == 3
    assert devices == ["meta", "cpu"] * 2  # the backbone and the judge


@pytest.mark.slow
def test_a_set_is_judged_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, pixels = tmp_path / "set.pt", torch.rand(10, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.save({"images": pixels, "labels": torch.arange(10)}, path)
    words = ["--data", "mnist-5k", "--images", "pixels", "--protocol", "smoke-1", "--repeats", "1", "--json"]
    archs = "timm/resnet10t(min_size=28)"
    said = []
    for _ in range(2):
        assert main(["evaluate", str(path), *words, "--archs", archs]) == 0
        said.append([(entry["network"], entry["correct"]) for entry in json.loads(capsys.readouterr().out)["evaluations"]])
    assert said[0] == said[1]
    assert [network for network, _ in said[0]] == [archs]
    assert main(["evaluate", str(path), *words, "--archs", "timm/resnet10t"]) == 2
    assert "architecture 'timm/resnet10t' needs images of at least 32 x 32 px" in capsys.readouterr().err


# When timm is imported


@pytest.mark.slow
def test_the_list_of_plugins_does_not_import_timm() -> None:
    code = """if True:
        import sys
        import only_ours  # listing imports every plugin: those of others may well import timm
        from ddbench import registry
        (row,) = [row for row in registry.architectures.rows() if row.name == "timm"]
        assert row.status == "ok" and row.settings["model"] == "required" and "`timm/" in row.description, row
        assert not {"timm", "torchvision"} & sys.modules.keys()
    """
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
