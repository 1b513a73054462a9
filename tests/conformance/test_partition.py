"""What every partition keeps, however it deals the examples out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgen.stages import Partition
from fedgen.types import Example
from tests.conformance.options import build, disturb, options

PARTITIONS = {name: build("partition", name) for name in options("partition")}

each = pytest.mark.parametrize("name", PARTITIONS)


def dealt(test):
    """Two hundred examples of some owners and labels, thirty times."""
    owners = st.lists(st.integers(0, 5), min_size=200, max_size=200)
    return settings(max_examples=30)(given(owners=owners, num_labels=st.integers(1, 4), seed=st.integers(0, 99))(test))


def held(owners: list[int], num_labels: int) -> list[Example]:
    return [
        Example(f"say {number}", "yes", f"home-{owner}", f"label-{number % num_labels}")
        for number, owner in enumerate(owners)
    ]


def split(name: str, examples: list[Example], seed: int) -> dict[str, list[int]]:
    return PARTITIONS[name].split(examples, torch.Generator().manual_seed(seed))


@each
def test_it_is_a_partition(name):
    assert isinstance(PARTITIONS[name], Partition)


@each
@dealt
def test_every_example_goes_to_one_client(name, owners, num_labels, seed):
    parts = split(name, held(owners, num_labels), seed)
    assert sorted(position for part in parts.values() for position in part) == list(range(len(owners)))


@each
@dealt
def test_clients_come_sorted_and_nobody_is_left_with_nothing(name, owners, num_labels, seed):
    parts = split(name, held(owners, num_labels), seed)
    assert list(parts) == sorted(parts)
    assert all(parts.values())


@each
@dealt
def test_the_generator_alone_decides(name, owners, num_labels, seed):
    examples = held(owners, num_labels)
    first = split(name, examples, seed)
    disturb()
    assert split(name, examples, seed) == first
