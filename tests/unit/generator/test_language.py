"""Prompts say what the task says, wanted values get their places, and the benchmark times the same work twice."""

import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from fedgen.config.catalogue import shipped
from fedgen.config.check import build_node
from fedgen.errors import ConfigError
from fedgen.generator.language import Language
from fedgen.generator.prompting import put_values, to_say, to_vary, token_ids
from fedgen.model.tiny import Tiny
from fedgen.task_file import read_task

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

TASK = read_task(shipped("configs") / "task" / "smart_home.yaml")
OPTION = Language(Tiny(hidden_size=32), max_new_tokens=4)
LAMP = {"lamp": "sofa lamp", "brightness": "40"}


def orders(num: int = 400):
    return OPTION.plan(TASK, num, 0)


def test_a_prompt_shows_sentences_of_the_task_with_other_values_and_asks_for_the_wanted_ones():
    for order in orders():
        prompts = to_say(TASK, order, 5, Random(0))
        assert len(prompts) == order.num
        assert len({str(prompt[:2]) for prompt in prompts}) == 1  # so that the model reads it once
        instruction, shown, _ = prompts[0]
        assert TASK.labels[order.label].means in instruction
        assert 1 <= len(shown) <= 5
        for (_, _, asked), slots in zip(prompts, order.slots, strict=True):
            assert asked == (", ".join(slots.values()) or "(no words)")
        for words, said in shown:
            assert words == "(no words)" or all(word in said for word in words.split(", "))
        wanted = {value for slots in order.slots for value in slots.values()}
        named = {word for words, _ in shown for word in words.split(", ")}
        crowded = any(len(TASK.slots[n].choices) <= order.num for n in TASK.labels[order.label].forms[order.form].slots)
        assert crowded or not named & wanted


def test_demonstrations_of_the_ordered_length_stand_last():
    order = next(o for o in orders() if o.label == "HassTurnOff" and o.form == 5)
    for length, last in (("short", "all lights off"), ("long", "turn out all the lamps in the whole house")):
        attributes = {"tone": "plain", "length": length}
        *_, (_, shown, _) = to_say(TASK, replace(order, attributes=attributes), 3, Random(0))
        assert last in [said for _, said in shown]
        assert len(shown) == 3


def test_a_paraphrase_is_asked_for_with_pairs_that_mean_the_same():
    form = TASK.labels["HassVacuumStart"].forms[0]
    draft = TASK.draft(next(o for o in orders() if o.label == "HassVacuumStart" and o.form == 0), 0, "run it")
    [(_, shown, asked)] = to_vary(TASK, form, [draft], 4, Random(0))
    assert asked == "run it"
    for said, other in shown:
        assert said != other
        assert any(name in said and name in other for name in TASK.slots["vacuum"].values)


def test_a_model_without_a_chat_template_gets_lines_and_one_without_a_system_turn_no_such_turn():
    tokenizer = Tiny(hidden_size=32).load(0).tokenizer
    turns = ("Do so.", [("lamp", "lamp on")], "fan")
    assert tokenizer.decode(token_ids(tokenizer, turns)) == (
        "<|system|>Do so.<|end|><|user|>lamp<|end|><|assistant|>lamp on<|end|><|user|>fan<|end|><|assistant|>"
    )
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    )
    assert tokenizer.decode(token_ids(tokenizer, turns)) == "[Do so.\n\nlamp][lamp on][fan]"
    tokenizer.chat_template = None
    assert tokenizer.decode(token_ids(tokenizer, turns)) == "Do so.\nlamp -> lamp on\nfan ->"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dim the Sofa Lamp to 40%", "dim the sofa lamp to 40%"),
        ("dim the hall lamp to 40", "dim the sofa lamp to 40"),
        ("dim the sofa lamp to 65 percent", "dim the sofa lamp to 40 percent"),
        ("dim the hall lamp to 5", "dim the sofa lamp to 40"),
        ("dim the lamp to  40", "dim the lamp to 40"),  # nothing stands in the lamp's place
        ("dim the hall lamp from 5 to 10", "dim the hall lamp from 5 to 10"),  # and which number is it?
        ("", ""),
    ],
)
def test_a_value_from_a_demonstration_gives_way_to_the_wanted_one(text, expected):
    assert put_values(TASK, text, LAMP) == expected


def test_putting_values_in_changes_nothing_where_they_are():
    from fedgen.generator.grammar import Grammar

    drafts = list(Grammar().generate(TASK, Grammar().plan(TASK, 200, 0), 0))
    assert [put_values(TASK, draft.text, draft.slots) for draft in drafts] == [draft.text for draft in drafts]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; it must be positive"),
        ({"top_p": 1.5}, "top_p is 1.5; it must be above 0 and at most 1"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
    ],
)
def test_values_outside_their_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(OPTION, **fields)


def test_its_model_is_checked_like_the_stage_of_that_name():
    node = {"_target_": "fedgen.generator.language.Language"}
    model = {"_target_": "fedgen.model.tiny.Tiny", "hidden_size": 32}
    assert build_node({**node, "model": model, "max_new_tokens": 4}, "generator") == OPTION
    for wrong, message in (
        ({**model, "hidden": 1}, "generator.model.hidden: Tiny has no such key"),
        ({"_target_": "fedgen.data.text.Text"}, "may not be named here; expected fedgen.model.<option>.<Class>"),
        ({"_target_": "os.system"}, "generator.model._target_: 'os.system' may not be named here"),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            build_node({**node, "model": wrong}, "generator")
        assert message in str(caught.value)


def test_its_fingerprint_holds_the_weights_and_the_settings():
    told = OPTION.fingerprint()
    assert Tiny(hidden_size=32).load(0).fingerprint in told
    assert replace(OPTION, temperature=0.8).fingerprint() != told
    assert replace(OPTION, model=Tiny(hidden_size=64)).fingerprint() != told


def test_the_benchmark_times_the_same_prompts_both_ways():
    import generator as benchmark

    base = OPTION.model.load(0)
    learner = base.learner(base.replica(private=False), {})
    order = orders()[0]
    prompts = [token_ids(learner.tokenizer, turns) for turns in to_say(TASK, order, 1, Random(0))][:3]
    assert benchmark._side_by_side(learner, prompts, OPTION) > 0
    assert benchmark._alone(learner, prompts, OPTION) > 0
