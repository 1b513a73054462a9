"""The dry run counts what a step makes: sizes by hand, and the same step with numbers."""

from functools import partial

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgen.adapter.frozen_a import FrozenA
from fedgen.adapter.full import Full
from fedgen.adapter.lora import Lora
from fedgen.client.first_order import FirstOrder
from fedgen.client.zeroth_order import ZerothOrder
from fedgen.dryrun import alike, follow
from fedgen.footprint import Footprint, footprint, hole_bytes
from fedgen.model.tiny import Tiny
from fedgen.types import Encoded

KB = 1024


def squares(length, keep=False):
    """Squares of 1 KB of numbers, one after the other; with all that a derivative needs, or without."""
    numbers = torch.ones(256, requires_grad=keep)

    def work():
        value = numbers
        for _ in range(length):
            value = value.square()
        if keep:
            torch.autograd.grad(value.sum(), numbers)

    return work


def test_without_a_backward_pass_two_neighbours_live_at_once():
    # Each square lives until the next one is there.
    assert follow(squares(5)) == (2 * KB, 0)
    assert follow(squares(50)) == (2 * KB, 0)


def test_for_a_backward_pass_every_input_of_a_square_is_kept():
    short, long = (follow(squares(length, keep=True))[0] for length in (5, 9))
    assert long - short == 4 * KB


def test_smaller_tensors_of_the_forward_pass_are_summed_up():
    # Five squares of 1 KB, their sum, and the one with which the way back begins; what that makes is not counted.
    assert follow(squares(5), (KB, KB + 1, 4))[2:] == (0, 5 * KB, 0)
    assert follow(squares(5, keep=True), (KB, KB + 1, 4))[2:] == (8, 5 * KB + 8, 0)


def test_a_second_gradient_is_added_to_the_first_where_that_is():
    numbers = torch.ones(16, 16, requires_grad=True)

    def work():
        torch.autograd.grad(numbers[0].sum() + numbers[:, 0].sum(), numbers)

    # Each row's and each column's gradient is as large as all of it.
    assert 2 * KB <= follow(work)[0] < 2 * KB + 512


def test_gradients_that_are_dropped_are_not_there_at_once():
    one = learner(Full(), private=True, num_layers=4)
    kept, dropped = (footprint(one, batch(8), backward=True, drops=drops) for drops in (False, True))
    assert all(parameter.grad is None for parameter in one.parameters().values())
    assert kept.trained_bytes == dropped.trained_bytes == 4 * sum(p.numel() for p in one.plain().parameters())
    assert kept.step_bytes >= kept.trained_bytes
    assert dropped.step_bytes < kept.trained_bytes / 2


def test_holes_are_a_share_of_the_smaller_tensors_and_of_what_is_held():
    def holes(small, tight_small, client, tight=False):
        return hole_bytes(Footprint(0, 100, 1000, 0, {2**20: small, 2**17: tight_small}), client, tight=tight)

    sgd = FirstOrder(optimizer="sgd")
    assert holes(500, 50, sgd) == 300
    assert holes(500, 50, sgd, tight=True) == 30
    # Held are 1,100: 0.6 of these is more than 0.35 of 1,800, and less than 0.35 of 5,000.
    assert holes(1800, 50, sgd) == 660
    assert holes(5000, 50, sgd) == 1750
    assert holes(5000, 5000, sgd, tight=True) == 660
    assert holes(5000, 50, ZerothOrder()) == 0


def test_a_view_takes_nothing_and_a_copy_does():
    numbers = torch.ones(4, 64)
    assert follow(lambda: numbers.T[1:].T) == (0, 0)
    assert follow(lambda: numbers.T.contiguous()) == (KB, 0)
    assert follow(lambda: (numbers + 1).add_(1).mul_(2)) == (KB, 0)


