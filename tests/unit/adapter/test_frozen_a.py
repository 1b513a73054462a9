"""A is the same everywhere and stays at home; B alone is trained, and a mean of Bs is a mean of products."""

import pytest
import torch

from fedgen import seeds, tree
from fedgen.adapter.frozen_a import FrozenA
from fedgen.adapter.lora import Lora
from fedgen.aggregation.mean import Mean
from fedgen.device import Holding, answer
from fedgen.extraction.random import Random
from fedgen.messages import Request
from fedgen.model.tiny import Tiny
from fedgen.types import Encoded, Part, Update
from tests.conformance.grounds import CLIENTS, make_ground
from tests.conformance.options import disturb

OPTION = FrozenA(rank=4)
BATCH = [Encoded((1, 2, 3, 4, 5), 2), Encoded((9, 8, 7, 6), 1)]


@pytest.fixture(scope="module")
def base():
    return Tiny(hidden_size=32).load(0)


@pytest.fixture(scope="module")
def ground(base):
    return make_ground(base, OPTION, extraction=Random(axes=("ffn", "kv", "residual")))


def factors(learner):
    return OPTION.parameters(learner.module)


def test_the_factors_are_those_of_lora(base):
    """Drawn alike, scaled alike, and of the same names."""
    modules = {type(option): option.attach(base.replica(private=False)) for option in (OPTION, Lora(rank=4))}
    states = [option.initial(modules[type(option)], seeds.derive(0, "initial")) for option in (OPTION, Lora(rank=4))]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert OPTION.axes(states[0], base.axes) == Lora(rank=4).axes(states[0], base.axes)
    scales = [
        {m.scaling["default"] for m in module.modules() if isinstance(vars(m).get("scaling"), dict)}
        for module in modules.values()
    ]
    assert scales == [{4.0}, {4.0}]


def test_a_is_fixed_and_b_is_trained_in_every_round():
    a, b = "base_model.model.x.lora_A.weight", "base_model.model.x.lora_B.weight"
    assert OPTION.is_fixed(a)
    assert not OPTION.is_fixed(b)
    assert all(OPTION.is_trained(b, round) and not OPTION.is_trained(a, round) for round in range(1, 5))
    assert not OPTION.trains_base


def test_only_b_is_in_the_state_and_can_be_trained(base, ground):
    [learner] = ground.experiment.learners(base, 1)
    assert all(".lora_B." in name for name in learner.parameters())
    assert len(learner.parameters()) == len(factors(learner)) / 2 == len(ground.fixed)
    assert learner.state().keys() == ground.experiment.initial_state(learner).keys() == learner.parameters().keys()
    assert ground.sent(Part()).keys() == ground.returned(Part(), 1).keys() == learner.state().keys()
    assert ground.is_plain(Part(), 1)
    learner.load({name: t + 0.1 for name, t in learner.state().items()})
    before = {name: p.detach().clone() for name, p in factors(learner).items()}
    learner.loss(BATCH).backward()
    torch.optim.SGD(learner.parameters().values(), lr=0.1).step()
    for name, parameter in factors(learner).items():
        assert (parameter.grad is None) == (".lora_A." in name)
        assert torch.equal(parameter, before[name]) == (".lora_A." in name), name


def test_every_client_has_the_slice_of_the_same_a(base, ground):
    [whole] = ground.experiment.learners(base, 1)
    whole_a = {name: p.detach() for name, p in factors(whole).items() if ".lora_A." in name}
    assert all(torch.equal(tensor, ground.fixed[name]) for name, tensor in whole_a.items())
    assert whole_a.keys() == ground.fixed.keys()
    assert all(tensor.any() for tensor in whole_a.values())
    held = []
    for client in CLIENTS:
        disturb()
        part = ground.part(client, 1, 0.5)
        learner = ground.learner(part, 1, client)
        plan = tree.plan_of(ground.axes, part.kept)
        wanted = tree.cut(whole_a, {name: plan[name] for name in whole_a})
        own = {name: p.detach() for name, p in factors(learner).items() if ".lora_A." in name}
        assert own.keys() == wanted.keys()
        assert all(torch.equal(own[name], tensor) for name, tensor in wanted.items())
        assert ground.sent(part).keys() == learner.state().keys() == plan.keys() - whole_a.keys()
        assert all(".lora_B." in name for name in learner.state())
        held.append(tuple(part.kept["residual"].tolist()))
    assert len(set(held)) == len(CLIENTS)


