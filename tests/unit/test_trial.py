"""What speaks against a seed, from numbers by hand."""

import pytest

from fedgen.trial import compared, doubts_of_clients, doubts_of_public, swapped
from fedgen.types import Example


def test_each_answer_gets_the_prompt_of_the_next_example_that_has_another():
    examples = [Example("a", "1"), Example("b", "1"), Example("c", "2")]
    assert swapped(examples) == [Example("c", "1"), Example("c", "1"), Example("a", "2")]
    assert swapped([Example("a", "1"), Example("b", "1")]) == []
    assert swapped([]) == []


def test_the_worst_tenth_is_that_of_the_largest_rises():
    before = {f"c{number:02}": 1.0 for number in range(11)}
    after = {client: 1.0 - 0.1 * number for number, client in enumerate(before)}
    after |= {"c00": 1.6, "c01": 1.4, "other": 9.0}
    found = compared(before, after)
    assert found["num_clients"] == 11
    # A tenth of eleven, rounded up, is two.
    assert found["worst_rise"] == pytest.approx((0.6 + 0.4) / 2)
    assert found["after"] == pytest.approx(sum(after[client] for client in before) / 11)


def test_clients_that_measured_only_one_state_do_not_count():
    assert compared({"a": 1.0}, {"b": 1.0}) == {"num_clients": 0}
    assert doubts_of_clients({"num_clients": 0}, 0.1) == []


@pytest.mark.parametrize(
    ("after", "worst", "num_doubts"), [(1.9, 0.04, 0), (2.0, 0.05, 0), (1.9, 0.06, 1), (2.1, 0.04, 1), (2.1, 0.2, 2)]
)
def test_the_mean_may_not_rise_and_the_worst_tenth_only_a_little(after, worst, num_doubts):
    told = {"num_clients": 3, "before": 2.0, "after": after, "worst_rise": worst}
    assert len(doubts_of_clients(told, 0.05)) == num_doubts


@pytest.mark.parametrize(
    ("loss", "contrast", "num_doubts"), [(1.0, 0.8, 0), (2.0, 0.6, 0), (2.1, 0.8, 1), (1.0, 0.5, 1), (2.1, 0.5, 2)]
)
def test_public_loss_may_not_rise_and_the_contrast_must(loss, contrast, num_doubts):
    told = {"before": {"loss": 2.0, "contrast": 0.5}, "after": {"loss": loss, "contrast": contrast}}
    assert len(doubts_of_public(told, 0.1)) == num_doubts


def test_what_is_not_a_number_speaks_against_it():
    told = {"before": {"loss": 2.0}, "after": {"loss": float("nan")}}
    assert len(doubts_of_public(told, 0.1)) == 1
