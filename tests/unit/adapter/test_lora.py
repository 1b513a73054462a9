"""LoRA through PEFT: names, sharing, initial values, and the formula of the paper."""

import pytest
import torch

from fedgen.adapter.full import Full
from fedgen.adapter.lora import Lora
from fedgen.errors import ModelError
from fedgen.model.tiny import Tiny
from fedgen.types import Encoded


@pytest.fixture(scope="module")
def base():
    return Tiny().load(0)


def attach(base, option):
    module = option.attach(base.replica(private=option.trains_base))
    return base.learner(module, option.parameters(module))


def test_names_are_those_of_pefts_files(base, tmp_path):
    from safetensors.torch import load_file

    learner = attach(base, Lora(rank=2))
    learner.module.save_pretrained(tmp_path)
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == learner.parameters().keys()


def test_only_the_factors_train_and_the_base_is_shared(base):
    first, second = attach(base, Lora(rank=2)), attach(base, Lora(rank=2))
    assert all(p.dtype == torch.float32 for p in first.parameters().values())
    trainable = [n for n, p in first.module.named_parameters() if p.requires_grad]
    assert trainable
    assert all(".lora_" in n for n in trainable)
    frozen = {p.data_ptr() for p in base.module.parameters()}
    for learner in (first, second):
        assert {p.data_ptr() for n, p in learner.module.named_parameters() if ".lora_" not in n} == frozen
    own = [{p.data_ptr() for p in learner.parameters().values()} for learner in (first, second)]
    assert not own[0] & own[1]


def test_output_is_w_x_plus_alpha_over_r_b_a_x(base):
    learner = attach(base, Lora(rank=2, alpha=6.0, targets=("q_proj",)))
    generator = torch.Generator().manual_seed(0)
    learner.load({name: torch.randn(p.shape, generator=generator) for name, p in learner.parameters().items()})
    layer = learner.module.get_base_model().model.layers[0].self_attn.q_proj
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(9))
    a, b = layer.lora_A.default.weight, layer.lora_B.default.weight
    expected = x @ layer.base_layer.weight.T + 6.0 / 2 * (x @ a.T @ b.T)
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_initial_b_is_zero_and_a_is_uniform_and_fixed_by_the_generator(base):
    option = Lora(rank=4)
    learner = attach(base, option)
    states = [option.initial(learner.module, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name])
        if ".lora_B." in name:
            assert not tensor.any()
        else:
            bound = tensor.shape[1] ** -0.5
            assert 0.8 * bound < tensor.abs().max() <= bound
            assert not torch.equal(tensor, states[2][name])


def test_only_the_top_layers_are_adapted(base):
    names = attach(base, Lora(top_layers=0.5)).parameters()
    assert names
    assert all(".layers.1." in name for name in names)


def test_a_layer_that_is_not_there_is_named(base):
    with pytest.raises(ModelError, match="no_such_proj"):
        attach(base, Lora(targets=("no_such_proj",)))


def test_the_rank_is_an_axis_of_every_factor(base):
    option = Lora(rank=4)
    state = attach(base, option).state()
    axes = option.axes(state)
    assert axes.units == {"rank": 4}
    for name, dims in axes.dims.items():
        assert state[name].shape[dims.index("rank")] == 4


def test_full_trains_every_weight_of_a_private_copy(base):
    learner = attach(base, Full())
    frozen = {p.data_ptr() for p in base.module.parameters()}
    assert not frozen & {p.data_ptr() for p in learner.parameters().values()}
    learner.loss([Encoded((1, 2, 3, 4), 2)]).backward()
    assert all(p.grad is not None for p in learner.parameters().values())
    # Tied embeddings are one tensor.
    assert "lm_head.weight" not in learner.parameters()
    assert "model.embed_tokens.weight" in learner.parameters()


@pytest.mark.parametrize(
    "fields", [{"rank": 0}, {"alpha": 0.0}, {"top_layers": 0.0}, {"top_layers": 1.5}, {"targets": "q_proj"}]
)
def test_values_out_of_range_are_refused_by_name(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Lora(**fields)
