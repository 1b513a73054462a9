"""A set depends on its manifest alone, is made once, and goes on where it was interrupted."""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from dataclasses import InitVar, dataclass, field, replace

import pytest

from fedgen.config import check
from fedgen.data.jsonl import Jsonl
from fedgen.errors import DataError
from fedgen.generator.grammar import Grammar
from fedgen.synthesis import drafting, synthetic_set
from fedgen.synthesis.filters import Evidence, Filters
from fedgen.synthesis.making import Synthesis
from fedgen.task_file import build_task
from fedgen.types import Example, Message

NUM = 240
SETTINGS = Filters(examples_shown=2)


@dataclass(frozen=True)
class Failing:
    """The grammar, but that it writes garbage for one label, and stops at an order as if the power did."""

    grammar: Grammar = field(default_factory=lambda: Grammar(per_order=4))
    garbage: str = ""
    silent: tuple[int, int] = (0, 0)
    stops_before: InitVar[int | None] = None

    def __post_init__(self, stops_before):
        # No fields: a setting is what the drafts depend on.
        object.__setattr__(self, "stop", stops_before)
        object.__setattr__(self, "asked", [])

    @property
    def kind(self):
        return self.grammar.kind

    @property
    def licence(self):
        return self.grammar.licence

    def plan(self, task, num_examples, seed):
        return self.grammar.plan(task, num_examples, seed)

    def generate(self, task, orders, seed):
        for order in orders:
            if order.index == self.stop:
                raise KeyboardInterrupt
            self.asked.append(order.index)
            if self.silent[0] <= order.index < self.silent[1]:
                continue
            for draft in self.grammar.generate(task, [order], seed):
                yield replace(draft, text="gnorp") if draft.label == self.garbage else draft

    def vary(self, task, drafts, degree, seed):
        return self.grammar.vary(task, drafts, degree, seed)

    def fingerprint(self):
        return f"{self.grammar.fingerprint()} {self.garbage}"


@pytest.fixture
def synthesis(task):
    return Synthesis(task, Grammar(), NUM, seed=3, filters=SETTINGS)


def contents(made):
    names = (synthetic_set.EXAMPLES, synthetic_set.MANIFEST, synthetic_set.ORDERS, synthetic_set.DRAFTS)
    return {name: (made.folder / name).read_bytes() for name in names}


def test_examples_are_of_the_task_and_shared_equally(synthesis, task, tmp_path):
    examples = synthesis.carry_out(tmp_path).examples()
    counts = Counter(example.label for example in examples)
    share = NUM // len(task.labels)
    assert counts.keys() == task.labels.keys()
    assert max(counts.values()) == share
    assert min(counts.values()) >= 0.8 * share
    assert all(isinstance(example.prompt, tuple) and not example.owner for example in examples)


def test_two_makings_give_the_same_bytes_and_another_seed_others(synthesis, tmp_path):
    first, second = synthesis.carry_out(tmp_path / "a"), synthesis.carry_out(tmp_path / "b")
    assert contents(first) == contents(second)
    assert first.folder.name == second.folder.name
    other = replace(synthesis, seed=4).carry_out(tmp_path / "a")
    assert other.folder != first.folder
    assert set(other.examples()) != set(first.examples())


def test_the_manifest_alone_reproduces_the_set(synthesis, tmp_path):
    made = synthesis.carry_out(tmp_path / "a")
    told = json.loads((made.folder / synthetic_set.MANIFEST).read_text())
    inputs = told["inputs"]
    again = Synthesis(
        build_task(told["task"], "the manifest"),
        check.build_node(told["generator"], "generator"),
        inputs["num_examples"],
        inputs["seed"],
        inputs["surplus"],
        check.build_node({"_target_": check.FILTERS, **inputs["filters"]}, "filters"),
    )
    assert contents(again.carry_out(tmp_path / "b")) == contents(made)


