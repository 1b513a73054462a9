from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgen.errors import DataError
from fedgen.partition.dirichlet import Dirichlet
from fedgen.seeds import derive
from fedgen.types import Example


def labelled(num_examples, num_labels):
    return [Example(str(i), "a", label=f"label-{i % num_labels}") for i in range(num_examples)]


def skew(clients, examples):
    """Mean share of a client's most frequent label: 1 when each client knows one label."""
    counts = [Counter(examples[i].label for i in positions) for positions in clients.values()]
    return sum(max(count.values()) / count.total() for count in counts) / len(counts)


@given(
    num_clients=st.integers(1, 6),
    num_labels=st.integers(1, 5),
    concentration=st.floats(0.5, 50),
    seed=st.integers(0, 2**32),
)
def test_every_example_goes_to_one_client_and_nobody_gets_too_little(num_clients, num_labels, concentration, seed):
    examples = labelled(240, num_labels)
    option = Dirichlet(num_clients, concentration, min_examples=1)
    clients = option.split(examples, derive(seed, "partition"))
    assert sorted(i for positions in clients.values() for i in positions) == list(range(240))
    assert all(positions and positions == sorted(positions) for positions in clients.values())
    assert list(clients) == [f"client-{i:03d}" for i in range(num_clients)]
    assert clients == option.split(examples, derive(seed, "partition"))


def test_concentration_sets_the_skew():
    examples = labelled(2000, 4)
    uneven = skew(Dirichlet(5, 0.05).split(examples, derive(0, "partition")), examples)
    even = skew(Dirichlet(5, 1000.0).split(examples, derive(0, "partition")), examples)
    assert uneven > 0.7
    assert 0.25 <= even < 0.3  # with four labels a quarter is the least


def test_a_vanishing_concentration_gives_each_label_to_one_client():
    examples = labelled(90, 3)
    clients = Dirichlet(1, 1e-9).split(examples, derive(0, "partition"))
    assert clients == {"client-000": list(range(90))}
    two = Dirichlet(2, 1e-6).split(examples, derive(3, "partition"))
    labels = [{examples[i].label for i in positions} for positions in two.values()]
    assert labels[0].isdisjoint(labels[1])
    assert labels[0] | labels[1] == {"label-0", "label-1", "label-2"}


def test_a_minimum_is_kept_by_drawing_again():
    examples = labelled(100, 2)
    least = min(len(x) for x in Dirichlet(3, 0.3).split(examples, derive(5, "partition")).values())
    assert least < 25  # the first draw of this seed would not do, so the next line is put to the test
    clients = Dirichlet(3, 0.3, min_examples=25).split(examples, derive(5, "partition"))
    assert min(len(positions) for positions in clients.values()) >= 25


def test_a_minimum_out_of_reach_says_what_to_change():
    with pytest.raises(
        DataError, match=r"none of 100 draws .* raise concentration, or lower num_clients or min_examples"
    ):
        Dirichlet(10, 0.001).split(labelled(100, 2), derive(0, "partition"))
    with pytest.raises(DataError, match="100 examples cannot give 10 clients 11 each"):
        Dirichlet(10, 100.0, min_examples=11).split(labelled(100, 2), derive(0, "partition"))


def test_an_example_without_label_is_refused():
    with pytest.raises(DataError, match=r"1 of 3 examples have no label \(the first is number 3\)"):
        Dirichlet(2).split([*labelled(2, 1), Example("q", "a")], derive(0, "partition"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_clients": 0}, "num_clients is 0"),
        ({"concentration": 0.0}, "concentration is 0.0"),
        ({"concentration": float("nan")}, "concentration is nan"),
        ({"min_examples": 0}, "min_examples is 0"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Dirichlet(**options)
