"""The built-in networks are those of the papers: sizes to the last parameter, shapes, second derivatives, refusals."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddbench import testing
from ddbench.api import Arch, Spec
from ddbench.errors import ConfigError
from ddbench.ops.layers import Dropout, form_of, instance_norm, norm_layer
from ddbench.ops.vision import load_torchvision
from ddbench_plugins.architectures.alexnet import alexnet
from ddbench_plugins.architectures.convnet import convnet
from ddbench_plugins.architectures.resnet import resnet18
from ddbench_plugins.architectures.resnet_bn import resnet18_bn
from ddbench_plugins.architectures.vgg import vgg11
from ddbench_plugins.architectures.vit import vit, vit_noln

# Every network in the smallest size that still has all its parts.
TINY: dict[str, Arch] = {
    "convnet": convnet(width=4),
    "convnet-batch": convnet(width=4, norm="batch"),
    "convnet-layer": convnet(width=4, norm="layer"),
    "convnet-group": convnet(width=8, norm="group"),
    "convnet-none": convnet(width=4, norm="none"),
    "alexnet": alexnet(width=4),
    "vgg11-low": vgg11(width=2, form="low"),
    "vgg11-high": vgg11(width=2, form="high"),
    "resnet18-low": resnet18(width=2, form="low"),
    "resnet18-high": resnet18(width=2, form="high"),
    "vit-low": vit(width=16, depth=2, form="low"),
    "vit-high": vit(width=16, depth=2, form="high"),
    "vit-noln": vit_noln(width=16, depth=2),
}
every_network = pytest.mark.parametrize("name", TINY)


def spec(side: int | tuple[int, int], channels: int = 3, num_classes: int = 10) -> Spec:
    height, width = (side, side) if isinstance(side, int) else side
    names = tuple(str(label) for label in range(num_classes))
    return Spec(f"toy-{height}", (channels, height, width), names, (0.5,) * channels, (0.25,) * channels)


def build(arch: Arch, of: Spec, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return arch.build(of)


def images_of(of: Spec, num: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(num, *of.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def on_meta(arch: Arch, of: Spec) -> nn.Module:
    with torch.device("meta"):
        return arch.build(of)


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("arch", "side", "expected"),
    [
        (convnet(depth=3), 32, 320_010),
        (convnet(depth=4), 64, 467_850),
        (convnet(depth=5), 128, 615_690),
        (convnet(depth=5), 256, 677_130),
        (convnet(depth=6), 256, 763_530),
        (convnet(depth=7), 512, 911_370),
        (convnet(), 32, 320_010),
        (convnet(), 64, 467_850),
        (convnet(), 128, 615_690),
        (convnet(), 256, 763_530),
        (convnet(), 512, 911_370),
        (convnet(norm="none"), 32, 320_010 - 3 * 2 * 128),
        (convnet(norm="layer"), 32, 320_010 - 3 * 2 * 128 + 2 * 128 * (32**2 + 16**2 + 8**2)),
        (alexnet(), 32, 1_872_202),
        (alexnet(), 128, 2_333_002),
        (alexnet(), 256, 3_807_562),
        (alexnet(), 512, 9_705_802),
        (vgg11(), 32, 9_231_114),
        (vgg11(), 128, 9_476_874),
        (vgg11(), 256, 9_476_874),
        (vgg11(), 512, 9_476_874),
        (resnet18(), 32, 11_173_962),
        (resnet18(), 64, 11_173_962 + 3 * 512 * 10),  # ours: the published forms leave 64 px open
        (resnet18(form="high"), 64, 11_173_962),
        (resnet18(), 128, 11_173_962),
        (resnet18(), 256, 11_173_962),
        (resnet18_bn(), 32, 11_689_512 - 990 * 513 - 64 * 3 * (49 - 9)),  # torchvision's at 1,000 classes; its conv1 is 7x7
        (resnet18_bn(), 64, 11_173_962),
        (resnet18_bn(), 65, 11_689_512 - 990 * 513),
        (resnet18_bn("imagenet"), 64, 11_181_642),
        (resnet18_bn("small"), 128, 11_173_962),
        (vit(), 32, 9_523_722),
        (vit_noln(), 128, 16_176_650),
        (vit_noln(), 256, 16_274_954),
        (vit_noln(), 512, 16_668_170),
        (vit(), 128, 16_198_154),  # 16,176,650 and 21 LayerNorms of 2 * 512
        (vit(), 256, 16_296_458),
        (vit(), 512, 16_689_674),
        (vit(layer_norm=False), 128, 16_176_650),
        (vit(layer_norm=False), 32, 9_523_722 - 13 * 2 * 512),
    ],
)
def test_number_of_parameters(arch: Arch, side: int, expected: int) -> None:
    assert num_parameters(on_meta(arch, spec(side))) == expected


@pytest.mark.parametrize(
    ("arch", "features"),
    [(convnet(), 2048), (alexnet(), 192 * 16), (vgg11(), 512), (resnet18(), 512), (vit(), 512)],
)
def test_number_of_classes_only_changes_the_last_layer(arch: Arch, features: int) -> None:
    ten, many = (num_parameters(on_meta(arch, spec(32, num_classes=num))) for num in (10, 200))
    assert many - ten == 190 * (features + 1)


def test_published_count_at_200_classes() -> None:
    assert num_parameters(on_meta(convnet(), spec(64, num_classes=200))) == 857_160


def test_published_counts_of_resnet18_with_batch_norm() -> None:
    thousand = spec(224, num_classes=1000)
    assert num_parameters(on_meta(resnet18_bn(), thousand)) == 11_689_512
    assert num_parameters(on_meta(resnet18_bn(), spec(224, channels=1, num_classes=1000))) == 11_689_512 - 64 * 2 * 49
    assert num_parameters(on_meta(resnet18_bn(), spec(28, channels=1))) == 11_173_962 - 64 * 2 * 9


@pytest.mark.parametrize(("side", "depth"), [(32, 3), (64, 4), (128, 5), (256, 6), (512, 7)])
def test_convnet_has_2048_features_at_every_resolution(side: int, depth: int) -> None:
    network = on_meta(convnet(), spec(side))
    assert sum(isinstance(layer, nn.Conv2d) for layer in network.modules()) == depth
    maps = network.forward_features(torch.empty(1, 3, side, side, device="meta"))
    assert maps.shape == (1, 128, 4, 4)
    assert network.forward_head(maps, pre_logits=True).shape == (1, 2048)


@pytest.mark.parametrize(
    ("channels", "side", "maps"),
    [(3, 28, 7), (1, 28, 4), (1, 32, 4), (3, 96, 6), (3, 127, 7), (1, 60, 4), (3, 8, 4), (3, 5, 2), (3, 2, 1)],
)
def test_depth_rule_of_convnet_off_the_powers_of_two(channels: int, side: int, maps: int) -> None:
    toy = spec(side, channels)
    assert build(convnet(width=2), toy).forward_features(images_of(toy)).shape == (2, 2, maps, maps)


WIDTH_OF = {"alexnet": 6, "vgg11": 16, "resnet18": 16, "vit": 16}  # features D of the tiny networks


@pytest.mark.parametrize(("channels", "side", "num_classes"), list(itertools.product((1, 3), (28, 32), (2, 10))))
@pytest.mark.parametrize(
    ("name", "maps", "embedding"),
    [
        ("alexnet", 4, 6 * 16),
        ("vgg11-low", 1, 16),
        ("vgg11-high", 1, 16 * 49),
        ("resnet18-low", 4, 16),
        ("resnet18-high", 4, 16),
        ("vit-low", 1, 16),
    ],
)
def test_shapes(name: str, maps: int, embedding: int, channels: int, side: int, num_classes: int) -> None:
    if name == "alexnet" and (channels, side) == (3, 28):
        maps, embedding = 3, 6 * 9  # only one-channel images get a border
    toy = spec(side, channels, num_classes)
    network = build(TINY[name], toy)
    features = network.forward_features(images_of(toy))
    assert features.shape == (2, WIDTH_OF[name.split("-")[0]], maps, maps)
    assert network.forward_head(features, pre_logits=True).shape == (2, embedding)
    assert network(images_of(toy)).shape == (2, num_classes)


@pytest.mark.parametrize(
    ("arch", "maps"),
    [
        (convnet(), (128, 4, 4)),
        (alexnet(), (192, 16, 16)),
        (vgg11(), (512, 4, 4)),
        (resnet18(), (512, 16, 16)),
        (vit(), (512, 1, 1)),
        (vit_noln(), (512, 1, 1)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_at_128_px_and_full_width(arch: Arch, maps: tuple[int, ...], channels: int) -> None:
    network = on_meta(arch, spec(128, channels))
    images = torch.empty(2, channels, 128, 128, device="meta")
    assert network.forward_features(images).shape == (2, *maps)
    assert network(images).shape == (2, 10)


@pytest.mark.parametrize("name", ["convnet", "convnet-layer", "alexnet", "vgg11-low", "resnet18-low", "vit-low"])
def test_images_need_not_be_square(name: str) -> None:
    toy = spec((32, 64))
    assert build(TINY[name], toy)(images_of(toy)).shape == (2, 10)


@every_network
def test_forward_is_the_head_of_the_features(name: str) -> None:
    toy = spec(32)
    network, images = build(TINY[name], toy).eval(), images_of(toy)
    features = network.forward_features(images)
    embedding = network.forward_head(features, pre_logits=True)
    logits = network(images)
    assert embedding.ndim == 2
    torch.testing.assert_close(logits, network.forward_head(features), rtol=0, atol=0)
    torch.testing.assert_close(logits, network.classifier(embedding), rtol=0, atol=0)
    assert logits.std() > 0


def gradient_norm(network: nn.Module, images: Tensor) -> Tensor:
    """The squared norm of the gradient of a loss in the parameters, with the same dropout every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loss = nn.functional.cross_entropy(network(images), torch.arange(len(images)))
    grads = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    return sum((grad.square().sum() for grad in grads), torch.zeros((), dtype=images.dtype))


