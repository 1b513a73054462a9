"""Training from losses alone, against steps by hand and a plain loop of the paper's algorithm."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from fedgen import seeds
from fedgen.adapter.lora import Lora
from fedgen.client.batches import batches
from fedgen.client.zeroth_order import MAX_SEED, ZerothOrder
from fedgen.directions import direction, replay
from fedgen.errors import ClientError
from fedgen.model.tiny import Tiny
from fedgen.types import Encoded, Example

TARGET = torch.tensor([1.0, -2.0, 3.0])


@dataclass
class Bowl:
    """Stands in for a language model: the loss is half of |w - target|², or of each example's multiple of it."""

    parameter: nn.Parameter = field(default_factory=lambda: nn.Parameter(torch.tensor([0.1, 0.2, 0.3])))
    seen: list[torch.Tensor] = field(default_factory=list)
    graph: list[bool] = field(default_factory=list)
    module = tokenizer = None

    def parameters(self):
        return {"w": self.parameter}

    def state(self):
        return {"w": self.parameter.detach().clone()}

    def load(self, state):
        self.parameter.data.copy_(state["w"])

    def encode(self, examples):
        raise AssertionError("a client gets encoded examples")

    score = generate = importance = holds = encode

    def loss(self, batch, among=None):
        self.seen.append(self.parameter.detach().clone())
        factor = sum(encoded.ids[0] for encoded in batch) / len(batch)
        loss = 0.5 * factor * (self.parameter - TARGET.to(self.parameter.dtype)).square().sum()
        self.graph.append(loss.requires_grad)
        return loss


def examples(*values):
    return [Encoded((value, 0), 1) for value in values]


def generator():
    return torch.Generator().manual_seed(0)


def drawn_seeds(num_steps, per_step=1, num_examples=1):
    """Seeds of directions, as a client draws them among its shuffles."""
    draws, found = generator(), []
    for _ in batches(examples(*[1] * num_examples), 1, num_steps, None, draws):
        found.append(torch.randint(MAX_SEED, (per_step,), generator=draws).tolist())
    return found


def test_one_step_by_hand():
    bowl, start = Bowl(), Bowl().parameter.detach()
    trained = ZerothOrder(learning_rate=0.5, num_steps=1, epsilon=0.25, max_slope=None).train(
        bowl, examples(1), 0.0, generator()
    )
    [[seed]] = drawn_seeds(1)
    z = direction(seed, "w", (3,))
    # Of a bowl the difference of two losses is the slope itself, whatever epsilon: z . (w - target).
    slope = float(z @ (start - TARGET))
    assert [loss.tolist() for loss in bowl.seen] == [(start + 0.25 * z).tolist(), (start - 0.25 * z).tolist()]
    assert bowl.parameter.detach() == pytest.approx(start - 0.5 * slope * z, rel=1e-5)
    assert trained.walk.seeds.tolist() == [seed]
    assert trained.walk.scales.tolist() == pytest.approx([-0.5 * slope], rel=1e-5)
    mean = sum(0.5 * float((seen - TARGET).square().sum()) for seen in bowl.seen) / 2
    assert trained.metrics["loss"] == pytest.approx(mean, rel=1e-6)
    # The change and a copy of the start: two times three fp32 numbers.
    assert {name: n for name, n in trained.metrics.items() if name != "loss"} == {
        "num_steps": 1.0,
        "num_tokens": 2.0,
        "train_bytes": 24.0,
    }


def test_plain_loop_of_the_paper_gives_the_same_weights():
    """Algorithm 1 in fp64, with its steps to and fro."""
    bowl, data = Bowl(), [1, 2, 3]
    option = ZerothOrder(learning_rate=0.02, num_steps=9, batch_size=1, epsilon=1e-2, max_slope=None)
    option.train(bowl, examples(*data), 0.0, generator())
    w, draws = Bowl().parameter.detach().double(), generator()
    for [example] in batches(examples(*data), 1, 9, None, draws):
        seed = int(torch.randint(MAX_SEED, (1,), generator=draws))
        z = direction(seed, "w", (3,)).double()
        ahead = 0.5 * example.ids[0] * (w + 1e-2 * z - TARGET).square().sum()
        behind = 0.5 * example.ids[0] * (w - 1e-2 * z - TARGET).square().sum()
        w = w - 0.02 * (ahead - behind) / 2e-2 * z
    assert bowl.parameter.detach().double() == pytest.approx(w, abs=1e-5)
    assert (w - TARGET).norm() < 0.8 * (Bowl().parameter.detach() - TARGET).norm()


def test_several_directions_count_by_their_mean():
    bowl, start = Bowl(), Bowl().parameter.detach()
    option = ZerothOrder(learning_rate=0.5, num_steps=1, num_perturbations=3, max_slope=None)
    trained = option.train(bowl, examples(1), 0.0, generator())
    [drawn] = drawn_seeds(1, per_step=3)
    signs = [direction(seed, "w", (3,)) for seed in drawn]
    wanted = sum(-0.5 / 3 * float(z @ (start - TARGET)) * z for z in signs)
    assert trained.change["w"] == pytest.approx(wanted, abs=1e-4)
    assert trained.walk.seeds.tolist() == drawn
    assert len(bowl.seen) == 6
    assert trained.metrics["num_steps"] == 1
    assert trained.metrics["num_tokens"] == 2


def test_slopes_are_clipped_on_both_sides():
    option = ZerothOrder(learning_rate=0.25, num_steps=16, max_slope=0.125)
    trained = option.train(Bowl(), examples(1), 0.0, generator())
    # Slopes are 1.7 or more at the start, and 16 steps of this length do not change that.
    assert set(trained.walk.scales.tolist()) == {-0.03125, 0.03125}


