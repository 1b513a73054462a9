"""Clients that return the rows of their own tokens alone: means by hand, lies about it, and whole runs."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgen import device, tree
from fedgen.adapter.full import Full
from fedgen.adapter.lora import Lora
from fedgen.aggregation.masked_mean import MaskedMean
from fedgen.checkpoint import Checkpoint
from fedgen.client.first_order import FirstOrder
from fedgen.coverage import Coverage
from fedgen.errors import ClientError
from fedgen.extraction.full import Full as FullExtraction
from fedgen.extraction.importance import Importance
from fedgen.extraction.static import Static
from fedgen.federation.course import finished
from fedgen.fleet.levels import Levels
from fedgen.fleet.uniform import Uniform
from fedgen.journal import read
from fedgen.late import Late
from fedgen.learner import Base
from fedgen.messages import Reply, Request
from fedgen.model.tiny import Tiny
from fedgen.replies import Replies, Sent, trained
from fedgen.types import Encoded, Kept, Part
from fedgen.wire.dense import Dense
from tests.conformance.grounds import CLIENTS, make_ground
from tests.unit.federation.test_parts_run import PARTS, carry_out, final, lines_of

SPLIT = FirstOrder(num_steps=2, batch_size=4, mask_absent=True, split_labels=True)
TOGETHER = dataclasses.replace(SPLIT, split_labels=False)
EMBEDDING, UP = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"
ROUND = 1


@pytest.fixture(scope="module")
def base() -> Base:
    return Tiny(hidden_size=16, num_heads=2, num_kv_heads=2, intermediate_size=8).load(0)


def ground_of(base, **fields):
    return make_ground(base, fields.pop("adapter", Full()), **{"extraction": Static(), "client": SPLIT, **fields})


def state_of(ground):
    (learner,) = ground.experiment.learners(ground.base, 1)
    return ground.experiment.initial_state(learner)


def reply_of(ground, state, client, part, kept, value, num_examples):
    """A reply in which every entry has changed by the same number."""
    own = Part(part.width, {**part.kept, **kept})
    change = {
        name: torch.full(tree.extent(state[name], index), float(value))
        for name, index in ground.returned(own, ROUND).items()
    }
    return Reply(ROUND, client, Dense().encode(change), num_examples, {}, kept=kept)


def play(ground, state, parts, replies, folder):
    """The next state, the lines of the replies, and what is told of who held what."""
    coverage = Coverage(ground)
    late = Late(Checkpoint(ROUND - 1, {}, {}, {}), folder)
    taken = Replies(ground, state, ROUND, parts, coverage, folder, late)
    for client in parts:
        taken.sent[client] = Sent(0.0, 0, 0, 0.0)
    for reply in replies:
        taken.take(reply, lambda _: None)
    taken.close()
    after, _ = ground.experiment.aggregation.apply(state, {}, taken.total)
    return after, [line["refused"] for line in taken.lines], coverage.end_round()


def tokens(*ids) -> Kept:
    return {"vocab": torch.tensor(ids)}


OWN = {"attic": tokens(1, 2, 5), "barn": tokens(2, 5, 7), "cellar": tokens(5)}
VALUES = {"attic": 1, "barn": 2, "cellar": 3}
EXAMPLES = {"attic": 3, "barn": 4, "cellar": 5}


def labels(ground, state):
    """Replies of three clients with other tokens each; all have the whole model but the third, which has half."""
    parts = {client: ground.part(client, ROUND, 0.5 if client == "cellar" else 1.0) for client in CLIENTS}
    replies = [reply_of(ground, state, c, parts[c], OWN[c], VALUES[c], EXAMPLES[c]) for c in CLIENTS]
    return parts, replies


@pytest.mark.parametrize(
    ("weighting", "rows", "rest", "half"),
    [
        # Row 2: (3·1 + 4·2) / 7; row 5: (3·1 + 4·2 + 5·3) / 12. Units of the first half have all three, others two.
        ("num_examples", {1: 1.0, 2: 11 / 7, 5: 26 / 12, 7: 2.0}, 11 / 7, 26 / 12),
        ("uniform", {1: 1.0, 2: 1.5, 5: 2.0, 7: 2.0}, 1.5, 2.0),
    ],
)
def test_a_row_is_the_mean_over_those_who_have_its_token_by_hand(base, tmp_path, weighting, rows, rest, half):
    ground = ground_of(base, aggregation=MaskedMean(weighting=weighting))
    state = state_of(ground)
    parts, replies = labels(ground, state)
    after, refused, told = play(ground, state, parts, replies, tmp_path)
    assert refused == [None, None, None]
    for row in range(260):
        if row in rows:
            assert torch.allclose(after[EMBEDDING][row], state[EMBEDDING][row] + rows[row], atol=1e-6)
        else:
            # Nobody has this token: not a bit is touched.
            assert torch.equal(after[EMBEDDING][row], state[EMBEDDING][row])
    assert torch.allclose(after[UP][:4], state[UP][:4] + half, atol=1e-6)
    assert torch.allclose(after[UP][4:], state[UP][4:] + rest, atol=1e-6)
    # A mass of 12: rows 1 and 7 are held by 3 and 4 of it, row 2 by 7, row 5 by all.
    assert told["tensors"][EMBEDDING] == {
        "held": round((3 + 4 + 7 + 12) / 12 / 260, 6),
        "never": round(1 - 4 / 260, 6),
    }
    assert told["units"].keys() == {"ffn", "kv", "vocab"}
    assert told["trained"] == {"vocab": [[1, 2], [5, 1], [7, 1]]}


@settings(max_examples=20)
@given(data=st.data())
def test_any_tokens_give_the_mean_over_who_returned_a_row(base, tmp_path_factory, data):
    ground = ground_of(base, extraction=Static(axes=("ffn", "vocab")))
    state = {name: tensor[:, :2] if name == EMBEDDING else tensor for name, tensor in state_of(ground).items()}
    parts, replies, held, sums = {}, [], torch.zeros(260), torch.zeros(260)
    for client in CLIENTS:
        part = ground.part(client, ROUND, data.draw(st.sampled_from([0.1, 0.5, 1.0])))
        there = part.kept.get("vocab", torch.arange(260)).tolist()
        own = sorted(data.draw(st.sets(st.sampled_from(there))))
        kept = {"vocab": torch.tensor(own, dtype=torch.long)}
        value, weight = data.draw(st.integers(-4, 4)), data.draw(st.integers(1, 9))
        parts[client] = part
        replies.append(reply_of(ground, state, client, part, kept, value, weight))
        held[own] += weight
        sums[own] += weight * value
    after, refused, told = play(ground, state, parts, replies, tmp_path_factory.mktemp("turns"))
    assert refused == [None, None, None]
    change = (after[EMBEDDING] - state[EMBEDDING]).mean(1)
    assert torch.allclose(change, torch.where(held > 0, sums / held, 0.0), atol=1e-5)
    assert torch.equal(after[EMBEDDING][held == 0], state[EMBEDDING][held == 0])
    trained = [unit for start, length in told["trained"]["vocab"] for unit in range(start, start + length)]
    assert trained == held.nonzero().view(-1).tolist()


# --- the device -----------------------------------------------------------------------------------------------------

EXAMPLE = [Encoded((7, 3, 9, 27, 5), 2), Encoded((7, 3, 11, 4), 3)]
SEEN = [3, 4, 5, 7, 9, 11, 27]


def answer(ground, width, examples=EXAMPLE):
    part = ground.part("attic", ROUND, width)
    (learner,) = ground.experiment.learners(ground.base, 1)
    payload = Dense().encode(state_of(ground), ground.sent(part))
    request = Request(ROUND, "attic", 0.0, part, payload, ground.base.fingerprint)
    return part, device.answer(ground, request, learner, device.Holding(examples, [""] * len(examples)))


@pytest.mark.parametrize("mode", ["cut", "window"])
@pytest.mark.parametrize("width", [1.0, 0.5])
def test_a_device_returns_the_rows_of_its_tokens_and_all_of_the_rest(base, mode, width):
    ground = ground_of(base, extraction_mode=mode)
    together = dataclasses.replace(ground, experiment=dataclasses.replace(ground.experiment, client=TOGETHER))
    (part, split), (_, whole) = answer(ground, width), answer(together, width)
    assert split.error == whole.error == ""
    assert {axis: index.tolist() for axis, index in split.kept.items()} == {"vocab": SEEN}
    assert whole.kept == {}
    change, wanted = Dense().decode(split.payload), Dense().decode(whole.payload)
    assert change.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(change[name], tensor[SEEN] if name == EMBEDDING else tensor)
        # And nothing else has been trained: other tokens take part in nothing.
        assert name != EMBEDDING or not tensor[[n for n in range(260) if n not in SEEN]].any()
    state = state_of(ground)
    own = trained(ground, part, split.kept)
    assert {name: list(t.shape) for name, t in change.items()} == {
        name: tree.extent(state[name], index) for name, index in ground.returned(own, ROUND).items()
    }


def test_of_a_part_of_the_vocabulary_the_rows_are_those_of_the_part(base):
    ground = ground_of(base, extraction=Static(axes=("vocab",)))
    part, reply = answer(ground, 0.1)
    assert part.kept["vocab"].tolist() == [*range(22), *range(256, 260)]
    # 27 is not held, and the first example with it.
    assert reply.kept["vocab"].tolist() == [3, 4, 7, 11]
    assert reply.num_examples == 1
    assert Dense().decode(reply.payload)[EMBEDDING].shape == (4, 16)
    window = dataclasses.replace(ground, experiment=dataclasses.replace(ground.experiment, extraction_mode="window"))
    part, reply = answer(window, 0.1)
    # The device holds all of the model and can say everything; it trains the rows of its window.
    assert reply.kept["vocab"].tolist() == [3, 4, 5, 7, 9, 11]
    assert reply.num_examples == 2
    assert Dense().decode(reply.payload)[EMBEDDING].shape == (6, 16)


@pytest.mark.parametrize(
    "fields",
    [{"adapter": Lora(rank=2)}, {"extraction": FullExtraction()}, {"client": TOGETHER}],
    ids=["factors", "no parts", "not asked for"],
)
def test_where_there_is_nothing_to_split_nothing_is_told(base, fields):
    ground = ground_of(base, **fields)
    together = dataclasses.replace(ground, experiment=dataclasses.replace(ground.experiment, client=TOGETHER))
    assert ground.split == frozenset()
    (_, reply), (_, wanted) = answer(ground, 1.0), answer(together, 1.0)
    assert reply.kept == {}
    assert torch.equal(reply.payload.data, wanted.payload.data)
    assert reply.payload.manifest == wanted.payload.manifest


# --- what a client may say ------------------------------------------------------------------------------------------

LIES = {
    "not ascending": {"vocab": torch.tensor([5, 2])},
    "twice the same": {"vocab": torch.tensor([2, 2])},
    "below the first": {"vocab": torch.tensor([-1, 2])},
    "beyond the last": {"vocab": torch.tensor([2, 260])},
    "far beyond": {"vocab": torch.tensor([-(2**63), 2**63 - 1])},
    "not of its part": {"vocab": torch.tensor([2, 200])},
    "an axis that is returned whole": {"ffn.0": torch.tensor([0])},
    "an axis that is none": {"heads": torch.tensor([0])},
}
MALFORMED = {
    "no numbers": {"vocab": torch.tensor([2.0, 5.0])},
    "numbers of another type": {"vocab": torch.tensor([2, 5], dtype=torch.int32)},
    "marks": {"vocab": torch.ones(26, dtype=torch.bool)},
    "a table": {"vocab": torch.tensor([[2, 5]])},
    "one number": {"vocab": torch.tensor(2)},
    "a list": {"vocab": [2, 5]},
    "no mapping": [2, 5],
}


@pytest.mark.parametrize("lie", LIES)
def test_units_that_cannot_be_are_refused_and_leave_no_trace(base, tmp_path, lie):
    ground = ground_of(base, extraction=Static(axes=("ffn", "vocab")))
    state = state_of(ground)
    parts = {client: ground.part(client, ROUND, 0.1) for client in CLIENTS}
    good = [reply_of(ground, state, c, parts[c], tokens(2, 5), VALUES[c], 3) for c in CLIENTS]
    without, _, held = play(ground, state, parts, [good[0], good[2]], tmp_path)
    bad = dataclasses.replace(good[1], kept=LIES[lie])
    after, refused, now = play(ground, state, parts, [good[0], bad, good[2]], tmp_path)
    assert refused == [None, "kept", None]
    assert all(torch.equal(after[name], without[name]) for name in without)
    assert now == held


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_no_units_at_all_is_refused(base, what):
    ground = ground_of(base)
    with pytest.raises(ClientError) as caught:
        trained(ground, Part(), MALFORMED[what])
    assert caught.value.reason == "kept"


def test_rows_that_are_not_as_many_as_was_said_are_refused(base, tmp_path):
    ground = ground_of(base)
    state = state_of(ground)
    parts, replies = labels(ground, state)
    fewer = dataclasses.replace(replies[1], kept=tokens(2, 5))
    none = dataclasses.replace(replies[1], kept={})
    for bad in (fewer, none):
        _, refused, _ = play(ground, state, parts, [replies[0], bad, replies[2]], tmp_path)
        assert refused == [None, "shape", None]


def test_a_client_that_returns_all_of_its_part_is_taken_at_its_word(base, tmp_path):
    ground = ground_of(base)
    state = state_of(ground)
    parts, replies = labels(ground, state)
    everything = reply_of(ground, state, "barn", parts["barn"], {}, 2, 4)
    after, refused, _ = play(ground, state, parts, [replies[0], everything, replies[2]], tmp_path)
    assert refused == [None, None, None]
    assert torch.allclose(after[EMBEDDING][100], state[EMBEDDING][100] + 2)


def test_who_does_not_split_may_not_say_what_it_trained(base):
    ground = ground_of(base, client=TOGETHER)
    with pytest.raises(ClientError) as caught:
        trained(ground, Part(), tokens(2))
    assert caught.value.reason == "kept"


def test_splitting_without_masking_is_refused():
    with pytest.raises(ValueError, match=r"split_labels is true and mask_absent is false.*mask_absent=true"):
        FirstOrder(split_labels=True)


def test_what_a_client_is_about():
    found = SPLIT.trained_units(EXAMPLE)
    assert found.keys() == {"vocab"}
    assert found["vocab"].tolist() == SEEN
    assert TOGETHER.trained_units(EXAMPLE) == {}


# --- whole runs -----------------------------------------------------------------------------------------------------

RUN = dataclasses.replace(
    PARTS, adapter=Full(), client=SPLIT, extraction=Static(axes=("ffn",)), fleet=Levels(widths=(1.0, 0.5))
)


def test_tokens_of_nobody_keep_their_rows_and_the_others_are_told_of_a_round(tmp_path):
    run = carry_out(RUN, tmp_path)
    assert all(line["refused"] is None for line in lines_of(run, "client"))
    base, dataset = RUN.base(), RUN.data.load(0)
    encoded = base.learner(base.replica(private=False), {}).encode(dataset.train)
    seen = sorted({token for e in encoded for token in e.ids})
    _, newest = finished(RUN, run)
    start = base.weights[EMBEDDING]
    assert (newest.state[EMBEDDING] != start).any(1).nonzero().view(-1).tolist() == seen
    for line in lines_of(run, "round")[1:]:
        told = [unit for first, length in line["coverage"]["trained"]["vocab"] for unit in range(first, first + length)]
        assert told == seen
        assert line["coverage"]["tensors"][EMBEDDING]["never"] == round(1 - len(seen) / 260, 6)
        assert line["coverage"]["units"].keys() == {"ffn", "vocab"}
    # All rows are there for everybody: nothing of it is a gap that could be known before.
    assert lines_of(run, "warning") == []
    together = carry_out(dataclasses.replace(RUN, client=TOGETHER), tmp_path / "together")
    assert final(together).read_bytes() != final(run).read_bytes()
    up = [[line["bytes_up"] for line in lines_of(one, "client")] for one in (run, together)]
    assert all(split < whole for split, whole in zip(*up, strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"extraction": Importance(axes=("ffn", "vocab")), "fleet": Levels(widths=(1.0, 0.4))},
        {"extraction": Static(axes=("residual", "ffn"))},
        {"extraction_mode": "window"},
        {"extraction": Importance(axes=("vocab",)), "extraction_mode": "window", "fleet": Uniform(width=0.2)},
    ],
    ids=["tokens", "residual", "window", "window-tokens"],
)
def test_a_run_that_dies_goes_on_to_the_same_bits_and_tells_the_same(tmp_path, changes):
    class Death(BaseException):
        pass

    def dying(record):
        if (record["kind"], record["round"]) == ("client", 3):
            raise Death

    experiment = dataclasses.replace(RUN, num_rounds=3, **changes)
    unbroken = carry_out(experiment, tmp_path / "unbroken")
    assert all(line["refused"] is None for line in lines_of(unbroken, "client"))
    with pytest.raises(Death):
        carry_out(experiment, tmp_path / "broken", dying)
    (path,) = (tmp_path / "broken").glob("*parts")
    from fedgen import run as folders

    run = folders.open_run(path)
    experiment.federation.run(experiment, run, lambda record: None)
    assert final(run).read_bytes() == final(unbroken).read_bytes()
    told = [[line["coverage"] for line in read(one.metrics_file) if line.get("coverage")] for one in (run, unbroken)]
    assert told[0] == told[1]
    assert len(told[0]) == 3
