"""Recomputed layers give the same gradients, keep what goes into them, and are run again only where it is needed."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from fedgen import tree
from fedgen.adapter.frozen_a import FrozenA
from fedgen.adapter.full import Full
from fedgen.adapter.lora import Lora
from fedgen.model.causal_lm import CausalLM
from fedgen.model.recompute import recomputed
from fedgen.model.shared import TextBase
from fedgen.model.tiny import Tiny
from fedgen.types import Encoded
from tests.unit.model.families import FAMILIES, LAYERS, unequal
from tests.unit.model.saved import keeping, num_bytes

BATCH = [Encoded((7, 3, 9, 27, 5), 2), Encoded((7, 3, 11, 4), 3), Encoded((1, 2, 3, 4, 5, 6, 7), 1)]
CASES = [(family, adapter) for family in FAMILIES for adapter in (Full(), Lora(rank=2))]
CASES += [("llama", FrozenA(rank=2)), ("llama", Lora(rank=2, top_layers=0.5))]
LONG = [Encoded(tuple(number % 29 for number in range(60)), 10)]


def base_of(family, *, checkpointing):
    return TextBase(FAMILIES[family].make(), None, "0" * 64, 64, checkpointing)


def drawn(parameters):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(p.shape, generator=generator) * 0.3 for name, p in parameters.items()}


def learner_of(base, adapter, kept=None, *, window=False):
    """One over a part, a window or all of a model, in a state that is nowhere nought."""
    whole = adapter.parameters(whole_of(base, adapter))
    axes = adapter.axes(whole, base.axes)
    cut = tree.plan_of(axes, {} if window else kept or {})
    part = base.part({} if window else kept or {})
    module = adapter.attach(part.replica(private=adapter.trains_base), cut.keys())
    learner = part.learner(module, adapter.parameters(module), tree.plan_of(axes, kept) if window else None)
    if not adapter.trains_base:
        learner.load(tree.cut(drawn(whole), cut))
    return learner


def whole_of(base, adapter):
    return adapter.attach(base.replica(private=adapter.trains_base))


def gradients(learner, batch=BATCH):
    loss = learner.loss(batch)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in learner.parameters().items()}


def assert_same(first, second):
    assert first[0] == second[0]
    assert first[1].keys() == second[1].keys()
    assert tree.largest(first[1]) > 1e-3
    assert tree.largest(tree.subtract(first[1], second[1])) <= 1e-6


@pytest.mark.parametrize("shape", ["whole", "part", "window"])
@pytest.mark.parametrize(("family", "adapter"), CASES)
def test_gradients_are_those_of_layers_that_keep_everything(family, adapter, shape):
    kept = {} if shape == "whole" else unequal(FAMILIES[family])
    plain, recomputing = (
        learner_of(base_of(family, checkpointing=on), adapter, kept, window=shape == "window") for on in (False, True)
    )
    assert_same(gradients(recomputing), gradients(plain))


@pytest.mark.parametrize("distill", [False, True])
@pytest.mark.parametrize("adapter", [Full(), Lora(rank=2)])
def test_a_learner_of_several_widths_gets_the_same_gradients(adapter, distill):
    found = []
    for on in (False, True):
        base = base_of("llama", checkpointing=on)
        learner = learner_of(base, adapter)
        axes = adapter.axes(learner.state(), base.axes)
        kept = {f"{kind}.{n}": torch.arange(size) for n in range(LAYERS) for kind, size in (("ffn", 5), ("kv", 2))}
        plans = [(tree.plan_of(base.axes, kept), tree.plan_of(axes, kept))]
        nested = base.nested(learner, plans, torch.Generator().manual_seed(0), distill=distill)
        found.append(gradients(nested))
    assert_same(*found)


def test_a_model_with_frozen_bf16_weights_gets_the_same_gradients():
    found = []
    for on in (False, True):
        base = replace(base_of("llama", checkpointing=on), module=FAMILIES["llama"].make().to(torch.bfloat16))
        found.append(gradients(learner_of(base, Lora(rank=2))))
    assert_same(*found)


def test_learners_in_threads_do_not_disturb_each_other():
    learners = [learner_of(base_of(family, checkpointing=True), Lora(rank=2)) for family in ("llama", "gpt2") * 3]
    alone = [gradients(learner_of(base_of(family, checkpointing=True), Lora(rank=2))) for family in ("llama", "gpt2")]
    with ThreadPoolExecutor(len(learners)) as threads:
        together = list(threads.map(gradients, learners))
    for number, found in enumerate(together):
        assert_same(found, alone[number % 2])


@pytest.mark.parametrize("adapter", [Full(), Lora(rank=2), FrozenA(rank=2)])
def test_layers_keep_what_goes_into_them(adapter):
    kept = {}
    for on in (False, True):
        learner = learner_of(base_of("llama", checkpointing=on), adapter)
        kept[on] = num_bytes(learner.module, lambda learner=learner: learner.loss(LONG))
    assert kept[True] < kept[False] / 5
    deeper = TextBase(FAMILIES["llama"].make(num_hidden_layers=2 * LAYERS), None, "0" * 64, 64, True)
    learner = learner_of(deeper, adapter)
    hidden = len(LONG[0].ids) * 36 * 4
    assert num_bytes(learner.module, lambda: learner.loss(LONG)) == kept[True] + LAYERS * hidden


def runs(learner, use):
    """How often each layer's feed-forward part is run."""
    counts = Counter()
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda *_, number=number: counts.update([number]))
        for number, layer in enumerate(learner.plain().model.layers)
    ]
    use()
    for hook in hooks:
        hook.remove()
    return [counts[number] for number in range(LAYERS)]


