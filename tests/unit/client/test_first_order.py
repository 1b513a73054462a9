"""Local training against a plain torch loop and hand-computed steps."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from fedgen import tree
from fedgen.adapter.full import Full
from fedgen.adapter.lora import Lora
from fedgen.client.first_order import FirstOrder
from fedgen.errors import ClientError
from fedgen.model.tiny import Tiny
from fedgen.types import Encoded


@dataclass
class Line:
    """Stands in for a language model: the loss is the mean of (w - first id)² over the batch."""

    parameter: nn.Parameter = field(default_factory=lambda: nn.Parameter(torch.zeros(1)))
    seen: list[list[int]] = field(default_factory=list)
    among: list[object] = field(default_factory=list)

    def parameters(self):
        return {"w": self.parameter}

    def state(self):
        return {"w": self.parameter.detach().clone()}

    def load(self, state):
        self.parameter.data.copy_(state["w"])

    module = tokenizer = None

    def encode(self, examples):
        raise AssertionError("a client gets encoded examples")

    score = generate = importance = holds = encode

    def loss(self, batch, among=None):
        self.seen.append([encoded.ids[0] for encoded in batch])
        self.among.append(among)
        return torch.stack([(self.parameter - e.ids[0]).square().sum() for e in batch]).mean()


def examples(*values):
    return [Encoded((value, 0), 1) for value in values]


def generator():
    return torch.Generator().manual_seed(0)


def test_one_step_of_sgd_by_hand():
    line = Line()
    # loss (0 - 3)² = 9, gradient -6, step 0 + 0.1 * 6
    trained = FirstOrder(learning_rate=0.1, num_steps=1, optimizer="sgd", max_grad_norm=None).train(
        line, examples(3), 0.0, generator()
    )
    assert line.parameter.item() == pytest.approx(0.6)
    assert trained.change["w"].item() == line.parameter.item()
    assert trained.walk is None
    # One gradient of one fp32 number, and plain SGD keeps nothing.
    assert trained.metrics == {"loss": 9.0, "num_steps": 1.0, "num_tokens": 2.0, "train_bytes": 4.0}


def test_gradients_are_clipped():
    line = Line()
    FirstOrder(learning_rate=0.1, num_steps=1, optimizer="sgd", max_grad_norm=1.0).train(
        line, examples(3), 0.0, generator()
    )
    assert line.parameter.item() == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize(("progress", "rate"), [(0.0, 0.1), (0.5, 0.06), (1.0, 0.02)])
def test_the_rate_falls_on_a_straight_line_over_the_run(progress, rate):
    line = Line()
    option = FirstOrder(learning_rate=0.1, final_learning_rate=0.2, num_steps=1, optimizer="sgd", max_grad_norm=None)
    option.train(line, examples(3), progress, generator())
    assert line.parameter.item() == pytest.approx(6 * rate)


def test_adamw_equals_torchs_unfused_loop():
    line, plain = Line(), nn.Parameter(torch.zeros(1))
    FirstOrder(learning_rate=0.1, num_steps=3, weight_decay=0.1, max_grad_norm=None).train(
        line, examples(3), 0.0, generator()
    )
    optimizer = torch.optim.AdamW([plain], lr=0.1, weight_decay=0.1, fused=False, foreach=False)
    for _ in range(3):
        optimizer.zero_grad()
        (plain - 3).square().sum().backward()
        optimizer.step()
    assert line.parameter.item() == pytest.approx(plain.item(), rel=1e-6)


def test_a_pass_takes_every_example_once_and_the_next_is_shuffled_anew():
    line = Line()
    FirstOrder(num_steps=6, batch_size=2).train(line, examples(1, 2, 3, 4, 5), 0.0, generator())
    assert [len(batch) for batch in line.seen] == [2, 2, 1, 2, 2, 1]
    first, second = ([value for batch in line.seen[part] for value in batch] for part in (slice(3), slice(3, 6)))
    assert sorted(first) == sorted(second) == [1, 2, 3, 4, 5]
    assert first != second


def test_a_client_with_fewer_examples_than_a_batch_takes_all_it_has():
    line = Line()
    FirstOrder(num_steps=2, batch_size=8).train(line, examples(1, 2), 0.0, generator())
    assert [sorted(batch) for batch in line.seen] == [[1, 2], [1, 2]]


def test_epochs_count_instead_of_steps():
    line = Line()
    FirstOrder(num_steps=1, num_epochs=2.0, batch_size=2).train(line, examples(1, 2, 3), 0.0, generator())
    assert len(line.seen) == 4


def test_a_loss_that_is_not_finite_stops_the_client():
    line = Line(nn.Parameter(torch.tensor([math.nan])))
    with pytest.raises(ClientError) as caught:
        FirstOrder().train(line, examples(1), 0.0, generator())
    assert caught.value.reason == "non_finite_loss"


def test_no_examples_are_refused():
    with pytest.raises(ClientError) as caught:
        FirstOrder().train(Line(), [], 0.0, generator())
    assert caught.value.reason == "no_examples"


def test_no_gradient_is_left_behind():
    line = Line()
    FirstOrder(num_steps=1).train(line, examples(1), 0.0, generator())
    assert line.parameter.grad is None


def test_plain_loop_of_the_paper_gives_the_same_weights():
    line, plain, data = Line(), torch.zeros(1), [1, 2, 3, 4]
    option = FirstOrder(learning_rate=0.1, num_steps=4, batch_size=2, optimizer="sgd", max_grad_norm=None)
    option.train(line, examples(*data), 0.0, generator())
    draws = generator()
    for _ in range(2):
        order = torch.randperm(4, generator=draws).tolist()
        for pair in (order[:2], order[2:]):
            mean = sum(data[i] for i in pair) / 2
            plain = plain - 0.1 * 2 * (plain - mean)
    assert line.parameter.item() == pytest.approx(plain.item(), rel=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"final_learning_rate": -0.1},
        {"num_steps": 0},
        {"num_epochs": 0.0},
        {"batch_size": 0},
        {"weight_decay": -1.0},
        {"max_grad_norm": 0.0},
        {"beta2": 1.0},
        {"micro_batch": 0},
        {"fused": True},
        {"fused": True, "max_grad_norm": 2.0},
    ],
)
def test_values_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        FirstOrder(**fields)


def test_the_softmax_may_be_over_the_tokens_of_the_answers_alone():
    mine = [Encoded((7, 9, 2), 1), Encoded((1, 3, 9), 2)]
    line = Line()
    FirstOrder(num_steps=2, mask_absent=True).train(line, mine, 0.0, generator())
    assert [among.tolist() for among in line.among] == [[2, 9], [2, 9]]
    line = Line()
    FirstOrder(num_steps=1).train(line, mine, 0.0, generator())
    assert line.among == [None]


# --- pieces of a batch, and updates within the backward pass --------------------------------------------------------

UNEQUAL = [Encoded((7, 3, 9, 27, 5), 2), Encoded((7, 3, 11, 4), 3), Encoded((1, 2, 3, 4, 5, 6, 7), 1)]


def learner_of(adapter, **fields):
    base = Tiny(hidden_size=32, **fields).load(0)
    module = adapter.attach(base.replica(private=adapter.trains_base))
    learner = base.learner(module, adapter.parameters(module))
    learner.load(adapter.initial(module, generator()))
    return learner


def change(option, adapter, data=UNEQUAL, **fields):
    learner = learner_of(adapter, **fields)
    before = learner.state()
    trained = option.train(learner, data, 0.0, generator())
    moved = tree.subtract(learner.state(), before)
    assert all(torch.equal(trained.change[name], tensor) for name, tensor in moved.items())
    return trained.metrics, trained.change


def sgd(**fields):
    return FirstOrder(**{"learning_rate": 0.1, "num_steps": 2, "batch_size": 3, "optimizer": "sgd", **fields})


@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
@pytest.mark.parametrize("mask_absent", [False, True])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 7])
@pytest.mark.parametrize("adapter", [Full(), Lora(rank=2)])
def test_the_gradients_of_pieces_add_up_to_those_of_the_batch(adapter, micro_batch, mask_absent, max_grad_norm):
    """With answers of other lengths, so that a mean of the pieces' means is something else."""
    fields = {"mask_absent": mask_absent, "max_grad_norm": max_grad_norm}
    whole, wanted = change(sgd(**fields), adapter)
    metrics, found = change(sgd(micro_batch=micro_batch, **fields), adapter)
    assert tree.largest(wanted) > 1e-4
    assert tree.largest(tree.subtract(found, wanted)) <= 1e-6
    assert metrics.pop("loss") == pytest.approx(whole.pop("loss"), rel=1e-6)
    assert metrics == whole


