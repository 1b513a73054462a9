"""The fused loss against torch's own."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedgen.model.loss import CHUNK_TOKENS, mean_loss, token_losses


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    tokens = 2 * CHUNK_TOKENS + 3
    hidden = torch.randn(tokens, 16, generator=generator, requires_grad=True)
    head = torch.randn(40, 16, generator=generator, requires_grad=True)
    return hidden, head, torch.randint(0, 40, (tokens,), generator=generator)


@pytest.mark.parametrize("head_trains", [False, True])
def test_value_and_gradients_equal_those_of_torch(case, head_trains):
    hidden, head, targets = case
    head = head.detach().requires_grad_(head_trains)
    wanted = [hidden, head] if head_trains else [hidden]
    expected = cross_entropy(hidden @ head.T, targets)
    ours = mean_loss(hidden, head, targets)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    for a, b in zip(torch.autograd.grad(3 * ours, wanted), torch.autograd.grad(3 * expected, wanted), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_bfloat16_head_stays_close(case):
    hidden, head, targets = (t.detach() for t in case)
    exact = cross_entropy(hidden @ head.T, targets).item()
    assert mean_loss(hidden.bfloat16(), head.bfloat16(), targets).item() == pytest.approx(exact, rel=2e-2)


def test_token_losses_and_first_choices(case):
    hidden, head, targets = (t.detach() for t in case)
    targets[5] = (hidden[5] @ head.T).argmax()
    losses, right = token_losses(hidden, head, targets)
    assert torch.allclose(losses, cross_entropy(hidden @ head.T, targets, reduction="none"), atol=1e-5)
    assert torch.equal(right, (hidden @ head.T).argmax(1) == targets)
    assert right[5]
