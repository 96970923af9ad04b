"""Our StyleGAN against the official code's numbers, in the order in which a wrong one names the culprit.

Limits are in units of the standard deviation of the whole expected tensor, for float32 on a CPU: mapping 5e-5, features and
images 3e-4 (the worst value), gradients 1e-2 (root mean square), filters 1e-6.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_stylegan import CASES, archive, attributes, describe, meta, network, tensor, weights
from torch import Tensor

from ddbench_plugins.stylegan.filters import lowpass
from ddbench_plugins.stylegan.network import check_tensors
from ddbench_plugins.stylegan.schedule import HEAD, Schedule, Stage, planned

FORMS = ("plain", "fast")
MAPPED, SHOWN, SLOPE, DESIGNED = 5e-5, 3e-4, 1e-2, 1e-6
SCHEDULES = {
    "sr32": Schedule(16, 10, 64, 3, 192, 8, 16, (Stage(6, 1, True), HEAD)),
    "sr128": Schedule(16, 12, 64, 3, 384, 6, 16, (Stage(10, 1, True), HEAD, HEAD, HEAD)),
    "plain32": Schedule(16, 0, 64, 3, 96, 6, 32, (Stage(8, 3, False),)),
}
both_forms = pytest.mark.parametrize("form", FORMS)
all_cases = pytest.mark.parametrize("case", CASES)


def worst(got: Tensor, case: str, key: str) -> float:
    wanted = tensor(case, key)
    assert got.shape == wanted.shape
    return float((got.detach() - wanted).abs().max() / wanted.std(correction=0))


def typical(got: Tensor | None, case: str, key: str) -> float:
    wanted = tensor(case, key)
    assert got is not None
    assert got.shape == wanted.shape
    return float((got - wanted).square().mean().sqrt() / wanted.std(correction=0))


def on_grid(f: Tensor) -> Tensor:
    step = 5 if f.shape[2] <= 64 else 11
    return f[:, ::2, 1::step, 2::step]


def is_map(got: Tensor, case: str, key: str, limit: float = SHOWN, how=worst) -> None:
    """A feature map against its summary: shape, mean and deviation of each channel, values on a grid."""
    assert list(got.shape) == tensor(case, f"{key}/shape").tolist()
    assert how(on_grid(got.detach()), case, f"{key}/grid") <= limit
    whole = got.detach().double()
    spread = float(tensor(case, f"{key}/std").square().mean().sqrt())
    for name, value in (("mean", whole.mean((2, 3))), ("std", whole.std((2, 3), correction=0))):
        assert float((value - tensor(case, f"{key}/{name}")).abs().max()) <= limit * spread


@all_cases
def test_layers_filters_and_paddings_are_those_of_the_schedule(case: str) -> None:
    of, layers = describe(case), planned(SCHEDULES[case])
    assert [layer.shape.name for layer in layers] == [shape.name for shape in of.layers] == meta(case)["layer_names"]
    for layer, shape in zip(layers, of.layers, strict=True):
        official = attributes(case, f"synthesis.{shape.name}")
        for side in ("before", "after"):
            signal, word = getattr(layer, side), {"before": "in", "after": "out"}[side]
            assert [signal.size] * 2 == official[f"{word}_size"]
            assert (signal.rate, signal.channels) == (official[f"{word}_sampling_rate"], official[f"{word}_channels"])
            assert (signal.cutoff, signal.half_width) == pytest.approx(
                (official[f"{word}_cutoff"], official[f"{word}_half_width"])
            )
        clamp = {"conv_clamp": shape.conv_clamp}  # a setting of the model, not of the schedule
        assert type(shape)(**{name: getattr(layer.shape, name) for name in shape.__struct_fields__} | clamp) == shape
        for name in ("up_filter", "down_filter"):
            stored, ours = weights(case).get(f"synthesis.{shape.name}.{name}"), getattr(layer, name)
            assert (stored is None) == (ours is None)
            if stored is not None:
                assert float((stored - ours).abs().max()) <= DESIGNED


def test_filters_have_the_values_of_the_official_design() -> None:
    half = [0.000791902, 0.010018318, 0.038949523, 0.09241279, 0.15652561, 0.20130186]
    straight, radial = lowpass(12, 2.0, 12.0, 32.0), lowpass(12, 2.0, 12.0, 32.0, radial=True)
    assert straight.tolist() == pytest.approx(half + half[::-1], abs=1e-7)
    found = [float(radial[at]) for at in ((0, 0), (5, 5), (5, 6), (0, 5), (3, 4))]
    assert found == pytest.approx([8.4121e-07, 0.03875488, 0.03875488, 0.00020526213, 0.01458485], rel=1e-4)
    assert lowpass(1, 2.0, 12.0, 32.0) is None


@all_cases
def test_the_mapping(case: str) -> None:
    made = network(case)
    classes = tensor(case, "in/c").argmax(1) if f"{case}/in/c" in archive() else None
    z = tensor(case, "in/z")
    assert worst(made.codes(z, classes), case, "mapping/ws") <= MAPPED
    assert worst(made.codes(z, classes, psi=0.6), case, "mapping/ws_psi0.6") <= MAPPED
    assert worst(made.codes(z, classes, psi=0.6, cutoff=3), case, "mapping/ws_psi0.6_cutoff3") <= MAPPED
    if classes is not None:
        assert worst(made.codes(z, (classes + 1) % 10), case, "mapping/ws") > MAPPED, "the class makes no difference"


@both_forms
@all_cases
def test_every_layer_and_the_image(case: str, form: str) -> None:
    made, w, f = network(case, form), tensor(case, "syn/ws"), None
    with torch.no_grad():
        for n in range(made.depth + 1):
            f = made.features(w, f, max(n - 1, 0), n)
            is_map(f, case, f"syn/f/{n}")
            if f"{case}/syn/f/{n}/full0" in archive():
                assert worst(f[0], case, f"syn/f/{n}/full0") <= SHOWN
        image = 2 * made.synthesize(w, None, 0, made.depth) - 1
        assert worst(image, case, "syn/img") <= SHOWN
        classes = tensor(case, "in/c").argmax(1) if f"{case}/in/c" in archive() else None
        w = made.codes(tensor(case, "in/z"), classes, psi=0.8)
        assert worst(2 * made.synthesize(w, None, 0, made.depth) - 1, case, "syn/img_from_z") <= SHOWN


@both_forms
def test_each_layer_by_itself(form: str) -> None:
    """From the official features before it, so that no layer hides another's fault."""
    made, w = network("sr32", form), tensor("sr32", "syn/ws")[:1]
    with torch.no_grad():
        for n in range(made.depth):
            f = made.features(w, tensor("sr32", f"syn/f/{n}/full0")[None], n, n + 1)
            assert worst(f[0], "sr32", f"syn/f/{n + 1}/full0") <= SHOWN


