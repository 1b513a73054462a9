"""A part that holds some of the tokens: the whole with a softmax over these, by computations of this file's own."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedgen import tree
from fedgen.adapter.full import Full
from fedgen.adapter.lora import Lora
from fedgen.errors import ModelError
from fedgen.model import selfcheck
from fedgen.model.axes import axes_of
from fedgen.model.nested import NestedLearner
from fedgen.model.shared import TextBase, check_family
from fedgen.model.tiny import SPECIAL, Tiny
from fedgen.types import Encoded, Example, Message
from tests.unit.model.families import FAMILIES, VOCAB, gpt2, kept_of, llama, mask, some_of

each = pytest.mark.parametrize("name", FAMILIES)

TOKENS = torch.tensor([2, 3, 4, 9, 11, 20])
BATCH = [Encoded((3, 9, 2, 20, 4), 2), Encoded((3, 9, 11), 2)]


def base_of(module):
    return TextBase(module, None, "0" * 64, 64)


def learner_of(base, adapter=None):
    adapter = adapter or Full()
    module = adapter.attach(base.replica(private=adapter.trains_base))
    return base.learner(module, adapter.parameters(module))


def exact(module):
    """In fp64, where rounding hides nothing."""
    return copy.deepcopy(module).double().requires_grad_(True)


def loss_of(logits, targets):
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


# --- the part and the whole ---------------------------------------------------------------------------------------


@each
@settings(max_examples=10)
@given(data=st.data())
def test_a_part_is_the_masked_whole_with_a_softmax_over_its_tokens(name, data):
    family = FAMILIES[name]
    module = family.make(pad_token_id=data.draw(st.none() | st.integers(0, VOCAB - 1), label="filler"))
    kept = data.draw(kept_of(family)) | {"vocab": data.draw(some_of(VOCAB), label="tokens")}
    tokens = kept["vocab"]
    places = data.draw(
        st.lists(st.integers(0, len(tokens) - 1), min_size=10, max_size=10).map(lambda p: torch.tensor(p).view(2, 5))
    )
    part, whole = exact(base_of(module).part(kept).module), exact(module)
    mask(family, whole, kept)
    absent = torch.ones(VOCAB, dtype=torch.bool)
    absent[tokens] = False
    given_, wanted = part(places).logits, whole(tokens[places]).logits
    assert given_.shape == (2, 5, len(tokens))
    assert (given_ - wanted[..., tokens]).abs().max() <= 1e-6 * wanted.abs().max().clamp(min=1)
    loss_of(given_, places).backward()
    loss_of(wanted.masked_fill(absent, -torch.inf), tokens[places]).backward()
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in whole.named_parameters()}
    held = tree.cut(gradients, tree.plan_of(axes_of(module), kept))
    largest = max(1.0, tree.largest(held))
    for weight, parameter in part.named_parameters():
        assert (parameter.grad - held[weight]).abs().max() <= 1e-6 * largest, weight
    # Rows of other tokens have no gradient in the whole either.
    for table in (whole.get_input_embeddings().weight, whole.get_output_embeddings().weight):
        assert not table.grad[absent].any()
    found = selfcheck.differences(module, kept, tokens[places])
    assert max(found.values()) <= 1e-4


@each
def test_the_check_of_a_family_notices_a_vocabulary_that_is_cut_in_the_wrong_place(name, monkeypatch):
    """Rows of other tokens in the embedding than in the head, or in both than the mask says."""
    shrink, module = selfcheck.shrink, FAMILIES[name].make()
    kept, ids = {"vocab": TOKENS}, TOKENS[torch.arange(10).view(2, 5) % len(TOKENS)]
    assert max(selfcheck.differences(module, kept, ids).values()) < 1e-5
    rows = [n for n, dims in axes_of(module).dims.items() if dims[0] is not None and dims[0].axis == "vocab"]

    def another(whole, tensors, kept):
        return shrink(whole, {**tensors, rows[-1]: tensors[rows[-1]].roll(1, 0)}, kept)

    monkeypatch.setattr(selfcheck, "shrink", another)
    assert selfcheck.differences(module, kept, ids)["output"] > 0.01


def test_embedding_and_head_of_unequal_length_have_no_axis_in_common():
    module = llama(tie_word_embeddings=False)
    module.lm_head = nn.Linear(36, VOCAB + 3, bias=False)
    axes = axes_of(module)
    assert "vocab" not in axes.units
    assert axes.dims["lm_head.weight"][0] is None


def test_a_bias_of_the_head_is_cut_with_it():
    module = llama(tie_word_embeddings=False)
    module.lm_head = nn.Linear(36, VOCAB)
    plan = tree.plan_of(axes_of(module), {"vocab": TOKENS})
    assert torch.equal(plan["lm_head.bias"][0], TOKENS)
    part = base_of(module).part({"vocab": TOKENS}).module
    assert torch.equal(part.lm_head.bias, module.lm_head.bias[TOKENS])


def test_a_part_of_a_part_knows_its_tokens():
    base = base_of(llama())
    part = base.part({"vocab": TOKENS}).part({"vocab": torch.tensor([1, 2, 5])})
    assert part.tokens.tolist() == [3, 4, 20]
    assert torch.equal(part.module.lm_head.weight, base.module.lm_head.weight[[3, 4, 20]])
    other = base.part({"vocab": TOKENS}).part({"ffn.0": torch.tensor([1])})
    assert torch.equal(other.tokens, TOKENS)
    assert base.part({"ffn.0": torch.tensor([1])}).tokens is None


# --- the part at work ---------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("among", [None, torch.tensor([2, 4, 11, 20])])
def test_a_loss_is_that_of_the_whole_over_the_tokens_that_take_part(name, among):
    base = base_of(FAMILIES[name].make())
    whole, part = learner_of(base), learner_of(base.part({"vocab": TOKENS}))
    losses = whole.loss(BATCH, TOKENS if among is None else among), part.loss(BATCH, among)
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-6)
    for loss in losses:
        loss.backward()
    wanted = {n: p.grad for n, p in whole.parameters().items()}
    for n, gradient in tree.cut(wanted, tree.plan_of(base.axes, {"vocab": TOKENS})).items():
        assert torch.allclose(part.parameters()[n].grad, gradient, atol=1e-6), n


def test_scores_and_importance_are_of_the_tokens_that_are_held():
    base = base_of(llama())
    whole, part = learner_of(base), learner_of(base.part({"vocab": TOKENS}))
    for encoded, score in zip(BATCH, part.score(BATCH), strict=True):
        logits = whole.module(torch.tensor([encoded.ids])).logits[0, encoded.num_prompt - 1 : -1, TOKENS]
        targets = torch.tensor([TOKENS.tolist().index(token) for token in encoded.ids[encoded.num_prompt :]])
        assert score.nll == pytest.approx(
            nn.functional.cross_entropy(logits, targets, reduction="sum").item(), rel=1e-5
        )
        assert score.num_tokens == len(targets)
        assert score.exact == bool((logits.argmax(1) == targets).all())
    scores = part.importance(BATCH)
    assert scores["vocab"].tolist() == [1, 2, 1, 2, 1, 1]
    assert torch.allclose(scores["ffn.0"], whole.importance(BATCH)["ffn.0"], rtol=1e-5)


def test_what_has_a_token_that_is_not_held_cannot_be_said():
    base = base_of(llama())
    whole, part = learner_of(base), learner_of(base.part({"vocab": TOKENS}))
    for learner, other in ((whole, True), (part, False)):
        assert learner.holds(BATCH[0])
        assert learner.holds(Encoded((3, 5), 1)) == other
        assert learner.holds(Encoded((5, 3), 1)) == other
    with pytest.raises(AssertionError, match="all tokens must be held"):
        part.loss([Encoded((3, 5), 1)])


@pytest.fixture(scope="module")
def tiny():
    return Tiny(hidden_size=32).load(0)


def bytes_of(tiny, text):
    """Ids of the letters of a text, and the protected tokens."""
    return torch.tensor(sorted({*tiny.tokenizer(text)["input_ids"], *tiny.protected["vocab"].tolist()}))


def test_examples_that_cannot_be_said_are_left_out_as_those_without_an_answer_are(tiny):
    learner = learner_of(tiny.part({"vocab": bytes_of(tiny, "lamp ")}))
    examples = [Example("lamp ", "map"), Example("lamp ", "fan"), Example("fan ", "map"), Example("l" * 300, "a")]
    whole = learner_of(tiny).encode(examples)
    assert learner.encode(examples) == [whole[0], None, None, None]
    assert whole[1] is not None
    talk = [Example((Message("user", "lamp"),), "map")]
    assert learner.encode(talk) == learner_of(tiny).encode(talk)


def test_an_answer_is_the_best_of_the_tokens_that_are_held(tiny):
    kept = bytes_of(tiny, "lampons ")
    part = learner_of(tiny.part({"vocab": kept}))
    whole, end = learner_of(tiny).module, tiny.tokenizer.eos_token_id
    absent = torch.ones(len(tiny.tokenizer), dtype=torch.bool)
    absent[kept] = False
    asked = tiny.tokenizer("lamp ")["input_ids"]
    said = list(asked)
    while len(said) < len(asked) + 12 and (len(said) == len(asked) or said[-1] != end):
        logits = whole(torch.tensor([said])).logits[0, -1].masked_fill(absent, -torch.inf)
        said.append(int(logits.argmax()))
    wanted = tiny.tokenizer.decode(said[len(asked) :], skip_special_tokens=True).strip()
    assert part.generate("lamp ", 12) == wanted
    assert wanted != learner_of(tiny).generate("lamp ", 12)
    with pytest.raises(ModelError, match="does not hold the tokens of 'fi'"):
        part.generate("film ", 12)


def test_a_part_with_an_adapter_keeps_its_tokens(tiny):
    learner = learner_of(tiny.part({"vocab": bytes_of(tiny, "lamp ")}), Lora(rank=2))
    (encoded,) = learner.encode([Example("lamp ", "map")])
    loss = learner.loss([encoded])
    loss.backward()
    wanted = learner_of(tiny).loss([encoded], bytes_of(tiny, "lamp "))
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("distill", [False, True])
def test_narrower_steps_have_all_tokens_of_the_part(make, distill):
    base = base_of(make())
    part = base.part({"vocab": TOKENS})
    learner = learner_of(part)
    local = {"ffn.0": torch.tensor([0, 1]), "kv.1": torch.tensor([0])}
    plan = tree.plan_of(part.axes, local)
    nested = part.nested(learner, [(plan, plan)], torch.Generator(), distill=distill)
    assert isinstance(nested, NestedLearner)
    assert not nested.holds(Encoded((3, 5), 1))
    among = torch.tensor([2, 4, 11, 20])
    narrow = learner_of(base.part(local | {"vocab": TOKENS}))
    wanted = narrow.loss(BATCH, among).item()
    if distill:
        logits = []
        for one in (learner, narrow):
            hidden = one.hidden(one.packed(BATCH))
            logits.append(hidden @ one.head()[torch.searchsorted(TOKENS, among)].T)
        wanted = learner.loss(BATCH, among).item() + nn.functional.cross_entropy(logits[1], logits[0].softmax(1)).item()
    assert nested.loss(BATCH, among).item() == pytest.approx(wanted, rel=1e-5)


# --- what every part keeps ----------------------------------------------------------------------------------------


def test_special_tokens_and_the_end_of_an_answer_are_protected(tiny):
    tokens = tiny.protected["vocab"]
    assert tokens.tolist() == sorted(tiny.tokenizer.convert_tokens_to_ids(list(SPECIAL)))
    assert tiny.tokenizer.eos_token_id in tokens.tolist()
    kept = torch.tensor(sorted({0, 7, *tokens.tolist()}))
    part = tiny.part({"vocab": kept})
    assert kept[part.protected["vocab"]].tolist() == tokens.tolist()


def test_what_a_template_writes_around_a_turn_is_protected(tiny):
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}# {{ m['content'] }}{% endfor %}{% if add_generation_prompt %}!{% endif %}"
    )
    base = TextBase(tiny.module, tokenizer, "0" * 64, 64)
    assert set(base.protected["vocab"].tolist()) == {
        *tiny.protected["vocab"].tolist(),
        *tokenizer("# !")["input_ids"],
    }
    tokenizer.chat_template = None
    bare = TextBase(tiny.module, tokenizer, "0" * 64, 64)
    assert torch.equal(bare.protected["vocab"], tiny.protected["vocab"])


def test_packed_examples_of_a_part_are_compared_with_plain_passes(tiny):
    part = tiny.part({"vocab": bytes_of(tiny, "lamp ")})
    check_family(part.learner(part.replica(private=False), {}))
    wrong = part.learner(part.replica(private=False), {})
    wrong.module.lm_head.register_forward_hook(lambda _, given, out: out * 0.5)
    with pytest.raises(ModelError, match="packed examples give a loss"):
        check_family(wrong)
