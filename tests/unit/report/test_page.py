import html.parser
import json
import re
import subprocess
import sys

import pytest

from fedgen import report
from fedgen.errors import RunError

VOID = {"meta", "br", "use", "path"}


class Page(html.parser.HTMLParser):
    """Checks that elements are closed in order, and gathers what a test asks for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.names, self.texts = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for key, value in attributes:
            assert not key.startswith("on")
            assert key not in ("src", "href", "action") or value.startswith("#")

    def handle_startendtag(self, tag, attributes):
        self.names.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())


def page_of(folder):
    path = report.write(folder)
    assert path == folder / "report.html"
    text = path.read_text("utf-8")
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    return Page(text)


def strict(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_a_whole_run_says_all_that_happened(whole_run):
    page = page_of(whole_run)
    said = " ".join(page.texts)
    assert "2 clients trained one model together for 2 rounds" in said
    assert "exact match on new went from 0.000 to 0.500" in said
    assert "+0.500" in said
    for piece in ("“turn it on”", "Sure!", "On()", "home-10 was refused: non finite loss", "home-2 was slow"):
        assert piece in said
    assert "learning_rate: 0.001" in said
    assert "versions.python" in said
    assert page.names.count("svg") == 8
    assert "script" not in page.names


def test_late_replies_have_columns_of_their_own_where_there_are_any(write_run, whole_run, records):
    round_record, client_record = records
    lines = [
        round_record(0),
        client_record(1, "a", asked=1), round_record(1, num_late=0, num_pending=3),
        client_record(2, "b", asked=1), round_record(2, num_late=1, num_pending=7),
    ]  # fmt: skip
    late = page_of(write_run("late", lines)).texts
    at = late.index("still to come")
    assert late[at - 2 : at] == ["clients", "of them late"]
    last = len(late) - late[::-1].index("7") - 1
    assert late[last - 1 : last + 1] == ["1", "7"]
    assert late[late.index("rounds late") :].index("0.500") > 0  # one of two came a round late
    assert not {"rounds late", "still to come", "of them late"} & set(page_of(whole_run).texts)


def test_json_is_strict_and_is_the_summary(whole_run):
    report.write(whole_run)
    found = json.loads((whole_run / "report.json").read_text(), parse_constant=strict)
    assert found == report.summarise(whole_run)


def test_writing_again_gives_the_same_bytes_and_leaves_nothing_behind(whole_run):
    before = report.write(whole_run).read_bytes()
    assert report.write(whole_run).read_bytes() == before
    assert {path.name for path in whole_run.iterdir()} == {
        "environment.json", "experiment.yaml", "metrics.jsonl", "report.html", "report.json",
    }  # fmt: skip


def test_what_others_chose_is_shown_and_never_obeyed(write_run, records):
    evil = "<script>alert(1)</script>\"'>&{{7*7}} $x$ \ud800\x1b[2J"
    round_record, client_record = records
    rounds = [round_record(n, 0.1 * n, split=evil, metric=evil) for n in range(3)]
    for record in rounds:
        record["evaluation"][evil]["owners"] = {evil: {evil: 0.5}, "other": {evil: 0.25}}
    lines = [
        *rounds,
        client_record(1, evil, refused=evil),
        {"kind": "warning", "round": 1, "text": evil},
        {"kind": "conversation", "round": 1, "text": evil, "expected": evil, "before": evil, "after": "no"},
    ]
    folder = write_run("evil", lines, config="title: '<script>alert(2)</script>'\n")
    page = page_of(folder)
    assert "script" not in page.names
    assert any("<script>alert(1)</script>\"'>&{{7*7}} $x$" in text for text in page.texts)
    assert any("<script>alert(2)</script>" in text for text in page.texts)


def test_a_run_in_parts_shows_classes_gate_and_coverage(run_in_parts):
    page = page_of(run_in_parts)
    said = " ".join(page.texts)
    assert "width clients turns weights held to train them down of it base up compute last loss" in said
    assert "100 % 1 2 400 MB 60.0 MB 500 B 0 B 250 B 2.0 s 1.500" in said
    assert "50 % 1 2 200 MB 30.0 MB 500 B 100 B 250 B 2.0 s 1.500" in said
    assert "25 % 2 5.000 2.000 enlarged to 50 %" in said
    assert "12.5 % 3 9.000 6.000 refused" in said
    assert "1 the transfer gate refused width 12.5 % (3 clients)" in said
    assert "feed-forward units held" in said
    assert "attention heads held" in said
    assert "entries nobody has trained yet" in said
    # In round 2 0.25 and 0.125 of the two layers are left, and nothing of the third tensor.
    assert "mlp.up_proj.weight 2 75 % 18.8 % 25 %" in said
    assert "held by 75 % of the clients' weight, and 12.5 % of the entries had never been held" in said
    assert page.names.count("svg") == 2 + 1 + 4 + 3


def test_a_run_without_parts_says_nothing_about_them(whole_run):
    said = page_of(whole_run).texts
    assert not {"Device classes", "Transfer gate", "Coverage"} & set(said)


def test_what_others_named_in_parts_is_shown_and_never_obeyed(write_run, records):
    evil = "<script>alert(1)</script>\"'>&{{7*7}} $x$ \ud800\x1b[2J"
    coverage = {
        "units": {evil: [0.5, 1.0]},
        "tensors": {f"{evil}.0.{evil}": {"held": 0.5, "never": 0.5}, evil: {"held": 0.5, "never": 0.25}},
    }
    gate = {"limit": 1, "base_loss": 1, "plans": [{"width": 0.5, "loss": 2, "clients": 1, "decision": evil, "to": 1}]}
    turn = records[1](1, evil, width=0.5, held_bytes=evil, train_bytes=[evil], base_bytes={evil: evil})
    page = page_of(write_run("evil", [turn, records[0](1, coverage=coverage, gate=gate)]))
    assert "script" not in page.names
    assert sum("<script>alert(1)</script>\"'>&{{7*7}} $x$" in text for text in page.texts) >= 4


@pytest.mark.parametrize(
    "said",
    [
        {"coverage": 3, "gate": 4},
        {"coverage": {"units": {"ffn": "x"}, "tensors": {"a": 1}}, "gate": {}},
        {
            "coverage": {"units": {"ffn": [None, float("nan"), -3, 10**400]}, "tensors": {"a": {}}},
            "gate": {"plans": [{}]},
        },
        {"coverage": {"units": {"ffn": [1e99]}, "tensors": {"a": {"held": -1, "never": 1e99}}}},
    ],
)
def test_parts_that_are_half_said(write_run, records, said):
    page = page_of(write_run("half", [records[1](1, "a", width=None), records[0](1, **said)], num_rounds=1))
    assert not any(word in text for text in page.texts for word in ("nan", "None", "inf "))


def test_hundreds_of_rounds_in_parts_make_a_small_page(write_run, records):
    def held(at, num_stretches=32):
        return [((at + stretch) % num_stretches) / num_stretches for stretch in range(num_stretches)]

    rounds = [
        records[0](at, coverage={"units": dict.fromkeys(("ffn", "kv", "layer"), held(at)), "tensors": {}})
        for at in range(1, 301)
    ]
    folder = write_run("long", rounds)
    assert "layers held" in page_of(folder).texts
    assert (folder / "report.html").stat().st_size < 10**6


def test_no_round_yet(write_run):
    page = page_of(write_run("empty", [], num_rounds=3))
    assert "svg" not in page.names
    assert any("No round has been recorded yet" in text for text in page.texts)
    assert any("unfinished: 0 of 3 rounds done" in text for text in page.texts)


def test_only_the_state_before_training(write_run, records):
    said = " ".join(page_of(write_run("zero", [records[0](0, 0.25, num_clients=0)])).texts)
    assert "No round of training has finished yet." in said
    assert "before training" in said
    assert "→" not in said


def test_rounds_without_any_evaluation(write_run, records):
    page = page_of(write_run("unmeasured", [records[0](n) for n in range(4)]))
    assert any("together for 3 rounds" in text for text in page.texts)
    assert not any("went from" in text for text in page.texts)


def test_numbers_that_are_none(write_run, records):
    round_record, client_record = records
    nan = float("nan")
    lines = [
        round_record(0, nan, loss=None, seconds=None, bytes_up=None),
        round_record(1, nan, loss=nan, seconds={"compute": nan}, bytes_up=10**400, peak_memory_bytes=1e308),
        client_record(1, "home-0", loss=nan, num_examples=None, seconds=None, peak_memory_bytes=None),
    ]
    page = page_of(write_run("unknown", lines))
    assert not any(word in text for text in page.texts for word in ("nan", "None", "inf "))


def test_huge_and_tiny_numbers(write_run, records):
    lines = [records[0](n, loss=value, bytes_down=value) for n, value in enumerate([1e-300, 1e99, 5, 0])]
    assert "svg" in page_of(write_run("huge", lines)).names


def test_a_hundred_clients_and_two_hundred_rounds(write_run, records):
    round_record, client_record = records
    rounds = [round_record(n, n / 200) for n in range(201)]
    rounds[-1]["evaluation"]["new"]["owners"] = {f"home-{n}": {"exact_match": n / 100} for n in range(100)}
    turns = [client_record(n, f"home-{n % 100}") for n in range(1, 201)]
    folder = write_run("large", [*rounds, *turns])
    page = page_of(folder)
    assert "middle half" in page.texts
    assert {f"home-{n}" for n in range(100)} <= set(page.texts)
    assert (folder / "report.html").stat().st_size < 10**6


def test_owners_that_are_no_clients_have_a_table_of_their_own(whole_run):
    text = (whole_run / "metrics.jsonl").read_text()
    (whole_run / "metrics.jsonl").write_text(text.replace('"client": "home-', '"client": "client-'))
    page = page_of(whole_run)
    assert "owner of examples" in page.texts
    assert {"client-2", "client-10", "home-2", "home-10"} <= set(page.texts)
    # A measure heads the table of owners and that of rounds, and none of the clients' own.
    assert page.texts[page.texts.index("last loss") + 1] == "bytes"


def test_fewer_examples_between_are_told(write_run, records):
    config = "num_evaluated: 200\nnum_evaluated_per_round: 50\n"
    folder = write_run("few", [records[0](n, 0.5) for n in range(3)], config=config)
    assert any("first and last on up to 200 examples" in text for text in page_of(folder).texts)


@pytest.mark.usefixtures("bound_by_permissions")
def test_a_folder_that_cannot_be_written_is_named(whole_run):
    whole_run.chmod(0o500)
    try:
        with pytest.raises(RunError, match=r"report\.json"):
            report.write(whole_run)
    finally:
        whole_run.chmod(0o700)


def test_a_folder_in_the_way_is_named(whole_run):
    (whole_run / "report.html").mkdir()
    with pytest.raises(RunError, match=r"report\.html"):
        report.write(whole_run)
    assert not [path.name for path in whole_run.iterdir() if path.name.startswith(".")]


def test_nothing_heavy_is_imported_before_it_is_used(whole_run):
    code = (
        "import sys, fedgen.report as r; from pathlib import Path\n"
        "heavy = {'torch', 'matplotlib', 'jinja2', 'yaml', 'rich', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        f"r.write(Path({str(whole_run)!r}))\n"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
