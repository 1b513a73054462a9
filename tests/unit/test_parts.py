"""Which part a client gets, what of it travels and what a device without the checkpoint has to fetch, by hand."""

import dataclasses
import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgen import tree
from fedgen.adapter.frozen_a import FrozenA
from fedgen.adapter.full import Full
from fedgen.adapter.lora import Lora
from fedgen.errors import ConfigError
from fedgen.extraction.anchored import Anchored
from fedgen.extraction.depth import Depth
from fedgen.extraction.full import Full as FullExtraction
from fedgen.extraction.importance import Importance
from fedgen.extraction.ordered import Ordered
from fedgen.extraction.random import Random
from fedgen.extraction.rolling import Rolling
from fedgen.extraction.static import Static
from fedgen.fleet.levels import Levels
from fedgen.gate import scores_of
from fedgen.learner import Base
from fedgen.model.tiny import Tiny
from fedgen.parts import units_of
from fedgen.types import Encoded, Part
from tests.conformance.grounds import CLIENTS, make_ground

# Two layers with eight feed-forward units and two key-value groups of one head of 8 each; vectors of 16; 260 tokens.
FFN_UNIT_BYTES = 4 * 3 * 16
KV_UNIT_BYTES = 4 * 4 * 8 * 16
REST_BYTES = 4 * (260 * 16 + 16 + 2 * 2 * 16)
WHOLE_BYTES = REST_BYTES + 2 * (8 * FFN_UNIT_BYTES + 2 * KV_UNIT_BYTES)

BATCHES = [[Encoded((7, 3, 9, 27, 5), 2), Encoded((7, 3, 11, 4), 3)], [Encoded((1, 2, 3, 4), 1)]]


@pytest.fixture(scope="module")
def base() -> Base:
    return Tiny(hidden_size=16, num_heads=2, num_kv_heads=2, intermediate_size=8).load(0)


def scored(ground):
    """With scores that put odd feed-forward units first, and the second group."""
    scores = {f"ffn.{n}": torch.tensor([0.0, 9, 1, 8, 2, 7, 3, 6]) for n in range(2)}
    scores |= {f"kv.{n}": torch.tensor([1.0, 2.0]) for n in range(2)} | {"layer": torch.tensor([1.0, 2.0])}
    return dataclasses.replace(ground, scores=scores)


def listed(kept):
    return {axis: index.tolist() for axis, index in kept.items()}


def shapes(state, plan):
    """Shapes of what a plan keeps, by the last parts of the names, of the first layer."""
    return {
        name.removeprefix("base_model.model.").removeprefix("model.layers.0."): tree.extent(state[name], kept)
        for name, kept in plan.items()
        if ".layers.0." in name
    }


def state_of(ground):
    (learner,) = ground.experiment.learners(ground.base, 1)
    return ground.experiment.initial_state(learner)


@given(st.integers(1, 60), st.data())
def test_a_share_of_so_many_units_is_so_many_whatever_floats_make_of_it(units, data):
    kept = data.draw(st.integers(1, units))
    assert units_of(kept / units, units) == kept


@given(st.floats(0.001, 1), st.floats(0.001, 1), st.integers(1, 5000))
def test_more_width_is_no_fewer_units_and_one_at_least(a, b, units):
    narrow, wide = sorted((a, b))
    assert 1 <= units_of(narrow, units) <= units_of(wide, units) <= units_of(1.0, units) == units


@pytest.mark.parametrize(
    ("extraction", "round", "ffn", "kv"),
    [
        (Static(), 3, [0, 1, 2, 3], [0]),
        (Ordered(), 3, [0, 1, 2, 3], [0]),
        (Rolling(), 1, [0, 1, 2, 3], [0]),
        (Rolling(), 6, [0, 5, 6, 7], [1]),
        (Rolling(stride=None), 2, [4, 5, 6, 7], [1]),
        # The second of three clients stands 8 // 3 = 2 units further, and no group further.
        (Rolling(phase="striped"), 1, [2, 3, 4, 5], [0]),
        (Importance(), 1, [1, 3, 5, 7], [1]),
        # Anchors are 1 and 3; a window of two rolls over 0, 2, 4, 5, 6, 7. Of one group no half is an anchor.
        (Anchored(stride=1), 1, [0, 1, 2, 3], [0]),
        (Anchored(stride=1), 2, [1, 2, 3, 4], [1]),
        (Anchored(stride=1), 6, [0, 1, 3, 7], [1]),
    ],
)
def test_half_of_the_model_by_hand(base, extraction, round, ffn, kv):
    part = scored(make_ground(base, Full(), extraction=extraction)).part("barn", round, 0.5)
    assert part.width == 0.5
    assert listed(part.kept) == {"ffn.0": ffn, "ffn.1": ffn, "kv.0": kv, "kv.1": kv}


