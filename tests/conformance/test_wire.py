"""What every wire format keeps."""

import contextlib
import copy
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgen import tree
from fedgen.directions import replay
from fedgen.errors import ClientError
from fedgen.stages import Wire
from fedgen.types import State, Walk
from tests.conformance.options import build, disturb, options

WIRES = {name: build("wire", name) for name in options("wire")}
shapes = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)


@st.composite
def states(draw: st.DrawFn) -> State:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    parts = draw(st.dictionaries(st.text(min_size=1, max_size=4), shapes, max_size=4))
    scale = draw(st.sampled_from([0.0, 1e-6, 1.0, 1e3]))
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in parts.items()}


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> Wire:
    return WIRES[request.param]


def sample() -> State:
    generator = torch.Generator().manual_seed(0)
    return {"a": torch.randn(3, 4, generator=generator), "b": torch.randn(7, generator=generator)}


def walked() -> tuple[Walk, dict[str, tuple[int, ...]], State]:
    """A walk through the sample's shapes, and the change that it is."""
    shapes = {name: tuple(tensor.shape) for name, tensor in sample().items()}
    walk = Walk(torch.tensor([3, 2**31 - 1, 3]), torch.tensor([0.5, -1e-3, 0.25]))
    return walk, shapes, replay(walk, shapes)


def test_it_is_a_wire(wire):
    assert isinstance(wire, Wire)


@given(state=states())
@pytest.mark.parametrize("name", WIRES)
def test_names_shapes_and_types_survive(name, state):
    wire = WIRES[name]
    back = wire.decode(wire.encode(state))
    assert list(back) == list(state)
    assert [(t.shape, t.dtype) for t in back.values()] == [(t.shape, t.dtype) for t in state.values()]


@given(state=states())
@pytest.mark.parametrize("name", WIRES)
def test_what_arrives_is_nearer_than_nothing(name, state):
    wire = WIRES[name]
    error = tree.norm(tree.subtract(wire.decode(wire.encode(state)), state))
    assert error <= tree.norm(state)


@given(state=states())
@pytest.mark.parametrize("name", WIRES)
def test_same_state_same_bytes_and_the_state_is_left_alone(name, state):
    wire, before = WIRES[name], tree.copy(state)
    first = wire.encode(state)
    disturb()
    second = wire.encode(state)
    assert first.manifest == second.manifest
    assert torch.equal(first.data, second.data)
    assert all(torch.equal(state[key], before[key]) for key in before)


def test_the_bytes_reported_are_the_bytes_sent(wire):
    payload = wire.encode(sample())
    assert payload.num_bytes == len(payload.data.numpy().tobytes())


def test_views_are_sent_as_what_they_show(wire):
    state = sample()
    views = {"a": state["a"].T, "b": state["b"][::2]}
    dense = {name: tensor.contiguous() for name, tensor in views.items()}
    assert torch.equal(wire.encode(views).data, wire.encode(dense).data)


def test_an_array_that_is_too_short_or_too_long_is_refused(wire):
    payload = wire.encode(sample())
    for data in (payload.data[:-1], payload.data[:0], torch.cat([payload.data, payload.data])):
        with pytest.raises(ClientError, match=r".") as caught:
            wire.decode(dataclasses.replace(payload, data=data))
        assert caught.value.reason == "malformed"


@given(entry=st.integers(0, 1), dtype=st.text(max_size=9), shape=st.lists(st.integers(-(2**70), 2**70), max_size=4))
@pytest.mark.parametrize("name", WIRES)
def test_a_lying_manifest_is_refused_and_nothing_else_happens(name, entry, dtype, shape):
    wire = WIRES[name]
    payload = wire.encode(sample())
    manifest = copy.copy(list(payload.manifest))
    manifest[entry] = (manifest[entry][0], dtype, tuple(shape))
    with pytest.raises(ClientError) as caught:
        wire.decode(dataclasses.replace(payload, manifest=tuple(manifest)))
    assert caught.value.reason == "malformed"


@given(shape=st.lists(st.integers(0, 2**70), max_size=4))
@pytest.mark.parametrize("name", WIRES)
def test_a_lying_shape_is_refused_or_stays_within_the_bytes(name, shape):
    wire = WIRES[name]
    payload = wire.encode(sample())
    (first, dtype, _), *rest = payload.manifest
    with contextlib.suppress(ClientError):
        state = wire.decode(dataclasses.replace(payload, manifest=((first, dtype, tuple(shape)), *rest)))
        assert list(state[first].shape) == shape


@pytest.mark.parametrize("name", WIRES)
def test_what_a_plan_keeps_is_packed_as_if_it_had_been_cut_before(name):
    state = {"a": torch.arange(60.0).reshape(6, 10), "b": torch.arange(4.0), "left out": torch.ones(3)}
    plan = {"b": (None,), "a": (torch.tensor([0, 1, 5]), torch.tensor([2, 3, 4, 9]))}
    cut = {name: tensor.contiguous() for name, tensor in tree.cut(state, plan).items()}
    ours, expected = WIRES[name].encode(state, plan), WIRES[name].encode(cut)
    assert ours.manifest == expected.manifest
    assert torch.equal(ours.data, expected.data)


def test_a_change_arrives_alike_whether_it_is_known_to_be_a_walk_or_not(wire):
    """An option that sends a walk loses nothing by it; to the others a walk is a change as any."""
    walk, shapes, change = walked()
    arrived = wire.decode(wire.encode(change, walk=walk), shapes)
    assert {name: (tuple(t.shape), t.dtype) for name, t in arrived.items()} == {
        name: (shape, torch.float32) for name, shape in shapes.items()
    }
    exact = all(torch.equal(arrived[name], change[name]) for name in change)
    as_any = wire.decode(wire.encode(change), shapes)
    assert exact or all(torch.equal(arrived[name], as_any[name]) for name in change)


def test_a_damaged_walk_is_refused(wire):
    walk, shapes, change = walked()
    payload = wire.encode(change, walk=walk)
    for data in (payload.data[:-1], payload.data[:0], torch.cat([payload.data, payload.data])):
        with pytest.raises(ClientError) as caught:
            wire.decode(dataclasses.replace(payload, data=data), shapes)
        assert caught.value.reason == "malformed"
