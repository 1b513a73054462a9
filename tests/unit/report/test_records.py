import pytest

from fedgen.errors import RunError
from fedgen.report.records import LARGEST, expand, finite, plain, read


def test_reads_rounds_and_clients_in_order(whole_run):
    records = read(whole_run)
    assert [record["round"] for record in records.rounds] == [0, 1, 2]
    assert [(record["round"], record["client"]) for record in records.clients] == [
        (1, "home-2"), (1, "home-10"), (2, "home-2"), (2, "home-10"),
    ]  # fmt: skip
    assert records.finished
    assert records.config["client"]["learning_rate"] == 0.001


def test_a_torn_last_line_is_left_out(write_run, records):
    round_record, _ = records
    folder = write_run("torn", [round_record(0), round_record(1)], torn='{"kind": "round", "rou')
    assert len(read(folder).rounds) == 2


def test_a_round_that_was_done_again_counts_once(write_run, records):
    round_record, client_record = records
    lines = [
        round_record(1, loss=9.0),
        client_record(1, "a", loss=9.0),
        round_record(1),
        client_record(1, "a", loss=1.0),
    ]
    found = read(write_run("again", lines))
    assert [record["loss"] for record in found.rounds] == [2.0]
    assert [record["loss"] for record in found.clients] == [1.0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{oops", "line 2 is not valid JSON"),
        ("[1]", "line 2 is not a record"),
        ('{"round": 1}', "line 2 is not a record"),
        ('{"kind": "round", "round": "1"}', "round is '1', expected a whole number"),
        ('{"kind": "client", "round": 1}', "client is None, expected a name"),
        ("[" * 100_000, "line 2 is not valid JSON: nested too deeply"),
        ("", "line 2 is not valid JSON"),
    ],
)
def test_a_damaged_line_is_named(write_run, records, line, said):
    folder = write_run("damaged", [records[0](0)], torn=line + "\n")
    with pytest.raises(RunError) as caught:
        read(folder)
    assert str(caught.value).startswith(f"{folder / 'metrics.jsonl'}, ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("experiment.yaml", b"a: [", "is not valid yaml"),
        ("experiment.yaml", b"- a", "holds list"),
        ("experiment.yaml", b"a: \xff", "byte 3 is not UTF-8"),
        ("environment.json", b"{", "is not valid JSON"),
        ("environment.json", b"[]", "holds list"),
    ],
)
def test_a_damaged_file_is_named(whole_run, name, content, said):
    (whole_run / name).write_bytes(content)
    with pytest.raises(RunError, match=f"{name}.*{said}"):
        read(whole_run)


def test_what_is_no_run_folder_is_refused(tmp_path, whole_run):
    with pytest.raises(RunError, match="nowhere is not a folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"not a run folder: it holds no experiment\.yaml"):
        read(tmp_path)
    (whole_run / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match=r"metrics\.jsonl is missing"):
        read(whole_run)


def test_the_environment_may_be_missing(whole_run):
    (whole_run / "environment.json").unlink()
    assert read(whole_run).environment == {}


def test_a_sweep_stands_for_its_runs_in_natural_order(write_run, tmp_path):
    for name in ("sweep/seed=10", "sweep/seed=9", "single"):
        write_run(name, [])
    (tmp_path / "sweep" / "notes").mkdir()
    hidden = write_run("sweep/.tmp-1", [])
    found = expand([tmp_path / "single", tmp_path / "sweep", tmp_path / "sweep" / "seed=9"])
    assert [run.name for run in found] == ["single", "seed=9", "seed=10"]
    assert hidden not in found


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(RunError, match="neither a run folder nor a sweep"):
        expand([tmp_path])
    with pytest.raises(RunError, match="no run folder was given"):
        expand([])
    with pytest.raises(RunError, match="gone is not a folder"):
        expand([tmp_path / "gone"])


@pytest.mark.usefixtures("bound_by_permissions")
def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    tmp_path.chmod(0o300)
    try:
        with pytest.raises(RunError, match="cannot be listed"):
            expand([tmp_path])
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    "value", [None, True, "1", float("nan"), float("inf"), -float("inf"), LARGEST * 2, 10**200, []]
)
def test_what_is_no_usable_number_is_none(value):
    assert finite(value) is None


@pytest.mark.parametrize("value", [0, -3, 1.5, LARGEST, 10**30])
def test_numbers_stay_as_they_are(value):
    assert finite(value) is value


def test_plain_values_fit_json():
    assert plain({1: (float("inf"), {2}), "a": None}) == {"1": ["inf", [2]], "a": None}