@every_network
def test_second_derivative_is_right(name: str) -> None:
    toy = spec(32, channels=1, num_classes=3)
    network = build(TINY[name], toy).double()
    images = images_of(toy, 3, torch.float64).requires_grad_()
    (second,) = torch.autograd.grad(gradient_norm(network, images), images)
    assert TINY[name].double_backward
    assert second.isfinite().all()
    assert (second.flatten(1).norm(dim=1) > 1e-9).all()
    direction, eps = second.detach() / second.norm(), 1e-6
    slope = (gradient_norm(network, images + eps * direction) - gradient_norm(network, images - eps * direction)) / (2 * eps)
    torch.testing.assert_close(slope, second.norm(), rtol=1e-4, atol=0)


@every_network
def test_smallest_images(name: str) -> None:
    arch = TINY[name]
    for channels in (1, 3):
        toy = spec(arch.min_size, channels)
        assert build(arch, toy)(images_of(toy)).isfinite().all()
    with pytest.raises(ConfigError, match=rf"at least {arch.min_size} x {arch.min_size} px and data set 'toy-\d+' has"):
        arch.build(spec((arch.min_size - 1, arch.min_size)))


def test_min_size_follows_the_settings() -> None:
    assert [arch.min_size for arch in (convnet(), convnet(depth=5), alexnet(), vgg11())] == [2, 32, 8, 28]
    assert [resnet18(form=form).min_size for form in ("auto", "low", "high")] == [25, 25, 9]
    assert [arch.min_size for arch in (vit(), vit(form="low"), vit(form="high"), vit_noln())] == [4, 4, 16, 16]


