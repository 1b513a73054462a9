import io
import os
import pty
import re
import subprocess
import sys
import textwrap
import threading

import pytest
from rich.console import Console

from fedgen.cli.progress import Progress

CLIENTS = ["home-0", "home-1"]
START = {
    "kind": "start", "name": "homes", "num_rounds": 4, "clients": CLIENTS, "cohort_size": 2, "metric": "exact_match",
    "folder": "runs/homes", "round": 0,
}  # fmt: skip
SUMMARY = {
    "followed": {"split": "new", "metric": "exact_match", "higher_is_better": True},
    "quality": [{"split": "new_utterances", "metric": "exact_match", "before": 0.0, "after": 0.75, "round": 4}],
    "conversations": [
        {"text": "turn it on", "expected": "On()", "before": "Sure!", "after": "On()"},
        {"text": "turn it off", "expected": "Off()", "before": "No.", "after": "On()"},
    ],
}


def turn(round, client, **more):
    return {
        "kind": "client", "round": round, "client": client, "loss": 1.5, "seconds": {"compute": 2.0}, "refused": None,
    } | more  # fmt: skip


def done(round, quality=None, **more):
    return {
        "kind": "round", "round": round, "loss": 1.25 if round else None, "bytes_down": 2_000_000,
        "bytes_up": 1_000_000,
        "seconds": {"total": 10.0}, "num_refused": 0, "metric": "exact_match", "higher_is_better": True,
        "evaluation": {} if quality is None else {"new": {"exact_match": quality}},
    } | more  # fmt: skip


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def plain(records, **options):
    file = io.StringIO()
    with Progress(Console(file=file, **options)) as progress:
        for record in records:
            progress.observe(record)
    return file.getvalue()


def screen(progress, console):
    """The live picture as text."""
    with console.capture() as captured:
        console.print(progress._picture())
    return re.sub(r"\x1b\[[0-9;]*m", "", captured.get())


def terminal(width=100, height=30):
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, legacy_windows=False)


def test_one_line_per_event_where_there_is_no_terminal():
    records = [
        START,
        {"kind": "evaluate", "round": 0},
        done(0, 0.0),
        {"kind": "dispatch", "round": 1, "clients": CLIENTS},
        turn(1, "home-1"),
        turn(1, "home-0", refused="non_finite_loss"),
        done(1, 0.5, num_refused=1),
        {"kind": "warning", "round": 1, "text": "slow"},
        {"kind": "conversation", "round": 1, "text": "hi"},
        {"kind": "end", "round": 1, "seconds": 75.0},
    ]
    assert plain(records).splitlines() == [
        "homes: 2 clients, 4 rounds, in runs/homes",
        "round 0/4: evaluating",
        "round 0/4: exact match 0.000, in 10.0 s",
        "round 1/4: asked 2 clients",
        "round 1/4: home-1 loss 1.500, 2.0 s (1 of 2)",
        "round 1/4: home-0 refused, non finite loss (2 of 2)",
        "round 1/4: loss 1.250, exact match 0.500 (+0.500), 2.0 MB down, 1.0 MB up, 1 refused, in 10.0 s, 30.0 s left",
        "warning: slow",
        "done: 1 round in 1 min 15 s",
    ]


def test_a_continued_run_says_where_it_goes_on():
    assert "going on with round 3" in plain([START | {"round": 3}])


def test_few_of_many_clients():
    assert "100 clients, 10 a round" in plain([START | {"clients": [str(n) for n in range(100)], "cohort_size": 10}])


def test_a_dumb_terminal_and_a_foreign_encoding_get_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in plain([START, done(0, 0.5)], force_terminal=True)
    monkeypatch.setenv("TERM", "xterm")
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    with Progress(Console(file=file, force_terminal=True)) as progress:
        progress.observe(done(1, 0.5) | {"loss": None})
        progress.observe(done(2, 0.25))
        progress.observe({"kind": "warning", "text": "é"})
    assert b"(-0.250)" in raw.getvalue()
    assert b"loss -," in raw.getvalue()
    assert raw.getvalue().endswith(b"warning: ?\n")


