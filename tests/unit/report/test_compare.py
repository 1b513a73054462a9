import pytest

from fedgen import report
from fedgen.cli import reports
from fedgen.errors import RunError


def ended(records, *qualities, **more):
    return [records[0](n, quality, **more) for n, quality in enumerate(qualities)]


@pytest.fixture
def sweep(write_run, records, tmp_path):
    for rate, base in ((0.001, 0.25), (0.002, 0.5)):
        for seed in (1, 2, 3):
            lines = ended(records, 0.0, base + 0.125 * seed)
            write_run(f"sweep/rate={rate},seed={seed}", lines, seed=seed, rate=rate)
    return tmp_path / "sweep"


def test_runs_that_differ_in_their_seed_are_one_row(sweep):
    slow, fast = report.comparison_rows([sweep])
    assert slow.seeds == fast.seeds == ("1", "2", "3")
    assert slow.differing == {"client.learning_rate": "0.001"}
    assert fast.label == "client.learning_rate=0.002"
    assert slow.values["after"] == (0.375, 0.5, 0.625)
    assert slow.middle("after") == pytest.approx(0.5)
    # Sample standard deviation of three values 0.125 apart.
    assert slow.deviation("after") == pytest.approx(0.125)
    assert slow.middle("bytes") == 3000
    assert slow.middle("seconds") == 16.0


def test_the_table_is_text(sweep):
    headers, cells = report.comparison_table([sweep])
    assert headers == [
        "run", "client.learning_rate", "seed", "before", "after", "best", "loss", "bytes", "seconds", "refused",
    ]  # fmt: skip
    assert cells[1] == [
        "rate=0.002,seed=1 and 2 more", "0.002", "1, 2, 3", "0.000 ± 0.000", "0.750 ± 0.125", "0.750 ± 0.125",
        "2.000 ± 0.000", "3.0 kB", "16.0 s", "0",
    ]  # fmt: skip


def test_an_option_is_shown_by_its_module(write_run, records):
    runs = [
        write_run("a", ended(records, 0.0, 0.5), wire="dense"),
        write_run("b", ended(records, 0.0, 0.25), wire="int8", config="privacy: {noise: 1.5}\n"),
    ]
    first, second = report.comparison_rows(runs)
    assert first.differing == {"wire": "dense", "privacy.noise": "–"}
    assert second.differing == {"wire": "int8", "privacy.noise": "1.5"}
    assert report.comparison_table(runs)[0][:4] == ["run", "wire", "privacy.noise", "before"]


def test_names_and_seeds_alone_make_no_column(write_run, records):
    runs = [write_run(name, ended(records, 0.5), seed=1) for name in ("a", "b")]
    headers, cells = report.comparison_table(runs)
    assert headers[:2] == ["run", "before"]
    assert [row[0] for row in cells] == ["a and 1 more"]


def test_a_run_without_rounds_has_empty_cells(write_run, records):
    runs = [write_run("a", ended(records, 0.0, 0.5)), write_run("b", [], rate=1)]
    assert report.comparison_table(runs)[1][1][-7:] == ["–"] * 7


def test_the_page_stands_alone(sweep, tmp_path):
    out = tmp_path / "out.html"
    assert report.compare([sweep], out) == out
    text = out.read_text()
    assert "6 runs compared" in text
    assert text.count("<svg") == 1
    assert "http" not in text.replace("http-equiv", "")
    assert "0.750 ± 0.125 ★" in text
    assert "client.learning_rate=0.002" in text


def test_runs_judged_by_different_numbers_are_not_ranked(write_run, records, tmp_path):
    runs = [
        write_run("a", ended(records, 0.0, 0.5)),
        write_run("b", ended(records, 3.0, 2.0, metric="loss", higher_is_better=False), rate=1),
    ]
    text = report.compare(runs, tmp_path / "out.html").read_text()
    assert "★" not in text
    assert "1 left out: judged by another number" in text


def test_the_best_is_the_lowest_where_lower_is_better(write_run, records, tmp_path):
    runs = [
        write_run(name, ended(records, 3.0, after, metric="loss", higher_is_better=False), rate=after)
        for name, after in (("a", 2.0), ("b", 1.0), ("c", 1.5))
    ]
    text = report.compare(runs, tmp_path / "out.html").read_text()
    assert "1.000 ★" in text


def test_names_cannot_steer_a_terminal_or_the_page(write_run, records, tmp_path):
    runs = [write_run("<b>\x1b[2J", ended(records, 0.0, 0.5)), write_run("b", ended(records, 0.0, 0.5), wire="<i>")]
    _, cells = report.comparison_table(runs)
    assert "\x1b" not in "".join(cell for row in cells for cell in row)
    text = report.compare(runs, tmp_path / "out.html").read_text()
    assert "<b>\ufffd" not in text
    assert "&lt;b&gt;" in text


def test_errors_name_the_place(write_run, records, tmp_path):
    run = write_run("a", ended(records, 0.0))
    with pytest.raises(RunError, match="gone is not a folder"):
        report.compare([run, tmp_path / "gone"], tmp_path / "out.html")
    with pytest.raises(RunError, match="nowhere"):
        report.compare([run], tmp_path / "nowhere" / "out.html")
    assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize(("width", "turned"), [(300, False), (80, True)])
def test_on_a_narrow_screen_runs_stand_side_by_side_and_no_number_is_cut_off(
    write_run, records, monkeypatch, capsys, width, turned
):
    config = "".join(f"extraction_{number}: {{share: SHARE}}\n" for number in range(8))
    shares = ("0.125", "0.375")
    runs = [
        write_run(f"run-{share}", ended(records, 0.0, float(share)), config=config.replace("SHARE", share))
        for share in shares
    ]
    monkeypatch.setenv("COLUMNS", str(width))
    reports.table(runs)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert (["after", *shares] in lines) is turned
    assert any(line[:9] == [f"run-{shares[0]}", *[shares[0]] * 8] for line in lines) is not turned
    assert not any("…" in word for line in lines for word in line)