@pytest.mark.parametrize(("arch", "name", "patch"), [(vit(), "vit", 4), (vit_noln(), "vit-noln", 16)])
def test_vit_refuses_images_that_are_no_whole_patches(arch: Arch, name: str, patch: int) -> None:
    with pytest.raises(ConfigError, match=rf"'{name}' cuts images into patches of {patch} x {patch} px .* has 30 x 32\."):
        arch.build(spec((30, 32)))


def test_auto_is_low_up_to_64_px() -> None:
    assert [form_of("auto", spec(side)) for side in (28, 32, 64, 65, 128)] == ["low", "low", "low", "high", "high"]
    assert [form_of("low", spec(128)), form_of("high", spec(32))] == ["low", "high"]


@pytest.mark.parametrize("make", [vgg11, resnet18, vit])
@pytest.mark.parametrize(("side", "form"), [(32, "low"), (64, "low"), (80, "high"), (128, "high")])
def test_auto_builds_that_form(make: Callable[..., Arch], side: int, form: str) -> None:
    other = "high" if form == "low" else "low"
    shapes = {
        key: {name: tuple(value.shape) for name, value in on_meta(make(form=key), spec(side)).state_dict().items()}
        for key in ("auto", form, other)
    }
    assert shapes["auto"] == shapes[form]
    if not (make is resnet18 and side == 32):  # there the two forms are one network
        assert shapes["auto"] != shapes[other]


