"""Draws are fixed by their path."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgen import seeds


@given(st.integers(0, 2**62), st.text(max_size=8), st.integers(0, 1000), st.text(max_size=8))
def test_the_same_path_gives_the_same_draw(seed, purpose, round, client):
    first, second = (torch.rand(3, generator=seeds.derive(seed, purpose, round, client)) for _ in range(2))
    assert torch.equal(first, second)


def test_every_part_of_the_path_counts():
    paths = [(0, "a", 1, "x"), (1, "a", 1, "x"), (0, "b", 1, "x"), (0, "a", 2, "x"), (0, "a", 1, "y")]
    assert len({seeds.integer(*path) for path in paths}) == len(paths)
    assert seeds.integer(0, 1) != seeds.integer(0, "1")


def test_the_global_generator_is_untouched():
    before = torch.get_rng_state()
    torch.rand(3, generator=seeds.derive(0, "x"))
    assert torch.equal(before, torch.get_rng_state())


def test_the_number_is_pinned_so_that_old_runs_can_be_continued():
    import hashlib

    digest = hashlib.sha256(b"0\x1fstr:train\x1fint:1\x1fstr:home-0").digest()
    assert seeds.integer(0, "train", 1, "home-0") == int.from_bytes(digest[:8], "big") >> 1
