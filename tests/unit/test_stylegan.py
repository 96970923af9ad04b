"""StyleGAN generators: descriptions, schedules, the fast form's own functions, what is refused, and random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import pytest
import torch
from golden_stylegan import describe as golden_description
from golden_stylegan import network as golden_network
from golden_stylegan import weights as golden_weights
from torch import Tensor

from ddbench import registry
from ddbench.api import Spec
from ddbench.errors import ConfigError, DataError
from ddbench.suite.stages import PlanningRun
from ddbench.testing import toy_run
from ddbench_plugins.generators.stylegan_random import RandomStyleGAN, random_weights
from ddbench_plugins.spaces.layered import Layered
from ddbench_plugins.stylegan import network
from ddbench_plugins.stylegan.axes import Axes
from ddbench_plugins.stylegan.description import count_parameters, read, write
from ddbench_plugins.stylegan.fast import FilteredLeakyReLU, ModulatedConvolution, Resampling, resampling
from ddbench_plugins.stylegan.filters import factors
from ddbench_plugins.stylegan.network import StyleGAN, asked_classes, build
from ddbench_plugins.stylegan.schedule import Schedule, describe, filters, planned, stylegan3, stylegan_xl
from perf.saved import peak_saved_bytes

CPU = torch.device("cpu")
SIZES_128 = [1024 * 36**2] * 10 + [1024 * 52**2] * 5 + [1024 * 84**2] * 5 + [1024 * 148**2]
SIZES_128 += [width * 148**2 for width in (861, 724, 609, 512)] + [512 * 128**2, 3 * 128**2]


def spec_of(side: int, num_classes: int = 10, channels: int = 3, indices: tuple[int, ...] = ()) -> Spec:
    names = tuple(f"class {label}" for label in range(num_classes))
    return Spec("toy", (channels, side, side), names, (0.5,) * channels, (0.25,) * channels, class_indices=indices)


def drawn(of: Schedule, precision: str = "float64", form: str = "fast") -> StyleGAN:
    """Random weights with biases, magnitudes and a Fourier style that matter."""
    found, rng = describe(of), torch.Generator().manual_seed(3)
    tensors = random_weights(found, toy_run(), 0) | filters(of)
    for key, tensor in tensors.items():
        if key.endswith("bias") and "affine" not in key:
            tensors[key] = 0.3 * torch.randn(tensor.shape, generator=rng)
        if key.endswith("magnitude_ema"):
            tensors[key] = 0.5 + torch.rand((), generator=rng)
        if key.endswith("input.affine.weight"):
            tensors[key] = torch.randn(tensor.shape, generator=rng)
    return build(found, tensors, CPU, precision, form)


def codes(made: StyleGAN, num: int = 2) -> Tensor:
    """Other ones for every layer."""
    rng = torch.Generator().manual_seed(7)
    return torch.randn(num, made.num_codes, made.description.w_dim, generator=rng).to(made.input.weight.dtype)


# ---------------------------------------------------------------- descriptions


def test_a_description_comes_back_as_it_was_written() -> None:
    for case in ("sr32", "plain32"):
        of = golden_description(case)
        assert read(write(of), "it") == of
    assert json.loads(write(of))["layers"][0]["padding"] == [9, 8, 9, 8]


def changed(**values: Any) -> bytes:
    return json.dumps(json.loads(write(golden_description("sr32"))) | values).encode()


def with_layer(number: int, **values: Any) -> bytes:
    content = json.loads(write(golden_description("sr32")))
    content["layers"][number] |= values
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "JSON|truncated"),
        (b"\xff\xfe", "malformed"),
        (b"[" * 5000, "is not one of a StyleGAN generator"),
        (b" " * (1 << 20) + b"{}", "larger than 1 MiB"),
        (changed(kind="dcgan"), "'dcgan'"),
        (changed(schema=2), "2"),
        (changed(z_dim=0), r"Expected `int` >= 1 - at `\$.z_dim`"),
        (changed(output_scale=-1), "output_scale"),
        (changed(w_dim=10**9), "w_dim"),
        (changed(extra=1), "unknown field `extra`"),
        (changed(num_ws=12), "'num_ws' is 12, and 12 layers take 13 codes"),
        (changed(img_channels=1), "gives 3 channels and images have 1"),
        (changed(tensors={"file": "../x", "sha256": "0" * 64}), "tensors.file"),
        (with_layer(0, name="synthesis.x"), "matching regex"),
        (with_layer(1, name="L0_36_8"), "names of their own"),
        (with_layer(3, out_channels=9), "takes 8 channels and gets 9"),
        (with_layer(3, is_torgb=True), "the last layer, and no other"),
        (with_layer(11, up_factor=2), "must have kernel 1"),
        (with_layer(2, up_factor=0), "up_factor"),
        (with_layer(2, padding=[1, 2, 3]), "padding"),
        (with_layer(2, conv_clamp=0), "conv_clamp"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(content: bytes, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        read(content, "it.json")
    assert "it.json" in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("side", "num_ws", "parameters"),
    [(16, 12, 17_997_383), (32, 17, 84_592_199), (64, 22, 134_409_799), (128, 27, 158_741_379), (256, 32, 166_267_046),
     (512, 37, 168_362_273)],
)  # fmt: skip
def test_published_models_have_their_codes_and_parameters(side: int, num_ws: int, parameters: int) -> None:
    of = describe(stylegan_xl(side, 1000))
    assert (of.num_ws, of.img_resolution, count_parameters(of)) == (num_ws, side, parameters)


def test_the_smaller_model_of_cifar10() -> None:
    of = describe(stylegan_xl(32, 10, stem_layers=6))
    assert (of.num_ws, count_parameters(of)) == (13, 78_292_551)
    assert [layer.name for layer in of.layers[3:6]] == ["L3_36_1024", "L5_36_1024", "L6_52_1024"]


def test_latents_of_every_layer_have_the_published_sizes() -> None:
    """F_0 .. F_26 of the 128-px model, in numbers an image."""
    layers = planned(stylegan_xl(128, 1000))
    first = layers[0].before
    sizes = [first.channels * first.size**2, *(layer.after.channels * layer.after.size**2 for layer in layers)]
    assert sizes == SIZES_128
    assert [round(sizes[n] / 1e6, 2) for n in (12, 16, 20)] == [2.77, 7.23, 22.43]


def test_a_narrow_model_makes_maps_of_these_sides() -> None:
    made = drawn(stylegan_xl(128, 3, width=4))
    with torch.no_grad():
        f, w = None, codes(made, 1)
        for n in range(made.depth + 1):
            f = made.synthesize(w, f, max(n - 1, 0), n)
            wide = {20: 148, 25: 128, 26: 128}.get(n, 36 if n < 10 else 52 if n < 15 else 84 if n < 20 else 148)
            assert f.shape[2:] == (wide, wide)


def test_stylegan3_has_the_layers_of_published_random_generators() -> None:
    of = describe(stylegan3(256, 0, 17))
    assert (of.depth, of.layers[15].name, {layer.conv_kernel for layer in of.layers[:-1]}) == (18, "L15_276_128", {3})
    assert describe(stylegan3(32, 0, 10)).depth == 11


# ---------------------------------------------------------------- the fast form


def a_resampling(radial: bool, clamp: float | None) -> Resampling:
    layer = planned(stylegan_xl(32, 0, width=8))[2 if radial else 8]
    tensors = {"weight": torch.zeros(1), "up_filter": layer.up_filter, "down_filter": layer.down_filter}
    shape = msgspec.structs.replace(layer.shape, conv_clamp=clamp, padding=(9, 10, 8, 9))
    return resampling(shape, tensors, (7, 6), torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("clamp", [None, 0.9])
@pytest.mark.parametrize("radial", [False, True])
def test_the_filtered_activation_has_the_slope_of_its_value(radial: bool, clamp: float | None) -> None:
    rng = torch.Generator().manual_seed(1)
    y = torch.randn(2, 3, 7, 6, generator=rng, dtype=torch.float64).requires_grad_()
    scale = (0.5 + torch.rand(2, 3, generator=rng, dtype=torch.float64)).requires_grad_()
    bias = torch.randn(3, generator=rng, dtype=torch.float64)
    how = a_resampling(radial, clamp)
    assert (len(how.down.pairs) > 2) is radial
    assert torch.autograd.gradcheck(lambda *leaves: FilteredLeakyReLU.apply(*leaves, bias, how), (y, scale))


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_modulated_convolution_has_the_slope_of_its_value(kernel: int) -> None:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 5, 4, generator=rng, dtype=torch.float64).requires_grad_()
    style = torch.randn(2, 3, generator=rng, dtype=torch.float64).requires_grad_()
    weight = torch.randn(4, 3, kernel, kernel, generator=rng, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *leaves: ModulatedConvolution.apply(*leaves, weight), (x, style))


@pytest.mark.slow
def test_a_chunk_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    made, (w, grads) = drawn(stylegan_xl(32, 3, width=8, stem_layers=4)), (None, [])
    for size in (1, 5, 64):
        monkeypatch.setattr("ddbench_plugins.stylegan.fast.MAPS_AT_ONCE", size)
        w = codes(made).requires_grad_()
        made.synthesize(w, None, 0, made.depth).square().sum().backward()
        grads.append(w.grad)
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0], rtol=1e-10, atol=1e-12)


SMALL = [stylegan_xl(32, 3, width=16, stem_layers=6), stylegan3(32, 0, 10, width=16)]


@pytest.mark.slow
@pytest.mark.parametrize("of", SMALL, ids=["stylegan-xl", "stylegan3"])
def test_plain_and_fast_agree(of: Schedule) -> None:
    """In float64 up to the rounding of its radial filters' factors, with gradients of codes and features."""
    found = []
    for form in ("plain", "fast"):
        made = drawn(of, form=form)
        w = codes(made).requires_grad_()
        f = made.synthesize(w.detach(), None, 0, 3).requires_grad_()
        pixels = made.synthesize(w, f, 3, made.depth)
        (pixels * torch.linspace(-1, 1, pixels.numel(), dtype=torch.float64).view_as(pixels)).sum().backward()
        found.append((made.synthesize(w, None, 0, made.depth).detach(), pixels.detach(), w.grad, f.grad))
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-8, atol=1e-8 * float(plain.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", "fast"])
def test_0_to_k_and_then_to_the_end_is_the_whole(form: str) -> None:
    for of in SMALL:
        made = drawn(of, form=form)
        w = codes(made)
        with torch.no_grad():
            whole, f = made.synthesize(w, None, 0, made.depth), None
            for k in range(made.depth + 1):
                f = made.synthesize(w, f, max(k - 1, 0), k)
                assert float((made.synthesize(w, f, k, made.depth) - whole).abs().max()) <= 1e-10


def walked(made: Any, w: Tensor) -> None:
    made.synthesize(w, None, 0, made.depth).sum().backward()


@pytest.mark.slow
def test_what_autograd_keeps_is_two_maps_a_layer() -> None:
    """Not those at twice the resolution, and nothing of the weights' gradients; the plain form keeps several times as much."""
    of = stylegan_xl(64, 3, width=32)
    kept = {}
    for form in ("plain", "fast"):
        made = drawn(of, "float32", form)
        w, first = codes(made, 1).requires_grad_(), planned(of)[0].before
        kept[form] = peak_saved_bytes(partial(walked, made, w))
    sizes = [first.channels * first.size**2 * 6]  # F_0 and what makes the waves
    for layer in planned(of):
        grown = layer.before.size + layer.shape.conv_kernel - 1
        sizes.append(layer.before.channels * layer.before.size**2 + layer.after.channels * grown**2)
    assert kept["fast"] <= 4 * 1.15 * sum(sizes)
    assert kept["plain"] > 4 * kept["fast"]


def test_layers_before_the_entry_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    made = drawn(SMALL[0])
    w = codes(made)
    f = made.synthesize(w, None, 0, 5).detach()
    ran = []
    for number, layer in enumerate(made.layers):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    monkeypatch.setattr(made.input, "forward", lambda code: pytest.fail("the input was computed"))
    made.synthesize(w, f, 5, made.depth)
    assert ran == list(range(5, made.depth))


@pytest.mark.parametrize("columns", [1, 5, 48])
def test_products_along_axes_are_those_of_whole_matrices(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pairs, growing and shrinking, with a column of zeros."""
    monkeypatch.setattr("ddbench_plugins.stylegan.axes.COLUMNS_AT_ONCE", columns)
    rng = torch.Generator().manual_seed(1)
    for before, after in ((6, 11), (11, 6)):
        band = torch.ones(before, after, dtype=torch.float64).triu(-1).tril(2)
        band[:, 3] = 0
        drawn = [torch.randn(2, before, after, generator=rng, dtype=torch.float64).unbind() for _ in range(2)]
        pairs = [(v.t(), h * band) for v, h in drawn]
        maps = torch.randn(3, before, before, generator=rng, dtype=torch.float64)
        wanted = sum(v @ maps @ h for v, h in pairs)
        torch.testing.assert_close(Axes(pairs, CPU, torch.float64)(maps), wanted, rtol=1e-12, atol=1e-12)


def test_factors_of_a_filter_give_it_back() -> None:
    radial = planned(stylegan_xl(32, 0))[5].down_filter
    assert radial is not None
    for accuracy in (1e-7, 1e-14):
        parts = factors(radial, accuracy)
        made = sum(column[:, None] * row for column, row in parts)
        assert float((made - radial.double()).abs().max()) <= accuracy * float(radial.max())
        assert len(parts) <= 8


def test_an_image_hangs_on_no_other_of_its_batch() -> None:
    made = golden_network("sr32", precision="float64")
    w = codes(made, 3)
    with torch.no_grad():
        together = made.synthesize(w, None, 0, made.depth)
        alone = made.synthesize(w[1:2], None, 0, made.depth)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-12, atol=1e-13)


def test_half_precision_does_not_overflow() -> None:
    """Large features and codes: float16 ends at 65,504."""
    made = golden_network("sr32", precision="float16")
    w = 20 * codes(made)
    with torch.no_grad():
        f = 60 * made.synthesize(w, None, 0, 6)
        assert f.dtype == torch.float32
        assert made.synthesize(w, f, 6, made.depth).isfinite().all()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("key", "tensor", "sentence"),
    [
        ("synthesis.L6_52_8.weight", None, "is missing"),
        ("synthesis.L6_52_8.weight", torch.zeros(8, 8, 1, 1), r"must have the shape \[8, 8, 3, 3\], got \[8, 8, 1, 1\]"),
        ("synthesis.L6_52_8.bias", torch.full((8,), torch.nan), "not finite"),
        ("synthesis.L6_52_8.bias", torch.zeros(8, dtype=torch.int64), "floating-point"),
        ("synthesis.L6_52_8.up_filter", None, "is missing"),
        ("synthesis.L6_52_8.up_filter", torch.ones(2, 3), "filter"),
        ("synthesis.L6_52_8.up_filter", torch.zeros(12), r"the filter 'synthesis\.L6_52_8\.up_filter' of the generator is zero"),
        ("synthesis.L6_52_8.up_filter", torch.ones(257), "at most 256, got \\[257\\]"),
        ("synthesis.L6_52_8.up_filter", torch.ones(12), "padding does not fit|give images of"),
        ("mapping.embed.weight", torch.zeros(24, 7), "do not fit each other"),
        ("mapping.embed.weight", torch.zeros(9, 20), r"classes .* are 0..8, and 9 is asked for"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_in_one_sentence(key: str, tensor: Tensor | None, sentence: str) -> None:
    tensors = golden_weights("sr32") | ({} if tensor is None else {key: tensor})
    if tensor is None:
        del tensors[key]
    with pytest.raises((DataError, ConfigError), match=sentence) as caught:
        build(golden_description("sr32"), tensors, CPU, classes=range(10))
    assert "\n" not in str(caught.value)


def test_maps_between_filters_and_of_layers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small description may say factors and sides whose maps would fill any memory."""
    of, tensors = golden_description("sr32"), golden_weights("sr32")
    first = msgspec.structs.replace(of.layers[0], up_factor=8, padding=(0, 0, 0, 0))
    wide = msgspec.structs.replace(of, input=msgspec.structs.replace(of.input, size=(4096, 4096)), layers=(first, *of.layers[1:]))
    tensors[f"synthesis.{first.name}.up_filter"] = torch.ones(12)
    with pytest.raises(DataError, match=rf"layer '{first.name}' would have maps of side 327\d\d between its filters"):
        build(wide, tensors, CPU)
    monkeypatch.setattr(network, "MAX_MAP", 8 * 52 * 52 - 1)
    with pytest.raises(DataError, match=rf"gives maps of more than {8 * 52 * 52 - 1} numbers"):
        build(of, golden_weights("sr32"), CPU)


def test_which_class_the_network_is_asked_for() -> None:
    imagenet, ten, free = (describe(stylegan_xl(32, c_dim, width=4)) for c_dim in (1000, 10, 0))
    subset = spec_of(32, 3, indices=(217, 0, 999))
    assert asked_classes(imagenet, subset, "it") == (217, 0, 999)
    assert asked_classes(ten, spec_of(32), "it") == tuple(range(10))
    assert asked_classes(free, subset, "it") is None
    for of, spec, sentence in (
        (imagenet, spec_of(32), "knows 1000 classes and data set 'toy' has 10"),
        (ten, subset, "knows 10 classes and data set 'toy' has 3"),
        (ten, spec_of(16), "makes images of 3 x 32 x 32 and data set 'toy' has 3 x 16 x 16"),
        (free, spec_of(32, channels=1), "makes images of 3 x 32 x 32"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            asked_classes(of, spec, "it")


def test_codes_are_of_the_class_that_was_asked_for() -> None:
    of, rng = golden_description("sr32"), torch.Generator()
    made = build(of, golden_weights("sr32"), CPU, classes=(7, 2))
    w = made.latents(torch.tensor([1, 0]), rng.manual_seed(5))
    z = torch.randn(2, of.z_dim, generator=rng.manual_seed(5))
    assert torch.equal(w, made.codes(z, torch.tensor([2, 7])))
    assert not torch.equal(w, made.codes(z, torch.tensor([7, 2])))
    assert w.shape == (2, 13, of.w_dim)


# ---------------------------------------------------------------- random weights


@pytest.mark.parametrize("name", ["stylegan-xl-random", "stylegan3-random"])
def test_random_generators_hang_on_their_seed_alone(name: str) -> None:
    run = toy_run(channels=3, side=32)
    made = [registry.generators.make(name, {"width": 8, "seed": seed}).load(run) for seed in (0, 0, 1)]
    w = made[0].latents(torch.tensor([0, 1]), torch.Generator().manual_seed(1))
    with torch.no_grad():
        pixels = [one.synthesize(w, None, 0, one.depth) for one in made]
    assert torch.equal(pixels[0], pixels[1])
    assert not torch.equal(pixels[0], pixels[2])
    other = made[0].latents(torch.tensor([1, 1]), torch.Generator().manual_seed(1))
    assert torch.equal(w[1], other[1])
    assert torch.equal(w[0], other[0]) is (name == "stylegan3-random"), "only a conditional one tells classes apart"


def test_random_weights_are_drawn_as_the_official_code_draws_them() -> None:
    of = describe(stylegan_xl(32, 10, width=64))
    found = random_weights(of, toy_run(), 0)
    assert float(found["mapping.fc0.weight"].std()) == pytest.approx(100, rel=0.05)
    assert float(found["synthesis.L0_36_64.weight"].std()) == pytest.approx(1, rel=0.05)
    assert found["synthesis.input.affine.bias"].tolist() == [1, 0, 0, 0]
    assert not found["synthesis.input.affine.weight"].any()
    assert found["synthesis.L0_36_64.affine.bias"].eq(1).all()
    assert float(found["synthesis.input.freqs"].norm(dim=1).max()) <= of.input.bandwidth
    assert float(found["synthesis.input.freqs"].norm(dim=1).mean()) == pytest.approx(2 / 3 * of.input.bandwidth, rel=0.15)
    assert float(found["synthesis.input.phases"].abs().max()) <= 0.5
    assert found["mapping.embed.weight"].shape == (10, 320)


@pytest.mark.parametrize(
    ("config", "side", "depth"),
    [
        (RandomStyleGAN(), 32, 12), (RandomStyleGAN(stem=10), 32, 16), (RandomStyleGAN(), 128, 26), (RandomStyleGAN(), 256, 31),
        (RandomStyleGAN("stylegan3"), 32, 11), (RandomStyleGAN("stylegan3"), 128, 16), (RandomStyleGAN("stylegan3"), 256, 18),
    ],
)  # fmt: skip
def test_depths_of_random_generators(config: RandomStyleGAN, side: int, depth: int) -> None:
    assert config.depth(PlanningRun(spec_of(side), 1, None)) == depth


def test_random_generators_refuse_other_images() -> None:
    for shape, side in (("stylegan-xl", 28), ("stylegan-xl", 8), ("stylegan3", 512), ("stylegan3", 36)):
        with pytest.raises(ConfigError, match=f"generator '{shape}-random' makes square images of .* has {side} x {side}"):
            RandomStyleGAN(shape).depth(PlanningRun(spec_of(side), 1, None))
    for settings in ({"width": -1}, {"stem": 3}):
        with pytest.raises(ConfigError, match="'width' must be at least 0 and 'stem' 0 or 4 to 64"):
            registry.generators.make("stylegan-xl-random", settings)


@pytest.mark.parametrize("first", [None, 0, 4, 12])
def test_layered_spaces_take_one_code_more_than_layers(first: int | None) -> None:
    run = toy_run(channels=3, side=32, num_classes=2)
    made = RandomStyleGAN(width=8).load(run)
    run, space = replace(run, loaded=made), Layered(first, last=first, clip=0)
    state = space.init(run)
    images = space.decode(state, torch.arange(4), run)
    assert images.shape == (4, 3, 32, 32)
    if first != 12:
        assert state.params["w"].shape == (4, 13, 512)
        whole = run.spec.normalise(made.synthesize(state.params["w"], None, 0, made.depth))
        torch.testing.assert_close(images, whole, rtol=1e-5, atol=1e-5)