def test_both_forms_of_resnet18_are_one_network_at_32_px() -> None:
    toy = spec(32)
    low, high = build(TINY["resnet18-low"], toy), build(TINY["resnet18-high"], toy)
    torch.testing.assert_close(low(images_of(toy)), high(images_of(toy)))


@pytest.mark.parametrize(
    ("make", "width"), [(convnet, 128), (alexnet, 128), (vgg11, 64), (resnet18, 64), (vit, 512), (vit_noln, 512)]
)
def test_half_the_width_halves_every_layer(make: Callable[..., Arch], width: int) -> None:
    def sizes(arch: Arch) -> list[tuple[int, ...]]:
        return [tuple(value.shape) for value in on_meta(arch, spec(128)).state_dict().values()]

    assert sizes(make()) == sizes(make(width=width))
    full, half = sizes(make()), sizes(make(width=width // 2))
    fixed = {1, 3, 5, 10, 65, 768}  # kernel sides, channels and classes, tokens, pixels of a patch
    for one, other in zip(full, half, strict=True):
        assert all(a == b if a in fixed else a == 2 * b for a, b in zip(one, other, strict=True)), (one, other)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (convnet, {"width": 0}, "'convnet' needs width of at least 1, got 0"),
        (convnet, {"depth": 0}, "'convnet' needs depth of at least 1, got 0"),
        (convnet, {"width": 6, "norm": "group"}, "width must be a multiple of 4, got 6"),
        (convnet, {"norm": "instanec"}, "unknown norm 'instanec'. It takes: instance, batch"),
        (alexnet, {"width": 0}, "'alexnet' needs width of at least 2, got 0"),
        (alexnet, {"width": 7}, "width must be even, got 7"),
        (vgg11, {"width": 0}, "'vgg11' needs width of at least 1, got 0"),
        (resnet18, {"width": -1}, "'resnet18' needs width of at least 1, got -1"),
        (vit, {"width": 0}, "'vit' needs width of at least 8, got 0"),
        (vit, {"width": 12}, "'vit' has 8 heads: width must be a multiple of 8, got 12"),
        (vit_noln, {"depth": 0}, "'vit-noln' needs depth of at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused_before_building(make: Callable[..., Arch], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**settings)


def test_learning_rates_are_those_of_the_protocol() -> None:
    rates = [make().lr for make in (convnet, alexnet, vgg11, resnet18, vit, vit_noln, resnet18_bn)]
    assert rates == [0.001, 0.001, 0.0001, 0.001, 0.001, 0.001, 0.001]


def test_layer_norms_of_the_vits() -> None:
    def norms(arch: Arch) -> int:
        return sum(isinstance(layer, nn.LayerNorm) for layer in on_meta(arch, spec(128)).modules())

    assert (norms(vit()), norms(vit_noln()), norms(vit(form="low"))) == (21, 0, 13)


@pytest.mark.parametrize(
    ("stem", "side", "channels", "maps"),
    [("auto", 32, 3, 4), ("auto", 64, 1, 8), ("auto", 65, 3, 3), ("imagenet", 64, 1, 2), ("small", 72, 3, 9)],
)
def test_stems_of_resnet18_with_batch_norm(stem: Any, side: int, channels: int, maps: int) -> None:
    network = on_meta(resnet18_bn(stem), spec(side, channels))
    images = torch.empty(2, channels, side, side, device="meta")
    assert network.forward_features(images).shape == (2, 512, maps, maps)
    assert network.forward_head(network.forward_features(images), pre_logits=True).shape == (2, 512)
    small = stem == "small" or (stem == "auto" and side <= 64)
    conv, pool = network.conv1, network.maxpool
    assert (conv.kernel_size, conv.stride, conv.padding) == (((3, 3), (1, 1), (1, 1)) if small else ((7, 7), (2, 2), (3, 3)))
    assert conv.bias is None
    assert isinstance(pool, nn.Identity if small else nn.MaxPool2d)


def test_resnet18_with_batch_norm_is_torchvisions_under_its_names() -> None:
    own = load_torchvision().models.resnet18(num_classes=10).eval()
    network = build(resnet18_bn("imagenet"), spec(64))
    network.load_state_dict(own.state_dict())
    torch.testing.assert_close(network.eval()(images_of(spec(64))), own(images_of(spec(64))), rtol=0, atol=0)
    small = build(resnet18_bn(), spec(32)).state_dict()
    assert small.keys() == own.state_dict().keys()
    assert [name for name, tensor in own.state_dict().items() if small[name].shape != tensor.shape] == ["conv1.weight"]
    assert sum(name.endswith("running_mean") for name in small) == 20


@pytest.mark.slow
@pytest.mark.parametrize(("stem", "min_size"), [("small", 9), ("imagenet", 33)])
def test_resnet18_with_batch_norm_keeps_the_contract_with_either_stem(stem: Any, min_size: int) -> None:
    arch = resnet18_bn(stem)
    assert (arch.min_size, arch.double_backward, resnet18_bn().min_size) == (min_size, True, 9)
    outcome = testing.run_checks("architectures", arch, testing.toy_run(channels=3))
    assert not outcome.skipped
    network, images = build(arch, spec(min_size)).train(), images_of(spec(min_size), 10)
    for num in (10, 1):  # a batch of one image, the rest of a division, has four values a channel
        assert network(images[:num]).isfinite().all()


LAYERS = {"M": nn.MaxPool2d, "A": nn.AvgPool2d, "C": nn.Conv2d, "N": nn.GroupNorm, "R": nn.ReLU}


@pytest.mark.parametrize(
    ("arch", "layers"),
    [(convnet(), "CNRA" * 3), (alexnet(), "CRM" * 2 + "CR" * 3 + "M"), (vgg11(), "CNRM" * 2 + "CNRCNRM" * 3)],
)
def test_order_of_layers(arch: Arch, layers: str) -> None:
    assert [type(layer) for layer in on_meta(arch, spec(32)).features] == [LAYERS[letter] for letter in layers]


def test_resnet18_adds_and_then_rectifies() -> None:
    toy = spec(32)
    layers = build(TINY["resnet18-low"], toy).features
    maps = layers[:3](images_of(toy))
    for block, side in ((layers[3], 32), (layers[5], 16)):  # the first keeps the shape, the second does not
        inner = block.residual(maps)
        assert inner.shape[2:] == (side, side)
        torch.testing.assert_close(block(maps), (inner + block.shortcut(maps)).clamp(min=0))
        assert (block(maps) == 0).any()


def test_vit_drops_a_tenth_after_the_embedding_the_projection_and_both_mlp_layers() -> None:
    encoder = on_meta(vit(), spec(32)).features
    drops = [layer for layer in encoder.modules() if isinstance(layer, Dropout)]
    assert [layer.rate for layer in drops] == [0.1] * (1 + 6 * 3)
    kinds = [type(layer) for layer in encoder.blocks[0].mlp]
    assert kinds == [nn.Linear, nn.GELU, Dropout, nn.Linear, Dropout]


def test_blocks_of_vit_are_residual_and_pre_norm() -> None:
    block = build(vit(width=16, depth=1), spec(8)).features.blocks[0].eval()
    tokens = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)) * 3
    middle = tokens + block.attention(nn.functional.layer_norm(tokens, (16,)))
    torch.testing.assert_close(block(tokens), middle + block.mlp(nn.functional.layer_norm(middle, (16,))))


def test_vit_gives_the_class_token_and_drops_parts_of_its_embedding() -> None:
    toy = spec(32)
    encoder = build(vit(layer_norm=False), toy).features
    encoder.blocks = nn.Identity()
    expected = (encoder.class_token + encoder.positions[:, :1]).flatten().expand(2, -1)
    torch.testing.assert_close(encoder.eval()(images_of(toy)).flatten(1), expected)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dropped = (encoder.train()(images_of(toy)) == 0).float().mean()
    assert abs(dropped - 0.1) < 0.05


def test_class_token_and_positions_of_vit_start_standard_normal() -> None:
    encoder = build(vit(), spec(32)).features
    for tokens in (encoder.class_token, encoder.positions):
        assert abs(tokens.mean()) < 0.2
        assert abs(tokens.std() - 1) < 0.15


def test_vit_reads_every_patch_where_it_is() -> None:
    """The linear layer sees the pixels of one patch; patches come row by row."""
    toy = spec((8, 12), channels=1)
    network = build(vit(width=16, depth=1), toy)
    seen: list[Tensor] = []
    network.features.embed.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    image = torch.arange(96.0).reshape(1, 1, 8, 12)
    network(image)
    patches = [
        image[0, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten() for row in (0, 1) for column in (0, 1, 2)
    ]
    assert torch.equal(seen[0][0], torch.stack(patches))


def test_attention_is_the_formula() -> None:
    toy = spec(8)
    attention = build(vit(width=16, depth=1), toy).features.blocks[0].attention.eval()
    tokens = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    query, key, value = (part.unflatten(2, (8, 2)).transpose(1, 2) for part in attention.to_qkv(tokens).split(16, dim=2))
    mixed = nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attention(tokens), attention.project(mixed.transpose(1, 2).flatten(2)))


def test_vgg_in_the_high_form_repeats_small_maps() -> None:
    network = build(vgg11(width=1, form="high"), spec(32))
    maps = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 8, 2, 2)
    pooled = network.pool(maps)[0, 0]
    assert pooled.shape == (7, 7)
    assert pooled[0].tolist() == [1, 1, 1, 2, 2, 2, 2]  # the middle window overlaps both
    assert pooled[-1].tolist() == [3, 3, 3, 4, 4, 4, 4]