@pytest.mark.parametrize(
    ("extraction", "layers"),
    [(Depth(), [0]), (Depth(order="prefix"), [0]), (Depth(order="importance", num_first=0, num_last=0), [1])],
)
def test_half_of_the_depth_is_one_layer_and_no_width_is_cut(base, extraction, layers):
    part = scored(make_ground(base, Full(), extraction=extraction)).part("attic", 1, 0.5)
    assert listed(part.kept) == {"layer": layers}


def test_a_random_part_depends_on_round_and_client_and_on_nothing_else(base):
    ground = make_ground(base, Full(), extraction=Random())
    again = make_ground(base, Lora(rank=2), extraction=Random())
    parts = {(client, round): ground.part(client, round, 0.5) for client in CLIENTS for round in range(1, 5)}
    for (client, round), part in parts.items():
        assert {axis: len(index) for axis, index in part.kept.items()} == {
            "ffn.0": 4,
            "ffn.1": 4,
            "kv.0": 1,
            "kv.1": 1,
        }
        assert listed(again.part(client, round, 0.5).kept) == listed(part.kept)
    assert len({str(listed(part.kept)) for part in parts.values()}) == len(parts)


def test_what_is_kept_whole_is_left_out_and_all_of_the_whole_is(base):
    ground = make_ground(base, Full(), extraction=Static())
    assert listed(ground.part("attic", 1, 0.75).kept) == {"ffn.0": list(range(6)), "ffn.1": list(range(6))}
    assert ground.part("attic", 1, 1.0) == Part()
    assert ground.makes_parts


def test_only_the_axes_that_are_asked_for_are_cut(base):
    ground = make_ground(base, Lora(rank=4), extraction=Static(axes=("rank", "kv")))
    assert listed(ground.part("attic", 1, 0.25).kept) == {"kv.0": [0], "kv.1": [0], "rank": [0]}


@pytest.mark.parametrize("adapter", [Lora(rank=2), FrozenA(rank=2), Full()])
def test_nothing_is_cut_without_an_extraction_however_narrow_the_devices(base, adapter):
    ground = make_ground(base, adapter, extraction=FullExtraction(), fleet=Levels(widths=(0.25,)))
    part = ground.part("attic", 1, 0.25)
    assert not ground.makes_parts
    assert part == Part()
    assert ground.is_plain(part, 1)
    assert ground.sent(part).keys() == ground.returned(part, 1).keys() == state_of(ground).keys()
    assert tree.is_whole(ground.sent(part))
    assert tree.is_whole(ground.returned(part, 1))