@both_forms
@all_cases
def test_gradients_of_codes(case: str, form: str) -> None:
    made, w = network(case, form), tensor(case, "syn/ws").requires_grad_()
    image = 2 * made.synthesize(w, None, 0, made.depth) - 1
    (image * tensor(case, "grad/probe")).sum().backward()
    assert typical(w.grad, case, "grad/syn_ws") <= SLOPE


@both_forms
@pytest.mark.parametrize(("case", "n"), [("sr32", 3), ("sr32", 8), ("plain32", 4)])
def test_entering_at_a_layer(case: str, n: int, form: str) -> None:
    made, key = network(case, form), f"fspace/{n}"
    w, f = tensor(case, f"{key}/ws").requires_grad_(), tensor(case, f"{key}/f").requires_grad_()
    image = 2 * made.synthesize(w, f, n, made.depth) - 1
    assert worst(image, case, f"{key}/img") <= SHOWN
    (image * tensor(case, "grad/probe")).sum().backward()
    assert typical(w.grad, case, f"{key}/grad_ws") <= SLOPE
    assert f.grad is not None
    is_map(f.grad, case, f"{key}/grad_f", SLOPE, typical)
    assert not w.grad[:, : n + 1].any(), "codes of layers before the entry have no gradient"
    is_map(made.features(w, f, n, n + 1), case, f"{key}/next_f")


def test_every_tensor_of_the_file_was_looked_at() -> None:
    """Its keys, by what tests above ask for."""
    used = {"meta", "in/z", "in/c", "grad/probe", "grad/syn_ws", "syn/ws", "syn/img", "syn/img_from_z"}
    used |= {f"mapping/ws{words}" for words in ("", "_psi0.6", "_psi0.6_cutoff3")}
    maps = ("shape", "mean", "std", "grid", "full0")
    for key in archive():
        case, _, rest = key.partition("/")
        if rest.startswith("sd/") or rest in used:
            continue
        place, _, last = rest.rpartition("/")
        known = place.startswith("syn/f/") or place.startswith("fspace/")
        assert known, key
        assert last in (*maps, "f", "ws", "img", "grad_ws"), key
    for case in CASES:
        check_tensors(describe(case), weights(case))
        assert all(np.isfinite(value).all() for key, value in archive().items() if key.startswith(f"{case}/sd/"))


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.slow
@pytest.mark.parametrize("case", ["sr32", "sr128"])
def test_half_precision_is_as_close_as_it_says(case: str, precision: str) -> None:
    """Of images: 5e-2 at worst and 5e-3 typically in float16; in bfloat16, with three bits less, eight times as much."""
    made, w, slack = (
        network(case, precision=precision),
        tensor(case, "syn/ws").requires_grad_(),
        1 if precision == "float16" else 8,
    )
    image = 2 * made.synthesize(w, None, 0, made.depth) - 1
    assert image.dtype == torch.float32
    assert worst(image, case, "syn/img") <= slack * 5e-2
    assert typical(image.detach(), case, "syn/img") <= slack * 5e-3
    (image * tensor(case, "grad/probe")).sum().backward()
    assert typical(w.grad, case, "grad/syn_ws") <= slack * 5e-2
    assert worst(image, case, "syn/img") > SHOWN, "it computed in float32"
