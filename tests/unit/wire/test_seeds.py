"""Walks as eight bytes a step, there and back to the bit; and walks that nobody should take."""

import dataclasses
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgen.directions import replay
from fedgen.errors import ClientError
from fedgen.messages import Payload
from fedgen.types import Walk
from fedgen.wire.dense import Dense
from fedgen.wire.seeds import Seeds

SHAPES = {"a": (3, 4), "b": (70,)}
shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
steps = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(-1e3, 1e3, width=32)), max_size=6)


def walk_of(*pairs):
    return Walk(torch.tensor([s for s, _ in pairs], dtype=torch.int64), torch.tensor([x for _, x in pairs]))


def payload_of(*pairs):
    return Seeds().encode({}, walk=walk_of(*pairs))


def reason_of(payload, max_steps=1024, expected=SHAPES):
    with pytest.raises(ClientError) as caught:
        Seeds(max_steps).decode(payload, expected)
    return caught.value.reason


@given(st.dictionaries(st.text(max_size=5), shapes, max_size=4), steps)
def test_a_walk_arrives_as_the_change_that_it_is_to_the_bit(expected, pairs):
    walk = walk_of(*pairs)
    change = replay(walk, expected)
    payload = Seeds().encode(change, walk=walk)
    assert payload.num_bytes == 8 * len(pairs)
    arrived = Seeds().decode(payload, expected)
    assert arrived.keys() == change.keys()
    assert all(torch.equal(arrived[name], tensor) for name, tensor in change.items())


def test_a_step_is_its_seed_and_its_scale():
    payload = payload_of((5, 0.5), (2**31 - 1, -2.0))
    assert payload.data.numpy().tobytes() == struct.pack("<iiff", 5, 2**31 - 1, 0.5, -2.0)
    assert payload.manifest == (("", "walk", (2,)),)


def test_what_is_no_walk_goes_dense():
    state = {"a": torch.arange(12.0).view(3, 4), "b": torch.ones(70)}
    plan = {"a": (torch.tensor([0, 2]), None)}
    for given_plan in (None, plan):
        ours, dense = Seeds().encode(state, given_plan), Dense().encode(state, given_plan)
        assert ours.manifest == dense.manifest
        assert torch.equal(ours.data, dense.data)
    back = Seeds().decode(Seeds().encode(state), SHAPES)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_a_walk_of_more_steps_than_the_server_takes_goes_dense():
    pairs = [(seed, 1.0) for seed in range(4)]
    change = replay(walk_of(*pairs), SHAPES)
    assert Seeds(max_steps=4).encode(change, walk=walk_of(*pairs)).num_bytes == 32
    payload = Seeds(max_steps=3).encode(change, walk=walk_of(*pairs))
    assert torch.equal(payload.data, Dense().encode(change).data)


def test_a_walk_of_more_steps_than_the_server_takes_is_refused():
    assert reason_of(payload_of(*[(seed, 1.0) for seed in range(4)]), max_steps=3) == "malformed"
    huge = Payload((("", "walk", (2**40,)),), torch.zeros(8, dtype=torch.uint8))
    assert reason_of(huge) == "malformed"


@pytest.mark.parametrize("length", [(), (1,), (3,), (-2,), (2, 1), (2**70,)])
def test_a_length_that_does_not_fit_the_bytes_is_refused(length):
    payload = payload_of((1, 1.0), (2, 1.0))
    assert reason_of(dataclasses.replace(payload, manifest=(("", "walk", length),))) == "malformed"


@pytest.mark.parametrize("cut", [slice(0, 15), slice(0, 8), slice(0, 0)])
def test_cut_off_bytes_are_refused(cut):
    payload = payload_of((1, 1.0), (2, 1.0))
    assert reason_of(dataclasses.replace(payload, data=payload.data[cut])) == "malformed"


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_a_step_that_is_not_finite_is_refused(scale):
    assert reason_of(payload_of((1, 1.0), (2, scale))) == "malformed"


def test_a_walk_beside_tensors_or_twice_is_refused():
    payload = payload_of((1, 1.0))
    for manifest in (payload.manifest * 2, (*payload.manifest, ("a", "float32", (0,)))):
        assert reason_of(dataclasses.replace(payload, manifest=manifest)) == "malformed"


def test_a_walk_where_no_change_is_expected_is_refused():
    assert reason_of(payload_of((1, 1.0)), expected=None) == "malformed"


def test_a_seed_that_takes_more_than_four_bytes_is_no_users_fault_but_is_named():
    with pytest.raises(ValueError, match="below 2\\*\\*31"):
        payload_of((2**31, 1.0))


def test_a_server_takes_at_least_one_step():
    with pytest.raises(ValueError, match="max_steps"):
        Seeds(max_steps=0)
