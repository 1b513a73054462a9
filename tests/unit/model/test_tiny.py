"""Sizes of the model that is drawn at random."""

import hashlib

import pytest

from fedgen.model.tiny import Tiny


def widths(option):
    return {tuple(layer.mlp.up_proj.weight.shape) for layer in option.load(0).module.model.layers}


def test_the_feed_forward_width_is_three_times_the_hidden_size_unless_it_is_given():
    assert widths(Tiny(hidden_size=16, num_heads=2)) == {(48, 16)}
    assert widths(Tiny(hidden_size=16, num_heads=2, intermediate_size=64)) == {(64, 16)}


def test_the_fingerprint_follows_from_the_sizes_and_the_seed():
    assert Tiny().load(0).fingerprint == hashlib.sha256(b"tiny (64, 2, 4, 2, 256) 0").hexdigest()
    others = [Tiny(intermediate_size=256), Tiny(num_layers=1), Tiny()]
    assert len({option.load(seed).fingerprint for seed, option in enumerate(others)}) == 3


@pytest.mark.parametrize("options", [{"hidden_size": 0}, {"intermediate_size": 0}, {"max_length": -1}])
def test_sizes_below_one_are_refused(options):
    with pytest.raises(ValueError, match="every size must be at least 1"):
        Tiny(**options)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match=r"hidden_size 60 must be a multiple of 2 × num_heads \(4\)"):
        Tiny(hidden_size=60)
