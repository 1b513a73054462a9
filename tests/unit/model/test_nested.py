"""Narrower models that share the weights of a wider one, against parts that are built each on its own."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import torch

from fedgen import tree
from fedgen.adapter.full import Full
from fedgen.adapter.lora import Lora
from fedgen.learner import Learner
from fedgen.model.nested import NestedLearner
from fedgen.model.shared import TextBase
from fedgen.model.tiny import Tiny
from fedgen.types import Encoded
from tests.conformance.options import disturb
from tests.unit.model.families import LAYERS, gpt2, llama

BATCH = [Encoded((7, 3, 9, 27, 5), 2), Encoded((7, 3, 11, 4), 3), Encoded((1, 2, 3, 4, 5, 6, 7), 1)]


def first(ffn, groups, **others):
    """The first units of every layer."""
    inner = {f"{kind}.{n}": torch.arange(size) for n in range(LAYERS) for kind, size in (("ffn", ffn), ("kv", groups))}
    return inner | {axis: torch.arange(size) for axis, size in others.items()}


WIDEST, MIDDLE, NARROW = first(8, 3), first(5, 2), first(2, 1)


@dataclass(frozen=True)
class Client:
    """A base, an adapter, and the state that a federation would start with, if nothing in it were nought."""

    base: TextBase
    adapter: Any

    @cached_property
    def whole_state(self):
        module = self.adapter.attach(self.base.replica(private=True))
        state = {name: p.detach().clone() for name, p in self.adapter.parameters(module).items()}
        if self.adapter.trains_base:
            return state
        generator = torch.Generator().manual_seed(0)
        return {name: torch.randn(t.shape, generator=generator) * 0.3 for name, t in state.items()}

    def plan(self, base, kept):
        return tree.plan_of(self.adapter.axes(self.whole_state, base.axes), kept)

    def learner(self, kept):
        """What a client that holds just this works with."""
        part, plan = self.base.part(kept), self.plan(self.base, kept)
        module = self.adapter.attach(part.replica(private=self.adapter.trains_base), plan.keys())
        parameters = self.adapter.parameters(module)
        for name, parameter in parameters.items():
            parameter.data = torch.zeros(tree.extent(self.whole_state[name], plan[name]))
        learner = part.learner(module, parameters)
        learner.load(tree.cut(self.whole_state, plan))
        return learner

    def nested(self, kept, narrower, *, distill=False, seed=0):
        """A learner of one width that draws others."""
        part, learner = self.base.part(kept), self.learner(kept)
        axes = self.adapter.axes(learner.state(), part.axes)
        plans = [(tree.plan_of(part.axes, local), tree.plan_of(axes, local)) for local in narrower]
        return part.nested(learner, plans, torch.Generator().manual_seed(seed), distill=distill)


CLIENTS = [
    pytest.param(Client(TextBase(make(), None, "0" * 64, 64), adapter), id=f"{make.__name__}-{type(adapter).__name__}")
    for make in (llama, gpt2)
    for adapter in (Full(), Lora(rank=4))
]
each = pytest.mark.parametrize("client", CLIENTS)


def logits_of(module, encoded):
    """Those that predict the answer, of one example by itself."""
    return module(input_ids=torch.tensor([encoded.ids]), use_cache=False).logits[0, encoded.num_prompt - 1 : -1]


@each
@pytest.mark.parametrize("narrow", [MIDDLE, NARROW, first(8, 1), first(1, 3)])
def test_the_loss_of_a_narrower_model_is_that_of_a_part_made_on_its_own(client, narrow):
    nested = client.nested(WIDEST, [narrow])
    assert nested.loss(BATCH).item() == pytest.approx(client.learner(narrow).loss(BATCH).item(), rel=1e-5)
    assert abs(nested.loss(BATCH).item() - client.learner(WIDEST).loss(BATCH).item()) > 1e-3


@each
@pytest.mark.parametrize("others", [{"residual": 8}, {"rank": 3}, {"residual": 6, "rank": 1}])
def test_other_axes_may_be_narrower_too(client, others):
    """Weights have no rank, and are as if it were whole."""
    narrow = first(5, 2, **others)
    nested = client.nested(WIDEST, [narrow])
    assert nested.loss(BATCH).item() == pytest.approx(client.learner(narrow).loss(BATCH).item(), rel=1e-5)


@each
def test_the_widest_may_itself_be_narrower_than_the_model_in_every_way(client):
    widest, narrow = first(7, 2, residual=10), first(4, 1, residual=6)
    nested = client.nested(widest, [narrow, widest])
    wanted = {round(client.learner(kept).loss(BATCH).item(), 3) for kept in (widest, narrow)}
    assert {round(nested.loss(BATCH).item(), 3) for _ in range(20)} == wanted


@each
def test_units_need_not_lie_together(client):
    narrow = first(8, 3) | {"ffn.0": torch.tensor([1, 2, 5]), "kv.2": torch.tensor([0, 2])}
    nested = client.nested(WIDEST, [narrow])
    assert nested.loss(BATCH).item() == pytest.approx(client.learner(narrow).loss(BATCH).item(), rel=1e-5)


@each
def test_gradients_flow_to_the_first_units_of_the_widest_and_nowhere_else(client):
    nested, alone = client.nested(WIDEST, [NARROW]), client.learner(NARROW)
    nested.loss(BATCH).backward()
    alone.loss(BATCH).backward()
    part = client.base.part(WIDEST)
    plan = tree.plan_of(client.adapter.axes(nested.state(), part.axes), NARROW)
    gradients = {name: p.grad for name, p in nested.parameters().items()}
    inside = tree.cut(gradients, plan)
    outside = tree.copy(gradients)
    tree.paste(plan, tree.scale(inside, -1.0), outside)
    assert tree.largest(outside) == 0.0
    largest = tree.largest(inside)
    assert largest > 1e-3
    for name, parameter in alone.parameters().items():
        assert inside[name].shape == parameter.shape
        assert (inside[name] - parameter.grad).abs().max() <= 1e-5 * max(1.0, largest), name
    assert any(gradients[name].shape != p.shape for name, p in alone.parameters().items())
    # Nothing else has any: the frozen weights have none of their own.
    assert sum(p.grad is not None for p in nested.module.parameters()) == len(gradients)


@each
def test_a_narrower_model_follows_the_widest_as_it_learns(client):
    nested = client.nested(WIDEST, [NARROW])
    optimiser = torch.optim.SGD(nested.parameters().values(), lr=0.005)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = nested.loss(BATCH)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    alone = client.learner(NARROW)
    for wanted in losses:
        loss = alone.loss(BATCH)
        assert loss.item() == pytest.approx(wanted, rel=1e-4)
        optimiser = torch.optim.SGD(alone.parameters().values(), lr=0.005)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[0] - losses[-1] > 1e-3
    state = tree.scale(nested.state(), 0.5)
    nested.load(state)
    plan = tree.plan_of(client.adapter.axes(state, client.base.part(WIDEST).axes), NARROW)
    alone.load(tree.cut(state, plan))
    assert nested.loss(BATCH).item() == pytest.approx(alone.loss(BATCH).item(), rel=1e-5)


@each
def test_distillation_adds_the_loss_of_the_widest_and_what_the_narrow_one_has_to_learn_from_it(client):
    nested = client.nested(WIDEST, [NARROW], distill=True)
    widest, narrow = client.learner(WIDEST).module, client.learner(NARROW).module
    hard, soft, tokens = 0.0, 0.0, 0
    for encoded in BATCH:
        taught, given = (logits_of(module, encoded).detach() for module in (widest, narrow))
        answer = encoded.ids[encoded.num_prompt :]
        for place, token in enumerate(answer):
            hard -= taught[place].log_softmax(0)[token].item()
            soft -= float((taught[place].softmax(0) * given[place].log_softmax(0)).sum())
        tokens += len(answer)
    assert nested.loss(BATCH).item() == pytest.approx((hard + soft) / tokens, rel=1e-4)


@each
def test_the_widest_teaches_and_does_not_learn_from_being_followed(client):
    nested = client.nested(WIDEST, [NARROW], distill=True)
    nested.loss(BATCH).backward()
    gradients = {name: p.grad.clone() for name, p in nested.parameters().items()}
    widest = client.learner(WIDEST)
    widest.loss(BATCH).backward()
    part = client.base.part(WIDEST)
    plan = tree.plan_of(client.adapter.axes(nested.state(), part.axes), NARROW)
    # Where the narrow model has no units, all that is left is what the widest learns for itself.
    own = {name: p.grad for name, p in widest.parameters().items()}
    rest = tree.subtract(gradients, own)
    tree.paste(plan, tree.scale(tree.cut(rest, plan), -1.0), rest)
    assert tree.largest(rest) <= 1e-5 * max(1.0, tree.largest(own))
    assert tree.largest(tree.subtract(gradients, own)) > 1e-3


@each
def test_at_its_full_width_it_learns_as_if_there_were_no_others(client):
    for distill in (False, True):
        nested = client.nested(WIDEST, [WIDEST], distill=distill)
        assert nested.loss(BATCH).item() == pytest.approx(client.learner(WIDEST).loss(BATCH).item(), rel=1e-6)


def test_widths_are_drawn_from_the_generator_and_from_nothing_else():
    client = Client(Tiny(hidden_size=16, num_heads=4, num_kv_heads=2, intermediate_size=8).load(0), Lora(rank=2))
    batch = [Encoded((1, 2, 3, 4), 2)]
    narrower = [{f"ffn.{n}": torch.arange(size) for n in range(2)} for size in (1, 3, 8)]

    def drawn(seed):
        nested = client.nested({}, narrower, seed=seed)
        losses = []
        for _ in range(30):
            disturb()
            losses.append(nested.loss(batch).item())
        return losses

    first_time, again, other = drawn(0), drawn(0), drawn(1)
    assert first_time == again
    assert first_time != other
    assert len(set(first_time)) == 3
    alone = [client.nested({}, [kept]).loss(batch).item() for kept in narrower]
    generator = torch.Generator().manual_seed(0)
    assert first_time == [alone[int(torch.randint(3, (), generator=generator))] for _ in range(30)]


def test_all_else_is_that_of_the_widest():
    client = Client(Tiny(hidden_size=16, num_heads=4, num_kv_heads=2).load(0), Lora(rank=2))
    narrow = {"ffn.0": torch.tensor([0])}
    nested = client.nested({}, [narrow])
    widest = nested.widest
    nested.loss([Encoded((1, 2, 3, 4), 2)])
    assert isinstance(nested, NestedLearner)
    assert isinstance(nested, Learner)
    assert nested.module is widest.module
    assert nested.tokenizer is widest.tokenizer
    assert nested.parameters() is widest.parameters()
    alone = client.learner({})
    batch = [Encoded((1, 2, 3, 4), 2), Encoded((9, 8, 7), 1)]
    assert nested.score(batch) == alone.score(batch)
    assert nested.generate("lamp", 4) == alone.generate("lamp", 4)
    assert nested.importance(batch).keys() == {"layer", "ffn.0", "ffn.1", "kv.0", "kv.1", "vocab"}
    assert nested.holds(batch[0])
    assert nested.encode([]) == []
    assert all(torch.equal(tensor, alone.state()[name]) for name, tensor in nested.state().items())


def test_a_width_costs_modules_and_no_memory():
    client = CLIENTS[0].values[0]
    nested = client.nested(WIDEST, [NARROW, MIDDLE])
    nested.loss(BATCH)
    own = {p.untyped_storage().data_ptr() for p in nested.module.parameters()}
    for drawn in nested.drawn:
        module = drawn.refresh().module
        assert module is not nested.module
        assert module.model.layers[0].mlp.up_proj.out_features in (2, 5)
        for child in module.modules():
            weight = getattr(child, "weight", None)
            assert weight is None or weight.untyped_storage().data_ptr() in own
