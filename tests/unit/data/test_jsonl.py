import json
import re
from collections import Counter

import pytest

from fedgen.data.jsonl import Jsonl
from fedgen.errors import DataError
from fedgen.types import Example, Message


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def plain(number, **more):
    return {"prompt": f"question {number}", "completion": f"answer {number}"} | more


def chat(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_a_folder_has_one_file_per_owner(tmp_path):
    write(tmp_path / "anna.jsonl", *[plain(i) for i in range(20)])
    write(tmp_path / "bert.jsonl", *[plain(i) for i in range(100, 110)])
    (tmp_path / "notes.txt").write_text("not data")
    dataset = Jsonl(str(tmp_path), eval_fraction=0.2).load(0)
    assert list(dataset.evaluation) == ["held_out"]
    assert Counter(example.owner for example in dataset.train) == {"anna": 16, "bert": 8}
    assert Counter(example.owner for example in dataset.evaluation["held_out"]) == {"anna": 4, "bert": 2}
    prompts = [example.prompt for example in (*dataset.train, *dataset.evaluation["held_out"])]
    assert sorted(prompts) == sorted(f"question {i}" for i in (*range(20), *range(100, 110)))


def test_rows_of_one_file_may_name_their_owner_and_label(tmp_path):
    file = write(tmp_path / "all.jsonl", plain(0, owner="anna", label="x"), plain(1, id=7), plain(2, owner="anna"))
    dataset = Jsonl(file).load(0)
    examples = {example.prompt: example for example in (*dataset.train, *dataset.evaluation["held_out"])}
    assert examples["question 0"] == Example("question 0", "answer 0", "anna", "x")
    assert examples["question 1"].owner == "all"
    assert len(dataset.evaluation["held_out"]) == 1  # anna has two rows, the other owner keeps its only one


def test_chat_rows_become_turns_with_the_answer_last(tmp_path):
    row = chat(("system", "be brief"), ("user", "hi"), ("assistant", "hello"), ("user", "bye"), ("assistant", "ciao"))
    option = Jsonl(write(tmp_path / "a.jsonl", row, row))
    example = option.load(0).train[0]
    turns = [("system", "be brief"), ("user", "hi"), ("assistant", "hello"), ("user", "bye")]
    assert example == Example(tuple(Message(*turn) for turn in turns), "ciao", "a")
    assert option.prompt("good night") == (Message("system", "be brief"), Message("user", "good night"))


def test_prompt_looks_at_the_first_row_only_and_needs_no_load(tmp_path):
    assert Jsonl(write(tmp_path / "a.jsonl", plain(0))).prompt("hi") == "hi"
    file = tmp_path / "b.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\nbroken\n')
    assert Jsonl(str(file)).prompt("hi") == (Message("user", "hi"),)


def test_the_seed_decides_what_is_held_out_and_an_owner_does_not_depend_on_the_others(tmp_path):
    write(tmp_path / "a.jsonl", *[plain(i) for i in range(50)])
    alone = Jsonl(str(tmp_path)).load(0)
    assert alone == Jsonl(str(tmp_path)).load(0)
    assert alone.evaluation != Jsonl(str(tmp_path)).load(1).evaluation
    write(tmp_path / "b.jsonl", *[plain(i) for i in range(50, 60)])
    both = Jsonl(str(tmp_path)).load(0)
    assert [x for x in both.evaluation["held_out"] if x.owner == "a"] == list(alone.evaluation["held_out"])


def test_an_evaluation_file_leaves_every_row_for_training(tmp_path):
    train = write(tmp_path / "train.jsonl", plain(0), plain(1))
    test = write(tmp_path / "test.jsonl", plain(2))
    dataset = Jsonl(train, eval_path=test).load(0)
    assert [x.prompt for x in dataset.train] == ["question 0", "question 1"]
    assert [x.prompt for x in dataset.evaluation["held_out"]] == ["question 2"]
    talk = write(tmp_path / "talk.jsonl", chat(("user", "q"), ("assistant", "a")))
    with pytest.raises(DataError, match=r"has chat rows and .* has plain rows"):
        Jsonl(train, eval_path=talk).load(0)


def test_public_examples_come_from_a_file_of_their_own_and_are_nobodys(tmp_path):
    train = write(tmp_path / "train.jsonl", *[plain(i) for i in range(4)])
    public = write(tmp_path / "public.jsonl", plain(8, owner="anna", label="x"), plain(9))
    dataset = Jsonl(train, public=public).load(0)
    assert dataset.public == (Example("question 8", "answer 8", "", "x"), Example("question 9", "answer 9"))
    without = Jsonl(train).load(0)
    assert without.public == ()
    assert (without.train, without.evaluation) == (dataset.train, dataset.evaluation)
    talk = write(tmp_path / "talk.jsonl", chat(("user", "q"), ("assistant", "a")))
    with pytest.raises(DataError, match=r"talk.jsonl has chat rows and .*train.jsonl has plain rows"):
        Jsonl(train, public=talk).load(0)


def test_blank_lines_bom_windows_endings_and_odd_separators_are_no_trouble(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = '\ufeff{"prompt": "p\u2028q", "completion": "é"}\r\n\r\n{"prompt": "r", "completion": "s"}\r\n\n'
    file.write_bytes(rows.encode())
    dataset = Jsonl(str(file)).load(0)
    found = {(x.prompt, x.completion) for x in (*dataset.train, *dataset.evaluation["held_out"])}
    assert found == {("p\u2028q", "é"), ("r", "s")}


GOOD = b'{"prompt": "p", "completion": "c"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "p", "completion": "c"', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'["p", "c"]', "a JSON list, not an object"),
        (b'{"prompt": "p"}', "no completion; got the keys prompt"),
        (b"{}", "no prompt; got the keys (none)"),
        (b'{"prompt": 3, "completion": "c"}', "prompt is 3; expected text"),
        (b'{"prompt": "p", "completion": " "}', "completion is empty"),
        (b'{"prompt": "p", "completion": "c", "owner": ""}', "owner is empty"),
        (b'{"prompt": "p", "completion": "c", "label": 1}', "label is 1; expected text"),
        (b'{"prompt": "p", "completion": "\xff"}', "not UTF-8 (byte 32 of the line)"),
        (b'{"messages": "hi"}', "messages must be a list of at least two turns"),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', "messages must be a list of at least two turns"),
        (b'{"messages": ["hi", "ho"]}', "turn 1 is not an object"),
        (b'{"messages": [{"role": "usr", "content": "q"}, {}]}', "turn 1 has the role 'usr'; known are system, user"),
        (b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant"}]}', "turn 2: no content"),
        (
            b'{"messages": [{"role": "user", "content": "q"}, {"role": "user", "content": "q"}]}',
            "the last turn is the user's; expected the assistant's answer",
        ),
        (b'{"messages": [], "prompt": "p"}', "both messages and prompt/completion"),
        (
            b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}',
            "a chat row among plain rows",
        ),
    ],
)
def test_a_malformed_line_is_named_with_its_file_and_number(tmp_path, line, message):
    file = tmp_path / "anna.jsonl"
    file.write_bytes(GOOD + b"\n\n" + line + b"\n")
    with pytest.raises(DataError, match=re.escape(f"{file}:3: ").removesuffix(r"\ ") + ".*" + re.escape(message)):
        Jsonl(str(tmp_path)).load(0)