def test_the_manifest_names_its_files_and_its_inputs_by_their_hashes(synthesis, tmp_path):
    made = synthesis.carry_out(tmp_path)
    for name, told in made.manifest["files"].items():
        content = (made.folder / name).read_bytes()
        assert told == {"sha256": hashlib.sha256(content).hexdigest(), "rows": len(content.splitlines())}
    assert set(made.manifest["files"]) == {"examples.jsonl", "orders.jsonl", "drafts.jsonl"}
    digest = hashlib.sha256(json.dumps(made.manifest["inputs"], sort_keys=True).encode()).hexdigest()
    assert made.digest == digest
    assert digest.startswith(made.folder.name)


def test_a_set_is_never_made_twice(task, tmp_path):
    generator, told = Failing(), []
    first = Synthesis(task, generator, NUM).carry_out(tmp_path)
    asked = len(generator.asked)
    second = Synthesis(task, generator, NUM).carry_out(tmp_path, told.append)
    assert len(generator.asked) == asked > 0
    assert second == first
    assert told == [{"kind": "found", "folder": str(first.folder)}]


CHANGES = {
    "seed": {"seed": 9},
    "number": {"num_examples": NUM + 1},
    "surplus": {"surplus": 1.5},
    "filters": {"filters": Filters(near_duplicate=0.5)},
    "generator": {"generator": Grammar(per_order=3)},
    "evaluation": {"evidence": Evidence(evaluation=(Example("a", "b"),))},
    "likelihood": {"evidence": Evidence(likelihood=lambda texts: [0.0] * len(texts), likelihood_of="zero")},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_a_set_depends_on_gives_it_another_name(synthesis, change):
    assert replace(synthesis, **change).inputs() != synthesis.inputs()


def test_the_tasks_words_give_it_another_name(synthesis, task):
    other = replace(task, description="Another.")
    assert replace(synthesis, task=other).inputs() != synthesis.inputs()


@pytest.mark.parametrize("stops_before", [0, 1, 40, 70])
def test_what_was_interrupted_is_continued_to_the_same_bytes(task, tmp_path, stops_before):
    whole = Synthesis(task, Failing(), NUM, filters=SETTINGS).carry_out(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        Synthesis(task, Failing(stops_before=stops_before), NUM, filters=SETTINGS).carry_out(tmp_path / "b")
    rest = Failing()
    made = Synthesis(task, rest, NUM, filters=SETTINGS).carry_out(tmp_path / "b")
    assert contents(made) == contents(whole)
    # It goes on where the batch began that was lost: 128 drafts in orders of 4 at most, most of them less.
    assert rest.asked == list(range(rest.asked[0], made.manifest["files"]["orders.jsonl"]["rows"]))
    assert rest.asked[0] <= stops_before
    assert (rest.asked[0] > 0) == (stops_before >= 40)


@pytest.mark.parametrize("silent", [(0, 40), (20, 70), (30, 80), (0, 80)])
def test_orders_that_are_not_answered_leave_a_gap_that_is_not_asked_again(task, tmp_path, silent):
    generator, seed = Failing(silent=silent), 0
    orders, file, told = generator.plan(task, 300, seed), tmp_path / "drafts.jsonl", []
    drafts = drafting.draw(generator, task, orders, seed, file, told.append)
    assert [draft.order for draft in drafts] == [
        order.index for order in orders for _ in range(order.num) if not silent[0] <= order.index < silent[1]
    ]
    assert [record["batches"] for record in told] == [0, 1, 2, 3]
    assert told[-1]["drafts"] == len(drafts)
    assert drafting.draw(generator, task, orders, seed, file, told.append) == drafts
    assert generator.asked == [order.index for order in orders]


@pytest.mark.parametrize("cut", [1, 30, 2_000, 20_000])
def test_a_torn_file_is_mended(task, tmp_path, cut):
    whole = Synthesis(task, Failing(), NUM, filters=SETTINGS).carry_out(tmp_path)
    expected, file = contents(whole), whole.folder / synthetic_set.DRAFTS
    (whole.folder / synthetic_set.MANIFEST).unlink()
    file.write_bytes(expected["drafts.jsonl"][:-cut])
    assert contents(Synthesis(task, Failing(), NUM, filters=SETTINGS).carry_out(tmp_path)) == expected


def test_a_damaged_draft_is_drawn_again(task, tmp_path):
    whole = Synthesis(task, Failing(), NUM, filters=SETTINGS).carry_out(tmp_path)
    expected, file = contents(whole), whole.folder / synthetic_set.DRAFTS
    (whole.folder / synthetic_set.MANIFEST).unlink()
    file.write_bytes(expected["drafts.jsonl"].replace(b"the", b"teh", 1))
    assert contents(Synthesis(task, Failing(), NUM, filters=SETTINGS).carry_out(tmp_path)) == expected


def test_a_label_that_ends_empty_is_an_error_with_counts(task, tmp_path):
    with pytest.raises(DataError) as caught:
        Synthesis(task, Failing(garbage="HassSetVolume"), NUM).carry_out(tmp_path)
    message = str(caught.value)
    assert "for 1 of 8 labels" in message
    assert re.search(r"HassSetVolume: 3\d drafts, none kept \(\d+ × the text does not mention", message)
    assert "HassTurnOn:" not in message
    assert not list(tmp_path.glob(f"*/{synthetic_set.MANIFEST}"))


def test_examples_that_were_changed_are_refused(synthesis, tmp_path):
    made = synthesis.carry_out(tmp_path)
    file = made.folder / synthetic_set.EXAMPLES
    file.write_bytes(file.read_bytes().replace(b"on", b"off", 1))
    with pytest.raises(DataError, match="has changed since"):
        made.examples()
    with pytest.raises(DataError, match="has changed"):
        made.export(tmp_path / "out")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 99}', '{"format": 1}'])
def test_a_damaged_manifest_is_named(synthesis, tmp_path, text):
    file = synthesis.carry_out(tmp_path).folder / synthetic_set.MANIFEST
    file.write_text(text)
    with pytest.raises(DataError, match="remove the folder"):
        synthesis.carry_out(tmp_path)


def test_data_jsonl_reads_what_is_exported(synthesis, tmp_path):
    made = synthesis.carry_out(tmp_path / "cache")
    made.export(tmp_path / "out")
    data = Jsonl(str(tmp_path / "out"), eval_path=str(tmp_path / "out")).load(0)
    assert [replace(example, owner="") for example in data.train] == list(made.examples())


def test_the_summary_adds_up(synthesis, task, tmp_path):
    made = synthesis.carry_out(tmp_path)
    told = made.summary()
    assert told["drafts"] == NUM * 5 // 4
    assert told["kept"] == len(made.examples())
    assert told["drafts"] - told["kept"] == sum(sum(row["reasons"].values()) for row in told["filters"])
    for before, after in zip(told["filters"], told["filters"][1:], strict=False):
        assert after["drafts"] == before["drafts"] - sum(before["reasons"].values())
    for counts in told["labels"].values():
        assert counts["drafts"] == counts["kept"] + sum(counts["reasons"].values())
    assert sum(counts["wanted"] for counts in told["labels"].values()) == NUM
    shown = Counter(reason for reason, examples in told["rejected_examples"].items() for _ in examples)
    assert max(shown.values()) <= SETTINGS.examples_shown == len(told["kept_examples"])
    assert told["generator"] == Grammar().fingerprint()


def test_plain_prompts_and_halves_of_surrogate_pairs_survive():
    examples = [Example("a\ud800b", "c", label="x"), Example((Message("user", "ü\n"),), "d")]
    lines = synthetic_set.rows(examples).splitlines()
    assert [synthetic_set._example(json.loads(line)) for line in lines] == examples


@pytest.mark.parametrize(
    ("change", "message"), [({"num_examples": 7}, "8 labels"), ({"surplus": 0.5}, "surplus is 0.5")]
)
def test_numbers_out_of_range_are_refused(synthesis, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(synthesis, **change)
