"""Local training against a plain torch loop and hand-computed steps."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from fedgen.client.first_order import FirstOrder
from fedgen.errors import ClientError
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
