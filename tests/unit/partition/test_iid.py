import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgen.errors import DataError
from fedgen.partition.iid import Iid
from fedgen.seeds import derive
from fedgen.types import Example


@given(num_clients=st.integers(1, 12), spare=st.integers(0, 60), seed=st.integers(0, 2**32))
def test_every_example_goes_to_one_client_and_shares_are_even(num_clients, spare, seed):
    examples = [Example(str(i), "a") for i in range(num_clients + spare)]
    clients = Iid(num_clients).split(examples, derive(seed, "partition"))
    assert sorted(i for positions in clients.values() for i in positions) == list(range(len(examples)))
    sizes = [len(positions) for positions in clients.values()]
    assert len(sizes) == num_clients
    assert max(sizes) - min(sizes) <= 1
    assert all(positions == sorted(positions) for positions in clients.values())
    assert list(clients) == sorted(clients)
    assert clients == Iid(num_clients).split(examples, derive(seed, "partition"))


def test_another_seed_deals_otherwise():
    examples = [Example(str(i), "a") for i in range(40)]
    assert Iid(4).split(examples, derive(0, "partition")) != Iid(4).split(examples, derive(1, "partition"))


def test_names_sort_by_number_beyond_a_thousand():
    clients = Iid(1001).split([Example("q", "a")] * 1001, derive(0, "partition"))
    assert list(clients)[:2] == ["client-0000", "client-0001"]
    assert list(clients) == sorted(clients)
    assert list(Iid(2).split([Example("q", "a")] * 2, derive(0, "partition"))) == ["client-000", "client-001"]


def test_more_clients_than_examples_are_refused():
    with pytest.raises(DataError, match="2 examples cannot go to 3 clients"):
        Iid(3).split([Example("q", "a")] * 2, derive(0, "partition"))


def test_no_clients_are_refused():
    with pytest.raises(ValueError, match="num_clients is 0"):
        Iid(0)