def test_missing_empty_and_foreign_paths_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone.jsonl does not exist; expected a jsonl file"):
        Jsonl(str(tmp_path / "gone.jsonl")).load(0)
    with pytest.raises(DataError, match=r"has no \.jsonl files"):
        Jsonl(str(tmp_path)).prompt("hi")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n \n")
    for call in (lambda: Jsonl(str(empty)).load(0), lambda: Jsonl(str(empty)).prompt("hi")):
        with pytest.raises(DataError, match=r"empty\.jsonl has no rows"):
            call()
    write(tmp_path / "full.jsonl", plain(0), plain(1))
    with pytest.raises(DataError, match=r"empty\.jsonl has no rows"):
        Jsonl(str(tmp_path)).load(0)


def test_files_of_two_formats_do_not_mix(tmp_path):
    write(tmp_path / "a.jsonl", plain(0))
    write(tmp_path / "b.jsonl", chat(("user", "q"), ("assistant", "a")))
    with pytest.raises(DataError, match=r"b\.jsonl has chat rows and .*a\.jsonl has plain rows"):
        Jsonl(str(tmp_path)).load(0)


def test_owners_with_one_row_each_leave_nothing_to_measure_on(tmp_path):
    write(tmp_path / "a.jsonl", plain(0))
    with pytest.raises(DataError, match=r"single row.*set eval_path"):
        Jsonl(str(tmp_path)).load(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"path": ""}, "path is empty"), ({"path": "x", "eval_fraction": 1.0}, "eval_fraction is 1.0")],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Jsonl(**options)