@pytest.mark.parametrize("adapter", [Lora(rank=2), FrozenA(rank=2), Full()])
def test_what_is_sent_and_returned_of_a_part(base, adapter):
    ground = make_ground(base, adapter, extraction=Static())
    state, part = state_of(ground), ground.part("attic", 1, 0.5)
    sizes = {"self_attn.q_proj": (8, 16), "self_attn.k_proj": (8, 16), "self_attn.v_proj": (8, 16)}
    sizes |= {"self_attn.o_proj": (16, 8), "mlp.gate_proj": (4, 16), "mlp.up_proj": (4, 16), "mlp.down_proj": (16, 4)}
    if isinstance(adapter, Full):
        wanted = {f"{name}.weight": list(size) for name, size in sizes.items()}
        wanted |= {"input_layernorm.weight": [16], "post_attention_layernorm.weight": [16]}
    else:
        wanted = {f"{name}.lora_B.weight": [outputs, 2] for name, (outputs, _) in sizes.items()}
        if isinstance(adapter, Lora):
            wanted |= {f"{name}.lora_A.weight": [2, inputs] for name, (_, inputs) in sizes.items()}
    assert shapes(state, ground.sent(part)) == wanted
    assert shapes(state, ground.returned(part, 1)) == wanted
    assert ground.sent(part).keys() == state.keys()
    down = next(kept for name, kept in ground.sent(part).items() if "layers.1.mlp.up_proj" in name and "_A" not in name)
    assert down[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("adapter", [Lora(rank=2), FrozenA(rank=2), Full()])
def test_to_a_window_the_whole_state_goes_and_the_window_comes_back(base, adapter):
    cut = make_ground(base, adapter, extraction=Static())
    window = make_ground(base, adapter, extraction=Static(), extraction_mode="window")
    state, part = state_of(window), window.part("attic", 1, 0.5)
    assert listed(part.kept) == listed(cut.part("attic", 1, 0.5).kept)
    assert tree.is_whole(window.sent(part))
    assert window.sent(part).keys() == state.keys()
    assert shapes(state, window.returned(part, 1)) == shapes(state, cut.returned(part, 1))


def test_a_frozen_factor_never_travels(base):
    for mode in ("cut", "window"):
        ground = make_ground(base, FrozenA(rank=2), extraction=Random(), extraction_mode=mode)
        for width in (1.0, 0.5):
            part = ground.part("barn", 1, width)
            names = ground.sent(part).keys() | ground.returned(part, 1).keys()
            assert all(".lora_B." in name for name in names)
        assert ground.fixed.keys() == {name.replace("lora_B", "lora_A") for name in names}


def test_alternating_factors_are_both_sent_and_one_comes_back(base):
    ground = make_ground(base, Lora(rank=2, alternate=True), extraction=Static())
    for width in (1.0, 0.5):
        part = ground.part("attic", 1, width)
        names = ground.sent(part).keys()
        assert {".lora_A." in name for name in names} == {True, False}
        assert ground.returned(part, 1).keys() == {name for name in names if ".lora_B." in name}
        assert ground.returned(part, 2).keys() == {name for name in names if ".lora_A." in name}
        assert not ground.is_plain(part, 1)


def test_any_learner_will_do_only_if_every_step_trains_all_of_the_model(base):
    assert make_ground(base, Lora(rank=2), extraction=Static()).is_plain(Part(), 1)
    assert make_ground(base, FrozenA(rank=2), extraction=Static()).is_plain(Part(), 1)
    assert not make_ground(base, Full(), extraction=Static()).is_plain(Part(0.5, {"ffn.0": torch.arange(4)}), 1)
    # Ordered dropout narrows the steps of the widest client as well.
    assert not make_ground(base, Full(), extraction=Ordered()).is_plain(Part(), 1)


@pytest.mark.parametrize("mode", ["cut", "window"])
@pytest.mark.parametrize("adapter", [Lora(rank=2), FrozenA(rank=2), Full(), Lora(rank=2, alternate=True)])
def test_a_learner_trains_what_is_returned_in_its_shapes(base, adapter, mode):
    ground = make_ground(base, adapter, extraction=Random(), extraction_mode=mode)
    state, part = state_of(ground), ground.part("cellar", 1, 0.5)
    learner = ground.learner(part, 1, "cellar")
    learner.load(tree.cut(state, ground.sent(part)))
    wanted = {name: tree.extent(state[name], kept) for name, kept in ground.returned(part, 1).items()}
    assert {name: list(tensor.shape) for name, tensor in learner.state().items()} == wanted
    # What never travels is made on the spot, and cut as the part is.
    plan = tree.plan_of(ground.axes, {} if mode == "window" else part.kept)
    placed = {name: tensor for name, tensor in learner.tensors.items() if name in ground.fixed}
    assert placed.keys() == ground.fixed.keys()
    for name, tensor in placed.items():
        assert torch.equal(tensor, tree.cut(ground.fixed, {name: plan[name]})[name])


def part_bytes(num_ffn, num_kv):
    """Bytes of a part with so many units of both layers."""
    return REST_BYTES + 2 * (num_ffn * FFN_UNIT_BYTES + num_kv * KV_UNIT_BYTES)


def test_the_model_is_as_large_as_these_tests_think(base):
    assert sum(weight.numel() * 4 for weight in base.weights.values()) == WHOLE_BYTES == part_bytes(8, 2)


def test_a_device_without_the_checkpoint_fetches_its_part_once_if_it_stays_the_same(base):
    ground = make_ground(base, Lora(rank=2), extraction=Static())
    parts = [ground.part("attic", round, 0.5) for round in (1, 2)]
    assert ground.base_bytes(parts[0], None) == part_bytes(4, 1)
    assert ground.base_bytes(parts[1], parts[0]) == 0
    # What a wider part adds, and nothing for what a narrower one leaves.
    assert ground.base_bytes(Part(), parts[1]) == 2 * (4 * FFN_UNIT_BYTES + KV_UNIT_BYTES)
    assert ground.base_bytes(parts[0], Part()) == 0


def test_of_a_rolling_window_only_what_enters_is_fetched(base):
    for extraction, ffn, kv in [(Rolling(), 1, 1), (Rolling(stride=None), 4, 1)]:
        ground = make_ground(base, Lora(rank=2), extraction=extraction)
        first, second = (ground.part("attic", round, 0.5) for round in (1, 2))
        assert ground.base_bytes(first, None) == part_bytes(4, 1)
        assert ground.base_bytes(second, first) == 2 * (ffn * FFN_UNIT_BYTES + kv * KV_UNIT_BYTES)


def test_of_two_cut_dimensions_all_but_their_common_block_is_fetched(base):
    ground = make_ground(base, Lora(rank=2), extraction=Rolling(axes=("ffn", "residual"), stride=2))
    first, second = (ground.part("attic", round, 0.5) for round in (1, 2))
    # Of 4 ffn units 2 are new, of 8 residual ones 2: a projection of 32 entries keeps 2 * 6.
    new = 2 * 3 * (32 - 12) + 2 * (4 * 16 * 2) + 260 * 2 + 5 * 2
    assert ground.base_bytes(second, first) == 4 * new


def test_of_a_layer_all_or_nothing_is_fetched(base):
    ground = make_ground(base, Lora(rank=2), extraction=Depth(order="prefix"))
    one = ground.part("attic", 1, 0.5)
    layer = 8 * FFN_UNIT_BYTES + 2 * KV_UNIT_BYTES + 4 * 2 * 16
    assert ground.base_bytes(one, None) == WHOLE_BYTES - layer
    assert ground.base_bytes(Part(), one) == layer


def test_for_windows_and_for_no_parts_the_whole_base_is_fetched_once(base):
    window = make_ground(base, FrozenA(rank=2), extraction=Rolling(), extraction_mode="window")
    first, second = (window.part("attic", round, 0.5) for round in (1, 2))
    assert window.base_bytes(first, None) == WHOLE_BYTES
    assert window.base_bytes(second, first) == 0
    whole = make_ground(base, Lora(rank=2), extraction=FullExtraction())
    assert whole.base_bytes(Part(), None) == WHOLE_BYTES
    assert whole.base_bytes(Part(), Part()) == 0


@pytest.mark.parametrize("mode", ["cut", "window"])
def test_trained_weights_are_the_payload_and_no_base(base, mode):
    ground = make_ground(base, Full(), extraction=Rolling(), extraction_mode=mode)
    assert ground.base_bytes(ground.part("attic", 1, 0.5), None) == 0
    assert ground.base_bytes(Part(), None) == 0


def test_an_axis_that_is_not_there_is_named_with_those_that_are(base):
    with pytest.raises(
        ConfigError, match=r"extraction.axes has rank, which .* they have ffn, kv, layer, residual, vocab"
    ):
        make_ground(base, Full(), extraction=Static(axes=("rank",)))
    make_ground(base, Lora(rank=2), extraction=Static(axes=("rank",)))


def test_scores_are_the_mean_over_batches(base):
    learner = base.learner(base.replica(private=False), {})
    each = [learner.importance(batch) for batch in BATCHES]
    found = scores_of(learner, BATCHES)
    assert found.keys() == {"ffn.0", "ffn.1", "kv.0", "kv.1", "layer", "vocab"}
    for axis, scores in found.items():
        assert torch.allclose(scores, (each[0][axis] + each[1][axis]) / 2)
        assert not torch.equal(scores, each[0][axis])


# --- tokens ---------------------------------------------------------------------------------------------------------

WORDS = 256
"""Tokens of the tiny model that are no special ones; these are the last four."""

SPECIAL = [256, 257, 258, 259]


@pytest.mark.parametrize(
    ("extraction", "round", "others"),
    [
        (Static, 3, list(range(126))),
        (Ordered, 3, list(range(126))),
        (Rolling, 1, list(range(126))),
        # It wraps around behind the last token that a part may lack.
        (Rolling, 250, [*range(249, 256), *range(119)]),
        (lambda axes: Rolling(axes, phase="striped"), 1, list(range(85, 211))),
        (Importance, 1, [*range(1, 252, 2)]),
    ],
)
def test_special_tokens_are_in_every_part_and_the_others_are_chosen_as_on_any_axis(base, extraction, round, others):
    ground = make_ground(base, Full(), extraction=extraction(axes=("vocab",)))
    assert base.protected["vocab"].tolist() == SPECIAL
    # Odd ones first, and the special ones, which nobody has to choose, worst.
    scores = torch.tensor([float(token % 2) for token in range(WORDS)] + [-1.0] * 4)
    ground = dataclasses.replace(ground, scores={"vocab": scores} if extraction is Importance else None)
    part = ground.part("barn", round, 0.5)
    assert listed(part.kept) == {"vocab": [*sorted(others), *SPECIAL]}
    assert len(part.kept["vocab"]) == units_of(0.5, 260)


@pytest.mark.parametrize("extraction", [Static, Ordered, Rolling, Random, Importance, Anchored])
@given(data=st.data())
def test_a_part_has_as_many_tokens_as_its_width_says_or_the_protected_ones(base, extraction, data):
    ground = make_ground_once(base, extraction)
    width, round = data.draw(st.floats(0.001, 0.999)), data.draw(st.integers(1, 9))
    client = data.draw(st.sampled_from(CLIENTS))
    kept = ground.part(client, round, width).kept.get("vocab", torch.arange(260)).tolist()
    assert kept == sorted(set(kept))
    assert set(SPECIAL) <= set(kept) <= set(range(260))
    assert len(kept) == max(units_of(width, 260), len(SPECIAL))


@functools.cache
def make_ground_once(base, extraction):
    scores = torch.rand(260, generator=torch.Generator().manual_seed(0))
    ground = make_ground(base, Full(), extraction=extraction(axes=("vocab",)))
    return dataclasses.replace(ground, scores={"vocab": scores})


def test_a_width_of_fewer_tokens_than_the_protected_ones_keeps_these(base):
    for extraction in (Static, Random, Rolling):
        ground = make_ground(base, Full(), extraction=extraction(axes=("vocab",)))
        for width in (0.001, 4 / 260):
            assert listed(ground.part("attic", 1, width).kept) == {"vocab": SPECIAL}
        assert len(ground.part("attic", 1, 5 / 260).kept["vocab"]) == 5


def test_rows_of_embedding_and_head_travel_and_are_fetched_as_other_slices(base):
    full = make_ground(base, Full(), extraction=Static(axes=("vocab",)))
    part = full.part("attic", 1, 0.5)
    assert tree.extent(base.weights["model.embed_tokens.weight"], full.sent(part)["model.embed_tokens.weight"]) == [
        130,
        16,
    ]
    assert {n for n, kept in full.returned(part, 1).items() if any(i is not None for i in kept)} == {
        "model.embed_tokens.weight"
    }
    lora = make_ground(base, Lora(rank=2), extraction=Static(axes=("vocab",)))
    assert tree.is_whole(lora.sent(part))
    assert lora.base_bytes(part, None) == WHOLE_BYTES - 4 * 130 * 16
    assert lora.base_bytes(Part(), part) == 4 * 130 * 16


def test_steps_of_ordered_dropout_have_all_tokens_that_the_client_holds(base):
    ground = make_ground(base, Full(), extraction=Ordered(axes=("ffn", "vocab"), widths=(0.25, 0.5)))
    learner = ground.learner(ground.part("attic", 1, 0.5), 1, "attic")
    assert {drawn.refresh().module.model.layers[0].mlp.up_proj.out_features for drawn in learner.drawn} == {2, 4}
    assert {drawn.learner.module.get_input_embeddings().num_embeddings for drawn in learner.drawn} == {130}
