from pathlib import Path

import pytest

from fedgen.report import coverage
from fedgen.report.records import Records


def run(*rounds):
    """Records of a run whose rounds say these things about coverage."""
    lines = [{"kind": "round", "round": at, "coverage": said} for at, said in enumerate(rounds)]
    return Records(Path("run"), {}, "", {}, rounds=tuple(lines))


def tensors(**shares):
    """The tensors' part of a round; two underscores stand for a dot."""
    pairs = {name.replace("__", "."): pair for name, pair in shares.items()}
    return {"tensors": {name: {"held": held, "never": never} for name, (held, never) in pairs.items()}}


def test_stretches_per_kind_in_order_of_rounds():
    records = run(None, {"units": {"kv": [0.5, 0], "ffn": [1, 0.25]}}, {"units": {"ffn": [0.25, 1.0]}})
    assert coverage.stretches(records) == {"ffn": {1: [1, 0.25], 2: [0.25, 1.0]}, "kv": {1: [0.5, 0]}}


def test_a_round_that_divides_an_axis_otherwise_is_left_out():
    records = run({"units": {"ffn": [1.0]}}, {"units": {"ffn": [0.5, 1.0]}}, {"units": {"ffn": [0.0, "x"]}})
    assert coverage.stretches(records) == {"ffn": {1: [0.5, 1.0], 2: [0.0, None]}}


def test_tensors_of_all_layers_are_one_group():
    records = run(
        {},
        tensors(
            model__layers__0__mlp__down_proj__weight=(0.5, 0.25),
            model__layers__1__mlp__down_proj__weight=(0.25, 0.75),
            model__layers__0__input_layernorm__weight=(1.0, 0.0),
            model__embed_tokens__weight=(0.75, 0.125),
        ),
        tensors(
            model__layers__0__mlp__down_proj__weight=(0.5, 0.0),
            model__layers__1__mlp__down_proj__weight=(0.75, 0.5),
            model__layers__0__input_layernorm__weight=(1.0, 0.0),
            model__embed_tokens__weight=(0.5, 0.0),
        ),
    )
    down, embedding, norm = coverage.groups(records)
    assert (down.name, down.num_tensors) == ("mlp.down_proj.weight", 2)
    assert down.held == [(1, 0.375), (2, 0.625)]
    assert down.never == [(1, 0.5), (2, 0.25)]
    assert down.worst == [(1, 0.75), (2, 0.5)]
    # Nothing is left of either, so the one that ever had something left comes first.
    assert [(group.name, group.num_tensors) for group in (embedding, norm)] == [
        ("model.embed_tokens.weight", 1), ("input_layernorm.weight", 1),
    ]  # fmt: skip


def test_names_that_end_alike_are_told_apart():
    records = run(
        tensors(
            encoder__block__0__q__weight=(1, 0), decoder__block__0__q__weight=(1, 0),
            decoder__block__0__k__weight=(1, 0), experts__3=(1, 0), experts__4=(1, 0),
        )
    )  # fmt: skip
    assert {group.name: group.num_tensors for group in coverage.groups(records)} == {
        "encoder.block.*.q.weight": 1, "decoder.block.*.q.weight": 1, "k.weight": 1, "experts.*": 2,
    }  # fmt: skip


def test_summary_is_of_the_last_round_and_means_are_over_tensors():
    records = run(
        tensors(layers__0__a=(0.5, 1.0), layers__1__a=(0.5, 1.0), b=(1.0, 0.5)),
        tensors(layers__0__a=(0.25, 0.5), layers__1__a=(0.75, 0.25), b=(1.0, 0.0)),
        None,
    )
    assert coverage.summary_of_coverage(records) == {
        "round": 1,
        "held": pytest.approx(2 / 3),
        "never": 0.25,
        "groups": [
            {"tensors": "a", "num_tensors": 2, "held": 0.5, "never": 0.375, "never_max": 0.5},
            {"tensors": "b", "num_tensors": 1, "held": 1.0, "never": 0.0, "never_max": 0.0},
        ],
    }


@pytest.mark.parametrize(
    "said",
    [None, {}, 3, [], {"units": {}, "tensors": {}}, {"units": [1], "tensors": [2]}, {"units": {"ffn": []}},
     {"units": {"ffn": 0.5}}, {"tensors": {"a": 0.5}}],
)  # fmt: skip
def test_nothing_said_is_nothing(said):
    records = run(said)
    assert coverage.summary_of_coverage(records) is None
    assert coverage.plots(records) == []
    assert coverage.sentence(None) == ""
    assert coverage.uncovered(None) == []


def test_half_of_it_said_is_half_shown():
    units = run({"units": {"ffn": [0.5, 0.25]}})
    assert coverage.summary_of_coverage(units) == {"round": 0, "held": None, "never": None, "groups": []}
    assert [plot.title for plot in coverage.plots(units)] == ["feed-forward units held"]
    assert coverage.sentence(coverage.summary_of_coverage(units)) == ""
    unknown = run({"tensors": {"a": {"held": None, "never": "x"}, "b": {}}})
    assert coverage.summary_of_coverage(unknown)["never"] is None
    assert coverage.plots(unknown) == []


def test_groups_that_take_one_course_share_a_line():
    records = run(
        tensors(l__0__up=(0.5, 0.5), l__0__down=(0.5, 0.5), l__0__gate=(0.5, 0.5), l__0__q=(0.5, 0.75), norm=(1, 0)),
        tensors(l__0__up=(0.5, 0.0), l__0__down=(0.5, 0.0), l__0__gate=(0.5, 0.0), l__0__q=(0.5, 0.25), norm=(1, 0)),
    )
    legend = coverage.never_chart(coverage.groups(records)).legend
    assert [entry.label for entry in legend] == ["q", "down and 2 alike"]


def test_of_many_courses_the_highest_are_drawn_and_listed():
    records = run(tensors(**{f"t{chr(97 + n)}": (0.5, n / 12) for n in range(12)}))
    legend = coverage.never_chart(coverage.groups(records)).legend
    assert [entry.label for entry in legend] == [f"t{letter}" for letter in "lkjihgfe"]
    listed = coverage.uncovered(coverage.summary_of_coverage(records))
    assert [row["tensors"] for row in listed] == [f"t{letter}" for letter in "lkjihgfe"]
    held = run(tensors(a=(0.5, 0.0)))
    assert coverage.uncovered(coverage.summary_of_coverage(held)) == []
    assert coverage.never_chart(coverage.groups(held)) is None


def test_sentence():
    some = coverage.summary_of_coverage(run(tensors(a=(0.25, 0.125), b=(0.75, 0.0))))
    assert coverage.sentence(some) == (
        "In round 0 an entry was held by 50 % of the clients' weight, and 6.25 % of the entries had never been held; "
        "means over all tensors."
    )
    none = coverage.summary_of_coverage(run(tensors(a=(0.25, 0.0))))
    assert coverage.sentence(none).endswith("and by then every entry had been held by some client.")