def test_another_run_and_the_other_side_draw_the_same_a(base):
    disturb()
    grounds = [make_ground(base, OPTION), make_ground(base, OPTION), make_ground(base, OPTION, seed=1)]
    same, again, other = (ground.fixed for ground in grounds)
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert not any(torch.equal(same[name], other[name]) for name in same)


def test_what_travels_is_b_alone(base, ground):
    """A request holds the cut of B, the reply the change to it."""
    experiment = ground.experiment
    [learner] = experiment.learners(base, 1)
    state = experiment.initial_state(learner)
    part = ground.part("barn", 1, 0.5)
    sent = tree.cut(state, ground.sent(part))
    request = Request(1, "barn", 0.0, part, experiment.wire.encode(sent), base.fingerprint)
    reply = answer(ground, request, learner, Holding(BATCH, ["", ""]))
    assert reply.error == ""
    change = experiment.wire.decode(reply.payload)
    assert {name: t.shape for name, t in change.items()} == {name: t.shape for name, t in sent.items()}
    assert any(t.any() for t in change.values())


def test_the_mean_of_b_is_exactly_the_mean_of_the_products(base):
    """With whole numbers no sum rounds. Averaging both factors of LoRA gives something else."""
    generator = torch.Generator().manual_seed(0)
    weights = (1, 3, 4)

    def draw(*shape):
        return torch.randint(-8, 8, shape, generator=generator).float()

    a, start = draw(4, 6), draw(5, 4)
    changes = [8 * draw(5, 4) for _ in weights]
    option, name = Mean(), "base_model.model.x.lora_B.weight"
    state = {name: start}
    total = option.zero(state)
    for change, weight in zip(changes, weights, strict=True):
        option.add(total, Update({name: (None, None)}, {name: change}, weight))
    after, _ = option.apply(state, option.init(state), total)
    products = sum(w * ((start + change) @ a) for change, w in zip(changes, weights, strict=True)) / 8
    assert torch.equal(after[name] @ a, products)
    both = sum(w * (start + change) for change, w in zip(changes, weights, strict=True)) / 8
    other_a = [a + 8 * draw(4, 6) for _ in weights]
    mean_a = sum(w * x for x, w in zip(other_a, weights, strict=True)) / 8
    true = sum(w * ((start + c) @ x) for c, x, w in zip(changes, other_a, weights, strict=True)) / 8
    assert not torch.allclose(both @ mean_a, true, rtol=0.1)


def test_the_model_is_linear_in_b(base):
    """So the layer of the mean is the mean of the layers."""
    module = OPTION.attach(base.replica(private=False))
    learner = base.learner(module, OPTION.parameters(module))
    learner.load(OPTION.initial(module, seeds.derive(0, "initial")))
    layer = module.get_base_model().model.layers[1].mlp.down_proj
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 96, generator=generator)
    factors = [torch.randn(32, 4, generator=generator) for _ in range(3)]
    outputs = []
    for b in (*factors, sum(factors) / 3):
        learner.load({name: b})
        outputs.append(layer(x).detach())
    assert torch.allclose(outputs[3], sum(outputs[:3]) / 3, atol=1e-5)


def test_a_part_need_not_hold_every_layer(base):
    from fedgen.extraction.depth import Depth

    ground = make_ground(base, OPTION, extraction=Depth(num_first=1, num_last=0))
    learner = ground.learner(ground.part("attic", 1, 0.5), 1, "attic")
    assert {name.split(".layers.")[1][0] for name in factors(learner)} == {"0"}
    assert all(torch.equal(p, ground.fixed[name]) for name, p in factors(learner).items() if name in ground.fixed)


@pytest.mark.parametrize(
    "fields", [{"rank": 0}, {"alpha": 0.0}, {"top_layers": 0.0}, {"top_layers": 1.5}, {"targets": "q_proj"}]
)
def test_values_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        FrozenA(**fields)