@pytest.mark.parametrize("options", [{}, {"force_terminal": True}])
def test_names_neither_steer_the_terminal_nor_style_it(options, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    evil = "[red]x[/red]\x1b[2J\x07\r\n\u202e[/]"
    file = io.StringIO()
    with Progress(Console(file=file, width=200, height=40, **options)) as progress:
        progress.observe(START | {"name": evil, "folder": evil, "metric": evil})
        progress.observe({"kind": "dispatch", "round": 1, "clients": [evil]})
        progress._picture()
        progress.observe(turn(1, evil))
        progress.observe(done(1, None, metric=evil))
        progress.observe({"kind": "warning", "text": evil})
        talk = dict.fromkeys(("text", "expected", "before", "after"), evil)
        row = {"split": evil, "metric": evil, "before": 0.0, "after": 1.0, "round": 1}
        progress.finish({"followed": None, "quality": [row], "conversations": [talk]})
    text = file.getvalue()
    assert "[red]x[/red]\ufffd[2J\ufffd" in text
    assert "\x1b[2J" not in text
    assert "\x07" not in text
    assert "\u202e" not in text


def test_the_picture_shows_the_round_and_who_is_awaited():
    clock, console = Clock(), terminal()
    progress = Progress(console, clock)
    progress.observe(START)
    progress.observe(done(0, 0.25))
    for number in (1, 2):
        progress.observe({"kind": "dispatch", "round": number, "clients": CLIENTS})
        progress.observe(done(number, 0.25 * (number + 1)))
    progress.observe({"kind": "dispatch", "round": 3, "clients": CLIENTS})
    clock.now += 4
    progress.observe(turn(3, "home-1", refused="failed"))
    said = screen(progress, console)
    # Two rounds of ten seconds to come, four of which are over.
    assert "round 3 of 4 · 16.0 s left · 1 of 2 back, waiting for home-0" in said
    assert "1 update refused" in said
    rows = [line.split() for line in said.splitlines() if line.strip()[:1].isdigit()]
    assert rows == [
        ["0", "–", "0.250", "2.0", "MB", "1.0", "MB", "10.0", "s", "0"],
        ["1", "1.250", "0.500", "+0.250", "2.0", "MB", "1.0", "MB", "10.0", "s", "0"],
        ["2", "1.250", "0.750", "+0.250", "2.0", "MB", "1.0", "MB", "10.0", "s", "0"],
    ]


def test_the_bar_counts_answers():
    progress = Progress(terminal(), Clock())
    seen = progress._seen
    progress.observe(START)
    progress.observe(done(0))
    assert seen.rounds_done == 0
    progress.observe({"kind": "dispatch", "round": 1, "clients": CLIENTS})
    progress.observe(turn(1, "home-1"))
    assert seen.rounds_done == 0.5
    progress.observe(turn(1, "home-0"))
    progress.observe({"kind": "evaluate", "round": 1})
    assert seen.rounds_done == 1
    progress.observe(done(1))
    assert seen.rounds_done == 1


def test_no_picture_is_larger_than_the_terminal():
    for width, height in ((100, 30), (48, 12), (30, 9), (20, 5)):
        console = terminal(width, height)
        progress = Progress(console, Clock())
        progress.observe(START)
        for number in range(12):
            progress.observe(done(number, number / 12))
        lines = screen(progress, console).rstrip("\n").splitlines()
        assert max(map(len, lines)) <= width
        assert len(lines) <= max(height, 7)


def test_lower_may_be_better():
    progress = Progress(terminal(), Clock())
    progress.observe(done(0, 3.0, higher_is_better=False))
    progress.observe(done(1, 2.0, higher_is_better=False))
    progress.observe(done(2, 2.5, higher_is_better=False))
    assert [row.improved for row in progress._seen.rounds] == [None, True, False]


def test_the_last_picture_stays_and_the_table_follows(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    console = terminal()
    with Progress(console) as progress:
        progress.observe(START)
        progress.observe(done(4, 0.75))
        progress.observe({"kind": "end", "round": 4, "seconds": 42.0})
        progress.finish(SUMMARY)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())
    end = text[text.rindex("done: 4 rounds in 42.0 s") :]
    assert re.search(r"new utterances +exact match +0\.000 +0\.750", end)
    assert re.search(r"you +turn it on", end)
    assert re.search(r"after +On\(\)\s+you +turn it off\s+before +No\.\s+after +On\(\)\s+expected +Off\(\)", end)


def test_the_end_in_plain_lines():
    file = io.StringIO()
    with Progress(Console(file=file)) as progress:
        progress.finish(SUMMARY)
    assert file.getvalue().splitlines()[:4] == [
        "new utterances, exact match: 0.000 → 0.750",
        "you: turn it on",
        "before: Sure!",
        "after: On()",
    ]


def test_an_interrupted_run_leaves_its_last_picture(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    console = terminal()

    def interrupted():
        with Progress(console) as progress:
            progress.observe(START)
            progress.observe({"kind": "dispatch", "round": 1, "clients": CLIENTS})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    text = console.file.getvalue()
    assert "stopped in round 1 of 4" in text
    # The cursor is shown again.
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_an_output_that_is_gone_does_not_stop_the_run():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with Progress(Console(file=Gone())) as progress:
        progress.observe(START)
        progress.observe(done(1))


def test_many_threads_may_tell(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    names = [f"home-{n}" for n in range(64)]
    with Progress(terminal()) as progress:
        progress.observe(START | {"clients": names})
        progress.observe({"kind": "dispatch", "round": 1, "clients": names})
        threads = [
            threading.Thread(
                target=lambda part: [progress.observe(turn(1, name, refused="failed")) for name in part],
                args=(names[n::8],),
            )
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert progress._seen.num_refused == 64
        assert progress._seen.rounds_done == 1


SCRIPT = textwrap.dedent(
    """
    from fedgen.cli.progress import Progress
    with Progress() as progress:
        progress.observe({"kind": "start", "name": "homes", "num_rounds": 1, "clients": ["a"], "round": 0})
        progress.observe({"kind": "dispatch", "round": 1, "clients": ["a"]})
        progress.observe({"kind": "round", "round": 1, "loss": 0.5, "seconds": {"total": 1.0}})
        progress.observe({"kind": "end", "round": 1, "seconds": 1.0})
    """
)


def run_on(output, **environment):
    names = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    subprocess.run(
        [sys.executable, "-c", SCRIPT],
        stdout=output,
        check=True,
        timeout=60,
        env=kept | {"PYTHONUTF8": "1"} | environment,
    )


def test_a_real_terminal_gets_a_live_picture():
    leader, follower = pty.openpty()
    chunks = []

    def drain():
        try:
            while chunk := os.read(leader, 4096):
                chunks.append(chunk)
        except OSError:
            # A terminal whose other side is closed reads as a fault on Linux.
            pass

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        run_on(follower, TERM="xterm-256color", COLUMNS="90", LINES="24")
    finally:
        os.close(follower)
        reader.join(10)
        os.close(leader)
    text = b"".join(chunks).decode()
    assert "\x1b[?25l" in text
    assert "━" in text
    assert "done: 1 round in 1.0 s" in text


def test_a_pipe_gets_plain_lines():
    read, write = os.pipe()
    run_on(write, TERM="xterm-256color")
    os.close(write)
    with open(read, "rb") as file:
        text = file.read().decode()
    assert "\x1b" not in text
    assert text.splitlines() == [
        "homes: 1 client, 1 round",
        "round 1/1: asked 1 client",
        "round 1/1: loss 0.500, – down, – up, in 1.0 s",
        "done: 1 round in 1.0 s",
    ]


def test_importing_it_imports_no_display():
    code = "import sys, fedgen.cli.progress; assert not {'rich', 'torch', 'hydra', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_comes_in_late_is_told_when_it_comes_in_and_is_not_waited_for_before():
    records = [
        START,
        {"kind": "dispatch", "round": 1, "clients": CLIENTS, "late": ["home-1"], "due": []},
        turn(1, "home-0", asked=1),
        done(1, num_late=0, num_pending=1),
        {"kind": "dispatch", "round": 2, "clients": ["home-0"], "late": [], "due": ["home-1"]},
        turn(2, "home-1", asked=1),
        turn(2, "home-0", asked=2),
        done(2, num_late=1, num_pending=0),
    ]
    assert plain(records).splitlines()[1:] == [
        "round 1/4: asked 2 clients, 1 for later rounds",
        "round 1/4: home-0 loss 1.500, 2.0 s (1 of 1)",
        "round 1/4: loss 1.250, 2.0 MB down, 1.0 MB up, 1 still to come, in 10.0 s, 30.0 s left",
        "round 2/4: asked 1 client",
        "round 2/4: home-1 loss 1.500, 2.0 s, asked in round 1 (1 of 2)",
        "round 2/4: home-0 loss 1.500, 2.0 s (2 of 2)",
        "round 2/4: loss 1.250, 2.0 MB down, 1.0 MB up, 1 late, in 10.0 s, 20.0 s left",
    ]