def test_instance_norm_is_per_image_and_channel_and_affine() -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 5 + 2
    norm = instance_norm(3)
    out = norm(images).detach()
    torch.testing.assert_close(out.mean((2, 3)), torch.zeros(2, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.var((2, 3), correction=0), torch.ones(2, 3), rtol=0, atol=1e-4)
    assert [tuple(parameter.shape) for parameter in norm.parameters()] == [(3,), (3,)]
    assert not list(norm.buffers())


@pytest.mark.parametrize(
    ("name", "dims", "num"), [("batch", (0, 2, 3), 16), ("layer", (1, 2, 3), 8 * 25 * 2), ("instance", (2, 3), 16)]
)
def test_norm_layers_normalise_over_the_dimensions_they_should(name: Any, dims: tuple[int, ...], num: int) -> None:
    images = torch.randn(4, 8, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    norm = norm_layer(name, (8, 5, 5))
    out = norm(images).detach()
    centred = images - images.mean(dims, keepdim=True)
    expected = centred / (centred.square().mean(dims, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert num_parameters(norm) == num


def test_group_norm_has_four_groups() -> None:
    images = torch.randn(4, 8, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    out = norm_layer("group", (8, 5, 5))(images).detach().unflatten(1, (4, 2))
    torch.testing.assert_close(out.mean((2, 3, 4)), torch.zeros(4, 4), rtol=0, atol=1e-5)
    assert out.mean((3, 4)).abs().max() > 0.05