def test_pieces_weigh_as_much_as_they_have_answer_tokens():
    data, line = [Encoded((1, 0), 1), Encoded((5, 0, 0, 0), 1)], Line()
    option = FirstOrder(learning_rate=0.1, num_steps=1, optimizer="sgd", max_grad_norm=None, micro_batch=1)
    metrics = option.train(line, data, 0.0, generator()).metrics
    # One of four tokens pulls to 1 and three pull to 5: gradient -2 (1 / 4 + 15 / 4).
    assert line.parameter.item() == pytest.approx(0.8)
    assert metrics["loss"] == pytest.approx(1 / 4 + 25 * 3 / 4)
    assert sorted(line.seen) == [[1], [5]]


def test_a_piece_holds_less_than_the_batch():
    """Of each piece just the gradients stay, so that no two are kept at once."""
    line, alive = Line(), []
    loss = line.loss

    def counted(batch, among=None):
        alive.append(line.parameter.grad is not None)
        return loss(batch, among)

    line.loss = counted
    FirstOrder(num_steps=2, batch_size=3, micro_batch=1).train(line, examples(1, 2, 3), 0.0, generator())
    assert alive == [False, True, True] * 2


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "fields", [{"optimizer": "sgd"}, {"optimizer": "sgd", "weight_decay": 0.1}, {"optimizer": "adamw"}]
)
@pytest.mark.parametrize("adapter", [Full(), Lora(rank=2)])
def test_fused_updates_are_those_of_a_step_to_the_bit(adapter, fields, checkpointing):
    fields = {"num_steps": 3, "batch_size": 2, "learning_rate": 0.01, "max_grad_norm": None, **fields}
    plain, wanted = change(FirstOrder(**fields), adapter, checkpointing=checkpointing)
    metrics, found = change(FirstOrder(**fields, fused=True), adapter, checkpointing=checkpointing)
    assert tree.largest(wanted) > 1e-4
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert metrics.pop("train_bytes") < plain.pop("train_bytes")
    assert metrics == plain


