"""Scores against sums that are written out, over plain forward passes of one example at a time."""

import math

import pytest
import torch

from fedgen.adapter.lora import Lora
from fedgen.model.importance import measure_importance
from fedgen.model.shared import TextBase
from fedgen.types import Encoded
from tests.unit.model.families import FAMILIES, FFN, HEAD, IDS, LAYERS, VOCAB, llama

# No two of them begin alike, so that each token is in the packed rows once for each example.
BATCH = [Encoded((7, 3, 9, 27, 5), 2), Encoded((2, 3, 11, 4), 3), Encoded((1, 2, 3, 4, 5, 6, 7), 1)]


def learner_of(module, adapter=None):
    base = TextBase(module, None, "0" * 64, 64)
    replica = base.replica(private=False)
    if adapter is None:
        return base.learner(replica, {})
    replica = adapter.attach(replica)
    learner = base.learner(replica, adapter.parameters(replica))
    learner.load(adapter.initial(replica, torch.Generator().manual_seed(0)))
    return learner


def seen_by(module, paths, rows):
    """What goes into some modules and comes out of them, token by token; the first token of each row is left out."""
    seen = {path: [] for path in paths}

    def note(path):
        def hook(_, given, out):
            out = out[0] if isinstance(out, tuple) else out
            seen[path] += list(zip(given[0][0, 1:].tolist(), out[0, 1:].tolist(), strict=True))

        return hook

    hooks = [module.get_submodule(path).register_forward_hook(note(path)) for path in paths]
    for row in rows:
        module(torch.tensor([row]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def scores_by_hand(name, module, rows):
    """Mean |activation| × norm of what reads it, summed over the positions of a unit; 1 - cosine for the layers."""
    family = FAMILIES[name]
    prefix = family.layers
    closings = {
        f"{kind}.{n}": f"{prefix}{n}.{closing}"
        for n in range(LAYERS)
        for kind, closing in (("kv", family.attention), ("ffn", family.feed_forward))
    }
    seen = seen_by(module, [*closings.values(), *(f"{prefix}{n}" for n in range(LAYERS))], rows)
    scores = {}
    for axis, path in closings.items():
        weight = module.get_submodule(path).weight
        by_input = (weight if name == "gpt2" else weight.T).tolist()
        worth = [
            sum(abs(given[place]) for given, _ in seen[path]) / len(seen[path]) * math.hypot(*reads)
            for place, reads in enumerate(by_input)
        ]
        units, span = (FFN, 1) if axis.startswith("ffn") else (family.groups, family.queries * HEAD)
        scores[axis] = [sum(worth[unit * span : (unit + 1) * span]) for unit in range(units)]
    scores["layer"] = []
    for n in range(LAYERS):
        cosines = [
            sum(a * b for a, b in zip(came, went, strict=True)) / (math.hypot(*came) * math.hypot(*went))
            for came, went in seen[f"{prefix}{n}"]
        ]
        scores["layer"].append(1 - sum(cosines) / len(cosines))
    return scores


def same(scores, wanted):
    assert scores.keys() == wanted.keys()
    for axis, numbers in wanted.items():
        assert scores[axis].dtype == torch.float32
        assert scores[axis].tolist() == pytest.approx(list(numbers), rel=1e-4, abs=1e-6), axis


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_scores_are_those_of_a_plain_computation(name):
    module = FAMILIES[name].make()
    scores = learner_of(module).importance(BATCH)
    counts = scores.pop("vocab")
    assert counts.dtype == torch.float32
    assert len(counts) == VOCAB
    # 7 is in two of the rows, 3 in all; prompts count as answers do.
    assert {n: count for n, count in enumerate(counts.tolist()) if count} == (
        {1: 1, 2: 2, 3: 3, 4: 2, 5: 2, 6: 1, 7: 2, 9: 1, 11: 1, 27: 1}
    )
    same(scores, scores_by_hand(name, module, [encoded.ids for encoded in BATCH]))
    assert len(scores) == 1 + 2 * LAYERS
    # They tell units apart.
    assert all(numbers.max() > 1.05 * numbers.min() > 0 for numbers in scores.values())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("targets", ["all-linear", "closing alone"])
def test_an_adapter_that_adds_nothing_changes_no_score(name, targets):
    module = FAMILIES[name].make()
    if targets == "closing alone":
        targets = (FAMILIES[name].feed_forward.rpartition(".")[2],)
    plain = learner_of(module).importance(BATCH)
    adapted = learner_of(module, Lora(rank=2, targets=targets)).importance(BATCH)
    same(adapted, {axis: numbers.tolist() for axis, numbers in plain.items()})


def test_a_common_beginning_counts_once():
    module = llama()
    batch = [Encoded((7, 3, 9, 27, 5), 3), Encoded((7, 3, 9, 11), 3)]
    # Both begin with 7, 3; the second 3 is no token of its own.
    scores = learner_of(module).importance(batch)
    # How often a token occurs is another matter.
    assert scores.pop("vocab")[[7, 3, 9, 27]].tolist() == [2, 2, 2, 1]
    first, second = (scores_by_hand("llama", module, [encoded.ids]) for encoded in batch)
    beginning = scores_by_hand("llama", module, [(7, 3)])
    wanted = {
        axis: [(4 * a + 3 * b - c) / 6 for a, b, c in zip(first[axis], second[axis], beginning[axis], strict=True)]
        for axis in first
    }
    same(scores, wanted)


def test_only_tokens_that_count_are_counted():
    module = llama()
    counted = torch.zeros(IDS.shape, dtype=torch.bool)
    counted[1, 4] = True
    scores = measure_importance(module, lambda: module(IDS, use_cache=False).logits, counted)
    row = IDS[1, :5].tolist()
    with_it, without = scores_by_hand("llama", module, [row]), scores_by_hand("llama", module, [row[:4]])
    same(scores, {a: [4 * x - 3 * y for x, y in zip(with_it[a], without[a], strict=True)] for a in with_it})


def test_a_model_is_left_as_it_was_even_if_it_fails():
    module = llama()

    def fail():
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        measure_importance(module, fail, torch.ones(1, 1, dtype=torch.bool))
    measure_importance(module, lambda: module(IDS, use_cache=False).logits, torch.ones(IDS.shape, dtype=torch.bool))
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())
    learner = learner_of(module, Lora(rank=2))
    learner.importance(BATCH)
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in learner.module.modules())
    assert all(p.grad is None for p in learner.module.parameters())


def test_a_unit_that_is_silent_or_that_nothing_reads_is_worth_nothing():
    module = llama()
    module.model.layers[0].mlp.up_proj.weight[3] = 0
    module.model.layers[1].self_attn.o_proj.weight[:, 12:24] = 0
    scores = learner_of(module).importance(BATCH)
    assert [unit for unit, score in enumerate(scores["ffn.0"].tolist()) if score == 0] == [3]
    assert [unit for unit, score in enumerate(scores["kv.1"].tolist()) if score == 0] == [1]


def test_a_layer_that_adds_nothing_is_worth_nothing():
    module = llama()
    for closing in (module.model.layers[2].self_attn.o_proj, module.model.layers[2].mlp.down_proj):
        closing.weight.zero_()
    layers = learner_of(module).importance(BATCH)["layer"].tolist()
    assert abs(layers[2]) < 1e-6
    assert min(layers[0], layers[1], layers[3]) > 0.01
