"""What LoRA keeps for its gradients: the bits of PEFT's own layers, and as much memory as they need."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fedgen import tree
from fedgen.adapter.factor import Factor, reading
from fedgen.adapter.frozen_a import FrozenA
from fedgen.adapter.lora import Lora
from fedgen.model.tiny import Tiny
from fedgen.types import Encoded
from tests.unit.model.saved import kept_tensors

LAYERS, WIDTH, RANK, TOKENS = 3, 32, 3, 40
BATCH = [Encoded(tuple(range(TOKENS)), 5)]
TARGETS = ("q_proj", "v_proj")


def base_of(dtype):
    base = Tiny(hidden_size=WIDTH, num_layers=LAYERS).load(0)
    return replace(base, module=base.module.to(dtype))


def learner_of(dtype, adapter):
    base = base_of(dtype)
    module = adapter.attach(base.replica(private=False))
    learner = base.learner(module, adapter.parameters(module))
    learner.load(drawn(adapter.parameters(module)))
    return learner


def drawn(parameters):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(p.shape, generator=generator) * 0.3 for name, p in parameters.items()}


def gradients(learner):
    learner.loss(BATCH).backward()
    return {name: p.grad for name, p in learner.parameters().items()}


def peft_gradients(dtype, targets):
    """Those of PEFT as it comes."""
    base = base_of(dtype)
    config = LoraConfig(r=RANK, lora_alpha=16, target_modules=list(targets), task_type="CAUSAL_LM")
    module = get_peft_model(base.replica(private=False), config, autocast_adapter_dtype=False).eval()
    parameters = Lora().parameters(module)
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
    learner = base.learner(module, parameters)
    learner.load(drawn(parameters))
    return gradients(learner)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_peft_to_the_bit(dtype):
    found, wanted = gradients(learner_of(dtype, Lora(rank=RANK, targets=TARGETS))), peft_gradients(dtype, TARGETS)
    assert found.keys() == wanted.keys()
    assert tree.largest(found) > 1e-3
    assert all(torch.equal(found[name], wanted[name]) for name in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_a_frozen_the_gradients_of_b_are_those_of_autograd(dtype):
    found, wanted = gradients(learner_of(dtype, FrozenA(rank=RANK, targets=TARGETS))), peft_gradients(dtype, TARGETS)
    assert set(found) == {name for name in wanted if ".lora_B." in name}
    assert all((found[name] - wanted[name]).abs().max() <= 1e-6 for name in found)


def kept(dtype, adapter):
    """(shape, type) of all that a step keeps, sorted; batch and row are one dimension."""
    learner = learner_of(dtype, adapter)
    tensors = kept_tensors(learner.module, lambda: learner.loss(BATCH))
    return sorted(((t.numel(), str(t.dtype)) for t in tensors), key=str)


def more(one, other):
    """What the first list has beside the second."""
    left = list(one)
    for item in other:
        left.remove(item)
    return left


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trained_a_costs_one_input_per_layer_as_it_comes_and_a_frozen_one_nothing(dtype):
    """Queries and values read the same, so it is there once; of B's inputs there are two, of the rank."""
    trained, frozen = (kept(dtype, option(rank=RANK, targets=TARGETS)) for option in (Lora, FrozenA))
    assert more(trained, frozen) == [(TOKENS * WIDTH, str(dtype))] * LAYERS
    assert frozen.count((TOKENS * RANK, "torch.float32")) == 2 * LAYERS
    # With another rank, nothing else is other.
    higher = kept(dtype, FrozenA(rank=RANK + 2, targets=TARGETS))
    assert (
        more(higher, [item for item in frozen if item[0] != TOKENS * RANK])
        == [(TOKENS * (RANK + 2), "torch.float32")] * 2 * LAYERS
    )


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("trains", [False, True])
def test_a_product_of_two_types_has_the_gradients_of_autograd(reads, trains):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 7, generator=generator).bfloat16().requires_grad_(reads)
    factor = reading(nn.Linear(7, 3, bias=False))
    factor.weight.requires_grad_(trains)
    weights = torch.randn(2, 5, 3, generator=generator)
    given = factor(x)
    assert given.dtype == torch.float32
    assert given.requires_grad == (reads or trains)
    wanted = nn.functional.linear(x.float(), factor.weight)
    assert torch.equal(given, wanted)
    needed = [tensor for tensor in (x, factor.weight) if tensor.requires_grad]
    if needed:
        ours = torch.autograd.grad((given * weights).sum(), needed)
        plain = torch.autograd.grad((wanted * weights).sum(), needed)
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, plain, strict=True))


def test_a_factor_is_the_linear_layer_that_it_was():
    linear = nn.Linear(7, 3, bias=False)
    factor = reading(linear)
    assert isinstance(factor, Factor)
    assert factor.weight is linear.weight
    assert (factor.in_features, factor.out_features, factor.bias) == (7, 3, None)
    x = torch.randn(4, 7)
    assert torch.equal(factor(x), linear(x))