def test_a_product_is_two_times_its_three_sizes():
    left, right = torch.ones(3, 5), torch.ones(5, 7)
    assert follow(lambda: left @ right) == (4 * 3 * 7, 2 * 3 * 5 * 7)
    assert follow(lambda: left.expand(2, 3, 5) @ right.expand(2, 5, 7))[1] == 2 * 2 * 3 * 5 * 7
    assert follow(lambda: torch.nn.functional.linear(left, right.T))[1] == 2 * 3 * 5 * 7
    assert follow(lambda: torch.addmm(torch.ones(7), left, right))[1] == 2 * 3 * 5 * 7


def sums(sizes):
    """A sum of so many KB of numbers, made of as many twice as large ones that are let go."""

    def work(size):
        return torch.ones(2, 256 * size).sum(0) @ torch.ones(256 * size, 1)

    return [partial(work, size) for size in sizes]


@given(st.lists(st.integers(min_value=1, max_value=3), min_size=1, max_size=6), st.booleans())
def test_work_that_is_done_again_takes_what_it_took_the_first_time(sizes, keep):
    def plain():
        kept = [work() for work in sums(sizes)]
        return kept if keep else None

    def folded():
        kept = [alike(size, work) for size, work in zip(sizes, sums(sizes), strict=True)]
        return kept if keep else None

    assert follow(folded) == follow(plain)


def test_outside_of_a_dry_run_all_work_is_done():
    assert [alike("key", lambda n=n: torch.full((2,), n)).tolist() for n in (1.0, 2.0)] == [[1.0, 1.0], [2.0, 2.0]]


def learner(adapter=None, private=False, **fields):
    base = Tiny(**fields).load(0)
    adapter = adapter or Lora()
    module = adapter.attach(base.replica(private=private))
    return base.learner(module, adapter.parameters(module))


def batch(length, number=1):
    return [Encoded(tuple(range(k, k + length)), 1) for k in range(number)]


def test_products_are_counted_twice_over_their_three_sizes():
    found = footprint(learner(num_layers=1), batch(16), backward=False)
    base = Tiny(num_layers=1).load(0)
    hidden, vocab = base.module.config.hidden_size, base.module.config.vocab_size
    ffn, kv = base.module.config.intermediate_size, base.module.model.layers[0].self_attn.k_proj.out_features
    weights = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ffn
    rank = 8
    factors = rank * (4 * hidden + 2 * hidden + 2 * kv + 3 * (hidden + ffn))
    attention = 2 * 16 * hidden  # scores and values
    # No backward pass, so the logits are the loss's only product.
    assert found.step_flops == 2 * (16 * (weights + factors + attention) + 15 * hidden * vocab)


def test_the_weights_are_those_that_are_held():
    one = learner()
    frozen = sum(p.numel() * p.element_size() for p in one.plain().parameters() if not p.requires_grad)
    found = footprint(one, batch(8), backward=True)
    tables = sum(b.numel() * b.element_size() for b in one.plain().buffers())
    assert found.weight_bytes == frozen + tables
    assert found.trained_bytes == 4 * sum(p.numel() for p in one.parameters().values())


def test_nothing_is_changed_and_nothing_is_left_behind():
    one = learner()
    before = one.state()
    first = footprint(one, batch(8), backward=True)
    assert all(parameter.grad is None for parameter in one.parameters().values())
    assert all(torch.equal(before[name], tensor) for name, tensor in one.state().items())
    assert footprint(one, batch(8), backward=True) == first
    loss = one.loss(batch(8))
    loss.backward()
    assert torch.isfinite(loss)


def test_longer_examples_and_more_of_them_take_more():
    one = learner()
    sizes = [footprint(one, batch(*shape), backward=True).step_bytes for shape in ((16,), (32,), (32, 4))]
    assert sizes == sorted(set(sizes))


def test_layers_below_the_first_that_is_trained_keep_nothing():
    whole, top = (
        footprint(learner(Lora(top_layers=share), num_layers=4), batch(32), backward=True) for share in (1.0, 0.25)
    )
    assert top.step_bytes < 0.5 * whole.step_bytes


def test_a_frozen_a_keeps_less():
    both, frozen = (footprint(learner(adapter), batch(32), backward=True) for adapter in (Lora(), FrozenA()))
    assert frozen.step_bytes < both.step_bytes
