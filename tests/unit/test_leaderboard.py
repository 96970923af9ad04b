"""Leaderboards join sets and judgements to tables that mix nothing."""

from __future__ import annotations

import re
from dataclasses import replace as replace_all
from typing import Any

import pytest
from msgspec.structs import replace
from synthetic_records import (
    BASE,
    CONVNET,
    FULL_DATA,
    MEAN,
    PROTOCOL,
    RANDOM,
    SOFT,
    TEACHER,
    VERSIONS,
    VIT,
    Judged,
    baseline,
    contents_of,
    judged,
    judgement,
    method,
    numbered,
    ref,
    results,
    toy_plans,
    toy_records,
)

from ddbench.leaderboard.beside import Surroundings
from ddbench.leaderboard.costs import cost_table, of_section
from ddbench.leaderboard.join import results_of
from ddbench.leaderboard.page import page_text
from ddbench.leaderboard.sections import Section, sections
from ddbench.leaderboard.tables import accuracy_table, spread_table
from ddbench.plan import Imported, short

LEVELS = {"convnet": [0.5, 0.52], "vit": [0.4, 0.42]}
SOFTLY: dict[str, Any] = {"protocol": SOFT, "teacher": TEACHER}


def one_section(records: list[Judged]) -> Section:
    (section,) = sections(results(records))
    return section


def page(records: list[Judged]) -> str:
    """Without the legend."""
    return page_text(results(records), Surroundings()).partition("## How to read")[0]


# The join


def test_blocks_of_repeats_are_joined_in_order() -> None:
    one = judged(method("dm", "pixel"), {"convnet": [0.5, 0.6]})
    later = judgement(one.set, CONVNET, [0.8], first=3)
    between = judgement(one.set, CONVNET, [0.7], first=2)
    for more in ([later, between], [between, later]):
        (result,) = results([Judged(one.set, (*more, *one.judgements))])
        assert result.accuracies == {"convnet": (0.5, 0.6, 0.7, 0.8)}


@pytest.mark.parametrize(
    ("first", "accuracies", "sentence"),
    [
        (2, {"convnet": (0.5,)}, "repeats from 2 on of convnet count nowhere: repeat 1 was not judged, or under other versions"),
        (1, {"convnet": (0.5, 0.7, 0.8)}, None),
    ],
    ids=["a gap", "none"],
)
def test_only_repeats_without_a_gap_count(first: int, accuracies: dict[str, Any], sentence: str | None) -> None:
    one = judged(method("dm", "pixel"), {"convnet": [0.5]})
    more = judgement(one.set, CONVNET, [0.7, 0.8], first=first)
    (result,), notes = results_of(contents_of([Judged(one.set, (*one.judgements, more))]))
    assert result.accuracies == accuracies
    assert [sentence in note for note in notes] == ([True] if sentence else [])


def test_a_network_without_the_first_repeat_is_left_out_with_a_sentence() -> None:
    one = judged(method("dm", "pixel"), {"convnet": [0.5]})
    late = judgement(one.set, VIT, [0.7], first=1)
    (result,), (note,) = results_of(contents_of([Judged(one.set, (*one.judgements, late))]))
    assert result.accuracies.keys() == result.judgements.keys() == {"convnet"}
    assert short(one.plan.key) in note
    assert "repeat 1 of vit counts nowhere" in note


def test_a_set_that_no_network_has_judged_is_no_result() -> None:
    one = judged(method("dm", "pixel"), {})
    assert results([one]) == []


def test_networks_of_one_label_and_two_numerics_are_two_networks() -> None:
    """Raised numerics change the key of a judgement, and not the label."""
    one = judged(method("dm", "pixel"), LEVELS)
    newer = judgement(one.set, ref("architectures", "vit", numerics=2), [0.9])
    (result,) = results([Judged(one.set, (*one.judgements, newer))])
    assert sorted(len(values) for name, values in result.accuracies.items() if name.startswith("vit [")) == [1, 2]
    assert result.accuracies["convnet"] == (0.5, 0.52)


def test_judgements_of_two_versions_are_two_rows() -> None:
    """A network that was added after an upgrade of torch stands in a row of its own, named so."""
    one = judged(method("dm", "pixel"), {"convnet": [0.5]})
    newer = judgement(one.set, VIT, [0.4], versions=VERSIONS | {"torch": "2.7.0"})
    rows = one_section([Judged(one.set, (*one.judgements, newer))]).rows
    assert [(row.name, row.networks) for row in rows] == [
        ("dm / pixel [judging.torch=2.6.0]", ("convnet",)),
        ("dm / pixel [judging.torch=2.7.0]", ("vit",)),
    ]


