"""Random resized crops: the boxes' distribution, the pixels against slicing and resizing, one draw for a batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ddbench.errors import ConfigError
from ddbench.ops.crops import CropFlip, ShiftFlip
from ddbench.ops.vision import load_torchvision
from ddbench.seeds import stream

IMAGES = torch.rand(64, 3, 24, 32, generator=stream("images"), dtype=torch.float64)


def test_pixels_are_those_of_slicing_and_resizing() -> None:
    view = CropFlip().draw(stream("a"), 64)
    made, boxes = view(IMAGES), view.boxes(24, 32)
    for image, one, box in zip(IMAGES, made, boxes.T, strict=True):
        top, left, tall, wide, mirrored = (int(value) for value in box)
        part = image[None, :, top : top + tall, left : left + wide]
        part = part.flip(3) if mirrored else part
        torch.testing.assert_close(one, F.interpolate(part, (24, 32), mode="bilinear", align_corners=False)[0])


@pytest.mark.parametrize("side", [8, 32, 64])
def test_pixels_are_torchvisions(side: int) -> None:
    """Of RandomResizedCrop, which crops and then resizes, at the border of the box too; also where many images share a draw."""
    resized_crop = load_torchvision().transforms.functional.resized_crop
    images = torch.rand(40, 3, side, side, generator=stream("squares"))
    view = CropFlip(flip=0.0).draw(stream("a"), 40)
    boxes = view.boxes(side, side).T.int().tolist()
    made = view(images)
    for image, one, box in zip(images, made, boxes, strict=True):
        torch.testing.assert_close(one, resized_crop(image, *box[:4], [side, side], antialias=False), rtol=0, atol=2e-5)
    shared = CropFlip(flip=0.0).draw(stream("b"))
    ((top, left, tall, wide, _),) = shared.boxes(side, side).T.int().tolist()
    wanted = resized_crop(images, top, left, tall, wide, [side, side], antialias=False)
    torch.testing.assert_close(shared(images), wanted, rtol=0, atol=2e-5)


def test_boxes_lie_inside_and_cover_the_range() -> None:
    top, left, tall, wide, mirrored = CropFlip().draw(stream("b"), 4000).boxes(64, 64)
    assert bool(((top >= 0) & (left >= 0) & (top + tall <= 64) & (left + wide <= 64)).all())
    share = tall * wide / 64**2
    assert 0.07 < float(share.min()) < 0.1
    assert float(share.max()) > 0.95
    assert 0.7 < float((wide / tall).min()) < float((wide / tall).max()) < 1.42
    assert 0.46 < float(mirrored.mean()) < 0.54
    assert float(left[wide < 32].max()) > 40


def test_the_whole_image_where_no_box_fits() -> None:
    top, left, tall, wide, _ = CropFlip(scale=(1.0, 1.0)).draw(stream("c"), 500).boxes(20, 80)  # aspect 4 is out of bounds
    assert set(zip(*(value.tolist() for value in (top, left, tall, wide)), strict=True)) == {(0, 26, 20, 27)}


def test_one_draw_serves_a_batch_and_repeats_itself() -> None:
    view = CropFlip().draw(stream("d"))
    torch.testing.assert_close(view(IMAGES), torch.cat([view(image[None]) for image in IMAGES]))
    assert torch.equal(CropFlip().draw(stream("d"), 64)(IMAGES), CropFlip().draw(stream("d"), 64)(IMAGES))


def test_identity_is_exact() -> None:
    view = CropFlip(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0).draw(stream("e"), 64)
    square = IMAGES[:, :, :, :24]
    torch.testing.assert_close(view(square), square)


def test_gradients_pass() -> None:
    images = IMAGES[:3].clone().requires_grad_()
    view = CropFlip().draw(stream("f"), 3)
    assert torch.autograd.gradcheck(lambda leaf: view(leaf).square().sum(), images[:, :, :6, :6].detach().requires_grad_())


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ConfigError, match="scale of crops"):
        CropFlip(scale=(0.0, 1.0))
    with pytest.raises(ConfigError, match="drawn for 3 images and cannot augment 64"):
        CropFlip().draw(stream("g"), 3)(IMAGES)


# ---------------------------------------------------------------- shifts


def test_shifts_are_those_of_padding_and_slicing() -> None:
    view = ShiftFlip(4).draw(stream("c"), 64)
    padded = F.pad(IMAGES, (4, 4, 4, 4))
    found = set()
    for image, made, (top, left), mirrored in zip(padded, view(IMAGES), view.shifts.T.tolist(), view.mirrored, strict=True):
        wanted = image[:, top : top + 24, left : left + 32]
        assert torch.equal(made, wanted.flip(2) if mirrored else wanted)
        found |= {top, left}
    assert found == set(range(9))
    assert 16 < int(view.mirrored.sum()) < 48


def test_one_shift_can_serve_a_batch_and_has_a_gradient() -> None:
    view = ShiftFlip(3).draw(stream("d"))
    images = IMAGES[:5].clone().requires_grad_()
    made = view(images)
    assert torch.equal(made[2:3], view(images[2:3]))
    made.square().sum().backward()
    top, left = (int(value) - 3 for value in view.shifts[:, 0])
    kept = images.grad != 0
    assert kept.sum() == 5 * 3 * (24 - abs(top)) * (32 - abs(left))
    with pytest.raises(ConfigError, match="drawn for 4 images and cannot augment 5"):
        ShiftFlip().draw(stream("e"), 4)(IMAGES[:5])
    with pytest.raises(ConfigError, match="at least 0 pixels, got -1"):
        ShiftFlip(-1)
