"""The fused loss against torch's own."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from fedgen.model.loss import CHUNK_TOKENS, mean_loss, restrict, token_losses


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    tokens = 2 * CHUNK_TOKENS + 3
    hidden = torch.randn(tokens, 16, generator=generator, requires_grad=True)
    head = torch.randn(40, 16, generator=generator, requires_grad=True)
    return hidden, head, torch.randint(0, 40, (tokens,), generator=generator)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 16, CHUNK_TOKENS, 2 * CHUNK_TOKENS + 3, 10**6, None])
@pytest.mark.parametrize("head_trains", [False, True])
def test_value_and_gradients_equal_those_of_torch(case, head_trains, chunk_tokens):
    hidden, head, targets = case
    head = head.detach().requires_grad_(head_trains)
    wanted = [hidden, head] if head_trains else [hidden]
    expected = cross_entropy(hidden @ head.T, targets)
    ours = mean_loss(hidden, head, targets, chunk_tokens)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    for a, b in zip(torch.autograd.grad(3 * ours, wanted), torch.autograd.grad(3 * expected, wanted), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_change_to_some_rows_of_a_frozen_head_is_a_head_with_that_change(case):
    hidden, head, targets = case
    head, rows = head.detach(), torch.tensor([0, 3, 4, 17, 39])
    added = torch.randn(5, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    logits = hidden @ head.index_add(0, rows, added).T
    expected, ours = cross_entropy(logits, targets), mean_loss(hidden, head, targets, change=(rows, added))
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = [torch.autograd.grad(3 * loss, [hidden, added]) for loss in (ours, expected)]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    losses, right = token_losses(hidden, head, targets, change=(rows, added))
    assert torch.allclose(losses, cross_entropy(logits, targets, reduction="none"), atol=1e-5)
    assert torch.equal(right, logits.argmax(1) == targets)
    assert not torch.equal(right, token_losses(hidden, head, targets)[1])


def test_without_a_gradient_the_loss_is_the_same_and_none_is_made(case):
    hidden, head, targets = case
    expected = cross_entropy(hidden @ head.T, targets).item()
    with torch.no_grad(), Made() as made:
        ours = mean_loss(hidden, head, targets, 10)
    assert ours.item() == pytest.approx(expected, rel=1e-6)
    assert made.sizes(hidden, head, targets)[:2] == [10 * 40, 10 * 40]
    assert not ours.requires_grad


def test_bfloat16_head_stays_close(case):
    hidden, head, targets = (t.detach() for t in case)
    exact = cross_entropy(hidden @ head.T, targets).item()
    assert mean_loss(hidden.bfloat16(), head.bfloat16(), targets).item() == pytest.approx(exact, rel=2e-2)


@pytest.mark.parametrize("chunk_tokens", [1, 7, CHUNK_TOKENS, None])
def test_token_losses_and_first_choices(case, chunk_tokens):
    hidden, head, targets = (t.detach() for t in case)
    targets[5] = (hidden[5] @ head.T).argmax()
    losses, right = token_losses(hidden, head, targets, chunk_tokens)
    assert torch.allclose(losses, cross_entropy(hidden @ head.T, targets, reduction="none"), atol=1e-5)
    assert torch.equal(right, (hidden @ head.T).argmax(1) == targets)
    assert right[5]


def test_tokens_that_take_no_part_are_as_with_logits_of_minus_infinity(case):
    hidden, head, targets = case
    among = torch.tensor([1, 4, 5, 17, 39])
    targets = among[targets % len(among)]
    absent = torch.ones(40, dtype=torch.bool)
    absent[among] = False
    expected = cross_entropy((hidden @ head.T).masked_fill(absent, -torch.inf), targets)
    ours = mean_loss(hidden, *restrict(head, targets, among))
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = torch.autograd.grad(ours, [hidden, head])
    for a, b in zip(gradients, torch.autograd.grad(expected, [hidden, head]), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert not gradients[1][absent].any()


def test_without_a_choice_the_head_is_not_copied(case):
    _, head, targets = case
    kept = restrict(head, targets, None)
    assert kept[0] is head
    assert kept[1] is targets


class Made(TorchDispatchMode):
    """Holds what operations make, so that no two tensors that are made can lie in the same place."""

    def __init__(self):
        super().__init__()
        self.tensors = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        self.tensors += [made] if isinstance(made, torch.Tensor) else []
        return made

    def sizes(self, *given):
        """Number of entries of each memory that was made and not given, largest first."""
        own = {tensor.untyped_storage().data_ptr() for tensor in given}
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // 4 for t in self.tensors}
        return sorted((size for place, size in storages.items() if place not in own), reverse=True)


@pytest.mark.parametrize(("chunk_tokens", "rows"), [(10, 10), (None, 2 * CHUNK_TOKENS + 3)])
def test_no_more_rows_of_logits_exist_than_are_asked_for(case, chunk_tokens, rows):
    hidden, _, targets = case
    head = torch.randn(1000, 16)
    for run in (mean_loss, token_losses):
        with Made() as made:
            run(hidden, head, targets, chunk_tokens)
        assert made.sizes(hidden, head, targets)[0] == rows * 1000


def test_the_gradient_of_the_head_is_made_once(case):
    hidden, _, targets = case
    head = torch.randn(1000, 16, requires_grad=True)
    with Made() as made:
        gradient = torch.autograd.grad(3 * mean_loss(hidden, head, targets, 3), head)[0]
    assert gradient.shape == head.shape
    assert [size for size in made.sizes(hidden, head, targets) if size >= head.numel()] == [head.numel()]


def test_a_second_backward_pass_is_refused_and_not_wrong(case):
    hidden, head, targets = case
    loss = 3 * mean_loss(hidden, head, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
