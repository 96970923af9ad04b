"""Siamese augmentation against plain formulas, one image and one pixel at a time."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddbench.errors import ConfigError
from ddbench.ops.augment import OPS, SiameseAugment, SiameseView, _theta, plain_grid

FULL = "color_crop_cutout_flip_scale_rotate"
EACH = pytest.mark.parametrize("op", sorted(OPS))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(num: int, side: int = 8, channels: int = 3, dtype: torch.dtype = torch.float64, width: int = 0) -> Tensor:
    return torch.randn(num, channels, side, width or side, generator=rng(7), dtype=dtype)


def chosen(op: str, *values: float) -> SiameseView:
    """The siamese view of an operation with these uniforms."""
    return SiameseView(SiameseAugment(op), op, torch.tensor(values)[:, None], None)


# The formulas of the protocol for one image [C,H,W] and its parameters, written with loops.


def plain_color(image: Tensor, u: list[float]) -> Tensor:
    image = image + (u[0] - 0.5) * 1.0
    channels, height, width = image.shape
    out = torch.empty_like(image)
    for y in range(height):
        for x in range(width):
            grey = sum(image[c, y, x] for c in range(channels)) / channels
            for c in range(channels):
                out[c, y, x] = (image[c, y, x] - grey) * (2.0 * u[1]) + grey
    mean = out.sum() / out.numel()
    return (out - mean) * (u[2] + 0.5) + mean


def plain_crop(image: Tensor, u: list[float]) -> Tensor:
    height, width = image.shape[1:]
    largest_y, largest_x = int(height * 0.125 + 0.5), int(width * 0.125 + 0.5)
    dy = math.floor(u[0] * (2 * largest_y + 1)) - largest_y
    dx = math.floor(u[1] * (2 * largest_x + 1)) - largest_x
    out = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                out[:, y, x] = image[:, y + dy, x + dx]
    return out


def plain_cutout(image: Tensor, u: list[float]) -> Tensor:
    height, width = image.shape[1:]
    out = image.clone()
    box_y, box_x = int(height * 0.5 + 0.5), int(width * 0.5 + 0.5)
    centre_y = math.floor(u[0] * (height + 1 - box_y % 2))
    centre_x = math.floor(u[1] * (width + 1 - box_x % 2))
    for y in range(centre_y - box_y // 2, centre_y - box_y // 2 + box_y):
        for x in range(centre_x - box_x // 2, centre_x - box_x // 2 + box_x):
            if 0 <= y < height and 0 <= x < width:
                out[:, y, x] = 0
    return out


def plain_flip(image: Tensor, u: list[float]) -> Tensor:
    return torch.stack([image[:, :, -1 - x] for x in range(image.shape[2])], 2) if u[0] < 0.5 else image


def bilinear(image: Tensor, y: float, x: float) -> Tensor:
    """The colour [C] at a fractional pixel; zero outside."""
    channels, height, width = image.shape
    value = torch.zeros(channels, dtype=image.dtype)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                value += (1 - abs(y - row)) * (1 - abs(x - column)) * image[:, row, column]
    return value


def plain_affine(image: Tensor, a: float, b: float, c: float, d: float) -> Tensor:
    """Sample at (a x + b y, c x + d y), corners of the image at -1 and 1."""
    height, width = image.shape[1:]
    out = torch.empty_like(image)
    for row in range(height):
        for column in range(width):
            y, x = 2 * row / (height - 1) - 1, 2 * column / (width - 1) - 1
            at_y, at_x = c * x + d * y, a * x + b * y
            out[:, row, column] = bilinear(image, (at_y + 1) / 2 * (height - 1), (at_x + 1) / 2 * (width - 1))
    return out


def plain_scale(image: Tensor, u: list[float]) -> Tensor:
    sx, sy = (1 / 1.2 + value * (1.2 - 1 / 1.2) for value in u)
    return plain_affine(image, sx, 0, 0, sy)


def plain_rotate(image: Tensor, u: list[float]) -> Tensor:
    angle = (u[0] * 30 - 15) * math.pi / 180
    return plain_affine(image, math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle))


PLAIN = {
    "color": plain_color,
    "crop": plain_crop,
    "cutout": plain_cutout,
    "flip": plain_flip,
    "rotate": plain_rotate,
    "scale": plain_scale,
}


@EACH
@pytest.mark.parametrize("shape", [(8, 8, 3), (9, 9, 3), (9, 12, 3), (8, 8, 1)], ids=str)
def test_every_image_follows_the_plain_formula(op, shape):
    height, width, channels = shape
    images = pictures(6, height, channels, width=width)
    view = SiameseAugment(op).draw(rng(), num=6)
    expected = [PLAIN[op](image, u.tolist()) for image, u in zip(images, view.uniforms.T, strict=True)]
    torch.testing.assert_close(view(images), torch.stack(expected), rtol=0, atol=1e-12)


@EACH
@pytest.mark.parametrize("seed", range(4))
def test_siamese_follows_the_plain_formula(op, seed):
    images = pictures(3)
    view = SiameseAugment(op).draw(rng(seed))
    expected = [PLAIN[op](image, view.uniforms[:, 0].tolist()) for image in images]
    torch.testing.assert_close(view(images), torch.stack(expected), rtol=0, atol=1e-12)


@EACH
def test_one_siamese_view_treats_real_and_synthetic_alike(op):
    real, syn = pictures(5), pictures(2) * 3
    for seed in range(10):
        view = SiameseAugment(op).draw(rng(seed))
        joint = view(torch.cat([real, syn]))
        separate = torch.cat([view(real), view(syn)])
        torch.testing.assert_close(joint, separate, rtol=0, atol=1e-13)
        one_by_one = torch.cat([view(image[None]) for image in torch.cat([real, syn])])
        torch.testing.assert_close(joint, one_by_one, rtol=0, atol=1e-13)


@EACH
def test_images_have_parameters_of_their_own(op):
    images = pictures(1).expand(32, -1, -1, -1)
    out = SiameseAugment(op).draw(rng(1), num=32)(images)
    assert len({tuple(image.flatten().tolist()) for image in out}) >= (2 if op == "flip" else 8)


@EACH
@pytest.mark.parametrize("num", [None, 3])
def test_gradient(op, num):
    images = pictures(3, side=5).requires_grad_()
    view = SiameseAugment(op).draw(rng(3), num)
    assert torch.autograd.gradcheck(view, (images,))


@EACH
@pytest.mark.parametrize("num", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_type_stay(op, num, dtype):
    view = SiameseAugment(op).draw(rng(), num)
    for side in (8, 32):  # the same view, whatever the size
        out = view(pictures(4, side, dtype=dtype))
        assert out.shape == (4, 3, side, side)
        assert out.dtype == dtype
        assert out.isfinite().all()


@EACH
def test_same_seed_same_view(op):
    augment, images = SiameseAugment(FULL), pictures(4)
    for seed in range(5):
        one, two = augment.draw(rng(seed), 4), augment.draw(rng(seed), 4)
        assert one.op == two.op
        assert torch.equal(one.uniforms, two.uniforms)
        assert torch.equal(one(images), two(images))


@EACH
@pytest.mark.parametrize("num", [None, 1, 17])
def test_draws_depend_on_operation_and_number_only(op, num):
    weak, strong, plain = rng(), rng(), rng()
    SiameseAugment(op).draw(weak, num)
    view = SiameseAugment(op, brightness=3, crop=0.5, cutout=0.1, flip=0.9, scale=2, rotate=90).draw(strong, num)
    torch.randint(1, (), generator=plain)
    torch.rand(OPS[op][0], num or 1, generator=plain)
    assert torch.equal(weak.get_state(), plain.get_state())
    assert torch.equal(strong.get_state(), plain.get_state())
    assert view.uniforms.shape == (OPS[op][0], num or 1)


def test_global_randomness_is_neither_used_nor_moved():
    before = torch.get_rng_state()
    for num in (None, 4):
        for seed in range(20):
            SiameseAugment(FULL).draw(rng(seed), num)(pictures(4))
    assert torch.equal(before, torch.get_rng_state())


def test_operations_are_equally_likely():
    augment, stream, num = SiameseAugment(FULL), rng(), 6000
    names = [augment.draw(stream).op for _ in range(num)]
    assert set(names) == set(FULL.split("_")) == set(OPS)
    chi2 = sum((names.count(op) - num / 6) ** 2 / (num / 6) for op in OPS)
    assert chi2 < 20.5  # 5 degrees of freedom: exceeded once in a thousand seeds


def test_digits_are_never_flipped():
    augment, stream = SiameseAugment("color_crop_cutout_scale_rotate"), rng()
    assert "flip" not in {augment.draw(stream).op for _ in range(300)}


@pytest.mark.parametrize("strategy", ["", "none"])
@pytest.mark.parametrize("num", [None, 3])
def test_identity(strategy, num):
    images, stream = pictures(3), rng()
    view = SiameseAugment(strategy).draw(stream, num)
    assert view.op == "none"
    assert view(images) is images
    assert torch.equal(stream.get_state(), rng().get_state())


# Ranges of the protocol.


@pytest.mark.parametrize(("side", "largest"), [(32, 4), (64, 8), (128, 16), (256, 32), (512, 64)])
def test_crop_range(side, largest):
    num = 60 * largest
    position = torch.arange(1.0, side + 1).view(1, 1, side, 1).expand(num, -1, -1, -1)  # 1 wide: moves up and down only
    out = SiameseAugment("crop").draw(rng(), num)(position)[:, 0, :, 0]
    middle = side // 2
    shifts = (out[:, middle] - position[0, 0, middle, 0]).long()
    assert set(shifts.tolist()) == set(range(-largest, largest + 1))
    counts = torch.bincount(shifts + largest).double()
    expected = num / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < 2 * len(counts) + 20
    zeros = (out == 0).sum(1)
    assert torch.equal(zeros, shifts.abs())


def test_cutout_area():
    area = 1 - SiameseAugment("cutout").draw(rng(), 5000)(torch.ones(5000, 1, 32, 32)).mean((1, 2, 3))
    assert area.min() >= 0.0625  # a quarter of the box, in a corner; the protocol says 7 % to 25 %
    assert area.max() == 0.25
    assert area.quantile(0.01) > 0.068
    exact = sum(min(32, centre + 8) - max(0, centre - 8) for centre in range(33)) / 33 / 32  # of a side, 0.432
    assert area.mean() == pytest.approx(exact**2, abs=0.002)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), side=st.integers(2, 40), num=st.one_of(st.none(), st.integers(1, 5)))
def test_ranges_hold_for_any_seed_and_size(seed, side, num):
    batch = num or 3
    ones = torch.ones(batch, 1, side, side, dtype=torch.float64)
    box = int(side * 0.5 + 0.5)
    hidden = (SiameseAugment("cutout").draw(rng(seed), num)(ones) == 0).sum((1, 2, 3))
    assert (hidden >= (box // 2) ** 2).all()
    assert (hidden <= box**2).all()
    shown = SiameseAugment("crop").draw(rng(seed), num)(ones).sum((1, 2, 3))
    assert (shown >= (side - int(side * 0.125 + 0.5)) ** 2).all()
    shift = SiameseAugment("color", saturation=0, contrast=1e9).draw(rng(seed), num)(ones) - 1
    assert (shift.abs() <= 0.5 + 1e-5).all()
    for op in ("scale", "rotate"):
        out = SiameseAugment(op).draw(rng(seed), num)(ones)
        assert out.min() >= 0
        assert out.max() <= 1 + 1e-12


@pytest.mark.parametrize("last", [0.0, 1 - 2**-24])  # the ends of what torch.rand gives
@pytest.mark.parametrize("num", [None, 2])
@pytest.mark.parametrize("side", [31, 32, 40, 128])
def test_ends_of_the_uniforms(last, num, side):
    images = torch.arange(1.0, side * side + 1).view(1, 1, side, side).expand(2, -1, -1, -1)
    uniforms = torch.full((2, num or 1), last)
    crop = SiameseView(SiameseAugment("crop"), "crop", uniforms, num)(images)
    largest = int(side * 0.125 + 0.5)
    moved = largest if last else -largest
    assert crop[0, 0, side // 2, side // 2] == images[0, 0, side // 2 + moved, side // 2 + moved]
    cutout = SiameseView(SiameseAugment("cutout"), "cutout", uniforms, num)(images)
    box = int(side * 0.5 + 0.5)
    assert (cutout == 0).sum() == 2 * (box - box // 2 if not last or box % 2 else box // 2) ** 2
    assert cutout[0, 0, -1, -1] == 0 if last else cutout[0, 0, 0, 0] == 0


def test_strengths_in_the_middle_and_at_the_ends():
    images = pictures(2)
    torch.testing.assert_close(chosen("color", 0.5, 0.5, 0.5)(images), images)
    torch.testing.assert_close(chosen("rotate", 0.5)(images), images)
    torch.testing.assert_close(chosen("crop", 0.5, 0.5)(images), images)
    assert torch.equal(chosen("flip", 0.49)(images), images.flip(3))
    assert torch.equal(chosen("flip", 0.5)(images), images)
    grey = chosen("color", 0.5, 0.0, 0.5)(images)  # saturation factor 0
    torch.testing.assert_close(grey, images.mean(1, keepdim=True).expand_as(images))
    shrunk = chosen("scale", 0.9999, 0.9999)(torch.ones(1, 1, 32, 32))
    assert shrunk[0, 0, 0].abs().max() == 0  # a zero border
    assert shrunk[0, 0, 16, 16] == 1
    grown = chosen("scale", 0.0, 0.0)(torch.ones(1, 1, 32, 32))
    torch.testing.assert_close(grown, torch.ones(1, 1, 32, 32))


def test_grey_images():
    images = pictures(4, channels=1)
    assert torch.equal(chosen("flip", 0.1)(images), images.flip(3))
    assert torch.equal(chosen("flip", 0.9)(images), images)
    one, other = chosen("color", 0.3, 0.1, 0.8)(images), chosen("color", 0.3, 0.9, 0.8)(images)
    torch.testing.assert_close(one, other)  # one channel has no saturation


def test_a_view_for_each_image_refuses_other_batches():
    for num in (1, 4):
        view = SiameseAugment(FULL).draw(rng(), num)
        with pytest.raises(ConfigError, match=f"drawn for {num} images and cannot augment 5: draw one with num=5"):
            view(pictures(5))


def test_unknown_operation():
    with pytest.raises(ConfigError) as caught:
        SiameseAugment("color_flop")
    assert str(caught.value) == (
        "unknown augmentation 'flop'. Did you mean 'flip'? A strategy takes: color, crop, cutout, flip, rotate, scale."
    )


@pytest.mark.parametrize("strength", [{"scale": 0.5}, {"rotate": -1}, {"cutout": 1.5}, {"flip": -0.1}], ids=str)
def test_senseless_strength(strength):
    with pytest.raises(ConfigError, match=f"strength '{next(iter(strength))}' must"):
        SiameseAugment(FULL, **strength)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@EACH
@pytest.mark.parametrize("num", [None, 4])
def test_device_gives_the_same_and_is_not_waited_for(op, num):
    images = pictures(4, 32)
    view, moved = SiameseAugment(op).draw(rng(), num), images.cuda().requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = view(moved)
        out.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(out.detach().cpu(), view(images), rtol=1e-4, atol=1e-4)  # its sampler rounds coordinates otherwise


@pytest.mark.parametrize("op", ["scale", "rotate"])
def test_on_squares_aligned_corners_change_nothing(op: str) -> None:
    """So that DSA's code, which does not align them, and MTT's, which does, agree there."""
    images = torch.rand(6, 3, 16, 16, generator=rng(0), dtype=torch.float64)
    view = SiameseAugment(op).draw(rng(1), 6)
    theta = _theta(op, view.uniforms, view.augment).to(images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    torch.testing.assert_close(view(images), F.grid_sample(images, grid, align_corners=False))


def test_the_grid_without_a_product_is_the_same() -> None:
    theta = torch.randn(4, 2, 3, generator=rng(2), dtype=torch.float64)
    torch.testing.assert_close(plain_grid(theta, 5, 7), F.affine_grid(theta, [4, 1, 5, 7], align_corners=True))