def test_another_draw_is_another_row() -> None:
    one = judged(method("dm", "pixel", seed=1), LEVELS)
    other = judged(method("dm", "pixel", seed=1), LEVELS, draw=5)
    section = one_section([one, Judged(one.set, other.judgements)])
    assert [(row.name, [result.judging.draw for result in row.results]) for row in section.rows] == [
        ("dm / pixel", [1]),
        ("dm / pixel [draw 5]", [5]),
    ]
    assert cost_table(of_section(section))["sets"].tolist() == ["2", "2"]  # both cost their time


# Rows


def test_order_of_rows() -> None:
    names = [row.name for row in one_section(toy_records()).rows]
    methods = [f"{loss} / {space}" for loss in ("dc", "dm") for space in ("glad / cvae", "hpd / cvae", "pixel")]
    assert names == ["random", *methods, "full-data"]


def test_a_rows_numbers_come_from_its_own_sets() -> None:
    plans = [method("dm", "pixel", seed=seed) for seed in (0, 1)]
    values = [{"convnet": [0.60, 0.62], "vit": [0.40, 0.44]}, {"convnet": [0.66, 0.68], "vit": [0.50, 0.50]}]
    others = [judged(method("dm", "glad", seed=seed), LEVELS) for seed in (0, 1)]
    section = one_section([*map(judged, plans, values), *others])
    (line,) = accuracy_table(section).query("method == 'dm / pixel'").to_dict("records")
    assert line["same arch. (convnet)"] == f"64.0 ± {100 * 0.06 / 2**0.5:.1f}"
    assert line["vit"] == line["cross-arch. mean"] == f"46.0 ± {100 * 0.08 / 2**0.5:.1f}"
    assert (line["seeds"], line["networks per seed"], line["KiB"], line["s to distil"]) == ("2", "2", "4.0", "11.0")
    (line,) = spread_table(section).query("method == 'dm / pixel'").to_dict("records")
    assert line["same arch. (convnet)"] == f"{100 * 12.7062 * 0.03:.1f} / 1.4 / 1.5"
    assert line["vit"] == f"{100 * 12.7062 * 0.04:.1f} / 1.4 / 1.6"


def test_the_cross_architecture_mean_leaves_the_backbone_out() -> None:
    values = {"convnet": [0.9, 0.9], "vit": [0.4, 0.4], "resnet18": [0.6, 0.6]}
    section = one_section([judged(method("dm", "pixel"), values)])
    (line,) = accuracy_table(section).to_dict("records")
    assert line["same arch. (convnet)"] == "90.0 ± 0.0 †"
    assert line["cross-arch. mean"] == "50.0 ± 0.0 †"
    (row,) = one_section([judged(method("dm", "pixel"), {"convnet": [0.9]})]).rows
    assert row.cross is None


def test_rows_judged_by_fewer_networks_say_so() -> None:
    values = {"convnet": [0.9], "vit": [0.4], "resnet18": [0.6]}
    fewer = {name: values[name] for name in ("convnet", "vit")}
    section = one_section([judged(method("dm", "pixel"), fewer), judged(method("dm", "glad"), values)])
    assert dict(accuracy_table(section)[["method", "cross-arch. mean"]].itertuples(index=False)) == {
        "dm / pixel": "40.0 † (1 of 2 networks)",
        "dm / glad / cvae": "50.0 †",
    }


def test_a_network_that_has_not_judged_every_seed_says_so_and_is_out_of_the_mean() -> None:
    """As while a run that adds a network goes on."""
    plan = method("dm", "pixel")
    both = [judged(replace(plan, seed=seed), LEVELS) for seed in (0, 1)]
    more = judgement(both[1].set, ref("architectures", "resnet18"), [0.9, 0.9])
    (line,) = accuracy_table(one_section([*both, Judged(both[1].set, (more,))])).to_dict("records")
    assert line["resnet18"] == "90.0 ± 0.0 † (1 of 2 seeds)"
    assert line["cross-arch. mean"] == "41.0 ± 0.0 (1 of 2 networks)"
    assert line["vit"] == "41.0 ± 0.0"


def test_a_backbone_that_judges_nothing_has_no_same_architecture() -> None:
    section = one_section([judged(method("dm", "pixel"), {"vit": [0.4]})])
    assert accuracy_table(section)["same arch. (convnet)"].tolist() == ["–"]