@pytest.mark.parametrize(("adapter", "wanted"), [(Lora(rank=2), 2), (Lora(rank=2, top_layers=0.5), 1)])
def test_what_lies_below_the_first_trained_layer_is_not_run_again(adapter, wanted):
    learner = learner_of(base_of("llama", checkpointing=True), adapter)
    half = LAYERS // 2
    assert runs(learner, lambda: learner.loss(BATCH).backward()) == [wanted] * half + [2] * half


def test_without_gradients_everything_is_run_once():
    learner = learner_of(base_of("llama", checkpointing=True), Lora(rank=2))
    assert runs(learner, lambda: learner.score(BATCH)) == [1] * LAYERS
    with torch.no_grad():
        assert runs(learner, lambda: learner.loss(BATCH)) == [1] * LAYERS


@pytest.mark.parametrize("on", [False, True])
def test_below_the_first_trained_layer_nothing_is_kept(on):
    learner = learner_of(base_of("llama", checkpointing=on), Lora(rank=2, top_layers=0.5))
    layers, found = learner.plain().model.layers, {}
    with keeping(learner.module) as kept:
        hooks = [
            layer.register_forward_hook(lambda *_, number=number: found.update({number: len(kept())}))
            for number, layer in enumerate(layers)
        ]
        learner.loss(LONG)
        for hook in hooks:
            hook.remove()
    assert [found[number] for number in range(LAYERS // 2)] == [0] * (LAYERS // 2)
    assert on or found[LAYERS // 2] > 0


def test_layers_are_as_they_were_when_something_goes_wrong():
    learner = learner_of(base_of("llama", checkpointing=True), Lora(rank=2))
    layers = list(learner.plain().model.layers)
    with recomputed(layers):
        assert all("forward" in vars(layer) for layer in layers)
    assert not any("forward" in vars(layer) for layer in layers)
    with pytest.raises(IndexError):
        learner.loss([Encoded((1, 10**6), 1)])
    assert not any("forward" in vars(layer) for layer in layers)
    learner.loss(BATCH).backward()
    assert not any("forward" in vars(layer) for layer in layers)


def test_an_option_hands_its_fields_on_to_every_part():
    base = Tiny(checkpointing=True, chunk_tokens=7).load(0)
    for part in (base, base.part({"ffn.0": torch.arange(5)})):
        learner = part.learner(part.replica(private=False), {})
        assert (learner.checkpointing, learner.chunk_tokens) == (True, 7)
    assert Tiny(checkpointing=True, chunk_tokens=None).load(0).fingerprint == Tiny().load(0).fingerprint


@pytest.mark.parametrize("option", [Tiny, CausalLM])
def test_no_rows_at_once_are_refused(option):
    with pytest.raises(ValueError, match="chunk_tokens is 0; it must be at least 1, or null"):
        option(chunk_tokens=0)
