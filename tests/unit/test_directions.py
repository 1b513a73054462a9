"""Directions against splitmix64 in Python's own whole numbers, and replays against plain sums."""

import hashlib
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgen.directions import CHUNK_WORDS, WORD_BITS, direction, replay, space_of
from fedgen.types import Walk

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
states = st.dictionaries(st.text(max_size=5), st.one_of(shapes, st.just((2 * WORD_BITS + 3,))), max_size=4)
seeds = st.integers(-(2**63), 2**63 - 1)
scales = st.floats(-1e6, 1e6, width=32)


def splitmix64(state):
    """The number that the generator gives next; written down from the paper's Java code."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def sign(seed, name, entry):
    named = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    key = splitmix64(splitmix64(seed % 2**64) ^ named)
    word = splitmix64((key + entry // 64 * 0x9E3779B97F4A7C15) % 2**64)
    return 1.0 if word >> (entry % 64) & 1 else -1.0


def test_the_reference_is_splitmix64():
    """Its first numbers from the seed 1234567, as they are published with other implementations."""
    state, found = 1234567, []
    for _ in range(3):
        found.append(splitmix64(state))
        state += 0x9E3779B97F4A7C15
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@settings(max_examples=25)
@given(seeds, st.text(max_size=9), st.integers(0, 150))
def test_every_sign_is_that_of_the_reference(seed, name, length):
    assert direction(seed, name, (length,)).tolist() == [sign(seed, name, entry) for entry in range(length)]


def test_signs_are_pinned_so_that_old_walks_can_be_taken_again():
    drawn = direction(7, "model.w", (100, 100))
    assert "".join("+" if x > 0 else "-" for x in drawn.view(-1)[:32].tolist()) == "-+---+-+---+-+-+-+++----++++--+-"
    digest = hashlib.sha256(drawn.to(torch.int8).numpy().tobytes()).hexdigest()
    assert digest == "26ef8665cb761f9ebc5563c9a4798b83d09536b514ef5b6687b6446860ef6e85"


def test_a_tensor_of_many_chunks_is_that_of_the_reference():
    length = 2 * CHUNK_WORDS * WORD_BITS + 7
    drawn = direction(3, "w", (length,))
    places = [0, CHUNK_WORDS * WORD_BITS - 1, CHUNK_WORDS * WORD_BITS, 2 * CHUNK_WORDS * WORD_BITS - 1, length - 1]
    assert [drawn[place].item() for place in places] == [sign(3, "w", place) for place in places]
    # 524,295 fair coins: six standard deviations.
    assert abs(drawn.mean().item()) < 6 / math.sqrt(length)


@settings(max_examples=40)
@given(seeds, states)
def test_a_tensor_has_its_direction_whatever_lies_beside_it(seed, state):
    drawn = space_of(state).draw(seed)
    assert list(drawn) == list(state)
    for name, shape in state.items():
        assert torch.equal(drawn[name], direction(seed, name, shape))


def test_seeds_and_names_have_directions_of_their_own():
    length = 4096
    drawn = torch.stack([direction(seed, name, (length,)) for seed in (0, 1, 2, -1) for name in ("a", "b", "ab")])
    products = drawn @ drawn.T / length
    # Independent signs: products of different rows lie around 0 with a deviation of 1 / 64.
    assert torch.equal(products.diagonal(), torch.ones(12))
    assert (products - torch.eye(12)).abs().max() < 6 / 64


def test_neighbours_within_a_tensor_are_independent():
    drawn = direction(0, "w", (2**16,))
    for lag in (1, 2, 8, 63, 64, 65, 4096):
        assert abs((drawn[lag:] * drawn[:-lag]).mean().item()) < 6 / math.sqrt(len(drawn) - lag), lag


@settings(max_examples=40)
@given(states, st.lists(st.tuples(seeds, scales), max_size=5))
def test_a_replay_is_one_rounded_sum_after_the_other(state, steps):
    walk = Walk(torch.tensor([s for s, _ in steps], dtype=torch.int64), torch.tensor([x for _, x in steps]))
    change = replay(walk, state)
    assert {name: tuple(tensor.shape) for name, tensor in change.items()} == state
    for name, shape in state.items():
        expected = torch.zeros(shape)
        for seed, scale in steps:
            expected = expected + torch.tensor(scale) * direction(seed, name, shape)
        assert change[name].dtype == torch.float32
        assert torch.equal(change[name], expected)


@settings(max_examples=40)
@given(scales, scales)
def test_a_step_rounds_once(held, scale):
    """Sign times scale is exact, so the sum is that of the exact numbers, rounded to the nearest: fused or not."""
    space = space_of({"w": (64,)})
    array = torch.full((64,), held)
    space.step(array, 0, scale)
    for after, up in zip(array.tolist(), space.draw(0)["w"].tolist(), strict=True):
        exact = Fraction(held) + int(up) * Fraction(scale)
        assert after == torch.tensor(float(exact), dtype=torch.float64).float().item()


def test_nothing_global_is_drawn_from():
    before = torch.get_rng_state()
    direction(0, "w", (100,))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (64,), (65,)])
def test_shapes_at_the_edge(shape):
    drawn = direction(1, "w", shape)
    assert tuple(drawn.shape) == shape
    assert set(drawn.flatten().tolist()) <= {1.0, -1.0}