def test_several_backbones_are_named_and_keep_their_columns() -> None:
    """A baseline, which has none, is read by each."""
    plans = [method("dm", "pixel"), method("dm", "pixel", backbone=VIT), baseline(RANDOM)]
    section = one_section([judged(plan, LEVELS) for plan in plans])
    names = ["random on convnet", "random on vit", "dm / pixel on convnet", "dm / pixel on vit"]
    assert [row.name for row in section.rows] == names
    table = accuracy_table(section)
    assert {"same arch.", "convnet", "vit"} <= set(table.columns)
    assert table["same arch."].tolist() == ["51.0 ± 1.4 †", "41.0 ± 1.4 †"] * 2
    assert cost_table(of_section(section))["sets"].tolist() == ["3", "3"]  # random once


def test_without_a_backbone_the_mean_is_over_all_networks() -> None:
    table = accuracy_table(one_section([judged(baseline(RANDOM), LEVELS)]))
    assert table["mean over networks"].tolist() == ["46.0 ± 1.4 †"]
    assert "same arch" not in str(table.columns)


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({}, {"protocol": numbered("glad-1", epochs=301)}),
        ({}, {"protocol": numbered("toy-1", epochs=301)}),  # same id, other numbers: somebody edited it
        ({"train_hash": "c" * 64}, {"label": "toy (copy cccccccc)", "original": False}),
        ({"train_hash": "c" * 64}, {}),  # same name, other training images
        ({}, {"test_hash": "c" * 64}),  # same name, other test images
        ({"labels": "learned"}, {}),
        ({"labels": "teacher"}, {}),
        ({}, SOFTLY),
        ({}, SOFTLY | {"protocol": replace(SOFT, id="toy-1")}),
        ({"ipc": 10}, {}),
    ],
    ids=["numbers", "edited protocol", "copy", "train", "test", "learned", "stored", "teacher", "teacher, same id", "ipc"],
)
def test_what_does_not_compare_never_shares_a_table(change: dict[str, Any], fields: dict[str, Any]) -> None:
    plan = method("dm", "pixel")
    other = replace(plan, **change)
    made = sections(results([judged(plan, LEVELS), judged(other, LEVELS, **fields)]))
    assert [len(section.rows) for section in made] == [1, 1]
    assert sorted(section.rows[0].results[0].key for section in made) == sorted([plan.key, other.key])


def test_a_set_with_other_constants_never_shares_a_table() -> None:
    plan = method("dm", "glad")
    made = sections(results([judged(plan, LEVELS), judged(replace(plan, synthetic_mean=MEAN), LEVELS)]))
    assert [(section.kind, len(section.rows)) for section in made] == [("ranked", 1), ("constants", 1)]


def test_equal_numbers_under_two_ids_share_a_table() -> None:
    """An id is for people."""
    records = [judged(method("dm", "pixel"), LEVELS, protocol=replace(PROTOCOL, id="alpha"))]
    records.append(judged(method("dc", "pixel"), LEVELS, protocol=replace(PROTOCOL, id="beta")))
    section = one_section(records)
    assert (len(section.rows), section.protocol) == (2, "alpha")
    text = page(records)
    assert "## toy, IPC 1, hard labels, protocol alpha\n" in text
    assert "300 epochs. Equal numbers were asked for as beta." in text


@pytest.mark.parametrize("labels", ["hard", "learned"])
def test_soft_labels_of_a_teacher_are_called_so(labels: str) -> None:
    """Whatever the set's own labels: the networks never saw them."""
    records = [judged(method("dm", "pixel", labels=labels), LEVELS, **SOFTLY), judged(baseline(RANDOM), LEVELS, **SOFTLY)]
    assert one_section(records).labels == "teacher"
    text = page(records)
    assert "\n## toy, IPC 1, soft labels (teacher), protocol soft-1\n" in text
    assert "a teacher (resnet18-bn, 50 epochs on the real training images) labels every batch" in text
    assert f"{labels} labels, protocol" not in text
    assert "Baselines train on hard labels" not in text


def test_labels_that_a_teacher_stored_have_a_table_of_their_own() -> None:
    text = page([judged(method("dm", "pixel", labels=labels), LEVELS) for labels in ("hard", "teacher")])
    assert text.count("\n## toy, IPC 1, hard labels, protocol ") == 1
    assert text.count("\n## toy, IPC 1, stored soft labels, protocol ") == 1
    assert "labels every batch" not in text


def test_under_a_teacher_the_sets_own_labels_tell_rows_apart() -> None:
    records = [judged(method("dm", "pixel", labels=labels), LEVELS, **SOFTLY) for labels in ("hard", "learned")]
    assert [row.name for row in one_section(records).rows] == ["dm / pixel [labels=hard]", "dm / pixel [labels=learned]"]