@pytest.mark.parametrize(("progress", "rate"), [(0.0, 0.1), (0.5, 0.06), (1.0, 0.02)])
def test_the_rate_falls_on_a_straight_line_over_the_run(progress, rate):
    option = ZerothOrder(learning_rate=0.1, final_learning_rate=0.2, num_steps=1, max_slope=1e-3)
    [scale] = option.train(Bowl(), examples(1), progress, generator()).walk.scales.tolist()
    assert abs(scale) == pytest.approx(1e-3 * rate)


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 7.0])
def test_the_parameters_end_as_their_start_and_the_change_to_the_bit(epsilon):
    bowl, start = Bowl(), Bowl().parameter.detach()
    option = ZerothOrder(learning_rate=1e-3, num_steps=20, epsilon=epsilon)
    trained = option.train(bowl, examples(1, 2), 0.0, generator())
    assert torch.equal(bowl.parameter.detach(), start + trained.change["w"])
    assert torch.equal(replay(trained.walk, {"w": (3,)})["w"], trained.change["w"])
    # Whatever was tried in between left nothing: each pair lies around the place that the walk had reached by then.
    place = torch.zeros(3)
    for number, (seed, scale) in enumerate(zip(*(t.tolist() for t in vars(trained.walk).values()), strict=True)):
        z = direction(seed, "w", (3,))
        assert torch.equal(bowl.seen[2 * number], start + place + epsilon * z)
        assert torch.equal(bowl.seen[2 * number + 1], start + place - epsilon * z)
        place = place + scale * z


def test_no_gradient_is_ever_kept():
    bowl = Bowl()
    ZerothOrder(num_steps=2).train(bowl, examples(1), 0.0, generator())
    assert bowl.graph == [False] * 4
    assert bowl.parameter.grad is None
    assert torch.is_grad_enabled()


def test_epochs_count_instead_of_steps():
    trained = ZerothOrder(num_steps=1, num_epochs=2.0, batch_size=2).train(Bowl(), examples(1, 2, 3), 0.0, generator())
    assert trained.metrics["num_steps"] == 4
    assert trained.metrics["num_tokens"] == 12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_parameters_that_would_lose_small_steps_are_refused(dtype):
    with pytest.raises(ClientError, match="float32") as caught:
        ZerothOrder().train(Bowl(nn.Parameter(torch.zeros(3, dtype=dtype))), examples(1), 0.0, generator())
    assert caught.value.reason == "not_float32"


def test_a_loss_that_is_not_finite_stops_the_client():
    with pytest.raises(ClientError) as caught:
        ZerothOrder().train(Bowl(nn.Parameter(torch.full((3,), math.inf))), examples(1), 0.0, generator())
    assert caught.value.reason == "non_finite_loss"


def test_no_examples_are_refused():
    with pytest.raises(ClientError) as caught:
        ZerothOrder().train(Bowl(), [], 0.0, generator())
    assert caught.value.reason == "no_examples"


@pytest.fixture(scope="module")
def learner():
    """The tiny model with factors beside its layers; a test loads what it begins with."""
    base, adapter = Tiny(hidden_size=32).load(0), Lora(rank=4)
    module = adapter.attach(base.replica(private=False))
    made = base.learner(module, adapter.parameters(module))
    made.load(adapter.initial(module, seeds.derive(0, "initial")))
    return made


@pytest.fixture(scope="module")
def start(learner):
    return learner.state()


@pytest.fixture(scope="module")
def encoded(learner):
    words = ("lamp", "fan", "heater", "blind", "radio", "pump", "valve", "oven")
    return learner.encode([Example(f"{word} {n}: ", f"{word[0].upper()}{n}") for n in range(2) for word in words])


def test_on_a_model_slopes_are_those_of_the_gradient(learner, start, encoded):
    start = {name: tensor + 0.01 for name, tensor in start.items()}
    learner.load(start)
    learner.loss(encoded).backward()
    gradient = {name: p.grad for name, p in learner.parameters().items()}
    for parameter in learner.parameters().values():
        parameter.grad = None
    option = ZerothOrder(learning_rate=1.0, num_steps=1, batch_size=len(encoded), epsilon=1e-3, max_slope=None)
    for seed in range(5):
        learner.load(start)
        trained = option.train(learner, encoded, 0.0, torch.Generator().manual_seed(seed))
        z = {n: direction(int(trained.walk.seeds), n, tuple(t.shape)) for n, t in gradient.items()}
        slope = sum(float((z[name] * t).sum()) for name, t in gradient.items())
        assert -float(trained.walk.scales) == pytest.approx(slope, rel=0.02, abs=0.02)


def test_two_hundred_steps_lower_the_loss(learner, start, encoded):
    def loss():
        scores = learner.score(encoded)
        return sum(score.nll for score in scores) / sum(score.num_tokens for score in scores)

    learner.load(start)
    before = loss()
    ZerothOrder(num_steps=200, batch_size=16).train(learner, encoded, 0.0, generator())
    after = loss()
    assert after < 0.85 * before


@pytest.mark.parametrize(
    "fields",
    [
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"epsilon": 0.0},
        {"epsilon": math.inf},
        {"final_learning_rate": -0.1},
        {"num_steps": 0},
        {"num_epochs": 0.0},
        {"batch_size": 0},
        {"num_perturbations": 0},
        {"max_slope": 0.0},
    ],
)
def test_values_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        ZerothOrder(**fields)
