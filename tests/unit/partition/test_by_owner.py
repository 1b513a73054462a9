import pytest
import torch

from fedgen.errors import DataError
from fedgen.partition.by_owner import ByOwner
from fedgen.types import Example


def test_each_owner_holds_what_it_owns_and_names_are_sorted():
    examples = [Example("q", "a", owner=owner) for owner in ("shed", "attic", "shed", "cellar", "attic")]
    clients = ByOwner().split(examples, torch.Generator())
    assert clients == {"attic": [1, 4], "cellar": [3], "shed": [0, 2]}
    assert list(clients) == ["attic", "cellar", "shed"]


def test_an_example_without_owner_is_refused_with_its_number_and_a_way_out():
    with pytest.raises(DataError, match=r"1 of 2 examples have no owner \(the first is number 2\).*partition=iid"):
        ByOwner().split([Example("q", "a", owner="x"), Example("q", "a")], torch.Generator())


def test_only_the_owners_that_are_named_take_part():
    examples = [Example("q", "a", owner=owner) for owner in ("shed", "attic", "shed")]
    assert ByOwner(owners=("shed",)).split(examples, torch.Generator()) == {"shed": [0, 2]}


@pytest.mark.parametrize("owners", [(), ("roof",), ("shed", "roof")])
def test_owners_that_the_data_do_not_have_are_refused_with_those_that_they_have(owners):
    with pytest.raises(DataError, match="the data has attic, shed"):
        ByOwner(owners=owners).split([Example("q", "a", owner=o) for o in ("shed", "attic")], torch.Generator())


def test_no_examples_are_refused():
    with pytest.raises(DataError, match="no examples"):
        ByOwner().split([], torch.Generator())