def test_a_copy_of_the_data_is_called_one() -> None:
    plan = method("dm", "pixel", train_hash="c" * 64)
    text = page([judged(plan, LEVELS, label="toy (copy cccccccc)", original=False)])
    assert "## toy (copy cccccccc), IPC 1, hard labels, protocol toy-1" in text
    assert "A copy: its files are not the published ones." in text


@pytest.mark.parametrize(("labels", "heading"), [("indices", "hard labels"), ("probabilities", "soft labels of a file")])
def test_an_imported_set_is_a_row_of_its_own(labels: str, heading: str) -> None:
    imported = replace(BASE, imported=Imported("f" * 64, "pixels", labels))
    text = page([judged(imported, LEVELS, suite=""), judged(method("dm", "pixel"), LEVELS)])
    assert f"\n## toy, IPC 1, {heading}, protocol toy-1\n" in text
    assert "\n| imported ffffffff " in text
    told = f"`ddbench evaluate FILE --data toy --images pixels --labels {labels} --protocol toy-1 --archs "
    more = r"[\w,]+ --repeats \d --threads 1`, where FILE has the SHA-256 f{64}; plans \["
    assert re.search(f"- imported ffffffff: {told}{more}", text)


# Full data


def test_full_data_stand_in_every_ipc_of_their_data_and_protocol() -> None:
    full = baseline(FULL_DATA)
    plans = [full, replace(full, train_hash="c" * 64), method("dm", "pixel"), method("dm", "pixel", ipc=10)]
    made = sections(results([judged(plan, LEVELS) for plan in plans]))
    assert [(section.train.hash[0], section.ipc, [row.name for row in section.rows]) for section in made] == [
        ("c", None, ["full-data"]),
        ("d", 1, ["dm / pixel", "full-data"]),
        ("d", 10, ["dm / pixel", "full-data"]),
    ]


def test_full_data_are_no_part_of_tables_of_other_numbers() -> None:
    """What differs for full data alone parts nothing; what is common to both does."""
    longer, other = numbered("toy-2", epochs=999), numbered("toy-3", lr_factor=10.0)
    records = [judged(method("dm", "pixel"), LEVELS, protocol=each) for each in (longer, other)]
    records.append(judged(baseline(FULL_DATA), LEVELS))
    made = sections(results(records))
    assert [(section.protocol, [row.name for row in section.rows]) for section in made] == [
        ("toy-2", ["dm / pixel", "full-data [protocol toy-1]"]),
        ("toy-3", ["dm / pixel"]),
    ]


def test_of_full_data_under_several_protocols_the_id_tells() -> None:
    """Two protocols that differ in epochs alone, for distilled sets and for full data."""
    other = numbered("toy-2", epochs=999)
    other = replace(other, full_data=replace(other.full_data, epochs=99))
    plans = (method("dm", "pixel"), baseline(FULL_DATA))
    made = sections(results([judged(plan, LEVELS, protocol=each) for plan in plans for each in (PROTOCOL, other)]))
    epochs = {section.protocol: [row.results[0].judging.numbers.epochs for row in section.rows] for section in made}
    assert epochs == {"toy-1": [300, 20], "toy-2": [999, 99]}
    third = judged(method("dm", "glad"), LEVELS, protocol=numbered("toy-3", epochs=1500))
    full = [judged(baseline(FULL_DATA), LEVELS, protocol=each) for each in (PROTOCOL, other)]
    rows = one_section([third, *full]).rows
    assert [row.name for row in rows[1:]] == ["full-data [protocol toy-1]", "full-data [protocol toy-2]"]


def of_images(seed: int, images: str) -> Judged:
    one = judged(method("dm", "hpd", seed=seed), LEVELS)
    return replace_all(one, set=replace_all(one.set, images_sha256=images))


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ("aaaaa", ["Seeds 0 to 4 are the same images: ± says nothing of the method."]),
        ("aa", ["Seeds 0 and 1 are the same images: ± says nothing of the method."]),
        ("abaca", ["Seeds 0, 2 and 4 are the same images: with its other seeds, ± is of 3 different sets at most."]),
        ("abc", []),
        ("  ", []),
        ("a", []),
    ],
)
def test_seeds_of_the_same_images_are_no_sample_of_sets(images: str, told: list[str]) -> None:
    records = [of_images(seed, letter.strip()) for seed, letter in enumerate(images)]
    assert list(one_section(records).rows[0].marks) == told
    for sentence in told:
        assert f"§ dm / hpd / cvae: {sentence}" in page(records)


def test_the_synthetic_grid_is_the_one_that_was_meant() -> None:
    assert len(toy_plans()) == len({plan.key for plan, *_ in toy_plans()}) == 2 * (1 + 2 * 3) + 1