def test_a_gradient_is_used_once_and_dropped_before_the_next_is_there():
    """The head is the embedding as well: one weight, one gradient out of both."""
    learner, seen = learner_of(Full()), []
    parameters = list(learner.parameters().values())
    assert learner.module.lm_head.weight is learner.module.model.embed_tokens.weight
    hooks = [
        parameter.register_post_accumulate_grad_hook(
            lambda p: seen.append((id(p), sum(other.grad is not None for other in parameters)))
        )
        for parameter in parameters
    ]
    FirstOrder(num_steps=1, max_grad_norm=None, fused=True).train(learner, UNEQUAL, 0.0, generator())
    for hook in hooks:
        hook.remove()
    assert sorted(place for place, _ in seen) == sorted(id(parameter) for parameter in parameters)
    assert {num_gradients for _, num_gradients in seen} == {1}


def test_what_fused_training_needs_is_the_largest_gradient_and_the_state():
    line = Line(nn.Parameter(torch.zeros(5)))
    option = FirstOrder(num_steps=1, optimizer="sgd", max_grad_norm=None, fused=True)
    assert option.train(line, examples(3), 0.0, generator()).metrics["train_bytes"] == 20


@pytest.mark.parametrize("weight", [0.0, math.nan])
def test_no_update_comes_after_a_client_is_done_or_has_failed(weight):
    line = Line(nn.Parameter(torch.tensor([weight])))
    option = FirstOrder(num_steps=1, max_grad_norm=None, fused=True)
    if math.isnan(weight):
        with pytest.raises(ClientError):
            option.train(line, examples(1), 0.0, generator())
    else:
        option.train(line, examples(1), 0.0, generator())
    after = line.parameter.detach().clone()
    line.loss(examples(1)).backward()
    assert line.parameter.grad is not None
    assert torch.equal(line.parameter, after) or math.isnan(weight)


def test_no_gradient_of_a_piece_is_left_behind_by_a_client_that_fails():
    line, loss = Line(), Line.loss
    line.loss = lambda batch, among=None: loss(line, batch) * (math.nan if len(line.seen) > 1 else 1.0)
    with pytest.raises(ClientError):
        FirstOrder(num_steps=1, batch_size=2, micro_batch=1).train(line, examples(1, 2), 0.0, generator())
    assert len(line.seen) == 2
    assert line.parameter.grad is None


@pytest.mark.parametrize(
    ("fields", "ways"),
    [
        ({}, "Set max_grad_norm to null, or fused to false"),
        ({"max_grad_norm": None, "micro_batch": 2}, "Set micro_batch to null, or fused to false"),
    ],
)
def test_what_fused_cannot_go_with_is_refused_with_the_ways_out(fields, ways):
    with pytest.raises(ValueError, match=ways):
        FirstOrder(fused=True, **fields)
