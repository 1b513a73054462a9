"""Packed rows against each example alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgen.adapter.full import Full
from fedgen.adapter.lora import Lora
from fedgen.model.packing import ROW_TOKENS, pack
from fedgen.model.tiny import Tiny
from fedgen.types import Encoded, Example


@pytest.fixture(scope="module")
def learner():
    base = Tiny(max_length=1024).load(0)
    module = Full().attach(base.replica(private=True))
    return base.learner(module, Full().parameters(module))


def alone(learner, encoded):
    """Loss of one example by a plain forward pass with labels: the independent computation."""
    ids = torch.tensor([encoded.ids])
    labels = ids.clone()
    labels[0, : encoded.num_prompt] = -100
    return learner.module(input_ids=ids, labels=labels).loss, len(encoded.ids) - encoded.num_prompt


sizes = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6)


@settings(max_examples=25)
@given(sizes)
def test_loss_is_the_mean_over_answer_tokens_of_the_examples_alone(learner, sizes):
    batch = [
        Encoded(tuple(range(shared)) + tuple(9 + (7 * k) % 50 for k in range(own + answer)), shared + own)
        for shared, own, answer in sizes
    ]
    parts = [alone(learner, encoded) for encoded in batch]
    expected = sum(loss * n for loss, n in parts) / sum(n for _, n in parts)
    assert learner.loss(batch).item() == pytest.approx(expected.item(), rel=1e-4)
    for score, (loss, n) in zip(learner.score(batch), parts, strict=True):
        assert score.num_tokens == n
        assert score.nll == pytest.approx(loss.item() * n, rel=1e-4)


def test_gradients_equal_those_of_the_examples_alone(learner):
    batch = [Encoded((1, 2, 3, 4, 5, 6), 3), Encoded((1, 2, 3, 9), 3), Encoded((1, 7, 8, 9, 10), 2)]
    parameters = learner.parameters()
    parts = [alone(learner, encoded) for encoded in batch]
    sum(loss * n for loss, n in parts).div(sum(n for _, n in parts)).backward()
    expected = {name: p.grad.clone() for name, p in parameters.items()}
    learner.module.zero_grad()
    learner.loss(batch).backward()
    for name, p in parameters.items():
        assert torch.allclose(p.grad, expected[name], atol=1e-6, rtol=1e-3), name
    learner.module.zero_grad()


def test_the_common_beginning_is_laid_once():
    packed = pack([Encoded((1, 2, 3, 4, 5), 4), Encoded((1, 2, 3, 9, 8, 7), 4)])
    # Three shared tokens; the fourth prompt token predicts the answer and stays with its example.
    assert packed.ids.tolist() == [[1, 2, 3, 4, 5, 9, 8, 7]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5]]
    assert packed.columns.tolist() == [3, 5, 6]
    assert packed.targets.tolist() == [5, 8, 7]
    assert packed.owners.tolist() == [0, 1, 1]
    assert packed.visible[0, 0, 5].tolist() == [True, True, True, False, False, True, False, False]


def test_long_examples_get_rows_of_their_own():
    packed = pack([Encoded(tuple(range(ROW_TOKENS)), 5), Encoded((900, *range(ROW_TOKENS // 2)), 5)])
    assert packed.ids.shape[0] == 2


def test_an_answer_is_exact_when_it_is_what_greedy_decoding_gives(learner):
    example = Example("lamp", learner.generate("lamp", max_new_tokens=4))
    # A random model rarely ends its answer, so the closing token is left out of the comparison.
    encoded = learner.encode([example])[0]
    assert learner.score([Encoded(encoded.ids[:-1], encoded.num_prompt)])[0].exact
    wrong = Encoded((*encoded.ids[:-2], (encoded.ids[-2] + 1) % 200), encoded.num_prompt)
    assert not learner.score([wrong])[0].exact


def test_lora_learner_gives_the_same_loss_as_the_plain_model_while_b_is_zero(learner):
    base = Tiny(max_length=1024).load(0)
    lora = Lora()
    module = lora.attach(base.replica(private=False))
    adapted = base.learner(module, lora.parameters(module))
    adapted.load(lora.initial(module, torch.Generator().manual_seed(0)))
    batch = [Encoded((1, 2, 3, 4, 5, 6), 3)]
    assert adapted.loss(batch).item() == pytest.approx(learner.loss(batch).item(), rel=1e-5)
